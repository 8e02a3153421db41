"""The model for throughput: how many attentions and experts each device holds, so that the busiest has least to do.

Hops and hand-overs are nobody's work, so neither the order of layers nor which experts belong to which attention
matters: numbers by class and device say everything, and the model is exact. Where devices have an order, layers are cut
where the token goes on to later ones. Interchangeable devices are ordered by their work.
"""

from __future__ import annotations

from itertools import pairwise

from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from solver.assignment import Assignment, Counts, experts_for, lay_out
from solver.cp_sat.load import Held, keep_within, load_on
from solver.cp_sat.run import Limits, Outcome, bound_of, search, total
from solver.problem import BlockCosts, ExpertsCosts, Problem

Numbers = dict[tuple[int, int], cp_model.IntVar]
"""By class and device."""


def solve_busiest(problem: Problem, limits: Limits, *, floor: int = 0, ceiling: int | None = None) -> Outcome:
    """The best numbers, a plan that has them, and a bound in ticks over all placements; `infeasible` is a proof.

    `floor` is a known bound; nothing above `ceiling` is of interest.
    """
    cp, devices = cp_model.CpModel(), range(len(problem.devices))
    attention: Numbers = {}
    experts: Numbers = {}
    for c, (kind, n) in enumerate(zip(problem.classes, problem.class_sizes, strict=True)):
        _numbers(cp, attention, c, n, kind.attention.allowed)
        if kind.experts is not None:
            _numbers(cp, experts, c, n, kind.experts.allowed)
            for d in devices if problem.whole_layers else ():
                cp.add(experts[c, d] == attention[c, d])
    ends = [_one_of(cp, block) for block in (problem.embedding, problem.head)]
    _keep_order(problem, cp, attention, ends[1])
    busiest = cp.new_int_var(floor, _most(problem) if ceiling is None else max(floor, ceiling), "busiest")
    busy = []
    for d in devices:
        busy.append(_busy(problem, d, attention, experts, ends))
        cp.add(busy[d] <= busiest)
    keep_within(cp, [_load(problem, cp, d, attention, experts, ends) for d in devices], problem.room)
    if problem.main is not None:
        here = [number for numbers in (attention, experts) for (_, d), number in numbers.items() if d == problem.main]
        cp.add(sum(here) + sum(end[problem.main] for end in ends) >= 1)
    for first in dict.fromkeys(problem.twins):
        for one, next_ in pairwise([d for d in devices if problem.twins[d] == first]):
            cp.add(busy[one] >= busy[next_])
    cp.minimize(busiest)
    solver, status = search(cp, limits)
    bound = max(floor, bound_of(solver, status))
    if status in ("infeasible", "unknown"):
        return Outcome(status, bound)
    value = {"attention": _values(solver, attention), "experts": _values(solver, experts)}
    chosen = [next(d for d in devices if solver.value(end[d])) for end in ends]
    return Outcome(status, bound, assignment=_plan(problem, chosen, value["attention"], value["experts"]))


def _numbers(cp: cp_model.CpModel, numbers: Numbers, c: int, n: int, allowed: tuple[bool, ...]) -> None:
    for d, may in enumerate(allowed):
        numbers[c, d] = cp.new_int_var(0, n * may, "")
    cp.add(sum(numbers[c, d] for d in range(len(allowed))) == n)


def _keep_order(problem: Problem, cp: cp_model.CpModel, attention: Numbers, head: list[cp_model.IntVar]) -> None:
    """Between two cuts of the layers are those on devices of one rank; where `head_in_order`, the head is on none that
    comes before the last layer's."""
    if problem.rank is None:
        return
    n_layers = len(problem.layer_class)
    so_far = [
        [sum(k == c for k in problem.layer_class[:i]) for i in range(n_layers + 1)] for c in range(len(problem.classes))
    ]
    before = cp.new_constant(0)
    done: list[cp_model.IntVar] = [cp.new_constant(0) for _ in problem.classes]
    for rank in sorted(set(problem.rank)):
        here = [d for d, r in enumerate(problem.rank) if r == rank]
        cut = cp.new_int_var(0, n_layers, "")
        cp.add(cut >= before)
        for c, n in enumerate(problem.class_sizes):
            until = cp.new_int_var(0, n, "")
            cp.add_element(cut, so_far[c], until)
            cp.add(sum(attention[c, d] for d in here) == until - done[c])
            done[c] = until
        if problem.head_in_order:
            cp.add(cut >= n_layers * sum(head[d] for d in here))
        before = cut
    cp.add(before == n_layers)


def _one_of(cp: cp_model.CpModel, block: BlockCosts) -> list[cp_model.IntVar]:
    choice = [cp.new_int_var(0, int(may), "") for may in block.allowed]
    cp.add_exactly_one(choice)
    return choice


