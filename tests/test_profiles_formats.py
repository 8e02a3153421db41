"""Weight formats and cache types: published file sizes, real loaders' tensor counts, engines' packed weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from profiles import ModelProfile, ProfileError, load_profile
from profiles.formats.by_shape import tensor_bytes
from profiles.formats.door import check_quant, known_quants, stored_as
from profiles.formats.gguf_layout import predicted_file
from profiles.formats.kv_cache import KV_TYPES
from profiles.formats.llama_cpp_mix import MIXES, Facts, mix_types
from profiles.gguf.tensors import GgmlType as T
from profiles.gguf.tensors import GgufTensor
from profiles.hf_config.reader import model_tensors
from profiles.presets import model_config_preset
from profiles.tensors import Tensor

SIZES = yaml.safe_load((Path(__file__).parent / "published_gguf_sizes.yaml").read_text(encoding="utf-8"))["sizes"]
STANDARD = [entry for entry in SIZES if not entry.get("own_mix")]


# --- llama.cpp's mixes ------------------------------------------------------------------------------------------------


def off_by(entry: dict[str, Any]) -> float:
    """Predicted over published size, less one. The header and tokenizer of the file, a few MB, are not predicted."""
    return float(load_profile(entry["preset"], entry["quant"]).file_bytes / entry["bytes"] - 1)


def test_published_files_are_as_large_as_predicted() -> None:
    close = [entry for entry in STANDARD if abs(off_by(entry)) <= 0.0025]
    assert len(STANDARD) >= 28
    assert len(close) >= 0.95 * len(STANDARD), [e["file"] for e in STANDARD if e not in close]


@pytest.mark.parametrize(
    ("preset", "mix", "counts"),
    [
        ("deepseek-v2-lite", "q4_k_m", {T.Q4_K: 229, T.Q5_0: 14, T.Q6_K: 13, T.Q8_0: 13}),
        ("qwen3-235b-a22b", "q4_k_m", {T.Q4_K: 567, T.Q6_K: 93}),
        ("qwen3-235b-a22b", "q8_0", {T.Q8_0: 660}),
        ("qwen3-30b-a3b", "q5_k_m", {T.Q5_K: 289, T.Q6_K: 49}),
    ],
)
def test_as_many_tensors_of_each_type_as_real_loaders_print(preset: str, mix: str, counts: dict[T, int]) -> None:
    """Loader logs in ikawrakow/ik_llama.cpp, github-data; DeepSeek-Coder-V2-Lite has V2-Lite's shapes."""
    types = [kind for _, kind in predicted_file(model_tensors(model_config_preset(preset) or {}), mix)]
    assert {kind: types.count(kind) for kind in types if kind != T.F32} == counts


