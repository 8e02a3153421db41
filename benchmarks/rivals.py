"""Two other ways to solve the same `Problem`, to compare with: what one writes down first, and counts given to SCIP.

Both minimise the same ticks under the same memory rule and are handed nothing that this project found out: no hand rule
to start from, no bound. Neither knows orders of devices (`Problem.rank`) or the bottleneck objective. Seconds include
building the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Literal

from ortools.math_opt.python import mathopt
from ortools.math_opt.solvers.gscip import gscip_pb2
from ortools.sat.python import cp_model

from solver.assignment import Assignment
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

MEGATICKS = 10**6
"""Units of SCIP's objective: its tolerances suit numbers around a thousand."""
FEASIBILITY = 1e-9
"""SCIP's tolerance; memory is written in shares of each device's bytes, so it is some tens of bytes."""


@dataclass(frozen=True)
class _Counts:
    """`attention[c, a]`, `experts[c, a, d]`: layers of a class there; `arcs[a, b]`: the route goes from a to b."""

    mip: mathopt.Model
    attention: dict[tuple[int, int], mathopt.Variable]
    experts: dict[tuple[int, int, int], mathopt.Variable]
    embedding: list[mathopt.Variable]
    head: list[mathopt.Variable]
    first: list[mathopt.Variable]
    last: list[mathopt.Variable]
    arcs: dict[tuple[int, int], mathopt.Variable]


def scip_counts(problem: Problem, *, seconds: float, relative_gap: float) -> Run:
    """How many layers of each class have attention on a and experts on d, in one thread of SCIP.

    The order of layers is dropped. Hops are counted by degrees: each device with attention is entered once and left
    once, and loops apart from the route are not forbidden, so the bound is at most that of a model that forbids them.
    The plan is the counts laid out in order, each device keeping its layers together where they allow it; it may cost
    more than SCIP thought. No symmetry is broken: putting equal devices in order helped some instances and hurt others.
    """
    _check(problem)
    started = time.perf_counter()
    model = _counts_variables(problem)
    _counts_places(problem, model)
    for d in range(len(problem.devices)):
        _counts_memory(problem, model, d)
    _counts_route(problem, model)
    _counts_objective(problem, model)
    parameters = mathopt.SolveParameters(
        time_limit=timedelta(seconds=max(0.01, seconds - (time.perf_counter() - started))),
        relative_gap_tolerance=relative_gap,
        threads=1,
        gscip=gscip_pb2.GScipParameters(real_params={"numerics/feastol": FEASIBILITY}),
    )
    found = mathopt.solve(model.mip, mathopt.SolverType.GSCIP, params=parameters)
    took = time.perf_counter() - started
    reason = mathopt.TerminationReason
    if found.termination.reason in (reason.INFEASIBLE, reason.INFEASIBLE_OR_UNBOUNDED):
        return Run("infeasible", took, None, 0)
    bound = max(0.0, found.termination.objective_bounds.dual_bound)
    plan = _counts_plan(problem, model, found) if found.has_primal_feasible_solution() else None
    ticks = plan.ticks(problem) if plan is not None and fits(problem, plan) else None
    stopped = found.termination.reason == reason.OPTIMAL
    return Run("stopped" if stopped else "limit", took, ticks, int(bound * MEGATICKS))


def _counts_variables(problem: Problem) -> _Counts:
    mip, devices = mathopt.Model(), range(len(problem.devices))

    def booleans() -> list[mathopt.Variable]:
        return [mip.add_binary_variable() for _ in devices]

    attention, experts = {}, {}
    for c, (kind, n) in enumerate(zip(problem.classes, problem.class_sizes, strict=True)):
        for a in devices:
            attention[c, a] = mip.add_integer_variable(lb=0, ub=n * kind.attention.allowed[a])
            if kind.experts is not None:
                for d in devices:
                    open_ = kind.experts.allowed[d] and (a == d or not problem.whole_layers)
                    experts[c, a, d] = mip.add_integer_variable(lb=0, ub=n * open_)
    arcs = {(a, b): mip.add_binary_variable() for a in devices for b in devices if a != b}
    return _Counts(mip, attention, experts, booleans(), booleans(), booleans(), booleans(), arcs)


def _counts_places(problem: Problem, model: _Counts) -> None:
    """Every block is somewhere that it may be."""
    mip, devices = model.mip, range(len(problem.devices))
    for block, choice in ((problem.embedding, model.embedding), (problem.head, model.head)):
        mip.add_linear_constraint(mathopt.fast_sum(choice) == 1)
        for d in devices:
            choice[d].upper_bound = float(block.allowed[d])
    for c, n in enumerate(problem.class_sizes):
        mip.add_linear_constraint(mathopt.fast_sum(model.attention[c, a] for a in devices) == n)
        if problem.classes[c].experts is not None:
            for a in devices:
                of = mathopt.fast_sum(model.experts[c, a, d] for d in devices)
                mip.add_linear_constraint(of == model.attention[c, a])


