"""Meta's Muse Spark: experts in a narrower space, gated attention, gates on the residual."""

from __future__ import annotations

from functools import partial

from profiles.hf_config.families.deepseek import listed_or_dense_first
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention, head_shape
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear, norm
from profiles.hf_config.parts.decoder import by_window, decoder, every_layer, in_fp32, layer_count, typed_windows
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, mixture
from profiles.tensors import ModelTensors

GATES = ("post_attention_residual_gate", "post_feedforward_residual_gate")


def _attention(fields: Fields, window: int | None) -> Mixer:
    bias, (heads, _, size) = fields.flag("attention_bias", False), head_shape(fields)
    plain = grouped_query_attention(fields, bias=bias, out_bias=bias, window=window)
    return plain.beside(*linear("self_attn.gate_proj", heads * size, fields.size("hidden_size")))


def _experts(fields: Fields) -> FeedForward:
    """Experts between projections to `moe_hidden_size` and back. The norm of their outputs is one for all of them, so
    it is not in their block.
    """
    hidden, narrow = fields.size("hidden_size"), fields.size("moe_hidden_size")
    width = fields.size("moe_intermediate_size")
    routed = mixture(fields, count="num_local_experts", width=width, expert_hidden=narrow)
    around = linear("mlp.pre_expert_proj", narrow, hidden) + linear("mlp.post_expert_proj", hidden, narrow)
    return routed.beside(*around, *norm("mlp.pre_expert_norm", narrow), *norm("mlp.experts.post_expert_norm", narrow))


def _muse_spark(fields: Fields) -> ModelTensors:
    hidden, last = fields.size("hidden_size"), layer_count(fields) - 1
    windows = typed_windows(fields, lambda i: (last - i) % 4 != 0)
    gates = tuple(tensor for name in GATES for tensor in kept(f"{name}.gate", hidden))
    model = decoder(
        fields,
        by_window(windows, partial(_attention, fields)),
        listed_or_dense_first(fields.but(first_k_dense_replace=0), 0, partial(_experts, fields)),
        norms=("input_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        beside=every_layer(gates),
        notes=(UNCOUNTED_BUFFERS,),
    )
    return in_fp32(model, *GATES, "mlp.gate.weight")


FAMILIES = {"muse_spark_text": Family(_muse_spark)}
