"""Qwen with linear attention in three of four layers: Qwen3-Next, Qwen3.5 and 3.6, Qwen4-Exp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isqrt

from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import layer_tensors
from profiles.hf_config.families.family import Family
from profiles.hf_config.families.qwen import sparse_steps
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, convolution, kept, linear, norm
from profiles.hf_config.parts.decoder import by_layer, decoder, every_layer, layer_count, layer_kinds
from profiles.hf_config.parts.feed_forward import gated_mlp, mixture
from profiles.hf_config.parts.hyper_connections import NOTE as STREAMS_NOTE
from profiles.hf_config.parts.indexers import NOTE as INDEXER_NOTE
from profiles.hf_config.parts.indexers import indexed
from profiles.hf_config.parts.next_token import with_mtp
from profiles.hf_config.parts.recurrent import gated_delta_net
from profiles.tensors import Cache, ModelTensors, Tensor, Tensors, under

FULL, LINEAR = "full_attention", "linear_attention"
MAX_ROWS = 10**9
"""No head's table of n-grams comes near as many rows; larger numbers are typing errors."""
MAX_GRAMS, MAX_HEADS = 16, 256


def _gated_attention(fields: Fields) -> Mixer:
    bias = fields.flag("attention_bias", False)
    return grouped_query_attention(fields, bias=bias, out_bias=bias, head_dim=256, qk_norm="head", gated=True)


def _kinds(fields: Fields, *known: str) -> list[str]:
    """The kind of each layer; without a list, one of `full_attention_interval` is full attention."""
    interval = fields.size("full_attention_interval", 4)
    return layer_kinds(fields, "layer_types", (FULL, LINEAR, *known), lambda i: LINEAR if (i + 1) % interval else FULL)


def _hybrid(fields: Fields, feed_forward: Callable[[int], FeedForward], *, fused: bool) -> ModelTensors:
    delta_net = partial(gated_delta_net, fields, fused=fused)
    mixer = by_layer(_kinds(fields), {FULL: partial(_gated_attention, fields), LINEAR: delta_net})
    return decoder(fields, mixer, feed_forward)


def _qwen3_next(fields: Fields) -> ModelTensors:
    return _hybrid(fields, sparse_steps(fields, shared=True), fused=True)


def _qwen3_5(fields: Fields) -> ModelTensors:
    mlp = gated_mlp(fields, fields.size("intermediate_size"))
    model = _hybrid(fields, every_layer(mlp), fused=False)
    return with_mtp(model, fields, layer_tensors(fields, _gated_attention(fields), mlp))


def _experts(fields: Fields) -> FeedForward:
    return mixture(
        fields,
        count="num_experts",
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("shared_expert_intermediate_size"),
        shared_name="shared_expert",
        shared_gate=True,
        router_weight_bytes=2,
    )


def _qwen3_5_moe(fields: Fields) -> ModelTensors:
    sparse = _experts(fields)
    model = _hybrid(fields, every_layer(sparse), fused=False)
    return with_mtp(model, fields, layer_tensors(fields, _gated_attention(fields), sparse))


def _indexed_attention(fields: Fields) -> Mixer:
    """Gated attention to the tokens that an indexer picks: it caches one key of its own a token."""
    full, hidden, size = _gated_attention(fields), fields.size("hidden_size"), fields.size("indexer_head_dim")
    heads, kv_heads = fields.size("indexer_n_heads"), fields.size("indexer_kv_heads")
    tensors = linear("index_qk_proj", (heads + kv_heads) * size, hidden)
    tensors += norm("q_layernorm", size) + norm("k_layernorm", size)
    flops = 2 * heads * size // fields.size("indexer_compress_ratio")
    cache = Cache(values_per_token=kv_heads * size, flops_per_token_pair=flops)
    return indexed(full, Mixer(under("indexer.", tensors), cache))


def _gated_residual(fields: Fields, name: str, *, injects: bool = True) -> Tensors:
    """What mixes the residual streams into a block's input, and says how its output goes back into each."""
    streams, rank = fields.size("hc_count"), fields.size("hc_lowrank")
    wide = streams * fields.size("hidden_size")
    tensors = norm("hc_norm", wide) + linear("input_mix_weight_down", rank, wide)
    tensors += linear("input_mix_weight_up", wide, rank)
    return under(f"{name}.", tensors + (linear("block_inject_weight", streams, wide) if injects else ()))


