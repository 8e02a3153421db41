"""A checkpoint goes straight to the devices of a plan, tensor by tensor: the model is never whole in host memory.

Importing this file does not import torch; calling `load` does.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.document import read_document, require_mapping
from profiles.errors import ApplyError, ProfileError
from profiles.load import load_placement
from profiles.placement import Placement
from profiles.safetensors.header import Headers, bad, read_headers
from profiles.safetensors.reader import _check_index, _files

if TYPE_CHECKING:
    import torch

    from runtime_adapter.loading.places import Destination

Told = Callable[[int], None]
"""Called with the bytes of the checkpoint that were read since the last call."""


def load(
    plan: Placement | dict[str, Any] | str | Path,
    path: str | Path,
    *,
    devices: Mapping[str, torch.device | str] | None = None,
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
) -> torch.nn.Module:
    """The causal LM of the checkpoint at `path` on the devices of `plan`, in eval mode; its forward follows the plan.

    `path` is a folder with config.json and safetensors. The model is built without memory; then the files are read one
    after the other, each tensor once, converted as transformers converts it (per-expert checkpoints into fused
    parameters) and put where the plan wants it: host memory holds the plan's CPU share, the pages of one shard, which
    the system may drop, and what is being converted, an expert of one layer. `dtype` None is that of config.json.

    The model's `plan_applied` is the `Applied` that `apply` would have returned: `device_map`, `moved_bytes` (here the
    bytes put on each device) and `undo()`, which removes the hooks, leaves the weights where they are and brings
    divided experts together on the CPU. `devices` is as in `apply`. `progress` shows a bar on standard error.

    Before the first tensor is read it is checked that the plan fits the model, that every parameter is in the files
    with the right shape, and that devices have room as far as they tell. Tensors that the model has no place for are
    left out, with a warning unless transformers is silent about them, too. Raises ApplyError or ProfileError for all
    that is wrong with plan, files, devices or memory; then, and when interrupted, nothing is held any more.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise ApplyError("load: needs torch and transformers; install moeplan[torch]")
    from runtime_adapter.loading.dtypes import checked_dtype
    from runtime_adapter.loading.empty_model import empty_model

    placement, wanted = load_placement(plan), checked_dtype(dtype)
    folder, headers = _checkpoint(Path(path))
    config = require_mapping(read_document(folder / "config.json"), str(folder / "config.json"), ProfileError)
    model: torch.nn.Module = empty_model(config, folder, headers, wanted)
    destinations: list[Destination] = []
    try:
        _carry_out(placement, model, folder, headers, devices or {}, destinations, progress)
    except BaseException as problem:
        _let_go(model, destinations, problem)
        raise
    return model


def _checkpoint(path: Path) -> tuple[Path, Headers]:
    """The folder and the checked headers of the files of its checkpoint."""
    try:
        folder, files, index = _files(path)
        headers = read_headers(files)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise bad(path, f"cannot be read: {reason}; check the path") from None
    if index is not None:
        _check_index(folder, headers, index)
    return folder, headers


def _carry_out(
    plan: Placement,
    model: torch.nn.Module,
    folder: Path,
    headers: Headers,
    devices: Mapping[str, torch.device | str],
    destinations: list[Destination],
    progress: bool,
) -> None:
    """Check everything, read, and install; `destinations` gets what holds weights, also when this raises."""
    from torch import inference_mode, no_grad

    from runtime_adapter.loading.empty_model import compute
    from runtime_adapter.loading.fill import fill
    from runtime_adapter.loading.install import homes_on, install
    from runtime_adapter.loading.pieces import recipe_of
    from runtime_adapter.loading.places import destinations_of
    from runtime_adapter.loading.room import check_room

    homes = homes_on(plan, model, devices)
    recipe = recipe_of(model, headers, folder)
    compute(model, recipe.computed)
    destinations += destinations_of(homes)
    check_room(destinations, recipe)
    recipe.warn()
    with inference_mode(False), no_grad():
        with _shown(progress, f"loading {type(model).__name__}", recipe.n_bytes) as told:
            fill(recipe, destinations, told)
        install(plan, homes, destinations)


def _let_go(model: torch.nn.Module, destinations: list[Destination], problem: BaseException | None = None) -> None:
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
