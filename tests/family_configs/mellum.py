"""Small configs of profiles/hf_config/families/mellum.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

SLIDES = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "mellum": [SMALL | EXPERTS | SLIDES | {"mlp_layer_types": ["dense"] + ["sparse"] * 3},
               SMALL | EXPERTS | {"attention_bias": True, "num_mtp_layers": 1}],
}  # fmt: skip
