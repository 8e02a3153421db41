"""Slices: the counts model with positions, so that every device holds one contiguous run of attention.

Where every placement has to be like that (llama.cpp) the model is exact.
"""

from __future__ import annotations

from solver.assignment import Assignment, experts_for
from solver.cp_sat.counts import CountsModel, counts_constraints, counts_variables, decode_counts, minimise
from solver.cp_sat.run import Limits, Outcome, bound_of, search
from solver.problem import Problem


def solve_slices(problem: Problem, limits: Limits, *, floor: int, hint: Assignment | None) -> Outcome:
    """The best plan whose devices hold contiguous runs of attention; `floor` is a known lower bound in ticks.

    Where other placements are allowed it says nothing of them: the bound stays `floor`, and `infeasible` is no proof.
    """
    model = counts_variables(problem)
    counts_constraints(model)
    _slices(model)
    minimise(model, floor=floor)
    if hint is not None:
        _hint(model, hint)
    solver, status = search(model.cp, limits)
    bound = max(floor, bound_of(solver, status)) if problem.one_run else floor
    if status in ("infeasible", "unknown"):
        return Outcome(status, bound)
    counts = decode_counts(model, solver)
    starts = {solver.value(model.start[a]): a for a in counts.route}
    attention: list[int] = []
    for i in range(len(problem.layer_class)):
        attention.append(starts[i] if i in starts else attention[-1])
    experts = experts_for(attention, counts, problem)
    return Outcome(status, bound, counts, Assignment(counts.embedding, counts.head, tuple(attention), experts))


def _slices(model: CountsModel) -> None:
    """Positions: device a holds the attention of layers start[a] .. start[a] + its count."""
    problem, cp = model.problem, model.cp
    n_layers = len(problem.layer_class)
    model.start = [cp.new_int_var(0, n_layers, f"start[{a}]") for a in model.devices]
    end = [cp.new_int_var(0, n_layers, f"end[{a}]") for a in model.devices]
    for a in model.devices:
        cp.add(end[a] == model.start[a] + model.attention_on(a))
        cp.add(model.start[a] == 0).only_enforce_if(model.first[a])
        cp.add(end[a] == n_layers).only_enforce_if(model.last[a])
        cp.add(model.start[a] == 0).only_enforce_if(~model.used[a])
    for (a, b), arc in model.arcs.items():
        cp.add(model.start[b] == end[a]).only_enforce_if(arc)
    if len(problem.classes) == 1:
        return
    for c, n in enumerate(problem.class_sizes):
        before = [sum(k == c for k in problem.layer_class[:i]) for i in range(n_layers + 1)]
        for a in model.devices:
            low, high = cp.new_int_var(0, n, ""), cp.new_int_var(0, n, "")
            cp.add_element(model.start[a], before, low)
            cp.add_element(end[a], before, high)
            cp.add(model.attention[c, a] == high - low)


def _hint(model: CountsModel, hint: Assignment) -> None:
    """Start the search from a known plan; it need not be contiguous."""
    hint = hint.canonical(model.problem)
    twins = model.problem.twins
    layers = list(zip(model.problem.layer_class, hint.attention, hint.experts, strict=True))
    for (c, a), attention in model.attention.items():
        model.cp.add_hint(attention, sum((k, b) == (c, a) for k, b, _ in layers))
    for key, experts in model.experts.items():
        model.cp.add_hint(experts, sum(layer == key for layer in layers))
    away = [(c, a, d) for c, a, d in layers if d is not None and a != d and twins[a] == twins[d]]
    for c, d in model.sent:
        model.cp.add_hint(model.sent[c, d], sum((k, a) == (c, d) for k, a, _ in away))
        model.cp.add_hint(model.taken[c, d], sum((k, e) == (c, d) for k, _, e in away))
    for d in model.devices:
        model.cp.add_hint(model.embedding[d], int(hint.embedding == d))
        model.cp.add_hint(model.head[d], int(hint.head == d))
