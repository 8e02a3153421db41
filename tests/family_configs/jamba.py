"""Small configs of profiles/hf_config/families/jamba.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import LOCAL_EXPERTS, SMALL

PERIODS = {
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 6,
}
PERIODS |= {"expert_layer_period": 2, "expert_layer_offset": 1}
HEADS = {"num_key_value_heads": 2, "kv_channels": 16, "num_attention_heads": 4}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "jamba": [SMALL | PERIODS,
              SMALL | PERIODS | {"num_experts": 1, "mamba_dt_rank": 5, "mamba_proj_bias": True,
                                 "mamba_conv_bias": False, "expert_layer_period": 1, "expert_layer_offset": 0}],
    "jetmoe": [SMALL | LOCAL_EXPERTS | HEADS],
}  # fmt: skip
