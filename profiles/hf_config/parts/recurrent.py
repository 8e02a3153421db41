"""Recurrences and convolutions in the place of attention: no cache by the token, but a state."""

from __future__ import annotations

from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.basic import Mixer, convolution, kept, linear, norm
from profiles.tensors import Cache, under


def gated_delta_net(fields: Fields, *, fused: bool = True) -> Mixer:
    """Linear attention (Qwen3-Next; Qwen3.5 and on, not `fused`, have a projection for each input): no cache per token,
    but a convolution's and a recurrence's state.

    The convolution keeps `linear_conv_kernel_dim` columns of activations; the recurrence keeps a matrix of
    key by value size a value head, which transformers computes and caches in fp32.
    """
    hidden = fields.size("hidden_size")
    key_heads, value_heads = fields.size("linear_num_key_heads"), fields.size("linear_num_value_heads")
    key_size, value_size = fields.size("linear_key_head_dim"), fields.size("linear_value_head_dim")
    keys, values, kernel = key_heads * key_size, value_heads * value_size, fields.size("linear_conv_kernel_dim")
    tensors = kept("dt_bias", value_heads) + kept("A_log", value_heads)
    tensors += kept("conv1d.weight", 2 * keys + values, 1, kernel)
    if fused:
        tensors += linear("in_proj_qkvz", 2 * keys + 2 * values, hidden) + linear("in_proj_ba", 2 * value_heads, hidden)
    else:
        tensors += linear("in_proj_qkv", 2 * keys + values, hidden) + linear("in_proj_z", values, hidden)
        tensors += linear("in_proj_b", value_heads, hidden) + linear("in_proj_a", value_heads, hidden)
    tensors += norm("norm", value_size) + linear("out_proj", hidden, values)
    cache = Cache(state_values=(2 * keys + values) * kernel, state_fp32_values=value_heads * key_size * value_size)
    return Mixer(under("linear_attn.", tensors), cache)


def short_convolution(hidden: int, kernel: int, *, bias: bool = False) -> Mixer:
    """LFM2's: a gated convolution over `kernel` tokens, of which it keeps as many columns."""
    tensors = convolution("conv", hidden, kernel, bias=bias)
    tensors += linear("in_proj", 3 * hidden, hidden, bias=bias) + linear("out_proj", hidden, hidden, bias=bias)
    return Mixer(under("conv.", tensors), Cache(state_values=hidden * kernel))


def lightning_attention(hidden: int, heads: int, size: int) -> Mixer:
    """MiniMax's linear attention: queries, keys and values of one projection, a norm and a gate over all heads.

    transformers keeps a matrix of size by size a head, in the activations' type.
    """
    inner = heads * size
    tensors = linear("qkv_proj", 3 * inner, hidden) + linear("out_proj", hidden, inner)
    tensors += linear("output_gate", inner, hidden) + norm("norm", inner)
    return Mixer(under("self_attn.", tensors), Cache(state_values=inner * size))
