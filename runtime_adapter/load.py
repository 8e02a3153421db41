"""A checkpoint goes straight to the devices of a plan, tensor by tensor: the model is never whole in host memory.

Importing this file does not import torch; calling `load` does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.errors import ApplyError
from profiles.load import load_placement
from profiles.placement import Placement

if TYPE_CHECKING:
    import torch


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
    from runtime_adapter.loading.read import read_model

    return read_model(load_placement(plan), Path(path), devices or {}, dtype, progress)
