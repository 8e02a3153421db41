"""From a model and a machine to a proven plan."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

from cost_models import CostModel
from profiles import Workload, load_hardware, load_placement, load_profile, load_workload
from profiles.errors import InfeasiblePlacement, MoeplanError
from profiles.placement import Granularity, Objective, Placement
from profiles.presets import model_config_preset
from solver.assignment import Assignment, arrange
from solver.baselines import hand_plans
from solver.counts import solve_counts
from solver.evaluate import Evaluation, judge
from solver.explain import infeasible
from solver.free_order import is_small, solve_free_order
from solver.patterns import solve_patterns
from solver.problem import Problem, build_problem
from solver.rules import Allowed, Pins, breaks, check_target
from solver.search import Limits, Outcome
from solver.slices import solve_slices


def solve(
    profile: Any,
    hardware: Any,
    workload: Any = None,
    *,
    safety_margin: float = 0.10,
    granularity: Granularity = "module",
    objective: Objective = "request",
    target: str = "torch",
    pins: Pins | None = None,
    time_limit: float = 10.0,
    relative_gap: float = 0.0,
    workers: int | None = None,
    seed: int = 0,
) -> Placement:
    """Place every block of `profile` on `hardware` so that `objective` is least, and prove how good that is.

    `profile`, `hardware` and `workload` are objects or anything their loaders take. `status` is `optimal` when the
    plan is proved best among all placements that `granularity`, `target` and `pins` allow, to the solver's resolution
    (about 1e-7 of the objective); `feasible` when the search stopped with a gap. The plan was checked by `evaluate`,
    and no hand rule under the same evaluator is better. Same input and seed give the same plan unless the time limit
    ends the search. Raises InfeasiblePlacement when nothing fits (`proven`) or nothing was found in time.

    >>> plan = solve("qwen3-30b-a3b", "1xRTX4090,ram=96GB")
    >>> plan.status
    'optimal'
    """
    started = time.perf_counter()
    _check(safety_margin, granularity, objective, time_limit, relative_gap, workers, seed)
    check_target(target)
    request: Workload = load_workload(workload)
    costs = CostModel(
        load_profile(profile), load_hardware(hardware), request, safety_margin=safety_margin, target=target
    )
    allowed = Allowed(costs, target, pins)
    problem = build_problem(costs, objective=objective, granularity=granularity, allowed=allowed)
    limits = Limits(time_limit, relative_gap=relative_gap, workers=workers or 1, seed=seed)
    search = _Search(problem, costs, objective, limits, started + time_limit)
    search.run(allowed)
    if search.best is None:
        raise InfeasiblePlacement(f"no plan found within {time_limit:g} s; raise time_limit", proven=False)
    plan = _described(search.best, objective)
    assert breaks(plan, allowed, problem.devices) is None, "moeplan made a plan that its own rules forbid"
    described = plan.replace(
        model=costs.profile.model,
        architecture=costs.profile.architecture,
        quant=costs.profile.quant,
        kv_quant=costs.profile.kv_quant,
        mla=costs.profile.mla,
        hardware=costs.hardware.name,
        target=target,
        granularity=granularity,
        workload=costs.workload,
        safety_margin=safety_margin,
        **search.proof(),
    )
    return described.replace(solve_s=round(time.perf_counter() - started, 4))


def evaluate(
    placement: Any,
    profile: Any = None,
    hardware: Any = None,
    workload: Any = None,
    *,
    safety_margin: float | None = None,
    objective: Objective | None = None,
    target: str | None = None,
) -> Evaluation:
    """Bytes per device and predicted times of any placement, whether it fits or not.

    What is left out is taken from the plan document: its `model`, `hardware`, `workload`, `safety_margin`, `objective`
    and `target`, else the defaults. `target` says what the runtime needs beside the plan (staging buffers, copies while
    loading), also for runtimes that `solve` does not plan for yet. Raises MoeplanError when the placement does not
    describe the model or the machine.
    """
    plan = load_placement(placement)
    model = plan.model if profile is None else profile
    machine = plan.hardware if hardware is None else hardware
    if model is None or machine is None:
        raise MoeplanError(f"evaluate: the plan names no {'model' if model is None else 'hardware'}; pass it")
    margin = next(m for m in (safety_margin, plan.safety_margin, 0.10) if m is not None)
    costs = CostModel(
        load_profile(model, **_format_to_read(plan)) if profile is None else load_profile(profile),
        load_hardware(machine),
        load_workload(plan.workload if workload is None else workload),
        safety_margin=_margin(margin),
        target=target or plan.target or "torch",
    )
    return judge(plan, costs, objective or plan.objective or "request")


def _format_to_read(plan: Placement) -> dict[str, Any]:
    """The plan's formats where its model is read from shapes; a profile document has its bytes and takes none."""
    if plan.model is None or model_config_preset(plan.model) is None:
        return {}
    return {"quant": plan.quant, "kv_quant": plan.kv_quant, "mla": plan.mla}


@dataclass
class _Candidate:
    placement: Placement
    evaluation: Evaluation

    @property
    def seconds(self) -> float:
        return self.evaluation.objective_s


