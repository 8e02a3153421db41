"""Small configs of profiles/hf_config/families/nemotron.py."""

from __future__ import annotations

from typing import Any

from family_configs.common import SMALL

SIZES = {key: value for key, value in SMALL.items() if key != "num_hidden_layers"}
SIZES |= {"head_dim": 16, "mamba_num_heads": 6, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 12}
SIZES |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
SIZES |= {"moe_shared_expert_intermediate_size": 40}
LETTERS = {"hybrid_override_pattern": "MEM*E-", "num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"}
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "nemotron_h": [SIZES | LETTERS,
                   SIZES | {"layers_block_type": ["mamba", "moe", "attention", "mlp"], "moe_latent_size": 16},
                   SIZES | {"layer_types": ["linear_attention", "moe", "full_attention"], "use_bias": True,
                            "mlp_bias": True, "use_conv_bias": False, "moe_latent_size": 16}],
}  # fmt: skip
