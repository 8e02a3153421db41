"""Small configs of profiles/hf_config/families/gemma.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

SLIDES = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}
GEMMA = SMALL | SLIDES | {"head_dim": 16, "global_head_dim": 32}
ROUTED = {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": EXPERTS["moe_intermediate_size"]}
ONE = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
PLAIN = {"hidden_size_per_layer_input": 0}
BY_TOKEN = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 120}
SEES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
SEES |= {"num_key_value_heads": 2, "position_embedding_size": 16}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "gemma4_text": [GEMMA | BY_TOKEN | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True},
                    GEMMA | PLAIN | ONE | ROUTED | {"enable_moe_block": True},
                    SMALL | PLAIN | {"attention_bias": True, "num_hidden_layers": 7, "num_global_key_value_heads": 1},
                    GEMMA | PLAIN | {"layer_types": ["sliding_attention"] * 4}],
    "gemma4_unified_text": [GEMMA | ONE | {"num_kv_shared_layers": 2}],
    "diffusion_gemma": [{"text_config": GEMMA | ROUTED, "vision_config": SEES | {"model_type": "gemma4_vision"}},
                        {"text_config": GEMMA | ROUTED | {"num_global_key_value_heads": 1},
                         "vision_config": SEES | {"model_type": "gemma4_vision"}}],
}  # fmt: skip
