"""Where every module of a live model goes under a plan: the plan's names turned into real devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from profiles.placement import LayerPlacement, Placement
from runtime_adapter.anatomy import Anatomy, expert_count
from runtime_adapter.placing.split_experts import Parts


@dataclass(frozen=True)
class Homes:
    """Where everything goes: real devices by part, and the two views of them that mover and runtime need.

    Of a layer's entries in `experts` and `parts` one is not None where it has experts: the one device of them all, or
    the ids on each device where they are divided. `device_map` has one entry a placed module, also a part; `modules`
    every module of the model, as (name, module, device).
    """

    anatomy: Anatomy
    embedding: torch.device
    head: torch.device
    attention: tuple[torch.device, ...]
    experts: tuple[torch.device | None, ...]
    parts: tuple[Parts | None, ...]
    device_map: Mapping[str, torch.device]
    modules: tuple[tuple[str, nn.Module, torch.device], ...]


def homes_of(plan: Placement, anatomy: Anatomy, real: Mapping[str, torch.device]) -> Homes:
    """The homes that `plan`, already checked against `anatomy`, gives every module; `real` names its torch devices."""
    embedding, head = real[plan.embedding], real[plan.head]
    attention = tuple(real[layer.attention] for layer in plan.layers)
    parts = [
        {} if module is None else _parts(layer, expert_count(module), real)
        for layer, module in zip(plan.layers, anatomy.experts, strict=True)
    ]
    experts = tuple(next(iter(part)) if len(part) == 1 else None for part in parts)
    divided = tuple(part if len(part) > 1 else None for part in parts)
    placed = {id(anatomy.embedding): embedding, id(anatomy.norm): head, id(anatomy.head): head}
    placed |= {id(layer): device for layer, device in zip(anatomy.layers, attention, strict=True)}
    placed |= {id(m): d for m, d in zip(anatomy.experts, experts, strict=True) if m is not None and d is not None}
    # What is in the base model beside its layers (rotary tables) is needed first, with the embedding; what is
    # in the causal LM beside its base is needed last, with the head.
    rest = {id(anatomy.model): head, id(anatomy.base): embedding}
    modules = tuple(_walk(anatomy.model, "", placed | rest, head))
    device_map = {name: device for name, module, device in modules if id(module) in placed}
    split = {id(module): part for module, part in zip(anatomy.experts, divided, strict=True) if part}
    device_map |= {f"{name}.{d}": d for name, module, _ in modules for d in split.get(id(module), ())}
    return Homes(anatomy, embedding, head, attention, experts, divided, device_map, modules)


def _parts(layer: LayerPlacement, count: int, real: Mapping[str, torch.device]) -> Parts:
    """The ids of a layer's `count` experts by real device, of which several of the plan's devices may be one."""
    ids: dict[torch.device, list[int]] = {}
    for name, here in layer.experts.items():
        ids.setdefault(real[name], []).extend(range(count) if here == "all" else here)
    return {device: tuple(sorted(here)) for device, here in ids.items()}


def _walk(
    module: nn.Module, name: str, placed: Mapping[int, torch.device], device: torch.device
) -> Iterator[tuple[str, nn.Module, torch.device]]:
    """Every module with its device: its own, or else that of the nearest module around it."""
    device = placed.get(id(module), device)
    yield name, module, device
    for key, child in module.named_children():
        yield from _walk(child, f"{name}.{key}" if name else key, placed, device)
