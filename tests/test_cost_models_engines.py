"""What engines are known for: every figure has a source, and each does what it says."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle
from strategies import Instance, random_instance

from cost_models import CostModel, Step
from cost_models.engine_notes import engine_notes
from cost_models.engines import ByModel, Engine, Habits, by_model, engine_of, engines
from cost_models.ledger import sync_s
from cost_models.roofline import (
    Work,
    cache_s,
    flops_per_s,
    read_bytes_per_s,
    roofline_s,
    unpacked_per_s,
)
from cost_models.targets import TARGETS
from profiles import Device, Experts, TargetError, Workload, load_hardware, load_profile
from profiles.catalogue import catalogue
from profiles.hardware import Calibration

LLAMA, IK, KT, TORCH = map(engine_of, ("llama.cpp", "ik_llama.cpp", "ktransformers", "torch"))


def cpu(**changes: Any) -> Device:
    given = {"memory_bytes": 10**12, "bandwidth_bytes_per_s": 300e9, "flops_per_s": {"bf16": 4e12}, **changes}
    return Device(name="cpu", kind="cpu", **given)


def gpu(**changes: Any) -> Device:
    given = {"memory_bytes": 10**11, "bandwidth_bytes_per_s": 1e12, "flops_per_s": {"bf16": 1e14}, **changes}
    return Device(name="cuda:0", kind="gpu", **given)


def habits(**changes: Any) -> Habits:
    """An engine's that is easy to reckon with."""
    launches = {"attention": 1e-3, "latent": 2e-3, "experts": 3e-3, "each_expert": 1e-4, "ends": 4e-3}
    given = {"launch_s": launches, "bandwidth_efficiency": 0.8, "flops_efficiency": 0.5, "sync_s": 5e-3, **changes}
    return Habits(**given)


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


@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
def test_no_source_is_of_a_figure_that_is_not_there(engine: Engine) -> None:
    paths = figures(engine)
    for known in engine.sources:
        assert any(path == known or path.startswith(f"{known}.") for path in paths), known


def test_every_target_has_an_engine() -> None:
    assert {target: engine_of(target).name for target in TARGETS} == engines().targets
    names = [engine.name for engine in engines().engines]
    assert set(engines().targets.values()) <= set(names)
    assert len(names) == len(set(names))
    assert [engine_of(name).name for name in names] == names


@pytest.mark.parametrize("name", ["vllm", "", "Torch", "torch\n"])
def test_an_engine_that_is_not_known_is_one_clear_error(name: str) -> None:
    with pytest.raises(TargetError) as told:
        engine_of(name)
    (line,) = str(told.value).splitlines()
    assert line.startswith(f"engine: {name!r} is not known; use one of ")
    for known in (*engines().targets, *(engine.name for engine in engines().engines)):
        assert known in line
    if name:
        with pytest.raises(TargetError, match=r"engine: .* is not known"):
            CostModel(load_profile("llama-3.1-8b"), load_hardware("cpu=EPYC-9654"), engine=name)


def test_beyond_the_knee_a_power_of_the_bandwidth_is_read() -> None:
    """By hand: a root of what is over 100 GB/s a socket, and a root of the number of sockets."""
    known = habits(knee_bytes_per_s=100e9, bandwidth_exponent=0.5, sockets_exponent=0.5)
    for bandwidth, sockets, expected in (
        (50e9, None, 40e9),
        (100e9, 1, 80e9),
        (400e9, 1, 160e9),
        (900e9, None, 240e9),
        (800e9, 2, 226.2741699796952e9),  # 160e9 * 1.414…
        (400e9, 4, 160e9),
        (100e9, 4, 40e9),
    ):
        found = read_bytes_per_s(cpu(bandwidth_bytes_per_s=bandwidth, sockets=sockets), known)
        assert found == pytest.approx(expected, rel=1e-12)
    assert read_bytes_per_s(cpu(bandwidth_bytes_per_s=900e9), habits()) == pytest.approx(720e9)  # no knee
    assert read_bytes_per_s(cpu(bandwidth_efficiency=0.5, sockets=2), known) == 150e9  # it says so itself


