"""Small configs of profiles/hf_config/families/beam.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

GROUPS = {"n_group": 1, "topk_group": 1, "sliding_window": 16}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "beam": [SMALL | EXPERTS | GROUPS, SMALL | EXPERTS | GROUPS | {"num_hidden_layers": 7, "attention_bias": True}],
}  # fmt: skip
