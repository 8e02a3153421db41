"""Small configs of profiles/hf_config/families/exaone.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

EXAONE = SMALL | EXPERTS | {"head_dim": 16, "num_shared_experts": 2}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "exaone_moe": [EXAONE | {"sliding_window": 16, "sliding_window_pattern": 2},
                   EXAONE | {"layer_types": ["sliding_attention", "full_attention"] * 2, "first_k_dense_replace": 2,
                             "sliding_window_pattern": "LLLG"}],
}  # fmt: skip
