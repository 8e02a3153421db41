"""Small configs of profiles/hf_config/families/longcat.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import LATENT, SMALL

FLASH = {key: value for key, value in SMALL.items() if key not in ("num_hidden_layers", "intermediate_size")} | LATENT
FLASH |= {"num_layers": 2, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "n_routed_experts": 8}
FLASH |= {"moe_topk": 3, "zero_expert_num": 4, "head_dim": 8}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "longcat_flash": [FLASH, FLASH | {"zero_expert_num": 0, "attention_bias": True, "router_bias": True}],
}
UNFILLED = {"longcat_flash": (r"experts\.gate_up_proj$", "n_routed_experts")}
"""model_type -> a parameter whose rows beyond this key's number no checkpoint fills: transformers 5.23 makes room in it
for LongCat's experts that compute nothing.
"""
