"""Methods of quantisation by small configs: what each matches, and what is refused in one line."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from profiles import ModelProfile, ProfileError, load_profile
from profiles.formats.matching import compressed_tensors, hugging_face, may_tell_experts_apart, searched, wildcards
from profiles.formats.methods import METHODS
from profiles.formats.module import Module
from profiles.hf_config.reader import read_hf_config

TINY = {
    **{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 256, "num_hidden_layers": 2},
    **{"intermediate_size": 384, "moe_intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"head_dim": 64, "vocab_size": 512, "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
    **{"tie_word_embeddings": False, "dtype": "bfloat16", "transformers_version": "4.57.6"},
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
Q, KV, EXPERTS = 4 * 64 * 256, 2 * 64 * 256, 4 * 3 * 128 * 256
ATTENTION = 2 * Q + 2 * KV


def read(settings: dict[str, Any], key: str = "quantization_config", **config: Any) -> ModelProfile:
    return read_hf_config({**TINY, key: settings, **config}, "tiny")


def plain() -> ModelProfile:
    return read_hf_config(TINY, "tiny")


def saved(profile: ModelProfile) -> tuple[int, int, int, int]:
    """Bytes less than in bf16: of a dense layer, of a layer's attention, of its experts, of the head."""
    pairs = zip(profile.layers, plain().layers, strict=True)
    less = [b.attention.weight_bytes.gpu - a.attention.weight_bytes.gpu for a, b in pairs]
    experts = [layer.experts.weight_bytes.gpu for layer in (profile.layers[1], plain().layers[1]) if layer.experts]
    return *less, experts[1] - experts[0], plain().head.weight_bytes.gpu - profile.head.weight_bytes.gpu


# ---- matching ----


def module(name: str) -> Module:
    return Module("linear", (name,))


def test_hugging_faces_rule() -> None:
    """A regex from the start that ends at a dot, or the end of the name (transformers' `should_convert_module`)."""
    layer = hugging_face(["model.layers.1"], "x")
    assert layer(module("model.layers.1.self_attn.q_proj"))
    assert not layer(module("model.layers.11.self_attn.q_proj"))
    gate = hugging_face(["gate"], "x")
    assert gate(module("model.layers.0.block_sparse_moe.gate"))
    assert gate(module("model.layers.0.mlp.shared_expert_gate"))
    assert not gate(module("model.layers.0.mlp.experts.0.gate_proj"))
    star = hugging_face(["model.layers.*.self_attn"], "x")
    assert star(module("model.layers.7.self_attn.q_proj"))
    assert not star(module("model.layers.7.mlp.gate_proj"))


def test_hugging_faces_rule_is_that_of_transformers() -> None:
    quantizers = pytest.importorskip("transformers.quantizers.quantizers_utils")
    patterns = [
        "gate",
        "lm_head",
        "model.layers.1",
        r"model\.layers\.[02]\.mlp",
        "model.layers.*.self_attn.k",
        "mlp.fc",
    ]
    names = [f"model.layers.{i}.{x}" for i in (0, 1, 2, 11) for x in ("mlp.gate", "mlp.up", "self_attn.k", "a.mlp.fc")]
    for pattern in patterns:
        ours = hugging_face([pattern], "x")
        for name in [*names, "lm_head", "model.lm_head", "gate", "mlp.fc.x"]:
            theirs = not quantizers.should_convert_module(name, [pattern])
            assert ours(module(name)) == theirs, (pattern, name)


