"""Two other ways to solve the same `Problem`, to compare with: what one writes down first, and counts given to SCIP.

Both minimise the same ticks under the same memory rule and are handed nothing that this project found out: no hand rule
to start from, no bound. Neither knows orders of devices (`Problem.rank`) or the bottleneck objective. Seconds include
building the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ortools.sat.python import cp_model

from solver.assignment import Assignment, arrange
from solver.cp_sat.run import Limits
from solver.cp_sat.scip_counts import solve_scip_counts
from solver.problem import Problem

Status = Literal["stopped", "infeasible", "limit"]


@dataclass(frozen=True)
class Run:
    """What a rival came to: `ticks` of its best plan (None without one) and a `bound` for every plan, in `seconds`.

    `stopped` says that it was content with its own gap; whether the plan has that gap is for `gap` to say.
    """

    status: Status
    seconds: float
    ticks: int | None
    bound: int

    @property
    def gap(self) -> float:
        """(plan - bound) / plan; 1 without a plan."""
        return 1.0 if self.ticks is None else max(0.0, 1 - self.bound / self.ticks) if self.ticks else 0.0


def fits(problem: Problem, plan: Assignment) -> bool:
    """Whether no device holds more than it can: weights and KV, less what embedding and head share, and the largest
    workspace there."""
    held, workspace = [0] * len(problem.devices), [0] * len(problem.devices)
    blocks: list[tuple[Sequence[int], int, int]] = [
        (problem.embedding.bytes, problem.embedding.workspace, plan.embedding),
        (problem.head.bytes, problem.head.workspace, plan.head),
    ]
    for c, a, d in zip(problem.layer_class, plan.attention, plan.experts, strict=True):
        attention, experts = problem.classes[c].attention, problem.classes[c].experts
        blocks.append((attention.bytes, attention.workspace, a))
        if experts is not None and d is not None:
            blocks.append((experts.bytes, experts.workspace, d))
    for n_bytes, n_workspace, d in blocks:
        held[d] += n_bytes[d]
        workspace[d] = max(workspace[d], n_workspace)
    if plan.embedding == plan.head:
        held[plan.head] -= problem.tied_bytes
    return all(held[d] + workspace[d] <= problem.usable[d] for d in range(len(problem.devices)))


def _check(problem: Problem) -> None:
    assert problem.rank is None, "the rivals know no order of devices"
    assert not problem.bottleneck, "the rivals know no bottleneck objective"


# ---- the naive model in CP-SAT ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Naive:
    """One boolean per block and device; `experts[i]` is None for a dense layer."""

    cp: cp_model.CpModel
    embedding: list[cp_model.IntVar]
    head: list[cp_model.IntVar]
    attention: list[list[cp_model.IntVar]]
    experts: list[list[cp_model.IntVar] | None]


def naive(problem: Problem, *, seconds: float, relative_gap: float, workers: int = 2) -> Run:
    """The product formulation: a boolean per block and device, and one per product of two that the objective needs
    (neighbouring layers on different devices, experts away from their attention). No symmetry is broken."""
    _check(problem)
    started = time.perf_counter()
    model = _naive_variables(problem)
    for d in range(len(problem.devices)):
        _naive_memory(problem, model, d)
    _naive_objective(problem, model)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.01, seconds - (time.perf_counter() - started))
    solver.parameters.relative_gap_limit = relative_gap
    solver.parameters.num_workers = workers
    # OR-Tools 9.15 cuts optima off in the presolve step that this switches off (google/or-tools issue 5293).
    solver.parameters.presolve_inclusion_work_limit = 0
    found = solver.solve(model.cp)
    took = time.perf_counter() - started
    if found == cp_model.INFEASIBLE:
        return Run("infeasible", took, None, 0)
    bound = max(0, round(solver.best_objective_bound))
    if found not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Run("limit", took, None, bound)
    plan = _naive_plan(model, solver)
    assert fits(problem, plan), "the naive model let a plan pass that does not fit"
    ticks = plan.ticks(problem)
    assert ticks == round(solver.objective_value), "the naive model's objective is not the plan's"
    return Run("stopped" if found == cp_model.OPTIMAL else "limit", took, ticks, bound)


def _naive_variables(problem: Problem) -> _Naive:
    cp = cp_model.CpModel()

    def one_of(allowed: Sequence[bool]) -> list[cp_model.IntVar]:
        choice = [cp.new_int_var(0, int(here), "") for here in allowed]
        cp.add_exactly_one(choice)
        return choice

    attention: list[list[cp_model.IntVar]] = []
    experts: list[list[cp_model.IntVar] | None] = []
    for c in problem.layer_class:
        kind = problem.classes[c]
        attention.append(one_of(kind.attention.allowed))
        experts.append(one_of(kind.experts.allowed) if kind.experts else None)
        chosen = experts[-1]
        if chosen is not None and problem.whole_layers:
            for here, there in zip(attention[-1], chosen, strict=True):
                cp.add(here == there)
    return _Naive(cp, one_of(problem.embedding.allowed), one_of(problem.head.allowed), attention, experts)


def _naive_memory(problem: Problem, model: _Naive, d: int) -> None:
    ends = ((problem.embedding, model.embedding[d]), (problem.head, model.head[d]))
    held = [(block.bytes[d], block.workspace, here) for block, here in ends]
    for c, attention, experts in zip(problem.layer_class, model.attention, model.experts, strict=True):
        kind = problem.classes[c]
        held.append((kind.attention.bytes[d], kind.attention.workspace, attention[d]))
        if kind.experts is not None and experts is not None:
            held.append((kind.experts.bytes[d], kind.experts.workspace, experts[d]))
    workspace = model.cp.new_int_var(0, max(n for _, n, _ in held), "")
    for _, n_workspace, here in held:
        if n_workspace:
            model.cp.add(workspace >= n_workspace * here)
    load = sum(n_bytes * here for n_bytes, _, here in held) + workspace
    if problem.tied_bytes:
        load -= problem.tied_bytes * _product(model.cp, model.embedding[d], model.head[d])
    model.cp.add(load <= problem.usable[d])


def _product(cp: cp_model.CpModel, one: cp_model.IntVar, other: cp_model.IntVar) -> cp_model.IntVar:
    both = cp.new_bool_var("")
    cp.add_bool_or(~one, ~other, both)
    cp.add_implication(both, one)
    cp.add_implication(both, other)
    return both


def _naive_objective(problem: Problem, model: _Naive) -> None:
    devices = range(len(problem.devices))
    terms = [(problem.embedding.ticks[d], model.embedding[d]) for d in devices]
    terms += [(problem.head.ticks[d], model.head[d]) for d in devices]
    pairs = [(a, b) for a in devices for b in devices if a != b]
    for before, after in pairwise([model.embedding, *model.attention, model.head]):
        terms += [(problem.hop[a][b], _product(model.cp, before[a], after[b])) for a, b in pairs]
    for c, attention, experts in zip(problem.layer_class, model.attention, model.experts, strict=True):
        kind = problem.classes[c]
        terms += [(kind.attention.ticks[a], attention[a]) for a in devices]
        if kind.experts is None or experts is None:
            continue
        terms += [(kind.experts.ticks[d][d], experts[d]) for d in devices]
        for a, d in pairs if not problem.whole_layers else ():
            more = kind.experts.ticks[a][d] - kind.experts.ticks[d][d]
            terms.append((more, _product(model.cp, attention[a], experts[d])))
    model.cp.minimize(cp_model.LinearExpr.weighted_sum([var for _, var in terms], [weight for weight, _ in terms]))


def _naive_plan(model: _Naive, solver: cp_model.CpSolver) -> Assignment:
    def chosen(choice: list[cp_model.IntVar]) -> int:
        return next(d for d, var in enumerate(choice) if solver.value(var))

    return Assignment(
        chosen(model.embedding),
        chosen(model.head),
        tuple(chosen(choice) for choice in model.attention),
        tuple(None if choice is None else chosen(choice) for choice in model.experts),
    )


# ---- counts in SCIP --------------------------------------------------------------------------------------------


def scip_counts(problem: Problem, *, seconds: float, relative_gap: float) -> Run:
    """`solver/cp_sat/scip_counts.py` by itself: counts without order, in one thread of SCIP, laid out in order as well
    as two simple ways can. No symmetry is broken: putting equal devices in order helped some instances and hurt others.
    """
    _check(problem)
    started = time.perf_counter()
    found = solve_scip_counts(problem, Limits(seconds, relative_gap=relative_gap))
    took = time.perf_counter() - started
    if found.status == "infeasible":
        return Run("infeasible", took, None, 0)
    plan = arrange(found.counts, problem) if found.counts is not None else None
    ticks = plan.ticks(problem) if plan is not None and fits(problem, plan) else None
    return Run("stopped" if found.status == "optimal" else "limit", took, ticks, found.bound)
