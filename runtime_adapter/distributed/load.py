"""Every rank loads its own stages of a checkpoint, and only those. Importing this does not import torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.errors import ApplyError
from profiles.load import load_placement
from profiles.placement import Placement
from runtime_adapter.distributed.stages import Hosts, Stage, local_devices, stage_plan, stages_of

if TYPE_CHECKING:
    import torch

    from runtime_adapter.distributed.pipeline import DistributedModel

Devices = Mapping[str, "torch.device | str"]


def load_distributed(
    plan: Placement | dict[str, Any] | str | Path,
    path: str | Path,
    *,
    hosts: Hosts,
    devices: Devices | None = None,
    dtype: torch.dtype | str | None = None,
    timeout_s: float = 30.0,
    progress: bool = True,
) -> DistributedModel:
    """This process' part of the model of the checkpoint at `path`, as one of the ranks that torchrun started.

    `hosts` lists for each rank the devices of the plan that it owns, the same on all ranks; the plan is cut where it
    changes rank (`stages_of` says how). Each rank reads the weights of its own stages from its own `path` and puts them
    where the plan says. `devices` maps this rank's names of the plan to torch devices, as for `apply`; by default the
    GPUs of each host count from cuda:0 (`local_devices` says how). `dtype` is as in `load`; `progress` shows a bar on
    rank 0.

    `timeout_s` is the longest that a rank waits for another while tokens are made: more than the prompt takes in all
    stages together. It is for hosts that hang; that a process has ended is noticed at once.

    Raises ApplyError when plan, hosts and ranks do not fit each other, when ranks were given different plans or hosts,
    or when another rank ended, which could not load, say; and whatever `load` raises on the rank itself.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise ApplyError("load_distributed: needs torch and transformers; install moeplan[torch]")
    import torch.distributed as dist

    if not dist.is_available():
        raise ApplyError("load_distributed: this torch was built without torch.distributed; install another build")
    from runtime_adapter.distributed.cut import StageModel
    from runtime_adapter.distributed.pipeline import DistributedModel
    from runtime_adapter.distributed.ranks import join

    placement = load_placement(plan)
    stages = stages_of(placement, hosts)
    if not 0 < timeout_s < 1e6:
        raise ApplyError(f"timeout_s: {timeout_s}; give seconds, more than the prompt takes in all stages")
    ranks = join(len(hosts), timeout_s, lambda rank: _accelerator(placement, stages, rank, _real(hosts, rank, devices)))
    try:
        blocks = (placement.embedding, placement.layers, placement.head)
        ranks.agree("plan, or hosts", blocks, [list(names) for names in hosts])
        real, shown = _real(hosts, ranks.rank, devices), progress and ranks.rank == 0
        models: list[StageModel] = []
        for stage in stages:
            if stage.rank == ranks.rank:
                model = load_stage(placement, Path(path), stage, real, dtype, shown)
                models.append(StageModel(model, stage, ranks.link))
        part = models[0]
        ranks.agree("checkpoint", type(part.model).__name__, part.whole.hidden_size, part.whole.vocab_size, part.dtype)
    except BaseException:
        ranks.close()
        raise
    return DistributedModel(ranks, stages, models)


def _real(hosts: Hosts, rank: int, devices: Devices | None) -> dict[str, torch.device | str]:
    return dict(local_devices(hosts, rank, os.environ) if devices is None else devices)


def _accelerator(plan: Placement, stages: Sequence[Stage], rank: int, devices: Devices) -> torch.device | None:
    """Where the rank's first block is, if that is not the CPU."""
    import torch

    first = stage_plan(plan, next(stage for stage in stages if stage.rank == rank)).embedding
    try:
        device = torch.device(devices.get(first, first))
    except (RuntimeError, TypeError):  # what `apply` will refuse with its reason
        return None
    return None if device.type == "cpu" else device


def load_stage(
    plan: Placement, path: Path, stage: Stage, devices: Devices, dtype: torch.dtype | str | None, progress: bool
) -> torch.nn.Module:
    """A causal LM with the weights of one stage only, as `load` makes one with all of them."""
    from runtime_adapter.distributed.cut import cut
    from runtime_adapter.loading.read import read_model

    return read_model(stage_plan(plan, stage), path, devices, dtype, progress, lambda model: cut(model, stage))
