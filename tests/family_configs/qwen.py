"""Small configs of profiles/hf_config/families/qwen.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import DELTA, EXPERTS, SMALL

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "qwen2": [SMALL | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}],
    "qwen2_moe": [SMALL | EXPERTS | {"shared_expert_intermediate_size": 48, "decoder_sparse_step": 2}],
    "qwen3": [SMALL | {"head_dim": 16}],
    "qwen3_moe": [SMALL | EXPERTS | {"mlp_only_layers": [1]}],
    "qwen3_next": [SMALL | EXPERTS | DELTA | {"linear_num_value_heads": 4}],
}  # fmt: skip
