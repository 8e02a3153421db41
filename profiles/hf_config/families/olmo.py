"""Ai2's FlexOlmo: experts that were trained apart, and norms after attention and experts instead of before."""

from __future__ import annotations

from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import decoder, every_layer
from profiles.hf_config.parts.feed_forward import mixture
from profiles.tensors import ModelTensors


def _flex_olmo(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    sparse = mixture(fields, count="num_experts", width=fields.size("intermediate_size"), router_weight_bytes=2)
    attention = grouped_query_attention(fields, bias=bias, out_bias=bias, qk_norm="whole")
    norms = ("post_attention_layernorm", "post_feedforward_layernorm")
    return decoder(fields, every_layer(attention), every_layer(sparse), norms=norms)


FAMILIES = {"flex_olmo": Family(_flex_olmo)}
