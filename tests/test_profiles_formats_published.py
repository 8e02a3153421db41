"""Formats of published checkpoints, from config.json and what lies beside it: totals, and bytes a weight by part.

Totals are of the vendors' own index files (`metadata.total_size`) or model cards, as quoted in public inventories;
bytes a weight follow from the published tensors of each format.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkpoint_configs import beside_of, config_of, names

from profiles import ModelProfile, ProfileError, load_profile
from profiles.formats.methods import rules_of
from profiles.formats.module import Module
from profiles.formats.settings import settings_of
from profiles.hf_config.reader import model_tensors, read_hf_config
from profiles.presets import model_config_preset

ROUTER_BIAS = 4
"""Bytes of a router's correction of one expert: a buffer in fp32 that files hold and profiles do not count."""


@cache
def read(name: str, quant: str | None = None) -> ModelProfile:
    return read_hf_config(config_of(name), name, quant, beside=beside_of(name).get)


# ---- totals ----


def test_totals_of_published_files_to_the_byte() -> None:
    assert load_profile("gpt-oss-120b").file_bytes == 65_248_815_744
    assert load_profile("gpt-oss-20b").file_bytes == 13_761_264_768
    assert load_profile("deepseek-v3").file_bytes + 59 * 256 * ROUTER_BIAS == 688_574_839_360
    assert read("GLM-5.2-FP8").file_bytes + 76 * 256 * ROUTER_BIAS == 755_617_140_416


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("DeepSeek-V4-Flash", 155e9, 160e9),  # not 285 GB, which it would be in fp8
        ("DeepSeek-V4-Flash-FP8", 285e9, 295e9),
        ("DeepSeek-V3.1-NVFP4", 413e9, 414e9),  # 386.4 GB, and an MTP layer of 27 GB in 16 bits
        ("Kimi-K2.5", 594e9, 595e9),
        ("Kimi-K2.5-NVFP4", 589e9, 591e9),
        ("Qwen3-235B-A22B-NVFP4", 133e9, 135e9),
        ("MiniMax-M3-NVFP4", 240e9, 250e9),
    ],
)
def test_totals_are_of_the_stated_size(name: str, least: float, most: float) -> None:
    assert least < read(name).file_bytes < most


# ---- bytes a weight, by part ----

BF16, FP8, NVFP4, MXFP4, MXFP8, E8M0 = 2.0, 1.000244, 0.5625, 0.53125, 1.03125, 1.000061
TABLE: dict[str, tuple[float | None, float | None]] = {
    "MiniMax-M2.5": (FP8, FP8),
    "Qwen3-235B-A22B-FP8": (FP8, FP8),
    "Qwen3-32B-FP8": (None, FP8),
    "Qwen3-32B-FP8-Static-PerTensor": (None, 1.0),
    "Llama-3.1-70B-Instruct-FP8": (None, 1.0),
    "Kimi-K2-Instruct": (FP8, FP8),
    "MiMo-V2-Flash": (FP8, FP8),
    "DeepSeek-V4-Flash": (MXFP4, None),
    "DeepSeek-V4-Flash-FP8": (E8M0, None),
    "DeepSeek-V4-Flash-NVFP4": (NVFP4, None),
    "Kimi-K2.5": (0.5625, BF16),
    "Kimi-K3": (MXFP4, BF16),
    "DeepSeek-V3.1-NVFP4": (NVFP4, None),
    "GLM-5-NVFP4": (NVFP4, BF16),
    "GLM-5.2-NVFP4": (NVFP4, BF16),
    "Kimi-K2.5-NVFP4": (NVFP4, BF16),
    "Kimi-K2.7-Code-NVFP4": (NVFP4, BF16),
    "MiniMax-M2.5-NVFP4": (NVFP4, BF16),
    "MiniMax-M3-NVFP4": (NVFP4, MXFP8),
    "Gemma-4-31B-IT-NVFP4": (None, BF16),
    "Qwen3-235B-A22B-NVFP4": (NVFP4, NVFP4),
    "Qwen3.5-397B-A17B-NVFP4": (NVFP4, BF16),
    "Qwen3.6-35B-A3B-NVFP4": (NVFP4, 1.0),
    "Qwen3.6-27B-NVFP4": (None, 1.0),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": (NVFP4, BF16),
    "NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4": (NVFP4, BF16),
    "GLM-5.2-FP8": (FP8, None),
    "GLM-5-FP8": (FP8, None),
    "DeepSeek-V3.2": (FP8, None),
}
"""Name -> bytes a weight of routed experts and of attention's projections, scales included; None: asked below."""