def test_compressed_tensors_rule() -> None:
    """A whole name or a regex from the start: no parts, no ends."""
    assert not compressed_tensors(["model.layers.0"], "x")(module("model.layers.0.self_attn.q_proj"))
    assert compressed_tensors(["lm_head"], "x")(module("lm_head"))
    assert not compressed_tensors(["lm_head"], "x")(module("language_model.lm_head"))
    dense = compressed_tensors([r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"], "x")
    assert dense(module("model.layers.0.mlp.gate_proj"))
    assert not dense(module("model.layers.1.mlp.experts.0.gate_proj"))
    assert not compressed_tensors(["re:self_attn"], "x")(module("model.layers.0.self_attn.q_proj"))


def test_wildcards_cross_dots_and_names_stand_for_what_is_in_them() -> None:
    assert wildcards(["model.layers.0*"])(module("model.layers.0.self_attn.q_proj"))
    assert wildcards(["model.layers.1*"])(module("model.layers.10.mlp.up_proj"))
    assert not wildcards(["model.layers.1.*"])(module("model.layers.10.mlp.up_proj"))
    assert wildcards(["*.attn.*"])(module("layers.3.attn.wq_a"))
    assert wildcards(["vision_tower"])(module("vision_tower.blocks.0.fc"))
    assert searched(["attn.q"], "x")(module("model.layers.1.attn.q_proj"))


def test_one_expert_is_asked_about_where_no_pattern_tells_them_apart() -> None:
    assert not may_tell_experts_apart(["model.layers.17.mlp.gate", "re:.*w2$", "*.layers.3*"])
    assert may_tell_experts_apart([r"re:.*experts\.[0-9]\..*"])
    assert may_tell_experts_apart(["model.layers.0.mlp.experts.3.up_proj"])


# ---- methods ----


def test_gptq_dynamic_skips_and_changes() -> None:
    """Attention in 16 bits, as in published files of Qwen3.5; the first pattern that matches counts."""
    whole = saved(read(GPTQ))
    skipped = saved(read({**GPTQ, "dynamic": {"-:.*attn.*": {}, "+:.*attn.*": {"bits": 2}}}))
    assert skipped[1] == 0 < whole[1]
    assert skipped[2] == whole[2]
    eight = saved(read({**GPTQ, "dynamic": {r".*\.self_attn\.": {"bits": 8, "group_size": -1}}}))
    packed = ATTENTION + 2 * (256 + 2 * 128 + 256) + (256 + 2 * 128 + 256) + 4 * 4 * 256
    assert 2 * ATTENTION - packed == eight[1]
    assert saved(read({**GPTQ, "dynamic": {"-:self_attn": {}}})) == whole, "anchored at the start"
    assert saved(read({**GPTQ, "lm_head": True}))[3] > 0 == whole[3]


def test_gptq_keeps_zeros_and_an_order() -> None:
    experts = read(GPTQ).layers[1].experts
    assert experts is not None
    one = lambda o, i: o * i // 2 + i // 128 * (o // 2 + 2 * o) + 4 * i  # noqa: E731
    assert experts.weight_bytes.gpu == 4 * (2 * one(128, 256) + one(256, 128))
    assert read({**GPTQ, "desc_act": True, "sym": False}).weight_bytes == read(GPTQ).weight_bytes


def test_single_experts_may_differ() -> None:
    found = read({**GPTQ, "dynamic": {r"-:.*experts\.2\.": {}}}).layers[1].experts
    assert found is not None
    assert found.expert_weight_bytes is not None
    assert found.expert_weight_bytes[2] == EXPERTS // 4 * 2 > found.expert_weight_bytes[1]


def test_mlx_packs_ends_and_routers() -> None:
    settings = {"group_size": 64, "bits": 4, "model.layers.1.mlp.gate": {"group_size": 64, "bits": 8}}
    profile = read({**settings, "model.layers.1.mlp.switch_mlp.down_proj": False}, "quantization")
    assert profile.embedding.weight_bytes.gpu == 512 * 256 * 9 // 16
    experts = profile.layers[1].experts
    assert experts is not None
    assert experts.weight_bytes.gpu == EXPERTS // 3 * 2 * 9 // 16 + EXPERTS // 3 * 2
    both = read_hf_config(
        {**TINY, "quantization": settings, "quantization_config": {**GPTQ, "bits": 8}}, "tiny"
    )  # its own block wins
    assert both.quant == "mlx-4bit, mlx-4bit head"


def test_a_method_without_its_name() -> None:
    """Published by NVIDIA's modelopt 0.31 with an algorithm and a producer only."""
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}
    settings = {
        "quant_algo": "FP8",
        "ignore": ["lm_head", "*.gate"],
        "producer": {"name": "modelopt"},
        "config_groups": groups,
    }
    profile = read({**settings, "kv_cache_scheme": "FP8"})
    assert saved(profile)[1] == ATTENTION - 4 * 8
    assert any("KV cache" in note for note in profile.notes)


def test_compressed_tensors_by_group_and_name() -> None:
    def group(bits: int, *targets: str) -> dict[str, Any]:
        weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
        return {"targets": list(targets), "weights": weights, "input_activations": None, "format": "pack-quantized"}

    settings = {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed",
        "config_groups": {"a": group(4, "Linear"), "b": group(8, "re:.*self_attn.*")},
        "ignore": ["lm_head", "re:.*gate$"],
    }  # fmt: skip
    scales = 2 * 2 * (256 + 2 * 128 + 256) + 4 * 16
    assert saved(read(settings))[1] == 2 * ATTENTION - ATTENTION - scales
    assert saved(read({**settings, "ignore": ["re:.*gate$"]}))[3] > 0, "a head that is not ignored is packed"


def test_bitsandbytes_packs_experts_by_the_transformers_that_wrote_it() -> None:
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    assert saved(read(settings))[2] > 0
    assert saved(read(settings, transformers_version="5.23.0"))[2] == 0
    with pytest.raises(ProfileError, match="transformers_version: missing"):
        read(settings, transformers_version=None)


def test_exl3_lists_its_tensors() -> None:
    storage = {"model.layers.0.self_attn.q_proj": {"stored_tensors": {"trellis": {"n_bytes": 1000}}}}
    listed = {"quantization_config.json": {"tensor_storage": storage}}
    config = {**TINY, "quantization_config": {"quant_method": "exl3", "bits": 3.5}}
    assert saved(read_hf_config(config, "tiny", beside=listed.get))[0] == 2 * Q - 1000
    with pytest.raises(ProfileError, match=r"mean of bits.*quantization_config.json"):
        read_hf_config(config, "tiny")


def test_old_files_of_methods() -> None:
    old = {"quantize_config.json": {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}}
    assert read_hf_config(TINY, "tiny", beside=old.get).weight_bytes == read(GPTQ).weight_bytes
    awq = {"quant_config.json": {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}}
    assert read_hf_config(TINY, "tiny", beside=awq.get).quant == "awq-4bit"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq"}, "quantization_config.bits: None is not a whole number"),
        ({**GPTQ, "bits": 5}, "quantization_config.bits: 5 is none of 2, 3, 4, 8"),
        ({**GPTQ, "group_size": 0}, "quantization_config.group_size: 0 is not a whole number"),
        ({**GPTQ, "bits_of_scales": 4}, "quantization_config.bits_of_scales: 4 is not understood"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin' is not known here"),
        ({**GPTQ, "dynamic": {"+:(a+)+": {}}}, "quantization_config.dynamic: '(a+)+' repeats what can match"),
        ({**GPTQ, "dynamic": {"+:[": {}}}, "is not a regular expression"),
        ({**GPTQ, "dynamic": {"+:.*": {"sparsity": 0.5}}}, "dynamic.+:.*.sparsity: 0.5 is not understood"),
        ({**GPTQ, "dynamic": ["x"]}, "quantization_config.dynamic: a list of 1 is not a mapping"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "quantization_config.version: 'gemv'"),
        ({"quant_method": "awq", "bits": 3}, "is neither 4 nor 8"),
        ({"quant_method": "aqlm"}, "quantization_config.quant_method: 'aqlm' is not known here"),
        ({"bits": 4}, "quantization_config.quant_method: missing, and nothing else names a method"),
        ({"quant_method": "fp8", "weight_block_size": "all"}, "weight_block_size: 'all' is not two whole numbers"),
        ({"quant_method": "fp8", "expert_dtype": "fp3"}, "expert_dtype: 'fp3' is not known here"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "is not a list of names"),
        ({"quant_method": "fp8", "modules_to_convert": ["embed"]}, "modules_to_convert"),
        ({"quant_method": "mxfp4", "block": 16}, "quantization_config.block: 16 is not understood"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP3", "ignore": []}, "quant_algo: 'NVFP3' is not known here"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "neither which modules are excluded"),
        ({"quant_algo": "MIXED_PRECISION", "quantized_layers": {}}, "quantized_layers: a mapping of 0 is no mapping"),
        ({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"x": 1}}, "has 'x' without an algorithm"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "config_groups"),
        ({"quant_method": "compressed-tensors", "format": "zipped"}, "format: 'zipped' is not known here"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": ["Conv9"]}}}, "names Conv9"),
        ({"quant_method": "bitsandbytes"}, "load_in_4bit"),
        ({"quant_method": "hqq"}, "quant_config: None is missing"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "_type"),
        ({"quant_method": "quark"}, "global_quant_config"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "tar"}, "packing_format: 'tar'"),
        ({"group_size": 64, "bits": 7}, "bits"),
        ({"group_size": 64, "bits": 4, "model.norm": 3}, "model.norm: 3 is not a mapping"),
        ([], "quantization_config: a list of 0 is not a mapping"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(settings: Any, words: str) -> None:
    with pytest.raises(ProfileError) as caught:
        read(settings)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert "quant=" in message or "mend" in message or "write it out" in message


def test_junk_in_any_setting_is_read_or_refused() -> None:
    """Never another exception, and never a profile of half the config."""
    good: list[dict[str, Any]] = [
        {**GPTQ, "dynamic": {"-:.*attn.*": {}}},
        {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]},
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"], "group_size": 16},
        {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"model.layers.0.mlp.up_proj": {"quant_algo": "FP8"}}},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]},
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "extra_config": {"lm_head": {"bits": 8}}},
        {"group_size": 64, "bits": 4, "mode": "affine"},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["gate"]},
    ]
    for settings in good:
        for key in settings:
            for junk in ("x", -1, 0, 10**20, [], {}, None, [{}], {"a": 1}, 1.5, True, [["a"]]):
                with suppress(ProfileError):
                    read({**settings, key: junk})


