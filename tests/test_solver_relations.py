"""What must not change between questions that say the same, or get worse where there is more of something.

As in test_solver_solve.py, on machines with equal cards and models whose layers take turns: more layers than can be
tried out, where the bound needs branches and plans need polish.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from strategies import MB, Instance

from profiles import Attention, Block, Experts, Hardware, InfeasiblePlacement, Layer, ModelProfile, Placement, Workload
from solver import solve

TIME_LIMIT = 30.0
OBJECTIVES = ("request", "decode", "prefill", "throughput")
ROUNDING = 1e-6


@cache
def instance_of(seed: int) -> Instance:
    """Five to eight layers of two or three kinds in turns, on two or three equal cards with room for a part of them."""
    rng = random.Random(seed)
    kinds = [
        Layer(attention=attention(rng), experts=experts(rng) if rng.random() < 0.8 else None)
        for _ in range(rng.randint(2, 3))
    ]
    layers = [kinds[i % len(kinds)] for i in range(rng.randint(5, 8))]
    ends = [Block(weight_bytes={"gpu": rng.randint(100, 900) * MB, "cpu": 500 * MB}) for _ in range(2)]
    profile = ModelProfile(
        model=f"turns-{seed}",
        source="drawn at random",
        hidden_size=4096,
        embedding=ends[0],
        head=ends[1],
        layers=layers,
    )
    whole = sum(block.weight_bytes.gpu for block in profile.blocks)
    n_gpus = rng.randint(2, 3)
    share = rng.uniform(0.3, 0.9) / n_gpus
    return Instance(profile, machine(rng, n_gpus, round(whole * share) + 1000 * MB, 3 * whole), Workload())


def attention(rng: random.Random) -> Attention:
    size = rng.randint(100, 800) * MB
    return Attention(
        weight_bytes={"gpu": size, "cpu": size},
        workspace_bytes=rng.choice((0, 100_000)),
        kv_bytes_per_token=rng.choice((1152, 40_000)),
    )


def experts(rng: random.Random) -> Experts:
    size = rng.randint(600, 4000) * MB
    return Experts(weight_bytes={"gpu": size, "cpu": size}, workspace_bytes=rng.choice((0, 180_000)), count=8, active=2)


def machine(rng: random.Random, n_gpus: int, gpu_bytes: int, cpu_bytes: int) -> Hardware:
    """Equal cards, all joined directly or none."""
    direct = rng.random() < 0.5
    card = {"kind": "gpu", "memory_bytes": gpu_bytes, "bandwidth_bytes_per_s": 9e11, "flops_per_s": {"bf16": 1e14}}
    cpu = {"kind": "cpu", "memory_bytes": cpu_bytes, "bandwidth_bytes_per_s": 2e11, "flops_per_s": {"bf16": 2e12}}
    host = {"bandwidth_bytes_per_s": 25e9, "latency_s": rng.choice((1e-5, 3e-4))}
    links = [{**host, "between": ("cpu", f"cuda:{i}")} for i in range(n_gpus)]
    if direct:
        fast = {"bandwidth_bytes_per_s": 1e11, "latency_s": 5e-6}
        links += [{**fast, "between": (f"cuda:{a}", f"cuda:{b}")} for b in range(n_gpus) for a in range(b)]
    devices = [{**card, "name": f"cuda:{i}"} for i in range(n_gpus)] + [{**cpu, "name": "cpu"}]
    return Hardware(name="equal cards", devices=devices, links=links)


def options_of(seed: int) -> dict[str, Any]:
    return {"objective": OBJECTIVES[seed % 4], "granularity": ("module", "layer")[seed // 4 % 2]}


def plan_of(instance: Instance, **options: Any) -> Placement | None:
    question = (instance.profile, instance.hardware, instance.workload)
    try:
        return solve(*question, time_limit=TIME_LIMIT, tie_tolerance=0.0, **options)
    except InfeasiblePlacement as problem:
        if not problem.proven:
            raise
        return None


@cache
def usual_plan(seed: int) -> Placement | None:
    return plan_of(instance_of(seed), **options_of(seed))


def seconds(plan: Placement | None) -> float:
    """The objective; infinite where nothing fits."""
    if plan is None:
        return float("inf")
    assert plan.objective_s is not None
    return plan.objective_s


def bound(plan: Placement | None) -> float:
    """What no plan can be quicker than; infinite where nothing fits."""
    if plan is None:
        return float("inf")
    assert plan.bound_s is not None
    return plan.bound_s


def check_no_worse(better: Placement | None, than: Placement | None) -> None:
    """As far as proved: the optimum lies between bound and objective."""
    assert bound(better) <= seconds(than) * (1 + ROUNDING)


def with_devices(instance: Instance, change: dict[str, dict[str, Any]]) -> Instance:
    devices = tuple(d.replace(**change.get(d.name, {})) for d in instance.hardware.devices)
    return replace(instance, hardware=instance.hardware.replace(devices=devices))


# ---- more of something ----


@pytest.mark.parametrize("seed", range(4))
def test_more_memory_on_any_device_never_hurts(seed: int) -> None:
    instance, options, rng = instance_of(seed), options_of(seed), random.Random(seed)
    before = usual_plan(seed)
    for device in (*instance.hardware.gpus[:1], instance.hardware.cpu):
        more = {"memory_bytes": round(device.memory_bytes * rng.uniform(1.02, 1.5))}
        check_no_worse(plan_of(with_devices(instance, {device.name: more}), **options), before)


@pytest.mark.parametrize("seed", range(4))
def test_a_faster_link_never_hurts(seed: int) -> None:
    """One of them, which tells equal cards apart, or all."""
    instance, options, rng = instance_of(seed), options_of(seed), random.Random(seed)
    before, links = usual_plan(seed), instance.hardware.links
    quicker = [k.replace(bandwidth_bytes_per_s=2 * k.bandwidth_bytes_per_s, latency_s=k.latency_s / 3) for k in links]
    one = rng.randrange(len(links))
    for changed in (quicker, [*links[:one], quicker[one], *links[one + 1 :]]):
        hardware = instance.hardware.replace(links=tuple(changed))
        check_no_worse(plan_of(replace(instance, hardware=hardware), **options), before)


@pytest.mark.parametrize("seed", range(4))
def test_an_order_of_devices_only_costs(seed: int) -> None:
    instance, options = instance_of(seed), options_of(seed)
    free = usual_plan(seed)
    for pins in ({"cuda:0": "last"}, {"cpu": "first", "cuda:1": "last"}):
        check_no_worse(free, plan_of(instance, pins=pins, **options))


# ---- the same said in another way ----


@pytest.mark.parametrize("seed", range(4))
def test_the_order_in_which_equal_cards_are_named_changes_nothing(seed: int) -> None:
    instance, options, rng = instance_of(seed), options_of(seed), random.Random(seed)
    hardware = instance.hardware
    names = [gpu.name for gpu in hardware.gpus]
    new = dict(zip(names, rng.sample(names, len(names)), strict=True)) | {"cpu": "cpu"}
    renamed = hardware.replace(
        devices=tuple(d.replace(name=new[d.name]) for d in rng.sample(hardware.devices, len(hardware.devices))),
        links=tuple(k.replace(between=(new[k.between[0]], new[k.between[1]])) for k in hardware.links),
    )
    plans = [usual_plan(seed), plan_of(replace(instance, hardware=renamed), **options)]
    if any(plan is not None and plan.status == "feasible" for plan in plans):
        check_no_worse(*plans)
        check_no_worse(*plans[::-1])
    else:
        assert seconds(plans[0]) == pytest.approx(seconds(plans[1]), rel=ROUNDING)


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_decides_the_plan_and_no_seed_how_good_it_is(seed: int) -> None:
    instance, options = instance_of(seed), options_of(seed)
    plans = [plan_of(instance, seed=n, **options) for n in (0, 5, 5)]
    bare = [None if plan is None else plan.replace(solve_s=None) for plan in plans]
    assert bare[1] == bare[2]
    check_no_worse(plans[0], plans[1])
    check_no_worse(plans[1], plans[0])


SAME = """
import json
from test_solver_relations import instance_of, options_of, plan_of
plans = [plan_of(instance_of(seed), **options_of(seed)) for seed in range(3)]
print(json.dumps([None if plan is None else plan.replace(solve_s=None).to_json() for plan in plans]))
"""


def test_another_process_finds_the_same_plans() -> None:
    """Whatever order its sets and dicts of names come in."""
    answers = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            [sys.executable, "-c", SAME], env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        answers.append(json.loads(done.stdout))
    assert answers[0] == answers[1]
    assert any(answers[0])


def test_these_instances_are_no_easy_ones() -> None:
    """Cards that hold a part of the model only, several kinds of layers, and not all out of reach."""
    found = [usual_plan(seed) for seed in range(8)]
    plans = [plan for plan in found if plan is not None]
    assert len(plans) >= 6
    assert sum("cpu" in {layer.experts_device for layer in plan.layers} for plan in plans) >= 4
