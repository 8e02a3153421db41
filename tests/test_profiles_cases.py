"""Measured runs as cases: what becomes one, of which bytes, on which devices, and what is missing otherwise."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from profiles import MoeplanError
from profiles.cases import Case, case_of
from profiles.run import Run
from profiles.run_model import preset_of
from profiles.run_quant import IK_BITS, weights_of
from profiles.runs import read_runs

MEASUREMENTS = Path(__file__).resolve().parents[1] / "benchmarks" / "measurements.yaml"
GPU = {"model": "RTX 3090", "count": 2, "memory_bytes": "24576 MiB"}
RUN = Run(
    id="r",
    machine="box",
    model="Qwen3-30B-A3B",
    quant="Q4_K_M",
    engine="llama.cpp",
    gpus=[GPU],
    cpu="EPYC 9355",
    sockets=2,
    n_cpu_moe=20,
    context_depth=4096,
    prompt_tokens=1200,
    ubatch=512,
    decode_tokens_per_s=60,
    prefill_tokens_per_s=1500,
)


def case(**changes: Any) -> Case:
    return case_of(RUN.replace(**changes))


def says(said: str, **changes: Any) -> None:
    with pytest.raises(MoeplanError) as caught:
        case(**changes)
    assert said in str(caught.value)
    assert str(caught.value).startswith("r: ")
    assert "\n" not in str(caught.value)


def experts_on(found: Case) -> list[str]:
    return [layer.experts_device or "split" for layer in found.placement.layers if layer.experts]


@cache
def collection() -> tuple[Run, ...]:
    return read_runs(MEASUREMENTS)


@cache
def tried() -> tuple[dict[str, Case], dict[str, str]]:
    """The collection's cases, and for the other runs what is missing."""
    cases: dict[str, Case] = {}
    missing: dict[str, str] = {}
    for run in collection():
        try:
            cases[run.id] = case_of(run)
        except MoeplanError as problem:
            missing[run.id] = str(problem)
    return cases, missing


# --- the collection --------------------------------------------------------------------------------------------------


def is_good(run: Run) -> bool:
    return run.grade == "A" and run.regime == "normal"


def test_most_of_the_best_measurements_become_cases() -> None:
    """Counts may grow, with presets and facts; they must not fall."""
    good = [found for found in tried()[0].values() if is_good(found.run)]
    assert len(good) >= 387
    assert sum(found.run.decode_tokens_per_s is not None for found in good) >= 310
    assert sum(bool(found.prefill_chunks) for found in good) >= 226
    engines = Counter(found.engine for found in good)
    least = {"ik_llama.cpp": 185, "llama.cpp": 95, "sglang-kt": 61, "other": 24, "ktransformers": 22}
    assert all(engines[engine] >= count for engine, count in least.items())
    assert len({found.run.machine for found in good}) >= 25
    assert len(tried()[0]) >= 438


def test_what_the_others_lack_is_one_of_few_facts() -> None:
    """Reasons by the field they name, of the best measurements only."""
    reasons = Counter(
        tried()[1][run.id].split(": ")[1] for run in collection() if is_good(run) and run.id in tried()[1]
    )
    assert reasons == {"ram_peak_bytes_per_s": 31, "model": 6, "cpu_layers": 5}


def test_every_case_is_whole() -> None:
    for found in tried()[0].values():
        names = {device.name for device in found.hardware.devices}
        assert found.placement.devices <= names
        for layer, placed in zip(found.profile.layers, found.placement.layers, strict=True):
            assert (layer.experts is None) == (not placed.experts)
            ids = [i for part in placed.experts.values() if part != "all" for i in part]
            assert layer.experts is None or not ids or sorted(ids) == list(range(layer.experts.count))
        assert all(new > 0 and so_far >= 0 for new, so_far in found.prefill_chunks)


def test_layers_on_the_cpu_are_as_many_as_stated() -> None:
    for found in tried()[0].values():
        if found.run.cpu_layers is not None and found.run.attention == "gpu":
            assert experts_on(found).count("cpu") == found.run.cpu_layers


def test_loaders_bytes_are_met() -> None:
    """Where a loader's log is known, the experts on the CPU and the embedding weigh what it says."""
    logged = [found for found in tried()[0].values() if found.run.cpu_weight_bytes and found.run.attention == "gpu"]
    assert len(logged) == 36
    for found in logged:
        layers = zip(found.profile.layers, found.placement.layers, strict=True)
        on_cpu = [layer.experts for layer, placed in layers if placed.experts_device == "cpu"]
        held = sum(experts.weight_bytes.cpu for experts in on_cpu if experts)
        assert found.run.cpu_weight_bytes is not None
        assert held + found.profile.embedding.weight_bytes.cpu == pytest.approx(found.run.cpu_weight_bytes, rel=1e-6)


