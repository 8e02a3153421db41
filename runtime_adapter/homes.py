"""Where every module of a live model goes under a plan: the plan's names turned into real devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from profiles.placement import LayerPlacement, Placement
from runtime_adapter.anatomy import Anatomy, expert_count


@dataclass(frozen=True)
class Homes:
    """Where everything goes: real devices by part, and the two views of them that mover and runtime need.

    `device_map` has one entry a placed module; `modules` every module of the model, as (name, module, device).
    """

    anatomy: Anatomy
    embedding: torch.device
    head: torch.device
    attention: tuple[torch.device, ...]
    experts: tuple[torch.device | None, ...]
    device_map: Mapping[str, torch.device]
    modules: tuple[tuple[str, nn.Module, torch.device], ...]


def homes_of(plan: Placement, anatomy: Anatomy, real: Mapping[str, torch.device]) -> Homes:
    """The homes that `plan`, already checked against `anatomy`, gives every module; `real` names its torch devices."""
    embedding, head = real[plan.embedding], real[plan.head]
    attention = tuple(real[layer.attention] for layer in plan.layers)
    experts = tuple(
        None if module is None else real[experts_device(layer, expert_count(module)) or layer.attention]
        for layer, module in zip(plan.layers, anatomy.experts, strict=True)
    )
    placed = {id(anatomy.embedding): embedding, id(anatomy.norm): head, id(anatomy.head): head}
    placed |= {id(layer): device for layer, device in zip(anatomy.layers, attention, strict=True)}
    placed |= {id(m): d for m, d in zip(anatomy.experts, experts, strict=True) if m is not None and d is not None}
    # What is in the base model beside its layers (rotary tables) is needed first, with the embedding; what is
    # in the causal LM beside its base is needed last, with the head.
    rest = {id(anatomy.model): head, id(anatomy.base): embedding}
    modules = tuple(_walk(anatomy.model, "", placed | rest, head))
    device_map = {name: device for name, module, device in modules if id(module) in placed}
    return Homes(anatomy, embedding, head, attention, experts, device_map, modules)


def _walk(
    module: nn.Module, name: str, placed: Mapping[int, torch.device], device: torch.device
) -> Iterator[tuple[str, nn.Module, torch.device]]:
    """Every module with its device: its own, or else that of the nearest module around it."""
    device = placed.get(id(module), device)
    yield name, module, device
    for key, child in module.named_children():
        yield from _walk(child, f"{name}.{key}" if name else key, placed, device)


def experts_device(layer: LayerPlacement, count: int) -> str | None:
    """The one device with all `count` experts of a layer, also when it lists every id; None if there is none."""
    if len(layer.experts) == 1:
        ((device, ids),) = layer.experts.items()
        if ids == "all" or sorted(ids) == list(range(count)):
            return device
    return None
