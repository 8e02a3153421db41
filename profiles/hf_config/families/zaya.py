"""Zyphra's ZAYA1: compressed convolutional attention, and a router that is a network and may choose no expert."""

from __future__ import annotations

from functools import partial

from profiles.errors import ProfileError
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import head_shape
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear, norm
from profiles.hf_config.parts.decoder import by_window, decoder, every_layer, layer_kinds
from profiles.hf_config.parts.feed_forward import mixture
from profiles.tensors import Cache, ModelTensors, Tensors, under

FULL, SLIDING = "hybrid", "hybrid_sliding"
NOTE = "a token may choose no expert (one more row of the router): plans count as if each used an expert"


def _attention(fields: Fields, window: int | None = None) -> Mixer:
    """Queries, keys and values of a convolution over `cca_time0` and then `cca_time1` tokens; half of each value is of
    the token before. Beside keys and values it keeps what the convolution needs of tokens before, and that half.
    """
    hidden, bias = fields.size("hidden_size"), fields.flag("attention_bias", False)
    heads, kv_heads, size = head_shape(fields)
    if kv_heads * size % 2:
        raise ProfileError(f"{fields.prefix}head_dim: {kv_heads} heads of {size} cannot be halved; mend it")
    first, second = fields.size("cca_time0"), fields.size("cca_time1")
    queries, keys = heads * size, kv_heads * size
    tensors = linear("q_proj", queries, hidden, bias=bias) + linear("k_proj", keys, hidden, bias=bias)
    tensors += linear("v_proj_current", keys // 2, hidden, bias=bias)
    tensors += linear("v_proj_delayed", keys // 2, hidden, bias=bias)
    for name, width, kernel in (("depthwise", 1, first), ("grouped", size, second)):
        tensors += kept(f"conv_qk_{name}.weight", queries + keys, width, kernel)
        tensors += kept(f"conv_qk_{name}.bias", queries + keys)
    around = under("qkv_proj.", tensors) + kept("qk_norm.temp", kv_heads)
    around += linear("o_proj", hidden, queries, bias=bias)
    cache = Cache(
        values_per_token=2 * keys,
        window_tokens=window,
        state_values=(queries + keys) * (first + second - 2) + keys // 2,
        flops_per_token_pair=4 * queries,
    )
    return Mixer(under("self_attn.", around), cache)


def _router(fields: Fields, experts: int, index: int) -> Tensors:
    """Three projections behind a narrow one; from the second layer on it also sees the layer before's."""
    width, hidden = fields.size("router_hidden_size"), fields.size("hidden_size")
    tensors = kept("down_proj.weight", width, hidden) + kept("down_proj.bias", width)
    tensors += kept("router_states_scale", width) if index else ()
    inner = norm("norm", width) + kept("out_proj.weight", experts + 1, width)
    for name in ("fc1", "fc2"):
        inner += kept(f"{name}.weight", width, width) + kept(f"{name}.bias", width)
    return under("mlp.gate.", tensors + under("router_mlp.", inner))


def _residual_scales(hidden: int) -> Tensors:
    names = ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias")
    scales = tuple(tensor for name in names for tensor in kept(name, hidden))
    return under("post_attention_residual_scale.", scales) + under("post_mlp_residual_scale.", scales)


def _zaya(fields: Fields) -> ModelTensors:
    hidden = fields.size("hidden_size")
    plain = mixture(fields, count="num_experts", width=fields.size("moe_intermediate_size"))
    if plain.experts is None or plain.experts.active != 1:
        raise ProfileError(f"{fields.prefix}num_experts_per_tok: only 1 is known of ZAYA; write 1")
    sparse, experts = FeedForward((), plain.experts), plain.experts.count
    kinds, window = layer_kinds(fields, "layer_types", (FULL, SLIDING), lambda _: FULL), None
    if SLIDING in kinds:
        window = fields.size("sliding_window")
    windows = [window if kind == SLIDING else None for kind in kinds]
    scales = _residual_scales(hidden)
    return decoder(
        fields,
        by_window(windows, partial(_attention, fields)),
        every_layer(sparse),
        beside=lambda index: _router(fields, experts, index) + scales,
        embedding=kept("model.input_hidden_states_scale", hidden) + kept("model.input_hidden_states_bias", hidden),
        head_bias=fields.flag("lm_head_bias", False),
        notes=(NOTE,),
    )


FAMILIES = {"zaya": Family(_zaya)}
