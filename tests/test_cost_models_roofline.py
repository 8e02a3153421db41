"""Seconds of one block: the roofline, and measured times where there are some."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models import CostModel, Step
from cost_models.engines import Engine, engine_of
from cost_models.roofline import Work, measured_or, peak_flops_per_s, roofline_s
from profiles import Block, Device, Hardware, Link, ModelProfile, Workload


def device(name: str = "cuda:0", **changes: Any) -> Device:
    given: dict[str, Any] = {
        "memory_bytes": 10**11,
        "bandwidth_bytes_per_s": 1e12,
        "flops_per_s": {"bf16": 1e14},
        **changes,
    }
    return Device(name=name, kind="cpu" if name == "cpu" else "gpu", **given)


LLAMA = engine_of("llama.cpp")


def seconds(place: Device, n_bytes: float, flops: float, engine: Engine = LLAMA, **more: Any) -> float:
    habits = engine.cpu if place.kind == "cpu" else engine.gpu
    return roofline_s(place, habits, Work("experts", n_bytes, flops=flops, **more))


def test_the_slower_of_reading_and_computing_after_the_launch() -> None:
    gpu = device(launch_s=1e-5, bandwidth_efficiency=0.5, flops_efficiency=0.25)
    assert seconds(gpu, 1e9, 0) == pytest.approx(1e-5 + 2e-3, rel=1e-12)
    assert seconds(gpu, 0, 1e12) == pytest.approx(1e-5 + 0.04, rel=1e-12)
    assert seconds(gpu, 1e9, 1e12) == pytest.approx(1e-5 + 0.04, rel=1e-12)
    assert seconds(gpu, 0, 0) == 1e-5
    assert seconds(gpu.replace(launch_s=0.0), 0, 0) == 0.0


def test_what_a_device_leaves_out_is_its_engines() -> None:
    gpu, cpu = LLAMA.gpu, LLAMA.cpu
    launch = gpu.launch_s.experts
    assert seconds(device(), 1e9, 0) == pytest.approx(launch + 1e9 / (1e12 * gpu.bandwidth_efficiency), rel=1e-12)
    assert seconds(device(), 0, 1e14) == pytest.approx(launch + 1 / gpu.flops_efficiency, rel=1e-12)
    assert cpu.knee_bytes_per_s is not None
    below = cpu.knee_bytes_per_s / 2
    read_s = 1e9 / (below * cpu.bandwidth_efficiency)
    slow = device("cpu", bandwidth_bytes_per_s=below)
    assert seconds(slow, 1e9, 0) == pytest.approx(cpu.launch_s.experts + read_s, rel=1e-12)
    assert seconds(slow, 0, 1e15) == pytest.approx(cpu.launch_s.experts + 10 / cpu.flops_efficiency, rel=1e-12)


@pytest.mark.parametrize(
    ("flops", "peak"),
    [
        ({"bf16": 1e12, "fp16": 2e12, "fp8": 9e12}, 1e12),
        ({"fp16": 2e12, "fp32": 1e12, "fp8": 9e12}, 2e12),
        ({"fp32": 1e12, "int8": 9e12}, 1e12),
        ({"int8": 9e12, "int4": 18e12}, 18e12),
    ],
)
def test_the_peak_of_16_bit_products(flops: dict[str, float], peak: float) -> None:
    assert peak_flops_per_s(device(flops_per_s=flops)) == peak


def linear(tokens: int) -> float:
    return 1.0 + tokens


def measured(points: dict[str, dict[int, float]], tokens: int, **changes: Any) -> float:
    block = Block(weight_bytes=1, measured_seconds=points)
    return measured_or(block, device(**changes), tokens, linear)


def test_a_measured_time_beats_the_formula() -> None:
    assert measured({"gpu": {1: 0.5}}, 1) == 0.5
    assert measured({"cpu": {1: 0.5}}, 1) == linear(1)
    assert measured_or(Block(weight_bytes=1), device(), 7, linear) == linear(7)


def test_the_device_then_its_model_then_its_kind() -> None:
    points = {"gpu": {1: 0.1}, "L40": {1: 0.2}, "cuda:0": {1: 0.3}}
    assert measured(points, 1, model="L40") == 0.3
    assert measured({k: v for k, v in points.items() if k != "cuda:0"}, 1, model="L40") == 0.2
    assert measured(points, 1, name="cuda:1", model="L40") == 0.2
    assert measured(points, 1, name="cuda:1", model="A10") == 0.1
    assert measured(points, 1, name="cuda:1") == 0.1


def test_linear_between_measured_counts() -> None:
    points = {"gpu": {10: 1.0, 20: 2.0, 40: 8.0}}
    assert measured(points, 10) == 1.0
    assert measured(points, 15) == pytest.approx(1.5, rel=1e-12)
    assert measured(points, 20) == 2.0
    assert measured(points, 35) == pytest.approx(6.5, rel=1e-12)


def test_beyond_measured_counts_it_grows_as_the_formula_does() -> None:
    points = {"gpu": {10: 1.0, 20: 2.0}}
    assert measured(points, 1) == pytest.approx(1.0 * linear(1) / linear(10), rel=1e-12)
    assert measured(points, 500) == pytest.approx(2.0 * linear(500) / linear(20), rel=1e-12)


def test_a_formula_of_nothing_does_not_scale() -> None:
    """Weights of no bytes on a device without launch cost: 0 / 0 is no factor."""
    block = Block(weight_bytes=0, measured_seconds={"gpu": {4: 0.5}})
    assert measured_or(block, device(launch_s=0.0), 1, lambda _: 0.0) == 0.5


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.integers(1, 1000), st.floats(1e-6, 1.0), min_size=1, max_size=4), st.integers(1, 2000))
def test_measured_times_stay_between_their_neighbours(points: dict[int, float], tokens: int) -> None:
    found = measured({"gpu": points}, tokens)
    if min(points) <= tokens <= max(points):
        low = max(n for n in points if n <= tokens)
        high = min(n for n in points if n >= tokens)
        between = sorted((points[low], points[high]))
        assert between[0] * (1 - 1e-12) <= found <= between[1] * (1 + 1e-12)
    assert found > 0


# ---- what each kind of block touches and computes ----


def costs(workload: Workload, **attention: Any) -> CostModel:
    profile = ModelProfile(
        model="two layers",
        source="by hand",
        hidden_size=1000,
        activation_bytes=2,
        embedding={"weight_bytes": 10**9, "params": 5 * 10**8},
        head={"weight_bytes": 2 * 10**9, "params": 10**9},
        layers=[
            {"attention": {"weight_bytes": 10**8, **attention}},
            {
                "attention": {"weight_bytes": 10**8, **attention},
                "experts": {"weight_bytes": 8 * 10**9, "params": 4 * 10**9, "count": 8, "active": 2},
            },
        ],
    )
    plain: dict[str, Any] = {"launch_s": 0.0, "bandwidth_efficiency": 1.0, "flops_efficiency": 1.0}
    link = Link(between=("cpu", "cuda:0"), bandwidth_bytes_per_s=1e9, latency_s=1e-3)
    cpu = device("cpu", **plain, bandwidth_bytes_per_s=1e11, sync_s=1e-4)
    return CostModel(profile, Hardware(name="one card", devices=[device(**plain), cpu], links=[link]), workload)


def test_embedding_reads_one_row_a_token() -> None:
    found = costs(Workload(batch_size=3)).block_s("embedding", 0, "cuda:0", Step(10, 5))
    assert found == pytest.approx(3 * 10 * 2000 / 1e12, rel=1e-12)


def test_head_reads_its_weights_for_the_last_token_of_each_sequence() -> None:
    few, many = costs(Workload(batch_size=1)), costs(Workload(batch_size=1000))
    assert few.block_s("head", 0, "cuda:0", Step(512, 0)) == pytest.approx(2e-3, rel=1e-12)
    assert many.block_s("head", 0, "cuda:0", Step(512, 0)) == pytest.approx(2e9 * 1000 / 1e14, rel=1e-12)


def test_attention_reads_its_weights_and_the_cache() -> None:
    plain = costs(Workload(batch_size=4), kv_bytes_per_token=1000, params=1)
    assert plain.block_s("attention", 0, "cuda:0", Step(1, 600.5)) == pytest.approx(
        (10**8 + 4 * 600.5 * 1000) / 1e12, rel=1e-12
    )
    windowed = costs(Workload(batch_size=4), kv_bytes_per_token=1000, kv_window_tokens=100, state_bytes=7, params=1)
    assert windowed.block_s("attention", 0, "cuda:0", Step(1, 600.5)) == pytest.approx(
        (10**8 + 4 * (100 * 1000 + 7)) / 1e12, rel=1e-12
    )


def test_attention_computes_products_and_scores() -> None:
    found = costs(Workload(), params=5 * 10**7, flops_per_token_pair=10**6).block_s(
        "attention", 0, "cuda:0", Step(512, 1024)
    )
    assert found == pytest.approx(512 * (2 * 5e7 + 1e6 * (1024 + 256)) / 1e14, rel=1e-12)
    unknown = costs(Workload()).block_s("attention", 0, "cuda:0", Step(10_000, 0))
    assert unknown == pytest.approx(10_000 * 2 * 5e7 / 1e14, rel=1e-12)  # params from bytes


def test_experts_read_the_distinct_and_compute_the_active() -> None:
    one = costs(Workload()).block_s("experts", 1, "cuda:0", Step(1, 9))
    assert one == pytest.approx(2e9 / 1e12, rel=1e-12)
    many = costs(Workload()).block_s("experts", 1, "cuda:0", Step(10_000, 0))
    assert many == pytest.approx(2 * 1e9 * 10_000 / 1e14, rel=1e-12)
    batch = costs(Workload(batch_size=2)).block_s("experts", 1, "cuda:0", Step(1, 9))
    assert batch == pytest.approx(8e9 * (1 - 0.75**2) / 1e12, rel=1e-12)


def test_handing_over_costs_the_sync_and_both_ways() -> None:
    found = costs(Workload()).experts_from_s(1, "cuda:0", "cpu", Step(1, 0))
    assert found == pytest.approx(1e-4 + 2 * (1e-3 + 2000 / 1e9) + 2e9 / 1e11, rel=1e-12)
    stay = costs(Workload()).experts_from_s(1, "cpu", "cpu", Step(1, 0))
    assert stay == pytest.approx(2e9 / 1e11, rel=1e-12)


@pytest.mark.parametrize(
    ("prompt", "chunk", "expected"),
    [
        (512, 512, [(512, 0)]),
        (1000, 512, [(512, 0), (488, 512)]),
        (1024, 512, [(512, 0), (512, 512)]),
        (10, 512, [(10, 0)]),
        (3, 1, [(1, 0), (1, 1), (1, 2)]),
    ],
)
def test_the_prompt_in_chunks(prompt: int, chunk: int, expected: list[tuple[int, int]]) -> None:
    model = costs(Workload(prompt_tokens=prompt, generated_tokens=100, prefill_chunk=chunk))
    assert [(step.tokens, step.context) for step in model.prefill_steps()] == expected
    assert (model.decode_step().tokens, model.decode_step().context) == (1, prompt + 50)


def test_equal_layers_are_one_class() -> None:
    model = costs(Workload())
    assert model.layer_class == (0, 1)
    again = model.profile.replace(layers=(*model.profile.layers, *model.profile.layers))
    assert CostModel(again, model.hardware).layer_class == (0, 1, 0, 1)
