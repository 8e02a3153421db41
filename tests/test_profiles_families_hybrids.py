"""Families whose layers differ, and families that transformers does not know: published sizes, spellings, refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cost_models.memory import workspace_bytes
from profiles import Workload
from profiles.errors import ProfileError
from profiles.hf_config.families import FAMILIES
from profiles.hf_config.reader import model_tensors, read_hf_config
from profiles.hf_config.text_model import text_model
from profiles.tensors import ModelTensors, params

FULL, SLIDING = "full_attention", "sliding_attention"
NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
SUPER = "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
NEMOTRON: dict[str, Any] = {
    "model_type": "nemotron_h", "vocab_size": 131072, "head_dim": 128, "num_attention_heads": 32,
    "num_key_value_heads": 2, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4,
    "num_nextn_predict_layers": 0,
}  # fmt: skip
LING: dict[str, Any] = {
    "model_type": "bailing_hybrid", "vocab_size": 157184, "head_dim": 128, "num_experts_per_tok": 8,
    "num_shared_experts": 1, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "num_nextn_predict_layers": 0,
}  # fmt: skip
M3_FREQUENCY = [0] * 3 + [1] * 57
PUBLISHED: dict[str, tuple[dict[str, Any], float, float]] = {
    # nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16; its report: 31.6B, 3.6B active with embeddings
    "Nemotron-3-Nano": (NEMOTRON | {
        "hidden_size": 2688, "mamba_num_heads": 64, "hybrid_override_pattern": NANO, "n_routed_experts": 128,
        "num_experts_per_tok": 6, "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712},
        31.6, 3.6),
    # nvidia/NVIDIA-Nemotron-3-Super-120B-A12B
    "Nemotron-3-Super": (NEMOTRON | {
        "hidden_size": 4096, "mamba_num_heads": 128, "hybrid_override_pattern": SUPER, "n_routed_experts": 512,
        "num_experts_per_tok": 22, "moe_intermediate_size": 2688, "moe_shared_expert_intermediate_size": 5376,
        "moe_latent_size": 1024}, 120.6, 12.7),
    # ai21labs/AI21-Jamba-1.5-Mini and -Large: 52B, 12B active; 398B, 94B active
    "Jamba-1.5-Mini": ({
        "model_type": "jamba", "vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_experts": 16,
        "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1}, 52, 12),
    "Jamba-1.5-Large": ({
        "model_type": "jamba", "vocab_size": 65536, "hidden_size": 8192, "intermediate_size": 24576,
        "num_hidden_layers": 72, "num_attention_heads": 64, "num_key_value_heads": 8, "num_experts": 16,
        "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1}, 398, 94),
    # ibm-granite/granite-4.0-h-small: 32B, 9B active
    "Granite-4.0-H-Small": ({
        "model_type": "granitemoehybrid", "vocab_size": 100352, "hidden_size": 4096, "intermediate_size": 768,
        "shared_intermediate_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_local_experts": 72, "num_experts_per_tok": 10, "mamba_n_heads": 128, "mamba_d_head": 64,
        "mamba_d_state": 128, "mamba_n_groups": 1, "tie_word_embeddings": True,
        "layer_types": ["attention" if index % 10 == 5 else "mamba" for index in range(40)]}, 32, 9),
    # LiquidAI/LFM2-8B-A1B: 8.3B, 1.5B active
    "LFM2-8B-A1B": ({
        "model_type": "lfm2_moe", "vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 7168,
        "moe_intermediate_size": 1792, "num_hidden_layers": 24, "num_dense_layers": 2, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_experts": 32, "num_experts_per_tok": 4, "conv_L_cache": 3,
        "full_attn_idxs": [2, 6, 10, 14, 18, 21]}, 8.3, 1.5),
    # MiniMaxAI/MiniMax-Text-01, as first published: 456B, 45.9B active without embedding and head
    "MiniMax-Text-01": ({
        "architectures": ["MiniMaxText01ForCausalLM"], "model_type": "minimax_text_01", "vocab_size": 200064,
        "hidden_size": 6144, "intermediate_size": 9216, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 32, "num_experts_per_tok": 2,
        "shared_intermediate_size": 0, "attn_type_list": ([0] * 7 + [1]) * 10}, 456, 45.9 + 2.46),
    # MiniMaxAI/MiniMax-M3: 428B with its tower, 23B active without embedding and head
    "MiniMax-M3": ({
        "architectures": ["MiniMaxM3ForCausalLM"], "model_type": "minimax_m3", "vocab_size": 200064,
        "hidden_size": 6144, "intermediate_size": 3072, "dense_intermediate_size": 12288,
        "shared_intermediate_size": 3072, "num_hidden_layers": 60, "num_attention_heads": 64, "num_key_value_heads": 4,
        "head_dim": 128, "num_local_experts": 128, "num_experts_per_tok": 4, "moe_layer_freq": M3_FREQUENCY,
        "sparse_attention_config": {"sparse_attention_freq": M3_FREQUENCY, "sparse_disable_index_value": M3_FREQUENCY,
                                    "sparse_num_index_heads": 4, "sparse_index_dim": 128}}, 428, 23 + 2.46),
    # thinkingmachines/Inkling: 952B in its files with towers, 41B active
    "Inkling": ({
        "model_type": "inkling_mm_model", "text_config": {
            "hidden_size": 6144, "num_hidden_layers": 66, "vocab_size": 201024, "num_attention_heads": 64,
            "dense_mlp_idx": 2, "dense_intermediate_size": 24576, "intermediate_size": 3072, "n_routed_experts": 256,
            "num_experts_per_tok": 6, "n_shared_experts": 2}}, 952, 41),
    # Zyphra/ZAYA1-8B: 8.3B and 0.76B active without the embedding
    "ZAYA1-8B": ({
        "model_type": "zaya", "vocab_size": 262272, "hidden_size": 2048, "num_hidden_layers": 40, "head_dim": 128,
        "num_attention_heads": 8, "num_key_value_heads": 2, "num_experts": 16, "num_experts_per_tok": 1,
        "moe_intermediate_size": 2048, "router_hidden_size": 256}, 8.3 + 0.54, 0.76 + 0.54),
    # XiaomiMiMo/MiMo-V2-Flash: 309B, 15B active
    "MiMo-V2-Flash": ({
        "model_type": "mimo_v2_flash", "vocab_size": 152576, "hidden_size": 4096, "intermediate_size": 16384,
        "moe_intermediate_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 4,
        "head_dim": 192, "v_head_dim": 128, "swa_num_key_value_heads": 8, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_shared_experts": None, "moe_layer_freq": [0] + [1] * 47,
        "hybrid_layer_pattern": [0 if index == 0 or (index + 1) % 6 == 0 else 1 for index in range(48)]}, 309, 15),
    # XiaomiMiMo/MiMo-V2.5-Pro, of a type that transformers does not know: 1.02T, 42B active
    "MiMo-V2.5-Pro": ({
        "model_type": "mimo_v2", "architectures": ["MiMoV2ForCausalLM"], "vocab_size": 152576, "hidden_size": 6144,
        "intermediate_size": 16384, "num_hidden_layers": 70, "num_attention_heads": 128, "num_key_value_heads": 8,
        "head_dim": 192, "v_head_dim": 128, "swa_num_attention_heads": 128, "swa_num_key_value_heads": 8,
        "swa_head_dim": 192, "swa_v_head_dim": 128, "n_routed_experts": 384, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "sliding_window": 128, "hybrid_layer_pattern": [0] + [1] * 69,
        "moe_layer_freq": [0] + [1] * 69}, 1020, 42),
    # stepfun-ai/Step-3.5-Flash, in its own words: 196B, 11B active without embedding and head
    "Step-3.5-Flash": ({
        "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", "vocab_size": 128896, "hidden_size": 4096,
        "intermediate_size": 11264, "num_hidden_layers": 45, "num_attention_heads": 64, "num_attention_groups": 8,
        "head_dim": 128, "moe_num_experts": 288, "moe_top_k": 8, "moe_intermediate_size": 1280,
        "share_expert_dim": 1280, "sliding_window": 512, "layer_types": [FULL, SLIDING, SLIDING, SLIDING] * 12,
        "num_nextn_predict_layers": 3, "attention_other_setting": {"num_attention_heads": 96, "head_dim": 128},
        "moe_layers_enum": ",".join(map(str, range(3, 45)))}, 196, 11 + 1.06),
    # upstage/Solar-Open-100B: 102B, 12B active
    "Solar-Open-100B": ({
        "model_type": "solar_open", "vocab_size": 196608, "hidden_size": 4096, "num_hidden_layers": 48,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "moe_intermediate_size": 1280,
        "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8}, 102, 12),
    # upstage/Solar-Open2-250B
    "Solar-Open2-250B": ({
        "model_type": "solar_open2", "architectures": ["SolarOpen2ForCausalLM"], "vocab_size": 196608,
        "linear_attn_config": {"short_conv_kernel_size": 4, "head_dim": 128, "num_heads": 64}, "hidden_size": 4096,
        "num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 10240, "moe_intermediate_size": 1280, "n_routed_experts": 320, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "gqa_layers": list(range(0, 48, 4))}, 250, 14.3),
    # inclusionAI/Ling-mini-2.0; llama.cpp counts 16.26B
    "Ling-mini-2.0": ({
        "model_type": "bailing_moe", "architectures": ["BailingMoeV2ForCausalLM"], "vocab_size": 157184,
        "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 20, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 256, "num_shared_experts": 1,
        "num_experts_per_tok": 8, "moe_intermediate_size": 512, "first_k_dense_replace": 1, "use_qk_norm": True},
        16.26, 1.4),
    # inclusionAI/Ling-2.5-1T: 63B active
    "Ling-2.5-1T": (LING | {
        "architectures": ["BailingMoeV2_5ForCausalLM"], "hidden_size": 8192, "intermediate_size": 18432,
        "first_k_dense_replace": 4, "group_norm_size": 8, "layer_group_size": 8, "moe_intermediate_size": 2048,
        "num_attention_heads": 64, "num_key_value_heads": 64, "num_experts": 256, "num_hidden_layers": 80,
        "num_kv_heads_for_linear_attn": 64, "q_lora_rank": 1536, "use_qk_norm": True}, 1012, 63),
    # inclusionAI/Ling-3.0-tiny: 7.9B, 1.3B active
    "Ling-3.0-tiny": (LING | {
        "architectures": ["BailingMoeV3ForCausalLM"], "hidden_size": 1536, "intermediate_size": 4608,
        "first_k_dense_replace": 1, "group_norm_size": 1, "layer_group_size": 4, "moe_intermediate_size": 512,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 128, "num_hidden_layers": 24,
        "q_lora_rank": 256, "short_conv_kernel_size": 4, "no_kda_lora": True,
        "gated_attention_proj_granularity_type": "head_wise"}, 7.9, 1.38),
    # xai-org/grok-2, whose file has the type of another model: 270B, 115B active
    "grok-2": ({
        "architectures": ["Grok1ForCausalLM"], "model_type": "git", "vocab_size": 131072, "hidden_size": 8192,
        "intermediate_size": 32768, "moe_intermediate_size": 16384, "num_hidden_layers": 64, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 8, "num_experts_per_tok": 2,
        "residual_moe": True, "sliding_window_size": -1, "global_attn_every_n": 1}, 270, 115),
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
    """Totals within 1 %, or as the name rounds; what is active is rounded more freely."""
    config, total, active = PUBLISHED[name]
    assert text_model(config).family in FAMILIES
    found = _sizes(model_tensors(config))
    assert found[0] == pytest.approx(total, rel=0.01, abs=0.5 if isinstance(total, int) else 0.05)
    assert found[1] == pytest.approx(active, rel=0.04)
    assert read_hf_config(config, name, "bf16").params == pytest.approx(1e9 * found[0])


# MB beyond weights and KV that transformers 5.23's forward on fake tensors (torch 2.13, bf16) needed at most for layers
# without their experts; (tokens of the prompt, read at once)
MEASURED = {
    "Granite-4.0-H-Small": (2048, 1861), "Jamba-1.5-Mini": (512, 907), "LFM2-8B-A1B": (2048, 114),
    "Ling-3.0-tiny": (2048, 3369), "MiMo-V2-Flash": (2048, 1260), "MiniMax-M3": (2048, 1971),
    "Nemotron-3-Nano": (2048, 767), "Solar-Open-100B": (2048, 177), "ZAYA1-8B": (2048, 87),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_workspace_is_just_above_what_was_measured(name: str) -> None:
    (tokens, measured), (config, _, _) = MEASURED[name], PUBLISHED[name]
    profile = read_hf_config(config, name, "bf16")
    workload = Workload(prompt_tokens=tokens, generated_tokens=0, prefill_chunk=tokens)
    most = max(workspace_bytes(layer.attention, profile, workload) for layer in profile.layers)
    assert 1 <= most / (1e6 * measured) <= 1.25


def test_a_pattern_may_be_spelt_in_letters_or_in_words() -> None:
    config, _, _ = PUBLISHED["Nemotron-3-Nano"]
    letters = {"M": "mamba", "E": "moe", "*": "attention"}
    bare = {key: value for key, value in config.items() if key != "hybrid_override_pattern"}
    listed = bare | {"layers_block_type": [letters[letter] for letter in NANO], "num_hidden_layers": len(NANO)}
    assert model_tensors(config) == model_tensors(listed)


def test_layers_that_predict_tokens_are_counted_apart() -> None:
    """Nemotron-3-Super's files hold 123.6 billion parameters with them; MiMo's card: 0.33 billion each."""
    config, _, _ = PUBLISHED["Nemotron-3-Super"]
    model = model_tensors(config | {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"})
    assert (_sizes(model)[0] + params(model.mtp) / 1e9) == pytest.approx(123.6, rel=0.001)
    flash = model_tensors(PUBLISHED["MiMo-V2-Flash"][0] | {"num_nextn_predict_layers": 3})
    assert params(flash.mtp) / 3e9 == pytest.approx(0.33, abs=0.005)
    assert len(model_tensors(PUBLISHED["Step-3.5-Flash"][0]).layers) == 45


def test_one_type_of_two_models_is_told_apart_by_its_class_or_its_keys() -> None:
    """Files of Ling 2.5 and 3 both say `bailing_hybrid`."""
    config, _, _ = PUBLISHED["Ling-2.5-1T"]
    without = {key: value for key, value in config.items() if key != "architectures"}
    assert model_tensors(without).layers == model_tensors(config).layers
    states = [layer.cache.state_fp32_values for layer in model_tensors(config).layers]
    assert states == ([64 * 128 * 128] * 7 + [0]) * 10


def test_lists_in_wrappers_speak_of_the_language_model() -> None:
    text = {key: value for key, value in PUBLISHED["MiniMax-M3"][0].items() if key not in ("model_type",)}
    model = model_tensors({"model_type": "minimax_m3_vl", "text_config": text | {"model_type": None}})
    module = model.disk_names.module("model.layers.9.mlp.shared_experts.gate_up_proj")
    assert module == "language_model.model.layers.9.block_sparse_moe.shared_experts.gate_proj"
    inkling = model_tensors(PUBLISHED["Inkling"][0]).disk_names
    assert inkling.module("model.layers.9.self_attn.q_proj") == "model.llm.layers.9.attn.wq_du"
    assert inkling.module("model.layers.0.mlp.down_proj") == "model.llm.layers.0.mlp.w2_md"


SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
LOCAL = SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}
M3 = LOCAL | {"model_type": "minimax_m3"}
BARE = {key: value for key, value in PUBLISHED["Nemotron-3-Nano"][0].items() if key != "hybrid_override_pattern"}
STEP = PUBLISHED["Step-3.5-Flash"][0]
REFUSED = [
    (BARE, "layers_block_type: missing, as is hybrid_override_pattern; add one"),
    (BARE | {"hybrid_override_pattern": "ME?"}, r"hybrid_override_pattern\[2\]: '\?' is not known here; use one of"),
    (BARE | {"layers_block_type": "ME"}, "layers_block_type: 'ME'; give one of"),
    (BARE | {"hybrid_override_pattern": "ME", "num_hidden_layers": 3}, "num_hidden_layers: 3, but 2 layers are listed"),
    (BARE | {"hybrid_override_pattern": "ME", "n_groups": 7}, "7 groups do not divide 64 Mamba heads"),
    (PUBLISHED["Jamba-1.5-Mini"][0] | {"attn_layer_offset": 8}, "attn_layer_offset: 8 is not below"),
    (PUBLISHED["Granite-4.0-H-Small"][0] | {"mamba_n_heads": 100}, "mamba_n_heads: 100 heads of 64 are not"),
    (PUBLISHED["ZAYA1-8B"][0] | {"num_experts_per_tok": 2}, "num_experts_per_tok: only 1 is known"),
    (M3 | {"attention_output_gate": True}, "attention_output_gate: no published MiniMax M3"),
    (M3 | {"moe_layer_freq": [0, 1]}, r"moe_layer_freq: a list of 2; give 0 or 1 for each of 4 layers"),
    (M3 | {"sparse_attention_config": {"sparse_attention_freq": [1] * 4, "sparse_disable_index_value": [1, 0, 1, 1]}},
     "sparse_disable_index_value: .*indexers with values are not known"),
    (LOCAL | {"model_type": "minimax_m1", "shared_intermediate_size": 96}, "shared_intermediate_size: shared experts"),
    (STEP | {"moe_layers_enum": "3,x"}, "moe_layers_enum: '3,x'; list the layers with experts"),
    (STEP | {"per_layer_config": {"0": {"num_attention_heads": 96}}}, r"per_layer_config.*0.* is not what the other"),
    (PUBLISHED["MiMo-V2-Flash"][0] | {"n_shared_experts": 1}, "n_shared_experts: no published MiMo-V2 has any"),
    (SMALL | {"model_type": "mimo_v2"}, "hybrid_layer_pattern, moe_layer_freq, .*: missing; add what the model's own"),
    (SMALL | {"model_type": "solar_open2"}, "linear_num_heads, .*: missing; add what the model's own"),
    (PUBLISHED["grok-2"][0] | {"global_attn_every_n": 4}, "global_attn_every_n: 4; windows of Grok are not known"),
    (PUBLISHED["Ling-3.0-tiny"][0] | {"no_kda_lora": False}, "use_kda_lora: decays and gates of a low rank"),
    (PUBLISHED["Ling-3.0-tiny"][0] | {"gated_attention_proj_granularity_type": "row"}, "type: 'row' is not"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_what_is_not_understood_is_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        model_tensors(config)
    line = str(caught.value)
    assert "\n" not in line
    assert re.search(message, line), line


def test_every_class_stands_for_one_family() -> None:
    classes = [name for family in FAMILIES.values() for name in family.architectures]
    assert len(classes) == len(set(classes))
