"""The judge: memory and time of any placement, recomputed step by step. It shares no code with the CP-SAT model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from cost_models import CostModel, Step
from cost_models.targets import largest_tensor_bytes, load_peaks
from profiles.errors import MoeplanError
from profiles.placement import DeviceMemory, LayerPlacement, Objective, Placement, PoolMemory, Prediction


@dataclass(frozen=True)
class Evaluation:
    """What a placement holds and how fast it is, whether it fits or not.

    `memory` has every device of the machine, used or not, and `pools` every memory that devices share; `short_bytes`
    names those of both that overflow and by how much.
    """

    memory: dict[str, DeviceMemory]
    prediction: Prediction
    objective: Objective
    objective_s: float
    pools: dict[str, PoolMemory] = field(default_factory=dict)

    @property
    def short_bytes(self) -> dict[str, int]:
        free = {name: held.free_bytes for name, held in self.memory.items()}
        free |= {name: shared.free_bytes for name, shared in self.pools.items()}
        return {name: -n_bytes for name, n_bytes in free.items() if n_bytes < 0}

    @property
    def feasible(self) -> bool:
        """used <= usable on every device, the CPU included, and in every memory that devices share."""
        return not self.short_bytes


def judge(placement: Placement, costs: CostModel, objective: Objective = "request") -> Evaluation:
    """Evaluate `placement` under `costs`. Raises MoeplanError when it does not describe this model or machine."""
    if objective not in get_args(Objective):
        raise MoeplanError(f"objective: {objective!r} is not known; use {', '.join(get_args(Objective))}")
    check_describes(placement, costs)
    walk = _Walk(placement, costs)
    prefill = sum(walk.step_s(step) for step in costs.prefill_steps())
    decode = walk.step_s(costs.decode_step())
    workload = costs.workload
    objectives: dict[Objective, float] = {
        "request": prefill + workload.generated_tokens * decode,
        "decode": decode,
        "prefill": prefill,
        "throughput": walk.busiest_s(costs.decode_step()) / workload.batch_size,
    }
    memory = _memory(placement, costs)
    return Evaluation(
        memory=memory,
        pools=_pools(memory, costs),
        prediction=Prediction(prefill_s=prefill, decode_step_s=decode, tokens_per_s=workload.batch_size / decode),
        objective=objective,
        objective_s=objectives[objective],
    )


def check_describes(placement: Placement, costs: CostModel) -> None:
    """Raise MoeplanError unless the placement has this model's layers, its experts and only this machine's devices."""
    profile, name = costs.profile, placement.model or "placement"
    if len(placement.layers) != len(profile.layers):
        raise MoeplanError(
            f"{name}: layers: has {len(placement.layers)}, {profile.model} has {len(profile.layers)}; give one a layer"
        )
    stray = sorted(placement.devices.difference(costs.device))
    if stray:
        raise MoeplanError(f"{name}: {costs.hardware.name} has no {stray[0]}; it has {', '.join(costs.device)}")
    for i, (placed, layer) in enumerate(zip(placement.layers, profile.layers, strict=True)):
        if layer.experts is None and placed.experts:
            raise MoeplanError(f"{name}: layers[{i}].experts: the layer is dense in {profile.model}; leave it empty")
        if layer.experts is not None:
            _check_experts(f"{name}: layers[{i}].experts", placed, layer.experts.count)


def _check_experts(where: str, placed: LayerPlacement, count: int) -> None:
    if not placed.experts:
        raise MoeplanError(f"{where}: empty, but the layer has {count} experts; say where they are")
    if placed.experts_device is None:
        ids = {i for part in placed.experts.values() for i in part}
        if ids != set(range(count)):
            wrong = min(ids.symmetric_difference(range(count)))
            raise MoeplanError(
                f"{where}: expert {wrong} of 0 to {count - 1} is missing or unknown; place each one once"
            )


class _Walk:
    """The token's way through the machine, block after block (docs/model.md)."""

    def __init__(self, placement: Placement, costs: CostModel) -> None:
        self._placement, self._costs = placement, costs

    def step_s(self, step: Step) -> float:
        """embedding, then for each layer: hop there, attention, experts; then hop to the head."""
        placement, costs = self._placement, self._costs
        total, here = costs.block_s("embedding", 0, placement.embedding, step), placement.embedding
        for i, layer in enumerate(placement.layers):
            total += costs.hop_s(here, layer.attention, step.tokens)
            total += costs.block_s("attention", i, layer.attention, step)
            total += self._experts_s(i, layer, step)
            here = layer.attention
        total += costs.hop_s(here, placement.head, step.tokens)
        return total + costs.block_s("head", 0, placement.head, step)

    def _experts_s(self, i: int, layer: LayerPlacement, step: Step) -> float:
        if not layer.experts:
            return 0.0
        whole = _one_device(layer)
        if whole is None:
            return self._costs.split_experts_s(i, layer.attention, _ids(layer), step)
        return self._costs.experts_from_s(i, layer.attention, whole, step)

    def busiest_s(self, step: Step) -> float:
        """Seconds of block time on the device that has most of it; hops and hand-overs are not anybody's work."""
        costs, busy = self._costs, dict.fromkeys(self._costs.device, 0.0)
        busy[self._placement.embedding] += costs.block_s("embedding", 0, self._placement.embedding, step)
        busy[self._placement.head] += costs.block_s("head", 0, self._placement.head, step)
        for i, layer in enumerate(self._placement.layers):
            busy[layer.attention] += costs.block_s("attention", i, layer.attention, step)
            whole = _one_device(layer)
            if whole is not None:
                busy[whole] += costs.block_s("experts", i, whole, step)
            else:
                for device, ids in _ids(layer).items():
                    busy[device] += costs.split_experts_s(i, device, {device: ids}, step)
        return max(busy.values())


