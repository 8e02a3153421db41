"""What may go where: the target's own limits and the user's pins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from cost_models import CostModel
from cost_models.targets import target_memory
from profiles.device_names import in_order, is_gpu
from profiles.errors import MoeplanError, TargetError
from profiles.placement import Granularity, LayerPlacement, Placement
from solver.pins import Pins, Restriction, read_pins

__all__ = ["FINEST", "Allowed", "Pins", "breaks", "check_target", "coarser"]

FINEST: dict[str, Granularity] = {
    "torch": "expert",
    "ktransformers": "module",
    "llama.cpp": "module",
    "accelerate": "layer",
    "sglang-kt": "expert",
}
"""The finest granularity that each target can express: one entry for each of cost_models.targets.TARGETS."""
ONLY_CUDA = ("ktransformers", "sglang-kt")
"""Targets whose operators, as moeplan writes them, are for CUDA: KTransformers has other files of rules for ROCm and
Intel GPUs (kvcache-ai/ktransformers, doc/en/ROCm.md and xpu.md, both beta), kt-kernel's guides are for CUDA."""
_COARSER: tuple[Granularity, ...] = ("expert", "module", "layer")


def check_target(target: str) -> None:
    """TargetError, which lists all, for a runtime that is not known."""
    target_memory(target)


def coarser(one: Granularity, other: Granularity) -> Granularity:
    """The one of the two that leaves less choice.

    >>> coarser("module", "layer")
    'layer'
    """
    return max(one, other, key=_COARSER.index)


class Allowed:
    """Which devices may hold which block: `allowed(kind, layer)` is one boolean a device, in `costs.device`'s order.

    `rank` has one integer a device, in that order: along the layers, the rank of the attention's device never falls.
    It is None where nothing restricts the order. With `head_in_order` the head's rank is not below that of the last
    layer's attention. `finest` is the finest granularity that the target can express.

    `pins` say more. A block mapped to its device, or to several that it may choose from: blocks are "embedding",
    "head", "attention" or "experts" (of every layer), "layers.3", "layers.3.experts", "layers.0-9.attention". A device
    mapped to what may be there: kinds out of "embedding", "attention", "experts" and "head", or "nothing" (an empty
    list). A device may also be "first" or "last": attention goes there before, or after, that of all other devices
    (those that share a word are equals). All pins hold at once.

    Raises MoeplanError for a pin that names no block or device, that leaves a block no device, or orders that
    contradict each other; TargetError for a machine on which the target cannot run. `target` is one that `check_target`
    lets pass.
    """

    rank: tuple[int, ...] | None
    head_in_order: bool
    finest: Granularity

    def __init__(self, costs: CostModel, target: str, pins: Pins | None) -> None:
        self._names = tuple(costs.device)
        self._dense = [layer.experts is None for layer in costs.profile.layers]
        self._where: dict[tuple[str, int], frozenset[str]] = {}
        self.finest = FINEST[target]
        for restriction in _of_target(costs, target):
            self._restrict(restriction)
        restrictions, order = read_pins(pins, self._names, self._dense)
        for restriction in restrictions:
            self._restrict(restriction)
        own = _own_order(target, self._names)
        wanted = [order.get(name, 0) for name in self._names]
        self._agree(own, wanted, target)
        rank = own or wanted
        self.rank = tuple(rank) if len(set(rank)) > 1 else None
        self.head_in_order = target == "llama.cpp" and self.rank is not None
        self._walk(f"target {target}" if own else "first, last")

    def __call__(self, kind: str, layer: int) -> tuple[bool, ...]:
        where = self._where.get((kind, layer))
        return tuple(where is None or name in where for name in self._names)

    def _restrict(self, restriction: Restriction) -> None:
        kind = restriction.kind
        for layer in restriction.layers:
            left = self._where.get((kind, layer), frozenset(self._names)) & restriction.devices
            if not left:
                raise MoeplanError(f"{restriction.why}: leaves {_block(kind, layer)} no device; loosen it")
            self._where[kind, layer] = left

    def _agree(self, own: Sequence[int], wanted: Sequence[int], target: str) -> None:
        """MoeplanError where the pins' order is not the target's, among the devices that may have attention."""
        if not own:
            return
        may = [any(here) for here in zip(*(self("attention", i) for i in range(len(self._dense))), strict=True)]
        used = [d for d in range(len(self._names)) if may[d]]
        for a in used:
            for b in used:
                if own[a] < own[b] and wanted[a] > wanted[b]:
                    name, word = (self._names[a], "last") if wanted[a] > 0 else (self._names[b], "first")
                    order = ", ".join(self._names[d] for d in sorted(used, key=own.__getitem__))
                    problem = f"{word} contradicts target {target}, which has attention on {order} in this order"
                    raise MoeplanError(f"pins: {name!r}: {problem}; take it away, or attention off other devices")

    def _walk(self, order: str) -> None:
        """MoeplanError where no walk over the layers goes through the devices in order: tried by going no further in
        line than each layer needs."""
        if self.rank is None:
            return
        ends = [("head", 0)] if self.head_in_order else []
        line, forced = min(self.rank) - 1, ""
        for kind, layer in [*(("attention", i) for i in range(len(self._dense))), *ends]:
            may = [(rank, name) for rank, name, ok in zip(self.rank, self._names, self(kind, layer), strict=True) if ok]
            left = [rank for rank, _ in may if rank >= line]
            if not left:
                problem = f"the order of the devices ({order}) leaves {_block(kind, layer)} none after {forced}"
                raise MoeplanError(f"pins: {problem}; loosen a pin")
            if min(left) > line:
                line = min(left)
                forced = f"{_block(kind, layer)} on {' or '.join(name for rank, name in may if rank == line)}"


