"""Small configs of profiles/hf_config/families/llama.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import LOCAL_EXPERTS, SMALL

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "llama": [SMALL, SMALL | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}],
    "llama4_text": [SMALL | LOCAL_EXPERTS | {"intermediate_size_mlp": 80, "interleave_moe_layer_step": 2}
                    | {"num_experts_per_tok": 1, "attention_chunk_size": 16, "head_dim": 16}],
    "mistral": [SMALL | {"sliding_window": 16}],
    "seed_oss": [SMALL | {"head_dim": 16}],
}  # fmt: skip
