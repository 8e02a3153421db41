"""Experts for given attention: where each layer's experts go once it is known which card its attention is on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ortools.sat.python import cp_model

from solver.assignment import Assignment, Counts, experts_for
from solver.column_generation.contents import Contents
from solver.cp_sat.load import Held, keep_within, load_on
from solver.cp_sat.run import Limits, search, total
from solver.heuristics.walk import Walk
from solver.problem import Problem


def fill(
    problem: Problem,
    walk: Walk,
    limits: Limits,
    *,
    floor: int = 0,
    held: Mapping[int, Sequence[int]] | None = None,
) -> Assignment | None:
    """The best experts for the attention, embedding and head of `walk`; None where they do not fit or none was found.

    `floor` in ticks: no plan is better, so the search stops there. With `held`, experts by kind on devices, these
    devices hold at most so many.
    """
    if not _allowed(problem, walk):
        return None
    if problem.whole_layers:
        return _with_their_attention(problem, walk)
    cp = cp_model.CpModel()
    devices = range(len(problem.devices))
    layers = Counter(zip(problem.layer_class, walk.attention, strict=True))
    moved: dict[tuple[int, int, int], cp_model.IntVar] = {}
    ticks = total([])
    for (c, a), n in layers.items():
        experts = problem.classes[c].experts
        if experts is None:
            continue
        for d in devices:
            if experts.allowed[d]:
                moved[c, a, d] = cp.new_int_var(0, n, "")
                ticks += experts.ticks[a][d] * moved[c, a, d]
        cp.add(sum(moved[c, a, d] for d in devices if (c, a, d) in moved) == n)
    for d, most in (held or {}).items():
        for kind, n in zip(problem.expert_kinds, most, strict=True):
            cp.add(sum(var for (c, _, e), var in moved.items() if c in kind.classes and e == d) <= n)
    keep_within(cp, [_load(problem, cp, walk, layers, moved, d) for d in devices], problem.room)
    fixed = Assignment(walk.embedding, walk.head, walk.attention, (None,) * len(walk.attention)).ticks(problem)
    if floor > fixed:
        cp.add(ticks >= floor - fixed)
    cp.minimize(ticks)
    solver, status = search(cp, limits)
    if status in ("infeasible", "unknown"):
        return None
    counts = Counts(walk.embedding, walk.head, {}, {key: solver.value(var) for key, var in moved.items()}, ())
    return Assignment(walk.embedding, walk.head, walk.attention, experts_for(walk.attention, counts, problem))


def _allowed(problem: Problem, walk: Walk) -> bool:
    attention = all(
        problem.classes[c].attention.allowed[a] for c, a in zip(problem.layer_class, walk.attention, strict=True)
    )
    return attention and problem.embedding.allowed[walk.embedding] and problem.head.allowed[walk.head]


def _with_their_attention(problem: Problem, walk: Walk) -> Assignment | None:
    kinds = [problem.classes[c] for c in problem.layer_class]
    experts = tuple(a if kind.experts else None for kind, a in zip(kinds, walk.attention, strict=True))
    for d in range(len(problem.devices)):
        here = Counter(c for c, a in zip(problem.layer_class, walk.attention, strict=True) if a == d)
        attention = tuple(here[c] for c in range(len(problem.classes)))
        whole = problem.by_kind(attention)
        if not Contents(attention, whole, whole, walk.embedding == d, walk.head == d).fits(problem, d):
            return None
    return Assignment(walk.embedding, walk.head, walk.attention, experts)


def _load(
    problem: Problem,
    cp: cp_model.CpModel,
    walk: Walk,
    layers: Counter[tuple[int, int]],
    moved: dict[tuple[int, int, int], cp_model.IntVar],
    d: int,
) -> cp_model.LinearExpr:
    held = []
    for c, (kind, n) in enumerate(zip(problem.classes, problem.class_sizes, strict=True)):
        attention = kind.attention
        here = cp.new_constant(layers[c, d])
        held.append(Held.of(attention, d, here, n))
        if kind.experts is not None:
            number = total((1, var) for (k, _, e), var in moved.items() if (k, e) == (c, d))
            held.append(Held.of(kind.experts, d, number, n))
    embedding, head = (cp.new_constant(end == d) for end in (walk.embedding, walk.head))
    to_cpu = {c: var for (c, a, e), var in moved.items() if (a, e) == (d, problem.cpu)}
    return load_on(problem, cp, d, embedding, head, held, to_cpu)
