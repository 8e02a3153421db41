"""Tiny random models of the six MoE families that apply is tested on. Importing this needs torch and transformers."""

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


def tiny_model(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A model of the family with fixed random weights; `changes` are config fields, e.g. `tie_word_embeddings`."""
    name, own = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **own, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # routers start at zero, where all experts tie
            scale = 1.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn_like(parameter) * scale)
    return model
