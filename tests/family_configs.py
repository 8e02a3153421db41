"""Small configs of every built-in family, small enough to run, for tests that hold families against transformers.

The first of a type is run for its cache as well; further ones turn options that change shapes.
"""

from __future__ import annotations

from typing import Any

SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
LATENT |= {"num_key_value_heads": 4}
GROUPS = {"n_routed_experts": 8, "n_shared_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
GROUPS |= {"moe_intermediate_size": 32}
DELTA = {"linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16}
DELTA |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "shared_expert_intermediate_size": 48}

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "deepseek_v2": [SMALL | LATENT | GROUPS | {"first_k_dense_replace": 1}],
    "deepseek_v3": [SMALL | LATENT | GROUPS | {"first_k_dense_replace": 1}],
    "dots1": [SMALL | GROUPS | {"first_k_dense_replace": 1, "sliding_window": 16, "max_window_layers": 2}],
    "glm4_moe": [SMALL | GROUPS | {"use_qk_norm": True, "first_k_dense_replace": 1, "head_dim": 16}],
    "glm4_moe_lite": [SMALL | LATENT | GROUPS],
    "gpt_oss": [SMALL | LOCAL_EXPERTS | {"head_dim": 16, "sliding_window": 16}],
    "llama": [SMALL, SMALL | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}],
    "llama4_text": [SMALL | LOCAL_EXPERTS | {"intermediate_size_mlp": 80, "interleave_moe_layer_step": 2}
                    | {"num_experts_per_tok": 1, "attention_chunk_size": 16, "head_dim": 16}],
    "minimax_m2": [SMALL | LOCAL_EXPERTS | {"head_dim": 16}],
    "mistral": [SMALL | {"sliding_window": 16}],
    "mixtral": [SMALL | LOCAL_EXPERTS, SMALL | LOCAL_EXPERTS | {"sliding_window": 16}],
    "olmoe": [SMALL | EXPERTS],
    "phimoe": [SMALL | LOCAL_EXPERTS | {"attention_bias": True, "lm_head_bias": True}],
    "qwen2": [SMALL | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}],
    "qwen2_moe": [SMALL | EXPERTS | {"shared_expert_intermediate_size": 48, "decoder_sparse_step": 2}],
    "qwen3": [SMALL | {"head_dim": 16}],
    "qwen3_moe": [SMALL | EXPERTS | {"mlp_only_layers": [1]}],
    "qwen3_next": [SMALL | EXPERTS | DELTA | {"linear_num_value_heads": 4}],
    "seed_oss": [SMALL | {"head_dim": 16}],
}  # fmt: skip
"""model_type -> arguments of its config class."""
NOT_RUN: dict[str, str] = {}
"""model_type -> why a small one cannot run its cache on a CPU."""