def projections(name: str, *ends: str) -> dict[str, float]:
    """Bytes a weight of every linear module of the layers whose name ends so."""
    config = config_of(name)
    model, settings = model_tensors(config), settings_of(config, beside_of(name).get)
    assert settings is not None
    rules = rules_of(settings)
    found = {}
    for layer in model.layers:
        for tensor in layer.attention:
            module = tensor.name.removesuffix(".weight")
            if len(tensor.shape) == 2 and module.endswith(ends):
                disk = model.disk_names.module(module)
                scheme = rules.scheme_of(Module("linear", (disk, module))) if tensor.quantisable else None
                size = scheme.n_bytes(tensor.out_features, tensor.in_features) if scheme else 2 * tensor.params
                found[module] = size / tensor.params
    assert found, ends
    return found


@pytest.mark.parametrize("name", TABLE)
def test_bytes_a_weight(name: str) -> None:
    experts, attention = TABLE[name]
    found = [layer.experts for layer in read(name).layers if layer.experts]
    assert bool(found) == (experts is not None)
    for block in found:
        assert block.weight_bytes.gpu / (block.params or 1) == pytest.approx(experts, rel=1e-5)
    if attention is not None:
        ends = tuple(f"{outer}.{p}_proj" for outer in ("self_attn", "attn", "mixer") for p in ("q", "k", "v", "o"))
        latent = tuple(f"self_attn.{p}" for p in ("q_b_proj", "kv_b_proj", "o_proj"))
        for module, size in projections(name, *ends, *latent).items():
            assert size == pytest.approx(attention, rel=1e-4), module


def all_of(name: str, *ends: str) -> float:
    """The one size that all of these modules have."""
    sizes = projections(name, *ends)
    assert len({round(size, 3) for size in sizes.values()}) == 1, sizes
    return next(iter(sizes.values()))


def test_modules_that_differ_within_attention() -> None:
    """o_proj alone is packed in DeepSeek-V3.1-NVFP4; indexers' weights_proj is in 16 bits, also where it is misspelt;
    DeepSeek-V4's modules that are excluded from NVFP4 are in fp8."""
    mla = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
    assert all_of("DeepSeek-V3.1-NVFP4", *(f"self_attn.{p}" for p in mla)) == BF16
    assert all_of("DeepSeek-V3.1-NVFP4", "self_attn.o_proj") == pytest.approx(NVFP4, rel=1e-5)
    for name in ("GLM-5-FP8", "GLM-5.2-FP8", "DeepSeek-V3.2"):
        assert all_of(name, "weights_proj") == BF16
        assert all_of(name, "q_b_proj", "o_proj") == pytest.approx(FP8, rel=1e-4)
    for name in ("DeepSeek-V4-Flash", "DeepSeek-V4-Flash-FP8", "DeepSeek-V4-Flash-NVFP4"):
        assert all_of(name, "q_a_proj", "q_b_proj") == pytest.approx(E8M0, rel=1e-4)
        assert all_of(name, "shared_experts.gate_proj", "shared_experts.down_proj") == pytest.approx(E8M0, rel=1e-4)


def test_shared_experts_dense_layers_and_recurrences() -> None:
    shared = ("shared_experts.down_proj", "shared_expert.down_proj")
    assert all_of("Kimi-K2.5-NVFP4", *shared) == pytest.approx(NVFP4, rel=1e-4)
    assert all_of("Kimi-K2.7-Code-NVFP4", *shared) == BF16
    assert all_of("GLM-5-NVFP4", *shared) == pytest.approx(NVFP4, rel=1e-4)
    assert all_of("GLM-5.2-NVFP4", *shared) == BF16
    assert all_of("Kimi-K2.5", *shared) == BF16
    assert all_of("MiniMax-M3-NVFP4", *shared) == pytest.approx(MXFP8, rel=1e-4)
    assert all_of("Qwen3.5-397B-A17B-NVFP4", *shared, "linear_attn.out_proj") == BF16
    assert all_of("Qwen3.6-35B-A3B-NVFP4", *shared) == pytest.approx(NVFP4, rel=1e-4)
    assert all_of("Qwen3.6-35B-A3B-NVFP4", "linear_attn.out_proj") == pytest.approx(1.0, rel=1e-4)
    assert all_of("Gemma-4-31B-IT-NVFP4", "mlp.gate_proj") == pytest.approx(NVFP4, rel=1e-4)
    in_16_bits = [
        m for m, size in projections("NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4", "in_proj").items() if size == BF16
    ]
    assert len(in_16_bits) == 6


