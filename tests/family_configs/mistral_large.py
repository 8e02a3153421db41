"""Small configs of profiles/hf_config/families/mistral_large.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import GROUPS, INDEXER, LATENT, SMALL

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LARGE = SMALL | LATENT | GROUPS | INDEXER
SHARED = {"indexer_types": ["full", "shared", "full", "full"], "kv_source_layers": [0, 0, 0, 3]}


def _whole(text: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "mistral_large4", "text_config": text, "vision_config": TOWER}


CONFIGS: dict[str, list[dict[str, Any]]] = {
    "mistral4": [SMALL | LATENT | GROUPS | {"pad_token_id": None, "first_k_dense_replace": 1},
                 SMALL | LATENT | GROUPS | {"pad_token_id": None, "attention_bias": True}],
    "mistral_large4_text": [_whole(LARGE | SHARED),
                            _whole(LARGE | {"no_rope_layer_interval": 2, "attention_bias": True})],
}  # fmt: skip
