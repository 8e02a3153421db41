"""What benchmarks/solver_benchmark.py measures: one row of plain values for each case, and the cases of each part."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from instances import SMALL, STORY, SUITE, WORKLOADS, Instance, cluster, synthetic
from rivals import naive, scip_counts

from cost_models import CostModel
from profiles.errors import InfeasiblePlacement, MoeplanError
from solver import solve
from solver.baselines import hand_plans
from solver.evaluate import judge
from solver.problem import build_problem
from solver.rules import Allowed

SUITE_SECONDS = 5.0
SUITE_GAP = {"module": 1e-3, "expert": 5e-3}
RIVAL_GAP, RIVAL_INSTANCES, NAIVE_WORKERS = 1e-3, 24, 2
SIZE_SECONDS, SIZE_GAP = 30.0, 1e-2
SIZE_LAYERS, SIZE_GPUS = (30, 60, 120), (8, 16, 32, 64)
STORY_RUNS = 5


@dataclass(frozen=True)
class Solved:
    """One call of `solve`: seconds on the clock and of CPU time (less where the machine was busy with other things),
    and what came out; without a plan the gap is 1 and `objective_s` None."""

    seconds: float
    cpu_seconds: float
    gap: float
    status: str
    objective_s: float | None


@dataclass(frozen=True)
class SuiteRow:
    name: str
    label: str
    granularity: str
    layers: int
    layer_classes: int
    seconds: float
    cpu_seconds: float
    gap: float
    status: str


@dataclass(frozen=True)
class StoryRow:
    """Seconds to a proof, relative_gap 0: the median and the slowest of some runs."""

    name: str
    seconds: float
    slowest_seconds: float
    status: str


@dataclass(frozen=True)
class RivalRow:
    """Seconds to the same gap or to the limit; the rivals' include building the problem, as ours do.

    `scip_stopped`: SCIP was content with the gap of its own model, after `scip_own_seconds`. The plan laid out from it
    may have a larger one; then SCIP searches again for a tenth of the gap, and `scip_seconds` are of both.
    """

    name: str
    label: str
    layers: int
    devices: int
    limit_seconds: float
    seconds: float
    gap: float
    naive_seconds: float
    naive_gap: float
    scip_seconds: float
    scip_gap: float
    scip_own_seconds: float
    scip_stopped: bool


@dataclass(frozen=True)
class PeerRow:
    """Predicted seconds of our plan and of the plan of each rule that keeps to the granularity; None where that does
    not fit."""

    name: str
    label: str
    granularity: str
    seconds: float
    gap: float
    plan_s: float
    rules_s: dict[str, float | None]


@dataclass(frozen=True)
class SizeRow:
    layers: int
    gpus: int
    seconds: float
    gap: float
    status: str


Row = SuiteRow | StoryRow | RivalRow | PeerRow | SizeRow
ROWS: tuple[type[Row], ...] = (SuiteRow, StoryRow, RivalRow, PeerRow, SizeRow)
Case = tuple[str, Callable[[], Row | None]]
"""A name, and what measures it; None where this version of the solver cannot do it."""


def within(gap: float, limit: float) -> bool:
    """Whether a gap is what was asked for: a plan states its own a little larger than the search that stopped by it,
    giving back what rounding to ticks may have won."""
    return gap <= limit + 1e-6


def timed(profile: Any, hardware: Any, workload: Any, **options: Any) -> Solved:
    gc.collect()
    clock, cpu = time.perf_counter(), time.process_time()
    try:
        plan = solve(profile, hardware, workload, **options)
    except InfeasiblePlacement as problem:
        status = "infeasible" if problem.proven else "nothing found"
        return Solved(time.perf_counter() - clock, time.process_time() - cpu, 1.0, status, None)
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    assert plan.gap is not None
    assert plan.status is not None
    return Solved(seconds, cpu_seconds, plan.gap, plan.status, plan.objective_s)


def timed_instance(one: Instance, **options: Any) -> Solved:
    return timed(one.profile, one.hardware, WORKLOADS[one.workload], **options)


# ---- suite -----------------------------------------------------------------------------------------------------


def suite_cases(limit: int | None, seconds: float) -> Iterator[Case]:
    yield STORY.name, story_row
    for granularity in SUITE_GAP:
        for one in SUITE[:limit]:
            yield f"{granularity}: {one.name}", partial(suite_row, one, granularity)


def story_row() -> StoryRow:
    runs = [timed_instance(STORY) for _ in range(STORY_RUNS)]
    times = [run.seconds for run in runs]
    return StoryRow(STORY.name, median(times), max(times), runs[0].status)


def suite_solve(one: Instance, granularity: str) -> Solved | None:
    """None where this version does not know the granularity."""
    options = {"granularity": granularity, "time_limit": SUITE_SECONDS, "relative_gap": SUITE_GAP[granularity]}
    try:
        return timed_instance(one, **options)
    except MoeplanError as problem:
        if "granularity" not in str(problem):
            raise
        return None


def suite_row(one: Instance, granularity: str) -> SuiteRow | None:
    found = suite_solve(one, granularity)
    if found is None:
        return None
    return SuiteRow(
        name=one.name,
        label=one.label,
        granularity=granularity,
        layers=len(one.profile.layers),
        layer_classes=len(set(one.profile.layer_class)),
        seconds=found.seconds,
        cpu_seconds=found.cpu_seconds,
        gap=found.gap,
        status=found.status,
    )


# ---- rivals ----------------------------------------------------------------------------------------------------


def rival_cases(limit: int | None, seconds: float) -> Iterator[Case]:
    for one in (*SMALL, *SUITE[: RIVAL_INSTANCES if limit is None else limit]):
        yield one.name, partial(rival_row, one, seconds)


def rival_row(one: Instance, limit_seconds: float) -> RivalRow:
    """All three one after another, ours first."""
    ours = timed_instance(one, relative_gap=RIVAL_GAP, time_limit=limit_seconds)
    clock = time.perf_counter()
    costs = CostModel(one.profile, one.hardware, WORKLOADS[one.workload])
    problem = build_problem(costs, objective="request", granularity="module", allowed=Allowed(costs, "torch", None))
    build = time.perf_counter() - clock
    own = scip = scip_counts(problem, seconds=limit_seconds, relative_gap=RIVAL_GAP)
    if own.status == "stopped" and not within(own.gap, RIVAL_GAP):
        again = scip_counts(problem, seconds=limit_seconds - own.seconds, relative_gap=RIVAL_GAP / 10)
        scip = replace(min(own, again, key=lambda run: run.gap), seconds=own.seconds + again.seconds)
    products = naive(problem, seconds=limit_seconds, relative_gap=RIVAL_GAP, workers=NAIVE_WORKERS)
    return RivalRow(
        name=one.name,
        label=one.label if one in SUITE else "small",
        layers=len(problem.layer_class),
        devices=len(problem.devices),
        limit_seconds=limit_seconds,
        seconds=ours.seconds,
        gap=ours.gap,
        naive_seconds=build + products.seconds,
        naive_gap=products.gap,
        scip_seconds=build + scip.seconds,
        scip_gap=scip.gap,
        scip_own_seconds=build + own.seconds,
        scip_stopped=own.status == "stopped",
    )


# ---- baselines -------------------------------------------------------------------------------------------------


def peer_cases(limit: int | None, seconds: float) -> Iterator[Case]:
    for granularity in SUITE_GAP:
        for one in SUITE[:limit]:
            yield f"{granularity}: {one.name}", partial(peer_row, one, granularity)


def peer_row(one: Instance, granularity: str) -> PeerRow | None:
    found = suite_solve(one, granularity)
    if found is None:
        return None
    assert found.objective_s is not None, f"{one.name}: {found.status}"
    plans = hand_plans(one.costs)
    if granularity != "expert":
        plans = {name: plan for name, plan in plans.items() if all(len(layer.experts) <= 1 for layer in plan.layers)}
    judged = {name: judge(plan, one.costs) for name, plan in plans.items()}
    rules = {name: its.objective_s if its.feasible else None for name, its in judged.items()}
    return PeerRow(one.name, one.label, granularity, found.seconds, found.gap, found.objective_s, rules)


# ---- size ------------------------------------------------------------------------------------------------------


def size_cases(limit: int | None, seconds: float) -> Iterator[Case]:
    sizes = [(layers, gpus) for gpus in SIZE_GPUS for layers in SIZE_LAYERS]
    for layers, gpus in sizes[:limit]:
        yield f"{layers} layers, {gpus} GPUs", partial(size_row, layers, gpus)


def size_row(layers: int, gpus: int) -> SizeRow:
    machine = cluster(gpus)
    found = timed(synthetic(layers, machine), machine, None, time_limit=SIZE_SECONDS, relative_gap=SIZE_GAP)
    return SizeRow(layers, gpus, found.seconds, found.gap, found.status)


CASES: dict[str, Callable[[int | None, float], Iterator[Case]]] = {
    "suite": suite_cases,
    "rivals": rival_cases,
    "baselines": peer_cases,
    "size": size_cases,
}
