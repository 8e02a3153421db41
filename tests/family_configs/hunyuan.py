"""Small configs of profiles/hf_config/families/hunyuan.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, GROUPS, LATENT, SMALL

INDEXER = {"index_topk": 8, "index_n_heads": 2, "index_head_dim": 12, "pad_token_id": 0}
HY4 = SMALL | LATENT | GROUPS | INDEXER
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "hunyuan_v1_moe": [SMALL | {"num_experts": 8, "moe_topk": 2, "head_dim": 16},
                       SMALL | {"num_experts": 8, "moe_topk": [2, 2, 3, 1], "attention_bias": True, "head_dim": 24}],
    "hy_v3": [SMALL | EXPERTS | {"num_shared_experts": 2},
              SMALL | EXPERTS | {"attention_bias": True, "mlp_bias": True, "num_shared_experts": 1}
              | {"mlp_layer_types": ["sparse"] * 4}],
    "hy_v4": [HY4, HY4 | {"attention_bias": True, "indexer_types": ["full", "shared", "full", "shared"], "hc_mult": 3}],
}  # fmt: skip
