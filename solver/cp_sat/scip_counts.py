"""Counts again, given to SCIP: the order of layers is dropped and hops are counted by degrees, which makes a small
integer program that SCIP often closes where CP-SAT does not. It serves plans; bounds come from exact arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ortools.math_opt.python import mathopt
from ortools.math_opt.solvers.gscip import gscip_pb2

from solver.assignment import Counts
from solver.cp_sat.run import Limits, Status
from solver.deviations import reserve
from solver.problem import Problem

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


@dataclass(frozen=True)
class ScipOutcome:
    """`bound` in ticks is as good as SCIP's floating point; `counts` is None without a solution."""

    status: Status
    bound: int
    counts: Counts | None = None


VARIABLES_PER_SECOND = 25_000
"""Variables times nodes of its tree that stand for a second of work: a node took 12 to 39 us a variable. What stops the
search must not depend on the machine's load."""


def solve_scip_counts(problem: Problem, limits: Limits) -> ScipOutcome:
    """How many layers of each class have attention on a and experts on d, in one thread of SCIP.

    Each device with attention is entered once and left once, and loops apart from the route are not forbidden, so the
    optimum is a lower bound over all placements. Buffers of a runtime (`Problem.staging`) are not counted. With
    `Problem.robust` room is kept for the most that may deviate, which is too much: then it bounds nothing. Not for the
    bottleneck objective.
    """
    model = _counts_variables(problem)
    _counts_places(problem, model)
    loads = [_counts_memory(problem, model, d) for d in range(len(problem.devices))]
    for pool in problem.shared:
        room = max(1, pool.usable - sum(reserve(problem, d) for d in pool.devices) - sum(pool.contexts))
        held = mathopt.fast_sum(problem.usable[d] / room * loads[d] for d in pool.devices)
        model.mip.add_linear_constraint(held <= 1)
    _counts_route(problem, model)
    _counts_objective(problem, model)
    parameters = mathopt.SolveParameters(
        time_limit=timedelta(seconds=max(0.01, limits.seconds)),
        relative_gap_tolerance=limits.relative_gap,
        threads=1,
        random_seed=limits.seed,
        node_limit=max(1, int(VARIABLES_PER_SECOND * min(limits.work, 1e6) / len(list(model.mip.variables())))),
        gscip=gscip_pb2.GScipParameters(real_params={"numerics/feastol": FEASIBILITY}),
    )
    found = mathopt.solve(model.mip, mathopt.SolverType.GSCIP, params=parameters)
    reason = mathopt.TerminationReason
    if found.termination.reason in (reason.INFEASIBLE, reason.INFEASIBLE_OR_UNBOUNDED):
        return ScipOutcome("infeasible", 0)
    bound = int(max(0.0, found.termination.objective_bounds.dual_bound) * MEGATICKS)
    if not found.has_primal_feasible_solution():
        return ScipOutcome("unknown", bound)
    status: Status = "optimal" if found.termination.reason == reason.OPTIMAL else "feasible"
    return ScipOutcome(status, bound, _decode(problem, model, found))


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
    arcs = {(a, b): mip.add_binary_variable() for a in devices for b in devices if a != b and problem.in_order(a, b)}
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


def _counts_memory(problem: Problem, model: _Counts, d: int) -> mathopt.LinearBase:
    """Its load in shares of the device's bytes; a workspace counts once there is one block that needs it (big-M)."""
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
    mip.add_linear_constraint(load <= max(0, problem.usable[d] - reserve(problem, d)) * share)
    return load


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
        mip.add_linear_constraint(
            model.first[a] + mathopt.fast_sum(model.arcs[b, a] for b in others if (b, a) in model.arcs) == used
        )
        mip.add_linear_constraint(
            model.last[a] + mathopt.fast_sum(model.arcs[a, b] for b in others if (a, b) in model.arcs) == used
        )
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


def _decode(problem: Problem, model: _Counts, found: mathopt.SolveResult) -> Counts:
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
    return Counts(
        embedding=chosen(model.embedding),
        head=chosen(model.head),
        attention={key: whole(var) for key, var in model.attention.items()},
        experts={key: whole(var) for key, var in model.experts.items()},
        route=tuple(route),
    )
