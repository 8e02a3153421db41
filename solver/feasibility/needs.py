"""What has to be held somewhere, in bytes alone: no times, and of order only what targets and pins ask for.

Which experts belong to which attention matters to memory only where a runtime keeps buffers for experts on the CPU, so
equal blocks are counted together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cost_models import CostModel, memory
from cost_models.targets import largest_tensor_bytes
from profiles.model import Block, Experts
from profiles.placement import LayerPlacement, Placement
from profiles.workload import Workload

SHARES = 4096
"""Parts of a layer in which experts of different sizes are measured; more of them prove a little more."""


class Permissions(Protocol):
    """What may go where and in which order, as `solver.rules.Allowed` says it."""

    @property
    def rank(self) -> tuple[int, ...] | None: ...

    @property
    def head_in_order(self) -> bool: ...

    def __call__(self, kind: str, layer: int) -> tuple[bool, ...]: ...


@dataclass(frozen=True)
class Blocks:
    """`number` equal blocks: bytes and permission per device, and the workspace wherever there is any of them.

    `streamed` is the size of the largest in weights alone, for a runtime that copies it from the CPU to a GPU.
    """

    bytes: tuple[int, ...]
    workspace: int
    allowed: tuple[bool, ...]
    streamed: int
    number: int


@dataclass(frozen=True)
class Needs:
    """`blocks` begin with the embedding and the head, which share `tied_bytes` where they share a device. `walk[i]` is
    the index in `blocks` of layer i's attention; `rank` and `head_in_order` restrict its way as in `Problem`.

    `staged` lists attention and its experts, as indices in `blocks`, with the buffer of a GPU that has the one while
    the other is on the CPU (device `cpu`). With `streams` the first GPU that holds anything keeps a buffer for the
    largest block on the CPU.
    """

    blocks: tuple[Blocks, ...]
    tied_bytes: int
    walk: tuple[int, ...]
    rank: tuple[int, ...] | None
    head_in_order: bool
    cpu: int
    staged: tuple[tuple[int, int, int], ...]
    streams: bool

    @property
    def bare(self) -> Needs:
        """The same without order and buffers: it fits wherever this does."""
        return replace(self, rank=None, head_in_order=False, staged=(), streams=False)


@dataclass(frozen=True)
class Demand:
    """Where `needed` does not fit, no placement does; where any of `enough` fits, some placement does. They are one and
    the same unless experts that may be divided have bytes that do not divide evenly."""

    needed: Needs
    enough: tuple[Needs, ...]


def demand_of(
    costs: CostModel, allowed: Permissions, *, whole_layers: bool, split: bool, workload: Workload | None = None
) -> Demand:
    """What `costs.profile` needs on the devices of `costs`, for `workload` where it is not that of `costs`.

    With `whole_layers` experts stay with their attention, with `split` each expert may be anywhere.
    """
    count = _Count(costs, allowed, workload or costs.workload, whole_layers)
    if not split:
        needed = count.needs(_whole)
        return Demand(needed, (needed,))
    needed, most = count.needs(_smallest_parts), count.needs(_largest_parts)
    return Demand(needed, (most,) if most == needed else (most, count.needs(_whole)))


Cut = Callable[[Experts, Blocks], Blocks]


def _whole(_: Experts, layers: Blocks) -> Blocks:
    return layers


def _smallest_parts(experts: Experts, layers: Blocks) -> Blocks:
    """Parts that no division into experts undercuts: an expert rounded down; where experts differ, shares of a layer,
    of which each device but one may have a fraction for nothing."""
    if _equal(experts):
        return replace(
            layers, bytes=tuple(n // experts.count for n in layers.bytes), number=layers.number * experts.count
        )
    fractions = len(layers.bytes) - 1
    return replace(layers, bytes=tuple(n // SHARES for n in layers.bytes), number=layers.number * SHARES - fractions)


def _largest_parts(experts: Experts, layers: Blocks) -> Blocks:
    """Every expert as large as the largest, rounded up."""
    sizes = experts.expert_weight_bytes
    part, whole = (1, experts.count) if sizes is None or _equal(experts) else (max(sizes), sum(sizes))
    return replace(
        layers, bytes=tuple(-(-n * part // whole) for n in layers.bytes), number=layers.number * experts.count
    )


def _equal(experts: Experts) -> bool:
    return len(set(experts.expert_weight_bytes or ())) <= 1


def laid_out(needs: Needs, numbers: Sequence[Sequence[int]], costs: CostModel) -> Placement:
    """A placement with so many of each of the needs' blocks on each device, layers in the devices' order."""
    names, rank = list(costs.device), needs.rank
    order = sorted(range(len(names)), key=lambda d: (rank[d] if rank else 0, d))
    left = [[names[d] for d in order for _ in range(here[d])] for here in numbers]
    layers = []
    for home, layer in zip(needs.walk, costs.profile.layers, strict=True):
        attention, homes = left[home].pop(0), list[str]()
        if layer.experts is not None:
            apart = home + 1 < len(left) and home + 1 not in needs.walk
            parts = needs.blocks[home + 1].number // needs.blocks[home].number if apart else 0
            homes = [left[home + 1].pop(0) for _ in range(parts)] or [attention]
        experts: dict[str, Any] = {d: [i for i, h in enumerate(homes) if h == d] for d in dict.fromkeys(homes)}
        experts = dict.fromkeys(experts, "all") if len(experts) == 1 else experts
        layers.append(LayerPlacement(attention=attention, experts=experts))
    return Placement(embedding=left[0][0], head=left[1][0], layers=layers)


class _Count:
    """Layers with equal figures and permissions are looked at once."""

    def __init__(self, costs: CostModel, allowed: Permissions, workload: Workload, whole_layers: bool) -> None:
        self.costs, self.allowed, self.workload, self.whole_layers = costs, allowed, workload, whole_layers
        self.keys = [
            (same, allowed("attention", i), costs.layer(i).experts and allowed("experts", i))
            for i, same in enumerate(costs.layer_class)
        ]

    def needs(self, cut: Cut) -> Needs:
        profile, target = self.costs.profile, self.costs.target_memory
        blocks = [self._blocks(profile.embedding, 0, self.allowed("embedding", 0), 1)]
        blocks.append(self._blocks(profile.head, 0, self.allowed("head", 0), 1))
        home: dict[object, int] = {}
        staged = []
        for key, number in Counter(self.keys).items():
            layer = self.keys.index(key)
            attention, experts = self._layer(layer, number)
            home[key] = len(blocks)
            blocks.append(attention)
            found = self.costs.layer(layer).experts
            if found is not None and experts is not None:
                if target.stages_experts:
                    staged.append((len(blocks) - 1, len(blocks), largest_tensor_bytes(found)))
                blocks.append(cut(found, experts))
        kinds = [device.kind for device in self.costs.device.values()]
        return Needs(
            blocks=tuple(blocks),
            tied_bytes=profile.tied_bytes,
            walk=tuple(home[key] for key in self.keys),
            rank=self.allowed.rank,
            head_in_order=self.allowed.head_in_order,
            cpu=kinds.index("cpu"),
            staged=tuple(staged),
            streams=target.streams_blocks,
        )

    def _layer(self, layer: int, number: int) -> tuple[Blocks, Blocks | None]:
        """Of `number` layers like this one what is placed as attention, and the experts unless they stay with it."""
        found = self.costs.layer(layer)
        cache = memory.kv_bytes(found.attention, self.workload)
        attention = self._blocks(found.attention, cache, self.allowed("attention", layer), number)
        if found.experts is None:
            return attention, None
        experts = self._blocks(found.experts, 0, self.allowed("experts", layer), number)
        if not self.whole_layers:
            return attention, experts
        both = Blocks(
            bytes=tuple(a + b for a, b in zip(attention.bytes, experts.bytes, strict=True)),
            workspace=max(attention.workspace, experts.workspace),
            allowed=tuple(a and b for a, b in zip(attention.allowed, experts.allowed, strict=True)),
            streamed=max(attention.streamed, experts.streamed),
            number=number,
        )
        return both, None

    def _blocks(self, block: Block, cache: int, allowed: tuple[bool, ...], number: int) -> Blocks:
        costs = self.costs
        return Blocks(
            bytes=tuple(costs.weight_bytes(block, device) + cache for device in costs.device),
            workspace=memory.workspace_bytes(block, costs.profile, self.workload, costs.target),
            allowed=allowed,
            streamed=block.weight_bytes.cpu,
            number=number,
        )