def _most(problem: Problem) -> int:
    """All blocks on their slowest devices, one after the other."""
    most = max(problem.embedding.ticks) + max(problem.head.ticks)
    for kind, n in zip(problem.classes, problem.class_sizes, strict=True):
        most += n * (max(kind.attention.ticks) + (max(kind.experts.busy) if kind.experts is not None else 0))
    return most


def _load(
    problem: Problem,
    cp: cp_model.CpModel,
    d: int,
    attention: Numbers,
    experts: Numbers,
    ends: list[list[cp_model.IntVar]],
) -> cp_model.LinearExpr:
    held = []
    for c, (kind, n) in enumerate(zip(problem.classes, problem.class_sizes, strict=True)):
        held.append(Held.of(kind.attention, d, attention[c, d], n))
        if kind.experts is not None:
            held.append(Held.of(kind.experts, d, experts[c, d], n))
    return load_on(problem, cp, d, ends[0][d], ends[1][d], held)


def _busy(
    problem: Problem, d: int, attention: Numbers, experts: Numbers, ends: list[list[cp_model.IntVar]]
) -> cp_model.LinearExpr:
    busy = total([(problem.embedding.ticks[d], ends[0][d]), (problem.head.ticks[d], ends[1][d])])
    for c, kind in enumerate(problem.classes):
        busy += kind.attention.ticks[d] * attention[c, d]
        if kind.experts is not None:
            busy += kind.experts.busy[d] * experts[c, d]
    return busy


def _values(solver: cp_model.CpSolver, numbers: Numbers) -> dict[tuple[int, int], int]:
    return {key: solver.value(var) for key, var in numbers.items()}


def _plan(
    problem: Problem, ends: list[int], attention: dict[tuple[int, int], int], experts: dict[tuple[int, int], int]
) -> Assignment:
    """Layers in the order of the devices (of their ranks, where they have any), experts beside their attention as far
    as the numbers allow."""
    devices = range(len(problem.devices))
    route = sorted(devices, key=lambda d: (problem.rank[d] if problem.rank else 0, d))
    homes = lay_out(problem, attention, route, False)
    pairs: dict[tuple[int, int, int], int] = {}
    for c in range(len(problem.classes)):
        away = {a: attention[c, a] for a in devices}
        room = {d: experts.get((c, d), 0) for d in devices}
        for a in devices:
            pairs[c, a, a] = min(away[a], room[a])
            away[a], room[a] = away[a] - pairs[c, a, a], room[a] - pairs[c, a, a]
        for a in devices:
            for d in devices:
                moved = min(away[a], room[d])
                if moved:
                    pairs[c, a, d] = moved
                    away[a], room[d] = away[a] - moved, room[d] - moved
    counts = Counts(ends[0], ends[1], attention, pairs, ())
    return Assignment(ends[0], ends[1], homes, experts_for(homes, counts, problem))


def fractional_bound(problem: Problem) -> int:
    """Ticks of the busiest device that no placement beats, experts split or not: blocks in fractions, each group of
    equals with its bytes and its work in all.

    A part of a layer's experts takes at least its share of the whole's time, since a part is launched no less often
    than in proportion. 0 where the linear program has no solution.
    """
    lp = pywraplp.Solver.CreateSolver("GLOP")
    groups = {g: problem.twins.count(g) for g in dict.fromkeys(problem.twins)}
    scale = 1e9 / max(1, _most(problem))
    busiest = lp.NumVar(0, lp.infinity(), "busiest")
    work = {g: lp.Constraint(-lp.infinity(), 0) for g in groups}
    room = {g: lp.Constraint(-lp.infinity(), size * problem.usable[g] / 1e9) for g, size in groups.items()}
    for g, size in groups.items():
        work[g].SetCoefficient(busiest, -size)
    blocks = [(problem.embedding, problem.embedding.ticks, 1), (problem.head, problem.head.ticks, 1)]
    parts: list[tuple[BlockCosts | ExpertsCosts, tuple[int, ...], int]] = list(blocks)
    for kind, n in zip(problem.classes, problem.class_sizes, strict=True):
        parts.append((kind.attention, kind.attention.ticks, n))
        if kind.experts is not None:
            parts.append((kind.experts, kind.experts.busy, n))
    for block, ticks, n in parts:
        placed = lp.Constraint(n, n)
        for g in groups:
            if block.allowed[g]:
                share = lp.NumVar(0, lp.infinity(), "")
                placed.SetCoefficient(share, 1)
                work[g].SetCoefficient(share, ticks[g] * scale)
                n_bytes = max(0, block.bytes[g] - (problem.tied_bytes if block is problem.head else 0))
                room[g].SetCoefficient(share, n_bytes / 1e9)
    lp.Minimize(busiest)
    if lp.Solve() != pywraplp.Solver.OPTIMAL:
        return 0
    return int(lp.Objective().Value() / scale * (1 - 1e-6))
