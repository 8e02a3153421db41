"""Small configs of profiles/hf_config/families/lfm.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

WIDE = SMALL | {key: value for key, value in EXPERTS.items() if key != "head_dim"}
TYPES = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "lfm2_moe": [WIDE | TYPES, WIDE | TYPES | {"conv_bias": True, "num_dense_layers": 1, "tie_embedding": False}],
}
