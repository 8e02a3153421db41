"""A family of models: how its config.json becomes tensors, and what its checkpoints call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from profiles.hf_config.fields import Fields
from profiles.tensors import DiskNames, ModelTensors


@dataclass(frozen=True)
class Family:
    """`read` takes the fields of the text model. `defaults` names the type whose declared defaults hold in its place,
    for a type that transformers does not know; `architectures` are the classes that stand for it in a config.json
    without a `model_type`, or with one of another model. `handles` are keys that change shapes of single layers and
    that it follows, where others must refuse them.
    """

    read: Callable[[Fields], ModelTensors]
    disk_names: DiskNames = DiskNames()
    defaults: str = ""
    architectures: tuple[str, ...] = ()
    handles: tuple[str, ...] = ()


MIXTRAL_NAMES = DiskNames(((r"\.mlp\b", ".block_sparse_moe"),), ("w1", "w3", "w2"))
"""Mixtral's checkpoints and those that follow it: `block_sparse_moe.experts.0.w1`."""
FUSED = DiskNames(projections=())
"""Checkpoints that store the experts of a layer in one tensor, under transformers' own names."""