def test_neighbouring_layers_differ_as_in_a_published_file() -> None:
    """One expert of Qwen3-30B-A3B Q4_K_M, layer by layer (harshithkantamneni/moe-speed-of-light, gguf_bytes.json)."""
    profile = load_profile("qwen3-30b-a3b", "q4_k_m")
    one = [layer.experts.weight_bytes.gpu // 128 for layer in profile.layers if layer.experts]
    assert one[:12] == [3059712] * 6 + [2654208] * 2 + [3059712] + [2654208] * 2 + [3059712]
    assert (one.count(3059712), one.count(2654208)) == (24, 24)
    assert profile.weight_bytes == 18_550_716_416
    assert profile.layers[0].experts is not None
    assert sum(profile.layers[0].experts.projection_bytes.values()) == one[0] * 128


SPARSE = ("mixtral-8x7b", "gpt-oss-120b", "qwen1.5-moe-a2.7b", "glm-4.5-air")
DENSE = [(mix, "llama-3.1-70b") for mix in MIXES if mix != "mxfp4_moe"]


@pytest.mark.parametrize(("mix", "preset"), [(mix, preset) for mix in MIXES for preset in SPARSE] + DENSE)
def test_every_mix_of_every_kind_of_model(mix: str, preset: str) -> None:
    """Every row is a whole number of blocks, and bits a weight are between the smallest and the largest type."""
    profile = load_profile(preset, mix)
    weights = sum(block.params or 0 for block in profile.blocks)
    bits = 8 * profile.weight_bytes / weights
    assert 1.56 < bits < 32.1
    assert profile.quant == mix


def kinds(mix: str, *names: str, **facts: Any) -> list[T]:
    known = {"layers": 80, "experts": 0, "heads_per_kv_head": 8} | facts
    tensors = [GgufTensor(name, (1024, 1024)) for name in names]
    return list(mix_types(mix, tensors, Facts(**known)))


def test_exceptions_of_the_rule() -> None:
    values = [f"blk.{i}.attn_v.weight" for i in range(80)]
    assert kinds("q4_k_s", *values)[:6] == [T.Q5_K] * 4 + [T.Q4_K] * 2
    assert set(kinds("q4_k_m", *values, is_70b=True)) == {T.Q6_K, T.Q5_K}
    assert set(kinds("q4_k_m", *values, experts=8)) == {T.Q8_0}
    assert kinds("iq2_xxs", values[0]) == [T.Q4_K]
    assert kinds("iq2_xxs", values[0], heads_per_kv_head=1) == [T.Q2_K]
    assert kinds("q2_k", "output.weight", "token_embd.weight") == [T.Q6_K, T.Q2_K]
    assert kinds("q2_k", "token_embd.weight", tied=True) == [T.Q6_K]
    assert kinds("iq1_m", "token_embd.weight", "blk.9.attn_output.weight") == [T.Q2_K, T.IQ2_XXS]
    assert kinds("q3_k_m", "blk.4.ffn_down.weight", "blk.5.ffn_down.weight") == [T.Q5_K, T.Q4_K]
    assert kinds("q4_k_m", "blk.3.ffn_gate_inp.weight", "blk.3.attn_norm.weight") == [T.F32, T.F32]
    assert kinds("q8_0", "blk.3.ffn_down_exps.weight", mxfp4_experts=True) == [T.MXFP4]


@pytest.mark.parametrize(
    ("mix", "row", "kind"),
    [
        ("q4_k_m", 1408, T.Q5_0),
        ("q6_k", 2880, T.Q8_0),
        ("q2_k", 96, T.Q4_0),
        ("iq4_xs", 128, T.IQ4_NL),
        ("q4_k_m", 80, T.F16),
    ],
)
def test_rows_that_are_no_whole_number_of_blocks(mix: str, row: int, kind: T) -> None:
    found = mix_types(mix, [GgufTensor("blk.20.attn_q.weight", (row, 64))], Facts(80, 0, 1))
    assert found == (kind,)


def test_next_token_layers_count_to_the_file_only() -> None:
    air, r1 = load_profile("glm-4.5-air", "q8_0"), load_profile("deepseek-r1", "q8_0")
    assert air.mtp is not None
    assert air.file_bytes - air.weight_bytes == air.mtp.weight_bytes.gpu > 3e9
    assert r1.mtp is None, "converted files of DeepSeek leave it out"
    own = load_profile("deepseek-r1").mtp
    assert own is not None, "its own checkpoint has it"
    assert len(air.layers) == 46


# --- engines with a format for each kind of device --------------------------------------------------------------------


def test_the_same_experts_weigh_differently_on_gpu_and_cpu() -> None:
    profile = load_profile("deepseek-v2", "gpu=marlin,cpu=q4_k_m")
    bf16, q4 = load_profile("deepseek-v2", "bf16"), load_profile("deepseek-v2", "q4_k_m")
    experts = [profile.layers[9].experts, bf16.layers[9].experts, q4.layers[9].experts]
    both, whole, mix = (x.weight_bytes for x in experts if x is not None)
    assert both.cpu == mix.cpu
    assert 0.26 < both.gpu / whole.gpu < 0.27, "4.25 bits a weight and a lock buffer"
    assert profile.embedding.weight_bytes.gpu == bf16.embedding.weight_bytes.gpu
    assert profile.quant == "gpu=marlin,cpu=q4_k_m"
    torch_experts = load_profile("deepseek-v2", "gpu=bf16,cpu=amx_int4").layers[9].experts
    assert torch_experts is not None
    assert torch_experts.weight_bytes.gpu == whole.gpu
    rows = 160 * (2 * 1536 + 5120)
    assert torch_experts.weight_bytes.cpu == whole.gpu // 4 + 4 * rows


def test_arithmetic_of_packed_weights() -> None:
    down = Tensor("mlp.experts.down_proj", (2, 256, 128), quantisable=True)
    assert tensor_bytes(down, "amx_int8", experts=True) == 2 * 256 * (128 + 4)
    assert tensor_bytes(down, "amx_int4", experts=True) == 2 * 256 * (64 + 4)
    assert tensor_bytes(down, "amx_int4") == 2 * 256 * 128 * 2
    assert tensor_bytes(down, "marlin", experts=True) == 2 * (256 * (64 + 2 * 2) + 4 * 64)
    padded = Tensor("q_proj.weight", (60, 100), quantisable=True)
    assert tensor_bytes(padded, "marlin") == 64 * (64 + 2 * 2) + 64
    latent = Tensor("self_attn.kv_b_proj.weight", (256, 128), quantisable=True)
    assert tensor_bytes(latent, "marlin") == 256 * 128 * 2


@pytest.mark.parametrize(
    ("quant", "words"),
    [
        ("marlin", "exists on GPUs only; write e.g. gpu=marlin,cpu=q4_k_m"),
        ("amx_int4", "exists on CPUs only; write e.g. gpu=bf16,cpu=amx_int4"),
        ("gpu=amx_int8,cpu=bf16", "exists on CPUs only"),
        ("gpu=marlin,cpu=marlin", "exists on GPUs only"),
        ("gpu=marlin", "is not known"),
        ("gpu=nothing,cpu=bf16", "is not known"),
        ("q4_k_xl", "is not known"),
    ],
)
def test_formats_that_are_not_there(quant: str, words: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile("mixtral-8x7b", quant)
    assert words in str(caught.value)


def test_every_name_is_read_in_any_case() -> None:
    for name in known_quants():
        if name not in ("marlin", "amx_int8", "amx_int4"):
            assert check_quant(name.upper()) == check_quant(name)
    assert check_quant("Q4-K-M") == "q4_k_m"
    assert check_quant("GPU=Marlin, CPU=AMXINT8") == "gpu=marlin,cpu=amx_int8"
    assert check_quant("mxfp4") == "mxfp4_moe"


def test_formats_of_experts_need_experts() -> None:
    for quant in ("mxfp4", "hf_mxfp4", "gpu=bf16,cpu=amx_int8"):
        with pytest.raises(ProfileError, match="routed experts only"):
            load_profile("llama-3.1-8b", quant)


def test_a_tied_head_is_held_once_where_both_kinds_say_so() -> None:
    config = {**(model_config_preset("llama-3.1-8b") or {}), "tie_word_embeddings": True}
    stored = stored_as(model_tensors(config), "gpu=bf16,cpu=q4_k_m")
    assert stored.tied_bytes == stored.embedding.cpu < stored.embedding.gpu


# --- the cache --------------------------------------------------------------------------------------------------------


@cache
def kv(preset: str, kv_quant: str | None = None, mla: str | None = None) -> int:
    return load_profile(preset, kv_quant=kv_quant, mla=mla).layers[-1].attention.kv_bytes_per_token


def test_cache_types_by_arithmetic() -> None:
    values = 2 * 4 * 128
    expected = {
        "fp32": 4 * values, "bf16": 2 * values, "fp16": 2 * values, "fp8": values, "q8_0": values * 34 // 32,
        "q5_1": values * 24 // 32, "q5_0": values * 22 // 32, "q4_1": values * 20 // 32, "q4_0": values * 18 // 32,
        "iq4_nl": values * 18 // 32,
    }  # fmt: skip
    assert set(expected) == set(KV_TYPES)
    assert {name: kv("qwen3-235b-a22b", name) for name in KV_TYPES} == expected
    assert kv("qwen3-235b-a22b") == kv("qwen3-235b-a22b", "F16") == 2 * values


def test_latent_attention_compressed_and_expanded() -> None:
    assert kv("deepseek-v3") == kv("deepseek-v3", mla="compressed") == 2 * 576
    assert kv("deepseek-v3", mla="expanded") == 2 * 128 * (192 + 128)
    assert kv("deepseek-v3", "q8_0") == 576 * 34 // 32
    assert kv("mixtral-8x7b", mla="expanded") == kv("mixtral-8x7b"), "nothing is latent there"
    for mla, latent in ((None, True), ("compressed", True), ("expanded", False)):
        assert {layer.attention.latent for layer in load_profile("deepseek-v3", mla=mla).layers} == {latent}


def test_layers_keep_their_own_kind_of_cache() -> None:
    """Windows (gpt-oss), chunks (Llama 4), a recurrent state and no cache per token (Qwen3-Next)."""

    def windows(profile: ModelProfile) -> list[int | None]:
        return [layer.attention.kv_window_tokens for layer in profile.layers[:4]]

    assert windows(load_profile("gpt-oss-120b", kv_quant="q8_0")) == [128, None, 128, None]
    assert windows(load_profile("llama-4-scout")) == [8192, 8192, 8192, None]
    linear, full = load_profile("qwen3-next-80b-a3b-thinking", kv_quant="fp8").layers[2:4]
    assert (linear.attention.kv_bytes_per_token, full.attention.kv_bytes_per_token) == (0, 2 * 2 * 256)
    assert linear.attention.state_bytes > 2_000_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_quant": "q3_k"}, "kv_quant: 'q3_k' is not a known cache type"),
        ({"kv_quant": 8}, "kv_quant: 8"),
        ({"mla": "full"}, "mla: 'full' is not known"),
    ],
)
def test_cache_types_that_are_not_there(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile("deepseek-v3", **options)
    assert words in str(caught.value)


def test_a_cache_that_fills_no_blocks_is_refused_as_runtimes_do() -> None:
    config = {**(model_config_preset("qwen3-30b-a3b") or {}), "head_dim": 100, "num_key_value_heads": 1}
    config["num_attention_heads"] = 1
    with pytest.raises(ProfileError, match=r"blocks of 32 values.*200 a token"):
        load_profile(config, kv_quant="q4_0")


def test_the_choice_is_in_the_profile_and_fixed_from_then_on() -> None:
    profile = load_profile("deepseek-v3", kv_quant="fp8", mla="expanded")
    assert (profile.kv_quant, profile.mla) == ("fp8", "expanded")
    assert load_profile(profile.to_dict()) == profile
    with pytest.raises(ProfileError, match="kv_quant: 'fp8' cannot be chosen"):
        load_profile(profile, kv_quant="fp8")
