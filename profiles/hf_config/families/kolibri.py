"""Kolibri and Flint: many small experts beside a shared one, windows in most layers."""

from __future__ import annotations

from functools import partial

from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import NORMS, by_window, decoder, every_layer, in_fp32, layer_count, typed_windows
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp, mixture
from profiles.tensors import DiskNames, ModelTensors


def _kolibri1(fields: Fields) -> ModelTensors:
    sparse = mixture(
        fields,
        count="num_experts|num_local_experts",
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("shared_expert_intermediate_size"),
    )
    windows = typed_windows(fields, lambda i: (i + 1) % 5 != 0)
    attention = by_window(windows, partial(grouped_query_attention, fields, qk_norm="head"))
    norms = (*NORMS, "post_self_attn_layernorm", "post_mlp_layernorm")
    return decoder(fields, attention, every_layer(sparse), norms=norms, notes=(UNCOUNTED_BUFFERS,))


def _flint(fields: Fields) -> ModelTensors:
    """Full attention in the first two layers, every fourth and the last; sinks; the router in fp32."""
    bias, last = fields.flag("attention_bias", False), layer_count(fields) - 1
    sparse = mixture(
        fields,
        count="num_experts",
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("shared_expert_intermediate_size"),
        shared_name="shared_expert",
    )
    dense, step = gated_mlp(fields, fields.size("intermediate_size")), fields.size("decoder_sparse_step", 1)
    listed = fields.whole_numbers("mlp_only_layers")
    dense_layers = {0, 1} if listed is None else set(listed)
    windows = typed_windows(fields, lambda i: not (i < 2 or i % 4 == 1 or i == last))
    attention = partial(grouped_query_attention, fields, bias=bias, out_bias=bias, qk_norm="head", sinks=True)
    model = decoder(
        fields,
        by_window(windows, attention),
        lambda index: dense if index in dense_layers or (index + 1) % step else sparse,
    )
    return in_fp32(model, "mlp.gate.weight", "sinks")


KOLIBRI_NAMES = DiskNames(
    ((r"\.post_self_attn_layernorm\b", ".post_attn_norm"), (r"\.post_mlp_layernorm\b", ".post_ffn_norm"))
)
FLINT_NAMES = DiskNames(((r"\.self_attn\.sinks\b", ".self_attn.softmax_offset"),))
FAMILIES = {"flint": Family(_flint, FLINT_NAMES), "kolibri1": Family(_kolibri1, KOLIBRI_NAMES)}
