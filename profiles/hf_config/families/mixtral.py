"""Mixtral and models with its plain experts in every layer: Phi-3.5-MoE, OLMoE, gpt-oss."""

from __future__ import annotations

from functools import partial

from profiles.hf_config.families.family import FUSED, MIXTRAL_NAMES, Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import by_window, decoder, every_layer, typed_windows, uniform_windows
from profiles.hf_config.parts.feed_forward import mixture
from profiles.tensors import DiskNames, ModelTensors


def _mixtral(fields: Fields) -> ModelTensors:
    sparse = mixture(fields, count="num_local_experts", width=fields.size("intermediate_size"))
    mixer = by_window(uniform_windows(fields), partial(grouped_query_attention, fields))
    return decoder(fields, mixer, every_layer(sparse))


def _phimoe(fields: Fields) -> ModelTensors:
    bias, width = fields.flag("attention_bias", False), fields.size("intermediate_size")
    sparse = mixture(fields, count="num_local_experts", width=width, router="router")
    mixer = by_window(uniform_windows(fields), partial(grouped_query_attention, fields, bias=bias, out_bias=bias))
    head_bias = fields.flag("lm_head_bias", False)
    return decoder(fields, mixer, every_layer(sparse), norm_bias=True, head_bias=head_bias)


def _olmoe(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    sparse = mixture(fields, count="num_experts", width=fields.size("intermediate_size"), router_weight_bytes=2)
    attention = grouped_query_attention(fields, bias=bias, out_bias=bias, qk_norm="whole")
    return decoder(fields, every_layer(attention), every_layer(sparse))


def _gpt_oss(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", True)
    sparse = mixture(
        fields,
        count="num_local_experts",
        width=fields.size("intermediate_size"),
        router="router",
        router_bias=True,
        expert_bias=True,
        transposed=True,
        active="num_experts_per_tok|experts_per_token",
        router_weight_bytes=2,
    )
    attention = partial(grouped_query_attention, fields, bias=bias, out_bias=bias, head_dim=64, sinks=True)
    windows = typed_windows(fields, lambda index: index % 2 == 0)
    return decoder(fields, by_window(windows, attention), every_layer(sparse))


PHI_NAMES = DiskNames(((r"\.mlp\.router\b", ".block_sparse_moe.gate"), *MIXTRAL_NAMES.renames), ("w1", "w3", "w2"))
FAMILIES = {
    "gpt_oss": Family(_gpt_oss, FUSED),
    "mixtral": Family(_mixtral, MIXTRAL_NAMES),
    "olmoe": Family(_olmoe),
    "phimoe": Family(_phimoe, PHI_NAMES),
}
