"""The judge against a second opinion, and what it refuses to judge."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import OBJECTIVES, BruteForce, Oracle
from strategies import Instance, instances, random_instance, random_placement

from cost_models import CostModel
from profiles import LayerPlacement, MoeplanError, Placement
from solver import evaluate
from solver.evaluate import judge


def costs_of(instance: Instance, margin: float = 0.10) -> CostModel:
    return CostModel(instance.profile, instance.hardware, instance.workload, safety_margin=margin)


def oracle_of(instance: Instance, margin: float = 0.10) -> Oracle:
    return Oracle(instance.profile, instance.hardware, instance.workload, margin)


def agree(instance: Instance, placement: Placement, margin: float = 0.10) -> None:
    costs, oracle = costs_of(instance, margin), oracle_of(instance, margin)
    used = oracle.used(placement)
    for objective in OBJECTIVES:
        found = judge(placement, costs, objective)  # type: ignore[arg-type]
        assert found.objective_s == pytest.approx(oracle.objective(placement, objective), rel=1e-9, abs=0)
        assert {name: held.used_bytes for name, held in found.memory.items()} == used
        assert {name: held.usable_bytes for name, held in found.memory.items()} == {
            name: oracle.usable(name) for name in used
        }
        assert found.feasible == oracle.fits(placement)
        assert found.short_bytes == {n: used[n] - oracle.usable(n) for n in used if used[n] > oracle.usable(n)}
    assert found.prediction.prefill_s == pytest.approx(oracle.prefill(placement), rel=1e-9, abs=0)
    assert found.prediction.decode_step_s == pytest.approx(oracle.decode_step(placement), rel=1e-9, abs=0)
    assert found.prediction.tokens_per_s == pytest.approx(
        instance.workload.batch_size / oracle.decode_step(placement), rel=1e-9
    )


@pytest.mark.parametrize("seed", range(300))
def test_judge_agrees_with_the_oracle(seed: int) -> None:
    rng = random.Random(seed)
    instance = random_instance(rng)
    for _ in range(2):
        agree(instance, random_placement(rng, instance), rng.choice((0.0, 0.10, 0.07)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(instances, st.randoms(use_true_random=False))
def test_judge_agrees_on_drawn_instances(instance: Instance, rng: random.Random) -> None:
    agree(instance, random_placement(rng, instance))


@pytest.mark.parametrize("seed", range(40))
def test_the_tables_of_brute_force_agree_with_the_oracle(seed: int) -> None:
    """Brute force adds up tables; on its own best placement the direct walk must give the same."""
    rng = random.Random(1000 + seed)
    instance = random_instance(rng, layers=(2, 2), gpus=(1, 2))
    oracle = oracle_of(instance)
    for objective in OBJECTIVES:
        found = BruteForce(oracle, objective, experts_with_attention=seed % 2 == 0).best()
        if found is not None:
            placement = found[1].placement(oracle.names)
            assert oracle.fits(placement)
            assert oracle.objective(placement, objective) == pytest.approx(found[0], rel=1e-9, abs=0)


@pytest.mark.parametrize("seed", range(60))
def test_all_ids_on_one_device_are_all(seed: int) -> None:
    rng = random.Random(2000 + seed)
    instance = random_instance(rng)
    placement = random_placement(rng, instance)
    listed = placement.replace(
        layers=tuple(
            LayerPlacement(
                attention=placed.attention,
                experts={d: tuple(range(layer.experts.count)) for d in placed.experts} if layer.experts else {},
            )
            for placed, layer in zip(placement.layers, instance.profile.layers, strict=True)
        )
    )
    costs = costs_of(instance)
    for objective in OBJECTIVES:
        whole, split = (judge(p, costs, objective) for p in (placement, listed))  # type: ignore[arg-type]
        assert split.memory == whole.memory
        assert split.objective_s == pytest.approx(whole.objective_s, rel=1e-9, abs=0)


@pytest.mark.parametrize("seed", range(100))
def test_split_placements(seed: int) -> None:
    """Bytes of the parts add up, and a split layer is no slower than its parts one after the other would be."""
    rng = random.Random(3000 + seed)
    instance = random_instance(rng)
    placement = random_placement(rng, instance, split=True)
    costs, oracle = costs_of(instance), oracle_of(instance)
    found = judge(placement, costs)
    bare = placement.replace(
        layers=tuple(LayerPlacement(attention=layer.attention, experts={}) for layer in placement.layers)
    )
    stays = dict.fromkeys(oracle.names, 0)
    for part, layer, name in oracle.places(bare):
        stays[name] += oracle.block(part, layer).weight_bytes.on(instance.hardware.device(name).kind)
    if placement.embedding == placement.head:
        stays[placement.head] -= instance.profile.tied_bytes
    for i, layer in enumerate(placement.layers):
        experts = instance.profile.layers[i].experts
        if experts is None:
            continue
        for name, ids in layer.experts.items():
            stored = experts.weight_bytes.on(instance.hardware.device(name).kind)
            share = Fraction(experts.count if ids == "all" else len(ids), experts.count)
            if ids != "all" and experts.expert_weight_bytes is not None:
                share = Fraction(sum(experts.expert_weight_bytes[e] for e in ids), experts.weight_bytes.gpu)
            part = costs.expert_bytes(experts, name, range(experts.count) if ids == "all" else ids)
            assert part == math.ceil(share * stored)
            stays[name] += part
    assert {name: held.weights_bytes for name, held in found.memory.items()} == stays
    for i, layer in enumerate(placement.layers):
        if len(layer.experts) != 2:
            continue
        parts = {name: ids for name, ids in layer.experts.items() if ids != "all"}
        step = costs.decode_step()
        seconds = costs.split_experts_s(i, layer.attention, parts, step)
        slowest = sum(costs.experts_from_s(i, layer.attention, name, step) for name in parts)
        assert 0 < seconds <= slowest * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_throughput_counts_the_work_of_each_part_of_a_split(seed: int) -> None:
    """A device is busy with its part for the mean, over all sets of experts a token may use, of what is hit there."""
    rng = random.Random(4000 + seed)
    instance = single_token(random_instance(rng))
    placement = random_placement(rng, instance, split=True)
    oracle = oracle_of(instance)
    whole = placement.replace(
        layers=tuple(
            layer if len(layer.experts) < 2 else LayerPlacement(attention=layer.attention, experts={})
            for layer in placement.layers
        )
    )
    busy = dict.fromkeys(oracle.names, 0.0)
    for part, i, name in oracle.places(whole):
        busy[name] += oracle.seconds(part, i, name, 1, oracle.mean_context if part == "attention" else 0.0)
    for i, layer in enumerate(placement.layers):
        for name, ids in layer.experts.items() if len(layer.experts) == 2 else ():
            assert ids != "all"
            busy[name] += oracle.mean_of_slowest(i, name, {name: ids})
    found = judge(placement, costs_of(instance), "throughput")
    assert found.objective_s == pytest.approx(max(busy.values()), rel=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_one_token_through_a_split_layer(seed: int) -> None:
    """X of a split layer, by going through every set of experts that the token may use."""
    rng = random.Random(5000 + seed)
    instance = single_token(random_instance(rng))
    placement = random_placement(rng, instance, split=True)
    costs, oracle = costs_of(instance), oracle_of(instance)
    for i, layer in enumerate(placement.layers):
        if len(layer.experts) == 2:
            parts = {name: ids for name, ids in layer.experts.items() if ids != "all"}
            expected = oracle.mean_of_slowest(i, layer.attention, parts)
            found = costs.split_experts_s(i, layer.attention, parts, costs.decode_step())
            assert found == pytest.approx(expected, rel=1e-9)


def single_token(instance: Instance) -> Instance:
    """One sequence, experts equally likely and not measured: where one token's hits can be counted out."""
    layers = [
        layer
        if layer.experts is None
        else layer.replace(experts=layer.experts.replace(frequencies=None, measured_seconds=None))
        for layer in instance.profile.layers
    ]
    return Instance(
        instance.profile.replace(layers=tuple(layers)), instance.hardware, instance.workload.replace(batch_size=1)
    )


