"""Small configs of profiles/hf_config/families/zaya.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

WIDE = SMALL | EXPERTS | {"num_experts_per_tok": 1, "router_hidden_size": 24}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "zaya": [WIDE, WIDE | {"attention_bias": True, "lm_head_bias": True, "cca_time0": 3, "sliding_window": 16,
                           "layer_types": ["hybrid", "hybrid_sliding"] * 2}],
}  # fmt: skip
