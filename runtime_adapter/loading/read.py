"""All of `load`: an empty model, then its weights, file after file; and nothing left of it when that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from profiles.document import read_document, require_mapping
from profiles.errors import ProfileError
from profiles.placement import Placement
from profiles.safetensors.header import Headers
from profiles.safetensors.reader import checkpoint_headers
from runtime_adapter.loading.dtypes import checked_dtype
from runtime_adapter.loading.empty_model import compute, empty_model
from runtime_adapter.loading.fill import fill
from runtime_adapter.loading.install import homes_on, install
from runtime_adapter.loading.pieces import recipe_of
from runtime_adapter.loading.places import Destination, destinations_of
from runtime_adapter.loading.room import check_room

Told = Callable[[int], None]
"""Called with the bytes of the checkpoint that were read since the last call."""


def read_model(
    plan: Placement,
    path: Path,
    devices: Mapping[str, torch.device | str],
    dtype: torch.dtype | str | None,
    progress: bool,
    prepare: Callable[[nn.Module], None] = lambda model: None,
) -> nn.Module:
    """The model at `path` as `load` says. `prepare` may take from the empty model what `plan` does not place."""
    wanted = checked_dtype(dtype)
    folder, _, headers = checkpoint_headers(path)
    config = require_mapping(read_document(folder / "config.json"), str(folder / "config.json"), ProfileError)
    model: nn.Module = empty_model(config, folder, headers, wanted)
    prepare(model)
    destinations: list[Destination] = []
    try:
        _fill(plan, model, folder, headers, devices, destinations, progress)
    except BaseException as problem:
        _let_go(model, destinations, problem)
        raise
    return model


def _fill(
    plan: Placement,
    model: nn.Module,
    folder: Path,
    headers: Headers,
    devices: Mapping[str, torch.device | str],
    destinations: list[Destination],
    progress: bool,
) -> None:
    """Check everything, read, and install; `destinations` gets what holds weights, also when this raises."""
    homes = homes_on(plan, model, devices)
    recipe = recipe_of(model, headers, folder)
    compute(model, recipe.computed)
    destinations += destinations_of(homes)
    check_room(destinations, recipe)
    recipe.warn()
    with torch.inference_mode(False), torch.no_grad():
        with _shown(progress, f"loading {type(model).__name__}", recipe.n_bytes) as told:
            fill(recipe, destinations, told)
        install(plan, homes, destinations)


def _let_go(model: nn.Module, destinations: list[Destination], problem: BaseException | None = None) -> None:
    """Free every weight, also while somebody holds the error: frames of its traceback have tensors on their way."""
    while problem is not None:
        traceback.clear_frames(problem.__traceback__)
        problem = problem.__context__
    for destination in destinations:
        destination.clear()
    for module in model.modules():
        module._parameters.clear()
        module._buffers.clear()
        module.__dict__.pop("forward", None)  # of divided experts: it holds tables of their ids


@contextmanager
def _shown(progress: bool, title: str, total: int) -> Iterator[Told]:
    """A bar on standard error, or nothing."""
    if not progress:
        yield lambda n_bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n_bytes: bar.advance(task, n_bytes)
