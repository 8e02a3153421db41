"""Small configs of profiles/hf_config/families/ernie.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import SMALL

ROUTED = {"moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 2, "moe_intermediate_size": 32}
SEES = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 2}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [2, 2, 4]}}
BOTH = SMALL | ROUTED | ROTARY | {"moe_intermediate_size": [32, 16]}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "ernie4_5_moe": [SMALL | ROUTED | {"use_bias": True},
                     SMALL | ROUTED | {"moe_layer_start_index": 0, "moe_layer_end_index": 2, "moe_layer_interval": 2,
                                       "moe_num_shared_experts": 0, "tie_word_embeddings": False}],
    "ernie4_5_vl_moe": [{"text_config": BOTH, "vision_config": SEES},
                        {"text_config": BOTH | {"use_bias": False, "moe_num_shared_experts": 0,
                                                "mlp_layer_types": ["dense", "dense", "sparse", "sparse"]},
                         "vision_config": SEES}],
}  # fmt: skip