def _of_target(costs: CostModel, target: str) -> Iterator[Restriction]:
    """What the target cannot express, or does in one way only.

    ktransformers looks tokens up on the CPU, runs attention on GPUs only, and its Mixtral has no transfer map, so all
    of that attention stays on the first GPU (docs/ktransformers.md). llama.cpp looks tokens up on the CPU. sglang-kt
    runs all but experts on GPUs, of which it is given one here (several would share every tensor), and experts there or
    on the CPU. Both have their kernels for CUDA alone (`ONLY_CUDA`): GPUs of other makers hold nothing.
    """
    why, layers = f"target {target}", range(len(costs.profile.layers))
    gpus = [gpu.name for gpu in costs.hardware.gpus if target not in ONLY_CUDA or gpu.driven_by == "cuda"]
    if target in ONLY_CUDA and costs.hardware.gpus and not gpus:
        drivers = ", ".join(sorted({str(gpu.driven_by) for gpu in costs.hardware.gpus}))
        remedy = "use target llama.cpp, torch or accelerate"
        raise TargetError(f"{why}: runs on CUDA GPUs, {costs.hardware.name} has none (but {drivers}); {remedy}")
    if len(gpus) < len(costs.hardware.gpus):
        may = frozenset([*gpus, "cpu"])
        with_experts = [i for i in layers if costs.profile.layers[i].experts is not None]
        yield Restriction(why, "head", range(1), may)
        yield Restriction(why, "experts", with_experts, may)
    if target in ("ktransformers", "llama.cpp"):
        yield Restriction(why, "embedding", range(1), frozenset(["cpu"]))
    if target == "ktransformers":
        homes = gpus[:1] if costs.profile.architecture == "mixtral" else gpus
        yield Restriction(why, "attention", layers, frozenset(homes))
    if target == "sglang-kt":
        if not gpus:
            raise TargetError(f"{why}: runs attention on a GPU and {costs.hardware.name} has none; use another target")
        home = min(gpus, key=in_order)
        for kind, of in (("embedding", range(1)), ("attention", layers), ("head", range(1))):
            yield Restriction(why, kind, of, frozenset([home]))
        with_experts = [i for i in layers if costs.profile.layers[i].experts is not None]
        yield Restriction(why, "experts", with_experts, frozenset([home, "cpu"]))


def _own_order(target: str, names: Sequence[str]) -> list[int]:
    """The place in line of each device for a target that has an order of its own; empty for others.

    llama.cpp gives each device one run of layers, the CPU's first (-ngl), then the GPUs' by index (-ts)."""
    line = ["cpu", *sorted((name for name in names if is_gpu(name)), key=in_order)]
    return [line.index(name) for name in names] if target == "llama.cpp" else []


def _block(kind: str, layer: int) -> str:
    return kind if kind in ("embedding", "head") else f"layers.{layer}.{kind}"


def breaks(placement: Placement, allowed: Allowed, devices: Sequence[str]) -> str | None:
    """The first thing in `placement` that `allowed` forbids, in words; None when all is well.

    Every device that holds some of a layer's experts counts. `devices` are those of `allowed`, in its order.
    """
    index = {name: i for i, name in enumerate(devices)}
    blocks = [("embedding", 0, placement.embedding), ("head", 0, placement.head)]
    for i, layer in enumerate(placement.layers):
        blocks.append(("attention", i, layer.attention))
        blocks += [("experts", i, device) for device in layer.experts]
    for kind, i, device in blocks:
        if not allowed(kind, i)[index[device]]:
            return f"{kind} of layer {i} on {device}" if kind in ("attention", "experts") else f"{kind} on {device}"
    for i, layer in enumerate(placement.layers):
        if (found := _too_fine(layer, allowed.finest)) is not None:
            return f"experts of layer {i} {found}"
    return _out_of_order(placement, allowed, index)


def _too_fine(layer: LayerPlacement, finest: Granularity) -> str | None:
    if len(layer.experts) > 1 and finest != "expert":
        return f"split between {' and '.join(layer.experts)}"
    stray = [device for device in layer.experts if device != layer.attention]
    if stray and finest == "layer":
        return f"on {stray[0]}, away from their attention on {layer.attention}"
    return None


def _out_of_order(placement: Placement, allowed: Allowed, index: dict[str, int]) -> str | None:
    if allowed.rank is None:
        return None
    homes = [(f"attention of layer {i}", layer.attention) for i, layer in enumerate(placement.layers)]
    homes += [("head", placement.head)] if allowed.head_in_order else []
    for (_, before), (block, here) in pairwise(homes):
        if allowed.rank[index[here]] < allowed.rank[index[before]]:
            return f"{block} on {here}, after attention on {before}, which comes later in the order of the devices"
    return None
