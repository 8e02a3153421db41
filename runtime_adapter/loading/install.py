"""Hang what was read in the model, and make its forward follow the plan, with the hooks of `apply`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from profiles.placement import Placement
from runtime_adapter.anatomy import anatomy_of
from runtime_adapter.apply import Applied, _announce, _keep_cpu_kernels
from runtime_adapter.loading.memory import placing
from runtime_adapter.loading.places import Destination, Table
from runtime_adapter.placing.homes import Homes, homes_of
from runtime_adapter.placing.hooks import hook_forward
from runtime_adapter.placing.preflight import check_layers, check_shared_modules, real_devices
from runtime_adapter.placing.split_experts import Part, Parts, _empty_twin, _hang, _refill
from runtime_adapter.placing.weights import move_weights

CPU = torch.device("cpu")


def homes_on(plan: Placement, model: nn.Module, devices: Mapping[str, torch.device | str]) -> Homes:
    """What apply's `check` answers, for a model that has no values yet."""
    anatomy = anatomy_of(model)
    check_layers(plan, anatomy)
    homes = homes_of(plan, anatomy, real_devices(plan, devices))
    check_shared_modules(homes)
    return homes


def install(plan: Placement, homes: Homes, destinations: list[Destination]) -> None:
    """Turn filled destinations into the model's parameters and buffers, and apply `plan`, whose `homes` these are.

    The model's `plan_applied` is then what `apply` would have returned. Raises ApplyError when memory runs out.
    """
    applied = Applied(plan, {name: str(device) for name, device in homes.device_map.items()})
    put = Counter(_bring_computed(homes))
    tables: dict[int, dict[str, Destination]] = {}
    for destination in destinations:
        for place in destination.places:
            put[str(place.device)] += destination.n_bytes(place)
        for table, key, _ in destination.slots:
            tables.setdefault(id(table), {})[key] = destination
        if len(destination.places) == 1:
            _hang_whole(destination)
    for experts, parts in zip(homes.anatomy.experts, homes.parts, strict=True):
        if experts is not None and parts is not None:
            with placing("what divided experts need", ", ".join(map(str, parts))):
                _hang_parts(experts, parts, tables[id(experts._parameters)], applied._steps_back)
    put.update(move_weights(homes.modules, False, applied._steps_back))  # a tied head on another device
    applied.moved_bytes = dict(put)
    hook_forward(homes, applied._steps_back)
    _keep_cpu_kernels(homes, applied._steps_back)
    model: Any = homes.anatomy.model
    _announce(model, dict(applied.device_map), applied._steps_back)
    model.plan_applied = applied
    applied._steps_back.append(partial(model.__dict__.pop, "plan_applied", None))


def _bring_computed(homes: Homes) -> dict[str, int]:
    """Move what was computed on the CPU, all that has values yet, to its home; returns its bytes by device."""
    brought: Counter[str] = Counter()
    for name, module, device in homes.modules:
        tables: tuple[Table, Table] = (module._parameters, module._buffers)
        for table in tables:
            for key, tensor in table.items():
                if tensor is not None and not tensor.is_meta:
                    with placing(f"{name}.{key}", str(device)):
                        here = tensor.detach().to(device)
                    table[key] = nn.Parameter(here, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else here
                    brought[str(device)] += here.numel() * here.element_size()
    return brought


def _hang_whole(destination: Destination) -> None:
    """One object in all slots: what is tied and should be on two devices is copied by `move_weights`, as in `apply`."""
    tensor, empty = destination.places[0].tensor, destination.empty
    if tensor is not None and isinstance(empty, nn.Parameter):
        tensor = nn.Parameter(tensor, empty.requires_grad)
    for table, key, _ in destination.slots:
        table[key] = tensor


def _hang_parts(
    experts: nn.Module, parts: Parts, own: Mapping[str, Destination], steps_back: list[Callable[[], None]]
) -> None:
    """What `divide` does to a module with its weights, for one whose parts were read apart.

    Undoing brings the rows together on the CPU: an undivided parameter has never been anywhere.
    """
    made = {device: _empty_twin(experts, device, len(ids)) for device, ids in parts.items()}
    for key, destination in own.items():
        values = {place.device: place.tensor for place in destination.places if place.tensor is not None}
        for device, rows in values.items():
            made[device]._parameters[key] = nn.Parameter(rows, destination.empty.requires_grad)
        empty = nn.Parameter(torch.empty(0, dtype=destination.dtype), destination.empty.requires_grad)
        experts._parameters[key] = empty
        if destination.places[0].ids is None:
            whole = next(iter(values.values()))
            steps_back.append(partial(setattr, empty, "data", whole.cpu()))
        else:
            steps_back.append(partial(_refill, empty, values, parts, CPU, destination.empty.shape))
    _hang(experts, [Part(device, parts[device], twin) for device, twin in made.items()], steps_back)
