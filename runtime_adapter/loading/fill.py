"""Make room for every parameter, then read each tensor once, file by file, and write what it becomes to its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from profiles.document import short
from profiles.errors import ApplyError
from profiles.safetensors.header import bad
from runtime_adapter.loading.memory import placing
from runtime_adapter.loading.pieces import Piece, Recipe
from runtime_adapter.loading.places import Destination
from runtime_adapter.meta.errors import one_line

AT_ONCE_BYTES = 64 * 2**20
"""Most that is written at once: a cast needs as much again beside the tensor."""


@dataclass(frozen=True)
class Filling:
    """What is known while a checkpoint is read. `arrived` counts the tensors of each piece whose turn has come."""

    model: Any
    piece_of: Mapping[str, Piece]
    file_of: Mapping[str, Path]
    destination_of: Mapping[str, Destination]
    arrived: Counter[Piece]


def fill(recipe: Recipe, destinations: list[Destination], told: Callable[[int], None]) -> None:
    """Read each tensor of a piece once, file by file from front to back, and write it to its destination.

    All destinations are made first: a device that is too small is noticed before anything is read, and what comes and
    goes while reading leaves no holes between what stays. A piece is read when the last of its tensors has its turn;
    those of it that are in an earlier file are fetched from there. A tensor is a view of the mapped file, so host
    memory holds no copy of it but what its conversion makes. `told` is called with the bytes of every piece placed.
    Raises ApplyError naming the parameter and its device when memory runs out, and ProfileError naming the file when it
    cannot be read.
    """
    for destination in destinations:
        destination.open()
    filling = Filling(
        model=recipe.model,
        piece_of={name: piece for piece in recipe.pieces for name in piece.names},
        file_of={name: path for path, entries in recipe.headers.items() for name in entries},
        destination_of={name: destination for destination in destinations for name in destination.names},
        arrived=Counter(),
    )
    for path, entries in recipe.headers.items():
        names = [name for name in sorted(entries, key=lambda name: entries[name].begin) if name in filling.piece_of]
        if names:
            _fill_from(path, names, filling, told)


def _fill_from(path: Path, names: list[str], filling: Filling, told: Callable[[int], None]) -> None:
    """Place all that these tensors of one file complete. Returns with the file closed and no view of it left."""
    with _opened(path) as file:
        for name in names:
            piece = filling.piece_of[name]
            filling.arrived[piece] += 1
            if filling.arrived[piece] == len(piece.names):
                told(_place(piece, {path: file}, filling))


def _opened(path: Path) -> Any:
    return _reading(path, "its header", lambda: safe_open(path, framework="pt", device="cpu"))


def _reading(path: Path, what: str, read: Callable[[], Any]) -> Any:
    """What `read` returns; ProfileError naming the file where it fails."""
    try:
        return read()
    except Exception as problem:  # of safetensors, of the system, and whatever torch makes of a lack of memory
        reason = f"{what} cannot be read: {one_line(problem)}; check the disk, or download the file again"
        raise bad(path, reason) from None


def _place(piece: Piece, open_files: Mapping[Path, Any], filling: Filling) -> int:
    """Read a piece, convert it and write it to its destinations; returns its bytes."""
    with ExitStack() as stack:
        files = dict(open_files)
        for name in piece.names:
            path = filling.file_of[name]
            if path not in files:
                files[path] = stack.enter_context(_opened(path))
        tensors = {name: _tensor(name, filling.file_of[name], files) for name in piece.names}
        del files
        _convert(piece, tensors, filling)
        return sum(tensor.nbytes for tensor in tensors.values())


def _tensor(name: str, path: Path, files: Mapping[Path, Any]) -> Tensor:
    tensor: Tensor = _reading(path, f"tensor {short(name)}", lambda: files[path].get_tensor(name))
    return tensor


def _convert(piece: Piece, tensors: Mapping[str, Tensor], filling: Filling) -> None:
    devices = ", ".join(str(place.device) for place in filling.destination_of[piece.target].places)
    with placing(piece.target, devices):
        for name, values in piece.converted(tensors, filling.model).items():
            _write(filling.destination_of[name], name, values, piece.row)


def _write(destination: Destination, name: str, values: Tensor, row: int | None) -> None:
    """Write a parameter, or its row `row`; one that was given already, under a tied name, is compared instead."""
    destination.given_as = destination.given_as or name
    for there, here in _side_by_side(destination, values, row or 0):
        if destination.given_as == name:
            there.copy_(here.to(destination.dtype))
        elif not torch.equal(there.cpu(), here.to(destination.dtype)):
            raise ApplyError(
                f"{name}: differs from {destination.given_as}, but config.json ties them; set tie_word_embeddings to "
                "false there and plan again"
            )


def _side_by_side(destination: Destination, values: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the destination's tensors and of `values`, its rows from `first` on, that belong together."""
    for place in destination.places:
        assert place.tensor is not None
        if values.ndim == 0:
            yield place.tensor, values
            continue
        step = max(1, AT_ONCE_BYTES // max(1, values[:1].numel() * destination.dtype.itemsize))
        for position, run_first, run_length in place.runs(destination.empty.shape[0]):
            begin, end = max(first, run_first), min(first + len(values), run_first + run_length)
            for a in range(begin, end, step):
                b = min(a + step, end)
                yield place.tensor[position + a - run_first : position + b - run_first], values[a - first : b - first]