class _Search:
    """Counts for a bound, then ever dearer ways to a plan until one meets the bound or time is up."""

    def __init__(
        self, problem: Problem, costs: CostModel, objective: Objective, limits: Limits, deadline: float
    ) -> None:
        self.problem, self.costs, self.objective = problem, costs, objective
        self.limits, self.deadline = limits, deadline
        self.bound = 0
        self.best: _Candidate | None = None
        self.incumbent: Assignment | None = None

    def run(self, allowed: Allowed) -> None:
        """Fill `best` and `bound`. Raises InfeasiblePlacement when the counts prove that nothing fits."""
        for placement in _hand_candidates(self.costs, allowed, self.problem):
            self._offer(Assignment.of(placement, self.problem), placement)
        patterns = solve_patterns(self.problem, self._limits(0.15))
        if patterns is not None:
            self._raise_bound(patterns.status, patterns.bound)
            if patterns.cards and not self.closed:
                self._counts(solve_counts(self.problem, self._limits(0.15), floor=self.bound, cards=patterns.cards))
        if not self.closed:
            # For the bottleneck the counts are the whole problem; otherwise the slices may need their time.
            share = math.inf if self.problem.bottleneck else 0.25
            counts = solve_counts(self.problem, self._limits(share), floor=self.bound)
            self._raise_bound(counts.status, counts.bound)
            self._counts(counts)
        if not self.closed and not self.problem.bottleneck:
            slices = solve_slices(self.problem, self._limits(), floor=self.bound, hint=self.incumbent)
            self._offer(slices.assignment)
        small = is_small(self.problem) and not self.problem.bottleneck
        if not self.closed and self.incumbent is not None and small:
            free = solve_free_order(self.problem, self._limits(), floor=self.bound, hint=self.incumbent)
            self.bound = max(self.bound, free.bound)
            self._offer(free.assignment)

    def _raise_bound(self, status: str, bound: int) -> None:
        if status == "infeasible":
            raise infeasible(self.problem, self.costs)
        self.bound = max(self.bound, bound)

    def _counts(self, outcome: Outcome) -> None:
        if outcome.counts is not None:
            self._offer(arrange(outcome.counts, self.problem))

    @property
    def closed(self) -> bool:
        """A plan meets the bound, or comes as near as the caller asked for."""
        if self.incumbent is None:
            return False
        return self.incumbent.ticks(self.problem) * (1 - self.limits.relative_gap) <= self.bound

    def proof(self) -> dict[str, Any]:
        """status, objective, bound and gap as the plan document states them."""
        assert self.best is not None
        assert self.incumbent is not None
        seconds = self.best.seconds
        proved = self.incumbent.ticks(self.problem) <= self.bound
        # Rounding may have raised the integer optimum over the true one by a few ticks a layer; give them back.
        slack = 4 * len(self.problem.layer_class) + 4
        bound_s = seconds if proved else max(0.0, min(seconds, (self.bound - slack) * self.problem.tick_s))
        return {
            "status": "optimal" if proved else "feasible",
            "objective_s": seconds,
            "bound_s": bound_s,
            "gap": (seconds - bound_s) / seconds if seconds else 0.0,
        }

    def _limits(self, share: float = math.inf) -> Limits:
        """The time left, and no more work than `share` of the whole time limit: how the time is divided between the
        models must not depend on the machine's load, or the plan would."""
        left = max(0.0, self.deadline - time.perf_counter())
        return replace(self.limits, seconds=left, work=share * self.limits.seconds)

    def _offer(self, assignment: Assignment | None, placement: Placement | None = None) -> None:
        """Keep a plan if it fits and is the best yet: `best` in seconds as evaluated, `incumbent` in ticks."""
        if assignment is None:
            return
        placement = placement or assignment.placement(self.problem)
        evaluation = judge(placement, self.costs, self.objective)
        if not evaluation.feasible:
            return
        if self.best is None or evaluation.objective_s < self.best.seconds:
            self.best = _Candidate(placement, evaluation)
        if self.incumbent is None or assignment.ticks(self.problem) < self.incumbent.ticks(self.problem):
            self.incumbent = assignment


def _hand_candidates(costs: CostModel, allowed: Allowed, problem: Problem) -> Iterator[Placement]:
    """Hand rules that obey the target, the pins and the granularity."""
    for placement in hand_plans(costs).values():
        whole = all(layer.experts_device in (None, layer.attention) for layer in placement.layers)
        if breaks(placement, allowed, problem.devices) is None and (whole or not problem.whole_layers):
            yield placement


def _described(best: _Candidate, objective: Objective) -> Placement:
    """The plan with the evaluator's own numbers."""
    found = best.evaluation
    return best.placement.replace(objective=objective, memory=found.memory, prediction=found.prediction)


def _check(
    safety_margin: float,
    granularity: str,
    objective: str,
    time_limit: float,
    relative_gap: float,
    workers: int | None,
    seed: int,
) -> None:
    _margin(safety_margin)
    if granularity not in ("layer", "module"):
        raise MoeplanError(f"granularity: {granularity!r} is not known to this version; use layer or module")
    if objective not in get_args(Objective):
        raise MoeplanError(f"objective: {objective!r} is not known; use {', '.join(get_args(Objective))}")
    for name, value, least in (("time_limit", time_limit, 1e-3), ("relative_gap", relative_gap, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < 1e9:
            raise MoeplanError(f"{name}: {value!r} is out of range; give a number of at least {least:g}")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 256):
        raise MoeplanError(f"workers: {workers!r} is not a number of threads; use 1 to 256")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise MoeplanError(f"seed: {seed!r} is not a seed; use a whole number from 0 to 2147483647")


def _margin(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise MoeplanError(f"safety_margin: {value!r} is not a share; give a number from 0 to below 1, e.g. 0.10")
    return value
