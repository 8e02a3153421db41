"""A plan with what it weighs: the free bytes of each device and its ticks, and both after a small change, quickly."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise

from solver.assignment import Assignment
from solver.column_generation.contents import Contents
from solver.problem import BlockCosts, Problem

Change = Mapping[int, int]
"""Blocks and the devices that they move to. `Scales` numbers blocks: embedding, head, attentions, then experts."""
NOWHERE = -1
"""The device of a dense layer's experts."""
EMBEDDING, HEAD, FIRST = 0, 1, 2


class Scales:
    """What the layouts of one problem are weighed with. `counted` are the devices that could hold something.

    `kind[block]` numbers kinds of blocks: embedding, head, attention by class, then experts by class. `stop[block]` is
    when a token comes there, for all but experts.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.n_layers, self.n_classes = len(problem.layer_class), len(problem.classes)
        layers = [FIRST + c for c in problem.layer_class]
        self.kind = [EMBEDDING, HEAD, *layers, *(k + self.n_classes for k in layers)]
        blocks = [problem.embedding, problem.head, *(kind.attention for kind in problem.classes)]
        self.blocks = [*blocks, *(kind.experts for kind in problem.classes)]
        self.counted = [d for d in range(len(problem.devices)) if self._could_hold_something(d)]
        self.stop = {EMBEDDING: 0, HEAD: self.n_layers + 1, **{FIRST + i: 1 + i for i in range(self.n_layers)}}
        self._used: dict[tuple[int, tuple[int, ...]], int] = {}

    def _could_hold_something(self, d: int) -> bool:
        usable = self.problem.usable[d]
        return any(b is not None and b.allowed[d] and b.bytes[d] + b.workspace <= usable for b in self.blocks)

    def allowed(self, block: int, d: int) -> bool:
        kind = self.blocks[self.kind[block]]
        return kind is not None and kind.allowed[d]

    def free(self, d: int, numbers: tuple[int, ...]) -> int:
        """Bytes left on d beside so many blocks of each kind, and so many layers of each class whose experts are on the
        CPU, for which there may be a buffer."""
        key = d, numbers
        if key not in self._used:
            n = self.n_classes
            attention, experts, sent = (numbers[FIRST + k * n : FIRST + (k + 1) * n] for k in range(3))
            staged = max((self.problem.staging[c] for c, number in enumerate(sent) if number), default=0)
            kinds = self.problem.by_kind(experts)
            held = Contents(attention, kinds, (0,) * len(kinds), numbers[EMBEDDING], numbers[HEAD], staged=staged)
            self._used[key] = held.bytes(self.problem, d)
        return self.problem.usable[d] - self._used[key]


class Layout:
    """A plan: `where[block]` is its device, `walk` the token's, and `numbers[d]` what d holds, as in `Scales.free`."""

    def __init__(self, scales: Scales, plan: Assignment) -> None:
        self.scales, self.plan = scales, plan
        experts = [NOWHERE if d is None else d for d in plan.experts]
        self.where = [plan.embedding, plan.head, *plan.attention, *experts]
        self.walk = [plan.embedding, *plan.attention, plan.head]
        self.numbers = [[0] * (FIRST + 3 * scales.n_classes) for _ in scales.problem.devices]
        for block, d in enumerate(self.where):
            if d != NOWHERE:
                self.numbers[d][scales.kind[block]] += 1
        for layer in range(scales.n_layers) if scales.problem.staging else ():
            kind = self._buffer_at(layer, {})
            if kind is not None:
                self.numbers[kind[0]][kind[1]] += 1
        self.free = [scales.free(d, tuple(numbers)) for d, numbers in enumerate(self.numbers)]
        self.fullest = min(scales.counted, key=lambda d: self.free[d], default=0)

    @property
    def smallest(self) -> int:
        """Bytes left on the fullest device."""
        return self.free[self.fullest]

    @cached_property
    def ticks(self) -> int:
        return self.plan.ticks(self.scales.problem)

    @cached_property
    def _busy(self) -> list[int]:
        return self.plan.busy(self.scales.problem)

    def attention(self, layer: int) -> int:
        return self.where[FIRST + layer]

    def experts(self, layer: int) -> int:
        return self.where[FIRST + self.scales.n_layers + layer]

    def changed(self, change: Change) -> Layout:
        where = self.where.copy()
        for block, d in change.items():
            where[block] = d
        stop = FIRST + self.scales.n_layers
        experts = tuple(None if d == NOWHERE else d for d in where[stop:])
        return Layout(self.scales, Assignment(where[EMBEDDING], where[HEAD], tuple(where[FIRST:stop]), experts))

    def may(self, change: Change, most_ticks: int) -> bool:
        """Whether the change keeps to the problem's rules and makes at most `most_ticks` ticks in all."""
        extra, free = self._extra_ticks(change), self._free_after(change)
        if extra is None or free is None:
            return False
        return self.ticks + extra <= most_ticks and min(free.values(), default=0) >= 0

    def price(self, change: Change, most_ticks: int) -> tuple[float, int, int] | None:
        """What relief costs: ticks a byte, ticks, and the bytes below 0. None where the change leaves the sorted list
        of free bytes no larger, makes more than `most_ticks` ticks in all, or breaks the problem's rules."""
        extra = self._extra_ticks(change)
        if extra is None or self.ticks + extra > most_ticks:
            return None
        free = self._free_after(change)
        if free is None:
            return None
        before, after = sorted(self.free[d] for d in free), sorted(free.values())
        if after <= before:
            return None
        gain = max(1, after[0] - before[0])
        return max(0, extra) / gain, extra, -gain

    def _buffer_at(self, layer: int, change: Change) -> tuple[int, int] | None:
        """The device and kind of a layer for whose experts on the CPU there may be a buffer."""
        scales, block = self.scales, FIRST + layer
        other = block + scales.n_layers
        a, d = change.get(block, self.where[block]), change.get(other, self.where[other])
        apart = d == scales.problem.cpu != a
        return (a, FIRST + 2 * scales.n_classes + scales.problem.layer_class[layer]) if apart else None

    def _free_after(self, change: Change) -> dict[int, int] | None:
        """Free bytes of the devices that the change touches; None where it leaves one empty that must not be."""
        scales, problem = self.scales, self.scales.problem
        numbers: dict[int, list[int]] = {}

        def count(d: int, kind: int, by: int) -> None:
            if d not in numbers:
                numbers[d] = self.numbers[d].copy()
            numbers[d][kind] += by

        for block, d in change.items():
            count(self.where[block], scales.kind[block], -1)
            count(d, scales.kind[block], 1)
        for layer in self._layers(change) if problem.staging else ():
            for found, by in ((self._buffer_at(layer, {}), -1), (self._buffer_at(layer, change), 1)):
                if found is not None:
                    count(*found, by)
        if problem.main in numbers and not any(numbers[problem.main]):
            return None
        return {d: scales.free(d, tuple(held)) for d, held in numbers.items()}

    def _layers(self, change: Change) -> set[int]:
        return {(block - FIRST) % self.scales.n_layers for block in change if block >= FIRST}

    def _extra_ticks(self, change: Change) -> int | None:
        """Ticks that the change adds; None where a block may not go there, or attention would not be in order."""
        scales = self.scales
        for block, d in change.items():
            if not scales.allowed(block, d):
                return None
        moved = {scales.stop[block]: d for block, d in change.items() if block in scales.stop}
        if not self._in_order(moved):
            return None
        if scales.problem.bottleneck:
            return self._busiest_after(change) - self.ticks
        extra = self._extra_hops(moved)
        for block in (EMBEDDING, HEAD):
            if block in change:
                end = scales.problem.head if block == HEAD else scales.problem.embedding
                extra += end.ticks[change[block]] - end.ticks[self.where[block]]
        for layer in self._layers(change):
            extra += self._layer_ticks(layer, change) - self._layer_ticks(layer, {})
        return extra

    def _extra_hops(self, moved: Mapping[int, int]) -> int:
        hop, walk, extra = self.scales.problem.hop, self.walk, 0
        for stop, d in moved.items():
            if stop > 0:
                before = walk[stop - 1]
                extra += hop[moved.get(stop - 1, before)][d] - hop[before][walk[stop]]
            if stop + 1 < len(walk) and stop + 1 not in moved:
                after = walk[stop + 1]
                extra += hop[d][after] - hop[walk[stop]][after]
        return extra

    def _layer_ticks(self, layer: int, change: Change) -> int:
        problem, block = self.scales.problem, FIRST + layer
        kind, other = problem.classes[problem.layer_class[layer]], block + self.scales.n_layers
        a = change.get(block, self.where[block])
        if kind.experts is None:
            return kind.attention.ticks[a]
        return kind.attention.ticks[a] + kind.experts.ticks[a][change.get(other, self.where[other])]

    def _busiest_after(self, change: Change) -> int:
        busy = self._busy.copy()
        for block, d in change.items():
            kind = self.scales.blocks[self.scales.kind[block]]
            assert kind is not None
            ticks = kind.ticks if isinstance(kind, BlockCosts) else kind.busy
            busy[self.where[block]] -= ticks[self.where[block]]
            busy[d] += ticks[d]
        return max(busy)

    def _in_order(self, moved: Mapping[int, int]) -> bool:
        problem = self.scales.problem
        if problem.rank is None:
            return True
        walk = [moved.get(stop, d) for stop, d in enumerate(self.walk)]
        return all(problem.in_order(a, b) for a, b in pairwise(walk[1:] if problem.head_in_order else walk[1:-1]))
