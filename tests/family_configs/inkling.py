"""Small configs of profiles/hf_config/families/inkling.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import SMALL

LAYERS = {"layer_types": ["hybrid", "hybrid_sliding"] * 2, "sliding_window_size": 16, "head_dim": 16, "d_rel": 8}
LAYERS |= {"swa_num_attention_heads": 6, "swa_num_key_value_heads": 3, "swa_head_dim": 8, "rel_extent": 32}
LAYERS |= {"moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2}
FIRST = SMALL | LAYERS | {"n_shared_experts": 2, "unpadded_vocab_size": 120}
SECOND = {key: value for key, value in (SMALL | LAYERS).items() if key != "intermediate_size"}
SECOND |= {"unpadded_vocab_size": 120, "eos_token_id": 6}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "inkling2_text": [SECOND, SECOND | {"conv_kernel_size": 3, "layer_types": None, "num_hidden_layers": 7}],
    "inkling_text": [FIRST | {"dense_mlp_idx": 1},
                     FIRST | {"dense_intermediate_size": 40, "layer_types": None, "local_layer_ids": [0, 2],
                              "mlp_layer_types": ["sparse", "dense"] * 2, "n_shared_experts": 1}],
}  # fmt: skip
