"""Small configs of profiles/hf_config/families/step.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import SMALL

WIDE = SMALL | {"head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WIDE |= {"share_expert_dim": 40, "sliding_window": 16}
TYPES = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}
SEES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
NEXT = {"layer_types": TYPES["layer_types"] + ["sliding_attention"], "num_nextn_predict_layers": 1}
OTHER = {"attention_other_setting": {"num_attention_heads": 6}, "moe_layers_enum": "1,2"}


def _whole(text: dict[str, Any]) -> dict[str, Any]:
    return {"text_config": text, "vision_config": SEES}


CONFIGS: dict[str, list[dict[str, Any]]] = {
    "step3p7": [_whole(WIDE | TYPES | {"num_sliding_attention_heads": 8}), _whole(WIDE | NEXT | OTHER),
                _whole(WIDE | {"attention_bias": True, "mlp_bias": True, "mlp_layer_types": ["sparse", "dense"] * 2})],
}  # fmt: skip
