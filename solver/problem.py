"""The placement problem in whole numbers: bytes, and times in ticks, for every block and device.

The solver works on this alone. Layers that cost the same everywhere and may go to the same places form one class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from cost_models import CostModel, Step
from cost_models.memory import growth_bytes
from cost_models.targets import largest_tensor_bytes
from profiles.model import Block
from profiles.placement import Granularity, Objective
from solver.rules import Allowed
from solver.shared import Room, Shared

TICKS = 10**9
"""Resolution: one tick is about 1e-9 of a plan's objective, so that rounding stays near 1e-7 of it."""
MOST_TICKS = 2**60
"""What the terms of an objective may add up to, one for each pair of devices, with room to spare in 64 bits."""

MOST_TOGETHER = 10_000
"""Ways to combine attentions of classes with equal experts beyond which such classes stay apart."""


@dataclass(frozen=True)
class BlockCosts:
    """One block: bytes that stay, bytes while it runs, ticks and whether it may be there, per device; and by how many
    bytes it may turn out larger (nowhere, if empty)."""

    bytes: tuple[int, ...]
    workspace: int
    ticks: tuple[int, ...]
    allowed: tuple[bool, ...]
    deviation: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExpertsCosts:
    """Routed experts of one layer: `ticks[a][d]` with the layer's attention on a and its experts on d, hops and sync
    included; `busy[d]` without them."""

    bytes: tuple[int, ...]
    workspace: int
    ticks: tuple[tuple[int, ...], ...]
    busy: tuple[int, ...]
    allowed: tuple[bool, ...]
    deviation: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerClass:
    attention: BlockCosts
    experts: ExpertsCosts | None


@dataclass(frozen=True)
class ExpertKind:
    """Experts that cost the same, those of layers of `classes`, `number` in all: only their attention differs."""

    experts: ExpertsCosts
    classes: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class Robust:
    """Any `blocks` of the blocks on a device may have a `share` more bytes of weights than the profile says."""

    share: float
    blocks: int


