"""Small configs of profiles/hf_config/families/cohere.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

COHERE = SMALL | EXPERTS | {"sliding_window": 16}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "cohere2_moe": [COHERE | {"num_shared_experts": 2, "first_k_dense_replace": 1}
                    | {"prefix_dense_intermediate_size": 80},
                    COHERE | {"attention_bias": True, "sliding_window_pattern": 2}
                    | {"mlp_layer_types": ["dense"] + ["sparse"] * 3},
                    COHERE | {"first_k_dense_replace": 3, "prefix_dense_sliding_window_pattern": 2}],
}  # fmt: skip
