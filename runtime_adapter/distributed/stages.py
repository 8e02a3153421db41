"""Where a plan is cut: which rank owns which device, and the blocks between two changes of rank. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from profiles.device_names import ALLOWED, DEVICE_NAME, gpu_type, in_order
from profiles.errors import ApplyError
from profiles.placement import LayerPlacement, Placement

Hosts = Sequence[Sequence[str]]
"""For each rank, the devices of the plan that it owns."""


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks that one rank computes: the embedding or not, `layers`, the head or not; at least one."""

    index: int
    rank: int
    layers: range
    embedding: bool
    head: bool

    def __str__(self) -> str:
        blocks = ["the embedding"] if self.embedding else []
        if self.layers:
            first, last = self.layers[0], self.layers[-1]
            blocks.append(f"layer {first}" if first == last else f"layers {first} to {last}")
        blocks += ["the head"] if self.head else []
        return f"stage {self.index} ({', '.join(blocks)})"


def stages_of(plan: Placement, hosts: Hosts) -> tuple[Stage, ...]:
    """The stages of `plan`, in the order of computing; two neighbours are never of one rank.

    A layer is on the rank of its attention's device, and all its experts must be there, too. Every rank has a CPU,
    unless `hosts` lists "cpu" for some ranks: then only those have. An embedding, attention or head on the CPU is on
    the rank of the block before it that is on a GPU, or else after it; but on the one rank that has a CPU, if only one
    has. Raises ApplyError naming the entry of `hosts` or the layer.

    >>> layers = [{"attention": f"cuda:{i}", "experts": {"cpu": "all"}} for i in (0, 0, 1)]
    >>> plan = Placement(embedding="cpu", head="cuda:1", layers=layers)
    >>> [str(stage) for stage in stages_of(plan, [["cuda:0"], ["cuda:1"]])]
    ['stage 0 (the embedding, layers 0 to 1)', 'stage 1 (layer 2, the head)']
    """
    rank_of = _gpu_ranks(plan, hosts)
    cpu_ranks = [rank for rank, names in enumerate(hosts) if "cpu" in names] or list(range(len(hosts)))
    owners = _owners(plan, rank_of, cpu_ranks)
    idle = next((rank for rank in range(len(hosts)) if rank not in owners), None)
    if idle is not None:
        raise ApplyError(f"hosts[{idle}]: has no attention, embedding or head of the plan; leave this rank out")
    for i, layer in enumerate(plan.layers):
        _check_experts(i, layer, owners[i + 1], rank_of, cpu_ranks)
    return _runs(owners)


def stage_plan(plan: Placement, stage: Stage) -> Placement:
    """The part of `plan` for a model in which only the stage's blocks are left, with all its layers counted.

    Layers of other stages are dense here and, like a missing embedding or head, on a device that the stage uses anyway.
    """
    own = [plan.embedding] if stage.embedding else []
    own += [plan.layers[i].attention for i in stage.layers]
    own += [plan.head] if stage.head else []
    missing = LayerPlacement(attention=own[0], experts={})
    layers = [layer if i in stage.layers else missing for i, layer in enumerate(plan.layers)]
    return Placement(embedding=own[0], head=own[-1], layers=layers)


def local_devices(hosts: Hosts, rank: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The torch device of each GPU of `rank`, where torchrun started one group of ranks a host.

    On a host of several, the plan's GPUs of each type are counted from 0 in the order of their numbers, over all ranks
    of the host. On a single host, and where the environment does not say, a name means itself.

    >>> hosts = [["cuda:0", "cuda:1"], ["cuda:2", "cuda:3", "cpu"]]
    >>> local_devices(hosts, 1, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    {'cuda:2': 'cuda:0', 'cuda:3': 'cuda:1'}
    """
    own = [name for name in hosts[rank] if name != "cpu"]
    here, count = environment.get("LOCAL_RANK", ""), environment.get("LOCAL_WORLD_SIZE", "")
    if not here.isdigit() or not count.isdigit() or int(count) >= len(hosts):
        return {name: name for name in own}
    start = rank - int(here)
    names = {name for names in hosts[start : start + int(count)] for name in names if name != "cpu"}
    order = sorted(names, key=in_order)
    alike = {name: [other for other in order if gpu_type(other) == gpu_type(name)] for name in own}
    return {name: f"{gpu_type(name)}:{alike[name].index(name)}" for name in own}


def _gpu_ranks(plan: Placement, hosts: Hosts) -> dict[str, int]:
    """The rank of every GPU that `hosts` lists; each once, and none of the plan's left out."""
    found: dict[str, int] = {}
    for rank, names in enumerate(hosts):
        if isinstance(names, str):
            raise ApplyError(f"hosts[{rank}]: {names!r} is not a list; give every rank a list of the plan's devices")
        for name in names:
            if not isinstance(name, str) or not DEVICE_NAME.fullmatch(name):
                raise ApplyError(f"hosts[{rank}]: {name!r} is not a device of a plan; use {ALLOWED}")
            if name != "cpu" and found.setdefault(name, rank) != rank:
                raise ApplyError(f"hosts[{rank}]: {name} is on rank {found[name]}, too; name each GPU once")
    lost = sorted(plan.devices - found.keys() - {"cpu"})
    if lost:
        raise ApplyError(f"hosts: {lost[0]}, which the plan uses, is on no rank; add it to its rank's list")
    return found


def _owners(plan: Placement, rank_of: Mapping[str, int], cpu_ranks: Sequence[int]) -> list[int]:
    """The rank of each block in the order of computing: embedding, layers, head."""
    devices = [plan.embedding, *(layer.attention for layer in plan.layers), plan.head]
    if len(cpu_ranks) == 1:
        return [rank_of.get(device, cpu_ranks[0]) for device in devices]
    near = next((rank_of[device] for device in devices if device in rank_of), cpu_ranks[0])
    owners = []
    for i, device in enumerate(devices):
        near = rank_of.get(device, near)
        if device == "cpu" and near not in cpu_ranks:
            block = ["embedding", *(f"layers[{k}].attention" for k in range(len(plan.layers))), "head"][i]
            raise ApplyError(f"{block}: on the CPU next to rank {near}, but hosts[{near}] has no 'cpu'; add it there")
        owners.append(near)
    return owners


def _check_experts(
    i: int, layer: LayerPlacement, owner: int, rank_of: Mapping[str, int], cpu_ranks: Sequence[int]
) -> None:
    for device in layer.experts:
        if device == "cpu" and owner not in cpu_ranks:
            raise ApplyError(f"layers[{i}].experts: on the CPU of rank {owner}, but hosts[{owner}] lacks 'cpu'; add it")
        if rank_of.get(device, owner) != owner:
            raise ApplyError(
                f"layers[{i}].experts: on {device} of rank {rank_of[device]}, its attention on {layer.attention} of "
                f"rank {owner}; a layer stays on one rank: give both devices to one, or pin it to one rank's devices"
            )


def _runs(owners: Sequence[int]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    last = len(owners) - 1
    for rank, run in groupby(range(len(owners)), key=owners.__getitem__):
        blocks = list(run)
        layers = range(max(blocks[0], 1) - 1, min(blocks[-1], last - 1))
        stages.append(Stage(len(stages), rank, layers, blocks[0] == 0, blocks[-1] == last))
    return tuple(stages)
