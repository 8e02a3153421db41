"""One way to run CP-SAT: what may limit it, what it establishes, and how it stays reproducible."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ortools.sat.python import cp_model

from solver.assignment import Assignment, Counts
from solver.problem import MOST_TICKS

Status = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True)
class Limits:
    """When to stop: wall-clock seconds, relative gap, and how to search (workers and seed decide the plan found).

    `work` limits the search in CP-SAT's own count of its work, about a second of one core each but the same whatever
    the machine's load, so that stopping by it is reproducible.
    """

    seconds: float
    work: float = math.inf
    relative_gap: float = 0.0
    workers: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a search established. Without a solution `counts` and `assignment` are None; `bound` is in ticks."""

    status: Status
    bound: int
    counts: Counts | None = None
    assignment: Assignment | None = None


def search(cp: cp_model.CpModel, limits: Limits) -> tuple[cp_model.CpSolver, Status]:
    """Run CP-SAT reproducibly: a fixed seed, and with several workers the interleaved search that takes no heed of
    which thread is faster. Within the time limit the plan found does not depend on the machine's load."""
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(limits.seconds, 0.01)
    solver.parameters.max_deterministic_time = limits.work
    solver.parameters.relative_gap_limit = limits.relative_gap
    solver.parameters.num_workers = limits.workers
    solver.parameters.interleave_search = limits.workers > 1
    solver.parameters.random_seed = limits.seed
    # OR-Tools 9.15 cuts optima off in the presolve step that this switches off (google/or-tools issue 5293): it did so,
    # and still said OPTIMAL or INFEASIBLE, to 13 of 1,600 random models of two to four layers.
    solver.parameters.presolve_inclusion_work_limit = 0
    found = solver.solve(cp)
    if found == cp_model.MODEL_INVALID:
        raise AssertionError(f"moeplan built an invalid model: {cp.validate()}")
    names: dict[object, Status] = {
        cp_model.OPTIMAL: "optimal",
        cp_model.FEASIBLE: "feasible",
        cp_model.INFEASIBLE: "infeasible",
    }
    return solver, names.get(found, "unknown")


def bound_of(solver: cp_model.CpSolver, status: str) -> int:
    """CP-SAT shows a bound of 0 where it has none; ours is never negative, so 0 says the same."""
    return 0 if status == "infeasible" else max(0, round(solver.best_objective_bound))


def total(terms: Iterable[tuple[int, cp_model.IntVar]]) -> cp_model.LinearExpr:
    """sum of coefficient * variable."""
    pairs = list(terms)
    return cp_model.LinearExpr.weighted_sum([var for _, var in pairs], [coefficient for coefficient, _ in pairs])


def at_least(cp: cp_model.CpModel, ticks: cp_model.LinearExprT, floor: int) -> cp_model.LinearExprT:
    """An objective that is no less than `floor`, a bound known from elsewhere: the search stops once it gets there.

    `ticks` itself may be less. A model that leaves something out reckons plans cheaper than they are, and to ask for
    ticks of at least `floor` would cut those plans off.
    """
    if floor <= 0:
        return ticks
    objective = cp.new_int_var(floor, max(floor, MOST_TICKS), "objective")
    cp.add(objective >= ticks)
    return objective
