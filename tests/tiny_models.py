"""Tiny random models of the MoE families that apply is tested on. Importing this needs torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

VOCABULARY, EXPERTS = 96, 8
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
MLA = {
    "moe_intermediate_size": 16,
    "intermediate_size": 48,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
    "n_group": 4,
    "topk_group": 2,
}
QWEN = {"moe_intermediate_size": 16, "intermediate_size": 48, "num_experts": EXPERTS, "num_experts_per_tok": 3}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "deepseek_v2": (
        "DeepseekV2",
        {**MLA, "n_shared_experts": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0},
    ),
    "deepseek_v3": ("DeepseekV3", {**MLA, "n_shared_experts": 1}),
    # The middle layer is dense: not only leading layers may be.
    "qwen3_moe": ("Qwen3Moe", {**QWEN, "head_dim": 8, "num_key_value_heads": 2, "mlp_only_layers": [1]}),
    "qwen2_moe": ("Qwen2Moe", {**QWEN, "shared_expert_intermediate_size": 24}),
    "mixtral": (
        "Mixtral",
        {"intermediate_size": 24, "num_key_value_heads": 2, "num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    ),
    "gpt_oss": (
        "GptOss",
        {
            "intermediate_size": 24,
            "head_dim": 8,
            "num_key_value_heads": 2,
            "num_local_experts": EXPERTS,
            "num_experts_per_tok": 3,
            "sliding_window": 4,  # shorter than the prompts, so that sliding layers forget
        },
    ),
}
GLM = {**QWEN, "n_routed_experts": EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 8}
LINEAR = {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")} | {"linear_num_key_heads": 2}
MORE_FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "olmoe": ("Olmoe", {**QWEN, "intermediate_size": 16}),
    "glm4_moe": ("Glm4Moe", {**GLM, "n_group": 1, "topk_group": 1}),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        {**QWEN, "moe_num_experts": EXPERTS, "moe_k": 3, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    ),
    "minimax_m2": ("MiniMaxM2", {**QWEN, "intermediate_size": 16, "num_local_experts": EXPERTS, "head_dim": 8}),
    "granitemoe": ("GraniteMoe", {"intermediate_size": 16, "num_local_experts": EXPERTS, "num_experts_per_tok": 3}),
    "hunyuan_v1_moe": ("HunYuanMoEV1", {**QWEN, "intermediate_size": 16, "moe_topk": 3, "head_dim": 8}),
    # Every second layer has linear attention, whose state is not a growing cache.
    "qwen3_next": (
        "Qwen3Next",
        {
            **QWEN,
            **LINEAR,
            "head_dim": 8,
            "num_key_value_heads": 2,
            "shared_expert_intermediate_size": 24,
            "linear_num_value_heads": 4,
            "full_attention_interval": 2,
        },
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        {
            **QWEN,
            "num_dense_layers": 1,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention", "full_attention"],
        },
    ),
}
"""Families that are tried with fewer placements each."""


def tiny_model(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A model of the family with fixed random weights; `changes` are config fields, e.g. `tie_word_embeddings`."""
    name, own = {**FAMILIES, **MORE_FAMILIES}[family]
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **own, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # routers start at zero, where all experts tie
            scale = 1.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn_like(parameter) * scale)
    return model
