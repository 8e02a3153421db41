"""Among plans that are as good, the roomiest: the one whose fullest device has most memory left.

Small problems are solved exactly. On others, step by step, something is taken off the fullest device: the step that
costs fewest ticks for what it frees. Each step makes the sorted list of free bytes larger, so that devices that are
equally full are relieved one after the other, and no plan is met twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice

from solver.assignment import Assignment
from solver.cp_sat.busiest import solve_busiest
from solver.cp_sat.free_order import solve_free_order, solve_roomiest
from solver.cp_sat.run import Limits
from solver.problem import Problem
from solver.search.scales import EMBEDDING, FIRST, HEAD, NOWHERE, Change, Layout, Scales

EXACT_PAIRS = 60
"""Layers x devices^2 up to which the exact model is worth its time."""
LOOKS = 800
"""Changes that are looked at before the best plan so far is taken."""
FURTHEST = 3
"""Layers by which the borders between stretches move at most in one step."""


def roomiest(problem: Problem, plan: Assignment, most_ticks: int, limits: Limits) -> Assignment:
    """The plan of at most `most_ticks` ticks whose smallest free memory is largest, of several the one with fewest
    ticks: exact on small problems, else the best that small steps from `plan` find. It is `plan` where there is none
    better. Every device that could hold something counts, and one that holds nothing with all that it has.

    `plan` fits and keeps the problem's rules, and so does what is returned. The same question has the same answer: work
    is limited, not time, except by `limits.seconds`.
    """
    start = Layout(Scales(problem), plan)
    if most_ticks < start.ticks or not start.scales.counted:
        return plan
    found = _climb(start, most_ticks)
    if len(problem.layer_class) * len(problem.devices) ** 2 <= EXACT_PAIRS:
        found = _exact(start, found, most_ticks, limits)
    return found.plan


def smallest_free(problem: Problem, plan: Assignment) -> int:
    """Bytes left on the fullest of the devices that could hold something."""
    return Layout(Scales(problem), plan).smallest


def _roomy(layout: Layout) -> tuple[int, int]:
    return layout.smallest, -layout.ticks


def _exact(start: Layout, found: Layout, most_ticks: int, limits: Limits) -> Layout:
    """The roomiest of all, of which `found` is one, then the fewest ticks within what that leaves usable."""
    scales, problem = start.scales, start.scales.problem
    better = solve_roomiest(
        problem, limits, most_ticks=most_ticks, least=found.smallest, counted=scales.counted, hint=found.plan
    )
    if better is not None:
        found = max(found, Layout(scales, better), key=_roomy)
    if found.smallest == start.smallest:
        return found
    usable = [n - found.smallest * (d in scales.counted) for d, n in enumerate(problem.usable)]
    less = replace(problem, usable=tuple(usable))
    if not problem.bottleneck:
        fastest = solve_free_order(less, limits, floor=0, hint=found.plan).assignment
    elif problem.rank is None:
        fastest = solve_busiest(less, limits, ceiling=found.ticks).assignment
    else:
        fastest = None
    return found if fastest is None else max(found, Layout(scales, fastest), key=_roomy)


def _climb(start: Layout, most_ticks: int) -> Layout:
    """From the plan itself, and from it with its ends on the CPU, which takes few ticks and may free much."""
    cpu, best, looks = start.scales.problem.cpu, start, LOOKS
    for ends in ((), (EMBEDDING,), (HEAD,), (EMBEDDING, HEAD)):
        moved = {block: cpu for block in ends if start.where[block] != cpu}
        if len(moved) == len(ends) and start.may(moved, most_ticks):
            found, looks = _climbed(start.changed(moved) if moved else start, most_ticks, looks)
            best = max(best, found, key=_roomy)
    return best


def _climbed(here: Layout, most_ticks: int, looks: int) -> tuple[Layout, int]:
    """The best layout on the way up from `here`, and how many looks are left."""
    best = here
    while looks > 0:
        step: tuple[tuple[float, int, int], Change] | None = None
        for change in islice(_changes(here), looks):
            looks -= 1
            price = here.price(change, most_ticks)
            if price is not None and (step is None or price < step[0]):
                step = price, change
                if price[0] == 0:
                    break
        if step is None:
            break
        here = here.changed(step[1])
        best = max(best, here, key=_roomy)
    return best, looks


def _changes(layout: Layout) -> Iterator[Change]:
    """Small steps that take something off the fullest device."""
    targets = list(_targets(layout))
    for d in targets:
        ends = {block: d for block in (EMBEDDING, HEAD) if layout.where[block] == layout.fullest}
        yield from ({block: d} for block in ends)
        if len(ends) > 1:
            yield ends
    yield from _layers_off(layout, targets)
    yield from _shifts(layout)
    yield from _swaps(layout, targets)


def _targets(layout: Layout) -> Iterator[int]:
    """Where something may go to: of equal devices that hold nothing only the first."""
    seen = set()
    for d in layout.scales.counted:
        twin = layout.scales.problem.twins[d]
        empty = not any(layout.numbers[d])
        if d != layout.fullest and not (empty and twin in seen):
            yield d
        if empty:
            seen.add(twin)


def _layers_off(layout: Layout, targets: list[int]) -> Iterator[Change]:
    """A layer's attention, its experts, or both to another device; layers in equal places are taken once."""
    problem, n, full, seen = layout.scales.problem, layout.scales.n_layers, layout.fullest, set()
    for layer, c in enumerate(problem.layer_class):
        a, x = layout.attention(layer), layout.experts(layer)
        if full not in (a, x):
            continue
        block = FIRST + layer
        before, after = layout.walk[layer], layout.walk[layer + 2]
        apart = not problem.whole_layers or problem.classes[c].experts is None
        for key, change in (
            (("attention", c, x, before, after), (block,) if a == full and apart else ()),
            (("experts", c, a), (block + n,) if x == full and apart else ()),
            (("both", c, before, after), (block, block + n) if a == x else ()),
        ):
            if change and key not in seen:
                seen.add(key)
                yield from (dict.fromkeys(change, d) for d in targets)


