"""What the comparison with transformers' classes does not show of Qwen, Gemma, Hunyuan and other makers' families."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from profiles.errors import ProfileError
from profiles.hf_config.reader import model_tensors, read_hf_config
from profiles.tensors import ModelTensors, params

PERIOD = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
GEMMA: dict[str, Any] = {
    "model_type": "gemma4_text", "vocab_size": 262144, "head_dim": 256, "global_head_dim": 512,
    "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "sliding_window": 1024,
}  # fmt: skip
PUBLISHED: dict[str, tuple[dict[str, Any], float, float]] = {
    # google/gemma-4-26B-A4B; its card: 25.2B of the text model, 3.8B active
    "gemma-4-26B-A4B": (GEMMA | {
        "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30, "num_attention_heads": 16,
        "num_key_value_heads": 8, "num_global_key_value_heads": 2, "enable_moe_block": True, "num_experts": 128,
        "top_k_experts": 8, "moe_intermediate_size": 704}, 25.2, 3.8),
    # google/gemma-4-31B; its card: 30.7B
    "gemma-4-31B": (GEMMA | {
        "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60, "num_attention_heads": 32,
        "num_key_value_heads": 16, "num_global_key_value_heads": 4}, 30.7, 30.7),
    # CohereLabs/command-a-plus-05-2026: 218B, 25B active
    "command-a-plus": ({
        "model_type": "cohere2_vision", "text_config": {
            "model_type": "cohere2_moe", "head_dim": 128, "hidden_size": 4096, "intermediate_size": 4096,
            "layer_types": PERIOD * 8, "num_attention_heads": 128, "num_experts": 128, "num_experts_per_tok": 8,
            "num_hidden_layers": 32, "num_key_value_heads": 8, "num_shared_experts": 4, "sliding_window": 4096,
            "first_k_dense_replace": 0, "vocab_size": 262144}}, 218, 25),
    # JetBrains/Mellum2-12B-A2.5B-Base
    "Mellum2-12B-A2.5B": ({
        "model_type": "mellum", "vocab_size": 98304, "hidden_size": 2304, "intermediate_size": 7168, "head_dim": 128,
        "layer_types": PERIOD * 7, "moe_intermediate_size": 896, "num_attention_heads": 32, "num_key_value_heads": 4,
        "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 28, "sliding_window": 1024}, 12, 2.5),
    # arcee-ai/Trinity-Large: 400B, 13B active
    "Trinity-Large-400B": ({
        "model_type": "afmoe", "global_attn_every_n_layers": 4, "head_dim": 128, "hidden_size": 3072,
        "intermediate_size": 12288, "moe_intermediate_size": 3072, "num_attention_heads": 48, "num_dense_layers": 6,
        "num_experts": 256, "num_experts_per_tok": 4, "num_hidden_layers": 60, "num_key_value_heads": 8,
        "num_shared_experts": 1, "sliding_window": 4096, "vocab_size": 200192}, 400, 13),
    # Qwen/Qwen3.5-397B-A17B
    "Qwen3.5-397B-A17B": ({
        "model_type": "qwen3_5_moe", "text_config": {
            "head_dim": 256, "hidden_size": 4096, "linear_num_value_heads": 64, "moe_intermediate_size": 1024,
            "num_attention_heads": 32, "num_experts": 512, "num_experts_per_tok": 10, "num_hidden_layers": 60,
            "num_key_value_heads": 2, "shared_expert_intermediate_size": 1024, "vocab_size": 248320}}, 397, 17),
    # reflection/Beam-1.0-501B-A23B, sizes as transformers declares them
    "Beam-1.0-501B-A23B": ({
        "model_type": "beam", "vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 20480, "num_experts": 256,
        "num_hidden_layers": 52, "num_attention_heads": 48, "moe_intermediate_size": 2560, "num_experts_per_tok": 8},
        501, 23),
    # databricks/dbrx-instruct; its card: 132B, 36B active
    "dbrx-instruct": ({
        "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352,
        "attn_config": {"kv_n_heads": 8}, "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16,
                                                         "moe_top_k": 4}}, 132, 36),
    # tencent/Hunyuan-A13B-Instruct; its card: 80B, 13B active
    "Hunyuan-A13B": ({
        "model_type": "hunyuan_v1_moe", "vocab_size": 128167, "hidden_size": 4096, "intermediate_size": 3072,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "num_experts": 64, "moe_topk": [8] * 32, "tie_word_embeddings": True}, 80, 13),
}  # fmt: skip


def _sizes(model: ModelTensors) -> tuple[float, float]:
    """Billions of parameters, of all and of what a token uses; a tied head counts once."""
    routed = [layer.experts for layer in model.layers if layer.experts]
    around = params(model.embedding) + sum(params(layer.attention) for layer in model.layers)
    around += 0 if model.tied else params(model.head)
    inside = sum(params(experts.tensors) for experts in routed)
    used = sum(params(experts.tensors) * experts.active / experts.count for experts in routed)
    return (around + inside) / 1e9, (around + used) / 1e9


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """Totals within 1 %, or as the name rounds; what is active is rounded, and counted, more freely."""
    config, total, active = PUBLISHED[name]
    found = _sizes(model_tensors(config))
    assert found[0] == pytest.approx(total, rel=0.01, abs=0.5 if isinstance(total, int) else 0.05)
    assert found[1] == pytest.approx(active, rel=0.04)
    assert read_hf_config(config, name, "bf16").params == pytest.approx(1e9 * found[0])


SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
ROUTED = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ERNIE = SMALL | {"model_type": "ernie4_5_moe_vl", "moe_k": 2, "moe_num_shared_experts": 2}
ERNIE |= {"moe_num_experts": [8, 8], "moe_intermediate_size": [32, 16]}
QWEN4 = SMALL | ROUTED | {"model_type": "qwen4_exp_text", "shared_expert_intermediate_size": 48}
QWEN4 |= {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_compress_ratio": 4}
LAGUNA = SMALL | ROUTED | {"model_type": "laguna", "shared_expert_intermediate_size": 48}
HUNYUAN = SMALL | {"model_type": "hunyuan_v1_moe", "num_experts": 8}
SMALL_GEMMA = GEMMA | SMALL
REFUSED = [
    (SMALL_GEMMA | {"per_layer_config": {"9": {"head_dim": 8}}}, r"per_layer_config\.9: .*by its index"),
    (SMALL_GEMMA | {"per_layer_config": {"1": {"intermediate_size": 8}}}, r"per_layer_config\.1: .*by its index"),
    (SMALL_GEMMA | {"num_kv_shared_layers": 4}, "num_kv_shared_layers: 4 of 4 layers leaves no layer of each kind"),
    (SMALL_GEMMA | {"enable_moe_block": True}, "num_experts: missing"),
    (ERNIE | {"moe_intermediate_size": [32]}, r"moe_intermediate_size: \[32\]; give two widths"),
    (QWEN4 | {"ple_layer_ids": [5]}, r"ple_layer_ids: \[5\] are not all from 1 to 4"),
    (QWEN4 | {"ple_layer_ids": [1], "ple_embed_dim": 30}, "ple_embed_dim: 30 is no multiple of 16 n-gram heads"),
    (QWEN4 | {"layer_types": ["linear_attention"] * 3 + ["chunked"]}, r"layer_types\[3\]: 'chunked' is not known"),
    (LAGUNA | {"num_attention_heads_per_layer": [4, 4]}, "heads_per_layer: 2 entries; give one for each of 4 layers"),
    (HUNYUAN | {"moe_topk": [2, 2]}, "moe_topk: 2 entries; give one for each of 4 layers"),
    (HUNYUAN | {"moe_topk": 9}, "moe_topk: 9 is more than the 8 experts"),
    (PUBLISHED["dbrx-instruct"][0] | {"ffn_config": None}, "ffn_config: None is not a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_what_makes_no_model_is_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message) as problem:
        model_tensors(config)
    assert "\n" not in str(problem.value)


def test_ernie_files_from_before_transformers_had_the_type() -> None:
    nested = ERNIE | {"model_type": "ernie4_5_vl_moe_text", "moe_num_experts": 8}
    old, new = model_tensors(ERNIE), model_tensors(nested)
    assert (old.layers, old.head) == (new.layers, new.head)
    later = model_tensors(ERNIE | {"moe_layer_start_index": [2, 3]})
    assert [layer.experts is None for layer in later.layers] == [True, True, False, False]


def test_two_sets_of_experts_count_as_a_text_token_uses_them() -> None:
    experts = model_tensors(ERNIE).layers[1].experts
    assert experts is not None
    assert (experts.count, experts.active, experts.width) == (16, 2, 32)
    assert [tensor.shape[0] for tensor in experts.tensors] == [8] * 4


def test_layers_that_reuse_keys_and_values_cache_none_but_attend() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    model = model_tensors(SMALL_GEMMA | {"layer_types": kinds, "num_kv_shared_layers": 2})
    caches = [layer.cache for layer in model.layers]
    assert [cache.values_per_token for cache in caches] == [2 * 2 * 256, 2 * 2 * 512, 0, 0]
    assert [cache.flops_per_token_pair for cache in caches] == [4 * 4 * 256, 4 * 4 * 512] * 2
    assert "the last 2 layers use keys and values of earlier ones" in model.notes[0]


def test_wrappers_and_checkpoints_have_their_own_names() -> None:
    text = SMALL | ROUTED | {"model_type": "qwen3_omni_moe_text"}
    thinker = {"model_type": "qwen3_omni_moe_thinker", "text_config": text}
    names = model_tensors({"model_type": "qwen3_omni_moe", "thinker_config": thinker}).disk_names
    assert names.module("model.layers.0.mlp.gate") == "thinker.model.layers.0.mlp.gate"
    hy3 = model_tensors(SMALL | ROUTED | {"model_type": "hy_v3", "num_shared_experts": 1}).disk_names
    assert hy3.module("model.layers.1.mlp.gate") == "model.layers.1.mlp.router.gate"
    assert hy3.module("model.layers.0.mlp.gate_proj") == "model.layers.0.mlp.gate_proj"
    dbrx = model_tensors(PUBLISHED["dbrx-instruct"][0]).disk_names
    assert dbrx.module("model.layers.3.ffn.router.layer") == "transformer.blocks.3.ffn.router.layer"


@pytest.mark.parametrize("family", ["beam", "ernie4_5_moe", "ernie4_5_vl_moe", "flint", "hunyuan_v1_moe", "hy_v4"])
def test_parameters_that_stay_in_fp32_are_those_of_a_loaded_model(family: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from family_configs import CONFIGS
    from family_judge import TOWERS, build

    from runtime_adapter.meta.profile import offline_and_quiet

    config = {"model_type": family, **CONFIGS[family][0]}
    model = build(config, "cpu")
    with offline_and_quiet():
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).named_parameters()
    kept = {name.replace("language_model.", "") for name, p in loaded if p.dtype == torch.float32}
    ours = model_tensors(config)
    tensors = ours.embedding + ours.head + tuple(t for layer in ours.layers for t in layer.attention)
    assert {t.name for t in tensors if t.fp32} == {name for name in kept if not TOWERS.search(name)}


@pytest.mark.parametrize("family", ["mellum", "qwen3_5_moe_text", "qwen3_5_text"])
def test_next_token_layers_are_those_of_transformers_own(family: str) -> None:
    """MtpModel ties the embedding and head; names differ, so shapes are compared."""
    torch = pytest.importorskip("torch")
    from family_configs import CONFIGS
    from family_judge import build
    from transformers.modeling_layers import MtpModel

    config = {"model_type": family, **CONFIGS[family][0], "num_mtp_layers": 1, "mtp_layer_types": ["full_attention"]}
    model = build(config | {"mtp_mlp_layer_types": ["sparse"]}, "meta")
    with torch.device("meta"):
        layers = MtpModel(model, 1).named_parameters()
    expected = sorted(tuple(p.shape) for name, p in layers if not re.search("embed_tokens|shared_head", name))
    assert sorted(tensor.shape for tensor in model_tensors(config).mtp) == expected