def test_heads_are_packed_where_the_checkpoint_says_so() -> None:
    packed = {name for name in names() if "Super" not in name and "Ultra" not in name and _head(read(name)) < 1}
    assert packed == {
        "Qwen3.6-35B-A3B-NVFP4", "Qwen3.6-27B-NVFP4", "NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4"
    }  # fmt: skip


def _head(profile: ModelProfile) -> float:
    return profile.head.weight_bytes.gpu / (profile.head.params or 1)


def test_what_a_profile_calls_it_can_be_asked_for_again() -> None:
    expected = {
        "DeepSeek-V4-Flash": "mxfp4 experts, fp8 attention",
        "Kimi-K2.5": "int4 experts, bf16 attention",
        "GLM-5.2-NVFP4": "nvfp4 experts, bf16 attention",
        "Qwen3-235B-A22B-NVFP4": "nvfp4",
        "MiniMax-M3-NVFP4": "nvfp4 experts, mxfp8 attention",
        "Qwen3.6-35B-A3B-NVFP4": "nvfp4 experts, fp8/nvfp4 attention, nvfp4 head",
        "Qwen3-235B-A22B-FP8": "fp8",
    }
    for name, label in expected.items():
        profile = read(name)
        assert profile.quant == label
        assert read(name, label) == profile


# ---- where it is said ----


def test_silence_in_config_json_is_not_bf16(tmp_path: Path) -> None:
    """Eleven checkpoints of the autumn of 2026 say it only in hf_quant_config.json."""
    silent = [name for name in names() if beside_of(name)]
    assert len(silent) >= 8
    (tmp_path / "config.json").write_text(json.dumps(config_of("DeepSeek-V3.1-NVFP4")))
    assert load_profile(tmp_path).quant == "bf16"
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside_of("DeepSeek-V3.1-NVFP4")["hf_quant_config.json"]))
    profile = load_profile(tmp_path)
    assert (profile.quant, profile.packed_by) == ("nvfp4 experts, nvfp4/bf16 attention", "modelopt")
    assert profile == load_profile(tmp_path / "config.json").replace(source=profile.source)
    assert any("FP8 KV cache" in note for note in profile.notes)
    assert profile.kv_quant is None, "a cache's type is the runtime's"


def test_config_json_wins_over_what_lies_beside_it() -> None:
    config = model_config_preset("deepseek-v3") or {}
    other = {"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4", "exclude_modules": []}}}
    assert read_hf_config(config, "v3", beside=other.get).quant == "fp8"
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    assert read_hf_config(plain, "v3", beside=other.get).quant.startswith("nvfp4")


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_it_may_stand_in_the_text_models_part(key: str) -> None:
    config = config_of("Kimi-K2.5")
    inner = config["text_config"].pop("quantization_config")
    assert read_hf_config({**config, "text_config": {**config["text_config"], key: inner}}, "k").quant.startswith(
        "int4"
    )
    assert read_hf_config(config, "k").quant == "bf16"


def test_stubs_say_what_they_do_not_say() -> None:
    for name in ("NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", "NVIDIA-Nemotron-3-Ultra-550B-A55B-FP8"):
        with pytest.raises(
            ProfileError, match=r"hf_quant_config.json.*excluded.*folder with its safetensors.*quant="
        ) as e:
            read(name)
        assert "\n" not in str(e.value)
        assert read(name, "nvfp4").quant == "nvfp4"


def test_v4_without_a_type_of_its_experts_is_asked_for() -> None:
    config = config_of("DeepSeek-V4-Flash")
    del config["expert_dtype"]
    with pytest.raises(ProfileError, match=r'expert_dtype: missing.*"fp4" or "fp8"'):
        read_hf_config(config, "v4")
    whole: dict[str, Any] = {**config, "expert_dtype": "fp8"}
    assert read_hf_config(whole, "v4").quant == "fp8"


def test_a_config_of_three_megabytes_is_read_in_one_go() -> None:
    """Every expert of MiniMax-M3-NVFP4 is named: each is asked about once, and none is told apart in the end."""
    config = config_of("MiniMax-M3-NVFP4")
    assert len(config["quantization_config"]["quantized_layers"]) > 20_000
    experts = [layer.experts for layer in read("MiniMax-M3-NVFP4").layers if layer.experts]
    assert all(block.expert_weight_bytes is None for block in experts)
    del config["quantization_config"]["quantized_layers"]["language_model.model.layers.3.block_sparse_moe.experts.5.w1"]
    first = next(layer.experts for layer in read_hf_config(config, "m3").layers if layer.experts)
    assert first.expert_weight_bytes is not None
    sizes = set(first.expert_weight_bytes)
    assert len(sizes) == 2
    assert first.expert_weight_bytes.index(max(sizes)) == 5
