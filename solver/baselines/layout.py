"""A plan under construction, and what it holds: the judge's arithmetic of bytes without its clock, so rules can ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cost_models import CostModel
from cost_models.targets import largest_tensor_bytes
from profiles.device_names import in_order
from profiles.model import Block
from profiles.placement import LayerPlacement, Placement

CPU = "cpu"
ROUNDS = 32
"""How often a user is thought to lower a limit after an overflow before giving up."""


@dataclass
class Layout:
    """Device of every block; `experts[i]` is None for a dense layer."""

    embedding: str
    head: str
    attention: list[str]
    experts: list[str | None]

    def placement(self) -> Placement:
        placed: dict[tuple[str, str | None], LayerPlacement] = {}
        for home, device in zip(self.attention, self.experts, strict=True):
            if (home, device) not in placed:
                experts: dict[str, Any] = {} if device is None else {device: "all"}
                placed[home, device] = LayerPlacement(attention=home, experts=experts)
        layers = [placed[pair] for pair in zip(self.attention, self.experts, strict=True)]
        return Placement(embedding=self.embedding, head=self.head, layers=layers)


@dataclass(frozen=True)
class Weighed:
    """Bytes of a block by kind of device, `stays` with its KV cache; what it needs while it runs; and for experts the
    buffer that a target keeps on a GPU whose layers' experts are on the CPU."""

    weights: dict[str, int]
    stays: dict[str, int]
    workspace: int
    staging: int = 0


@dataclass(frozen=True)
class WeighedLayer:
    attention: Weighed
    experts: Weighed | None

    @property
    def gpu_bytes(self) -> int:
        """The whole layer's on one GPU."""
        return self.attention.stays["gpu"] + (self.experts.stays["gpu"] if self.experts else 0)


@dataclass
class _Load:
    """What one device holds."""

    stays: int = 0
    workspace: int = 0
    staging: int = 0
    blocks: list[int] = field(default_factory=list)

    def put(self, block: Weighed, kind: str) -> None:
        self.stays += block.stays[kind]
        self.workspace = max(self.workspace, block.workspace)
        self.blocks.append(block.weights[kind])


class Ledger:
    """Every block weighed once per kind of layer; `caps` are usable bytes less what a used device needs anyway.

    `gpus` are in the order of their indices, in which all runtimes count them.
    """

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        self.gpus = sorted((gpu.name for gpu in costs.hardware.gpus), key=in_order)
        self.caps = {
            device: max(0, costs.usable_bytes(device) - costs.overhead_bytes(device)) for device in costs.device
        }
        self.embedding, self.head = self._weigh(costs.profile.embedding), self._weigh(costs.profile.head)
        classes = {i: self._weigh_layer(i) for i in set(costs.layer_class)}
        self.layers = [classes[i] for i in costs.layer_class]
        self.with_experts = [i for i, layer in enumerate(self.layers) if layer.experts is not None]

    def _weigh_layer(self, index: int) -> WeighedLayer:
        layer = self.costs.layer(index)
        attention = self._weigh(layer.attention, self.costs.kv_bytes(index))
        if layer.experts is None:
            return WeighedLayer(attention, None)
        staging = largest_tensor_bytes(layer.experts) if self.costs.target_memory.stages_experts else 0
        return WeighedLayer(attention, self._weigh(layer.experts, staging=staging))

    def _weigh(self, block: Block, kv: int = 0, staging: int = 0) -> Weighed:
        weights = {"gpu": block.weight_bytes.gpu, "cpu": block.weight_bytes.cpu}
        stays = {kind: n + kv for kind, n in weights.items()}
        return Weighed(weights, stays, self.costs.workspace_bytes(block), staging)

    def homes_of_experts(self, device_of: Callable[[int], str]) -> list[str | None]:
        """`device_of(layer)` for layers with experts, None for dense ones."""
        return [None if layer.experts is None else device_of(i) for i, layer in enumerate(self.layers)]

    def used(self, layout: Layout) -> dict[str, int]:
        """Bytes on every device: exactly what the judge finds there, less the overhead that `caps` are without."""
        loads = {device: _Load() for device in self.caps}
        ends = ((self.embedding, layout.embedding), (self.head, layout.head))
        for block, home in ends:
            loads[home].put(block, _kind(home))
        if layout.embedding == layout.head:
            loads[layout.head].stays -= self.costs.profile.tied_bytes
        for layer, home, device in zip(self.layers, layout.attention, layout.experts, strict=True):
            loads[home].put(layer.attention, _kind(home))
            if layer.experts is not None and device is not None:
                loads[device].put(layer.experts, _kind(device))
                if device == CPU != home:
                    loads[home].staging = max(loads[home].staging, layer.experts.staging)
        if self.costs.target_memory.streams_blocks:
            main = next((load for device, load in loads.items() if device != CPU and load.blocks), _Load())
            main.staging = max(loads[CPU].blocks, default=0)
        return {device: load.stays + load.workspace + load.staging for device, load in loads.items()}

    def short(self, layout: Layout) -> dict[str, int]:
        """GPUs that overflow, and by how many bytes: no rule looks at the CPU's memory."""
        used = self.used(layout)
        return {gpu: used[gpu] - self.caps[gpu] for gpu in self.gpus if used[gpu] > self.caps[gpu]}


def _kind(device: str) -> str:
    return CPU if device == CPU else "gpu"


def with_lower_limits(rule: Callable[[Mapping[str, int]], Layout | None], ledger: Ledger) -> Layout | None:
    """What `rule` finds under the caps, or under lower limits where that overflows.

    A rule that does not count everything gets the help that its users give it: a GPU that overflows is allowed as much
    less, twice as much less each time that this changes nothing, and the rule runs again. If nothing helps, its first
    answer counts.
    """
    limits, step = dict(ledger.caps), 1
    first = layout = rule(limits)
    for _ in range(ROUNDS):
        short = {} if layout is None else ledger.short(layout)
        if layout is None or not short:
            break
        for gpu, n_bytes in short.items():
            limits[gpu] = max(0, limits[gpu] - step * n_bytes)
        before, layout = layout, rule(limits)
        step = 2 * step if layout == before else 1
    return layout if layout is not None and not ledger.short(layout) else first
