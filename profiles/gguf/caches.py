"""What a layer of a GGUF model caches in llama.cpp: keys and values, latents, indexer keys, recurrent states.

Sizes come from the shapes of the layer's own projections where these say it, as they hold whatever the metadata leaves
out. Facts of llama.cpp build 11434: llama_model::create_memory, llama_hparams::n_embd_r and n_embd_s,
src/llama-kv-cache-*.cpp, src/llama-memory-*.cpp. For one sequence; ignored: padding of a context to 256 cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from profiles.errors import ProfileError
from profiles.gguf.metadata import REMEDY, Metadata
from profiles.hf_config.fields import MAX_LAYERS
from profiles.tensors import Cache

Shapes = Mapping[str, tuple[int, ...]]
"""The tensors of a layer: name after `blk.N.` -> shape in ggml's order."""
CACHELESS = (
    "llada-moe", "rnd1", "llada", "dream", "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert",
    "jina-bert-v2", "jina-bert-v3", "eurobert",
)  # fmt: skip
"""Architectures whose tokens see all others at every step (diffusion models, encoders): nothing is kept."""
NO_GROUPS = ("jamba", "mamba")
"""Architectures whose convolution covers the inner size alone, whatever groups the file has."""
DELTA = "ssm_conv1d_q"
"""A tensor of delta attention, whose projections have the names of attention's."""
LIGHTNING, LIGHTNING_INTERVAL = "minimax-01", 8
INDEXED = ("deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "minimax-m3", "qwen4exp")
"""Architectures whose sparse attention has an indexer; of others, layers with an indexer's tensors have one."""
INDEX_ROWS = {"glm5-next": 3, "qwen4exp": 2}
"""Vectors of an indexer's head size that are cached a token where keys are pooled: raw, (gate,) pooled."""
INDEX_WITH_VALUES = "minimax-m3"
"""The architecture whose index is cached as keys and values, and only in layers with experts."""
LONG_GLM = 1_048_576
"""A context from which on glm-dsa's files without a list mean GLM-5.2: one layer in four has an indexer of its own."""
CSA_RATIO, HCA_RATIO = 4, 128
"""DeepSeek-V4's ratios of compression; its sparse attention over every fourth token has an indexer."""
UBATCH, CELLS = 512, 256
"""llama.cpp's default tokens a step, which a window keeps beside itself; caches of windows grow in steps of 256."""
SHARED_AFTER = {"gemma3n": 20}
"""The layers from this one on use the caches of those before (gemma4's files say it)."""


def cache_of(index: int, shapes: Shapes, window: int | None, fields: Metadata) -> Cache:
    """What layer `index` caches, which has tensors of these `shapes` and attends to `window` tokens, or to all."""
    stems = {name.split(".")[0] for name in shapes}
    name = fields.architecture
    if name in CACHELESS or _uses_other_caches(index, fields):
        return Cache()
    if name == "deepseek4":
        return _compressed_cache(index, shapes, fields)
    if any(stem.startswith("time_mix") for stem in stems):
        problem = f"general.architecture: {name}: its recurrence is not known"
        raise ProfileError(f"{problem}; write a profile YAML")
    state = _state_values(index, shapes, stems, fields)
    if state and ("attn_k" not in stems or DELTA in stems):  # a few architectures attend beside a recurrence
        return Cache(state_fp32_values=state)
    attended = _attention_cache(index, shapes, stems, window, fields)
    if not attended.values_per_token:
        return attended
    indexed = attended.values_per_token + _index_values(index, shapes, stems, fields)
    return replace(attended, values_per_token=indexed, state_fp32_values=state)


def together(last: Cache, draft: Cache) -> Cache:
    """What `last` caches and, beside it, a block for multi-token prediction, as one layer.

    Where one has a window that the other lacks both are counted whole.
    """
    alike = last.window_tokens == draft.window_tokens or not last.values_per_token or not draft.values_per_token
    return replace(
        last if last.values_per_token else draft,
        values_per_token=last.values_per_token + draft.values_per_token,
        window_tokens=(last.window_tokens or draft.window_tokens) if alike else None,
        state_values=last.state_values + draft.state_values,
        state_fp32_values=last.state_fp32_values + draft.state_fp32_values,
    )


def _uses_other_caches(index: int, fields: Metadata) -> bool:
    first = SHARED_AFTER.get(fields.architecture)
    if fields.architecture == "gemma4":
        shared = fields.number(".attention.shared_kv_layers", MAX_LAYERS) or 0
        first = fields.size(".block_count", MAX_LAYERS) - shared
    return first is not None and index >= first


# --- states -----------------------------------------------------------------------------------------------------------


def _state_values(index: int, shapes: Shapes, stems: set[str], fields: Metadata) -> int:
    """Values that a sequence needs whatever its length, all fp32 in llama.cpp; 0 where the layer does not recur."""
    if DELTA in stems:
        return _delta_state(shapes, fields)
    if any(stem.startswith("ssm_") for stem in stems):
        return _recurrent_state(fields) + _ngram_state(index, fields)
    if any(stem.startswith("shortconv") for stem in stems):
        return (fields.size(".shortconv.l_cache") - 1) * fields.size(".embedding_length")
    if fields.architecture == LIGHTNING and _is_lightning(index, fields):
        attended, heads = matrix(shapes, "attn_output.weight")[0], _heads(0, fields)
        return attended // heads * attended
    return 0


def _delta_state(shapes: Shapes, fields: Metadata) -> int:
    """Kimi's delta attention: a convolution each for queries, keys and values, and a matrix a head."""
    inner, size = prod(shapes["ssm_conv1d_q.weight"][1:]), fields.size(".kda.head_dim")
    return 3 * (fields.size(".ssm.conv_kernel") - 1) * inner + size * inner


def _recurrent_state(fields: Metadata) -> int:
    """Values of a convolution's and a recurrence's state."""
    inner, state = fields.size(".ssm.inner_size"), fields.size(".ssm.state_size")
    groups = 0 if fields.architecture in NO_GROUPS else fields.number(".ssm.group_count") or 0
    return (fields.size(".ssm.conv_kernel") - 1) * (inner + 2 * groups * state) + state * inner


def _ngram_state(index: int, fields: Metadata) -> int:
    """The history of a convolution over n-gram embeddings (qwen4exp), in the layers that have them."""
    if fields.architecture != "qwen4exp" or index not in fields.numbers(".ple.layers"):
        return 0
    width = fields.size(".hyper_connection.count") * fields.size(".embedding_length")
    return (fields.size(".ple.conv_kernel") - 1) * fields.size(".ple.ngram_size") * width


def _is_lightning(index: int, fields: Metadata) -> bool:
    listed = fields.by_layer(".attention.recurrent_layers", index + 1)
    if listed is not None:
        return bool(listed[index])
    return (index + 1) % (fields.number(".full_attention_interval") or LIGHTNING_INTERVAL) != 0


# --- attention --------------------------------------------------------------------------------------------------------


def _attention_cache(index: int, shapes: Shapes, stems: set[str], window: int | None, fields: Metadata) -> Cache:
    if "attn_kv_a_mqa" in stems:
        return replace(_latent_cache(shapes), window_tokens=window)
    if "attn_k" in stems:
        keys = matrix(shapes, "attn_k.weight")[1]
        values = matrix(shapes, "attn_v.weight")[1] if "attn_v" in stems else keys
        attended = matrix(shapes, "attn_output.weight")[0]
        return Cache(values_per_token=keys + values, window_tokens=window, flops_per_token_pair=4 * attended)
    if "attn_kv" in stems:  # one head's keys, which are its values too, kept as both
        size, attended = matrix(shapes, "attn_kv.weight")[1], matrix(shapes, "attn_q_b.weight")[1]
        return Cache(values_per_token=2 * size, window_tokens=window, flops_per_token_pair=4 * attended)
    if "attn_qkv" in stems:
        return _fused_cache(index, shapes, window, fields)
    return Cache()  # a layer that mixes no tokens


def _latent_cache(shapes: Shapes) -> Cache:
    """Latent attention: the latent and the rotary key of a token, or keys and values of every head."""
    latent = matrix(shapes, "attn_kv_a_mqa.weight")[1]
    queries = matrix(shapes, "attn_q_b.weight" if "attn_q_b.weight" in shapes else "attn_q.weight")[1]
    attended, expanded = matrix(shapes, "attn_output.weight")[0], kv_b(shapes)[1]
    if expanded > queries + attended:  # keys lack the rotary part that queries may have
        raise ProfileError(f"attn_kv_b: {expanded} values a token do not fit queries of {queries}; {REMEDY}")
    split = shapes.get("attn_k_b.weight", ())
    return Cache(
        values_per_token=latent,
        flops_per_token_pair=2 * (queries + attended),
        expanded_values_per_token=queries + expanded,
        full_values_per_token=queries + attended,
        latent_heads=split[2] if len(split) > 2 else 0,
    )


def _fused_cache(index: int, shapes: Shapes, window: int | None, fields: Metadata) -> Cache:
    """Queries, keys and values from one projection: how it divides is in the metadata alone."""
    attended, heads = matrix(shapes, "attn_output.weight")[0], _heads(index, fields)
    grouped = fields.by_layer(".attention.head_count_kv", index + 1)
    kv_heads = grouped[index] if grouped else heads
    if kv_heads > heads:
        problem = f"{fields.architecture}.attention.head_count: layer {index} has {heads}"
        raise ProfileError(f"{problem} for {kv_heads} of keys; {REMEDY}")
    value = _head_size("value", window, fields) or attended // heads
    key = _head_size("key", window, fields) or value
    return Cache(values_per_token=kv_heads * (key + value), window_tokens=window, flops_per_token_pair=4 * attended)


def _heads(index: int, fields: Metadata) -> int:
    counts = fields.by_layer(".attention.head_count", index + 1) or [0] * (index + 1)
    if not counts[index]:
        raise ProfileError(f"{fields.architecture}.attention.head_count: layer {index} has {counts[index]}; {REMEDY}")
    return counts[index]


def _head_size(which: str, window: int | None, fields: Metadata) -> int | None:
    """The size of a key or value head that the metadata has; layers with a window may have one of their own."""
    own = fields.number(f".attention.{which}_length_swa") if window else None
    return own or fields.number(f".attention.{which}_length")


def _index_values(index: int, shapes: Shapes, stems: set[str], fields: Metadata) -> int:
    """Values that a sparse attention's indexer keeps of a token: one head in every layer that has one of its own."""
    size, name = fields.number(".attention.indexer.key_length"), fields.architecture
    if not size or not fields.number(".attention.indexer.top_k") or (name not in INDEXED and "indexer" not in stems):
        return 0
    if name == INDEX_WITH_VALUES:
        value = _head_size("value", None, fields) or matrix(shapes, "attn_output.weight")[0] // _heads(index, fields)
        return size + value if index >= (fields.number(".leading_dense_block_count") or 0) else 0
    if not _has_indexer(index, fields):
        return 0
    pooled = name != "qwen4exp" or any(fields.numbers(".attention.compress_ratios"))
    return size * (INDEX_ROWS.get(name, 1) if pooled else 1)


def _has_indexer(index: int, fields: Metadata) -> bool:
    """By the file's list; without one every layer has an indexer of its own, but in GLM-5.2."""
    listed = fields.by_layer(".attention.indexer.types", index + 1)
    if listed is not None:
        return bool(listed[index])
    if fields.architecture == "glm-dsa" and (fields.number(".context_length", 10**9) or 0) >= LONG_GLM:
        return index < 2 or (index - 2) % 4 == 0
    return True


def _compressed_cache(index: int, shapes: Shapes, fields: Metadata) -> Cache:
    """DeepSeek-V4: keys of a window in every layer and, where the layer compresses, one entry for several tokens.

    Entries are of `attn_kv`'s size, with the indexer's key beside it where every fourth token is kept; the compressor
    collects keys and scores of unfinished entries in fp32. The window's cells are counted as state, for llama.cpp's
    default of 512 tokens a step.
    """
    key, attended = matrix(shapes, "attn_kv.weight")[1], matrix(shapes, "attn_q_b.weight")[1]
    ratio = (fields.by_layer(".attention.compress_ratios", index + 1) or [0] * (index + 1))[index]
    if ratio not in (0, CSA_RATIO, HCA_RATIO):
        problem = f"{fields.architecture}.attention.compress_ratios: layer {index} has {ratio}"
        raise ProfileError(f"{problem}, and only 0, {CSA_RATIO} and {HCA_RATIO} are known; write a profile YAML")
    cells = fields.size(".attention.sliding_window", 10**9) + UBATCH
    raw = Cache(state_values=-(-cells // CELLS) * CELLS * key)
    if not ratio:
        return raw
    indexed = fields.size(".attention.indexer.key_length") if ratio == CSA_RATIO else 0
    overlap = 2 if ratio == CSA_RATIO else 1
    return replace(
        raw,
        values_per_token=key + indexed,
        tokens_per_entry=ratio,
        state_fp32_values=2 * (overlap * ratio) * overlap * (key + indexed),
        flops_per_token_pair=4 * attended // ratio,
    )


# --- shapes -----------------------------------------------------------------------------------------------------------


def kv_b(shapes: Shapes) -> tuple[int, int]:
    """(rank, outputs) of latent attention's kv_b, whole or in two parts: nope + v values a head."""
    if "attn_kv_b.weight" in shapes:
        return matrix(shapes, "attn_kv_b.weight")
    keys, values = shapes.get("attn_k_b.weight", ()), shapes.get("attn_v_b.weight", ())
    if not keys or not values:
        raise ProfileError(f"attn_kv_b.weight: missing, whole and in its two parts; {REMEDY}")
    rank = values[0]
    return rank, (prod(keys) + prod(values)) // rank


def matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    """(inputs, outputs) of a projection that a layer must have."""
    shape = shapes.get(name, ())
    if len(shape) != 2:
        raise ProfileError(f"{name}: {'missing' if not shape else f'of shape {list(shape)}'} in a layer; {REMEDY}")
    return shape[0], shape[1]