def test_a_plan_says_what_evaluate_needs() -> None:
    instance = random_instance(random.Random(1), loose=True)
    placement = random_placement(random.Random(1), instance)
    with pytest.raises(MoeplanError, match="names no model"):
        evaluate(placement)
    with pytest.raises(MoeplanError, match="names no hardware"):
        evaluate(placement, instance.profile)
    found = evaluate(placement.replace(workload=instance.workload), instance.profile, instance.hardware)
    assert found == judge(placement, costs_of(instance))
    found = evaluate(
        placement.replace(objective="decode", safety_margin=0.2), instance.profile, instance.hardware, instance.workload
    )
    assert found == judge(placement, costs_of(instance, 0.2), "decode")
    assert found.objective == "decode"


def test_a_named_plan_is_evaluated_alone() -> None:
    layers = [{"attention": "cuda:0", "experts": {}}, *[{"attention": "cuda:0", "experts": {"cpu": "all"}}] * 26]
    plan = {
        "model": "deepseek-v2-lite",
        "hardware": "1xRTX4090",
        "embedding": "cpu",
        "head": "cuda:0",
        "layers": layers,
    }
    assert evaluate(Placement.from_dict({"schema": 1, **plan})).feasible


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": "one too many"}, "layers: has 3"),
        ({"embedding": "cuda:7"}, "has no cuda:7"),
        ({"layers": "experts of a dense layer"}, "the layer is dense"),
        ({"layers": "no experts"}, "say where they are"),
        ({"layers": "an expert too few"}, "expert 7 of 0 to 7 is missing or unknown"),
        ({"layers": "an expert too many"}, "expert 8 of 0 to 7 is missing or unknown"),
    ],
)
def test_what_describes_another_model_is_refused(change: dict[str, str], said: str) -> None:
    instance = _dense_then_moe()
    dense: dict[str, Any] = {"attention": "cpu", "experts": {}}
    moe: dict[str, Any] = {"attention": "cpu", "experts": {"cpu": "all"}}
    layers = {
        "one too many": [dense, moe, moe],
        "experts of a dense layer": [moe, moe],
        "no experts": [dense, dense],
        "an expert too few": [dense, {"attention": "cpu", "experts": {"cpu": [0, 1, 2], "cuda:0": [3, 4, 5, 6]}}],
        "an expert too many": [dense, {"attention": "cpu", "experts": {"cpu": list(range(9))}}],
    }
    plan: dict[str, Any] = {"model": "a plan", "embedding": "cpu", "head": "cpu", "layers": [dense, moe]}
    plan |= {key: layers.get(value, value) for key, value in change.items()}
    with pytest.raises(MoeplanError) as refused:
        judge(Placement.from_dict({"schema": 1, **plan}), costs_of(instance))
    message = str(refused.value)
    assert message.startswith("a plan: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("bad", [{"objective": "speed"}, {"safety_margin": 1.0}, {"safety_margin": "a lot"}])
def test_bad_options_are_refused_in_one_line(bad: dict[str, Any]) -> None:
    instance = _dense_then_moe()
    placement = random_placement(random.Random(0), instance)
    with pytest.raises(MoeplanError, match=next(iter(bad))) as refused:
        evaluate(placement, instance.profile, instance.hardware, instance.workload, **bad)
    assert "\n" not in str(refused.value)


def _dense_then_moe() -> Instance:
    instance = random_instance(random.Random(5), layers=(2, 2))
    block = {"weight_bytes": 10**9}
    profile = instance.profile.replace(
        layers=[{"attention": block}, {"attention": block, "experts": {**block, "count": 8, "active": 2}}]
    )
    return Instance(profile, instance.hardware, instance.workload)
