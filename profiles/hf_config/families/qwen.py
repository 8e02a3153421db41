"""Qwen: dense Qwen2 and Qwen3, their MoE models, their models of text and images or sound."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from profiles.hf_config.families.family import FUSED, Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.basic import FeedForward
from profiles.hf_config.parts.decoder import (
    by_window,
    decoder,
    every_layer,
    no_windows,
    typed_windows,
    uniform_windows,
)
from profiles.hf_config.parts.feed_forward import gated_mlp, mixture
from profiles.tensors import ModelTensors


def _windows(fields: Fields) -> list[int | None]:
    """Qwen2 and Qwen3: windows only where `use_sliding_window`, from layer `max_window_layers` on."""
    if not fields.flag("use_sliding_window", False):
        return no_windows(fields)
    first = fields.count("max_window_layers", most=MAX_LAYERS)
    return typed_windows(fields, lambda index: index >= first)


def _qwen2(fields: Fields) -> ModelTensors:
    mlp = gated_mlp(fields, fields.size("intermediate_size"))
    return decoder(
        fields, by_window(_windows(fields), partial(grouped_query_attention, fields, bias=True)), every_layer(mlp)
    )


def _qwen3(fields: Fields) -> ModelTensors:
    bias, mlp = fields.flag("attention_bias", False), gated_mlp(fields, fields.size("intermediate_size"))
    attention = partial(grouped_query_attention, fields, bias=bias, out_bias=bias, head_dim=128, qk_norm="head")
    return decoder(fields, by_window(_windows(fields), attention), every_layer(mlp))


def sparse_steps(fields: Fields, *, shared: bool) -> Callable[[int], FeedForward]:
    """Experts in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not name; a dense FFN elsewhere."""
    sparse = mixture(
        fields,
        count="num_experts",
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("shared_expert_intermediate_size") if shared else 0,
        shared_name="shared_expert",
        shared_gate=shared,
        router_weight_bytes=2,
    )
    dense_layers, step = set(fields.whole_numbers("mlp_only_layers") or []), fields.size("decoder_sparse_step", 1)
    if not dense_layers and step == 1:
        return every_layer(sparse)
    dense = gated_mlp(fields, fields.size("intermediate_size"))
    return lambda index: dense if index in dense_layers or (index + 1) % step else sparse


def _qwen2_moe(fields: Fields) -> ModelTensors:
    windows = no_windows(fields)
    if fields.flag("use_sliding_window", False):
        last = fields.count("max_window_layers", most=MAX_LAYERS)
        windows = typed_windows(fields, lambda index: index % 2 == 0 and index < last)
    attention = partial(grouped_query_attention, fields, bias=fields.flag("qkv_bias", True))
    return decoder(fields, by_window(windows, attention), sparse_steps(fields, shared=True))


def _qwen3_moe(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    windows = uniform_windows(fields) if fields.flag("use_sliding_window", False) else no_windows(fields)
    attention = partial(grouped_query_attention, fields, bias=bias, out_bias=bias, qk_norm="head")
    return decoder(fields, by_window(windows, attention), sparse_steps(fields, shared=False))


def _untied(fields: Fields) -> Fields:
    """The fields of a text model whose wrapper decides whether the head is tied, and by default does not tie it."""
    return fields.but(tie_word_embeddings=fields.config.get("tie_word_embeddings") or False)


def _qwen3_vl(fields: Fields) -> ModelTensors:
    bias, mlp = fields.flag("attention_bias", False), gated_mlp(fields, fields.size("intermediate_size"))
    attention = grouped_query_attention(fields, bias=bias, out_bias=bias, head_dim=128, qk_norm="head")
    return decoder(_untied(fields), every_layer(attention), every_layer(mlp))


def _qwen3_vl_moe(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    attention = grouped_query_attention(fields, bias=bias, out_bias=bias, qk_norm="head")
    return decoder(_untied(fields), every_layer(attention), sparse_steps(fields, shared=False))


FAMILIES = {
    "qwen2": Family(_qwen2),
    "qwen2_moe": Family(_qwen2_moe),
    "qwen3": Family(_qwen3),
    "qwen3_moe": Family(_qwen3_moe),
    "qwen3_omni_moe_text": Family(_qwen3_vl_moe),
    "qwen3_vl_moe_text": Family(_qwen3_vl_moe, FUSED),
    "qwen3_vl_text": Family(_qwen3_vl),
}
