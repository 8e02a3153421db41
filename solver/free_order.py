"""The exact model for any order: a boolean per layer and pair of devices, and a flow from layer to layer.

It grows with layers x devices^2 and its bound is weak, so it is for instances small enough that revisiting a device
could pay: it closes what the slices leave open there.
"""

from __future__ import annotations

from itertools import pairwise

from ortools.sat.python import cp_model

from solver.assignment import Assignment
from solver.cp_sat import Limits, Outcome, search, total
from solver.problem import Problem

MAX_PAIRS = 1500
"""Layers x devices^2 up to which this model is worth trying."""


def is_small(problem: Problem) -> bool:
    return len(problem.layer_class) * len(problem.devices) ** 2 <= MAX_PAIRS


def solve_free_order(problem: Problem, limits: Limits, *, floor: int, hint: Assignment) -> Outcome:
    """The best placement of all; its bound, where better than `floor`, is valid for every placement."""
    cp, devices, layers = cp_model.CpModel(), range(len(problem.devices)), range(len(problem.layer_class))
    kinds = [problem.classes[c] for c in problem.layer_class]
    embedding = [cp.new_int_var(0, int(problem.embedding.allowed[d]), "") for d in devices]
    head = [cp.new_int_var(0, int(problem.head.allowed[d]), "") for d in devices]
    attention = [[cp.new_int_var(0, int(kind.attention.allowed[a]), "") for a in devices] for kind in kinds]
    pair: dict[tuple[int, int, int], cp_model.IntVar] = {}
    for choice in (embedding, head, *attention):
        cp.add_exactly_one(choice)
    for i in layers:
        experts = kinds[i].experts
        for a in devices if experts is not None else ():
            for d in devices:
                open_ = experts is not None and experts.allowed[d] and (a == d or not problem.whole_layers)
                pair[i, a, d] = cp.new_int_var(0, int(open_), "")
            cp.add(sum(pair[i, a, d] for d in devices) == attention[i][a])
    for d in devices:
        workspace = cp.new_int_var(0, max(problem.usable[d], 0), "")
        load = total([(1, workspace), (problem.embedding.bytes[d], embedding[d]), (problem.head.bytes[d], head[d])])
        cp.add(workspace >= problem.embedding.workspace * embedding[d])
        cp.add(workspace >= problem.head.workspace * head[d])
        if problem.tied_bytes:
            both = cp.new_bool_var("")
            cp.add_implication(both, embedding[d])
            cp.add_implication(both, head[d])
            load -= problem.tied_bytes * both
        for i in layers:
            load += kinds[i].attention.bytes[d] * attention[i][d]
            cp.add(workspace >= kinds[i].attention.workspace * attention[i][d])
            experts = kinds[i].experts
            if experts is not None:
                here = total((1, pair[i, a, d]) for a in devices)
                load += experts.bytes[d] * here
                cp.add(workspace >= experts.workspace * here)
        cp.add(load <= problem.usable[d])
    ticks = total((problem.embedding.ticks[d], embedding[d]) for d in devices)
    ticks += total((problem.head.ticks[d], head[d]) for d in devices)
    stops = [embedding, *attention, head]
    for before, after in pairwise(stops):
        flow = {(a, b): cp.new_bool_var("") for a in devices for b in devices}
        for d in devices:
            cp.add(sum(flow[d, b] for b in devices) == before[d])
            cp.add(sum(flow[a, d] for a in devices) == after[d])
        ticks += total((problem.hop[a][b], arc) for (a, b), arc in flow.items())
    for i in layers:
        ticks += total((kinds[i].attention.ticks[a], attention[i][a]) for a in devices)
    for (i, a, d), chosen in pair.items():
        experts = kinds[i].experts
        assert experts is not None
        ticks += experts.ticks[a][d] * chosen
        cp.add_hint(chosen, int((hint.attention[i], hint.experts[i]) == (a, d)))
    if floor > 0:
        cp.add(ticks >= floor)
    cp.minimize(ticks)
    solver, status = search(cp, limits)
    if status in ("infeasible", "unknown"):
        return Outcome(status, floor)

    def chosen_in(choice: list[cp_model.IntVar]) -> int:
        return next(d for d in devices if solver.value(choice[d]))

    where = {(i, a): d for (i, a, d), var in pair.items() if solver.value(var)}
    homes = tuple(chosen_in(choice) for choice in attention)
    experts_on = tuple(where.get((i, homes[i])) for i in layers)
    best = Assignment(chosen_in(embedding), chosen_in(head), homes, experts_on)
    return Outcome(status, max(floor, round(solver.best_objective_bound)), assignment=best)
