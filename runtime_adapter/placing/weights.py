"""Move a model's parameters and buffers to their devices, and back to exactly what they were."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from profiles.errors import ApplyError

Table = dict[str, Tensor | None]


@dataclass(frozen=True)
class Slot:
    """One place of a module where a tensor hangs, and the device where it is wanted."""

    name: str
    table: Table
    key: str
    tensor: Tensor
    device: torch.device


def move_weights(
    modules: Iterable[tuple[str, nn.Module, torch.device]], keep_originals: bool, steps_back: list[Callable[[], None]]
) -> dict[str, int]:
    """Hang a copy on the wanted device in place of every tensor that is elsewhere; returns bytes copied by device.

    The originals stay the objects that undoing puts back. Unless `keep_originals`, they are emptied as soon as no
    module needs them, and refilled by undoing. Tensors that are one (the same object or the same memory) stay one on
    each device. `steps_back` gets what undoes each change, before it is made: call from the last to the first; each
    may be called twice. Raises ApplyError naming the tensor and the device when a copy fails.
    """
    moved: dict[str, int] = {}
    for slots in one_memory(modules).values():
        home = slots[0].tensor.device
        copies: dict[torch.device, Tensor] = {}
        for slot in slots:
            if slot.device != home and slot.device not in copies:
                copy = copies[slot.device] = _copied(slot)
                moved[str(slot.device)] = moved.get(str(slot.device), 0) + copy.numel() * copy.element_size()
        if not keep_originals and copies and all(slot.device != home for slot in slots):
            originals = list({id(slot.tensor): slot.tensor for slot in slots}.values())
            steps_back.append(partial(_refill, originals, next(iter(copies.values())), home))
            _hang(slots, copies, steps_back)
            for tensor in originals:
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=home)
        else:
            _hang(slots, copies, steps_back)
    return moved


def one_memory(modules: Iterable[tuple[str, nn.Module, torch.device]]) -> dict[Hashable, list[Slot]]:
    """All slots of the modules, grouped by the memory that their tensors occupy."""
    groups: dict[Hashable, list[Slot]] = {}
    seen: set[tuple[int, str]] = set()  # a module shared by two parents comes twice
    for name, module, device in modules:
        tables: tuple[Table, Table] = (module._parameters, module._buffers)  # type: ignore[assignment]
        for table in tables:
            for key, tensor in table.items():
                if tensor is None or (id(table), key) in seen:
                    continue
                seen.add((id(table), key))
                full_name = f"{name}.{key}" if name else key
                groups.setdefault(_memory(tensor), []).append(Slot(full_name, table, key, tensor, device))
    return groups


def _memory(tensor: Tensor) -> Hashable:
    """The same for two tensors exactly when they are the same view of the same memory."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _copied(slot: Slot) -> Tensor:
    try:
        with torch.inference_mode(False), torch.no_grad():
            return slot.tensor.detach().to(slot.device)
    except RuntimeError as problem:  # torch.OutOfMemoryError is one
        reason = str(problem).splitlines()[0][:200]
    size = slot.tensor.numel() * slot.tensor.element_size()
    raise ApplyError(
        f"{slot.name}: {size} bytes cannot be moved to {slot.device} ({reason}); free memory there, or plan with a "
        "larger safety_margin"
    )


def _hang(slots: list[Slot], copies: dict[torch.device, Tensor], steps_back: list[Callable[[], None]]) -> None:
    """Put the copies in their slots; two slots of one object on one device get one object again."""
    twins: dict[tuple[int, torch.device], Tensor] = {}
    for slot in slots:
        if slot.device not in copies:
            continue
        twin = twins.get((id(slot.tensor), slot.device))
        if twin is None:
            twin = copies[slot.device]
            if isinstance(slot.tensor, nn.Parameter):
                twin = nn.Parameter(twin, requires_grad=slot.tensor.requires_grad)
            twins[id(slot.tensor), slot.device] = twin
        steps_back.append(partial(slot.table.__setitem__, slot.key, slot.tensor))
        slot.table[slot.key] = twin


def _refill(originals: list[Tensor], copy: Tensor, home: torch.device) -> None:
    """Give emptied originals their values back, in one memory as before. Does nothing when they are not empty."""
    if all(tensor.shape == copy.shape for tensor in originals):
        return
    try:
        with torch.inference_mode(False), torch.no_grad():
            data = copy.detach().to(home)
            for tensor in originals:
                tensor.data = data
        return
    except RuntimeError as problem:
        reason = str(problem).splitlines()[0][:200]
    raise ApplyError(f"undo: a weight cannot be moved back to {home} ({reason}); free memory there and undo() again")