def test_every_method_is_a_file_that_says_its_name() -> None:
    assert len(METHODS) >= 12
    assert len({method.name for method in METHODS.values()}) == len(METHODS)


# ---- by name ----


def test_names_that_people_type() -> None:
    def gb(quant: str) -> float:
        return load_profile("qwen3-30b-a3b", quant).weight_bytes / 1e9

    assert gb("NVFP4") == gb("fp4") == pytest.approx(18.09, abs=0.01)
    assert gb("W4A16") == gb("int4-g128") < gb("w4a16_g32")
    assert gb("int4") < gb("w4a16"), "int4 keeps its meaning: no shapes beside the weights"
    assert gb("int3") < gb("w4a16")
    assert gb("GPTQ-Int4") == gb("gptq") == gb("gptq_4bit_g128")
    assert gb("awq") < gb("awq_g64") < gb("bf16")
    assert gb("nf4_double") < gb("bnb-nf4") == gb("nf4")
    assert gb("fp8_tensor") < gb("fp8_channel") < gb("mxfp8")
    assert gb("nvfp4") < gb("nvfp4 experts, bf16 attention") < gb("fp8")
    assert gb("mxfp4 experts, bf16 attention") == gb("hf_mxfp4")
    assert load_profile("qwen3-30b-a3b", "NVFP4 experts, BF16 attention").quant == "nvfp4 experts, bf16 attention"


