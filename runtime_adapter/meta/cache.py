"""What each decoder layer caches, from what it held after prompts of several lengths."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from profiles.errors import ProfileError
from profiles.tensors import Cache, Tensors
from runtime_adapter.meta.run import Held, Run

CACHE_MODULE = "transformers.cache_utils"
VALUE_BYTES = 2
FP32_BYTES = 4
LONG_PROMPTS = (8191, 8192, 12288, 16384)
"""Lengths at which a cache that grows by steps is measured: one just short of a step of any power of two."""


def layer_caches(
    runs: list[Run], layers: list[nn.Module], tensors: list[Tensors], run: Callable[[int], Run]
) -> tuple[list[Cache], tuple[str, ...]]:
    """One Cache a layer, and notes.

    Two `runs` of different lengths show a cache that grows by the token. One that grows by steps (compressed or
    block-wise) gets the line that no length exceeds, from more of them made by `run`, and a note that says so.
    """
    caches: list[Cache | None] = [
        _by_the_token([each.held.get(id(layer), {}) for each in runs], runs) for layer in layers
    ]
    stepped = [index for index, cache in enumerate(caches) if cache is None]
    notes: tuple[str, ...] = ()
    if stepped:
        long = [run(tokens) for tokens in LONG_PROMPTS]
        for index in stepped:
            caches[index] = _bound([_total(each.held.get(id(layers[index]), {})) for each in long])
        notes = (f"the cache of {len(stepped)} layers grows by steps: a line above it at up to 16384 tokens is used",)
    whole = [cache for cache in caches if cache is not None]
    return [_with_use(cache, runs[0], id(layers[i]), tensors[i]) for i, cache in enumerate(whole)], notes


def _by_the_token(parts: list[dict[object, Held]], runs: list[Run]) -> Cache | None:
    """The cache of a layer whose every part is a state, or grows evenly up to one window; None where it is not."""
    first, second = parts
    if first.keys() != second.keys() or any(not _is_known(held) for held in first.values()):
        return None
    windows = {held.window for held in first.values()}
    if len(windows) > 1:
        return None
    window = next(iter(windows), None)
    lengths = [min(run.tokens, window - 1) if window else run.tokens for run in runs]
    small, fp32 = _total(first)
    small_2, fp32_2 = _total(second)
    if fp32 != fp32_2:
        return None
    if lengths[0] < lengths[1]:
        per_token, rest = divmod(small_2 - small, lengths[1] - lengths[0])
    else:
        # both prompts are longer than the window, so all that is cached is the window's
        per_token, rest = divmod(small, max(lengths[0], 1))
    state = small - per_token * lengths[0]
    if (
        rest
        or state < 0
        or per_token % VALUE_BYTES
        or state % VALUE_BYTES
        or small_2 - small != per_token * (lengths[1] - lengths[0])
    ):
        return None
    return Cache(per_token // VALUE_BYTES, window, state // VALUE_BYTES, fp32 // FP32_BYTES)


def _is_known(held: Held) -> bool:
    """transformers' general cache layers grow by the token or not at all; those of a single model may do anything."""
    return held.kind is list or held.kind.__module__ == CACHE_MODULE


def _total(parts: dict[object, Held]) -> tuple[int, int]:
    return sum(held.small_bytes for held in parts.values()), sum(held.fp32_bytes for held in parts.values())


def _bound(totals: list[tuple[int, int]]) -> Cache:
    """The line above what was held at LONG_PROMPTS, its slope taken between the last lengths of a power of two."""
    held = [small + fp32 for small, fp32 in totals]
    per_token = -(-(held[3] - held[1]) // (LONG_PROMPTS[3] - LONG_PROMPTS[1]))
    per_token += per_token % VALUE_BYTES
    state = max(0, *(b - per_token * tokens for b, tokens in zip(held, LONG_PROMPTS, strict=True)))
    if held[3] < held[1]:
        raise ProfileError("model_type: its cache shrinks as the prompt grows; write a profile YAML by hand")
    return Cache(values_per_token=per_token // VALUE_BYTES, state_values=-(-state // VALUE_BYTES))


def _with_use(cache: Cache, run: Run, layer: int, tensors: Tensors) -> Cache:
    """`cache` with the FLOPs of its use, and with what latent attention expands (its projection, and whole keys)."""
    recurrent = not cache.values_per_token and (cache.state_values or cache.state_fp32_values)
    latent = sum(t.out_features for t in tensors if ".kv_b_proj." in t.name and t.quantisable)
    values = sum(t.in_features for t in tensors if t.name.endswith(".o_proj.weight"))
    return Cache(
        cache.values_per_token,
        cache.window_tokens,
        cache.state_values,
        cache.state_fp32_values,
        0 if recurrent else run.pair_flops.get(layer, 0),
        latent + run.query_values.get(layer, 0) if latent else 0,
        run.query_values.get(layer, 0) + values if latent else 0,
    )
