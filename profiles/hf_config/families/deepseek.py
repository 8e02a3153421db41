"""DeepSeek and models with its latent attention, or with its leading dense layers and shared experts: GLM, dots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from profiles.errors import ProfileError
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention, latent_attention
from profiles.hf_config.parts.basic import FeedForward, kept, linear, norm
from profiles.hf_config.parts.decoder import (
    by_layer,
    by_window,
    decoder,
    every_layer,
    layer_kinds,
    no_windows,
    typed_windows,
)
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp, mixture
from profiles.tensors import ModelTensors, Tensors, under


def shared_and_routed(fields: Fields, *, shared_bias: bool = False) -> FeedForward:
    """DeepSeek's and GLM's experts: `n_shared_experts` shared ones are one FFN as wide as all of them."""
    width = fields.size("moe_intermediate_size")
    return mixture(
        fields,
        count="n_routed_experts|num_local_experts",
        width=width,
        shared_width=fields.count("n_shared_experts", most=1000) * width,
        shared_bias=shared_bias,
    )


def dense_first(fields: Fields, default: int = 0, *, bias: bool = False) -> Callable[[int], FeedForward]:
    """A dense FFN in the first `first_k_dense_replace` layers, experts in the others."""
    step = fields.size("moe_layer_freq", 1)
    if step != 1:
        raise ProfileError(f"{fields.prefix}moe_layer_freq: {step} is not supported (transformers ignores it); use 1")
    first = fields.count("first_k_dense_replace", default, most=MAX_LAYERS)
    dense = gated_mlp(fields, fields.size("intermediate_size"), bias=bias)
    sparse = shared_and_routed(fields, shared_bias=bias)
    return lambda index: dense if index < first else sparse


def with_next_token_layers(model: ModelTensors, fields: Fields, *, own_ends: bool = True) -> ModelTensors:
    """`model` and the multi-token-prediction layers that come with its files: they are not loaded by transformers.

    Each is another last layer with norms and a projection before it and, with `own_ends`, an embedding and a head.
    """
    extra = fields.count("num_nextn_predict_layers|num_mtp_layers", 0, most=MAX_LAYERS)
    if not extra:
        return replace(model, notes=(UNCOUNTED_BUFFERS,))
    hidden, vocab, last = model.hidden_size, model.vocab_size, len(model.layers) - 1
    layer = model.layers[last]
    own = layer.attention + (layer.experts.tensors if layer.experts else ())
    around = linear("eh_proj", hidden, 2 * hidden) + norm("enorm", hidden) + norm("hnorm", hidden)
    around += norm("shared_head.norm", hidden)
    if own_ends:
        around += kept("embed_tokens.weight", vocab, hidden) + kept("shared_head.head.weight", vocab, hidden)
    tensors: Tensors = ()
    for index in range(last + 1, last + 1 + extra):
        prefix = f"model.layers.{index}."
        tensors += tuple(replace(t, name=t.name.replace(f"model.layers.{last}.", prefix)) for t in own)
        tensors += under(prefix, around)
    left_out = f"{extra} multi-token-prediction layer(s) of the checkpoint are left out, as transformers does"
    return replace(model, mtp=tensors, notes=(UNCOUNTED_BUFFERS, left_out))


def _deepseek_v2(fields: Fields) -> ModelTensors:
    attention = latent_attention(fields, bias=fields.flag("attention_bias", False))
    return decoder(fields, every_layer(attention), dense_first(fields, bias=fields.flag("mlp_bias", False)))


def _deepseek_v3(fields: Fields) -> ModelTensors:
    attention = latent_attention(fields, bias=fields.flag("attention_bias", False))
    return with_next_token_layers(decoder(fields, every_layer(attention), dense_first(fields)), fields)


def _glm4_moe_lite(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    attention = latent_attention(fields, bias=bias, rope_key="qk_rope_head_dim|head_dim")
    dense, sparse = known = ("dense", "sparse")
    kinds = layer_kinds(fields, "mlp_layer_types", known, lambda index: sparse if index else dense)
    mlp = partial(gated_mlp, fields, fields.size("intermediate_size"))
    feed_forward = by_layer(kinds, {dense: mlp, sparse: partial(shared_and_routed, fields)})
    return with_next_token_layers(decoder(fields, every_layer(attention), feed_forward), fields)


def _glm4_moe(fields: Fields) -> ModelTensors:
    bias, qk_norm = fields.flag("attention_bias", False), fields.flag("use_qk_norm", False)
    # Without head_dim transformers rounds down, and its own default config (96 heads in 4096) relies on that.
    size = max(1, fields.size("hidden_size") // fields.size("num_attention_heads"))
    attention = grouped_query_attention(fields, bias=bias, head_dim=size, qk_norm="head" if qk_norm else "none")
    return with_next_token_layers(decoder(fields, every_layer(attention), dense_first(fields)), fields)


def _dots1(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    first = fields.count("max_window_layers", most=MAX_LAYERS)
    windows = no_windows(fields)
    if "layer_types" in fields.config or fields.maybe_size("sliding_window") is not None:
        windows = typed_windows(fields, lambda index: index >= first)
    attention = partial(grouped_query_attention, fields, bias=bias, out_bias=bias, qk_norm="head")
    return decoder(fields, by_window(windows, attention), dense_first(fields), notes=(UNCOUNTED_BUFFERS,))


FAMILIES = {
    "deepseek_v2": Family(_deepseek_v2),
    "deepseek_v3": Family(_deepseek_v3),
    "dots1": Family(_dots1),
    "glm4_moe": Family(_glm4_moe),
    "glm4_moe_lite": Family(_glm4_moe_lite),
    "kimi_k2": Family(_deepseek_v3, defaults="deepseek_v3"),
}
