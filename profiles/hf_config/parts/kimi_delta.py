"""Kimi's delta attention (KDA): linear attention with a gate for every channel; no cache by the token, but a state."""

from __future__ import annotations

from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.basic import Mixer, kept, linear, norm
from profiles.tensors import Cache, under


def kimi_delta_attention(
    fields: Fields, *, decay: tuple[int, ...], full_rank_gate: bool = False, full_rank_decay: bool = False
) -> Mixer:
    """KDA with `linear_num_heads` heads of `linear_head_dim`; `decay` is the shape of `A_log`.

    transformers keeps `linear_conv_kernel_dim` columns of the joint convolution over queries, keys and values, and a
    matrix a head in fp32. `full_rank_gate`: the output's gate is one projection, not two over the size of a head.
    """
    hidden, heads, size = fields.size("hidden_size"), fields.size("linear_num_heads"), fields.size("linear_head_dim")
    inner, kernel = heads * size, fields.size("linear_conv_kernel_dim")
    tensors = linear("q_proj", inner, hidden) + linear("k_proj", inner, hidden) + linear("v_proj", inner, hidden)
    tensors += kept("conv1d.weight", 3 * inner, 1, kernel)
    forget = kept("dt_bias", inner) + kept("A_log", *decay)
    if full_rank_decay:
        forget += linear("f_proj", inner, hidden)
    else:
        forget += linear("f_a_proj", size, hidden) + linear("f_b_proj", inner, size)
    tensors += under("forget_gate.", forget) + linear("b_proj", heads, hidden)
    if full_rank_gate:
        tensors += linear("g_proj", inner, hidden)
    else:
        tensors += linear("g_a_proj", size, hidden) + linear("g_b_proj", inner, size)
    tensors += norm("o_norm", size) + linear("o_proj", hidden, inner)
    return Mixer(under("self_attn.", tensors), Cache(state_values=3 * inner * kernel, state_fp32_values=inner * size))


def with_linear_sizes(fields: Fields) -> Fields:
    """The sizes that checkpoints keep in `linear_attn_config`, under the names that transformers gives them."""
    inner = fields.config.get("linear_attn_config")
    if inner is None:
        return fields
    nested = fields.nested("linear_attn_config")
    names = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads"}
    names |= {"short_conv_kernel_size": "linear_conv_kernel_dim"}
    return fields.but(**{name: nested.size(key) for key, name in names.items() if key in nested.config})
