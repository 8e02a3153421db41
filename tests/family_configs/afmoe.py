"""Small configs of profiles/hf_config/families/afmoe.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

SLIDES = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}
LAGUNA = SMALL | EXPERTS | SLIDES | {"shared_expert_intermediate_size": 48}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "afmoe": [SMALL | EXPERTS | {"sliding_window": 16, "num_shared_experts": 2, "global_attn_every_n_layers": 2},
              SMALL | EXPERTS | SLIDES | {"num_shared_experts": 1, "num_dense_layers": 2, "attention_bias": True}],
    "laguna": [LAGUNA | {"num_attention_heads_per_layer": [4, 8, 4, 6]},
               LAGUNA | {"gating": "per-element", "attention_bias": True, "mlp_layer_types": ["sparse"] * 4}],
}  # fmt: skip