@pytest.mark.parametrize(
    "quant", ["int9", "w4a16_g0", "gptq_5bit", "awq_3bit", "nvfp4 experts", "x experts, bf16 attention"]
)
def test_names_that_are_none(quant: str) -> None:
    with pytest.raises(ProfileError, match="is not known"):
        load_profile("qwen3-30b-a3b", quant)


def test_formats_of_experts_need_experts() -> None:
    with pytest.raises(ProfileError, match="routed experts only"):
        load_profile("llama-3.1-8b", "nvfp4 experts, bf16 attention")
    assert load_profile("llama-3.1-8b", "nvfp4").quant == "nvfp4"


def test_one_format_a_kind_of_device_may_be_of_these() -> None:
    both = load_profile("qwen3-30b-a3b", "gpu=nvfp4,cpu=q4_k_m")
    assert both.packed_by is None
    assert both.layers[0].experts is not None
    assert both.layers[0].experts.weight_bytes.gpu != both.layers[0].experts.weight_bytes.cpu


# ---- files beside config.json ----


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"a": 1, "a": 2}'])
def test_a_bad_file_beside_is_named_and_nothing_is_half_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "hf_quant_config.json").write_text(text)
    with pytest.raises(ProfileError, match=r"hf_quant_config.json: ") as caught:
        load_profile(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "quantization_config": GPTQ}))
    assert load_profile(tmp_path).quant == "gptq-4bit", "config.json speaks, so the other file is not asked"


def test_files_of_other_things_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    with pytest.raises(ProfileError, match="neither which modules are excluded"):
        load_profile(tmp_path)
    assert load_profile(tmp_path, "bf16").quant == "bf16"
    assert load_profile(tmp_path, "nvfp4").packed_by == "modelopt"
