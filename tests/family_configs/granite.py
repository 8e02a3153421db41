"""Small configs of profiles/hf_config/families/granite.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import LOCAL_EXPERTS, SMALL

WIDE = SMALL | LOCAL_EXPERTS
STATE = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 12, "mamba_expand": 2}
STATE |= {"shared_intermediate_size": 40}
TYPES = {"layer_types": ["mamba", "attention", "mamba", "mamba"]}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "granitemoe": [WIDE, WIDE | {"attention_bias": True, "num_key_value_heads": None, "tie_word_embeddings": True}],
    "granitemoe_swa": [WIDE | {"sliding_window": 16},
                       WIDE | {"shared_intermediate_size": 40, "attention_bias": True,
                               "layer_types": ["full_attention", "sliding_attention"] * 2}],
    "granitemoehybrid": [WIDE | STATE | TYPES,
                         WIDE | STATE | {"num_local_experts": 0, "mamba_d_head": 16, "mamba_proj_bias": True,
                                         "mamba_conv_bias": False}],
    "granitemoeshared": [WIDE | {"shared_intermediate_size": 40}, WIDE | {"attention_bias": True}],
}  # fmt: skip
