"""Good contiguous plans from prices: the cheapest walk through slices of layers.

Given what experts cost that are not with their attention, and what guests are worth (the prices of
`solver/column_generation/columns.py`), every slice of layers has a price on every kind of card, and the cheapest walk
from the embedding through slices to the head is a shortest path. It says which cards hold which attention;
`solver/heuristics/fill.py` then places the experts exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from solver.column_generation.network import Row
from solver.deviations import reserve
from solver.heuristics.walk import Walk
from solver.problem import Problem

MOST_STATES = 700
"""Sets of used cards up to which all orders of cards are tried; beyond, cards are visited in one order."""
NEVER = 1e15
"""Ticks of what may not be."""
Ticks = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class PricedWalk:
    walk: Walk
    ticks: float


@dataclass(frozen=True)
class AwayPrices:
    """What experts cost that are not with their attention, by (group of the attention, kind); and what a byte of room
    for guests is worth, by group."""

    sent: Mapping[tuple[int, int], float]
    worth: Mapping[int, float]


def away_prices(problem: Problem, duals: Mapping[Row, int]) -> list[AwayPrices]:
    """As the linear program sees it; as if all that leave a card went to the CPU, or to the next best card; and the
    mean of the first two."""
    groups, cpu = dict.fromkeys(problem.twins), problem.devices.index("cpu")
    sent, cpu_only, nearest, worth = {}, {}, {}, dict.fromkeys(groups, 0.0)
    for k, kind in enumerate(problem.expert_kinds):
        experts = kind.experts
        for g in groups:
            others = [problem.other_twin(g), *(d for d in groups if d != g)]
            away = [experts.ticks[g][d] for d in others if d != g and experts.allowed[d]]
            nearest[g, k] = min(away, default=NEVER)
            cpu_only[g, k] = experts.ticks[g][cpu] if experts.allowed[cpu] and g != cpu else nearest[g, k]
            sent[g, k] = -float(duals.get(("sent", g, k), 0))
            if experts.allowed[g]:
                worth[g] = max(worth[g], duals.get(("taken", g, k), 0) / max(1, experts.bytes[g]))
    nothing = dict.fromkeys(groups, 0.0)
    between = {key: (sent[key] + cpu_only[key]) / 2 for key in sent}
    half = {g: value / 2 for g, value in worth.items()}
    return [
        AwayPrices(sent, worth),
        AwayPrices(cpu_only, nothing),
        AwayPrices(nearest, nothing),
        AwayPrices(between, half),
    ]


class SlicePrices:
    """Ticks of layers i to j - 1 on a card of one group, as arrays over (i, j); infinite where attention is too big."""

    def __init__(self, problem: Problem, prices: AwayPrices, g: int) -> None:
        self.problem, self.g = problem, g
        classes = np.array(problem.layer_class)
        n_layers = len(classes)
        self.prefix: list[Whole] = [
            np.concatenate(([0], np.cumsum(classes == c))).astype(np.int64) for c in range(len(problem.classes))
        ]
        kinds = range(len(problem.expert_kinds))
        self.gain = [self._gain(k, prices) for k in kinds]
        self.sent = [self._sent(k, prices) for k in kinds]
        self.guest_worth = prices.worth[g]
        everything = np.arange(n_layers + 1)
        self.inner = self.of(everything[:, None], everything[None, :], 0, 0)

    def _gain(self, k: int, prices: AwayPrices) -> float:
        """What an expert block with its attention saves against one elsewhere."""
        experts = self.problem.expert_kinds[k].experts
        return self._sent(k, prices) - experts.ticks[self.g][self.g] if experts.allowed[self.g] else 0.0

    def _sent(self, k: int, prices: AwayPrices) -> float:
        """What an expert block costs that is not with its attention."""
        return NEVER if self.problem.whole_layers else prices.sent[self.g, k]

    def of(self, i: Whole, j: Whole, end_bytes: int, end_workspace: int) -> Ticks:
        problem, g = self.problem, self.g
        counts = [np.maximum(0, prefix[j] - prefix[i]) for prefix in self.prefix]
        ticks = np.zeros(counts[0].shape)
        room = np.full(counts[0].shape, problem.usable[g] - reserve(problem, g) - end_bytes)
        workspace = np.full(counts[0].shape, end_workspace)
        possible = j > i
        for kind, n in zip(problem.classes, counts, strict=True):
            ticks += n * kind.attention.ticks[g]
            room -= n * kind.attention.bytes[g]
            workspace = np.maximum(workspace, np.where(n > 0, kind.attention.workspace, 0))
            possible = possible & ((n == 0) | kind.attention.allowed[g])
            if kind.experts is not None:
                workspace = np.maximum(workspace, np.where(n > 0, kind.experts.workspace, 0))
        room -= workspace
        possible = possible & (room >= 0)
        own = [sum((counts[c] for c in kind.classes), np.zeros_like(room)) for kind in problem.expert_kinds]
        return np.where(possible, ticks - self._worth(own, room) + self._all_away(own), np.inf)

    def _all_away(self, own: Sequence[Whole]) -> Ticks:
        return np.asarray(sum(n * sent for n, sent in zip(own, self.sent, strict=True)))

    def _worth(self, own: Sequence[Whole], room: Whole) -> Ticks:
        """What the experts that fit beside the attention save, and what the rest of the room is worth to guests."""
        worthy = [k for k, gain in enumerate(self.gain) if gain > 0]
        best = np.full(room.shape, -np.inf)
        for order in permutations(worthy[:3]):
            for spared in (0, 1, 2) if len(order) > 1 else (0,):
                best = np.maximum(best, self._packed([*order, *worthy[3:]], spared, own, room))
        return best

    def _packed(self, order: Sequence[int], spared: int, own: Sequence[Whole], room: Whole) -> Ticks:
        """First kind first, but `spared` of it less than fits."""
        left, worth = room.astype(np.int64), np.zeros(room.shape)
        for nth, k in enumerate(order):
            n_bytes = max(1, self.problem.expert_kinds[k].experts.bytes[self.g])
            fits = np.minimum(own[k], np.maximum(0, left) // n_bytes)
            if nth == 0:
                fits = np.maximum(0, fits - spared)
            left = left - fits * n_bytes
            worth += fits * self.gain[k]
        return worth + left * self.guest_worth


def walks(problem: Problem, prices: AwayPrices) -> list[PricedWalk]:
    """The cheapest contiguous walk for each set of cards, cheapest first."""
    return sorted(_Walks(problem, prices).all(), key=lambda walk: walk.ticks)


class _Walks:
    """The shortest paths: from a set of used cards, the group of the last one and the layers done, to one card more."""

    def __init__(self, problem: Problem, prices: AwayPrices) -> None:
        self.problem = problem
        self.n_layers = len(problem.layer_class)
        self.groups = {first: problem.twins.count(first) for first in dict.fromkeys(problem.twins)}
        self.names = list(self.groups)
        self.slices = {g: SlicePrices(problem, prices, g) for g in self.groups}
        self.cpu = problem.devices.index("cpu")
        self._begun: dict[int, tuple[Ticks, Ticks]] = {}
        self._ended: dict[tuple[int, bool], Ticks] = {}
        self.done: dict[tuple[int, ...], dict[int, Ticks]] = {}
        self.back: dict[tuple[tuple[int, ...], int], tuple[Whole, Whole]] = {}

    def all(self) -> Iterator[PricedWalk]:
        for used in self._sets():
            self._reach(used)
            yield from self._ends(used)

    def _sets(self) -> Iterator[tuple[int, ...]]:
        """Numbers of used cards by group, fewer cards first."""
        sizes = [self.groups[g] for g in self.names]
        n_states = int(np.prod([size + 1.0 for size in sizes]))
        if n_states <= MOST_STATES:
            sets = product(*(range(size + 1) for size in sizes))
            yield from sorted((used for used in sets if any(used)), key=sum)
            return
        # One order: whole groups, one after the other.
        order = sorted(range(len(sizes)), key=lambda k: (self.names[k] == self.cpu, self.names[k]))
        full = [0] * len(sizes)
        for k in order:
            for _ in range(sizes[k]):
                full[k] += 1
                yield tuple(full)

    def _reach(self, used: tuple[int, ...]) -> None:
        """Cheapest ticks to have done j layers, the last of them on each group."""
        self.done[used] = {}
        for k, h in enumerate(self.names):
            if used[k] == 0:
                continue
            before = tuple(n - (i == k) for i, n in enumerate(used))
            if not any(before):
                self.done[used][h] = self._first(h)
                continue
            if before not in self.done:
                continue
            arrive, origin = self._arrive(before, h)
            if arrive is None:
                continue
            total = arrive[:, None] + self.slices[h].inner
            at = np.argmin(total, axis=0)
            self.done[used][h] = total[at, np.arange(self.n_layers + 1)]
            self.back[used, h] = (at, origin)

    def _arrive(self, before: tuple[int, ...], h: int) -> tuple[Ticks | None, Whole]:
        """Cheapest ticks to be on a new card of group h after i layers, and the group before."""
        rows = []
        names = []
        for g, ticks in self.done[before].items():
            hop = self.problem.hop[g][self.problem.other_twin(g) if g == h else h]
            if self.problem.in_order(g, h):
                rows.append(ticks + hop)
                names.append(g)
        if not rows:
            return None, np.zeros(0, np.int64)
        stacked = np.array(rows)
        which = np.argmin(stacked, axis=0)
        return stacked[which, np.arange(stacked.shape[1])], np.array(names)[which]

    def _first(self, h: int) -> Ticks:
        here, elsewhere = self._embedding(h)
        return np.minimum(here, elsewhere)

    def _embedding(self, h: int) -> tuple[Ticks, Ticks]:
        """The walk begins on a card of group h: with the embedding on it, or on the CPU."""
        if h not in self._begun:
            self._begun[h] = self._begin(h)
        return self._begun[h]

    def _begin(self, h: int) -> tuple[Ticks, Ticks]:
        problem, all_j = self.problem, np.arange(self.n_layers + 1)
        block, start = problem.embedding, np.zeros(self.n_layers + 1, np.int64)
        nothing = np.full(self.n_layers + 1, np.inf)
        here, elsewhere = nothing, nothing
        if block.allowed[h]:
            here = self.slices[h].of(start, all_j, block.bytes[h], block.workspace) + block.ticks[h]
        if block.allowed[self.cpu] and h != self.cpu:
            elsewhere = self.slices[h].inner[0] + block.ticks[self.cpu] + problem.hop[self.cpu][h]
        return here, elsewhere

    def _ends(self, used: tuple[int, ...]) -> Iterator[PricedWalk]:
        """Walks over `used` that have done all layers: the head on the last card, or on the CPU."""
        best: PricedWalk | None = None
        for h in self.done[used]:
            for walk in (self._with_head(used, h, True), self._with_head(used, h, False)):
                if walk is not None and (best is None or walk.ticks < best.ticks):
                    best = walk
        if best is not None:
            yield best

    def _with_head(self, used: tuple[int, ...], h: int, here: bool) -> PricedWalk | None:
        problem, head, n = self.problem, self.problem.head, self.n_layers
        place = h if here else self.cpu
        if not head.allowed[place] or (not here and (h == self.cpu or not self._may_end(h))):
            return None
        price = head.ticks[place] + (0 if here else problem.hop[h][self.cpu])
        k = self.names.index(h)
        before = tuple(m - (i == k) for i, m in enumerate(used))
        end_bytes, end_workspace = (head.bytes[h], head.workspace) if here else (0, 0)
        if not any(before):
            return self._alone(h, place, price, end_bytes, end_workspace)
        arrive, origin = self._arrive(before, h) if before in self.done else (None, np.zeros(0, np.int64))
        if arrive is None:
            return None
        if (h, here) not in self._ended:
            self._ended[h, here] = self.slices[h].of(np.arange(n + 1), np.full(n + 1, n), end_bytes, end_workspace)
        last = self._ended[h, here]
        total = arrive + last
        at = int(np.argmin(total))
        if not np.isfinite(total[at]):
            return None
        slices = [(h, at)]
        self._trace(before, int(origin[at]), at, slices)
        return self._named(slices, place if here else self.cpu, here, float(total[at]) + price)

    def _may_end(self, h: int) -> bool:
        return not self.problem.head_in_order or self.problem.in_order(h, self.cpu)

    def _alone(self, h: int, place: int, price: int, end_bytes: int, end_workspace: int) -> PricedWalk | None:
        """All layers on one card."""
        problem, block, n = self.problem, self.problem.embedding, self.n_layers
        start, stop = np.zeros(1, np.int64), np.full(1, n)
        options = []
        if block.allowed[h]:
            n_bytes = end_bytes + block.bytes[h] - (problem.tied_bytes if place == h else 0)
            ticks = self.slices[h].of(start, stop, n_bytes, max(end_workspace, block.workspace))
            options.append((float(ticks[0]) + block.ticks[h], h))
        if block.allowed[self.cpu] and h != self.cpu:
            ticks = self.slices[h].of(start, stop, end_bytes, end_workspace)
            options.append((float(ticks[0]) + block.ticks[self.cpu] + problem.hop[self.cpu][h], self.cpu))
        best = min(options, default=(np.inf, 0))
        if not np.isfinite(best[0]):
            return None
        return PricedWalk(Walk(best[1], (h,) * n, place), best[0] + price)

    def _trace(self, used: tuple[int, ...], g: int, stop: int, slices: list[tuple[int, int]]) -> None:
        """Put the slices before layer `stop` in front of `slices`, as (group, first layer)."""
        while (used, g) in self.back:
            at, origin = self.back[used, g]
            start = int(at[stop])
            slices.insert(0, (g, start))
            k = self.names.index(g)
            used = tuple(n - (i == k) for i, n in enumerate(used))
            g, stop = int(origin[start]), start
        slices.insert(0, (g, 0))

    def _named(self, slices: list[tuple[int, int]], head: int, here: bool, ticks: float) -> PricedWalk:
        """Name the cards of each group in the order of the walk."""
        problem = self.problem
        free = {g: [d for d, twin in enumerate(problem.twins) if twin == g] for g in self.groups}
        attention: list[int] = []
        ends = [start for _, start in slices[1:]] + [self.n_layers]
        for (g, start), stop in zip(slices, ends, strict=True):
            attention += [free[g].pop(0)] * (stop - start)
        with_first, on_cpu = self._embedding(slices[0][0])
        embedding = attention[0] if with_first[ends[0]] <= on_cpu[ends[0]] else self.cpu
        return PricedWalk(Walk(embedding, tuple(attention), attention[-1] if here else head), ticks)
