"""Small configs of profiles/hf_config/families/bailing.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import GROUPS, LATENT, SMALL

WIDE = SMALL | LATENT | {key: value for key, value in GROUPS.items() if key != "n_routed_experts"}
WIDE = {key: value for key, value in WIDE.items() if key != "q_lora_rank"} | {"num_experts": 8}
WIDE |= {"head_dim": 16, "layer_group_size": 2, "first_k_dense_replace": 1, "pad_token_id": None}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "bailing_hybrid": [WIDE, WIDE | {"attention_bias": True, "short_conv_kernel_size": 3, "layer_group_size": 3,
                                     "mlp_layer_types": ["sparse", "dense"] * 2}],
}  # fmt: skip
