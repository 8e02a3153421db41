"""Small configs of profiles/hf_config/families/solar.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import GROUPS, SMALL

WIDE = {key: value for key, value in (SMALL | GROUPS).items() if key != "intermediate_size"} | {"head_dim": 16}
CONFIGS: dict[str, list[dict[str, Any]]] = {"solar_open": [WIDE, WIDE | {"attention_bias": True}]}
