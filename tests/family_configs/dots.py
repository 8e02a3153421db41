"""Small configs of profiles/hf_config/families/dots.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import GROUPS, INDEXER, LATENT, SMALL

NOTE = SMALL | LATENT | GROUPS | INDEXER | {"pad_token_id": None, "sliding_window": 16, "head_dim": 24}
SLIDING = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 20, "kv_lora_rank": 8, "head_dim": 24}
SLIDING |= {"qk_nope_head_dim": 16, "v_head_dim": 12}
NOTE |= {f"swa_{key}": value for key, value in SLIDING.items()} | {"shared_experts_intermediate_size": 40}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "dots1": [SMALL | GROUPS | {"first_k_dense_replace": 1, "sliding_window": 16, "max_window_layers": 2}],
    "dots3_note_text": [NOTE, NOTE | {"use_dsa": False, "moe_layer_freq": [1, 1, 0, 1], "attention_bias": True},
                        NOTE | {"use_sliding_window": False, "moe_layer_freq": 2, "first_k_dense_replace": 0}],
}  # fmt: skip