@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
def test_a_cpu_reads_less_of_more(engine: Engine) -> None:
    known = engine.cpu
    knee, exponent = known.knee_bytes_per_s, known.bandwidth_exponent
    assert knee is not None
    below, above = cpu(bandwidth_bytes_per_s=knee / 2), cpu(bandwidth_bytes_per_s=knee * 4)
    assert read_bytes_per_s(below, known) == pytest.approx(known.bandwidth_efficiency * knee / 2)
    assert read_bytes_per_s(above, known) == pytest.approx(known.bandwidth_efficiency * knee * 4**exponent)
    two = cpu(bandwidth_bytes_per_s=2 * knee, sockets=2)
    assert read_bytes_per_s(two, known) == pytest.approx(known.bandwidth_efficiency * knee * 2**known.sockets_exponent)
    assert read_bytes_per_s(cpu(bandwidth_efficiency=0.5), known) == 150e9


def test_products_of_a_cpu_go_with_cores_and_clock() -> None:
    """By hand: 10 FLOPs a cycle, and of four times as many cores twice as many count."""
    known = habits(flops_per_cycle=10.0, cores_exponent=0.5)
    assert flops_per_s(cpu(cores=32, clock_hz=2e9), known) == pytest.approx(640e9)
    assert flops_per_s(cpu(cores=128, clock_hz=2e9), known) == pytest.approx(1280e9)
    assert flops_per_s(cpu(cores=8, clock_hz=2e9), known) == pytest.approx(320e9)
    assert flops_per_s(cpu(cores=32), known) == pytest.approx(960e9)  # 3 GHz assumed
    assert flops_per_s(cpu(clock_hz=2e9), known) == 2e12  # how many cores is not said: half of the peak
    assert flops_per_s(cpu(cores=32, clock_hz=2e9), habits()) == 2e12  # what a cycle does is not known
    assert flops_per_s(cpu(cores=8, flops_efficiency=0.25), known) == 1e12


def test_products_of_a_gpu_go_with_its_family() -> None:
    rules = ({"model": r"RTX-?50\d\d", "value": 0.25}, {"model": "rtx", "value": 1.5})
    known = habits(products=rules)
    assert flops_per_s(gpu(model="A100-80GB"), known) == flops_per_s(gpu(), known) == 0.5e14
    assert flops_per_s(gpu(model="RTX4090"), known) == pytest.approx(0.75e14)
    assert flops_per_s(gpu(model="RTX-5090"), known) == pytest.approx(0.125e14)  # the first that fits
    assert flops_per_s(gpu(model="RTX4090", flops_efficiency=0.9), known) == pytest.approx(0.9e14)
    assert by_model((ByModel(model="x", value=2.0),), None) is None


@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
def test_every_rule_for_a_family_is_for_some_part_and_the_only_one(engine: Engine) -> None:
    gpus, cpus = ([part.name for part in parts] for parts in (catalogue().gpus, catalogue().cpus))
    copies = engine.copies.hosts if engine.copies else ()
    for rules, known in ((engine.gpu.products, gpus), (engine.cpu.products, cpus), (copies, cpus)):
        fitting = [[rule.model for rule in rules if re.search(rule.model, name, re.IGNORECASE)] for name in known]
        assert all(len(found) <= 1 for found in fitting)
        assert {rule.model for rule in rules} == {model for found in fitting for model in found}


def test_only_weights_below_the_bits_are_unpacked() -> None:
    """By hand: ten cores unpack 1e9 parameters a second each below 3 bits, a tenth of that below 2."""
    rules = ({"below_bits": 2.0, "params_per_core_s": 1e8}, {"below_bits": 3.0, "params_per_core_s": 1e9})
    known = habits(unpacking=rules)
    for bits, rate in ((1.99, 1e9), (2.0, 1e10), (2.99, 1e10), (3.0, float("inf")), (16.0, float("inf"))):
        assert unpacked_per_s(cpu(cores=10), known, bits) == rate
    assert unpacked_per_s(cpu(), known, 1.5) == float("inf")  # of how many cores?
    launch = known.launch_s.attention
    for bits, expected in ((1.5, 10.0), (2.5, 1.0), (3.0, 0.25)):
        work = Work("attention", 60e9, params=1e10, bits=bits)  # read in 0.25 s
        assert roofline_s(cpu(cores=10), known, work) == pytest.approx(launch + expected, rel=1e-12)


