"""A bound that does not care which of several equal cards is which.

Devices that are interchangeable form a group. What one card of a group can hold of each kind of experts is a *pattern*;
integers say how many cards of the group use each pattern, how many attentions sit on them and how many of those have
their experts on the same card, on another card of the group, or in another group. Every placement has such numbers, so
the optimum is a lower bound over all placements; docs/model.md says what is given up. No two solutions differ by the
names of cards only, which is what makes this fast where the counts model searches through permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from ortools.sat.python import cp_model

from solver.column_generation.columns import ColumnSearch
from solver.column_generation.contents import Integers, Prices, merged, undominated
from solver.cp_sat.load import Held, load_on
from solver.cp_sat.run import Limits, Status, at_least, bound_of, search, total
from solver.problem import Problem

MAX_PATTERNS = 300
"""Patterns of all groups together beyond which this bound is not worth its model."""
MAX_LISTED = 3000
"""Patterns of one group that are looked at."""
MAX_OF_ONE = 60
"""Patterns of a device without equals up to which they are listed; beyond, what it holds are variables."""

ROUNDINGS = (1, 2, 3, 4)
"""Multiples of the lightest attention's size at which a card's room is rounded; more hardly ever cut anything off."""

Pattern = tuple[int, ...]


@dataclass(frozen=True)
class Load:
    """`cards` cards of the group of `device` hold this pattern of experts, and so many attentions of each class in all;
    `embedding`, `head`: whether one of them has it. Without a pattern: a device whose experts are not told."""

    device: int
    cards: int
    pattern: Pattern | None
    attention: tuple[int, ...]
    embedding: bool
    head: bool


@dataclass(frozen=True)
class PatternOutcome:
    """The bound, and how it is reached where a solution was found."""

    status: Status
    bound: int
    loads: tuple[Load, ...] = ()

    @property
    def cards(self) -> dict[int, dict[Pattern, int]]:
        """For the first device of each group, the number of cards that use a pattern."""
        found: dict[int, dict[Pattern, int]] = {}
        for load in self.loads:
            if load.pattern is not None:
                found.setdefault(load.device, {})[load.pattern] = load.cards
        return found


@dataclass
class _Cell:
    """Cards of one group with the same experts on them.

    `cards` is how many there are, `used` how many of them have attention. A device without equals is one cell, with
    `pattern` None: what it holds are variables.
    """

    device: int
    pattern: Pattern | None
    cards: cp_model.IntVar
    used: cp_model.IntVar
    attention: list[cp_model.IntVar]
    held: list[cp_model.LinearExpr]
    local: list[cp_model.IntVar]
    embedding: cp_model.IntVar
    head: cp_model.IntVar


def groups_of(problem: Problem) -> dict[int, int]:
    """First device of each group of interchangeable devices -> number of them."""
    return {first: problem.twins.count(first) for first in dict.fromkeys(problem.twins)}


def patterns_on(problem: Problem, device: int) -> Iterator[Pattern]:
    """Every number of experts of each kind that `device` can hold beside nothing else, workspace included."""

    def extend(chosen: Pattern, left: int, workspace: int) -> Iterator[Pattern]:
        k = len(chosen)
        if k == len(problem.expert_kinds):
            yield chosen
            return
        experts, most = problem.expert_kinds[k].experts, problem.expert_kinds[k].number
        yield from extend((*chosen, 0), left, workspace)
        if not experts.allowed[device]:
            return
        needed = max(workspace, experts.workspace)
        for n in range(1, most + 1):
            if n * experts.bytes[device] + needed > left:
                break
            yield from extend((*chosen, n), left - n * experts.bytes[device], needed)

    return extend((), problem.usable[device], 0)


def worthwhile(problem: Problem, search: ColumnSearch, enough: int, most: int) -> dict[int, list[Pattern]] | None:
    """The patterns that a plan below `enough` ticks may use; None where these are more than `most`.

    A card that earns less at the prices of `search` than the best can costs the difference on top of its bound, so
    patterns where that is too much are left out, and a bound over the others holds for every plan below `enough`.
    """
    priced, cpu = search.first, problem.devices.index("cpu")
    patterns: dict[int, list[Pattern]] = {}
    for g, size in search.network.groups.items():
        if g == cpu and size == 1:
            continue
        least = max(0, priced.earned[g]) - (enough - priced.bound)
        found = list(islice(patterns_on(problem, g), MAX_LISTED + 1))
        kept = found[:0]
        if len(found) <= MAX_LISTED:
            prices = search.network.prices(priced.prices, g)
            kept = [pattern for pattern in found if _most_earned(problem, g, pattern, prices) >= least]
        if kept and (size > 1 or len(kept) <= MAX_OF_ONE):
            patterns[g] = kept
        elif size > 1:
            return None
    return patterns if sum(map(len, patterns.values())) <= most else None


def _most_earned(problem: Problem, g: int, pattern: Pattern, prices: Prices) -> int:
    """At least what any contents with these experts earn; embedding and head take no room here."""
    kinds = problem.expert_kinds
    need = max((kind.experts.workspace for kind, n in zip(kinds, pattern, strict=True) if n), default=0)
    room = problem.usable[g] - need
    room -= sum(n * kind.experts.bytes[g] for kind, n in zip(kinds, pattern, strict=True))
    dense = [c for c, kind in enumerate(problem.classes) if kind.experts is None]
    lists = [_attentions(problem, g, (c,), max(0, room), prices) for c in dense]
    guests = 0
    for k, (kind, n) in enumerate(zip(kinds, pattern, strict=True)):
        n_bytes, value, own = _attentions(problem, g, kind.classes, max(0, room), prices)
        value = value + prices.sent[k] * own + prices.taken[k] * n
        if prices.together(k) or problem.whole_layers:
            value = value + (prices.local[k] - prices.sent[k] - prices.taken[k]) * np.minimum(own, n)
        guests += prices.taken[k] * n
        whole = own == n if problem.whole_layers else np.ones(len(own), bool)
        if not whole.any():
            return -(2**62)
        lists.append((n_bytes[whole], value[whole], own[whole]))
    points = [undominated(n_bytes, value, (own,)) for n_bytes, value, own in lists]
    used = int(merged(points, max(0, room)).value.max(initial=-(2**62))) + prices.used + prices.visit
    return max(used, guests) + max(0, prices.embedding + prices.first) + max(0, prices.head + prices.last)


def _attentions(
    problem: Problem, g: int, classes: Sequence[int], room: int, prices: Prices
) -> tuple[Integers, Integers, Integers]:
    """Bytes, earnings and numbers of all attentions of some classes that have room, from light to heavy."""
    most = []
    for c in classes:
        weight = problem.classes[c].attention.bytes[g]
        size = problem.class_sizes[c] if problem.classes[c].attention.allowed[g] else 0
        most.append(min(size, room // weight) if weight else size)
    grid = np.indices([n + 1 for n in most]).reshape(len(most), -1)
    n_bytes = np.array([problem.classes[c].attention.bytes[g] for c in classes]) @ grid
    order = np.argsort(n_bytes, kind="stable")
    value = np.array([prices.attention[c] for c in classes]) @ grid
    return n_bytes[order], value[order], grid.sum(axis=0)[order]


def solve_patterns(
    problem: Problem, limits: Limits, patterns: Mapping[int, Sequence[Pattern]], *, floor: int = 0
) -> PatternOutcome:
    """The bound with cards of the groups in `patterns` loaded so, and the patterns it is reached with.

    `infeasible` is a proof, and `bound` in ticks is valid, for every placement that loads those cards with one of the
    patterns each; `floor` is a bound known before.
    """
    groups = groups_of(problem)
    cp = cp_model.CpModel()
    cells = []
    for first, size in groups.items():
        if first not in patterns:
            assert size == 1, "devices with equals need patterns"
            cells.append(_single(problem, cp, first))
        cells += [_cell(problem, cp, first, size, pattern) for pattern in patterns.get(first, [])]
    for first, size in groups.items():
        if first in patterns:
            cp.add(sum(cell.cards for cell in cells if cell.device == first) == size)
    ticks = _ends_and_experts(problem, cp, cells, groups) + _route(problem, cp, cells, groups)
    cp.minimize(at_least(cp, ticks, floor))
    solver, status = search(cp, limits)
    if status in ("infeasible", "unknown"):
        return PatternOutcome(status, max(floor, bound_of(solver, status)))
    loads = tuple(
        Load(
            cell.device,
            solver.value(cell.cards),
            cell.pattern,
            tuple(solver.value(var) for var in cell.attention),
            bool(solver.value(cell.embedding)),
            bool(solver.value(cell.head)),
        )
        for cell in cells
        if solver.value(cell.cards)
    )
    return PatternOutcome(status, max(floor, bound_of(solver, status)), loads)


def _cell(problem: Problem, cp: cp_model.CpModel, device: int, size: int, pattern: Pattern) -> _Cell:
    """The cards of a group with this pattern: bytes are counted for all of them together, but what rounding down leaves
    over on each card, beside the embedding or the head as well, is lost."""
    cards, used = cp.new_int_var(0, size, ""), cp.new_int_var(0, size, "")
    room = _room(problem, device, pattern)
    ends = [
        cp.new_int_var(0, int(block.allowed[device] and block.bytes[device] <= room), "")
        for block in (problem.embedding, problem.head)
    ]
    both = cp.new_bool_var("")
    cp.add_implication(both, ends[0])
    cp.add_implication(both, ends[1])
    bytes_of_ends = [problem.embedding.bytes[device], problem.head.bytes[device]]

    def limit(number: cp_model.LinearExpr, most: Callable[[int], int]) -> None:
        """`number` of something on all cards, of which a card with so many bytes left can have `most(bytes)`."""
        lost = [most(room) - most(room - n_bytes) for n_bytes in bytes_of_ends]
        lost_to_both = most(room) - most(room - sum(bytes_of_ends) + problem.tied_bytes)
        given_back = max(0, sum(lost) - lost_to_both)
        cp.add(number <= most(room) * used)
        cp.add(number + lost[0] * ends[0] + lost[1] * ends[1] - given_back * both <= most(room) * cards)

    attention = _attention(problem, cp, device)
    sizes = [kind.attention.bytes[device] for kind in problem.classes]
    cp.add(used <= cards)
    cp.add(sum(attention) >= used)
    cp.add(sum(attention) <= len(problem.layer_class) * used)
    cp.add(sum(ends) <= 2 * cards)
    limit(total(zip(sizes, attention, strict=True)), lambda left: max(0, left))
    for multiple in ROUNDINGS if min(sizes) else ():
        # Chvatal-Gomory: in whole units of the lightest attention / multiple, sizes and room both rounded down.
        def units(n_bytes: int, multiple: int = multiple) -> int:
            return max(0, multiple * n_bytes // min(sizes))

        limit(total((units(n_bytes), var) for n_bytes, var in zip(sizes, attention, strict=True)), units)
    local = [cp.new_int_var(0, kind.number if pattern[k] else 0, "") for k, kind in enumerate(problem.expert_kinds)]
    for k, (kind, n) in enumerate(zip(problem.expert_kinds, pattern, strict=True)):
        cp.add(local[k] <= sum(attention[c] for c in kind.classes))
        cp.add(local[k] <= n * used)
    if min(sizes):
        limit(total((1, var) for var in local), lambda left: max(0, min(sum(pattern), left // min(sizes))))
    return _Cell(device, pattern, cards, used, attention, [n * cards for n in pattern], local, ends[0], ends[1])


def _single(problem: Problem, cp: cp_model.CpModel, device: int) -> _Cell:
    """A device without equals: its numbers are variables, and its memory is counted exactly."""
    held: list[cp_model.LinearExpr] = []
    local = []
    attention = _attention(problem, cp, device)
    for kind in problem.expert_kinds:
        most = kind.number * kind.experts.allowed[device]
        held.append(cp.new_int_var(0, most, ""))
        local.append(cp.new_int_var(0, most, ""))
        cp.add(local[-1] <= sum(attention[c] for c in kind.classes))
        cp.add(local[-1] <= held[-1])
    used = cp.new_bool_var("")
    cp.add(sum(attention) >= used)
    cp.add(sum(attention) <= len(problem.layer_class) * used)
    embedding = cp.new_int_var(0, int(problem.embedding.allowed[device]), "")
    head = cp.new_int_var(0, int(problem.head.allowed[device]), "")
    blocks = [
        Held.of(kind.attention, device, var, n)
        for kind, var, n in zip(problem.classes, attention, problem.class_sizes, strict=True)
    ]
    blocks += [
        Held.of(kind.experts, device, var, kind.number) for kind, var in zip(problem.expert_kinds, held, strict=True)
    ]
    cp.add(load_on(problem, cp, device, embedding, head, blocks) <= problem.usable[device])
    return _Cell(device, None, cp.new_constant(1), used, attention, held, local, embedding, head)


def _attention(problem: Problem, cp: cp_model.CpModel, device: int) -> list[cp_model.IntVar]:
    sizes = zip(problem.classes, problem.class_sizes, strict=True)
    return [cp.new_int_var(0, n * kind.attention.allowed[device], "") for kind, n in sizes]


def _room(problem: Problem, device: int, pattern: Pattern) -> int:
    """Bytes left on a card beside a pattern's experts and their workspace; that of other blocks is not counted, which
    is a relaxation where it is larger."""
    room, workspace = problem.usable[device], 0
    for kind, n in zip(problem.expert_kinds, pattern, strict=True):
        if n:
            room -= n * kind.experts.bytes[device]
            workspace = max(workspace, kind.experts.workspace)
    return room - workspace


def _ends_and_experts(
    problem: Problem, cp: cp_model.CpModel, cells: list[_Cell], groups: dict[int, int]
) -> cp_model.LinearExpr:
    """Every block somewhere; ticks of embedding, head, attention, and of experts wherever they are."""
    ticks = total([])
    for block, chosen in ((problem.embedding, [c.embedding for c in cells]), (problem.head, [c.head for c in cells])):
        cp.add(sum(chosen) == 1)
        ticks += total((block.ticks[cell.device], end) for cell, end in zip(cells, chosen, strict=True))
    for c, (kind, n) in enumerate(zip(problem.classes, problem.class_sizes, strict=True)):
        cp.add(sum(cell.attention[c] for cell in cells) == n)
        ticks += total((kind.attention.ticks[cell.device], cell.attention[c]) for cell in cells)
    for k, alike in enumerate(problem.expert_kinds):
        experts, away = alike.experts, 0 if problem.whole_layers else alike.number
        ticks += total((experts.ticks[cell.device][cell.device], cell.local[k]) for cell in cells)
        moved = {(a, d): cp.new_int_var(0, away if a != d or groups[a] > 1 else 0, "") for a in groups for d in groups}
        for g in groups:
            mine = [cell for cell in cells if cell.device == g]
            own = total((1, cell.attention[c]) for cell in mine for c in alike.classes)
            cp.add(own - sum(cell.local[k] for cell in mine) == sum(moved[g, d] for d in groups))
            cp.add(sum(cell.held[k] - cell.local[k] for cell in mine) == sum(moved[a, g] for a in groups))
        for (a, d), var in moved.items():
            ticks += experts.ticks[a][problem.other_twin(a) if a == d else d] * var
    return ticks


def _route(problem: Problem, cp: cp_model.CpModel, cells: list[_Cell], groups: dict[int, int]) -> cp_model.LinearExpr:
    """Hops by degrees: each used card is entered and left once; that the route hangs together is not asked."""
    first = {g: cp.new_bool_var("") for g in groups}
    last = {g: cp.new_bool_var("") for g in groups}
    cp.add_exactly_one(first.values())
    cp.add_exactly_one(last.values())
    hops = {(g, h): cp.new_int_var(0, min(groups[g], groups[h]), "") for g in groups for h in groups}
    ticks = total([])
    for g, size in groups.items():
        used = total((1, cell.used) for cell in cells if cell.device == g)
        some = cp.new_bool_var("")
        cp.add(used <= size * some)
        cp.add(used >= some)
        cp.add(hops[g, g] <= used - some)
        cp.add(sum(hops[g, h] for h in groups) + last[g] == used)
        cp.add(sum(hops[h, g] for h in groups) + first[g] == used)
        if size > 1:
            ticks += problem.hop[g][problem.other_twin(g)] * _round_trip(cp, cells, g, size, used, first[g] + last[g])
        opening = problem.layer_class[0]
        cp.add(sum(cell.attention[opening] for cell in cells if cell.device == g) >= first[g])
    for (g, h), var in hops.items():
        ticks += problem.hop[g][problem.other_twin(g) if g == h else h] * var
    for end, name in ((first, "embedding"), (last, "head")):
        flow = {(g, h): cp.new_bool_var("") for g in groups for h in groups}
        for g in groups:
            block = sum(getattr(cell, name) for cell in cells if cell.device == g)
            cp.add(sum(flow[g, h] for h in groups) == block)
            cp.add(sum(flow[h, g] for h in groups) == end[g])
        ticks += total((problem.hop[g][h], var) for (g, h), var in flow.items())
    return ticks


def _round_trip(
    cp: cp_model.CpModel,
    cells: list[_Cell],
    g: int,
    size: int,
    used: cp_model.LinearExpr,
    ends_here: cp_model.LinearExpr,
) -> cp_model.IntVar:
    """1 where embedding and head share one card, and the route begins and ends in its group without being that card
    alone: only one of the route's two ends can be on that card, so the other costs a hop."""
    shared = cp.new_bool_var("")
    for cell in cells:
        if cell.device == g:
            cp.add(shared >= cell.embedding + cell.head - cell.cards)
    several, trip = cp.new_bool_var(""), cp.new_bool_var("")
    cp.add(used <= 1 + (size - 1) * several)
    cp.add(trip >= shared + several + ends_here - 3)
    return trip
