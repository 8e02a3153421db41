"""Seconds and bytes of split layers, class by class, as seen from each group of equal devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cost_models import CostModel, Step
from cost_models.split_tables import split_table
from solver.problem import Problem

Floats = NDArray[np.float64]
GB = 1e9


@dataclass(frozen=True)
class LayerCosts:
    """One class of layers seen from one group: bytes of attention, least bytes of k experts, seconds of every split."""

    attention_bytes: float
    attention_s: float
    own_bytes: Floats
    guest_bytes: Floats
    cpu_bytes: Floats
    seconds: Floats

    @property
    def count(self) -> int:
        return len(self.seconds) - 1

    @cached_property
    def dearest_s(self) -> float:
        return self.attention_s + float(self.seconds[np.isfinite(self.seconds)].max(initial=0.0))

    @cached_property
    def _rest(self) -> NDArray[np.intp]:
        e, n = np.indices(self.seconds.shape)
        return np.maximum(0, self.count - e - n)

    def cheapest(self, own: float, away: float, lent: float, *, own_too: bool) -> tuple[float, int, int]:
        """The split (e, n) that is cheapest at prices a GB beside the attention, on the CPU and on other GPUs."""
        rows = len(self.seconds) if own_too else 1
        value = self.seconds[:rows] + (self.cpu_bytes / GB * away)[None, :]
        value += (self.own_bytes[:rows] / GB * own)[:, None]
        value += (self.guest_bytes / GB * lent)[self._rest[:rows]]
        at = int(np.argmin(value))
        e, n = divmod(at, value.shape[1])
        return float(value.flat[at]), e, n


def alike_experts(problem: Problem, costs: CostModel) -> list[int]:
    """For each class the first one with equal experts, whatever its attention."""
    found = [costs.layer(problem.layer_class.index(c)).experts for c in range(len(problem.classes))]
    return [found.index(experts) for experts in found]


class SplitTables:
    """Seconds and bytes of all classes of a problem, by class and group of equal devices."""

    def __init__(self, problem: Problem, costs: CostModel, steps: Sequence[Step]) -> None:
        self.problem, self.costs, self.steps = problem, costs, steps
        self.groups = {first: problem.twins.count(first) for first in dict.fromkeys(problem.twins)}
        self.cpu = problem.devices.index("cpu")
        self._seconds: dict[tuple[int, int, tuple[bool, ...]], Floats] = {}
        self.kinds = {
            (c, g): self._kind(c, g)
            for c, kind in enumerate(problem.classes)
            for g in self.groups
            if kind.attention.allowed[g]
        }

    # ---- seconds ----

    def layer_of(self, c: int) -> int:
        """Some layer of class c."""
        return self.problem.layer_class.index(c)

    def _kind(self, c: int, g: int) -> LayerCosts:
        problem, attention = self.problem, self.problem.classes[c].attention
        seconds, zero = attention.ticks[g] * problem.tick_s, np.zeros(1)
        if problem.classes[c].experts is None:
            return LayerCosts(attention.bytes[g], seconds, zero, zero, zero, np.zeros((1, 1)))
        gpu = next((d for d in self.groups if d != self.cpu), self.cpu)
        sizes = (self._least_bytes(c, d) for d in (g, gpu, self.cpu))
        return LayerCosts(attention.bytes[g], seconds, *sizes, self._table(c, g))

    def _table(self, c: int, g: int) -> Floats:
        experts = self.problem.classes[c].experts
        assert experts is not None
        layer = self.layer_of(c)
        key = (alike_experts(self.problem, self.costs)[c], g, experts.allowed)
        if key not in self._seconds:
            names, twins = self.problem.devices, self.problem.twins
            others = [d for d in range(len(names)) if d not in (g, self.cpu) and experts.allowed[d]]
            guests = [names[twins[d] if twins[d] != g else self.problem.other_twin(g)] for d in others]
            table = split_table(self.costs, layer, names[g], guests, self.steps).seconds
            if not experts.allowed[g]:
                table[1:, :] = np.inf
            if not experts.allowed[self.cpu]:
                table[:, 1:] = np.inf
            self._seconds[key] = table
        return self._seconds[key]

    # ---- bytes ----

    def _least_bytes(self, c: int, d: int) -> Floats:
        """At least the bytes of any k experts of class c on d."""
        experts = self.costs.layer(self.layer_of(c)).experts
        assert experts is not None
        stored = experts.weight_bytes.on(self.costs.device[self.problem.devices[d]].kind)
        if experts.expert_weight_bytes is None:
            return stored * np.arange(experts.count + 1) / experts.count
        sizes = np.sort(np.array(experts.expert_weight_bytes, dtype=float)) * stored / max(1, experts.weight_bytes.gpu)
        return np.concatenate(([0.0], np.cumsum(sizes)))

    def room(self, g: int, attention: bool = False, experts: bool = False, *, any_block: bool = False) -> float:
        """GB for blocks on a card of group g that has attention, experts or both, or any of them; at least what is left
        beside their workspace."""
        runs = [kind.attention.workspace for kind in self.problem.classes if kind.attention.allowed[g]]
        holds = [k.experts.workspace for k in self.problem.classes if k.experts is not None and k.experts.allowed[g]]
        if any_block:
            need = min([*runs, *holds], default=0)
        else:
            need = max(min(runs, default=0) if attention else 0, min(holds, default=0) if experts else 0)
        return max(0.0, (self.problem.usable[g] - need) / GB)

    def whole(self, room: float) -> float:
        """GB of whole experts within `room`, where all are of one size."""
        if self._one_size is None:
            return room
        return np.floor(room / self._one_size + 1e-9) * self._one_size

    @cached_property
    def _one_size(self) -> float | None:
        """GB of an expert on a GPU, if all take the same."""
        found = [self.costs.layer(self.layer_of(c)).experts for c in range(len(self.problem.classes))]
        sizes = {x.weight_bytes.gpu / x.count for x in found if x is not None and x.expert_weight_bytes is None}
        alike = all(x.expert_weight_bytes is None for x in found if x is not None)
        return sizes.pop() / GB if alike and len(sizes) == 1 else None
