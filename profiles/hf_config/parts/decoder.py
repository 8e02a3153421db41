"""The whole model, put together: embedding, layers of norms, a mixer and a feed-forward network, norm and head."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, norm
from profiles.tensors import LayerTensors, ModelTensors, Tensors, under

Part = TypeVar("Part")
NORMS = ("input_layernorm", "post_attention_layernorm")


def layer_count(fields: Fields) -> int:
    return fields.size("num_hidden_layers", most=MAX_LAYERS)


def every_layer(part: Part) -> Callable[[int], Part]:
    """The same part in every layer."""
    return lambda _: part


def by_layer(kinds: Sequence[str], parts: Mapping[str, Callable[[], Part]]) -> Callable[[int], Part]:
    """In each layer the part of its kind; one is made, from the config, only where a layer is of its kind."""
    made = {kind: parts[kind]() for kind in dict.fromkeys(kinds)}
    return lambda index: made[kinds[index]]


def by_window(windows: Sequence[int | None], attention: Callable[..., Mixer]) -> Callable[[int], Mixer]:
    """One mixer a layer, made once for each different window."""
    made = cache(lambda window: attention(window=window))
    return lambda index: made(windows[index])


def decoder(
    fields: Fields,
    mixer: Callable[[int], Mixer],
    feed_forward: Callable[[int], FeedForward],
    *,
    norms: Sequence[str] | Callable[[int], Sequence[str]] = NORMS,
    norm_bias: bool = False,
    beside: Callable[[int], Tensors] = lambda _: (),
    embedding: Tensors = (),
    head: Tensors = (),
    head_bias: bool = False,
    final_norm: str = "norm",
    embed: str = "embed_tokens",
    tied: bool = False,
    notes: tuple[str, ...] = (),
) -> ModelTensors:
    """A model whose layer `i` has the tensors of `mixer(i)`, `feed_forward(i)`, `beside(i)` and its `norms`.

    `norms` are names of norms of the hidden size, the same in every layer or for each; `embedding` and `head` are more
    tensors (whole names) of these blocks. `tied` is the default of `tie_word_embeddings` where transformers declares
    none.
    """
    hidden, vocab = fields.size("hidden_size"), fields.size("vocab_size")
    layers = []
    for index in range(layer_count(fields)):
        prefix, feeds = f"model.layers.{index}.", feed_forward(index)
        names = norms(index) if callable(norms) else norms
        between = tuple(tensor for name in names for tensor in norm(name, hidden, bias=norm_bias))
        mixes, feeds = mixer(index), feeds.under(prefix)
        around = under(prefix, mixes.tensors) + feeds.tensors + under(prefix, beside(index) + between)
        layers.append(LayerTensors(around, mixes.cache, feeds.experts))
    ends = norm(f"model.{final_norm}", hidden, bias=norm_bias) if final_norm else ()
    ends += kept("lm_head.weight", vocab, hidden) + head
    return ModelTensors(
        architecture=fields.text("model_type", "unknown"),
        hidden_size=hidden,
        vocab_size=vocab,
        embedding=kept(f"model.{embed}.weight", vocab, hidden) + embedding,
        layers=tuple(layers),
        head=ends + (kept("lm_head.bias", vocab) if head_bias else ()),
        tied=fields.flag("tie_word_embeddings", tied),
        notes=notes,
    )


def in_fp32(model: ModelTensors, *modules: str) -> ModelTensors:
    """`model` with the parameters of these modules in fp32 whatever type is asked, as transformers loads them where
    its class names them in `_keep_in_fp32_modules_strict`.
    """
    named = re.compile(rf"(?:^|\.)(?:{'|'.join(map(re.escape, modules))})(?:\.|$)")

    def kept_so(tensors: Tensors) -> Tensors:
        return tuple(replace(t, fp32=True, quantisable=False) if named.search(t.name) else t for t in tensors)

    layers = tuple(replace(layer, attention=kept_so(layer.attention)) for layer in model.layers)
    return replace(model, embedding=kept_so(model.embedding), layers=layers, head=kept_so(model.head))


def layer_kinds(fields: Fields, key: str, known: tuple[str, ...], otherwise: Callable[[int], str]) -> list[str]:
    """One of the `known` words for each layer, from the list under `key`; without it, what `otherwise` says."""
    layers = layer_count(fields)
    return fields.per_layer(key, known, layers) or [otherwise(index) for index in range(layers)]


def flagged_kinds(fields: Fields, key: str, off: str, on: str) -> list[str] | None:
    """`off` or `on` for each layer, from 0 and 1 in the list under `key`; what follows them (MTP layers) is cut off."""
    flags, layers = fields.whole_numbers(key), layer_count(fields)
    if flags is None:
        return None
    if len(flags) < layers or max(flags) > 1:
        raise ProfileError(f"{fields.prefix}{key}: {short(flags)}; give 0 or 1 for each of {layers} layers")
    return [on if flag else off for flag in flags[:layers]]


def no_windows(fields: Fields) -> list[int | None]:
    return [None] * layer_count(fields)


def uniform_windows(fields: Fields) -> list[int | None]:
    """`sliding_window`, where there is one, holds in every layer."""
    return [fields.maybe_size("sliding_window")] * layer_count(fields)


def typed_windows(
    fields: Fields, otherwise: Callable[[int], bool] = lambda _: False, full: str = "full_attention"
) -> list[int | None]:
    """`sliding_window` in the layers that `layer_types` calls sliding; without that list, where `otherwise` says so."""
    kinds = layer_kinds(
        fields, "layer_types", (full, "sliding_attention"), lambda i: "sliding_attention" if otherwise(i) else full
    )
    window = fields.maybe_size("sliding_window")
    if "sliding_attention" in kinds and window is None:
        raise ProfileError(
            f"{fields.prefix}sliding_window: missing though some layers slide; give their window in tokens"
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]
