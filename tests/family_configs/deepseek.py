"""Small configs of profiles/hf_config/families/deepseek.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import GROUPS, LATENT, SMALL

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "deepseek_v2": [SMALL | LATENT | GROUPS | {"first_k_dense_replace": 1}],
    "deepseek_v3": [SMALL | LATENT | GROUPS | {"first_k_dense_replace": 1}],
    "dots1": [SMALL | GROUPS | {"first_k_dense_replace": 1, "sliding_window": 16, "max_window_layers": 2}],
    "glm4_moe": [SMALL | GROUPS | {"use_qk_norm": True, "first_k_dense_replace": 1, "head_dim": 16}],
    "glm4_moe_lite": [SMALL | LATENT | GROUPS],
}  # fmt: skip
