"""From a model and a machine to a proven plan."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

from cost_models import CostModel
from cost_models.engine_notes import engine_notes
from cost_models.held import held_note
from cost_models.uncertainty import plan_interval
from profiles import Workload, load_hardware, load_placement, load_profile, load_workload
from profiles.errors import InfeasiblePlacement, MoeplanError
from profiles.load import formats_of
from profiles.placement import Granularity, Interval, Objective, Placement
from solver.baselines import hand_plans
from solver.cp_sat.run import Limits
from solver.evaluate import Evaluation, judge
from solver.feasibility.explain import infeasible, may_fit
from solver.feasibility.robust import robust_infeasible
from solver.problem import Problem, Robust, build_problem
from solver.rules import Allowed, Pins, breaks, check_target, coarser
from solver.search.plans import Candidate, ProvedInfeasible
from solver.search.portfolio import Portfolio
from solver.search.streaming import StreamSearch
from solver.search.ties import settle
from solver.simplicity import simplest, wary
from solver.split.search import SplitSearch

Preference = Literal["fastest", "simplest"]


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
    tie_tolerance: float = 0.001,
    robust: float = 0.0,
    robust_blocks: int = 3,
    prefer: Preference = "fastest",
    workers: int | None = None,
    seed: int = 0,
) -> Placement:
    """Place every block of `profile` on `hardware` so that `objective` is least, and prove how good that is.

    `profile`, `hardware` and `workload` are objects or anything their loaders take. `status` is `optimal` when the
    plan is proved best among all placements that `granularity`, `target` and `pins` allow, to the solver's resolution
    (about 1e-7 of the objective); `feasible` when the search stopped with a gap. Of plans whose objectives differ by no
    more than `tie_tolerance`, as a share, the one is returned that leaves most memory free on the fullest device
    (`solver/search/ties.py`; whole experts only): an `optimal` plan may be that much above `bound_s`, the proved best.
    With `robust` the plan fits even when any `robust_blocks` of the blocks on each device turn out to have that share
    more bytes of weights than the profile says; the memory in the plan stays as the profile says.
    With `prefer="simplest"` a plan with less on the CPU and fewer hops is returned where predictions cannot tell it
    from the fastest (`solver/simplicity.py`); status and gap are then of that plan, against the same bound.
    The plan was checked by `evaluate`, and no hand rule under the same evaluator is better. Same input and seed give
    the same plan unless the time limit ends the search. Raises InfeasiblePlacement when nothing fits (`proven`) or
    nothing was found in time.

    >>> plan = solve("qwen3-30b-a3b", "1xRTX4090,ram=96GB")
    >>> plan.status
    'optimal'
    """
    started = time.perf_counter()
    _check(safety_margin, granularity, objective, time_limit, relative_gap, tie_tolerance, prefer, workers, seed)
    deviations = _robust(robust, robust_blocks)
    check_target(target)
    request: Workload = load_workload(workload)
    costs = CostModel(
        load_profile(profile), load_hardware(hardware), request, safety_margin=safety_margin, target=target
    )
    allowed = Allowed(costs, target, pins)
    granularity = coarser(granularity, allowed.finest)
    if deviations is not None and prefer != "fastest":
        raise MoeplanError(f"prefer: {prefer!r} does not look at robust; leave one of the two out")
    if deviations is not None and granularity == "expert":
        raise MoeplanError(f"robust: {robust:g} needs whole experts; use granularity module or layer")
    problem = build_problem(costs, objective=objective, granularity=granularity, allowed=allowed, robust=deviations)
    limits = Limits(time_limit, relative_gap=relative_gap, workers=workers or 1, seed=seed)
    search = search_for(problem, costs, objective, limits, started + time_limit)
    try:
        run(search, hand_candidates(costs, allowed, problem))
    except ProvedInfeasible:
        if deviations is not None:
            raise robust_infeasible(problem, costs, deviations) from None
        # CP-SAT has been seen to be wrong about it (docs/lab_log.md), so another model is asked.
        if may_fit(problem, costs):
            raise InfeasiblePlacement("no plan found, though some placement fits", proven=False) from None
        raise infeasible(problem, costs, pins) from None
    if search.best is None:
        raise InfeasiblePlacement(f"no plan found within {time_limit:g} s; raise time_limit", proven=False)
    best, proof = settle(search, tie_tolerance) if isinstance(search, Portfolio) else (search.best, search.proof())
    unpacked = held_note(costs.as_stored, costs.target, costs.hardware)
    notes = [*([unpacked] if unpacked else []), *engine_notes(costs)]
    if prefer == "simplest":
        best, proof, said = _simpler(best, proof, costs, allowed, problem, pins)
        notes += said
    told = best.evaluation.prediction
    interval = plan_interval(best.placement, costs, told.prefill_s, told.decode_step_s)
    plan = described(best, proof, costs, objective, granularity, notes, interval)
    assert breaks(plan, allowed, problem.devices) is None, "moeplan made a plan that its own rules forbid"
    return plan.replace(solve_s=round(time.perf_counter() - started, 4))


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
    costs = costs_of(plan, profile, hardware, workload, safety_margin=safety_margin, target=target)
    return judge(plan, costs, objective or plan.objective or "request")


def costs_of(
    plan: Placement,
    profile: Any = None,
    hardware: Any = None,
    workload: Any = None,
    *,
    safety_margin: float | None = None,
    target: str | None = None,
) -> CostModel:
    """The cost model under which `evaluate` judges the plan: what is left out is taken from the plan document."""
    model = plan.model if profile is None else profile
    machine = plan.hardware if hardware is None else hardware
    if model is None or machine is None:
        raise MoeplanError(f"evaluate: the plan names no {'model' if model is None else 'hardware'}; pass it")
    margin = next(m for m in (safety_margin, plan.safety_margin, 0.10) if m is not None)
    return CostModel(
        load_profile(model, **formats_of(plan)) if profile is None else load_profile(profile),
        load_hardware(machine),
        load_workload(plan.workload if workload is None else workload),
        safety_margin=_share("safety_margin", margin),
        target=target or plan.target or "torch",
    )


def search_for(
    problem: Problem, costs: CostModel, objective: Objective, limits: Limits, deadline: float
) -> Portfolio | SplitSearch:
    """The search that suits the problem: experts may be split, or the target streams what is on the CPU, or neither."""
    streams = costs.target_memory.streams_blocks and costs.hardware.gpus
    kind = SplitSearch if problem.split_experts else StreamSearch if streams else Portfolio
    return kind(problem, costs, objective, limits, deadline)


def run(search: Portfolio | SplitSearch, rules: Iterable[Placement]) -> None:
    """Search, beginning with the plans of `rules`. Raises ProvedInfeasible. Bounds that leave out what devices share
    (`Problem.shared`) do not see that it is too little, so that is asked first."""
    if search.problem.shared and may_fit(search.problem, search.costs) is False:
        raise ProvedInfeasible
    search.run(rules)


def hand_candidates(costs: CostModel, allowed: Allowed, problem: Problem) -> Iterator[Placement]:
    """Hand rules that obey the target, the pins and the granularity."""
    for placement in hand_plans(costs).values():
        whole = all(layer.experts_device in (None, layer.attention) for layer in placement.layers)
        if breaks(placement, allowed, problem.devices) is None and (whole or not problem.whole_layers):
            yield placement


def _simpler(
    best: Candidate, proof: dict[str, Any], costs: CostModel, allowed: Allowed, problem: Problem, pins: Pins | None
) -> tuple[Candidate, dict[str, Any], list[str]]:
    """The plan to return instead of the fastest, its proof, and why; all as it was where none is simpler."""
    objective = best.evaluation.objective
    rivals = [*hand_candidates(costs, allowed, problem), *_wary_plans(costs, problem, pins, objective)]
    found = simplest(best.placement, rivals, costs, objective)
    if found is None:
        return best, proof, []
    seconds, bound = found.evaluation.objective_s, min(proof["bound_s"], found.evaluation.objective_s)
    gap = (seconds - bound) / seconds if seconds else 0.0
    status = proof["status"] if seconds <= best.seconds else "feasible"
    told = {**proof, "objective_s": seconds, "gap": gap, "status": status}
    return Candidate(found.placement, found.evaluation), told, [found.note]


def _wary_plans(costs: CostModel, problem: Problem, pins: Pins | None, objective: Objective) -> Iterator[Placement]:
    """Plans for a machine with a worse CPU and worse links, and one that keeps experts with their attention."""
    granularity: Granularity = "layer" if problem.whole_layers else "module"
    for machine, fineness in ((wary(costs.hardware), granularity), (costs.hardware, "layer")):
        try:
            found = solve(
                costs.as_stored, machine, costs.workload, safety_margin=costs.safety_margin, granularity=fineness,
                objective=objective, target=costs.target, pins=pins, time_limit=3.0, relative_gap=1e-3,
            )  # fmt: skip
        except InfeasiblePlacement:
            continue
        yield found


def described(
    best: Candidate,
    proof: dict[str, Any],
    costs: CostModel,
    objective: Objective,
    granularity: Granularity,
    notes: Sequence[str],
    interval: Interval | None,
) -> Placement:
    """The plan with the evaluator's own numbers, how far they may be off, the proof, and what it is a plan for."""
    found, profile = best.evaluation, costs.profile
    return best.placement.replace(
        objective=objective,
        memory=found.memory,
        pools=found.pools or None,
        prediction=found.prediction.replace(interval=interval),
        model=profile.model,
        architecture=profile.architecture,
        quant=profile.quant,
        kv_quant=profile.kv_quant,
        mla=profile.mla,
        hardware=costs.hardware.name,
        backends=costs.hardware.backends or None,
        target=costs.target,
        granularity=granularity,
        workload=costs.workload,
        safety_margin=costs.safety_margin,
        notes=tuple(notes) or None,
        **proof,
    )


