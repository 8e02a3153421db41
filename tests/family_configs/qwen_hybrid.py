"""Small configs of profiles/hf_config/families/qwen_hybrid.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import DELTA, EXPERTS, SMALL
from family_configs.qwen import SEES

HYBRID = SMALL | EXPERTS | DELTA
N_GRAMS = {"ple_layer_ids": [3, 1], "ple_embed_dim": 32, "ngram_vocab_size_base": 100, "eos_token_id": 1}
INDEXER = {"indexer_n_heads": 3, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8}
INDEXER |= {"indexer_compress_ratio": 4, "hc_lowrank": 12}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "qwen3_5_moe_text": [HYBRID, HYBRID | {"full_attention_interval": 2, "attention_bias": True}],
    "qwen3_5_moe": [{"text_config": HYBRID, "vision_config": SEES}],
    "qwen3_5_text": [SMALL | DELTA | {"head_dim": 16, "linear_num_value_heads": 6, "tie_word_embeddings": True}],
    "qwen3_next": [HYBRID],
    "qwen4_exp_text": [HYBRID | INDEXER | N_GRAMS,
                       HYBRID | INDEXER | {"layer_types": ["linear_attention", "full_attention"] * 2}],
}  # fmt: skip