def test_engines_unpack_no_slower_what_has_more_bits() -> None:
    for engine in engines().engines:
        for habit in (engine.cpu, engine.gpu):
            rates = [unpacked_per_s(cpu(cores=10), habit, bits / 10) for bits in range(1, 200)]
            assert rates == sorted(rates)
            for rule in habit.unpacking:
                just_below = unpacked_per_s(cpu(cores=10), habit, rule.below_bits - 1e-9)
                assert just_below < unpacked_per_s(cpu(cores=10), habit, rule.below_bits)


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
    known = habits()
    for kind, experts, expected in (
        ("attention", 0, 1e-3),
        ("latent", 0, 2e-3),
        ("experts", 0, 3e-3),
        ("experts", 160, 19e-3),
        ("ends", 0, 4e-3),
    ):
        work = Work(kind, 0.0, experts=experts)  # type: ignore[arg-type]
        assert roofline_s(gpu(), known, work) == pytest.approx(expected, rel=1e-12)
        assert roofline_s(gpu(launch_s=1e-6), known, work) == 1e-6  # it says so itself
    assert KT.gpu.launch_s.each_expert > 0
    assert TORCH.gpu.launch_s.attention > LLAMA.gpu.launch_s.attention


@pytest.mark.parametrize(
    ("name", "mla", "kind"),
    [
        ("deepseek-v2", None, "latent"),
        ("deepseek-r1", "compressed", "latent"),
        ("deepseek-r1", "expanded", "attention"),  # keys and values of every head are cached
        ("kimi-k2-instruct", None, "latent"),
        ("moonlight-16b-a3b", None, "latent"),
        ("qwen3-30b-a3b", None, "attention"),
        ("mixtral-8x7b", "compressed", "attention"),
    ],
)
def test_models_with_a_compressed_cache_are_latent(name: str, mla: str | None, kind: str) -> None:
    costs = CostModel(load_profile(name, mla=mla), load_hardware("1xRTX4090"), target="sglang-kt")
    work = costs.work(costs.block("attention", 0), "attention", costs.device["cuda:0"], 1, 100.0)
    assert work.kind == kind
    assert costs.work(costs.block("head", 0), "head", costs.device["cuda:0"], 1, 0.0).kind == "ends"
    every = costs.work(costs.block("experts", 5), "experts", costs.device["cuda:0"], 1, 0.0)
    experts = costs.profile.layers[5].experts
    assert experts is not None
    assert (every.kind, every.experts) == ("experts", experts.count)


def test_each_layer_is_latent_by_itself() -> None:
    """A hybrid: what one layer caches says nothing of the next."""
    model = load_profile("mixtral-8x7b")
    layers = [
        layer.replace(attention=layer.attention.replace(latent=i % 2 == 0)) for i, layer in enumerate(model.layers)
    ]
    costs = CostModel(model.replace(layers=layers), load_hardware("1xRTX4090"), target="llama.cpp")
    even, odd = (costs.block_s("attention", i, "cuda:0", Step(1, 0)) for i in (0, 1))
    launches = LLAMA.gpu.launch_s
    assert even - odd == pytest.approx(launches.latent - launches.attention, rel=1e-9)


def test_a_part_of_the_experts_is_launched_for_those_that_are_there() -> None:
    """A split layer: KTransformers visits those on a device, used or not."""
    costs = CostModel(load_profile("qwen3-30b-a3b"), load_hardware("1xRTX4090"), target="ktransformers")
    each = KT.gpu.launch_s.each_expert
    few, more = (costs.split_experts_s(0, "cuda:0", {"cuda:0": range(n)}, Step(1, 0)) for n in (126, 127))
    none = costs.engine.gpu.launch_s.experts
    assert few > 126 / 128 * 125 * each  # nearly every token uses some of 126
    assert more - few > each * 0.9
    assert costs.experts_from_s(0, "cuda:0", "cuda:0", Step(1, 0)) > none + 128 * each