def _one_device(layer: LayerPlacement) -> str | None:
    """The device of all experts, said as "all" or as a list of every id; None for a dense or a split layer."""
    return next(iter(layer.experts)) if len(layer.experts) == 1 else None


def _ids(layer: LayerPlacement) -> dict[str, Sequence[int]]:
    return {device: part for device, part in layer.experts.items() if part != "all"}


def _memory(placement: Placement, costs: CostModel) -> dict[str, DeviceMemory]:
    held = {device: _Held() for device in costs.device}
    profile = costs.profile
    for block, home in ((profile.embedding, placement.embedding), (profile.head, placement.head)):
        held[home].put(costs.weight_bytes(block, home), costs.workspace_bytes(block))
    if placement.embedding == placement.head:
        held[placement.head].weights -= profile.tied_bytes
    for i, placed in zip(costs.layer_class, placement.layers, strict=True):
        layer, attention = costs.layer(i), held[placed.attention]
        attention.put(costs.weight_bytes(layer.attention, placed.attention), costs.workspace_bytes(layer.attention))
        attention.kv += costs.kv_bytes(i)
        for device, part in placed.experts.items():
            assert layer.experts is not None
            ids: Iterable[int] = range(layer.experts.count) if part == "all" else part
            n_bytes = costs.expert_bytes(layer.experts, device, tuple(ids))
            held[device].put(n_bytes, costs.workspace_bytes(layer.experts))
            held[device].experts.append(n_bytes)
            if device == "cpu" and placed.attention != "cpu" and costs.target_memory.stages_experts:
                attention.staging = max(attention.staging, largest_tensor_bytes(layer.experts))
    if costs.target_memory.streams_blocks:
        main = next((held[device] for device in held if device != "cpu" and held[device].blocks), _Held())
        main.staging = max(held["cpu"].blocks, default=0)
    peaks = load_peaks(
        costs.target_memory,
        {device: found.weights for device, found in held.items()},
        {device: found.experts for device, found in held.items()},
        costs.loaded_bytes(),
    )
    return {device: found.memory(device, costs, peaks.get(device)) for device, found in held.items()}


def _pools(memory: Mapping[str, DeviceMemory], costs: CostModel) -> dict[str, PoolMemory]:
    """Every byte of a device that shares its memory counts once against that."""
    return {
        pool.name: PoolMemory(
            used_bytes=sum(memory[device.name].used_bytes for device in costs.hardware.in_pool(pool.name)),
            usable_bytes=costs.pool_usable_bytes(pool.name),
        )
        for pool in costs.hardware.pools
    }


@dataclass
class _Held:
    """What has been put on one device so far: bytes, and those of each block by itself."""

    weights: int = 0
    kv: int = 0
    workspace: int = 0
    staging: int = 0
    blocks: list[int] = field(default_factory=list)
    experts: list[int] = field(default_factory=list)

    def put(self, n_bytes: int, workspace: int) -> None:
        self.weights += n_bytes
        self.workspace = max(self.workspace, workspace)
        self.blocks.append(n_bytes)

    def memory(self, device: str, costs: CostModel, load_peak: int | None) -> DeviceMemory:
        overhead = costs.overhead_bytes(device) if self.blocks else 0
        return DeviceMemory(
            weights_bytes=self.weights,
            kv_bytes=self.kv,
            workspace_bytes=self.workspace + self.staging + overhead,
            reserved_bytes=costs.device[device].reserved_bytes,
            usable_bytes=costs.usable_bytes(device),
            load_peak_bytes=load_peak,
        )
