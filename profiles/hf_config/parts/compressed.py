"""DeepSeek-V4's attention: one key that is the value too, a window in every layer, and behind it compressed entries."""

from __future__ import annotations

from dataclasses import replace

from profiles.errors import ProfileError
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.basic import Mixer, kept, linear, norm
from profiles.tensors import Cache, Tensors, under

WINDOW, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
RATIOS = {0: WINDOW, 4: SPARSE, 128: HEAVY}
"""An entry of `compress_ratios` -> transformers' name of the layer's type."""
RATES = {SPARSE: 4, HEAVY: 128}


def compressed_attention(fields: Fields, kind: str) -> Mixer:
    """Attention of a layer of `kind`, with a low rank for queries and, group by group, for outputs.

    transformers keeps the window's keys (twice where nothing is compressed), an entry for every m tokens, and keys and
    gates of tokens that make no entry yet; gates of the last entry, which the next overlaps, are in fp32, as are the
    biases that were added to them. The window and those are counted as state, filled.
    Ignored: FLOPs in the window, which do not grow with the context; that a sparse layer looks at `index_topk` entries.
    """
    hidden, heads, size = fields.size("hidden_size"), fields.size("num_attention_heads"), fields.size("head_dim")
    rank, groups, low = fields.size("q_lora_rank"), fields.size("o_groups"), fields.size("o_lora_rank")
    if heads * size % groups:
        raise ProfileError(f"{fields.prefix}o_groups: {groups} does not divide {heads} heads of {size}; mend it")
    tensors = kept("sinks", heads, fp32=True) + linear("q_a_proj", rank, hidden) + norm("q_a_norm", rank)
    tensors += linear("q_b_proj", heads * size, rank) + linear("kv_proj", size, hidden) + norm("kv_norm", size)
    tensors += linear("o_a_proj", groups * low, heads * size // groups) + linear("o_b_proj", hidden, groups * low)
    window = fields.size("sliding_window")
    if kind == WINDOW:
        cache = Cache(values_per_token=2 * size, window_tokens=window, flops_per_token_pair=4 * heads * size)
        return Mixer(under("self_attn.", tensors), cache)
    tensors += under("compressor.", _compressor(fields, kind))
    return Mixer(under("self_attn.", tensors), _compressed_cache(fields, kind, window))


def compress_rate(fields: Fields, kind: str) -> int:
    """Tokens of an entry in layers of `kind`."""
    old = {SPARSE: "compress_rate_csa", HEAVY: "compress_rate_hca"}[kind]
    if old in fields.config:
        return fields.size(old)
    rates = fields.nested("compress_rates") if fields.config.get("compress_rates") is not None else Fields({})
    return rates.size(kind, RATES[kind])


def _compressor(fields: Fields, kind: str) -> Tensors:
    """What makes entries of tokens: in sparse layers two overlapping series of them, and an indexer with its own.

    transformers names all its projections in `_keep_in_fp32_modules`, and checkpoints have them in 16 bits, but for the
    indexer's queries.
    """
    hidden, size, rate = fields.size("hidden_size"), fields.size("head_dim"), compress_rate(fields, kind)
    if kind == HEAVY:
        return _entries(hidden, size, size, rate)
    heads, key = fields.size("index_n_heads"), fields.size("index_head_dim")
    indexer = _entries(hidden, key, 2 * key, rate) + linear("q_b_proj", heads * key, fields.size("q_lora_rank"))
    indexer += kept("scorer.weights_proj.weight", heads, hidden)
    return _entries(hidden, size, 2 * size, rate) + under("indexer.", indexer)


def _entries(hidden: int, size: int, width: int, rate: int) -> Tensors:
    tensors = kept("position_bias", rate, width, fp32=True) + norm("kv_norm", size)
    return tensors + kept("kv_proj.weight", width, hidden) + kept("gate_proj.weight", width, hidden)


def _compressed_cache(fields: Fields, kind: str, window: int) -> Cache:
    heads, size, rate = fields.size("num_attention_heads"), fields.size("head_dim"), compress_rate(fields, kind)
    cache = Cache(
        values_per_token=size,
        tokens_per_entry=rate,
        state_values=(window - 1) * size + (rate - 1) * 2 * size,
        flops_per_token_pair=4 * heads * size // rate,
    )
    if kind == HEAVY:
        return cache
    key, scorers = fields.size("index_head_dim"), fields.size("index_n_heads")
    both = size + key
    waiting = (rate - 1) * 2 * (2 * both) + rate * both
    return replace(
        cache,
        values_per_token=both,
        state_values=(window - 1) * size + waiting,
        state_fp32_values=rate * both,
        flops_per_token_pair=(4 * heads * size + 2 * scorers * key) // rate,
    )
