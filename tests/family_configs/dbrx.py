"""Small configs of profiles/hf_config/families/dbrx.py."""

from __future__ import annotations

from typing import Any

ATTENTION = {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 500000}
EXPERTS = {"ffn_hidden_size": 96, "moe_num_experts": 8, "moe_top_k": 2}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "dbrx": [{"d_model": 64, "n_heads": 4, "n_layers": 3, "vocab_size": 128, "attn_config": ATTENTION,
              "ffn_config": EXPERTS}],
}  # fmt: skip
