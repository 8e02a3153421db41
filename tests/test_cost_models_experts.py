"""Which experts a step touches, and how hits fall on the parts of a split layer."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations, pairwise, product
from typing import Any

import pytest
from hits import split_hits
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle

from cost_models import CostModel, Step
from cost_models.experts import distinct_experts
from cost_models.roofline import read_bytes_per_s
from cost_models.splits import MEANS_FROM_TOKENS, mean_of_slowest
from profiles import Device, Experts, Hardware, Link, ModelProfile, Workload


def experts(count: int, active: int, **changes: Any) -> Experts:
    return Experts(weight_bytes=count * 1000, count=count, active=active, **changes)


# ---- expected distinct experts ----


@pytest.mark.parametrize(
    ("count", "active", "tokens", "expected"),
    [
        (160, 6, 1, 6.0),
        (8, 2, 1, 2.0),
        (8, 8, 5, 8.0),
        (8, 2, 2, 8 * (1 - 0.75**2)),
        (256, 8, 32, 256 * (1 - (1 - 8 / 256) ** 32)),
        (1, 1, 1, 1.0),
    ],
)
def test_closed_forms(count: int, active: int, tokens: int, expected: float) -> None:
    assert distinct_experts(experts(count, active), tokens) == pytest.approx(expected, rel=1e-12)


def test_given_frequencies() -> None:
    skewed = experts(3, 1, frequencies=(0.5, 0.5, 0.0))
    assert distinct_experts(skewed, 2) == pytest.approx(1.5, rel=1e-12)
    assert distinct_experts(skewed, 2, [0]) == pytest.approx(0.75, rel=1e-12)
    assert distinct_experts(skewed, 10**9, [2]) == 0.0
    assert distinct_experts(experts(2, 1, frequencies=(1.0, 0.0)), 7) == 1.0


def test_rare_experts_do_not_vanish_in_rounding() -> None:
    assert distinct_experts(experts(100_000, 1), 1) == pytest.approx(1.0, rel=1e-12)
    tiny = experts(1, 1, frequencies=(1e-18,))
    assert distinct_experts(tiny, 1000) == pytest.approx(1e-15, rel=1e-9)


@pytest.mark.parametrize(("count", "active", "tokens"), [(8, 2, 3), (16, 4, 5), (60, 4, 10)])
def test_distinct_experts_against_drawing(count: int, active: int, tokens: int) -> None:
    """Tokens that draw `active` different experts each: five standard errors of 4000 draws."""
    rng, draws = random.Random(count), []
    for _ in range(4000):
        hit = {i for _ in range(tokens) for i in rng.sample(range(count), active)}
        draws.append(len(hit))
    mean = math.fsum(draws) / len(draws)
    error = math.sqrt(math.fsum((n - mean) ** 2 for n in draws)) / len(draws)
    assert distinct_experts(experts(count, active), tokens) == pytest.approx(mean, abs=5 * error)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 64), st.data())
def test_distinct_experts_add_up_and_grow(count: int, data: st.DataObject) -> None:
    active, tokens = data.draw(st.integers(1, count)), data.draw(st.integers(1, 500))
    some = experts(count, active)
    cut = data.draw(st.integers(0, count))
    parts = [distinct_experts(some, tokens, range(cut)), distinct_experts(some, tokens, range(cut, count))]
    found = distinct_experts(some, tokens)
    assert sum(parts) == pytest.approx(found, rel=1e-12)
    assert active * (1 - 1e-12) <= found <= min(count, active * tokens) * (1 + 1e-12)
    assert distinct_experts(some, tokens + 1) >= found * (1 - 1e-12)


# ---- hits on the parts of a split ----


def counted(count: int, active: int, parts: list[list[int]]) -> dict[tuple[float, ...], float]:
    """The distribution of hits by going through all sets of `active` experts."""
    sets = list(combinations(range(count), active))
    seen = Counter(tuple(float(len(set(used) & set(part))) for part in parts) for used in sets)
    return {hits: n / len(sets) for hits, n in seen.items()}


@pytest.mark.parametrize(
    ("count", "active", "cuts"),
    [(8, 2, (3,)), (8, 3, (1, 4)), (10, 4, (5,)), (6, 6, (2,)), (9, 1, (4,)), (7, 5, (1, 2))],
)
def test_one_token_is_hypergeometric(count: int, active: int, cuts: tuple[int, ...]) -> None:
    edges = [0, *cuts, count]
    parts = [list(range(a, b)) for a, b in pairwise(edges)]
    for some in (parts, parts[:1], parts[1:]):  # parts need not hold all experts
        found = {hits: p for p, hits in split_hits(experts(count, active), some, 1) if p > 0}
        expected = counted(count, active, some)
        assert found.keys() == expected.keys()
        for hits, p in expected.items():
            assert found[hits] == pytest.approx(p, rel=1e-12)


def test_half_of_all_tokens_never_touch_a_tenth_of_the_experts() -> None:
    """16 of 160 experts on the CPU, six a token."""
    parts = [list(range(144)), list(range(144, 160))]
    never = sum(p for p, hits in split_hits(experts(160, 6), parts, 1) if hits[1] == 0)
    assert never == pytest.approx(math.comb(144, 6) / math.comb(160, 6), rel=1e-12)
    assert never == pytest.approx(0.5, abs=0.05)
    mean = sum(p * hits[1] for p, hits in split_hits(experts(160, 6), parts, 1))
    assert mean == pytest.approx(0.6, rel=1e-12)


def test_known_frequencies_are_poisson_binomial() -> None:
    f = (0.9, 0.5, 0.2, 0.4)
    parts = [[0, 2], [1, 3]]
    found = {hits: p for p, hits in split_hits(experts(4, 2, frequencies=f), parts, 1)}
    expected: Counter[tuple[float, ...]] = Counter()
    for used in product((0, 1), repeat=4):
        p = math.prod(f[i] if u else 1 - f[i] for i, u in enumerate(used))
        expected[tuple(float(sum(used[i] for i in part)) for part in parts)] += p
    assert found.keys() == expected.keys()
    for hits, p in expected.items():
        assert found[hits] == pytest.approx(p, rel=1e-12)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 50), st.booleans(), st.data())
def test_hits_are_a_distribution_with_the_right_means(
    count: int, tokens: int, known: bool, data: st.DataObject
) -> None:
    active = data.draw(st.integers(1, count))
    f = data.draw(st.lists(st.floats(0.01, 1.0), min_size=count, max_size=count)) if known else None
    some = experts(count, active, frequencies=f)
    cut = data.draw(st.integers(0, count))
    parts = [part for part in (list(range(cut)), list(range(cut, count))) if part]
    hits = list(split_hits(some, parts, tokens))
    assert math.fsum(p for p, _ in hits) == pytest.approx(1.0, rel=1e-8)
    for k, part in enumerate(parts):
        assert math.fsum(p * h[k] for p, h in hits) == pytest.approx(
            distinct_experts(some, tokens, part), rel=1e-6, abs=1e-9
        )
    assert (len(hits) == 1) or tokens < MEANS_FROM_TOKENS


# ---- seconds of a split layer ----


def machine() -> Hardware:
    def device(name: str, rate: float) -> Device:
        return Device(
            name=name,
            kind="cpu" if name == "cpu" else "gpu",
            memory_bytes=10**12,
            bandwidth_bytes_per_s=rate,
            flops_per_s={"bf16": 1e13},
        )

    links = [Link(between=("cpu", f"cuda:{i}"), bandwidth_bytes_per_s=25e9, latency_s=1e-5) for i in range(2)]
    return Hardware(
        name="a machine", devices=[device("cuda:0", 9e11), device("cuda:1", 4e11), device("cpu", 2e11)], links=links
    )


def costs_of(some: Experts, batch: int = 1) -> tuple[CostModel, Oracle]:
    block = {"weight_bytes": 10**9}
    profile = ModelProfile(
        model="one layer",
        source="by hand",
        hidden_size=5120,
        embedding=block,
        head=block,
        layers=[{"attention": block, "experts": some}],
    )
    workload = Workload(batch_size=batch)
    return CostModel(profile, machine(), workload), Oracle(profile, machine(), workload)


@pytest.mark.parametrize("attention", ["cuda:0", "cuda:1", "cpu"])
@pytest.mark.parametrize(
    "parts",
    [
        {"cuda:0": (0, 1, 2, 3, 4, 5, 6), "cpu": (7, 8)},
        {"cuda:0": (8,), "cuda:1": (0, 1, 2, 3), "cpu": (4, 5, 6, 7)},
        {"cpu": (0,), "cuda:1": (1, 2, 3, 4, 5, 6, 7, 8)},
    ],
)
def test_one_token_pays_the_mean_of_the_slowest_part(attention: str, parts: dict[str, tuple[int, ...]]) -> None:
    some = Experts(weight_bytes={"gpu": 9 * 10**8, "cpu": 18 * 10**8}, count=9, active=3)
    costs, oracle = costs_of(some)
    found = costs.split_experts_s(0, attention, parts, Step(1, 100))
    assert found == pytest.approx(oracle.mean_of_slowest(0, attention, parts), rel=1e-12)


def test_the_mean_of_the_slowest_is_more_than_the_slowest_of_the_means() -> None:
    some = Experts(weight_bytes=160 * 47_000_000, count=160, active=6)
    costs, _ = costs_of(some)
    parts = {"cuda:0": tuple(range(144)), "cpu": tuple(range(144, 160))}
    found = costs.split_experts_s(0, "cuda:0", parts, Step(1, 100))
    on_gpu = costs.experts_from_s(0, "cuda:0", "cuda:0", Step(1, 100))
    on_cpu = costs.experts_from_s(0, "cuda:0", "cpu", Step(1, 100))
    assert on_gpu * 0.9 < found < on_cpu
    cpu = costs.device["cpu"]
    reading = 47_000_000 / read_bytes_per_s(cpu, costs.engine.cpu)
    launch = costs.engine.cpu.launch_s.experts
    one_hit = costs.engine.cpu.sync_s + 2 * (1e-5 + 10240 / 25e9) + launch + reading
    touched = 1 - math.comb(144, 6) / math.comb(160, 6)
    assert found >= touched * one_hit  # whoever touches the CPU pays at least for one expert there


def test_many_tokens_take_the_means() -> None:
    some = Experts(weight_bytes=16 * 10**8, count=16, active=2)
    costs, _ = costs_of(some)
    parts = {"cuda:0": tuple(range(12)), "cpu": tuple(range(12, 16))}
    found = costs.split_experts_s(0, "cuda:0", parts, Step(512, 0))
    flops = 512 * 2 * 2 * (10**8 / 2)
    cpu_bytes = distinct_experts(some, 512, range(12, 16)) * 10**8
    cpu, gpu = costs.engine.cpu, costs.engine.gpu
    cpu_s = (cpu_bytes / read_bytes_per_s(costs.device["cpu"], cpu), flops * 4 / 16 / (1e13 * cpu.flops_efficiency))
    on_cpu = cpu.launch_s.experts + max(cpu_s)
    on_cpu += cpu.sync_s + 2 * (1e-5 + 512 * 5120 * 2 / 25e9)
    gpu_bytes = distinct_experts(some, 512, range(12)) * 10**8
    gpu_s = (gpu_bytes / (9e11 * gpu.bandwidth_efficiency), flops * 12 / 16 / (1e13 * gpu.flops_efficiency))
    on_gpu = gpu.launch_s.experts + max(gpu_s)
    assert found == pytest.approx(max(on_cpu, on_gpu), rel=1e-9)


@pytest.mark.parametrize("tokens", [1, 2, 100, 5000])
@pytest.mark.parametrize("name", ["cuda:0", "cpu"])
def test_a_measured_time_scales_a_part_as_it_does_the_whole(name: str, tokens: int) -> None:
    """Measured three times as slow as the formula at 100 tokens: a part is three times as slow too, at any count."""
    some = Experts(weight_bytes=16 * 10**8, count=16, active=2)
    plain, _ = costs_of(some)
    at_100 = {
        kind: {100: 3 * plain.block_s("experts", 0, d, Step(100, 0))} for kind, d in (("gpu", "cuda:0"), ("cpu", "cpu"))
    }
    slow, _ = costs_of(some.replace(measured_seconds=at_100))
    parts = {name: tuple(range(5))}
    assert slow.block_s("experts", 0, name, Step(tokens, 0)) == pytest.approx(
        3 * plain.block_s("experts", 0, name, Step(tokens, 0)), rel=1e-9
    )
    assert slow.split_experts_s(0, name, parts, Step(tokens, 0)) == pytest.approx(
        3 * plain.split_experts_s(0, name, parts, Step(tokens, 0)), rel=1e-9
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 40), st.booleans(), st.data())
def test_the_mean_of_the_slowest_is_that_over_all_hits(
    count: int, tokens: int, known: bool, data: st.DataObject
) -> None:
    active = data.draw(st.integers(1, min(count, 4)))
    f = data.draw(st.lists(st.floats(0.01, 1.0), min_size=count, max_size=count)) if known else None
    some = experts(count, active, frequencies=f)
    owner = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    parts = [part for k in range(3) if (part := [i for i in range(count) if owner[i] == k])]
    fixed = [data.draw(st.floats(0.0, 5.0)) for _ in parts]
    rate = [data.draw(st.floats(0.0, 2.0)) for _ in parts]

    def seconds(k: int) -> Any:
        return lambda hits: fixed[k] + rate[k] * hits

    found = mean_of_slowest(some, parts, [seconds(k) for k in range(len(parts))], tokens)
    expected = math.fsum(
        p * max((seconds(k)(h) for k, h in enumerate(hits) if h > 0), default=0.0)
        for p, hits in split_hits(some, parts, tokens)
    )
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
