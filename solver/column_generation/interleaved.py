"""The best contents of a card where classes of layers take turns, so that what a card holds decides how often it is
visited (`Windows`): all numbers of attentions whose visits are known are looked at one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from solver.column_generation.contents import Contents, Integers, Knapsack, Prices
from solver.column_generation.windows import NEVER, Windows
from solver.deviations import nominal
from solver.problem import ExpertsCosts, Problem

MOST_CELLS = 3_000_000
"""Combinations of attentions and experts beyond which contents are not looked at one by one."""

FIRST_ROWS = 50
"""So many rows are looked at in full first, for others to be measured against."""


class InterleavedKnapsack:
    """As `Knapsack`, with the visits that contents need."""

    def __init__(self, problem: Problem, device: int, windows: Windows) -> None:
        self.problem, self.device, self.windows = problem, device, windows
        self._rest = Knapsack(problem, device)
        self._experts: list[tuple[int, ExpertsCosts, int]] = []
        for k, kind in enumerate(problem.expert_kinds):
            if kind.experts.allowed[device]:
                most = _that_fit(problem.usable[device], kind.experts.bytes[device], kind.number)
                self._experts.append((k, kind.experts, most))
        self._experts.sort(key=lambda item: item[2])
        vectors, visits = windows.listed
        rows = self._fitting(vectors, visits)
        self.vectors, self.visits = vectors[rows], visits[rows]
        # What the walk's beginning, its end, and both on this card make of the visits.
        self.more = windows.ends[rows] - self.visits[:, None]
        self.own = np.array(self.vectors) @ _membership(problem)
        self._grids: dict[tuple[int, int], tuple[Integers, Integers]] = {}
        self._nominal = [self]
        if problem.robust is not None:
            self._nominal = [InterleavedKnapsack(one, device, windows) for one in nominal(problem, device)]

    @staticmethod
    def suits(problem: Problem, device: int, windows: Windows) -> bool:
        """Whether looking at contents one by one is worth it, and not too much."""
        if not windows.matter or problem.whole_layers or problem.devices[device] == "cpu":
            return False
        numbers = sorted(
            _that_fit(problem.usable[device], kind.experts.bytes[device], kind.number) + 1
            for kind in problem.expert_kinds
        )
        return (
            len(numbers) <= 3
            and len(windows.listed[0]) * float(np.prod([min(n, 60.0) for n in numbers[:-1]])) <= MOST_CELLS
        )

    def _fitting(self, vectors: Integers, visits: Integers) -> Integers:
        """Rows of `vectors` that the device may hold and has room for."""
        kinds = [kind.attention for kind in self.problem.classes]
        allowed = np.array([kind.allowed[self.device] for kind in kinds])
        n_bytes = vectors @ np.array([kind.bytes[self.device] for kind in kinds])
        fits = (n_bytes <= self.problem.usable[self.device]) & np.all((vectors == 0) | allowed, axis=1)
        if self.problem.one_run:
            fits &= visits == 1
        return np.flatnonzero(fits)

    def best(self, prices: Prices) -> tuple[int, Contents]:
        """The most that contents can earn, and contents that do."""
        # What is not listed needs more visits, or cannot be: then a card without attention is left.
        best = self._rest.best(prices, 0 if self.problem.one_run else self.windows.beyond)
        for one in self._nominal:
            if len(one.vectors):
                best = max(best, one._best(prices), key=lambda found: found[0])
        value, contents = best
        visits = self.windows.visits(contents.attention, bool(contents.first), bool(contents.last))
        return value, replace(contents, visits=visits)

    def quick(self, prices: Prices) -> Contents:
        """Good contents, with the visits they need."""
        found = self._rest.quick(prices)
        visits = self.windows.visits(found.attention, bool(found.first), bool(found.last))
        if visits >= NEVER:
            found = replace(found, first=0, last=0)
            visits = self.windows.visits(found.attention)
        return replace(found, visits=visits)

    def _best(self, prices: Prices) -> tuple[int, Contents]:
        """The best contents whose attentions are listed."""
        problem, d = self.problem, self.device
        kinds = problem.classes
        weights = np.array([kind.attention.bytes[d] for kind in kinds])
        needs = np.array([kind.attention.workspace for kind in kinds])
        room = problem.usable[d] - self.vectors @ weights
        workspace = np.max(np.where(self.vectors > 0, needs, 0), axis=1)
        alone = self.vectors @ np.array(prices.attention) + self.own @ np.array(prices.sent, dtype=np.int64)
        alone = alone + prices.used + self.visits * prices.visit
        for c, least, price in prices.attention_steps:
            alone = alone + price * (self.vectors[:, c] >= least)
        experts_need = min((x.workspace for _, x, _ in self._experts), default=0)
        best: tuple[int, Contents] | None = None
        paid = (prices.embedding + prices.first > 0, prices.head + prices.last > 0)
        for embedding, head in product(range(1 + paid[0]), range(1 + paid[1])):
            ends = [(block, n) for block, n in ((problem.embedding, embedding), (problem.head, head)) if n]
            if not all(block.allowed[d] for block, _ in ends):
                continue
            taken = sum(block.bytes[d] for block, _ in ends) - problem.tied_bytes * embedding * head
            need = max((block.workspace for block, _ in ends), default=0)
            gain = embedding * prices.embedding + head * prices.head
            bonus, flags = self._at_ends(prices, embedding, head)
            worth = alone + bonus
            for with_experts in (False, True) if self._experts else (False,):
                left = room - taken - np.maximum(workspace, max(need, experts_need if with_experts else 0))
                rows = np.flatnonzero(left >= 0)
                if not len(rows):
                    continue
                if with_experts:
                    rows = self._promising(rows, left, worth, prices, -(2**62) if best is None else best[0] - gain)
                    if not len(rows):
                        continue
                    more, row, held = self._with_experts(self.own[rows], left[rows], worth[rows], prices)
                else:
                    row = int(np.argmax(worth[rows]))
                    more, held = int(worth[rows][row]), {}
                if best is None or more + gain > best[0]:
                    ends_here = int(flags[rows[row]])
                    found = self._contents(int(rows[row]), held, prices, embedding, head)
                    best = more + gain, replace(found, first=ends_here & 1, last=ends_here >> 1)
        nothing = (0,) * len(problem.expert_kinds)
        return best or (-(2**62), Contents((0,) * len(kinds), nothing, nothing))

    def _at_ends(self, prices: Prices, embedding: int, head: int) -> tuple[Integers, Integers]:
        """What each row earns more as the walk's beginning (1), its end (2) or both (3), whatever pays best, and which;
        0 for neither."""
        earned = [np.zeros(len(self.vectors), np.int64)]
        which = [0]
        for first, last in ((1, 0), (0, 1), (1, 1)):
            if first <= embedding and last <= head:
                more = self.more[:, (first + 2 * last) - 1]
                paid = first * prices.first + last * prices.last + prices.visit * more
                never = more > 0 if self.problem.one_run else more >= NEVER // 2
                earned.append(np.where(never, -(2**62), paid))
                which.append(first + 2 * last)
        best = np.argmax(np.array(earned), axis=0)
        return np.max(np.array(earned), axis=0), np.array(which)[best]

    def _promising(self, rows: Integers, left: Integers, alone: Integers, prices: Prices, known: int) -> Integers:
        """Rows without those that cannot be best, nor better than what is `known`, whatever experts they get: not with
        fractions of them either."""
        if len(rows) <= 2 * FIRST_ROWS:
            return rows
        most = alone[rows] + self._most_gained(self.own[rows], left[rows], prices)
        rows, most = rows[most > known], most[most > known]
        if len(rows) <= 2 * FIRST_ROWS:
            return rows
        first = rows[np.argpartition(most, len(rows) - FIRST_ROWS)[-FIRST_ROWS:]]
        least, _, _ = self._with_experts(self.own[first], left[first], alone[first], prices)
        return np.asarray(rows[most >= least])

    def _most_gained(self, own: Integers, left: Integers, prices: Prices) -> NDArray[np.float64]:
        """More than experts in so many bytes can earn beside their `own` attentions: fractions of the best first."""
        offers: list[tuple[int, float, int, Integers]] = []
        for k, x, most in self._experts:
            guest = prices.taken[k]
            local = guest + max(0, prices.local[k] - prices.sent[k] - guest)
            n_bytes = x.bytes[self.device]
            rate = 1 / n_bytes if n_bytes else math.inf
            beside = np.minimum(own[:, k], most)
            offers += [(local, local * rate, n_bytes, beside), (guest, guest * rate, n_bytes, most - beside)]
        gained = np.full(len(left), 1.0)
        for k, x, most in self._experts:
            steps = np.zeros(most + 1)
            for of, least, price in prices.experts_steps:
                steps[least:] += price * (of == k)
            if steps.any():
                n_bytes = x.bytes[self.device]
                fits = np.minimum(left // n_bytes, most) if n_bytes else np.full(len(left), most)
                gained += np.maximum.accumulate(steps)[fits]
        room = left.astype(np.float64)
        for value, _, n_bytes, limit in sorted((one for one in offers if one[0] > 0), key=lambda one: -one[1]):
            n = np.minimum(limit, room / n_bytes) if n_bytes else limit
            gained += n * value
            room -= n * n_bytes
        return gained

    def _with_experts(
        self, own: Integers, left: Integers, alone: Integers, prices: Prices
    ) -> tuple[int, int, dict[int, int]]:
        """The best value, its row, and the experts by kind; the last kind takes what room is left."""
        *outer, (last, x_last, most_last) = self._experts
        table = self._table(last, most_last, prices)
        best: tuple[int, int, dict[int, int]] | None = None
        ranges = [range(_that_fit(int(left.max()), x.bytes[self.device], most) + 1) for _, x, most in outer]
        inner = np.arange(len(ranges[-1])) if outer else np.zeros(1, np.int64)
        tables = [self._gains(k, most, prices) for k, _, most in outer]
        for fixed in product(*ranges[:-1]) if outer else [()]:
            value, room = alone[:, None], left[:, None]
            for (k, x, _), gains, h in zip(outer, tables, fixed, strict=False):
                value = value + gains[own[:, k], h][:, None]
                room = room - h * x.bytes[self.device]
            if outer:
                k, x, _ = outer[-1]
                value = value + tables[-1][own[:, k]][:, inner]
                room = room - inner[None, :] * x.bytes[self.device]
            n_bytes = x_last.bytes[self.device]
            most = np.minimum(np.maximum(room, 0) // n_bytes, most_last) if n_bytes else np.full(room.shape, most_last)
            value = np.where(room >= 0, value + table[own[:, last][:, None], most], -(2**62))
            flat = int(np.argmax(value))
            row, col = divmod(flat, value.shape[1])
            if best is None or value[row, col] > best[0]:
                held = {k: h for (k, _, _), h in zip(outer, fixed, strict=False)}
                if outer:
                    held[outer[-1][0]] = int(inner[col])
                gains = self._gains(last, most_last, prices)[own[row, last]]
                held[last] = int(np.argmax(gains[: int(most[row, col]) + 1]))
                best = int(value[row, col]), row, held
        assert best is not None
        return best

    def _gains(self, k: int, most: int, prices: Prices) -> NDArray[np.int64]:
        """What h experts of kind k beside their a attentions earn, over that the attentions are alone: rows a, columns
        h."""
        if (k, most) not in self._grids:
            a, h = np.mgrid[: self.problem.expert_kinds[k].number + 1, : most + 1]
            self._grids[k, most] = h, np.minimum(a, h)
        h, local = self._grids[k, most]
        gains = prices.taken[k] * h + max(0, prices.local[k] - prices.sent[k] - prices.taken[k]) * local
        for of, least, price in prices.experts_steps:
            if of == k:
                gains = gains + price * (h >= least)
        return np.asarray(gains)

    def _table(self, k: int, most: int, prices: Prices) -> NDArray[np.int64]:
        """As `_gains`, of at most h experts."""
        return np.maximum.accumulate(self._gains(k, most, prices), axis=1)

    def _contents(self, row: int, held: dict[int, int], prices: Prices, embedding: int, head: int) -> Contents:
        attention = tuple(map(int, self.vectors[row]))
        experts = tuple(held.get(k, 0) for k in range(len(self.problem.expert_kinds)))
        local = tuple(
            min(int(a), h) if prices.together(k) else 0
            for k, (a, h) in enumerate(zip(self.own[row], experts, strict=True))
        )
        return Contents(attention, experts, local, embedding, head, int(self.visits[row]))


def _membership(problem: Problem) -> NDArray[np.int64]:
    """1 where the experts of a class (row) are of a kind (column)."""
    member = np.zeros((len(problem.classes), len(problem.expert_kinds)), np.int64)
    for k, kind in enumerate(problem.expert_kinds):
        member[list(kind.classes), k] = 1
    return member


def _that_fit(room: int, n_bytes: int, most: int) -> int:
    """So many of `most` blocks of `n_bytes` each."""
    return min(most, room // n_bytes) if n_bytes else most
