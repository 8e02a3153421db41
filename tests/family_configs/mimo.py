"""Small configs of profiles/hf_config/families/mimo.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import SMALL

WIDE = SMALL | {"head_dim": 16, "v_head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 2}
WIDE |= {"moe_intermediate_size": 24}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "mimo_v2_flash": [WIDE | {"sliding_window_size": 15, "swa_num_key_value_heads": 4},
                      WIDE | {"attention_bias": True, "sliding_window": 16, "num_hidden_layers": 7,
                              "mlp_layer_types": ["sparse", "dense"] * 3 + ["dense"]}],
}  # fmt: skip