def _n_gram_rows(fields: Fields, heads: int, count: int) -> list[int]:
    """Rows of each of `count` tables of hashed n-grams: every head's share is the next prime from
    `ngram_vocab_size_base` on, over all tables; a table's rows are padded.
    """
    divisor, size = (
        fields.size("make_ngram_vocab_size_divisible_by"),
        fields.size("ngram_vocab_size_base", most=MAX_ROWS) - 1,
    )
    rows = []
    for _ in range(count):
        total = 0
        for _ in range(heads):
            size += 1
            while not _is_prime(size):
                size += 1
            total += size
        rows.append(-(-total // divisor) * divisor)
    return rows


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def _per_layer_embeddings(fields: Fields) -> dict[int, tuple[Tensors, int]]:
    """Layer -> tensors of its embeddings of hashed n-grams, and how many values their convolution keeps.

    Ignored: the last tokens' ids, which are kept as well (8 bytes each).
    """
    listed, layers = sorted(set(fields.whole_numbers("ple_layer_ids") or [])), layer_count(fields)
    if not listed:
        return {}
    if not 1 <= listed[0] <= listed[-1] <= layers:
        raise ProfileError(f"{fields.prefix}ple_layer_ids: {listed} are not all from 1 to {layers}; mend them")
    hidden, grams = fields.size("hidden_size"), fields.size("ngram_size", most=MAX_GRAMS)
    heads = fields.size("heads_per_ngram", most=MAX_HEADS) * (grams - 1)
    width = fields.maybe_size("ple_embed_dim", hidden) or hidden
    if heads == 0 or width % heads:
        raise ProfileError(f"{fields.prefix}ple_embed_dim: {width} is no multiple of {heads} n-gram heads; mend it")
    wide, kernel = hidden * fields.size("hc_count"), fields.size("ple_conv_kernel_size")
    around = linear("key_proj", wide, width) + linear("value_proj", hidden, width)
    around += norm("norm_key", wide) + norm("norm_query", wide) + norm("norm_conv", wide)
    around += convolution("conv1d", wide, kernel)
    found = {}
    for layer, rows in zip(listed, _n_gram_rows(fields, heads, len(listed)), strict=True):
        table = kept("ple_embedding.ngram_embedding.weight", rows, width // heads)
        found[layer - 1] = (under("ple.", table + around), wide * (kernel - 1) * grams)
    return found


def _qwen4_exp(fields: Fields) -> ModelTensors:
    """`layer_types` may call layers with an indexer full or indexed. Tables of n-grams belong to their layer's
    attention block, though transformers leaves them on the CPU where they do not fit.
    """
    embeddings, indexed = _per_layer_embeddings(fields), "indexed_attention"
    attention = partial(_indexed_attention, fields)
    parts = {FULL: attention, indexed: attention, LINEAR: partial(gated_delta_net, fields, fused=False)}
    plain = by_layer(_kinds(fields, indexed), parts)

    def mixer(index: int) -> Mixer:
        mixes, (_, values) = plain(index), embeddings.get(index, ((), 0))
        return replace(mixes, cache=replace(mixes.cache, state_values=mixes.cache.state_values + values))

    residual = _gated_residual(fields, "attn_hyper_connection") + _gated_residual(fields, "mlp_hyper_connection")
    last = under("model.", _gated_residual(fields, "hyper_connection_mixer", injects=False))
    tables = sum(tensor.params for tensors, _ in embeddings.values() for tensor in tensors if _is_table(tensor))
    note = f"{tables / 1e9:.1f} billion parameters are tables of n-grams in attention blocks: rows are looked up"
    return decoder(
        fields,
        mixer,
        every_layer(_experts(fields)),
        norms=(),
        beside=lambda index: residual + embeddings.get(index, ((), 0))[0],
        final_norm="",
        head=last,
        notes=(INDEXER_NOTE, STREAMS_NOTE, *([note] if tables else [])),
    )


def _is_table(tensor: Tensor) -> bool:
    return "ngram_embedding" in tensor.name


FAMILIES = {
    "qwen3_5_moe_text": Family(_qwen3_5_moe),
    "qwen3_5_text": Family(_qwen3_5),
    "qwen3_next": Family(_qwen3_next),
    "qwen4_exp_text": Family(_qwen4_exp),
}
