"""Where every parameter of an empty model goes: tensors to be made, by device, and the modules they will hang in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import build_glob_alternation

from runtime_adapter.loading.memory import placing
from runtime_adapter.placing.homes import Homes
from runtime_adapter.placing.split_experts import Parts, _runs

Table = dict[str, Any]


@dataclass(eq=False)
class Place:
    """A device that gets a parameter (`ids` None) or those rows of it that are the experts `ids`, ascending."""

    device: torch.device
    ids: tuple[int, ...] | None = None
    tensor: Tensor | None = None

    def runs(self, rows: int) -> list[tuple[int, int, int]]:
        """(position in `tensor`, first row, length) of each run of rows that follow each other, of `rows` there are."""
        return [(0, 0, rows)] if self.ids is None else _runs(self.ids)

    def shape(self, whole: torch.Size) -> tuple[int, ...]:
        return tuple(whole) if self.ids is None else (len(self.ids), *whole[1:])


@dataclass(eq=False)
class Destination:
    """A parameter or buffer to be read, tied ones together: its names, where it hangs, and its places.

    `empty` is the meta tensor that tells its shape. More than one place means the parts of divided experts. `given_as`
    is the name under which the checkpoint gave it, None until then.
    """

    empty: Tensor
    dtype: torch.dtype
    places: list[Place]
    names: list[str] = field(default_factory=list)
    slots: list[tuple[Table, str, torch.device]] = field(default_factory=list)
    given_as: str | None = None

    def n_bytes(self, place: Place) -> int:
        return torch.Size(place.shape(self.empty.shape)).numel() * self.dtype.itemsize

    def open(self) -> None:
        """Make its tensors, without values yet. Raises ApplyError when there is no memory."""
        for place in self.places:
            with placing(self.names[0], str(place.device)):
                shape = place.shape(self.empty.shape)
                place.tensor = torch.empty(shape, dtype=self.dtype, device=place.device)

    def clear(self) -> None:
        for place in self.places:
            place.tensor = None


def destinations_of(homes: Homes) -> list[Destination]:
    """One for every tensor of the model that is on the meta device."""
    model: Any = homes.anatomy.model
    in_fp32 = list(model._get_dtype_plan(model.dtype))
    kept = build_glob_alternation(in_fp32)[0] if in_fp32 else None
    parts = {id(m): part for m, part in zip(homes.anatomy.experts, homes.parts, strict=True) if m is not None}
    found: dict[int, Destination] = {}
    for name, module, device in homes.modules:
        tables: tuple[Table, Table] = (module._parameters, module._buffers)
        for table in tables:
            for key, tensor in table.items():
                if tensor is None or not tensor.is_meta:
                    continue
                full_name = f"{name}.{key}" if name else key
                if id(tensor) not in found:
                    dtype = torch.float32 if kept is not None and kept.search(full_name) else tensor.dtype
                    places = _places(tensor, device, parts.get(id(module)))
                    found[id(tensor)] = Destination(tensor, dtype, places)
                found[id(tensor)].names.append(full_name)
                found[id(tensor)].slots.append((table, key, device))
    return list(found.values())


def _places(tensor: Tensor, device: torch.device, parts: Parts | None) -> list[Place]:
    """One device, or those of the parts; what has no row for each expert is needed whole by every part."""
    if parts is None:
        return [Place(device)]
    count = sum(len(ids) for ids in parts.values())
    return [Place(device, ids if tensor.shape[0] == count else None) for device, ids in parts.items()]