# --- bytes -----------------------------------------------------------------------------------------------------------

PUBLISHED = [
    ("DeepSeek-R1-0528", "IQ4_KS_R4", 367.774),
    ("DeepSeek-R1-0528", "IQ3_KS", 281.463),
    ("DeepSeek-R1-0528", "IQ3_KT", 272.527),
    ("DeepSeek-V3", "IQ4_K_R4", 386.18),
    ("Kimi-K2-Instruct", "IQ2_KL", 345.687),
    ("Qwen3-235B-A22B", "IQ3_K", 106.83),
    ("Qwen3-235B-A22B", "IQ6_K", 198.26),
    ("Qwen3-30B-A3B", "IQ4_K_R4", 17.57),
]
"""GiB of files made by recipes for ik_llama.cpp, as llama-bench printed them (IQ3_KT: its pull request 529)."""


@pytest.mark.parametrize(("model", "quant", "gib"), PUBLISHED)
def test_sizes_of_ik_llamas_files(model: str, quant: str, gib: float) -> None:
    predicted = case(model=model, quant=quant).profile.file_bytes
    assert predicted == pytest.approx(gib * 2**30, rel=0.02)
    assert case(model=model, quant=quant, file_bytes=f"{gib} GiB").profile.file_bytes == pytest.approx(gib * 2**30)


def test_the_types_that_recipes_use_are_known() -> None:
    assert all(weights_of(name.upper()).expert_bits == pytest.approx(IK_BITS[name], abs=1) for name in IK_BITS)
    same = [
        ("IQ4_K_R4", "IQ4_K"),
        ("Q4_K_R4", "q4_k"),
        ("~UD-Q2_K_XL", "UD-Q2_K"),
        ("DQ4_K_R4", "Q4_K"),
        ("Q2_K_M", "Q2_K"),
    ]
    assert all(weights_of(a) == weights_of(b) for a, b in same)
    assert weights_of("THIREUS-6.2478 mix").model_bits == weights_of("6.2478 bpw").model_bits == 6.2478
    assert weights_of("INT8 CPU experts (AMX)").quant == "gpu=marlin,cpu=amx_int8"
    assert (weights_of("IQ1_S", "llama.cpp").rest, weights_of("IQ1_S", "ik_llama.cpp").rest) == (None, "q4_k_m")


def test_mean_bits_of_a_whole_file() -> None:
    profile = case(model="DeepSeek-R1-0528", quant="THIREUS-6.2478 mix").profile
    assert profile.file_bytes == pytest.approx(671.0264e9 * 6.2478 / 8, rel=1e-4)


def test_projections_keep_their_sum() -> None:
    layer = case(file_bytes="17 GiB").profile.layers[3].experts
    assert layer is not None
    assert layer.projection_bytes is not None
    assert sum(layer.projection_bytes.values()) == layer.weight_bytes.gpu


def test_exact_bytes_of_gpt_oss() -> None:
    """Bytes of the file's tensors, counted in harshithkantamneni/moe-speed-of-light, gguf_bytes.json at 90f3c3d8."""
    found = case(model="gpt-oss-20b", quant="MXFP4").profile
    assert found.file_bytes == 12_096_558_336
    assert sum(layer.experts.weight_bytes.cpu for layer in found.layers if layer.experts) == 10_178_887_680


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("DeepSeek-R1T2 (TNG)", "deepseek-r1"),
        ("DeepSeek-V3-0324/R1 671B", "deepseek-v3"),
        ("deepseek2 671B", "deepseek-v3"),
        ("deepseek2 16B", "deepseek-v2-lite"),
        ("Kimi-K2-Thinking 1T-A32B", "kimi-k2-instruct"),
        ("unsloth/Qwen3-30B-A3B-GGUF", "qwen3-30b-a3b"),
        ("Qwen3-Coder-30B-A3B", "qwen3-30b-a3b"),
        ("Phi-3.5-MoE", "phi-3.5-moe-instruct"),
        ("openai/gpt-oss-20b", "gpt-oss-20b"),
    ],
)
def test_names_of_models(name: str, preset: str) -> None:
    assert preset_of(name) == preset


