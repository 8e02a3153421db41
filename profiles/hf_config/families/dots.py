"""dots.llm1 and dots 3 Note."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import DENSE, EXPERTS, SPARSE, dense_first
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts import indexers
from profiles.hf_config.parts.attention import grouped_query_attention, latent_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, linear, norm
from profiles.hf_config.parts.decoder import (
    by_layer,
    by_window,
    decoder,
    layer_count,
    layer_kinds,
    no_windows,
    typed_windows,
)
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp, mixture
from profiles.tensors import ModelTensors, under

FULL, SPARSE_ATTENTION, SLIDING = "full_attention", "indexed_attention", "sliding_attention"
SLIDING_SIZES = {
    "num_attention_heads": 64, "q_lora_rank": 1024, "kv_lora_rank": 1024, "head_dim": 256, "qk_nope_head_dim": 192,
    "v_head_dim": 128,
}  # fmt: skip
"""What transformers assumes of dots 3's layers with a window where the file has no `swa_` keys."""


def _dots1(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    first = fields.count("max_window_layers", most=MAX_LAYERS)
    windows = no_windows(fields)
    if "layer_types" in fields.config or fields.maybe_size("sliding_window") is not None:
        windows = typed_windows(fields, lambda index: index >= first)
    attention = partial(grouped_query_attention, fields, bias=bias, out_bias=bias, qk_norm="head")
    return decoder(fields, by_window(windows, attention), dense_first(fields), notes=(UNCOUNTED_BUFFERS,))


def _dots3_note_text(fields: Fields) -> ModelTensors:
    """Latent attention with an indexer, or in other sizes with a window (`swa_` keys, or `per_layer_config`)."""
    kinds = _attention_kinds(fields)
    sizes = _sizes_by_layer(fields, kinds)
    made = {kind: _attention(sizes[kinds.index(kind)], kind) for kind in dict.fromkeys(kinds)}
    return decoder(
        fields, lambda i: made[kinds[i]], _dots3_feed_forward(fields), notes=(indexers.NOTE, UNCOUNTED_BUFFERS)
    )


def _attention_kinds(fields: Fields) -> list[str]:
    indexed = fields.flag("use_dsa", True)
    whole = SPARSE_ATTENTION if indexed else FULL
    slides = fields.flag("use_sliding_window", True)
    kinds = layer_kinds(
        fields,
        "layer_types",
        (FULL, SPARSE_ATTENTION, SLIDING),
        lambda i: whole if not slides or i < 2 or i % 4 == 1 else SLIDING,
    )
    if "per_layer_config" in fields.config and "use_dsa" not in fields.config:
        return kinds
    return [kind if kind == SLIDING else whole for kind in kinds]


def _sizes_by_layer(fields: Fields, kinds: list[str]) -> list[Fields]:
    """The fields of each layer: those with a window have sizes of their own, the same in all of them."""
    listed = fields.config.get("per_layer_config")
    if listed is None:
        sizes = {key: fields.size(f"swa_{key}", value) for key, value in SLIDING_SIZES.items()}
        rope = fields.count("swa_qk_rope_head_dim", max(0, sizes["head_dim"] - sizes["qk_nope_head_dim"]))
        listed = {str(i): {**sizes, "qk_rope_head_dim": rope} for i, kind in enumerate(kinds) if kind == SLIDING}
    if not isinstance(listed, dict) or not all(isinstance(value, dict) for value in listed.values()):
        raise ProfileError(f"{fields.prefix}per_layer_config: {short(listed)} does not map layers to sizes; drop it")
    own: list[dict[str, Any]] = [listed.get(str(i), listed.get(i, {})) for i in range(len(kinds))]
    for index, (kind, sizes) in enumerate(zip(kinds, own, strict=True)):
        if sizes != own[kinds.index(kind)]:
            other = f"layer {index} differs from layer {kinds.index(kind)}, which is of the same type"
            raise ProfileError(
                f"{fields.prefix}per_layer_config: {other}; use moeplan[torch]'s reader or a profile YAML"
            )
    return [fields.but(**sizes) for sizes in own]


def _attention(fields: Fields, kind: str) -> Mixer:
    latent = latent_attention(fields, bias=fields.flag("attention_bias", False))
    beside = norm("k_rope_only_layernorm", fields.size("qk_rope_head_dim"))
    beside += linear("g_proj", fields.size("num_attention_heads"), fields.size("hidden_size"))
    mixer = latent.beside(*under("self_attn.", beside))
    if kind == SLIDING:
        window = fields.maybe_size("sliding_window") or fields.size("sliding_window_size", 512)
        return replace(mixer, cache=replace(mixer.cache, window_tokens=window))
    if kind == FULL:
        return mixer
    indexer = indexers.lightning_indexer(fields, fields.size("q_lora_rank"))
    # Rotated with tables in fp32, its keys are cached in fp32: as two values each.
    keys = replace(indexer.cache, values_per_token=2 * indexer.cache.values_per_token)
    return indexers.indexed(mixer, replace(indexer, cache=keys))


def _dots3_feed_forward(fields: Fields) -> Callable[[int], FeedForward]:
    first = fields.count("first_k_dense_replace", 1, most=MAX_LAYERS)
    step = fields.config.get("moe_layer_freq", 1)
    listed = fields.whole_numbers("moe_layer_freq") if isinstance(step, list) else None
    every = 1 if listed else fields.size("moe_layer_freq", 1)
    if listed and len(listed) < layer_count(fields):
        raise ProfileError(f"{fields.prefix}moe_layer_freq: {short(listed)}; give one number for each layer")
    kinds = layer_kinds(
        fields,
        "mlp_layer_types",
        (DENSE, SPARSE),
        lambda i: SPARSE if i >= first and (bool(listed[i]) if listed else i % every == 0) else DENSE,
    )
    shared = fields.size("moe_shared_expert_intermediate_size|shared_experts_intermediate_size")
    sparse = partial(
        mixture,
        fields,
        count=EXPERTS,
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("n_shared_experts", most=1000) * shared,
    )
    return by_layer(kinds, {DENSE: partial(gated_mlp, fields, fields.size("intermediate_size")), SPARSE: sparse})


FAMILIES = {
    "dots1": Family(_dots1),
    "dots3_note_text": Family(_dots3_note_text, handles=("per_layer_config",)),
}