def _counts_memory(problem: Problem, model: _Counts, d: int) -> None:
    """Shares of the device's bytes; a workspace counts once there is one block that needs it (big-M)."""
    mip, share = model.mip, 1 / max(1, problem.usable[d])
    ends = ((problem.embedding, model.embedding[d]), (problem.head, model.head[d]))
    held: list[tuple[int, int, mathopt.LinearBase, int]] = [(b.bytes[d], b.workspace, here, 1) for b, here in ends]
    for c, (kind, n) in enumerate(zip(problem.classes, problem.class_sizes, strict=True)):
        held.append((kind.attention.bytes[d], kind.attention.workspace, model.attention[c, d], n))
        if kind.experts is not None:
            here = mathopt.fast_sum(model.experts[c, a, d] for a in range(len(problem.devices)))
            held.append((kind.experts.bytes[d], kind.experts.workspace, here, n))
    workspace = mip.add_variable(lb=0)
    load: mathopt.LinearBase = mathopt.fast_sum([workspace, *(n_bytes * share * here for n_bytes, _, here, _ in held)])
    for _, n_workspace, here, most in held:
        if n_workspace:
            present = mip.add_binary_variable()
            mip.add_linear_constraint(here <= most * present)
            mip.add_linear_constraint(workspace >= n_workspace * share * present)
    if problem.tied_bytes:
        both = mip.add_binary_variable()
        mip.add_linear_constraint(both <= model.embedding[d])
        mip.add_linear_constraint(both <= model.head[d])
        load = load - problem.tied_bytes * share * both
    mip.add_linear_constraint(load <= problem.usable[d] * share)


def _counts_route(problem: Problem, model: _Counts) -> None:
    """Degrees: a device with attention is entered once, from another or as the first, and left once."""
    mip, devices = model.mip, range(len(problem.devices))
    for ends in (model.first, model.last):
        mip.add_linear_constraint(mathopt.fast_sum(ends) == 1)
    for a in devices:
        here = mathopt.fast_sum(model.attention[c, a] for c in range(len(problem.classes)))
        used = mip.add_binary_variable()
        mip.add_linear_constraint(here >= used)
        mip.add_linear_constraint(here <= len(problem.layer_class) * used)
        others = [b for b in devices if b != a]
        mip.add_linear_constraint(model.first[a] + mathopt.fast_sum(model.arcs[b, a] for b in others) == used)
        mip.add_linear_constraint(model.last[a] + mathopt.fast_sum(model.arcs[a, b] for b in others) == used)
        mip.add_linear_constraint(model.attention[problem.layer_class[0], a] >= model.first[a])


def _counts_objective(problem: Problem, model: _Counts) -> None:
    devices = range(len(problem.devices))
    terms: list[tuple[int, mathopt.Variable]] = [(problem.hop[a][b], arc) for (a, b), arc in model.arcs.items()]
    for block, choice, end in (
        (problem.embedding, model.embedding, model.first),
        (problem.head, model.head, model.last),
    ):
        terms += [(block.ticks[d], choice[d]) for d in devices]
        terms += [(problem.hop[d][e], arc) for (d, e), arc in _flow(model.mip, choice, end).items()]
    terms += [(problem.classes[c].attention.ticks[a], var) for (c, a), var in model.attention.items()]
    for (c, a, d), var in model.experts.items():
        experts = problem.classes[c].experts
        assert experts is not None
        terms.append((experts.ticks[a][d], var))
    model.mip.minimize(mathopt.fast_sum(weight / MEGATICKS * var for weight, var in terms))


def _flow(
    mip: mathopt.Model, one: list[mathopt.Variable], other: list[mathopt.Variable]
) -> dict[tuple[int, int], mathopt.Variable]:
    """`flow[d, e]`: the one choice is d and the other e. Fractions would do, as both choices are whole."""
    devices = range(len(one))
    flow = {(d, e): mip.add_variable(lb=0, ub=1) for d in devices for e in devices}
    for d in devices:
        mip.add_linear_constraint(mathopt.fast_sum(flow[d, e] for e in devices) == one[d])
        mip.add_linear_constraint(mathopt.fast_sum(flow[e, d] for e in devices) == other[d])
    return flow


def _counts_plan(problem: Problem, model: _Counts, found: mathopt.SolveResult) -> Assignment:
    """The cheaper of two ways to lay the counts out: along the route, or each time to where the walk can stay longest;
    always staying on a device while it has room for the next layer's class."""
    values = found.variable_values()

    def whole(var: mathopt.Variable) -> int:
        return int(values[var] + 0.5)

    def chosen(choice: list[mathopt.Variable]) -> int:
        return next(d for d, var in enumerate(choice) if whole(var))

    onward = {a: b for (a, b), arc in model.arcs.items() if whole(arc)}
    route = [chosen(model.first)]
    while route[-1] in onward and onward[route[-1]] not in route:
        route.append(onward[route[-1]])
    route += [d for d in range(len(problem.devices)) if d not in route]
    room = {key: whole(var) for key, var in model.attention.items()}
    plans = []
    for by_run in (False, True):
        queues: dict[tuple[int, int], list[int]] = {}
        for (c, a, d), var in model.experts.items():
            queues.setdefault((c, a), []).extend([d] * whole(var))
        attention = _walk(problem, dict(room), route, by_run)
        places = zip(problem.layer_class, attention, strict=True)
        experts = tuple(queues[c, a].pop(0) if problem.classes[c].experts else None for c, a in places)
        plans.append(Assignment(chosen(model.embedding), chosen(model.head), attention, experts))
    return min(plans, key=lambda plan: plan.ticks(problem))


def _walk(problem: Problem, room: dict[tuple[int, int], int], route: list[int], by_run: bool) -> tuple[int, ...]:
    """`room[c, a]`: how many layers of class c are to be on a; it is used up."""

    def stay(i: int, a: int) -> int:
        left = {c: room[c, a] for c in range(len(problem.classes))}
        for n, c in enumerate(problem.layer_class[i:]):
            if left[c] == 0:
                return n
            left[c] -= 1
        return len(problem.layer_class) - i

    attention: list[int] = []
    for i, c in enumerate(problem.layer_class):
        here = attention[-1] if attention else route[0]
        if room[c, here] == 0:
            open_ = [a for a in route if room[c, a]]
            here = max(open_, key=lambda a: stay(i, a)) if by_run else open_[0]
        room[c, here] -= 1
        attention.append(here)
    return tuple(attention)