@pytest.mark.parametrize("habit", ["launch", "sync", "bandwidth", "cache", "flops"])
def test_calibration_scales_what_it_says(habit: str) -> None:
    launches = {"attention": 0, "latent": 0, "experts": 0}
    known = habits(launch_s=launches, unpacking=[{"below_bits": 3.0, "params_per_core_s": 1e9}])
    alone = {
        "launch": (habits(), Work("attention", 0.0)),
        "bandwidth": (known, Work("attention", 1e12)),
        "unpacking": (known, Work("attention", 0.0, params=1e12, bits=2.5)),
        "cache": (known, Work("attention", 0.0, cache_bytes=1e12)),
        "scores": (known.replace(scores_per_s=1e12), Work("attention", 0.0, scores=1e12)),
        "flops": (known, Work("attention", 0.0, flops=1e16)),
    }
    also = {"unpacking": "bandwidth", "scores": "cache"}
    plain = cpu(cores=10)
    tuned = plain.replace(calibration=Calibration(**{habit: 2.0}))
    for name, (what, work) in alone.items():
        before, after = (roofline_s(device, what, work) for device in (plain, tuned))
        factor = 1.0 if also.get(name, name) != habit else 2.0 if habit == "launch" else 0.5
        assert after == pytest.approx(factor * before, rel=1e-12)
    machine = load_hardware("1xRTX4090,cpu=EPYC-9654")
    devices = [device.replace(calibration=tuned.calibration) for device in machine.devices]
    costs = CostModel(load_profile("mixtral-8x7b"), machine)
    again = CostModel(costs.profile, machine.replace(devices=devices))
    for name in ("cpu", "cuda:0"):
        factor = 2.0 if habit == "sync" else 1.0
        assert again.sync_s(name) == pytest.approx(factor * costs.sync_s(name), rel=1e-12)
        assert sync_s(costs, again.device[name]) == again.sync_s(name)


@given(
    st.floats(5e9, 2e12),
    st.floats(1.01, 4.0),
    st.integers(1, 128),
    st.integers(1, 4),
    st.sampled_from(("attention", "latent", "experts", "ends")),
    st.sampled_from((1.6, 2.5, 16.0)),
    st.sampled_from(engines().engines),
)
def test_more_is_never_slower(
    bandwidth: float, more: float, cores: int, sockets: int, kind: Any, bits: float, engine: Engine
) -> None:
    work = Work(kind, 1e9, 1e6, 1e12, 1e9, 1e9, bits, 8)
    slow = cpu(bandwidth_bytes_per_s=bandwidth, cores=cores, clock_hz=2e9, sockets=sockets)
    before = roofline_s(slow, engine.cpu, work)
    for better in (
        slow.replace(bandwidth_bytes_per_s=bandwidth * more),
        slow.replace(cores=cores + 1),
        slow.replace(clock_hz=2e9 * more),
        slow.replace(bandwidth_bytes_per_s=bandwidth / sockets * (sockets + 1), sockets=sockets + 1),  # one more alike
    ):
        assert roofline_s(better, engine.cpu, work) <= before * (1 + 1e-12)
    card = gpu(bandwidth_bytes_per_s=bandwidth, model="RTX4090")
    for better in (
        card.replace(bandwidth_bytes_per_s=bandwidth * more),
        card.replace(flops_per_s={"bf16": 1e14 * more}),
    ):
        assert roofline_s(better, engine.gpu, work) <= roofline_s(card, engine.gpu, work) * (1 + 1e-12)


@given(
    st.sampled_from(("weight_bytes", "cache_bytes", "flops", "scores", "params", "experts")),
    st.integers(2, 10),
    st.sampled_from(("attention", "latent", "experts", "ends")),
    st.sampled_from(engines().engines),
)
def test_more_work_is_never_quicker(what: str, times: int, kind: Any, engine: Engine) -> None:
    little = {"weight_bytes": 1e9, "cache_bytes": 1e8, "flops": 1e10, "scores": 1e9, "params": 1e9, "experts": 8}
    much = {**little, what: little[what] * times}
    for device, habit in ((cpu(cores=16), engine.cpu), (gpu(), engine.gpu)):
        before, after = (roofline_s(device, habit, Work(kind, bits=1.9, **work)) for work in (little, much))  # type: ignore[arg-type]
        assert after >= before


# ---- the oracle, written anew from the same figures ----


