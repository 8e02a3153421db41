"""Small configs of profiles/hf_config/families/kimi.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import LATENT, SMALL

LINEAR = SMALL | LATENT | {"num_experts": 8, "num_experts_per_token": 2, "num_shared_experts": 2, "pad_token_id": None}
LINEAR |= {"moe_intermediate_size": 32}
LISTS = {"head_dim": 8, "num_heads": 3, "short_conv_kernel_size": 4, "full_attn_layers": [2, 4], "kda_layers": [1, 3]}
SIZES = {"linear_head_dim": 8, "linear_num_heads": 3}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "kimi_linear": [LINEAR | {"linear_attn_config": LISTS},
                    LINEAR | SIZES | {"q_lora_rank": None, "first_k_dense_replace": 2, "num_hidden_layers": 6}],
}  # fmt: skip
