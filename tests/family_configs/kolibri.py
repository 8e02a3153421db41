"""Small configs of profiles/hf_config/families/kolibri.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import EXPERTS, SMALL

SHARED = SMALL | EXPERTS | {"sliding_window": 16, "shared_expert_intermediate_size": 48}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "flint": [SHARED | {"num_hidden_layers": 6},
              SHARED | {"attention_bias": True, "mlp_only_layers": [], "decoder_sparse_step": 2}],
    "kolibri1": [SHARED | {"num_hidden_layers": 6}],
}  # fmt: skip
