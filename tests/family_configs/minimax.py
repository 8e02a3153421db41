"""Small configs of profiles/hf_config/families/minimax.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import LOCAL_EXPERTS, SMALL

WIDE = SMALL | LOCAL_EXPERTS | {"head_dim": 16}
M3 = WIDE | {"dense_intermediate_size": 80, "shared_intermediate_size": 48}
M3 |= {"index_n_heads": 2, "index_head_dim": 24, "index_block_size": 4, "index_topk_blocks": 2}
TYPES = {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2}
FLAGS = {"moe_layer_freq": [0, 1, 1, 0]}
OLD = {"sparse_num_index_heads": 3, "sparse_index_dim": 8, "sparse_attention_freq": [0, 1, 1, 1]}
SEES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _whole(text: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "minimax_m3_vl", "text_config": text, "vision_config": SEES}


CONFIGS: dict[str, list[dict[str, Any]]] = {
    "minimax": [WIDE | {"block_size": 8}, WIDE | {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}],
    "minimax_m2": [WIDE],
    "minimax_m3_vl_text": [M3 | TYPES | FLAGS, _whole(M3 | FLAGS | {"sparse_attention_config": OLD}), M3],
}
