"""Seconds of one layer for any split of its experts, as an objective counts them, and remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cost_models import CostModel, Step
from cost_models.slowest import SlowestPart
from profiles.model import Experts
from solver.problem import Problem
from solver.split.tables import alike_experts, hits_s

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
        self._asked: dict[tuple[int, int, Counts], float] = {}
        self._known: dict[tuple[object, ...], float] = {}
        self._slowest: dict[tuple[int, int], list[SlowestPart]] = {}
        self._order: dict[int, tuple[int, ...]] = {}
        self._layer = {c: problem.layer_class.index(c) for c in range(len(problem.classes))}
        self._alike = alike_experts(problem, costs)

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
        if (c, a, counts) not in self._asked:
            self._asked[c, a, counts] = self._seconds(c, a, counts)
        return self._asked[c, a, counts]

    def _seconds(self, c: int, a: int, counts: Counts) -> float:
        twins = self.problem.twins
        guests = tuple(sorted((twins[d], n) for d, n in enumerate(counts) if n and d not in (a, self.cpu)))
        key: tuple[object, ...] = (self._alike[c], twins[a], counts[a], counts[self.cpu], guests)
        alike = self.experts(c).frequencies is None and self.experts(c).expert_weight_bytes is None
        if not alike:
            key = (*key, a, counts)
        if key not in self._known:
            self._known[key] = self._alike_s(c, a, counts) if alike else self._unlike_s(c, a, counts)
        return self._known[key]

    def _unlike_s(self, c: int, a: int, counts: Counts) -> float:
        layer, names = self._layer[c], self.problem.devices
        held = {names[d]: part for d, part in self.ids(c, a, counts).items()}
        return sum(s.times * self.costs.split_experts_s(layer, names[a], held, s) for s in self.steps)

    def _alike_s(self, c: int, a: int, counts: Counts) -> float:
        """As seen from the first of the attention's twins."""
        first = self.problem.twins[a]
        if first != a:
            counts = tuple(counts[{a: first, first: a}.get(d, d)] for d in range(len(counts)))
        return sum(
            step.times * part.mean(counts) for step, part in zip(self.steps, self.slowest(c, first), strict=True)
        )

    def slowest(self, c: int, a: int) -> list[SlowestPart]:
        """For each step: what a split of class c costs, seen from device a."""
        key = (self._alike[c], a)
        if key not in self._slowest:
            tokens = [step.tokens * self.costs.workload.batch_size for step in self.steps]
            self._slowest[key] = [
                SlowestPart(self.experts(c), n, self._hits_s(c, a, step))
                for n, step in zip(tokens, self.steps, strict=True)
            ]
        return self._slowest[key]

    def _hits_s(self, c: int, a: int, step: Step) -> list[NDArray[np.float64]]:
        """For each device what hits take there: twins share an array."""
        found: dict[tuple[int, bool], NDArray[np.float64]] = {}
        for d, twin in enumerate(self.problem.twins):
            if (twin, d == a) not in found:
                found[twin, d == a] = hits_s(self.problem, self.costs, c, a, d, step)
        return [found[twin, d == a] for d, twin in enumerate(self.problem.twins)]