def _shifts(layout: Layout) -> Iterator[Change]:
    """The borders between several stretches of the walk move, so that one on the fullest device loses layers and
    another gains as many."""
    walk = layout.plan.attention
    starts = [i for i, d in enumerate(walk) if i == 0 or d != walk[i - 1]]
    lengths = [stop - start for start, stop in zip(starts, (*starts[1:], len(walk)), strict=True)]
    for p, q in combinations(range(len(starts)), 2):
        borders = starts[p + 1 : q + 1]
        if walk[starts[p]] == layout.fullest:
            for by in range(1, min(FURTHEST, *lengths[p:q]) + 1):
                yield _with_experts(layout, {i: walk[s] for s in borders for i in range(s - by, s)})
        if walk[starts[q]] == layout.fullest:
            for by in range(1, min(FURTHEST, *lengths[p + 1 : q + 1]) + 1):
                yield _with_experts(layout, {i: walk[s - 1] for s in borders for i in range(s, s + by)})


def _with_experts(layout: Layout, moves: Mapping[int, int]) -> Change:
    """Attention of some layers moves, and experts that are with it go along."""
    change = {FIRST + layer: d for layer, d in moves.items()}
    for layer, d in moves.items():
        if layout.experts(layer) == layout.attention(layer):
            change[FIRST + layout.scales.n_layers + layer] = d
    return change


def _swaps(layout: Layout, targets: Sequence[int]) -> Iterator[Change]:
    """Experts on the fullest device for others elsewhere; and all that is on it for all that is on another."""
    scales, full = layout.scales, layout.fullest
    first = FIRST + scales.n_layers
    if not scales.problem.whole_layers and scales.n_classes > 1:
        alike: dict[tuple[int, int, int], int] = {}
        for layer, c in enumerate(scales.problem.layer_class):
            if layout.experts(layer) != NOWHERE:
                alike.setdefault((c, layout.attention(layer), layout.experts(layer)), layer)
        for (c, _, x), layer in alike.items():
            for (other_c, _, d), other in alike.items() if x == full else ():
                if c != other_c and d != full:
                    yield {first + layer: d, first + other: full}
    for d in targets:
        yield {block: full if here == d else d for block, here in enumerate(layout.where) if here in (d, full)}
