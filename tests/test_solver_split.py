"""Splitting experts: tables are exact or below, the bound holds for every split, plans are no worse than whole."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from strategies import Instance, random_hardware, random_instance

from cost_models import CostModel, Step
from cost_models.split_tables import split_table
from profiles import Experts, InfeasiblePlacement, Placement, Workload, load_hardware, load_profile
from profiles.placement import LayerPlacement, Objective
from solver import evaluate, solve
from solver.evaluate import judge
from solver.problem import build_problem, objective_steps
from solver.rules import Allowed, breaks
from solver.split.bound import split_bound
from solver.split.tables import SplitTables
from solver.split.times import SplitTimes


def few_experts(instance: Instance, count: int, *, frequencies: bool = False) -> Instance:
    """The same instance with at most `count` experts a layer, alike unless `frequencies` are kept."""
    layers = []
    for layer in instance.profile.layers:
        old = layer.experts
        if old is None:
            layers.append(layer)
            continue
        n = min(count, old.count)
        changes: dict[str, Any] = {"count": n, "active": min(old.active, n), "expert_weight_bytes": None}
        changes["frequencies"] = old.frequencies[:n] if frequencies and old.frequencies else None
        layers.append(layer.replace(experts=old.replace(**changes)))
    return replace(instance, profile=instance.profile.replace(layers=layers))


def costs_of(instance: Instance) -> CostModel:
    return CostModel(instance.profile, instance.hardware, instance.workload)


# ---- tables ----


def sizes_over(n: int, bins: int) -> Iterator[tuple[int, ...]]:
    """All ways to spread n experts over `bins` devices, as falling sizes."""
    spread = product(range(n + 1), repeat=bins)
    return (sizes for sizes in spread if sum(sizes) == n and list(sizes) == sorted(sizes, reverse=True))


@pytest.mark.parametrize("tokens", [1, 3, 512])
@pytest.mark.parametrize(("count", "active"), [(6, 2), (7, 3), (5, 1)])
def test_of_equal_cards_an_even_split_is_the_best_and_the_table_has_it(tokens: int, count: int, active: int) -> None:
    """Every split over three equal guests, beside any number on the own card and the CPU."""
    profile = load_profile("mixtral-8x7b")
    some = Experts(weight_bytes=count * 10**8, count=count, active=active)
    profile = profile.replace(layers=[profile.layers[0].replace(experts=some)])
    costs = CostModel(profile, load_hardware("4xRTX4090,ram=64GB"), Workload())
    step, guests = Step(tokens, 0), ["cuda:1", "cuda:2", "cuda:3"]
    table = split_table(costs, 0, "cuda:0", guests, [step]).seconds
    for e in range(count + 1):
        for n in range(count + 1 - e):
            found = []
            for sizes in sizes_over(count - e - n, 3):
                parts, at = {}, 0
                for device, size in zip(["cuda:0", "cpu", *guests], (e, n, *sizes), strict=True):
                    if size:
                        parts[device] = range(at, at + size)
                        at += size
                found.append(costs.split_experts_s(0, "cuda:0", parts, step))
            assert table[e, n] == pytest.approx(min(found), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_table_is_a_lower_bound_for_cards_and_experts_that_differ(seed: int) -> None:
    rng = random.Random(seed)
    instance = few_experts(random_instance(rng, layers=(2, 3), gpus=(3, 3), loose=True), 5, frequencies=True)
    costs = costs_of(instance)
    names = [device.name for device in instance.hardware.devices]
    for layer, kind in enumerate(instance.profile.layers):
        if kind.experts is None:
            continue
        for step in (Step(1, 10), Step(4, 10), Step(100, 0)):
            for attention in names:
                guests = [name for name in names if name not in (attention, "cpu")]
                table = split_table(costs, layer, attention, guests, [step]).seconds
                for _ in range(10):
                    where = [rng.choice(names) for _ in range(kind.experts.count)]
                    parts = {d: [i for i, w in enumerate(where) if w == d] for d in set(where)}
                    seconds = costs.split_experts_s(layer, attention, parts, step)
                    n = 0 if attention == "cpu" else where.count("cpu")
                    assert table[where.count(attention), n] <= seconds * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_times_of_splits_are_the_cost_models(seed: int) -> None:
    rng = random.Random(100 + seed)
    instance = random_instance(rng, layers=(2, 3), gpus=(1, 3), loose=True)
    costs = costs_of(instance)
    problem = build_problem(costs, objective="request", granularity="expert", allowed=Allowed(costs, "torch", None))
    steps = objective_steps(costs, "request")
    times = SplitTimes(problem, costs, steps)
    for layer, c in enumerate(problem.layer_class):
        experts = costs.layer(layer).experts
        if experts is None:
            continue
        for _ in range(5):
            where = [rng.randrange(len(problem.devices)) for _ in range(experts.count)]
            counts = tuple(where.count(d) for d in range(len(problem.devices)))
            a = rng.randrange(len(problem.devices))
            parts = {problem.devices[d]: ids for d, ids in times.ids(c, a, counts).items()}
            assert sorted(i for ids in parts.values() for i in ids) == list(range(experts.count))
            expected = sum(s.times * costs.split_experts_s(layer, problem.devices[a], parts, s) for s in steps)
            assert times.seconds(c, a, counts) == pytest.approx(expected, rel=1e-9)


# ---- the bound, and plans ----


def best_of_all(instance: Instance, objective: Objective) -> float | None:
    """The least objective of all placements that fit, splits included: tried from the fastest on."""
    costs = costs_of(instance)
    names = [device.name for device in instance.hardware.devices]
    options = []
    for layer in instance.profile.layers:
        splits: list[dict[str, Any]] = [{}]
        if layer.experts is not None:
            owners = product(names, repeat=layer.experts.count)
            splits = [{d: tuple(i for i, w in enumerate(o) if w == d) for d in sorted(set(o))} for o in owners]
        options.append([LayerPlacement(attention=a, experts=s) for a in names for s in splits])
    everything = product(names, names, product(*options))
    plans = (Placement(embedding=e, head=h, layers=layers) for e, h, layers in everything)
    judged = (judge(plan, costs, objective) for plan in plans)
    return min((found.objective_s for found in judged if found.feasible), default=None)


@pytest.mark.parametrize("seed", range(24))
def test_no_split_beats_the_bound_and_plans_are_attainable(seed: int) -> None:
    """Tiny instances, every placement tried."""
    rng = random.Random(200 + seed)
    instance = few_experts(random_instance(rng, layers=(1, 2), gpus=(1, 1)), 3 if seed % 2 else 2)
    objectives: tuple[Objective, ...] = ("request", "decode", "prefill", "throughput")
    best = best_of_all(instance, objectives[seed % 4])
    what: dict[str, Any] = {"granularity": "expert", "objective": objectives[seed % 4]}
    if best is None:
        with pytest.raises(InfeasiblePlacement) as problem:
            solve(instance.profile, instance.hardware, instance.workload, **what)
        assert problem.value.proven
        return
    plan = solve(instance.profile, instance.hardware, instance.workload, **what)
    assert plan.objective_s is not None
    assert plan.bound_s is not None
    assert plan.bound_s <= best * (1 + 1e-6)
    assert plan.objective_s >= best * (1 - 1e-9)
    assert plan.status == "feasible" or plan.objective_s == pytest.approx(best, rel=1e-6)
    assert evaluate(plan, instance.profile, instance.hardware).feasible


def random_split(rng: random.Random, instance: Instance, names: list[str]) -> Placement:
    layers = []
    for layer in instance.profile.layers:
        experts: dict[str, Any] = {}
        if layer.experts is not None:
            some = rng.sample(names, rng.randint(1, len(names)))
            where = [rng.choice(some) for _ in range(layer.experts.count)]
            experts = {d: tuple(i for i, w in enumerate(where) if w == d) for d in sorted(set(where))}
        layers.append(LayerPlacement(attention=rng.choice(names), experts=experts))
    return Placement(embedding=rng.choice(names), head=rng.choice(names), layers=layers)


@pytest.mark.parametrize("seed", range(12))
def test_random_splits_stay_above_the_bound_on_larger_machines(seed: int) -> None:
    rng = random.Random(300 + seed)
    instance = few_experts(random_instance(rng, layers=(3, 6), gpus=(2, 4), loose=True), 8)
    if seed % 2:
        machine = random_hardware(rng, 4, 10**13, 10**13)
        instance = replace(instance, hardware=machine)
    costs = costs_of(instance)
    problem = build_problem(costs, objective="request", granularity="expert", allowed=Allowed(costs, "torch", None))
    bound = split_bound(SplitTables(problem, costs, objective_steps(costs, "request")))
    assert bound is not None
    names = list(problem.devices)
    for _ in range(60):
        found = judge(random_split(rng, instance, names), costs)
        assert not found.feasible or bound.seconds <= found.objective_s


@pytest.mark.parametrize(
    ("model", "quant", "machine"),
    [("mixtral-8x7b", "q8_0", "2xRTX4090,ram=128GB"), ("qwen3-30b-a3b", "q4_k_m", "1xRTX4090-12GB,ram=64GB")],
)
def test_splits_are_never_worse_than_whole_blocks_and_say_by_how_much(model: str, quant: str, machine: str) -> None:
    profile = load_profile(model, quant=quant)
    whole = solve(profile, machine)
    split = solve(profile, machine, granularity="expert", time_limit=5)
    assert split.objective_s is not None
    assert whole.objective_s is not None
    assert split.module_bound_s is not None
    assert split.objective_s <= whole.objective_s * (1 + 1e-9)
    assert split.module_bound_s <= whole.objective_s * (1 + 1e-9)
    assert split.gap is not None
    assert split.gap < 0.02
    again = solve(profile, machine, granularity="expert", time_limit=5)
    assert again.layers == split.layers


def test_more_memory_never_hurts_the_bound_and_pins_are_kept() -> None:
    profile = load_profile("qwen3-30b-a3b", quant="q4_k_m")
    bounds = []
    for size in (10, 12, 16, 24):
        plan = solve(profile, f"2xRTX4090-{size}GB,ram=64GB", granularity="expert", time_limit=3)
        bounds.append(plan.bound_s or math.inf)
    assert all(more <= less * (1 + 1e-9) for less, more in pairwise(bounds))
    machine, pins = "2xRTX4090-12GB,ram=64GB", {"experts": ["cuda:0", "cpu"], "layers.3.experts": "cpu"}
    costs = CostModel(profile, load_hardware(machine))
    pinned = solve(profile, machine, granularity="expert", pins=pins, time_limit=3)
    assert breaks(pinned, Allowed(costs, "torch", pins), list(costs.device)) is None
    assert set(pinned.layers[3].experts) == {"cpu"}


def test_a_target_that_cannot_split_gets_whole_blocks() -> None:
    plan = solve("qwen3-30b-a3b", "2xRTX4090-12GB,ram=96GB", granularity="expert", target="ktransformers", time_limit=5)
    assert plan.granularity == "module"
    assert all(len(layer.experts) <= 1 for layer in plan.layers)
