"""Cohere's Command A+: attention and experts beside each other under one norm, windows in three of four layers."""

from __future__ import annotations

from functools import partial

from profiles.hf_config.families.deepseek import listed_or_dense_first
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import by_window, decoder, typed_windows
from profiles.hf_config.parts.feed_forward import mixture
from profiles.tensors import ModelTensors


def _windows(fields: Fields) -> list[int | None]:
    """Where nothing is listed, the first dense layers have a pattern of their own, and the others' starts anew."""
    first = fields.count("first_k_dense_replace", 0, most=MAX_LAYERS)

    def slides(index: int) -> bool:
        if index < first:
            return (index + 1) % fields.size("prefix_dense_sliding_window_pattern", 1) != 0
        return (index - first + 1) % fields.size("sliding_window_pattern", 4) != 0

    return typed_windows(fields, slides)


def _cohere2_moe(fields: Fields) -> ModelTensors:
    bias, width = fields.flag("attention_bias", False), fields.size("intermediate_size")
    sparse = partial(
        mixture,
        fields,
        count="num_experts",
        width=width,
        shared_width=fields.count("num_shared_experts", 0, most=1000) * width,
        router_weight_bytes=2,
    )
    wide = fields.but(intermediate_size=fields.maybe_size("prefix_dense_intermediate_size") or width)
    attention = partial(grouped_query_attention, fields, bias=bias, out_bias=bias)
    feed_forward = listed_or_dense_first(wide, 0, sparse)
    return decoder(fields, by_window(_windows(fields), attention), feed_forward, norms=("input_layernorm",))


FAMILIES = {"cohere2_moe": Family(_cohere2_moe)}
