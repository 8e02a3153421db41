"""Plans that fit even when some blocks turn out larger: against everything there is, the rule written out once more."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import ceil
from typing import Any

import pytest
from everything import Blocks, Everything, options_of
from oracle import Oracle
from strategies import Instance, random_instance, random_placement

from cost_models import CostModel
from profiles import InfeasiblePlacement, MoeplanError, Placement, load_hardware, load_profile
from profiles.placement import LayerPlacement
from solver import solve
from solver.assignment import Assignment
from solver.column_generation.contents import Contents, contents_of
from solver.cp_sat.counts import solve_counts
from solver.cp_sat.run import Limits
from solver.deviations import MOST_LEVELS, nominal, reserve, reserved
from solver.evaluate import judge
from solver.feasibility.robust import robust_short
from solver.problem import Problem, Robust, build_problem
from solver.rules import Allowed

TIME_LIMIT = 60.0


def plan_or_none(instance: Instance, **options: Any) -> Placement | None:
    try:
        return solve(instance.profile, instance.hardware, instance.workload, time_limit=TIME_LIMIT, **options)
    except InfeasiblePlacement as problem:
        if not problem.proven:
            raise
        return None


def seconds(plan: Placement | None) -> float:
    return float("inf") if plan is None or plan.objective_s is None else plan.objective_s


class Rule:
    """Bytes that a device keeps free: for each choice of `blocks` of those there what they may gain, and the most."""

    def __init__(self, instance: Instance, share: float, blocks: int) -> None:
        self.oracle = Oracle(instance.profile, instance.hardware, instance.workload)
        self.share, self.blocks = Fraction(str(share)), blocks

    def __call__(self, name: str, blocks: Blocks) -> int:
        kind = self.oracle.hardware.device(name).kind
        gains = [ceil(self.share * self.oracle.block(*block).weight_bytes.on(kind)) for block in blocks]
        return max(sum(chosen) for chosen in combinations(gains, min(self.blocks, len(gains))))

    def fits(self, plan: Placement) -> bool:
        held: dict[str, Blocks] = {name: [] for name in self.oracle.names}
        for part, layer, name in self.oracle.places(plan):
            held[name].append((part, layer))
        used = self.oracle.used(plan)
        return all(used[name] + self(name, held[name]) <= self.oracle.usable(name) for name in held)


# ---- plans against brute force ----


@pytest.mark.parametrize("batch", range(12))
def test_nothing_that_keeps_as_much_free_is_better(batch: int) -> None:
    """96 tiny instances: everything tried out."""
    for seed in range(8 * batch, 8 * batch + 8):
        rng, options = random.Random(80_000 + seed), options_of(seed)
        gpus = rng.randint(1, 2)
        instance = random_instance(rng, layers=(2, 3 if gpus == 1 else 2), gpus=(gpus, gpus))
        share, blocks = rng.choice([0.01, 0.05, 0.3]), rng.randint(1, 3)
        rule = Rule(instance, share, blocks)
        found = Everything(instance, options, rule).all
        try:
            plan = solve(
                instance.profile, instance.hardware, instance.workload, time_limit=TIME_LIMIT, tie_tolerance=0,
                robust=share, robust_blocks=blocks, **options,
            )  # fmt: skip
        except InfeasiblePlacement as problem:
            assert not found
            check_infeasible(problem, instance, options, rule)
            continue
        assert found
        assert plan.status == "optimal"
        assert plan.gap == 0
        assert rule.fits(plan)
        assert seconds(plan) == pytest.approx(min(one.seconds for one in found), rel=1e-6)


def check_infeasible(problem: InfeasiblePlacement, instance: Instance, options: dict[str, Any], rule: Rule) -> None:
    """With the bytes that are said to be short something fits, and with one fewer nothing does."""
    assert problem.proven
    assert problem.short_bytes
    assert "larger: short of" in str(problem)
    assert "\n" not in str(problem)
    for fewer in (0, 1):
        more = dict(problem.short_bytes)
        more[next(iter(more))] -= fewer
        roomy = Everything(instance, options, lambda name, blocks, more=more: rule(name, blocks) - more.get(name, 0))
        assert bool(roomy.all) == (fewer == 0)


@pytest.mark.parametrize("seed", range(81_000, 81_010))
def test_more_caution_never_pays(seed: int) -> None:
    """A larger share, or more blocks, leaves fewer plans; and every plan keeps its promise."""
    instance, options = random_instance(random.Random(seed), layers=(3, 5), loose=seed % 4 == 0), options_of(seed)
    asked = [(0.0, 3), (0.02, 1), (0.05, 1), (0.05, 4), (0.2, 4), (0.2, 20)]
    plans = [plan_or_none(instance, robust=r, robust_blocks=n, tie_tolerance=0, **options) for r, n in asked]
    for (share, blocks), plan, bolder in zip(asked[1:], plans[1:], plans, strict=False):
        assert seconds(plan) >= seconds(bolder) * (1 - 1e-6) or (bolder is not None and bolder.status == "feasible")
        if plan is not None:
            assert Rule(instance, share, blocks).fits(plan)
            assert judge(plan, costs_of(instance), options["objective"]).feasible


@pytest.mark.parametrize("seed", range(82_000, 82_008))
def test_without_a_share_nothing_changes(seed: int) -> None:
    instance, options = random_instance(random.Random(seed), layers=(2, 5)), options_of(seed)
    plans = [plan_or_none(instance, **more, **options) for more in ({}, {"robust": 0.0, "robust_blocks": 9})]
    if plans[0] is None:
        assert plans[1] is None
    else:
        assert plans[1] is not None
        assert plans[0].replace(solve_s=None) == plans[1].replace(solve_s=None)
    assert problem_of(instance, None, **options) == problem_of(instance, None, **options)
    assert problem_of(instance, None, **options).embedding.deviation == ()


@pytest.mark.parametrize("target", ["ktransformers", "llama.cpp", "accelerate"])
def test_targets_are_planned_with_caution_too(target: str) -> None:
    bold, careful = (
        solve("deepseek-v2-lite", "2xRTX3080-10GB,ram=256GB", target=target, robust=share, relative_gap=0.01)
        for share in (0.0, 0.1)
    )
    assert careful.model is not None
    assert careful.hardware is not None
    assert seconds(careful) >= seconds(bold) * 0.99
    assert careful.bound_s is not None
    assert careful.bound_s <= seconds(careful)


def test_the_story_keeps_room_for_three_layers_of_experts() -> None:
    bold, careful = (
        solve("deepseek-v2-measured", "8xL40-46GB", robust=share, relative_gap=1e-3) for share in (0, 0.05)
    )
    costs = CostModel(load_profile("deepseek-v2-measured"), load_hardware("8xL40-46GB"))
    assert robust_short(bold, costs, 0.05, 3)
    assert robust_short(careful, costs, 0.05, 3) == {}
    assert careful.memory is not None
    experts = [layer.experts_device for layer in careful.layers]
    full = [held for name, held in careful.memory.items() if experts.count(name) >= 3]
    assert all(held.free_bytes >= 3 * 0.05 * 4.94 * 10**9 for held in full)
    assert seconds(bold) < seconds(careful) < 1.05 * seconds(bold)


# ---- what is asked for ----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"robust": -0.1}, "robust: -0.1"),
        ({"robust": 1}, "robust: 1"),
        ({"robust": "much"}, "robust: 'much'"),
        ({"robust": True}, "robust: True"),
        ({"robust_blocks": 0}, "robust_blocks: 0"),
        ({"robust_blocks": 1.5}, "robust_blocks: 1.5"),
        ({"robust_blocks": True}, "robust_blocks: True"),
        ({"robust": 0.05, "granularity": "expert"}, "robust: 0.05 needs whole experts"),
    ],
    ids=str,
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(MoeplanError) as refused:
        solve("deepseek-v2-lite", "2xRTX4090,ram=256GB", **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_short_is_told() -> None:
    machine = "1xRTX3080-10GB,ram=26GB"
    assert solve("deepseek-v2-lite", machine).status is not None
    with pytest.raises(InfeasiblePlacement) as problem:
        solve("deepseek-v2-lite", machine, robust=0.9, robust_blocks=10)
    assert problem.value.proven
    assert "with any 10 blocks of a device up to 90 % larger: short of" in str(problem.value)
    assert sum(problem.value.short_bytes.values()) > 10**9


# ---- the parts ----


def costs_of(instance: Instance, target: str = "torch") -> CostModel:
    return CostModel(instance.profile, instance.hardware, instance.workload, target=target)


def problem_of(instance: Instance, robust: Robust | None, **options: Any) -> Problem:
    costs = costs_of(instance)
    return build_problem(costs, allowed=Allowed(costs, "torch", None), robust=robust, **options)


def drawn(seed: int) -> tuple[random.Random, Instance, Robust]:
    rng = random.Random(seed)
    instance = random_instance(rng, layers=(2, 6), loose=rng.random() < 0.5)
    return rng, instance, Robust(rng.choice([0.03, 0.2, 0.5]), rng.randint(1, 5))


@pytest.mark.parametrize("seed", range(83_000, 83_020))
def test_models_and_check_agree_with_the_rule(seed: int) -> None:
    """Bytes of what each device holds, and what it is short of, for random placements whether they fit or not."""
    rng, instance, robust = drawn(seed)
    problem, rule = problem_of(instance, robust, **options_of(0)), Rule(instance, robust.share, robust.blocks)
    oracle, costs = rule.oracle, costs_of(instance)
    for _ in range(5):
        placement = random_placement(rng, instance)
        plan = Assignment.of(placement, problem)
        assert plan is not None
        held: dict[str, Blocks] = {name: [] for name in oracle.names}
        for part, layer, name in oracle.places(placement):
            held[name].append((part, layer))
        need = {name: n + rule(name, held[name]) for name, n in oracle.used(placement).items()}
        found = [contents.bytes(problem, d) for d, (_, contents) in enumerate(contents_of(problem, plan))]
        assert found == list(need.values())
        short = {name: n - oracle.usable(name) for name, n in need.items() if n > oracle.usable(name)}
        assert robust_short(placement, costs, robust.share, robust.blocks) == short


@pytest.mark.parametrize("seed", range(84_000, 84_020))
def test_a_device_has_room_if_one_problem_without_deviations_has(seed: int) -> None:
    rng, instance, robust = drawn(seed)
    problem = problem_of(instance, robust, **options_of(0))
    kept = reserved(problem)
    for _ in range(40):
        attention = tuple(rng.randint(0, n) for n in problem.class_sizes)
        experts = tuple(rng.randint(0, kind.number) for kind in problem.expert_kinds)
        local = (0,) * len(experts)
        contents = Contents(attention, experts, local, rng.randint(0, 1), rng.randint(0, 1))
        for d in range(len(problem.devices)):
            fits = contents.bytes(problem, d) <= problem.usable[d]
            without = [contents.bytes(one, d) <= one.usable[d] for one in nominal(problem, d)]
            assert fits <= any(without)
            # Many values of z are rounded together, which may let too much in.
            assert fits == any(without) or 1 + 2 + 2 * len(problem.classes) > MOST_LEVELS
            assert (contents.bytes(kept, d) <= kept.usable[d]) <= fits
            assert contents.bytes(problem, d) - contents.bytes(kept, d) <= reserve(problem, d)


@pytest.mark.parametrize("seed", range(85_000, 85_016))
def test_all_blocks_at_once_are_all_blocks_larger(seed: int) -> None:
    _, instance, robust = drawn(seed)
    options = {**options_of(seed), "objective": "request"}
    problem = problem_of(instance, replace(robust, blocks=1000), **options)

    def larger(block: Any) -> Any:
        both = zip(block.bytes, block.deviation, strict=True)
        return replace(block, bytes=tuple(a + b for a, b in both), deviation=())

    scaled = replace(
        problem,
        robust=None,
        embedding=larger(problem.embedding),
        head=larger(problem.head),
        classes=tuple(
            replace(kind, attention=larger(kind.attention), experts=kind.experts and larger(kind.experts))
            for kind in problem.classes
        ),
    )
    one, other = (solve_counts(p, Limits(TIME_LIMIT)) for p in (problem, scaled))
    assert (one.status, one.bound) == (other.status, other.bound)


def test_split_layers_gain_part_by_part() -> None:
    instance = random_instance(random.Random(3), layers=(2, 2), gpus=(2, 2), loose=True)
    costs, layers = costs_of(instance), instance.profile.layers
    experts = layers[0].experts
    assert experts is not None
    half, rest = tuple(range(experts.count // 2)), tuple(range(experts.count // 2, experts.count))
    split = LayerPlacement(attention="cuda:0", experts={"cuda:0": half, "cuda:1": rest})
    others = [LayerPlacement(attention="cpu", experts={"cpu": "all"} if x.experts else {}) for x in layers[1:]]
    plan = Placement(embedding="cpu", head="cpu", layers=[split, *others])
    free = judge(plan, costs).memory["cuda:1"].free_bytes
    part = costs.expert_bytes(experts, "cuda:1", rest)
    share = -(-free // part)
    assert robust_short(plan, costs, share, 1)["cuda:1"] == share * part - free
    assert "cuda:1" not in robust_short(plan, costs, share - 1, 1)
