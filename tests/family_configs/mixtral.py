"""Small configs of profiles/hf_config/families/mixtral.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, LOCAL_EXPERTS, SMALL

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "gpt_oss": [SMALL | LOCAL_EXPERTS | {"head_dim": 16, "sliding_window": 16}],
    "mixtral": [SMALL | LOCAL_EXPERTS, SMALL | LOCAL_EXPERTS | {"sliding_window": 16}],
    "olmoe": [SMALL | EXPERTS],
    "phimoe": [SMALL | LOCAL_EXPERTS | {"attention_bias": True, "lm_head_bias": True}],
}  # fmt: skip
