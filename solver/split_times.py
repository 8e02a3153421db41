"""Seconds of one layer for any split of its experts, as an objective counts them, and remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cost_models import CostModel, Step
from cost_models.experts import distinct_experts
from cost_models.splits import MEANS_FROM_TOKENS, mean_of_slowest_times
from profiles.model import Experts
from solver.problem import Problem

Counts = tuple[int, ...]
"""Experts of a layer on each device of the problem."""


class SplitTimes:
    """`seconds(c, a, counts)`: a layer of class c with its attention on a and `counts[d]` experts on each device.

    The most used experts are with the attention, the next on other GPUs in the problem's order, the least used on the
    CPU. Interchangeable devices make equal splits, which are computed once.
    """

    def __init__(self, problem: Problem, costs: CostModel, steps: Sequence[Step]) -> None:
        self.problem, self.costs, self.steps = problem, costs, steps
        self.cpu = problem.devices.index("cpu")
        self._known: dict[tuple[object, ...], float] = {}
        self._hits: dict[tuple[int, int, int, int], NDArray[np.float64]] = {}
        self._order: dict[int, tuple[int, ...]] = {}
        self._layer = {c: problem.layer_class.index(c) for c in range(len(problem.classes))}

    def experts(self, c: int) -> Experts:
        found = self.costs.layer(self._layer[c]).experts
        assert found is not None
        return found

    def ids(self, c: int, a: int, counts: Counts) -> Mapping[int, tuple[int, ...]]:
        """Which experts each device holds."""
        if c not in self._order:
            use = self.experts(c).frequencies or (0.0,) * self.experts(c).count
            self._order[c] = tuple(sorted(range(len(use)), key=lambda i: (-use[i], i)))
        order, at, held = self._order[c], 0, {}
        devices = sorted(range(len(counts)), key=lambda d: (d == self.cpu, d != a, d))
        if a == self.cpu:
            devices.insert(0, devices.pop())
        for d in devices:
            if counts[d]:
                held[d] = tuple(sorted(order[at : at + counts[d]]))
                at += counts[d]
        return held

    def seconds(self, c: int, a: int, counts: Counts) -> float:
        twins = self.problem.twins
        guests = tuple(sorted((twins[d], n) for d, n in enumerate(counts) if n and d not in (a, self.cpu)))
        key: tuple[object, ...] = (
            self.costs.layer_class[self._layer[c]],
            twins[a],
            counts[a],
            counts[self.cpu],
            guests,
        )
        if self.experts(c).frequencies is not None or self.experts(c).expert_weight_bytes is not None:
            key = (*key, a, counts)
        if key not in self._known:
            held = self.ids(c, a, counts)
            self._known[key] = sum(step.times * self._of_step(c, a, held, step) for step in self.steps)
        return self._known[key]

    def _of_step(self, c: int, a: int, held: Mapping[int, tuple[int, ...]], step: Step) -> float:
        experts, tokens = self.experts(c), step.tokens * self.costs.workload.batch_size
        if experts.expert_weight_bytes is not None:
            names = {self.problem.devices[d]: part for d, part in held.items()}
            return self.costs.split_experts_s(self._layer[c], self.problem.devices[a], names, step)
        if tokens >= MEANS_FROM_TOKENS:
            return max(self._at(c, a, d, distinct_experts(experts, tokens, part), step) for d, part in held.items())
        one_draw = tokens == 1 and experts.frequencies is None
        times = [
            self._table(c, a, d, step)[: (min(len(part), experts.active) if one_draw else len(part)) + 1]
            for d, part in held.items()
        ]
        return mean_of_slowest_times(experts, list(held.values()), times, tokens)

    def _table(self, c: int, a: int, d: int, step: Step) -> NDArray[np.float64]:
        key = (c, a, d, step.tokens)
        if key not in self._hits:
            one_draw = step.tokens * self.costs.workload.batch_size == 1 and self.experts(c).frequencies is None
            most = self.experts(c).active if one_draw else self.experts(c).count
            self._hits[key] = np.array([0.0, *(self._at(c, a, d, h, step) for h in range(1, most + 1))])
        return self._hits[key]

    def _at(self, c: int, a: int, d: int, hits: float, step: Step) -> float:
        if hits <= 0:
            return 0.0
        return self.costs.hits_s(self._layer[c], self.problem.devices[a], self.problem.devices[d], hits, step)