def _check(
    safety_margin: float,
    granularity: str,
    objective: str,
    time_limit: float,
    relative_gap: float,
    tie_tolerance: float,
    prefer: str,
    workers: int | None,
    seed: int,
) -> None:
    _share("safety_margin", safety_margin)
    _share("tie_tolerance", tie_tolerance)
    if granularity not in get_args(Granularity):
        raise MoeplanError(f"granularity: {granularity!r} is not known; use {', '.join(get_args(Granularity))}")
    if objective not in get_args(Objective):
        raise MoeplanError(f"objective: {objective!r} is not known; use {', '.join(get_args(Objective))}")
    if prefer not in get_args(Preference):
        raise MoeplanError(f"prefer: {prefer!r} is not known; use {', '.join(get_args(Preference))}")
    for name, value, least in (("time_limit", time_limit, 1e-3), ("relative_gap", relative_gap, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < 1e9:
            raise MoeplanError(f"{name}: {value!r} is out of range; give a number of at least {least:g}")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 256):
        raise MoeplanError(f"workers: {workers!r} is not a number of threads; use 1 to 256")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise MoeplanError(f"seed: {seed!r} is not a seed; use a whole number from 0 to 2147483647")


def _robust(share: float, blocks: int) -> Robust | None:
    """None where nothing deviates."""
    _share("robust", share)
    if isinstance(blocks, bool) or not isinstance(blocks, int) or not 1 <= blocks <= 10**6:
        raise MoeplanError(f"robust_blocks: {blocks!r} is not a number of blocks; use a whole number of at least 1")
    return Robust(share, blocks) if share else None


def _share(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise MoeplanError(f"{name}: {value!r} is not a share; give a number from 0 to below 1, e.g. 0.10")
    return value
