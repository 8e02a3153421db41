"""Sparse attention's indexers: small attentions of their own that choose which tokens the large one looks at."""

from __future__ import annotations

from dataclasses import replace

from profiles.errors import ProfileError
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.basic import Mixer, kept, linear, norm
from profiles.hf_config.parts.decoder import layer_count
from profiles.tensors import Cache, under

FULL, SHARED = "full", "shared"
NOTE = "sparse attention is counted as transformers computes it, over all cached tokens; runtimes that skip are faster"


def lightning_indexer(fields: Fields, query_width: int) -> Mixer:
    """DeepSeek-V3.2's indexer: `index_n_heads` queries from `query_width` values, one key of `index_head_dim` a token.

    The key is cached. `weights_proj` is not quantised (transformers names it in `_keep_in_fp32_modules`).
    """
    heads, size, hidden = fields.size("index_n_heads"), fields.size("index_head_dim"), fields.size("hidden_size")
    tensors = linear("wq_b", heads * size, query_width) + linear("wk", size, hidden) + norm("k_norm", size, bias=True)
    tensors += kept("weights_proj.weight", heads, hidden)
    return Mixer(under("indexer.", tensors), Cache(values_per_token=size, flops_per_token_pair=2 * heads * size))


def pooled_indexer(fields: Fields, query_width: int) -> Mixer:
    """GLM-5.3's indexer, which scores pools of `index_kpool` tokens.

    transformers caches a token's key, its gate and whether it counts, and pools them anew at every step.
    """
    plain, pool = lightning_indexer(fields, query_width), fields.size("index_kpool")
    size = fields.size("index_head_dim")
    gates = kept("index_kpool_compress_ape", pool, size)
    gates += kept("index_kpool_compress_gate", size, fields.size("hidden_size"))
    flops = plain.cache.flops_per_token_pair // pool
    return Mixer(
        plain.tensors + under("indexer.", gates), Cache(values_per_token=2 * size + 1, flops_per_token_pair=flops)
    )


def indexed(attention: Mixer, indexer: Mixer) -> Mixer:
    """Attention whose layer has an indexer of its own beside it, and caches what both do."""
    cache, more = attention.cache, indexer.cache
    both = replace(
        cache,
        values_per_token=cache.values_per_token + more.values_per_token,
        flops_per_token_pair=cache.flops_per_token_pair + more.flops_per_token_pair,
        full_values_per_token=cache.full_values_per_token and cache.full_values_per_token + more.values_per_token,
    )
    return Mixer(attention.tensors + under("self_attn.", indexer.tensors), both)


def indexer_kinds(fields: Fields) -> list[str]:
    """FULL or SHARED for each layer: whether it has an indexer, or takes the choice of the last layer that has one.

    From `indexer_types`, or `index_topk_pattern` (a list, or a letter a layer), or a full one every `index_topk_freq`
    layers from `index_skip_topk_offset` on.
    """
    layers, known = layer_count(fields), (FULL, SHARED)
    listed = fields.per_layer("indexer_types", known, layers)
    if listed is None and (pattern := fields.config.get("index_topk_pattern")) is not None:
        words = [{"F": FULL, "S": SHARED}.get(c, c) for c in pattern] if isinstance(pattern, str) else pattern
        listed = fields.but(index_topk_pattern=words).per_layer("index_topk_pattern", known, layers)
    if listed is None:
        step, first = max(1, fields.count("index_topk_freq", 1)), fields.count("index_skip_topk_offset", 2)
        listed = [FULL if max(i - first + 1, 0) % step == 0 else SHARED for i in range(layers)]
    if listed[0] == SHARED:
        raise ProfileError(
            f"{fields.prefix}indexer_types: the first layer is {SHARED!r}, and none is before it; write {FULL!r}"
        )
    return listed
