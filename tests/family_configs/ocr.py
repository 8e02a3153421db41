"""Small configs of profiles/hf_config/families/ocr.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import GROUPS, SMALL

SAM = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "global_attn_indexes": [0]}
ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}


def _whole(model_type: str, text: dict[str, Any], encoder: dict[str, Any] | None = None) -> dict[str, Any]:
    towers = {"sam_config": SAM, "encoder_config": ENCODER | (encoder or {})}
    return {"model_type": model_type, "text_config": text, "vision_config": towers}


QWEN = {"num_key_value_heads": 2, "vocab_size": 16}
BIASES = {"attention_bias": True, "mlp_bias": True}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "deepseek_ocr2_text": [_whole("deepseek_ocr2", SMALL | GROUPS | SPARSE, QWEN),
                           _whole("deepseek_ocr2", SMALL | GROUPS | SPARSE | BIASES, QWEN)],
    "unlimited_ocr_text": [_whole("unlimited_ocr", SMALL | GROUPS | {"sliding_window": 16}),
                           _whole("unlimited_ocr", SMALL | GROUPS | BIASES | {"first_k_dense_replace": 2})],
}  # fmt: skip
