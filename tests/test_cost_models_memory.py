"""Bytes a device may hold, and bytes that blocks put there."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from strategies import random_instance, random_placement

from cost_models import CostModel
from cost_models.memory import context_beyond_margin, kv_bytes, usable_bytes, workspace_bytes
from profiles import (
    Attention,
    Block,
    Device,
    Experts,
    Hardware,
    HardwareError,
    InfeasiblePlacement,
    Link,
    ModelProfile,
    Placement,
    Workload,
    Workspace,
    load_hardware,
)
from solver import solve
from solver.evaluate import judge


def device(name: str = "cuda:0", memory_bytes: int = 46 * 10**9, **changes: Any) -> Device:
    kind = "cpu" if name == "cpu" else "gpu"
    flops = {"bf16": 1e12}
    return Device(
        name=name, kind=kind, memory_bytes=memory_bytes, bandwidth_bytes_per_s=1e11, flops_per_s=flops, **changes
    )


def one_card(**changes: Any) -> Hardware:
    link = Link(between=("cpu", "cuda:0"), bandwidth_bytes_per_s=25e9, latency_s=1e-5)
    return Hardware(name="one card", devices=[device(**changes), device("cpu", 10**12)], links=[link])


def model(layers: list[dict[str, Any]], **changes: Any) -> ModelProfile:
    nothing = {"weight_bytes": 0, "workspace_bytes": 0}
    given: dict[str, Any] = {"embedding": nothing, "head": nothing, "hidden_size": 64, **changes}
    return ModelProfile(model="a model", source="by hand", layers=layers, **given)


@pytest.mark.parametrize(
    ("memory", "margin", "usable"),
    [
        (46 * 10**9, 0.10, 41_400_000_000),
        (24564 * 2**20, 0.10, 23_181_498_777),
        (10, 0.05, 9),
        (46 * 10**9, 0.30, 32_200_000_000),
        (1000, 0.07, 930),
        (100, 0.0, 100),
        (1, 0.10, 0),
        (3 * 10**12 + 1, 0.07, 2_790_000_000_000),
    ],
)
def test_usable_is_an_exact_floor(memory: int, margin: float, usable: int) -> None:
    """In floats the floor of 1000 * (1 - 0.07) is 929."""
    assert usable_bytes(device(memory_bytes=memory), margin) == usable


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 10**13), st.integers(0, 99), st.integers(0, 10**12))
def test_usable_of_any_percentage(memory: int, percent: int, reserved: int) -> None:
    found = usable_bytes(device(memory_bytes=memory, reserved_bytes=reserved), percent / 100)
    assert found == max(0, memory * (100 - percent) // 100 - reserved)


def test_whose_margin_holds() -> None:
    gpu, cpu = device(memory_bytes=1000), device("cpu", 1000)
    assert usable_bytes(gpu, 0.2) == 800
    assert usable_bytes(cpu, 0.2) == 950  # the given margin is for GPUs
    assert usable_bytes(device("cpu", 1000, safety_margin=0.5), 0.2) == 500
    assert usable_bytes(device(memory_bytes=1000, safety_margin=0.0), 0.2) == 1000
    assert usable_bytes(device(memory_bytes=1000, reserved_bytes=50), 0.2) == 750
    assert usable_bytes(device(memory_bytes=1000, reserved_bytes=900), 0.2) == 0


# ---- absolute budgets ----


def test_a_budget_is_what_may_be_used_whatever_else_is_set() -> None:
    budget = device(memory_bytes=1000, budget_bytes=400, reserved_bytes=700, safety_margin=0.5)
    assert usable_bytes(budget, 0.2) == 400
    assert usable_bytes(device("cpu", 1000, budget_bytes=1000), 0.2) == 1000
    assert usable_bytes(device(budget_bytes=0), 0.0) == 0


@pytest.mark.parametrize(
    ("budget", "context", "margin", "beyond"),
    [(900, 100, 0.5, 100), (900, None, 0.0, 0), (None, 100, 0.5, 0), (None, 100, 0.04, 60)],
)
def test_under_a_budget_the_whole_context_counts(
    budget: int | None, context: int | None, margin: float, beyond: int
) -> None:
    gpu = device(memory_bytes=1000, budget_bytes=budget, context_bytes=context)
    assert context_beyond_margin(gpu, margin) == beyond


def test_a_budget_has_units_and_a_canonical_form() -> None:
    written = {
        "name": "a box",
        "devices": [
            {"use": "L40", "repeat": 2, "budget_bytes": "20 GB"},
            {"use": "EPYC-9654", "memory_bytes": "64 GiB"},
        ],
    }
    machine = load_hardware(written)
    assert [d.budget_bytes for d in machine.devices] == [20 * 10**9, 20 * 10**9, None]
    canonical = machine.to_dict()
    assert [d.get("budget_bytes") for d in canonical["devices"]] == [20 * 10**9, 20 * 10**9, None]
    assert Hardware.from_dict(canonical) == load_hardware(canonical) == machine


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("20 TB", "hardware: devices[0].budget_bytes 20000000000000 is more than memory_bytes 46000000000; lower it"),
        (46 * 10**9 + 1, "budget_bytes 46000000001 is more than memory_bytes 46000000000; lower it"),
        (-1, "devices[0].budget_bytes: must not be negative"),
        ("20 Gb", "devices[0].budget_bytes: '20 Gb' is not a quantity"),
        ([1], "devices[0].budget_bytes: expected a number"),
    ],
    ids=str,
)
def test_bad_budgets_are_one_line(budget: Any, said: str) -> None:
    items = [
        {"use": "L40", "memory_bytes": "46 GB", "budget_bytes": budget},
        {"use": "EPYC-9654", "memory_bytes": 10**11},
    ]
    with pytest.raises(HardwareError) as refused:
        load_hardware({"name": "a box", "devices": items})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_less_memory_than_the_budget_is_refused() -> None:
    with pytest.raises(HardwareError, match="budget_bytes 20 is more than memory_bytes 10; lower it"):
        device(memory_bytes=30, budget_bytes=20).replace(memory_bytes=10)


def test_a_phrase_gives_every_gpu_the_same_budget() -> None:
    machine = load_hardware("2xL40-46GB+1xRTX4090,budget=20GB,ram=64GB")
    assert [d.budget_bytes for d in machine.devices] == [20 * 10**9] * 3 + [None]
    assert any("budget: 20.00 GB of each GPU" in note for note in machine.notes)
    assert load_hardware(machine.name) == machine


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        (
            "2xL40-46GB+1xRTX4090,budget=30GB",
            "budget of 30000000000 bytes is too much, RTX4090 has 25757220864; lower it",
        ),
        ("cpu=EPYC-9654,budget=30GB", "budget is for GPUs and there are none; leave it out"),
        ("8xL40,budget=much", "budget 'much' is not a size; write e.g. 512GB"),
        ("8xL40,budget=0GB", "budget '0GB' is not between 1 byte and 1000 TB"),
        ("8xL40,budget=", "key 'budget' has no value"),
    ],
)
def test_bad_budgets_in_phrases_are_one_line(phrase: str, said: str) -> None:
    with pytest.raises(HardwareError) as refused:
        load_hardware(phrase)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_plans_stay_within_budgets() -> None:
    """Against the oracle, on random models: some devices get a budget between nothing and all that they have."""
    fits, verdicts = 0, set()
    for seed in range(60):
        rng = random.Random(seed)
        instance = random_instance(rng, layers=(2, 4), gpus=(1, 2))
        devices = tuple(
            d.replace(budget_bytes=round(d.memory_bytes * rng.random())) if rng.random() < 0.7 else d
            for d in instance.hardware.devices
        )
        hardware = instance.hardware.replace(devices=devices)
        costs = CostModel(instance.profile, hardware, instance.workload)
        oracle = Oracle(instance.profile, hardware, instance.workload)
        for d in devices:
            assert costs.usable_bytes(d.name) == oracle.usable(d.name)
        for _ in range(10):
            placement = random_placement(rng, instance)
            verdicts.add(judge(placement, costs).feasible)
            assert judge(placement, costs).feasible == oracle.fits(placement)
        try:
            plan = solve(instance.profile, hardware, instance.workload, relative_gap=0.5)
        except InfeasiblePlacement:
            continue
        fits += 1
        assert oracle.fits(plan)
    assert verdicts == {True, False}
    assert 10 < fits < 60


# ---- cache, workspace, weights ----


@pytest.mark.parametrize(
    ("attention", "workload", "expected"),
    [
        ({"kv_bytes_per_token": 1152}, {}, 640 * 1152),
        ({"kv_bytes_per_token": 1152}, {"batch_size": 4, "context_tokens": 4096}, 4 * 4096 * 1152),
        ({"kv_bytes_per_token": 10, "kv_window_tokens": 128}, {"batch_size": 2}, 2 * 512 * 10),  # one chunk, kept whole
        ({"kv_bytes_per_token": 10, "kv_window_tokens": 128}, {"prefill_chunk": 100}, 227 * 10),  # a chunk beside 127
        ({"kv_bytes_per_token": 10, "kv_window_tokens": 600}, {"prefill_chunk": 1}, 600 * 10),  # filled by decoding
        ({"kv_bytes_per_token": 10, "kv_window_tokens": 10**6}, {"batch_size": 2}, 2 * 640 * 10),
        ({"state_bytes": 77}, {"batch_size": 3, "context_tokens": 10**6}, 3 * 77),
        ({"kv_bytes_per_token": 10, "kv_window_tokens": 5, "state_bytes": 7}, {"prefill_chunk": 1}, 57),
        ({}, {}, 0),
    ],
)
def test_kv(attention: dict[str, int], workload: dict[str, int], expected: int) -> None:
    assert kv_bytes(Attention(weight_bytes=1, **attention), Workload(**workload)) == expected


def test_workspace_is_per_sequence_of_the_batch() -> None:
    profile = model([{"attention": {"weight_bytes": 1}}])
    block = Block(weight_bytes=1, workspace_bytes=Workspace(per_token=3, per_context_token=5, per_sequence=7))
    workload = Workload(prompt_tokens=1000, generated_tokens=24, prefill_chunk=100, batch_size=2)
    assert workspace_bytes(block, profile, workload) == 2 * (300 + 5 * 1024 + 7)
    short = Workload(prompt_tokens=10, generated_tokens=1, prefill_chunk=100)
    assert workspace_bytes(block, profile, short) == 300 + 55 + 7  # what a chunk may be, not what it is


def test_of_several_moments_the_largest_counts() -> None:
    profile = model([{"attention": {"weight_bytes": 1}}])
    work = Workload(prompt_tokens=1000, generated_tokens=24, prefill_chunk=100)
    need = Workspace(per_token=10, other_moments=(Workspace(per_token=1, per_token_pair=2, after_first_chunk=True),))
    block = Block(weight_bytes=1, workspace_bytes=need)
    assert workspace_bytes(block, profile, work) == 100 + 2 * 100 * 1024
    whole = work.replace(prefill_chunk=1000)
    assert workspace_bytes(block, profile, whole) == 10 * 1000  # no chunk meets a cache that is not empty
    assert workspace_bytes(block, profile, whole.replace(context_tokens=1025)) == 1000 + 2 * 1000 * 1025


def test_a_window_bounds_what_a_chunk_sees() -> None:
    profile = model([{"attention": {"weight_bytes": 1}}])
    work = Workload(prompt_tokens=1000, generated_tokens=24, prefill_chunk=100)
    need = Workspace(per_context_token=3, per_token_pair=5, per_window_pair=7)
    windowed = Attention(weight_bytes=1, workspace_bytes=need, kv_window_tokens=51)
    assert workspace_bytes(windowed, profile, work) == 3 * 150 + 100 * (5 * 1024 + 7 * 150)
    unbounded = Attention(weight_bytes=1, workspace_bytes=need)
    assert workspace_bytes(unbounded, profile, work) == 3 * 1024 + 100 * 12 * 1024


def test_workspace_is_written_and_read_back() -> None:
    need = Workspace(per_token=1, other_moments=(Workspace(per_token_pair=2, after_first_chunk=True),))
    block = Block(weight_bytes=1, workspace_bytes=need)
    written = block.model_dump(mode="json", exclude_none=True)
    assert written["workspace_bytes"]["other_moments"][0]["per_token_pair"] == 2
    assert "per_token_pair" not in written["workspace_bytes"]
    assert Block(**written) == block


def test_workspace_where_the_profile_gives_none() -> None:
    experts = Experts(weight_bytes=1, count=4, active=2)
    profile = model(
        [{"attention": {"weight_bytes": 1}, "experts": experts}],
        embedding={"weight_bytes": 128_000},
        head={"weight_bytes": 128_000},
    )
    one = Workload(prompt_tokens=1, generated_tokens=0, prefill_chunk=1)
    layer, vector = profile.layers[0], 128
    assert layer.experts is not None
    assert workspace_bytes(profile.embedding, profile, one) == vector
    assert workspace_bytes(layer.attention, profile, one) == 8 * vector
    assert workspace_bytes(layer.experts, profile, one) == 12 * 2 * 64 + 2 * vector
    assert workspace_bytes(profile.head, profile, one) == 2 * vector + 6 * 1000


def test_a_device_needs_its_largest_workspace_once() -> None:
    blocks = [{"weight_bytes": 100, "workspace_bytes": n} for n in (5, 9, 2)]
    profile = model([{"attention": block} for block in blocks])
    costs = CostModel(profile, one_card(), Workload(prompt_tokens=1, generated_tokens=0, prefill_chunk=1))
    layers = [{"attention": "cuda:0"}, {"attention": "cuda:0"}, {"attention": "cpu"}]
    held = judge(Placement(embedding="cpu", head="cpu", layers=layers), costs).memory
    assert (held["cuda:0"].weights_bytes, held["cuda:0"].workspace_bytes) == (200, 9)
    assert (held["cpu"].weights_bytes, held["cpu"].workspace_bytes) == (100, 2)


def test_tied_bytes_are_held_once_where_embedding_and_head_meet() -> None:
    block = {"weight_bytes": 1000, "workspace_bytes": 0}
    profile = model([{"attention": {**block, "weight_bytes": 7}}], embedding=block, head=block, tied_bytes=900)
    costs = CostModel(profile, one_card())

    def weights(embedding: str, head: str) -> tuple[int, int]:
        held = judge(Placement(embedding=embedding, head=head, layers=[{"attention": "cpu"}]), costs).memory
        return held["cuda:0"].weights_bytes, held["cpu"].weights_bytes

    assert weights("cuda:0", "cuda:0") == (1100, 7)
    assert weights("cpu", "cpu") == (0, 1107)
    assert weights("cuda:0", "cpu") == (1000, 1007)


def test_the_same_weights_may_weigh_differently_on_the_cpu() -> None:
    experts = {"weight_bytes": {"gpu": 2000, "cpu": 4000}, "count": 4, "active": 1, "workspace_bytes": 0}
    block = {"weight_bytes": 10, "workspace_bytes": 0}
    costs = CostModel(model([{"attention": block, "experts": experts}]), one_card())

    def weights(parts: dict[str, Any]) -> tuple[int, int]:
        layers = [{"attention": "cpu", "experts": parts}]
        held = judge(Placement(embedding="cpu", head="cpu", layers=layers), costs).memory
        return held["cuda:0"].weights_bytes, held["cpu"].weights_bytes

    assert weights({"cuda:0": "all"}) == (2000, 10)
    assert weights({"cpu": "all"}) == (0, 4010)
    assert weights({"cuda:0": [0, 1, 2], "cpu": [3]}) == (1500, 1010)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_bytes_of_some_experts_round_up_and_never_exceed_all(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 10**10), min_size=1, max_size=6))
    stored = data.draw(st.integers(1, 10**11))
    known = data.draw(st.booleans())
    experts = Experts(
        weight_bytes={"gpu": sum(sizes), "cpu": stored},
        count=len(sizes),
        active=1,
        expert_weight_bytes=sizes if known else None,
    )
    costs = CostModel(model([{"attention": {"weight_bytes": 1}, "experts": experts}]), one_card())
    ids = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True))
    for name, whole in (("cuda:0", sum(sizes)), ("cpu", stored)):
        found = costs.expert_bytes(experts, name, ids)
        if len(ids) == len(sizes):
            assert found == whole
            continue
        share = Fraction(sum(sizes[i] for i in ids), max(1, sum(sizes))) if known else Fraction(len(ids), len(sizes))
        assert 0 <= found - share * whole < 1
        rest = [i for i in range(len(sizes)) if i not in ids]
        if sum(sizes):
            assert whole <= found + costs.expert_bytes(experts, name, rest) <= whole + 1


def test_the_story_eight_layers_overflow_the_card_and_seven_do_not() -> None:
    """8 x 5.2 GB is 41.6 GB; 90 % of a 46 GB card is 41.4 GB."""
    layer = {"attention": {"weight_bytes": "5.2 GB", "workspace_bytes": 0}}
    hardware = load_hardware("1xL40-46GB")

    def on_the_card(n: int) -> Any:
        costs = CostModel(model([layer] * n), hardware)
        return judge(Placement(embedding="cpu", head="cpu", layers=[{"attention": "cuda:0"}] * n), costs)

    eight, seven = on_the_card(8), on_the_card(7)
    assert eight.memory["cuda:0"].usable_bytes == 41_400_000_000
    assert eight.memory["cuda:0"].used_bytes == 41_600_000_000
    assert eight.short_bytes == {"cuda:0": 200_000_000}
    assert not eight.feasible
    assert seven.feasible
    assert seven.memory["cuda:0"].free_bytes == 5_000_000_000
