"""Small configs of profiles/hf_config/families/muse_spark.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import SMALL

TEXT = SMALL | {"num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_hidden_size": 48}
TEXT |= {"sliding_window": 16, "head_dim": 16, "eos_token_id": 1, "bos_token_id": 2}
SEES = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
HEARS = {"out_hidden_size": 64, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
TOWERS = {"vision_config": SEES, "audio_config": HEARS}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "muse_spark": [TOWERS | {"text_config": TEXT | {"mlp_layer_types": ["dense"] + ["sparse"] * 3}},
                   TOWERS | {"text_config": TEXT | {"attention_bias": True, "num_hidden_layers": 5}}],
}  # fmt: skip
