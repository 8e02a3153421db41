"""The best contents of a card where classes of layers take turns, so that what a card holds decides how often it is
visited (`solver/windows.py`): every number of attentions that one or two windows make up is looked at by itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from solver.contents import Contents, Integers, Knapsack, Prices
from solver.deviations import nominal
from solver.problem import ExpertsCosts, Problem
from solver.windows import Windows

MOST_CELLS = 3_000_000
"""Combinations of attentions and experts beyond which contents are not looked at one by one."""


class InterleavedKnapsack:
    """As `Knapsack`, with the visits that contents need."""

    def __init__(self, problem: Problem, device: int, windows: Windows) -> None:
        self.problem, self.device, self.windows = problem, device, windows
        self._rest = Knapsack(problem, device)
        self._experts: list[tuple[int, ExpertsCosts, int]] = []
        for c, kind in enumerate(problem.classes):
            if kind.experts is not None and kind.experts.allowed[device]:
                most = _that_fit(problem.usable[device], kind.experts.bytes[device], problem.class_sizes[c])
                self._experts.append((c, kind.experts, most))
        self._experts.sort(key=lambda item: item[2])
        self._sets = [(1, self._fitting(windows.one))]
        if not problem.one_run and windows.two is not None:
            self._sets.append((2, self._fitting(windows.two)))
        self._nominal = [self]
        if problem.robust is not None:
            self._nominal = [InterleavedKnapsack(one, device, windows) for one in nominal(problem, device)]

    @staticmethod
    def suits(problem: Problem, device: int, windows: Windows) -> bool:
        """Whether looking at contents one by one is worth it, and not too much."""
        if not windows.matter or problem.whole_layers or problem.devices[device] == "cpu":
            return False
        kinds = [kind.experts for kind in problem.classes if kind.experts is not None]
        numbers = sorted(problem.usable[device] // max(1, x.bytes[device]) + 1 for x in kinds)
        two = None if problem.one_run else windows.two
        vectors = len(windows.one) + (0 if two is None else len(two))
        return len(kinds) <= 3 and vectors * float(np.prod([min(n, 60.0) for n in numbers[:-1]])) <= MOST_CELLS

    def _fitting(self, vectors: Integers) -> Integers:
        """Those of `vectors` that the device may hold and has room for."""
        kinds = [kind.attention for kind in self.problem.classes]
        allowed = np.array([kind.allowed[self.device] for kind in kinds])
        n_bytes = vectors @ np.array([kind.bytes[self.device] for kind in kinds])
        fits = (n_bytes <= self.problem.usable[self.device]) & np.all((vectors == 0) | allowed, axis=1)
        return np.asarray(vectors[fits])

    def best(self, prices: Prices) -> tuple[int, Contents]:
        """The most that contents can earn, and contents that do."""
        # What no windows of the sets make up needs one visit more, or cannot be: then a card without attention is left.
        highest = 0 if self.problem.one_run else self._sets[-1][0] + 1
        best = self._rest.best(prices, highest)
        for one in self._nominal:
            for visits, vectors in one._sets:
                if len(vectors):
                    best = max(best, one._of(vectors, visits, prices), key=lambda found: found[0])
        value, contents = best
        visits = self.windows.visits(contents.attention)
        if visits == contents.visits:
            return best
        return value, replace(contents, visits=visits)

    def quick(self, prices: Prices) -> Contents:
        """Good contents, with the visits they need."""
        found = self._rest.quick(prices)
        return replace(found, visits=self.windows.visits(found.attention))

    def _of(self, vectors: Integers, visits: int, prices: Prices) -> tuple[int, Contents]:
        """The best contents whose attentions are a row of `vectors`."""
        problem, d = self.problem, self.device
        kinds = problem.classes
        weights = np.array([kind.attention.bytes[d] for kind in kinds])
        needs = np.array([kind.attention.workspace for kind in kinds])
        room = problem.usable[d] - vectors @ weights
        workspace = np.max(np.where(vectors > 0, needs, 0), axis=1)
        sent = np.array([0 if kind.experts is None else prices.sent[c] for c, kind in enumerate(kinds)])
        alone = vectors @ (np.array(prices.attention) + sent)
        experts_need = min((x.workspace for _, x, _ in self._experts), default=0)
        best: tuple[int, Contents] | None = None
        for embedding, head in product(range(1 + (prices.embedding > 0)), range(1 + (prices.head > 0))):
            ends = [(block, n) for block, n in ((problem.embedding, embedding), (problem.head, head)) if n]
            if not all(block.allowed[d] for block, _ in ends):
                continue
            taken = sum(block.bytes[d] for block, _ in ends) - problem.tied_bytes * embedding * head
            need = max((block.workspace for block, _ in ends), default=0)
            gain = embedding * prices.embedding + head * prices.head + prices.used + visits * prices.visit
            for with_experts in (False, True) if self._experts else (False,):
                left = room - taken - np.maximum(workspace, max(need, experts_need if with_experts else 0))
                rows = np.flatnonzero(left >= 0)
                if not len(rows):
                    continue
                if with_experts:
                    more, row, held = self._with_experts(vectors[rows], left[rows], alone[rows], prices)
                else:
                    row = int(np.argmax(alone[rows]))
                    more, held = int(alone[rows][row]), {}
                if best is None or more + gain > best[0]:
                    best = more + gain, self._contents(vectors[rows[row]], held, prices, embedding, head, visits)
        return best or (-(2**62), Contents((0,) * len(kinds), (0,) * len(kinds), (0,) * len(kinds)))

    def _with_experts(
        self, vectors: Integers, left: Integers, alone: Integers, prices: Prices
    ) -> tuple[int, int, dict[int, int]]:
        """The best value, its row, and the experts by class; the last class takes what room is left."""
        *outer, (last, x_last, most_last) = self._experts
        table = self._table(last, most_last, prices)
        best: tuple[int, int, dict[int, int]] | None = None
        ranges = [range(_that_fit(int(left.max()), x.bytes[self.device], most) + 1) for _, x, most in outer]
        inner = np.arange(len(ranges[-1])) if outer else np.zeros(1, np.int64)
        tables = [self._gains(c, most, prices) for c, _, most in outer]
        for fixed in product(*ranges[:-1]) if outer else [()]:
            value, room = alone[:, None], left[:, None]
            for (c, x, _), gains, h in zip(outer, tables, fixed, strict=False):
                value = value + gains[vectors[:, c], h][:, None]
                room = room - h * x.bytes[self.device]
            if outer:
                c, x, _ = outer[-1]
                value = value + tables[-1][vectors[:, c]][:, inner]
                room = room - inner[None, :] * x.bytes[self.device]
            n_bytes = x_last.bytes[self.device]
            most = np.minimum(np.maximum(room, 0) // n_bytes, most_last) if n_bytes else np.full(room.shape, most_last)
            value = np.where(room >= 0, value + table[vectors[:, last][:, None], most], -(2**62))
            flat = int(np.argmax(value))
            row, col = divmod(flat, value.shape[1])
            if best is None or value[row, col] > best[0]:
                held = {c: h for (c, _, _), h in zip(outer, fixed, strict=False)}
                if outer:
                    held[outer[-1][0]] = int(inner[col])
                gains = self._gains(last, most_last, prices)[vectors[row, last]]
                held[last] = int(np.argmax(gains[: int(most[row, col]) + 1]))
                best = int(value[row, col]), row, held
        assert best is not None
        return best

    def _gains(self, c: int, most: int, prices: Prices) -> NDArray[np.int64]:
        """What h experts beside a attentions of class c earn, over that the attentions are alone: rows a, columns h."""
        a, h = np.mgrid[: self.problem.class_sizes[c] + 1, : most + 1]
        together = max(0, prices.local[c] - prices.sent[c] - prices.taken[c])
        return np.asarray(prices.taken[c] * h + together * np.minimum(a, h))

    def _table(self, c: int, most: int, prices: Prices) -> NDArray[np.int64]:
        """As `_gains`, of at most h experts."""
        return np.maximum.accumulate(self._gains(c, most, prices), axis=1)

    def _contents(
        self, vector: Integers, held: dict[int, int], prices: Prices, embedding: int, head: int, visits: int
    ) -> Contents:
        attention = tuple(map(int, vector))
        experts = tuple(held.get(c, 0) for c in range(len(attention)))
        local = tuple(
            min(a, h) if prices.together(c) else 0 for c, (a, h) in enumerate(zip(attention, experts, strict=True))
        )
        return Contents(attention, experts, local, embedding, head, visits)


def _that_fit(room: int, n_bytes: int, most: int) -> int:
    """So many of `most` blocks of `n_bytes` each."""
    return min(most, room // n_bytes) if n_bytes else most
