"""Small configs of profiles/hf_config/families/glm.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import GROUPS, INDEXER, LATENT, SMALL

TOWER = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 64}
TOWER |= {"projection_intermediate_size": 16}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
DSA = SMALL | LATENT | GROUPS | INDEXER
NEXT = DSA | {"qk_rope_head_dim": 0, "linear_head_dim": 8, "linear_num_heads": 3, "hc_mult": 2, "index_kpool": 4}
NEXT |= {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "indexer_types": ["full"] * 4}
NEXT |= {"pad_token_id": None}
SHARED = {
    "layer_types": ["linear_attention"] + ["full_attention"] * 3,
    "indexer_types": ["full", "full", "shared", "full"],
}


def _whole(model_type: str, text: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": model_type, "text_config": text, "vision_config": TOWER}


CONFIGS: dict[str, list[dict[str, Any]]] = {
    "glm4_moe": [SMALL | GROUPS | {"use_qk_norm": True, "first_k_dense_replace": 1, "head_dim": 16},
                 SMALL | GROUPS | {"attention_bias": True}],
    "glm4_moe_lite": [SMALL | LATENT | GROUPS],
    "glm4v_moe_text": [_whole("glm4v_moe", SMALL | GROUPS | {"rope_parameters": ROPE}),
                       _whole("glm4v_moe", SMALL | GROUPS | {"attention_bias": False, "first_k_dense_replace": 2})],
    "glm5_next_text": [_whole("glm5_next", NEXT), _whole("glm5_next", NEXT | SHARED)],
    "glm_moe_dsa": [DSA | {"first_k_dense_replace": 1, "indexer_types": ["full", "shared", "full", "shared"]},
                    DSA | {"index_topk_pattern": "FSSF", "mlp_layer_types": ["sparse", "dense", "sparse", "sparse"]},
                    DSA | {"index_topk_freq": 2, "index_skip_topk_offset": 1, "attention_bias": True}],
}  # fmt: skip
