"""Rhymes' Aria: Llama's attention, experts stored with inputs before outputs."""

from __future__ import annotations

from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import decoder, every_layer
from profiles.hf_config.parts.feed_forward import mixture
from profiles.tensors import DiskNames, ModelTensors


def _aria(fields: Fields) -> ModelTensors:
    bias, width = fields.flag("attention_bias", False), fields.size("intermediate_size")
    sparse = mixture(
        fields,
        count="moe_num_experts",
        width=width,
        shared_width=fields.count("moe_num_shared_experts", most=1000) * width,
        shared_bias=fields.flag("mlp_bias", False),
        router="router",
        active="moe_topk",
        transposed=True,
        router_weight_bytes=2,
    )
    attention = grouped_query_attention(fields, bias=bias, out_bias=bias)
    return decoder(fields, every_layer(attention), every_layer(sparse))


NAMES = DiskNames(
    ((r"\.experts\.gate_up_proj\b", ".experts.fc1.weight"), (r"\.experts\.down_proj\b", ".experts.fc2.weight")), ()
)
FAMILIES = {"aria_text": Family(_aria, NAMES)}
