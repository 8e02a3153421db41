"""Checkpoints as transformers itself saves them, of families built in and not: every tensor finds its block."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import safetensors

from profiles.hf_config.reader import read_hf_config
from profiles.safetensors.header import DTYPE_BITS
from profiles.safetensors.reader import read_safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}
BASE |= {"intermediate_size": 80, "head_dim": 16, "pad_token_id": 0}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
GROUPS = {"n_routed_experts": 8, "n_shared_experts": 2, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
LATENT |= {"num_key_value_heads": 4, "head_dim": 8}
DELTA = {f"linear_{key}": n for key, n in {"conv_kernel_dim": 4, "key_head_dim": 8, "value_head_dim": 16}.items()}
DELTA |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "shared_expert_intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 16},
    "qwen3_moe": MOE | {"num_experts": 8, "mlp_only_layers": [1]},
    "qwen3_next": MOE
    | DELTA
    | {"num_experts": 8, "layer_types": ["linear_attention", "full_attention"] * 2}
    | {"num_hidden_layers": 4},
    "deepseek_v2": MOE | GROUPS | LATENT | {"first_k_dense_replace": 1},
    "deepseek_v3": MOE | GROUPS | LATENT | {"first_k_dense_replace": 1},
    "glm4_moe": MOE | GROUPS | {"first_k_dense_replace": 1},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 2},
    "gemma2": {"sliding_window": 50},
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "lfm2_moe": MOE
    | {"num_experts": 8, "num_dense_layers": 1, "conv_L_cache": 3}
    | {"layer_types": ["conv", "full_attention", "conv"]},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_models_are_read_to_the_byte(family: str, tmp_path: Path) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = CONFIG_MAPPING[family](**{**BASE, **FAMILIES[family]})
    transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path, family)
    predicted = read_hf_config(json.loads((tmp_path / "config.json").read_text()), family, "bf16")
    assert saved.file_bytes == library_bytes(tmp_path / "model.safetensors")
    assert saved.tied_bytes == predicted.tied_bytes
    assert (saved.embedding.weight_bytes, saved.head.weight_bytes) == (
        predicted.embedding.weight_bytes,
        predicted.head.weight_bytes,
    )
    for here, there in zip(saved.layers, predicted.layers, strict=True):
        more = here.attention.weight_bytes.gpu - there.attention.weight_bytes.gpu
        biases = here.experts.count if here.experts else 0  # buffers of a router, which a prediction does not count
        assert more in (0, 2 * biases, 4 * biases)
        assert (here.experts is None) == (there.experts is None)
        if here.experts and there.experts:
            assert here.experts.weight_bytes == there.experts.weight_bytes
            assert set(here.experts.projection_bytes or ()) <= {"gate", "up", "gate_up", "down"}


def library_bytes(path: Path) -> int:
    """Bytes of all tensors, by the safetensors library."""
    with safetensors.safe_open(path, "numpy") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 - not a dict
        return sum(prod(s.get_shape()) * DTYPE_BITS[s.get_dtype()] // 8 for s in slices)
