"""Small configs of profiles/hf_config/families/deepseek_sparse.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import GROUPS, INDEXER, LATENT, SMALL

V4 = {key: value for key, value in SMALL.items() if key != "intermediate_size"} | INDEXER
V4 |= {"head_dim": 16, "num_key_value_heads": 1, "q_lora_rank": 24, "o_groups": 2, "o_lora_rank": 8}
V4 |= {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "sliding_window": 16}
RATES = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
TYPES = ["sliding_attention", *RATES, "compressed_sparse_attention"]
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "axk1": [SMALL | LATENT | GROUPS, SMALL | LATENT | GROUPS | {"attention_bias": True, "moe_layer_freq": 2}],
    "axk2": [SMALL | LATENT | GROUPS | INDEXER | {"gated_norm_rank": 4, "q_lora_rank": 20}],
    "deepseek_v32": [SMALL | LATENT | GROUPS | INDEXER | {"first_k_dense_replace": 1},
                     SMALL | LATENT | GROUPS | INDEXER | {"attention_bias": True}],
    "deepseek_v4": [V4 | {"layer_types": TYPES, "compress_rates": RATES, "num_hash_layers": 1},
                    V4 | {"compress_ratios": [0, 4, 128, 4, 0], "hc_mult": 2, "mlp_bias": True},
                    V4 | {"compress_rate_csa": 2, "n_shared_experts": 1}],
}  # fmt: skip
STEPPED = {"deepseek_v4": (23, 47)}
"""Prompts after which as many tokens as can be wait for a compressed entry."""
