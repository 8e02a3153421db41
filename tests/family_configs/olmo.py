"""Small configs of profiles/hf_config/families/olmo.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

PADDED = {"pad_token_id": 0, "eos_token_id": 1}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "flex_olmo": [SMALL | EXPERTS | PADDED, SMALL | EXPERTS | PADDED | {"attention_bias": True}],
}  # fmt: skip