def in_detail(rng: random.Random, instance: Instance) -> Instance:
    """The instance with all that engines look at: an architecture, few bits, sockets, cores, clocks, calibrations."""

    def device(one: Device) -> Device:
        factors = {habit: rng.uniform(0.5, 2.0) for habit in ("launch", "sync", "bandwidth", "cache", "flops")}
        is_cpu = one.kind == "cpu"
        names = ("EPYC-9654", "Xeon-Gold-6138") if is_cpu else ("RTX4090", "rtx-5090", "B200", "A100-80GB")
        return one.replace(
            model=one.model or rng.choice(names),
            flops_efficiency=rng.choice((None, None, 0.3)),
            calibration=rng.choice((None, Calibration(**factors))),
            cores=rng.choice((None, 7, 32, 150)) if is_cpu else None,
            clock_hz=rng.choice((None, 2e9)) if is_cpu else None,
            sockets=rng.choice((None, 1, 2)) if is_cpu else None,
        )

    few = rng.choice((None, 1.7, 2.6, 4.5))
    layers = []
    for layer in instance.profile.layers:
        experts = layer.experts
        if few is not None and experts is not None:
            experts = experts.replace(params=int(8 * experts.weight_bytes.cpu / few))
        layers.append(layer.replace(experts=experts))
    latent = rng.choice((True, False))
    layers = [layer.replace(attention=layer.attention.replace(latent=latent)) for layer in layers]
    # The oracle goes by the architecture's name.
    architecture = rng.choice(("deepseek_v3", "kimi_k2") if latent else (None, "qwen3_moe", "deepseek_v4"))
    profile = instance.profile.replace(architecture=architecture, layers=layers)
    hardware = instance.hardware.replace(devices=[device(one) for one in instance.hardware.devices])
    return Instance(profile, hardware, instance.workload)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
def test_every_block_takes_what_the_oracle_says(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    instance = in_detail(rng, random_instance(rng))
    costs = CostModel(instance.profile, instance.hardware, instance.workload, engine=engine.name)
    oracle = Oracle(instance.profile, instance.hardware, instance.workload, engine=engine.name)
    blocks = [("embedding", 0), ("head", 0)]
    for i, one in enumerate(instance.profile.layers):
        blocks += [("attention", i)] if one.experts is None else [("attention", i), ("experts", i)]
    for step in (Step(1, 0.0), Step(1, 1000.5), Step(2, 64.0), Step(512, 512.0)):
        for name in oracle.names:
            for part, layer in blocks:
                context = step.context if part == "attention" else 0.0
                told = oracle.seconds(part, layer, name, step.tokens, context)
                assert costs.block_s(part, layer, name, step) == pytest.approx(told, rel=1e-9, abs=0)
            for other in oracle.names:
                if other != name:
                    away = oracle.outside(other, name, step.tokens)
                    told = costs.sync_s(name) + 2 * costs.hop_s(other, name, step.tokens)
                    assert told == pytest.approx(away, rel=1e-9, abs=0)


@pytest.mark.parametrize("bits", [1.7, 2.6, 4.5])
@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
def test_a_split_layer_takes_what_the_oracle_says(engine: Engine, bits: float) -> None:
    some = Experts(weight_bytes=9 * 10**8, params=int(8 * 9 * 10**8 / bits), count=9, active=3)
    model = load_profile("mixtral-8x7b")
    model = model.replace(layers=[model.layers[0].replace(experts=some)])
    machine = load_hardware("2xRTX4090,cpu=EPYC-9654,ram=128GB")
    costs = CostModel(model, machine, Workload(), engine=engine.name)
    oracle = Oracle(model, machine, Workload(), engine=engine.name)
    for attention in oracle.names:
        for parts in (
            {"cuda:0": (0, 1, 2, 3, 4, 5, 6), "cpu": (7, 8)},
            {"cpu": (0, 1, 2, 3, 4), "cuda:1": (5, 6, 7, 8)},
        ):
            found = costs.split_experts_s(0, attention, parts, Step(1, 100))
            assert found == pytest.approx(oracle.mean_of_slowest(0, attention, parts), rel=1e-9)


def test_the_engine_is_named_where_it_decides() -> None:
    model = load_profile("deepseek-v2", "q4_k_m")
    machine = load_hardware("1xRTX4090,cpu=EPYC-9654")
    (note,) = engine_notes(CostModel(model, machine, target="ktransformers"))
    assert note.startswith("ktransformers: experts of a layer take")
    for target in ("llama.cpp", "sglang-kt"):
        assert engine_notes(CostModel(model, machine, target=target)) == ()
    assert engine_notes(CostModel(load_profile("llama-3.1-8b"), machine, target="ktransformers")) == ()
    assert engine_notes(CostModel(model, load_hardware("cpu=EPYC-9654"), target="ktransformers")) == ()
