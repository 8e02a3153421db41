"""The exact model for any order: a boolean per layer and pair of devices, and a flow from layer to layer.

It grows with layers x devices^2 and its bound is weak, so it is for instances small enough that revisiting a device
could pay: it closes what the slices leave open there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ortools.sat.python import cp_model

from solver.assignment import Assignment
from solver.cp_sat.load import Held, keep_within, load_on
from solver.cp_sat.run import Limits, Outcome, bound_of, search, total
from solver.problem import BlockCosts, Problem

MAX_PAIRS = 1500
"""Layers x devices^2 up to which this model is worth trying."""


@dataclass(frozen=True)
class _Choices:
    """One boolean a device for the ends and each layer's attention; `pair[i, a, d]`: layer i's experts on d from a."""

    embedding: list[cp_model.IntVar]
    head: list[cp_model.IntVar]
    attention: list[list[cp_model.IntVar]]
    pair: dict[tuple[int, int, int], cp_model.IntVar]


def is_small(problem: Problem) -> bool:
    return len(problem.layer_class) * len(problem.devices) ** 2 <= MAX_PAIRS


def solve_free_order(problem: Problem, limits: Limits, *, floor: int, hint: Assignment | None) -> Outcome:
    """The best placement of all; its bound, where better than `floor`, is valid for every placement. `infeasible` is a
    proof that none fits, unless one is known to."""
    cp = cp_model.CpModel()
    choices = _choices(problem, cp)
    _within(problem, cp, choices)
    ticks = _ticks(problem, cp, choices)
    if floor > 0:
        cp.add(ticks >= floor)
    cp.minimize(ticks)
    if hint is not None:
        _hint(cp, choices, hint)
    solver, status = search(cp, limits)
    if status in ("infeasible", "unknown"):
        return Outcome(status, floor)
    return Outcome(status, max(floor, bound_of(solver, status)), assignment=_decode(choices, solver))


def solve_roomiest(
    problem: Problem, limits: Limits, *, most_ticks: int, least: int, counted: Sequence[int], hint: Assignment
) -> Assignment | None:
    """Of all placements of at most `most_ticks` ticks the one that leaves most bytes free on the fullest of the
    `counted` devices, at least `least`; None where none was found."""
    cp = cp_model.CpModel()
    choices = _choices(problem, cp)
    loads = _within(problem, cp, choices)
    if problem.bottleneck:
        for d in range(len(problem.devices)):
            cp.add(_busy(problem, choices, d) <= most_ticks)
        _keep_order(problem, cp, choices)
    else:
        cp.add(_ticks(problem, cp, choices) <= most_ticks)
    free = cp.new_int_var(least, min(problem.usable[d] for d in counted), "free")
    for d in counted:
        cp.add(loads[d] + free <= problem.usable[d])
    cp.maximize(free)
    _hint(cp, choices, hint)
    solver, status = search(cp, limits)
    return None if status in ("infeasible", "unknown") else _decode(choices, solver)


def _within(problem: Problem, cp: cp_model.CpModel, choices: _Choices) -> list[cp_model.LinearExpr]:
    """Every device and pool within its memory, and something on the device that must hold something; the loads."""
    loads = [_load(problem, cp, choices, d) for d in range(len(problem.devices))]
    keep_within(cp, loads, problem.room)
    if problem.main is not None:
        blocks = [choices.embedding, choices.head, *choices.attention]
        held = [pair for (_, _, d), pair in choices.pair.items() if d == problem.main]
        cp.add(sum(block[problem.main] for block in blocks) + sum(held) >= 1)
    return loads


def _keep_order(problem: Problem, cp: cp_model.CpModel, choices: _Choices) -> None:
    """Attention goes on to no device that comes earlier in their order: for a model without hops, which see to that."""
    devices = range(len(problem.devices))
    for before, after in pairwise([*choices.attention, *([choices.head] if problem.head_in_order else [])]):
        for a in devices:
            for b in devices:
                if not problem.in_order(a, b):
                    cp.add(before[a] + after[b] <= 1)


def _hint(cp: cp_model.CpModel, choices: _Choices, hint: Assignment) -> None:
    for (i, a, d), chosen in choices.pair.items():
        cp.add_hint(chosen, int((hint.attention[i], hint.experts[i]) == (a, d)))


def _choices(problem: Problem, cp: cp_model.CpModel) -> _Choices:
    devices = range(len(problem.devices))

    def one_of(block: BlockCosts) -> list[cp_model.IntVar]:
        choice = [cp.new_int_var(0, int(block.allowed[d]), "") for d in devices]
        cp.add_exactly_one(choice)
        return choice

    attention, pair = [], {}
    for i, c in enumerate(problem.layer_class):
        kind = problem.classes[c]
        attention.append(one_of(kind.attention))
        if kind.experts is None:
            continue
        for a in devices:
            for d in devices:
                together = a == d or not problem.whole_layers
                pair[i, a, d] = cp.new_int_var(0, int(kind.experts.allowed[d] and together), "")
            cp.add(sum(pair[i, a, d] for d in devices) == attention[i][a])
    return _Choices(one_of(problem.embedding), one_of(problem.head), attention, pair)


def _load(problem: Problem, cp: cp_model.CpModel, choices: _Choices, d: int) -> cp_model.LinearExpr:
    held = []
    to_cpu: dict[int, cp_model.LinearExpr] = {}
    for i, c in enumerate(problem.layer_class):
        attention, experts = problem.classes[c].attention, problem.classes[c].experts
        held.append(Held.of(attention, d, choices.attention[i][d], 1))
        if experts is not None:
            here = total((1, choices.pair[i, a, d]) for a in range(len(problem.devices)))
            held.append(Held.of(experts, d, here, 1))
            to_cpu[c] = to_cpu.get(c, 0) + choices.pair[i, d, problem.cpu]
    return load_on(problem, cp, d, choices.embedding[d], choices.head[d], held, to_cpu)


def _ticks(problem: Problem, cp: cp_model.CpModel, choices: _Choices) -> cp_model.LinearExpr:
    devices = range(len(problem.devices))
    ticks = total((problem.embedding.ticks[d], choices.embedding[d]) for d in devices)
    ticks += total((problem.head.ticks[d], choices.head[d]) for d in devices)
    stops = [choices.embedding, *choices.attention, choices.head]
    for step, (before, after) in enumerate(pairwise(stops)):
        ordered = step > 0 and (step < len(stops) - 2 or problem.head_in_order)
        flow = {
            (a, b): cp.new_int_var(0, int(not ordered or problem.in_order(a, b)), "") for a in devices for b in devices
        }
        for d in devices:
            cp.add(sum(flow[d, b] for b in devices) == before[d])
            cp.add(sum(flow[a, d] for a in devices) == after[d])
        ticks += total((problem.hop[a][b], arc) for (a, b), arc in flow.items())
    for c, attention in zip(problem.layer_class, choices.attention, strict=True):
        ticks += total((problem.classes[c].attention.ticks[a], attention[a]) for a in devices)
    for (i, a, d), chosen in choices.pair.items():
        experts = problem.classes[problem.layer_class[i]].experts
        assert experts is not None
        ticks += experts.ticks[a][d] * chosen
    return ticks


def _busy(problem: Problem, choices: _Choices, d: int) -> cp_model.LinearExpr:
    busy = total([(problem.embedding.ticks[d], choices.embedding[d]), (problem.head.ticks[d], choices.head[d])])
    for c, attention in zip(problem.layer_class, choices.attention, strict=True):
        busy += problem.classes[c].attention.ticks[d] * attention[d]
    for (i, _, e), chosen in choices.pair.items():
        experts = problem.classes[problem.layer_class[i]].experts
        if e == d and experts is not None:
            busy += experts.busy[d] * chosen
    return busy


def _decode(choices: _Choices, solver: cp_model.CpSolver) -> Assignment:
    def chosen_in(choice: list[cp_model.IntVar]) -> int:
        return next(d for d, var in enumerate(choice) if solver.value(var))

    where = {(i, a): d for (i, a, d), var in choices.pair.items() if solver.value(var)}
    homes = tuple(chosen_in(choice) for choice in choices.attention)
    experts = tuple(where.get((i, home)) for i, home in enumerate(homes))
    return Assignment(chosen_in(choices.embedding), chosen_in(choices.head), homes, experts)
