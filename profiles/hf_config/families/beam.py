"""Beam: gated attention with a bias a head, windows in five of six layers, four norms a layer."""

from __future__ import annotations

from functools import partial

from profiles.hf_config.families.deepseek import listed_or_dense_first
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention, head_shape
from profiles.hf_config.parts.basic import Mixer, kept, linear
from profiles.hf_config.parts.decoder import NORMS, by_window, decoder, in_fp32, layer_count, typed_windows
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, mixture
from profiles.tensors import ModelTensors


def _attention(fields: Fields, window: int | None) -> Mixer:
    bias, (heads, _, size) = fields.flag("attention_bias", False), head_shape(fields)
    gate = linear("self_attn.gate_proj", heads * size, fields.size("hidden_size")) + kept("self_attn.gate_bias", heads)
    return grouped_query_attention(fields, bias=bias, out_bias=bias, qk_norm="head", window=window).beside(*gate)


def _beam(fields: Fields) -> ModelTensors:
    last = layer_count(fields) - 1
    windows = typed_windows(fields, lambda i: (i + 1) % 6 != 0 and i != last)
    sparse = partial(mixture, fields, count="num_experts", width=fields.size("moe_intermediate_size"))
    model = decoder(
        fields,
        by_window(windows, partial(_attention, fields)),
        listed_or_dense_first(fields.but(first_k_dense_replace=3), 3, sparse),
        norms=(*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        notes=(UNCOUNTED_BUFFERS,),
    )
    return in_fp32(model, "mlp.gate.weight")


FAMILIES = {"beam": Family(_beam)}