def test_other_shapes_of_the_same_family_are_not_taken_for_them() -> None:
    for name in ("DeepSeek-R1-Distill-Qwen-32B", "DeepSeek-V3.9", "Qwen3.5-397B", "deepseek"):
        with pytest.raises(MoeplanError, match="has the shapes of no preset"):
            preset_of(name)


# --- placements ------------------------------------------------------------------------------------------------------


def test_the_first_layers_with_llama_cpps_flag() -> None:
    found = case()
    attention = [layer.attention for layer in found.placement.layers]
    assert attention == ["cuda:0"] * 24 + ["cuda:1"] * 24
    assert experts_on(found) == ["cpu"] * 20 + ["cuda:0"] * 4 + ["cuda:1"] * 24
    assert (found.placement.embedding, found.placement.head) == ("cpu", "cuda:1")
    dense_first = case(model="DeepSeek-V2-Lite", n_cpu_moe=3)
    assert [layer.experts_device for layer in dense_first.placement.layers[:4]] == [None, "cpu", "cpu", "cuda:0"]


def test_the_last_layers_by_hand_are_dealt_out_over_the_gpus() -> None:
    found = case(n_cpu_moe=None, cpu_layers=40, cpu_layers_at="last")
    assert experts_on(found) == ["cuda:0"] * 4 + ["cuda:1"] * 4 + ["cpu"] * 40
    assert case(n_cpu_moe=None, cpu_layers=40).assumptions[-1].endswith("the last ones are taken")


def test_layers_that_are_not_on_gpus_at_all() -> None:
    found = case(gpu_layers=10, n_cpu_moe=40)
    assert [layer.attention for layer in found.placement.layers][36:40] == ["cpu", "cpu", "cuda:0", "cuda:0"]
    assert experts_on(found)[36:42] == ["cpu"] * 4 + ["cuda:0"] * 2
    assert found.placement.head == "cpu"
    assert set(experts_on(case(attention="cpu"))) == {"cpu"}
    assert case(attention="cpu").placement.devices == {"cpu"}


def test_overrides_decide_by_the_first_pattern() -> None:
    found = case(n_cpu_moe=None, tensor_overrides=[r"blk\.(3|4)\.ffn_.*=CUDA0", r"blk\.5\.ffn=CUDA1", "exps=CPU"])
    assert experts_on(found)[2:7] == ["cpu", "cuda:0", "cuda:0", "cuda:1", "cpu"]
    says("parted by projection", n_cpu_moe=None, tensor_overrides=["ffn_up_exps=CPU"])
    says("no device of this machine", n_cpu_moe=None, tensor_overrides=["exps=CUDA7"])
    for pattern in ("(=CPU", "(x+)+y=CPU", ".*.*.*.*=CPU"):
        says("tensor_overrides", n_cpu_moe=None, tensor_overrides=[pattern])


def test_shares_split_layers_or_fill_them() -> None:
    split = case(n_cpu_moe=None, gpu_expert_share=0.25)
    assert split.placement.layers[0].experts == {"cuda:0": tuple(range(32)), "cpu": tuple(range(32, 128))}
    loaded = case(n_cpu_moe=None, gpu_expert_share=0.25, expert_strategy="front-loading")
    assert experts_on(loaded) == ["cuda:0"] * 12 + ["cpu"] * 36
    assert set(experts_on(case(n_cpu_moe=None, gpu_expert_share=0))) == {"cpu"}


def test_a_hit_rate_becomes_frequencies() -> None:
    experts = case(n_cpu_moe=None, gpu_expert_share=0.25, hot_hit_rate=0.6).profile.layers[7].experts
    assert experts is not None
    assert experts.frequencies is not None
    assert sum(experts.frequencies[:32]) == pytest.approx(0.6 * 8)
    assert sum(experts.frequencies) == pytest.approx(8)
    says("hot_hit_rate: 0.9", n_cpu_moe=None, gpu_expert_share=0.03, hot_hit_rate=0.9)


def test_sglangs_gpus_are_one() -> None:
    found = case(engine="sglang-kt", quant="fp8", n_cpu_moe=None, gpu_expert_share=0.5)
    assert found.tensor_parallel == 2
    assert found.placement.devices == {"cuda:0", "cpu"}
    assert case().tensor_parallel == 1


# --- machine and workload --------------------------------------------------------------------------------------------


