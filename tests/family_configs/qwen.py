"""Small configs of profiles/hf_config/families/qwen.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

SEES = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64}
SEES |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
HEARS = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "output_dim": 64}
HEARS |= {"downsample_hidden_size": 8}
SAYS = SMALL | EXPERTS | {"model_type": "qwen3_omni_moe_text"}
THINKER = {"text_config": SAYS, "vision_config": SEES, "audio_config": HEARS}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "qwen2": [SMALL | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}],
    "qwen2_moe": [SMALL | EXPERTS | {"shared_expert_intermediate_size": 48, "decoder_sparse_step": 2}],
    "qwen3": [SMALL | {"head_dim": 16}],
    "qwen3_moe": [SMALL | EXPERTS | {"mlp_only_layers": [1]}],
    "qwen3_omni_moe_thinker": [THINKER],
    "qwen3_vl": [{"text_config": SMALL | {"head_dim": 16}, "vision_config": SEES}],
    "qwen3_vl_moe": [{"text_config": SMALL | EXPERTS | {"moe_intermediate_size": 40}, "vision_config": SEES},
                     {"text_config": SMALL | EXPERTS | {"attention_bias": True, "decoder_sparse_step": 2},
                      "vision_config": SEES}],
}  # fmt: skip
