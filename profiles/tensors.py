"""A model as lists of tensors, block by block: what any reader finds out, before anyone asks how many bytes they take.

Names are those of Hugging Face modules (`model.layers.3.mlp.experts.gate_up_proj`) and shapes are those of their
parameters, so that a quantisation rule can tell one tensor from another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod


@dataclass(frozen=True)
class Tensor:
    """One parameter. Only a `quantisable` one (a projection's matrix) is ever stored in fewer bits.

    The shape of a matrix is (..., out, in), or (..., in, out) where `transposed`; `stacked` says how many separate
    projections its output rows hold one after the other (gate and up: 2). An `fp32` one is in
    fp32 whatever type the model is loaded as, and never quantised (routers of ERNIE 4.5 and Hunyuan).
    """

    name: str
    shape: tuple[int, ...]
    quantisable: bool = False
    transposed: bool = False
    stacked: int = 1
    fp32: bool = False

    @property
    def params(self) -> int:
        return prod(self.shape)

    @property
    def in_features(self) -> int:
        """Length of the dimension a matrix sums over; blocks of quantised weights run along it."""
        return self.shape[-2] if self.transposed else self.shape[-1]

    @property
    def out_features(self) -> int:
        """Output rows of one matrix."""
        return self.shape[-1] if self.transposed else self.shape[-2]

    @property
    def matrices(self) -> int:
        """How many matrices of (out, in) are stacked in the leading dimensions: the experts, or 1."""
        return prod(self.shape[:-2])

    def under(self, prefix: str) -> Tensor:
        """The same tensor with `prefix` before its name."""
        return replace(self, name=prefix + self.name)


Tensors = tuple[Tensor, ...]


def params(tensors: Iterable[Tensor]) -> int:
    """How many parameters there are together."""
    return sum(tensor.params for tensor in tensors)


def under(prefix: str, tensors: Iterable[Tensor]) -> Tensors:
    """All `tensors` with `prefix` before their names."""
    return tuple(tensor.under(prefix) for tensor in tensors)


@dataclass(frozen=True)
class Cache:
    """What a layer keeps of a sequence, in values of the activation type unless it says bytes.

    `window_tokens` bounds the cached tokens (sliding or chunked attention); the state does not grow with them.
    `flops_per_token_pair` and `expanded_values_per_token` (what is computed anew from the cache at every step and
    thrown away, as multi-head latent attention does) describe its use. `full_values_per_token` is what a runtime that
    caches latent attention's expanded keys and values keeps instead; 0 for other attention. `latent_heads` is how many
    heads latent attention has, where that is known (it cannot be seen in shapes without a rotary part). A cache that is
    compressed along the sequence holds one entry of `values_per_token` for every `tokens_per_entry` tokens.
    """

    values_per_token: int = 0
    window_tokens: int | None = None
    state_values: int = 0
    state_fp32_values: int = 0
    flops_per_token_pair: int = 0
    expanded_values_per_token: int = 0
    full_values_per_token: int = 0
    latent_heads: int = 0
    tokens_per_entry: int = 1

    @property
    def is_latent(self) -> bool:
        """Whether what is cached is expanded to other keys and values before it is used."""
        return self.values_per_token > 0 and self.full_values_per_token not in (0, self.values_per_token)


@dataclass(frozen=True)
class RoutedExperts:
    """The routed experts of one layer; the leading dimension of each tensor is the expert.

    `width` is the inner size of one expert. `router_weight_bytes` is the size of one routing weight when it meets the
    experts' output: it decides the type of the product, hence the workspace.
    """

    tensors: Tensors
    count: int
    active: int
    width: int
    router_weight_bytes: int = 4


@dataclass(frozen=True)
class LayerTensors:
    """One decoder layer: everything but the routed experts, the cache, and the routed experts if there are any."""

    attention: Tensors
    cache: Cache
    experts: RoutedExperts | None = None


@dataclass(frozen=True)
class DiskNames:
    """What published checkpoints call the modules that transformers names otherwise; their lists speak this language.

    `renames` are (pattern, replacement) as `re.sub` takes them, applied in turn to a module's name in transformers.
    `projections` are the names of gate, up and down below `experts.N.`; empty where experts are stored fused, under
    transformers' own names.

    >>> DiskNames(renames=((r"\\.mlp\\.", ".block_sparse_moe."),)).module("model.layers.0.mlp.gate")
    'model.layers.0.block_sparse_moe.gate'
    """

    renames: tuple[tuple[str, str], ...] = ()
    projections: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")

    def module(self, name: str) -> str:
        """The checkpoint's name of the module (or parameter) that transformers calls `name`."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


@dataclass(frozen=True)
class ModelTensors:
    """A whole model. Where `tied`, the head lists the embedding's tensor once more, under its own name.

    `mtp` are the tensors of multi-token-prediction layers, which checkpoints hold and transformers does not load.
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    embedding: Tensors
    layers: tuple[LayerTensors, ...]
    head: Tensors
    tied: bool
    notes: tuple[str, ...] = ()
    mtp: Tensors = ()
    disk_names: DiskNames = DiskNames()