@dataclass(frozen=True)
class Problem:
    """`hop[d][e]` obeys the triangle inequality; `layer_class[i]` indexes `classes`; `tied_bytes` are held once where
    embedding and head share a device; with `whole_layers` experts stay with their attention. Where there is a `rank`,
    that of the attention's device never falls along the layers, and with `head_in_order` nor does the head's. With
    `split_experts` a layer's experts may be on several devices.

    `staging`, where there is any: a GPU keeps a buffer of `staging[c]` bytes as long as it has attention of class c
    whose experts are on the CPU, the largest of those. `main`: a GPU that must hold something. With `one_run` the
    attention on a device is that of neighbouring layers: the token comes to each device once. With `robust` every
    device keeps room for deviations (`solver/deviations.py`). `shared` is memory of several devices: exact models count
    it, all others leave it out, which is a relaxation."""

    devices: tuple[str, ...]
    usable: tuple[int, ...]
    embedding: BlockCosts
    head: BlockCosts
    tied_bytes: int
    hop: tuple[tuple[int, ...], ...]
    classes: tuple[LayerClass, ...]
    layer_class: tuple[int, ...]
    whole_layers: bool
    bottleneck: bool
    tick_s: float
    rank: tuple[int, ...] | None = None
    head_in_order: bool = False
    split_experts: bool = False
    staging: tuple[int, ...] = ()
    main: int | None = None
    one_run: bool = False
    robust: Robust | None = None
    shared: tuple[Shared, ...] = ()

    @property
    def room(self) -> Room:
        return Room(self.usable, self.shared)

    @cached_property
    def class_sizes(self) -> tuple[int, ...]:
        return tuple(self.layer_class.count(c) for c in range(len(self.classes)))

    @cached_property
    def expert_kinds(self) -> tuple[ExpertKind, ...]:
        """Classes with equal experts together, as long as their attentions can be combined in few ways: a class more
        multiplies them by its layers and one."""
        together: list[list[int]] = []
        for c, kind in enumerate(self.classes):
            if kind.experts is None:
                continue
            alike = (many for many in together if self._may_join(c, many))
            many = next(alike, None)
            if many is None:
                together.append([c])
            else:
                many.append(c)
        return tuple(
            ExpertKind(experts, tuple(many), sum(self.class_sizes[c] for c in many))
            for many in together
            if (experts := self.classes[many[0]].experts) is not None
        )

    def _may_join(self, c: int, many: Sequence[int]) -> bool:
        same = self.classes[c].experts == self.classes[many[0]].experts
        staged = not self.staging or self.staging[c] == self.staging[many[0]]
        return same and staged and prod(self.class_sizes[k] + 1 for k in (*many, c)) <= MOST_TOGETHER

    def by_kind(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Numbers of layers by class as numbers by kind of experts."""
        return tuple(sum(numbers[c] for c in kind.classes) for kind in self.expert_kinds)

    @cached_property
    def cpu(self) -> int:
        return self.devices.index("cpu")

    @cached_property
    def twins(self) -> tuple[int, ...]:
        """For each device the first device that is interchangeable with it in every cost and permission."""
        return tuple(next(e for e in range(d + 1) if self._interchangeable(d, e)) for d in range(len(self.devices)))

    @cached_property
    def unordered(self) -> Problem | None:
        """The same without the target's order of devices; None where that tells no equal devices apart."""
        loose = replace(self, rank=None, head_in_order=False)
        return loose if self.head_in_order and len(set(loose.twins)) < len(set(self.twins)) else None

    def in_order(self, a: int, b: int) -> bool:
        """Whether attention may go on from device a to b."""
        return self.rank is None or self.rank[a] <= self.rank[b]

    def kind_buffer(self, k: int, a: int) -> int:
        """Bytes of the buffer that device a keeps if it has attention whose experts, of kind k, are on the CPU."""
        return self.buffer(self.expert_kinds[k].classes[0], a, self.cpu)

    def buffer(self, c: int, a: int, d: int | None) -> int:
        """Bytes of the buffer that device a keeps if it has attention of class c whose experts are on d."""
        return self.staging[c] if self.staging and d == self.cpu != a else 0

    def other_twin(self, d: int) -> int:
        """Another device interchangeable with d, or d itself where there is none."""
        return next((e for e, first in enumerate(self.twins) if first == self.twins[d] and e != d), d)

    def _interchangeable(self, d: int, e: int) -> bool:
        if d == e:
            return True
        if self.main in (d, e) or (self.staging and self.cpu in (d, e)):
            return False
        swap = {d: e, e: d}
        others = [swap.get(i, i) for i in range(len(self.devices))]
        blocks = [self.embedding, self.head, *(c.attention for c in self.classes)]
        experts = [c.experts for c in self.classes if c.experts is not None]
        vectors: list[Sequence[object]] = [self.room.each, *([self.rank] if self.rank else [])]
        vectors += [v for b in blocks for v in (b.bytes, b.ticks, b.allowed)]
        vectors += [v for x in experts for v in (x.bytes, x.busy, x.allowed)]
        matrices = [self.hop, *(x.ticks for x in experts)]
        return all(v[d] == v[e] for v in vectors) and all(
            m[i][j] == m[others[i]][others[j]] for m in matrices for i in (d, e) for j in range(len(others))
        )


def build_problem(
    costs: CostModel,
    *,
    objective: Objective,
    granularity: Granularity,
    allowed: Allowed,
    robust: Robust | None = None,
) -> Problem:
    """Weigh every step of the workload as `objective` says and round to ticks.

    Hops are rounded up, which keeps the triangle inequality; block times to the nearest tick.
    """
    names = tuple(costs.device)
    steps = objective_steps(costs, objective)
    seconds = _Seconds(costs, steps, names)
    tick, room = _tick_s(seconds, costs), Room.of(costs.hardware, costs.safety_margin)

    def ticks(values: Sequence[float]) -> tuple[int, ...]:
        return tuple(round(value / tick) for value in values)

    def deviation(found: Block) -> tuple[int, ...]:
        sizes = (costs.weight_bytes(found, d) for d in names)
        return () if robust is None else tuple(growth_bytes(n_bytes, robust.share) for n_bytes in sizes)

    def block(kind: str, layer: int) -> BlockCosts:
        found = costs.block(kind, layer)
        kv = costs.kv_bytes(layer) if kind == "attention" else 0
        return BlockCosts(
            bytes=tuple(costs.weight_bytes(found, d) + kv for d in names),
            workspace=costs.workspace_bytes(found),
            ticks=ticks(seconds.block(kind, layer)),
            allowed=allowed(kind, layer),
            deviation=deviation(found),
        )

    def experts(layer: int) -> ExpertsCosts | None:
        found = costs.layer(layer).experts
        if found is None:
            return None
        return ExpertsCosts(
            bytes=tuple(costs.weight_bytes(found, d) for d in names),
            workspace=costs.workspace_bytes(found),
            ticks=tuple(ticks(row) for row in seconds.experts(layer)),
            busy=ticks(seconds.block("experts", layer)),
            allowed=allowed("experts", layer),
            deviation=deviation(found),
        )

    keys: dict[tuple[object, ...], int] = {}
    classes: list[LayerClass] = []
    layer_class = []
    for layer, same in enumerate(costs.layer_class):
        key = (same, allowed("attention", layer), allowed("experts", layer))
        if key not in keys:
            kind = LayerClass(block("attention", layer), experts(layer))
            # Layers that differ in what no step of this workload sees are of one class too, unless single experts are
            # told apart.
            if kind not in classes or granularity == "expert":
                classes.append(kind)
            keys[key] = len(classes) - 1 if granularity == "expert" else classes.index(kind)
        layer_class.append(keys[key])
    return Problem(
        devices=names,
        usable=room.usable,
        shared=room.shared,
        embedding=block("embedding", 0),
        head=block("head", 0),
        tied_bytes=costs.profile.tied_bytes,
        hop=tuple(tuple(-int(-value // tick) for value in row) for row in seconds.hops()),
        classes=tuple(classes),
        layer_class=tuple(layer_class),
        whole_layers=granularity == "layer",
        bottleneck=objective == "throughput",
        tick_s=tick,
        rank=allowed.rank,
        one_run=allowed.rank is not None and len(set(allowed.rank)) == len(names),
        head_in_order=allowed.head_in_order,
        staging=_staging(costs, layer_class) if costs.target_memory.stages_experts else (),
        split_experts=granularity == "expert",
        robust=robust,
    )


def _staging(costs: CostModel, layer_class: Sequence[int]) -> tuple[int, ...]:
    """Bytes of the largest expert tensor of each class as the CPU stores it."""
    found = [costs.layer(layer_class.index(c)).experts for c in range(max(layer_class) + 1)]
    return tuple(0 if experts is None else largest_tensor_bytes(experts) for experts in found)


def objective_steps(costs: CostModel, objective: Objective) -> list[Step]:
    """The forward steps whose times add up to the objective."""
    decode = costs.decode_step()
    if objective == "prefill":
        return list(costs.prefill_steps())
    if objective == "request":
        generated = costs.workload.generated_tokens
        return [*costs.prefill_steps(), *([Step(decode.tokens, decode.context, generated)] if generated else [])]
    return [decode]


class _Seconds:
    """Seconds of each block summed over the steps of the objective, one number a device."""

    def __init__(self, costs: CostModel, steps: Sequence[Step], names: Sequence[str]) -> None:
        self._costs, self._steps, self._names = costs, steps, names

    def block(self, kind: str, layer: int) -> list[float]:
        costs, steps = self._costs, self._steps
        return [sum(s.times * costs.block_s(kind, layer, d, s) for s in steps) for d in self._names]

    def experts(self, layer: int) -> list[list[float]]:
        costs, steps, names = self._costs, self._steps, self._names
        return [[sum(s.times * costs.experts_from_s(layer, a, d, s) for s in steps) for d in names] for a in names]

    def hops(self) -> list[list[float]]:
        costs, steps, names = self._costs, self._steps, self._names
        return [[sum(s.times * costs.hop_s(a, b, s.tokens) for s in steps) for b in names] for a in names]


def _tick_s(seconds: _Seconds, costs: CostModel) -> float:
    """A tick such that the cheapest conceivable plan, every block on its best device, takes about TICKS of them.

    Coarser where the dearest plan would otherwise not fit CP-SAT's 64 bits, such as with a CPU of a few bytes/s.
    """
    blocks = [(1, seconds.block("embedding", 0)), (1, seconds.block("head", 0))]
    handovers = 0.0
    for layer, n in Counter(costs.layer_class).items():
        blocks.append((n, seconds.block("attention", layer)))
        if costs.layer(layer).experts is not None:
            blocks.append((n, seconds.block("experts", layer)))
            handovers += n * max(map(max, seconds.experts(layer)))
    cheapest = sum(n * min(block) for n, block in blocks)
    dearest = sum(n * max(block) for n, block in blocks) + handovers
    dearest += sum(n for n, _ in blocks) * max(map(max, seconds.hops()))
    return max(cheapest / TICKS, dearest * len(costs.device) ** 2 / MOST_TICKS, 1e-21)