def test_ram_is_the_peak_of_the_sockets_that_were_used() -> None:
    assert (case().hardware.cpu.bandwidth_bytes_per_s, case().ram_source) == (2 * 614.4e9, "catalogue")
    one = case(sockets_used=1, ram_peak_bytes_per_s="1000 GB/s", cores=60)
    assert (one.hardware.cpu.bandwidth_bytes_per_s, one.ram_source, one.sockets) == (500e9, "stated", 1)
    assert one.hardware.cpu.cores == 30
    measured = case(cpu=None, ram_measured_bytes_per_s="100 GB/s")
    assert (measured.hardware.cpu.bandwidth_bytes_per_s, measured.ram_source) == (100e9, "measured")
    assert any("TFLOP/s" in note for note in measured.assumptions)


def test_links_as_the_source_says() -> None:
    def to_cpu(pcie: str) -> float:
        return case(gpus=[{**GPU, "pcie": pcie}]).hardware.links[0].bandwidth_bytes_per_s

    assert to_cpu("3.0 x16") == 12.5e9
    assert to_cpu("4.0 x16 (H2D 25.3 GB/s measured)") == 25.3e9
    assert to_cpu("somehow") == case().hardware.links[0].bandwidth_bytes_per_s


def test_steps_of_the_prompt_and_depth_of_decoding() -> None:
    assert case().prefill_chunks == ((512, 4096), (512, 4608), (176, 5120))
    assert case(generated_tokens=64).decode_context == 4128
    request = case(context_depth=None)
    assert (request.prefill_chunks[0], request.decode_context) == ((512, 0), 1200 + 64)
    assert case(prefill_depth=0).prefill_chunks[0] == (512, 0)
    assert case(prefill_tokens_per_s=None).prefill_chunks == ()
    whole = case(engine="ktransformers", ubatch=None)
    assert whole.prefill_chunks == ((1200, 4096),)
    assert whole.profile.quant == "gpu=marlin,cpu=q4_k_m"
    says("too many steps", prompt_tokens=10**7, ubatch=1)


def test_top_k_and_threads() -> None:
    found = case(top_k=6, threads=16)
    assert {layer.experts.active for layer in found.profile.layers if layer.experts} == {6}
    assert (found.threads, found.prefill_threads, found.batch_size) == (16, 16, 1)
    says("top_k: ", top_k=200)


MISSING: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model: not known"),
    ({"quant": None}, "quant: not known"),
    ({"engine": None}, "engine: not known"),
    ({"gpus": None}, "gpus: not known"),
    ({"n_cpu_moe": None}, "cpu_layers: not known where the experts were"),
    ({"cpu": None}, "ram_peak_bytes_per_s: not known, and no CPU is named"),
    ({"cpu": "Xeon 1"}, "the CPU 'Xeon 1' is not in the catalogue"),
    ({"gpus": [{"model": "Arc Pro B99"}]}, "unknown GPU 'Arc Pro B99'"),
    ({"model": "Gemma-4"}, "model: 'Gemma-4' has the shapes of no preset"),
    ({"quant": "Q4_Z"}, "quant: 'Q4_Z' is no weight format"),
    ({"moe_layers": 40}, "moe_layers: 40, but qwen3-30b-a3b"),
    ({"file_bytes": "2 GB"}, "file_bytes: 2000000000 bytes cannot be Qwen3-30B-A3B as Q4_K_M"),
    ({"cpu_weight_bytes": "90 GB"}, "cpu_weight_bytes: 90000000000 for 20 layers"),
]


@pytest.mark.parametrize(("changes", "said"), MISSING, ids=[said[:30] for _, said in MISSING])
def test_what_is_missing_is_named(changes: dict[str, Any], said: str) -> None:
    says(said, **changes)


def test_gpus_that_hold_nothing_need_not_be_known() -> None:
    found = case(attention="cpu", gpus=[{"model": "Arc Pro B99"}])
    assert [device.name for device in found.hardware.devices] == ["cpu"]
    assert case(attention="cpu", gpus=None).placement.devices == {"cpu"}


def test_a_bench_alone_becomes_a_case_with_what_is_known(tmp_path: Path) -> None:
    table = "| model | size | params | backend | ngl | n_cpu_moe | test | t/s |\n|-|\n"
    table += (
        "| qwen3moe 30B.A3B Q4_K - Medium | 17.28 GiB | 30.53 B | CUDA | 99 | 20 | tg128 @ d4096 | 51.03 ± 0.20 |\n"
    )
    (tmp_path / "bench.md").write_text(table, encoding="utf-8")
    (run,) = read_runs(tmp_path / "bench.md", machine="mine", cpu="Ryzen 9 7950X", gpus=[{"model": "RTX 4090"}])
    found = case_of(run)
    assert experts_on(found).count("cpu") == 20
    assert (found.decode_context, found.hardware.gpus[0].model) == (4160, "RTX4090")
