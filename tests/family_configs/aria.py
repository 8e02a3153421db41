"""Small configs of profiles/hf_config/families/aria.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import SMALL

ROUTED = {"moe_num_experts": 8, "moe_topk": 2, "moe_num_shared_experts": 3}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "aria_text": [SMALL | ROUTED,
                  SMALL | ROUTED | {"attention_bias": True, "mlp_bias": True, "head_dim": 24}],
}  # fmt: skip
