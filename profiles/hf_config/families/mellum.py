"""JetBrains' Mellum 2: Qwen3's layers with windows in three of four."""

from __future__ import annotations

from functools import partial

from profiles.hf_config.families.deepseek import DENSE, SPARSE, layer_tensors, listed_or_dense_first
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import by_window, decoder, typed_windows
from profiles.hf_config.parts.feed_forward import gated_mlp, mixture
from profiles.hf_config.parts.next_token import next_token_layers, with_mtp
from profiles.tensors import ModelTensors


def _mellum(fields: Fields) -> ModelTensors:
    bias, width = fields.flag("attention_bias", False), fields.size("moe_intermediate_size")
    sparse = mixture(fields, count="num_experts|num_local_experts", width=width, router_weight_bytes=2)
    attention = partial(grouped_query_attention, fields, bias=bias, out_bias=bias, qk_norm="head")
    feed_forward = listed_or_dense_first(fields.but(first_k_dense_replace=0), 0, lambda: sparse)
    model = decoder(fields, by_window(typed_windows(fields), attention), feed_forward)
    kinds = fields.per_layer("mtp_mlp_layer_types", (DENSE, SPARSE), next_token_layers(fields))
    after = gated_mlp(fields, fields.size("intermediate_size")) if kinds and kinds[0] == DENSE else sparse
    return with_mtp(model, fields, layer_tensors(fields, attention(), after))


FAMILIES = {"mellum": Family(_mellum)}
