"""Small configs of profiles/hf_config/families/deepseek.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import GROUPS, LATENT, SMALL

DENSE_FIRST = {"first_k_dense_replace": 1}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "deepseek_v2": [SMALL | LATENT | GROUPS | DENSE_FIRST],
    "deepseek_v3": [SMALL | LATENT | GROUPS | DENSE_FIRST, SMALL | LATENT | GROUPS | {"attention_bias": True}],
}
