"""What engines are known for: every figure has a source, and each does what it says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models import CostModel, Step
from cost_models.engine_notes import engine_notes
from cost_models.engines import Engine, engine_of, engines
from cost_models.roofline import Work, cache_s, flops_per_s, read_bytes_per_s, roofline_s, unpacked_per_s
from cost_models.targets import TARGETS
from profiles import Device, TargetError, load_hardware, load_profile
from profiles.hardware import Calibration

LLAMA, IK, KT, TORCH = map(engine_of, ("llama.cpp", "ik_llama.cpp", "ktransformers", "torch"))


def cpu(**changes: Any) -> Device:
    given = {"memory_bytes": 10**12, "bandwidth_bytes_per_s": 300e9, "flops_per_s": {"bf16": 4e12}, **changes}
    return Device(name="cpu", kind="cpu", **given)


def gpu(**changes: Any) -> Device:
    given = {"memory_bytes": 10**11, "bandwidth_bytes_per_s": 1e12, "flops_per_s": {"bf16": 1e14}, **changes}
    return Device(name="cuda:0", kind="gpu", **given)


def figures(engine: Engine) -> list[str]:
    """Every figure of an engine, by its path."""

    def walk(value: Any, path: str) -> list[str]:
        if isinstance(value, dict):
            return [found for key, inner in value.items() for found in walk(inner, f"{path}.{key}".lstrip("."))]
        return [] if value is None else [path]

    return walk(engine.model_dump(exclude={"name", "sources"}, exclude_defaults=True), "")


@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
def test_every_figure_has_a_source(engine: Engine) -> None:
    for path in figures(engine):
        assert any(path == known or path.startswith(f"{known}.") for known in engine.sources), path


def test_every_target_has_an_engine() -> None:
    assert {target: engine_of(target).name for target in TARGETS} == engines().targets
    with pytest.raises(TargetError, match="engine: 'vllm' is not known; use one of torch, accelerate"):
        engine_of("vllm")


def test_a_cpu_reads_less_of_more() -> None:
    habits = LLAMA.cpu
    knee, exponent = habits.knee_bytes_per_s, habits.bandwidth_exponent
    assert knee is not None
    below, above = cpu(bandwidth_bytes_per_s=knee / 2), cpu(bandwidth_bytes_per_s=knee * 4)
    assert read_bytes_per_s(below, habits) == pytest.approx(habits.bandwidth_efficiency * knee / 2)
    assert read_bytes_per_s(above, habits) == pytest.approx(habits.bandwidth_efficiency * knee * 4**exponent)
    two = cpu(bandwidth_bytes_per_s=2 * knee, sockets=2)
    assert read_bytes_per_s(two, habits) == pytest.approx(
        habits.bandwidth_efficiency * knee * 2**habits.sockets_exponent
    )
    assert read_bytes_per_s(cpu(bandwidth_efficiency=0.5), habits) == 150e9


def test_products_of_a_cpu_go_with_cores_and_clock() -> None:
    habits = LLAMA.cpu
    assert habits.flops_per_cycle is not None
    assert flops_per_s(cpu(cores=32, clock_hz=2e9), habits) == pytest.approx(32 * 2e9 * habits.flops_per_cycle)
    assert flops_per_s(cpu(cores=64, clock_hz=2e9), habits) == pytest.approx(
        32 * 2**habits.cores_exponent * 2e9 * habits.flops_per_cycle
    )
    assert flops_per_s(cpu(cores=32), habits) == flops_per_s(cpu(cores=32, clock_hz=3e9), habits)
    assert flops_per_s(cpu(), habits) == 4e12 * habits.flops_efficiency
    assert flops_per_s(cpu(cores=8, flops_efficiency=0.5), habits) == 2e12


def test_products_of_a_gpu_go_with_its_family() -> None:
    plain = flops_per_s(gpu(model="A100-80GB"), LLAMA.gpu)
    assert plain == pytest.approx(1e14 * LLAMA.gpu.flops_efficiency)
    assert flops_per_s(gpu(model="RTX4090"), LLAMA.gpu) > plain > flops_per_s(gpu(model="RTX-PRO-6000"), LLAMA.gpu)
    assert flops_per_s(gpu(model="RTXA6000"), LLAMA.gpu) == plain
    assert flops_per_s(gpu(model="RTX4090"), LLAMA.gpu) > flops_per_s(gpu(model="RTX5090"), LLAMA.gpu)


def test_few_bits_take_long_to_unpack() -> None:
    for rule in LLAMA.cpu.unpacking:
        assert unpacked_per_s(cpu(cores=10), LLAMA.cpu, rule.below_bits) > unpacked_per_s(
            cpu(cores=10), LLAMA.cpu, rule.below_bits - 0.1
        )
    assert unpacked_per_s(cpu(cores=10), LLAMA.cpu, 4.5) == float("inf")
    assert unpacked_per_s(cpu(), LLAMA.cpu, 1.5) == float("inf")
    work = Work("experts", 1e6, params=1e9, bits=1.6)
    assert roofline_s(cpu(cores=8), LLAMA.cpu, work) > 1e9 / (8 * 1e10)
    assert roofline_s(gpu(), LLAMA.gpu, work) < 1e-4


def test_the_cache_of_one_token_is_its_engines() -> None:
    work = Work("attention", 0.0, cache_bytes=1e9, scores=1e10)
    assert LLAMA.gpu.cache_efficiency is not None
    assert IK.gpu.scores_per_s is not None
    assert IK.gpu.latent_scores_per_s is not None
    assert cache_s(gpu(), LLAMA.gpu, work) == pytest.approx(1e9 / (1e12 * LLAMA.gpu.cache_efficiency))
    assert cache_s(gpu(), IK.gpu, work) == pytest.approx(1e10 / IK.gpu.scores_per_s)
    latent = Work("latent", 0.0, cache_bytes=1e9, scores=1e10)
    assert cache_s(gpu(), IK.gpu, latent) == pytest.approx(1e10 / IK.gpu.latent_scores_per_s)
    assert cache_s(gpu(), TORCH.gpu, work) == pytest.approx(1e9 / read_bytes_per_s(gpu(), TORCH.gpu))


def test_launches_are_by_kind_and_by_expert() -> None:
    def launch(engine: Engine, kind: Any, experts: int = 0) -> float:
        return roofline_s(gpu(), engine.gpu, Work(kind, 0.0, experts=experts))

    assert launch(IK, "latent") > launch(IK, "attention")
    assert launch(LLAMA, "experts", 128) == launch(LLAMA, "experts")
    each = KT.gpu.launch_s.each_expert
    assert launch(KT, "experts", 160) == pytest.approx(KT.gpu.launch_s.experts + 160 * each)
    assert launch(TORCH, "attention") > 20 * launch(LLAMA, "attention")
    assert roofline_s(gpu(launch_s=1e-6), KT.gpu, Work("experts", 0.0, experts=160)) == 1e-6


@pytest.mark.parametrize("habit", ["launch", "bandwidth", "cache", "flops"])
def test_calibration_scales_what_it_says(habit: str) -> None:
    alone = {
        "launch": Work("attention", 0.0),
        "bandwidth": Work("attention", 1e12),
        "cache": Work("attention", 0.0, cache_bytes=1e12),
        "flops": Work("attention", 0.0, flops=1e16),
    }
    tuned = gpu(calibration=Calibration(**{habit: 2.0}))
    for name, work in alone.items():
        launch = roofline_s(gpu(), LLAMA.gpu, alone["launch"])
        before, after = (roofline_s(device, LLAMA.gpu, work) for device in (gpu(), tuned))
        if name != habit:
            assert after - before == pytest.approx(launch if habit == "launch" else 0.0, rel=1e-9)
        elif habit == "launch":
            assert after == pytest.approx(2 * before)
        else:
            assert after - launch == pytest.approx((before - launch) / 2)


def test_prompts_copy_experts_by_the_engines_rule() -> None:
    model = load_profile("qwen3-30b-a3b", "q4_k_m")  # 8 of 128 experts
    xeon = load_hardware("1xRTX4090,cpu=Xeon-Platinum-8358,ram=128GB")
    epyc = load_hardware("1xRTX4090,cpu=EPYC-9654,ram=128GB")

    def copies(engine: str, tokens: int) -> bool:
        costs = CostModel(model, epyc, target="llama.cpp", engine=engine)
        return costs.copies_experts(0, "cuda:0", "cpu", Step(tokens, 0))

    assert [copies("llama.cpp", n) for n in (31, 32)] == [False, True]
    assert [copies("ik_llama.cpp", n) for n in (511, 512)] == [False, True]
    assert not copies("ktransformers", 4096)
    costs = CostModel(model, epyc, target="llama.cpp")
    assert not costs.copies_experts(0, "cuda:0", "cuda:0", Step(512, 0))
    assert not costs.copies_experts(0, "cpu", "cpu", Step(512, 0))
    limits = LLAMA.copies
    assert limits is not None
    assert limits.most_bytes_per_s is not None
    slow = CostModel(model, xeon, target="llama.cpp").copied_s("cpu", "cuda:0", 10**10)
    assert costs.copied_s("cpu", "cuda:0", 10**10) == pytest.approx(10**10 / limits.most_bytes_per_s, rel=1e-3)
    assert slow == pytest.approx(10**10 / limits.hosts[0].value, rel=1e-3)


@given(st.floats(5e9, 2e12), st.floats(1.01, 4.0), st.integers(1, 128), st.sampled_from(engines().engines))
def test_more_is_never_slower(bandwidth: float, more: float, cores: int, engine: Engine) -> None:
    work = Work("experts", 1e9, 1e6, 1e12, 0.0, 1e9, 2.5, 8)
    slow = cpu(bandwidth_bytes_per_s=bandwidth, cores=cores, clock_hz=2e9)
    before = roofline_s(slow, engine.cpu, work)
    for better in (
        slow.replace(bandwidth_bytes_per_s=bandwidth * more),
        slow.replace(cores=cores + 1),
        slow.replace(clock_hz=2e9 * more),
    ):
        assert roofline_s(better, engine.cpu, work) <= before * (1 + 1e-12)


def test_the_engine_is_named_where_it_decides() -> None:
    model = load_profile("deepseek-v2", "q4_k_m")
    machine = load_hardware("1xRTX4090,cpu=EPYC-9654")
    (note,) = engine_notes(CostModel(model, machine, target="ktransformers"))
    assert note.startswith("ktransformers: experts of a layer take")
    for target in ("llama.cpp", "sglang-kt"):
        assert engine_notes(CostModel(model, machine, target=target)) == ()
    assert engine_notes(CostModel(load_profile("llama-3.1-8b"), machine, target="ktransformers")) == ()
    assert engine_notes(CostModel(model, load_hardware("cpu=EPYC-9654"), target="ktransformers")) == ()
