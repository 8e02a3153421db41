"""Attention: grouped-query and latent, as transformers has them, and what each caches."""

from __future__ import annotations

from typing import Literal

from profiles.errors import ProfileError
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.basic import Mixer, kept, linear, norm
from profiles.tensors import Cache, under


def head_shape(fields: Fields, default_head_dim: int | None = None) -> tuple[int, int, int]:
    """(attention heads, key-value heads, size of a head); sizes that do not divide are refused."""
    heads = fields.size("num_attention_heads")
    kv_heads = fields.maybe_size("num_key_value_heads", heads) or heads
    if heads % kv_heads:
        raise ProfileError(
            f"{fields.prefix}num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}; mend one"
        )
    head_dim = fields.maybe_size("head_dim", default_head_dim)
    if head_dim is None:
        hidden = fields.size("hidden_size")
        if hidden % heads:
            raise ProfileError(
                f"{fields.prefix}num_attention_heads: {heads} does not divide hidden_size {hidden}; mend one"
            )
        head_dim = hidden // heads
    return heads, kv_heads, head_dim


def grouped_query_attention(
    fields: Fields,
    *,
    bias: bool = False,
    out_bias: bool = False,
    head_dim: int | None = None,
    qk_norm: Literal["none", "head", "whole"] = "none",
    gated: bool = False,
    sinks: bool = False,
    window: int | None = None,
    value_size: int | None = None,
    out: str = "o_proj",
    name: str = "self_attn",
) -> Mixer:
    """Attention whose key-value heads are shared by groups of heads; keys and values are cached.

    `qk_norm` normalises queries and keys per head or over their whole width; `gated` doubles the query projection.
    `value_size` is a value head's size where it is not that of keys.
    Ignored: a causal mask halves the score FLOPs of a prompt with itself; they are counted for every pair.
    """
    hidden = fields.size("hidden_size")
    heads, kv_heads, size = head_shape(fields, head_dim)
    queries, keys = heads * size, kv_heads * size
    values, outputs = kv_heads * (value_size or size), heads * (value_size or size)
    tensors = linear("q_proj", queries * (2 if gated else 1), hidden, bias=bias)
    tensors += linear("k_proj", keys, hidden, bias=bias) + linear("v_proj", values, hidden, bias=bias)
    tensors += linear(out, hidden, outputs, bias=out_bias)
    if qk_norm != "none":
        tensors += norm("q_norm", size if qk_norm == "head" else queries)
        tensors += norm("k_norm", size if qk_norm == "head" else keys)
    if sinks:
        tensors += kept("sinks", heads)
    flops = 2 * (queries + outputs)
    cache = Cache(values_per_token=keys + values, window_tokens=window, flops_per_token_pair=flops)
    return Mixer(under(f"{name}.", tensors), cache)


def latent_attention(fields: Fields, *, bias: bool = False, rope_key: str = "qk_rope_head_dim") -> Mixer:
    """Multi-head latent attention (DeepSeek-V2): the cache holds a latent of `kv_lora_rank` and the rotary key.

    transformers caches exactly that and expands the whole of it at every step: for each cached token keys of
    nope + rope values a head beside the projection's nope + v. FLOPs are of scores and values on expanded heads;
    ignored: the expansion itself (2 * rank * heads * (nope + v) a cached token and step), and runtimes that absorb it.
    """
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    query_rank, rank = fields.maybe_size("q_lora_rank", 0), fields.size("kv_lora_rank")
    if query_rank == 0:
        raise ProfileError(f"{fields.prefix}q_lora_rank: missing; add it (null where queries have no low rank)")
    nope, rope, v = fields.size("qk_nope_head_dim"), fields.count(rope_key), fields.size("v_head_dim")
    if query_rank is None:
        tensors = linear("q_proj", heads * (nope + rope), hidden)
    else:
        tensors = linear("q_a_proj", query_rank, hidden, bias=bias) + norm("q_a_layernorm", query_rank)
        tensors += linear("q_b_proj", heads * (nope + rope), query_rank)
    tensors += linear("kv_a_proj_with_mqa", rank + rope, hidden, bias=bias) + norm("kv_a_layernorm", rank)
    tensors += linear("kv_b_proj", heads * (nope + v), rank) + linear("o_proj", hidden, heads * v, bias=bias)
    cache = Cache(
        values_per_token=rank + rope,
        flops_per_token_pair=2 * heads * (nope + rope + v),
        expanded_values_per_token=heads * (2 * nope + rope + v),
        full_values_per_token=heads * (nope + rope + v),
        latent_heads=heads,
    )
    return Mixer(under("self_attn.", tensors), cache)
