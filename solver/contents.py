"""What one card can hold, and the best of it at given prices: an exact knapsack over all contents.

The contents of a card are how many attentions and how many experts of each class lie on it, and whether the embedding
and the head do. The best contents are found by merging, class by class, the lists of undominated (bytes, value) pairs
(Nemhauser and Ullmann, Management Science 1969), in whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from solver.assignment import Assignment
from solver.deviations import Block, nominal, spare_bytes
from solver.problem import LayerClass, Problem
from solver.windows import Windows

Integers = NDArray[np.int64]
MOST_LEVELS = 6
"""Workspaces that are told apart; more are rounded together, which can only make the best look better."""
MOST_POINTS = 6000
"""Undominated pairs that are kept of a list; longer ones are thinned, which can only make the best look better."""


@dataclass(frozen=True)
class Contents:
    """Numbers of attentions, of experts, and of layers that have both here, by class; whether (0 or 1) the embedding
    and the head are there; how often a token has to come here at least; and bytes of the buffer that is kept here:
    classes that need a larger one (`Problem.staging`) have no experts of attention here on the CPU."""

    attention: tuple[int, ...]
    experts: tuple[int, ...]
    local: tuple[int, ...]
    embedding: int = 0
    head: int = 0
    visits: int = 0
    staged: int = 0

    @property
    def used(self) -> int:
        """1 if a token has to come here at all."""
        return int(any(self.attention))

    def ticks(self, problem: Problem, device: int) -> int:
        """Time of what is done here without leaving: blocks, and experts beside their attention."""
        total = self.embedding * problem.embedding.ticks[device] + self.head * problem.head.ticks[device]
        for kind, a, local in zip(problem.classes, self.attention, self.local, strict=True):
            total += a * kind.attention.ticks[device]
            if kind.experts is not None:
                total += local * kind.experts.ticks[device][device]
        return total

    def bytes(self, problem: Problem, device: int) -> int:
        """Bytes used on `device`, workspace and what is kept free for deviations included."""
        held = [(block, here) for block, here in ((problem.embedding, self.embedding), (problem.head, self.head))]
        total, workspace = sum(n * block.bytes[device] for block, n in held), 0
        total -= problem.tied_bytes * self.embedding * self.head
        workspace = max((block.workspace for block, n in held if n), default=0)
        for kind, a, h in zip(problem.classes, self.attention, self.experts, strict=True):
            total += a * kind.attention.bytes[device]
            workspace = max(workspace, kind.attention.workspace * (a > 0))
            if kind.experts is not None:
                total += h * kind.experts.bytes[device]
                workspace = max(workspace, kind.experts.workspace * (h > 0))
        return total + workspace + self.staged + self._spare(problem, device)

    def _spare(self, problem: Problem, device: int) -> int:
        if problem.robust is None:
            return 0
        held: list[tuple[Block, int]] = [(problem.embedding, self.embedding), (problem.head, self.head)]
        for kind, a, h in zip(problem.classes, self.attention, self.experts, strict=True):
            held += [(kind.attention, a), *([(kind.experts, h)] if kind.experts is not None else [])]
        return spare_bytes(problem, device, held)

    def fits(self, problem: Problem, device: int) -> bool:
        """Whether `device` may hold these and has room for them."""
        here = [(problem.embedding.allowed, self.embedding), (problem.head.allowed, self.head)]
        for kind, a, h in zip(problem.classes, self.attention, self.experts, strict=True):
            here += [(kind.attention.allowed, a), ((kind.experts or kind.attention).allowed, h)]
        return (
            all(allowed[device] for allowed, n in here if n) and self.bytes(problem, device) <= problem.usable[device]
        )


def contents_of(problem: Problem, plan: Assignment) -> list[tuple[int, Contents]]:
    """What each card of `plan` holds, by the first of its group of equals."""
    windows, found = Windows(problem), []
    layers = list(zip(problem.layer_class, plan.attention, plan.experts, strict=True))
    for d, g in enumerate(problem.twins):
        attention, experts, local = (
            tuple(classes.count(c) for c in range(len(problem.classes)))
            for classes in (
                [c for c, a, _ in layers if a == d],
                [c for c, _, x in layers if x == d],
                [c for c, a, x in layers if a == x == d],
            )
        )
        ends = int(plan.embedding == d), int(plan.head == d)
        staged = max((problem.buffer(c, a, x) for c, a, x in layers if a == d), default=0)
        found.append((g, Contents(attention, experts, local, *ends, windows.visits(attention), staged)))
    return found


@dataclass(frozen=True)
class Prices:
    """What a card earns, in ticks: for an attention and a pair of attention and experts of each class, for an attention
    whose experts are elsewhere, for experts that are guests, for the embedding and the head, once for being used, and
    for every visit that it needs."""

    attention: Sequence[int]
    local: Sequence[int]
    sent: Sequence[int]
    taken: Sequence[int]
    embedding: int
    head: int
    used: int
    visit: int

    def together(self, c: int) -> bool:
        """Whether attention and experts of class c earn more as one layer's than as two layers' on one card."""
        return self.local[c] > self.sent[c] + self.taken[c]


@dataclass(frozen=True)
class Points:
    """Undominated pairs, both rising; `numbers[k]` are each point's index into the k-th class's numbers."""

    bytes: Integers
    value: Integers
    numbers: tuple[Integers, ...]


class Knapsack:
    """The best contents of one device."""

    def __init__(self, problem: Problem, device: int) -> None:
        self.problem, self.device = problem, device
        self._levels = [level for one in nominal(problem, device) for level in _levels(one, device)]

    def best(self, prices: Prices, visits: int = 1) -> tuple[int, Contents]:
        """The most that contents of this device can earn, and contents that do (where lists were thinned, that earn
        about as much but may not fit). A card that is used at all is taken to need so many `visits`."""
        return max((level.best(prices, visits) for level in self._levels), key=lambda found: found[0])

    def quick(self, prices: Prices) -> Contents:
        """Good contents: the best beside the largest workspace, for a card that is visited once."""
        return self._levels[-1].best(prices, 1)[1]


def _levels(problem: Problem, device: int) -> Iterator[_Level]:
    """One knapsack for each workspace the device may have to keep: blocks that need more are left out."""
    blocks = [problem.embedding, problem.head, *(kind.attention for kind in problem.classes)]
    needs = {0, *(block.workspace for block in blocks)}
    needs |= {kind.experts.workspace for kind in problem.classes if kind.experts is not None}
    levels = [(need, need) for need in sorted(needs)]
    while len(levels) > MOST_LEVELS:
        # The nearest two become one: blocks of the higher are let in at the price of the lower, which only flatters.
        k = min(range(1, len(levels)), key=lambda k: levels[k][1] - levels[k - 1][0])
        levels[k - 1 : k + 1] = [(levels[k - 1][0], levels[k][1])]
    for kept, let_in in levels:
        if kept <= problem.usable[device]:
            yield _Level(problem, device, let_in, problem.usable[device] - kept)


class _Level:
    """Contents of blocks that need at most `workspace`, in `room` bytes."""

    def __init__(self, problem: Problem, device: int, workspace: int, room: int) -> None:
        self.problem, self.device, self.room = problem, device, room
        self.ends = [
            block.allowed[device] and block.workspace <= workspace and block.bytes[device] <= self.room
            for block in (problem.embedding, problem.head)
        ]
        self.grids = [
            _Grid(problem, kind, n, device, workspace, self.room)
            for kind, n in zip(problem.classes, problem.class_sizes, strict=True)
        ]

    def best(self, prices: Prices, visits: int) -> tuple[int, Contents]:
        """As a card that is used, or that has guests and ends only."""
        return max((self._best(prices, visits), self._best(prices, 0)), key=lambda found: found[0])

    def _best(self, prices: Prices, visits: int) -> tuple[int, Contents]:
        lists = [grid.points(c, prices, visits > 0) for c, grid in enumerate(self.grids)]
        half = (len(lists) + 1) // 2
        left, right = merged(lists[:half], self.room), merged(lists[half:], self.room)
        best, where, ends = None, (0, 0), (0, 0)
        # An end that earns nothing only takes room.
        paid = (prices.embedding > 0, prices.head > 0)
        for embedding, head in product(*(range(1 + (may and pays)) for may, pays in zip(self.ends, paid, strict=True))):
            room = self.room - embedding * self.problem.embedding.bytes[self.device]
            room -= head * self.problem.head.bytes[self.device] - self.problem.tied_bytes * embedding * head
            found = _best_pair(left, right, room)
            if found is not None:
                value = found[0] + embedding * prices.embedding + head * prices.head
                if best is None or value > best:
                    best, where, ends = value, found[1], (embedding, head)
        assert best is not None
        rows = [int(numbers[where[0]]) for numbers in left.numbers] + [
            int(numbers[where[1]]) for numbers in right.numbers
        ]
        attention = tuple(int(grid.attention[row]) for grid, row in zip(self.grids, rows, strict=True))
        experts = tuple(int(grid.experts[row]) for grid, row in zip(self.grids, rows, strict=True))
        local = tuple(
            min(a, h) if self.grids[c].whole or prices.together(c) else 0
            for c, (a, h) in enumerate(zip(attention, experts, strict=True))
        )
        earned = best + (prices.used + prices.visit * visits if visits else 0)
        return earned, Contents(attention, experts, local, *ends, visits if any(attention) else 0)


class _Grid:
    """Every number of attentions and experts of one class that a device has room for, from light to heavy."""

    def __init__(self, problem: Problem, kind: LayerClass, n: int, device: int, workspace: int, room: int) -> None:
        most_attention = n if kind.attention.allowed[device] and kind.attention.workspace <= workspace else 0
        most_experts, weight = 0, 0
        if kind.experts is not None and kind.experts.allowed[device] and kind.experts.workspace <= workspace:
            most_experts, weight = n, kind.experts.bytes[device]
        attention, experts = (grid.ravel() for grid in np.mgrid[: most_attention + 1, : most_experts + 1])
        n_bytes = attention * kind.attention.bytes[device] + experts * weight
        keep = n_bytes <= room
        if problem.whole_layers and kind.experts is not None:
            keep &= attention == experts
        order = np.flatnonzero(keep)[np.argsort(n_bytes[keep], kind="stable")]
        self.bytes: Integers = n_bytes[order]
        self.attention: Integers = attention[order]
        self.experts: Integers = experts[order]
        self.local: Integers = np.minimum(self.attention, self.experts)
        self.guests_only: Integers = np.flatnonzero(self.attention == 0)

        self.whole = problem.whole_layers and kind.experts is not None
        self.dense = kind.experts is None

    def points(self, c: int, prices: Prices, used: bool) -> Points:
        sent = 0 if self.dense else prices.sent[c]
        value = (prices.attention[c] + sent) * self.attention + prices.taken[c] * self.experts
        if self.whole or prices.together(c):
            value = value + (prices.local[c] - sent - prices.taken[c]) * self.local
        rows = slice(None) if used else self.guests_only
        return undominated(self.bytes[rows], value[rows], (np.arange(len(value))[rows],))


def undominated(n_bytes: Integers, value: Integers, numbers: tuple[Integers, ...]) -> Points:
    """Of points that rise in bytes those worth more than every lighter one."""
    best = np.maximum.accumulate(value)
    if not len(value):
        return Points(n_bytes, value, numbers)
    keep = np.flatnonzero(np.concatenate(([True], value[1:] > best[:-1])))
    return Points(n_bytes[keep], value[keep], tuple(column[keep] for column in numbers))


def merged(lists: Sequence[Points], room: int) -> Points:
    """The undominated sums of one point of each list, within `room` bytes."""
    zero: Integers = np.zeros(1, np.int64)
    found = Points(zero, zero, ())
    for more in lists:
        n_bytes = np.add.outer(found.bytes, more.bytes).ravel()
        fits = np.flatnonzero(n_bytes <= room)
        value = np.add.outer(found.value, more.value).ravel()
        order = fits[np.argsort(n_bytes[fits], kind="stable")]
        left, right = np.divmod(order, len(more.bytes))
        numbers = (*(column[left] for column in found.numbers), *(column[right] for column in more.numbers))
        found = _thinned(undominated(n_bytes[order], value[order], numbers))
    return found


def _thinned(points: Points) -> Points:
    """Of each run of neighbours the bytes of the lightest with the value of the dearest."""
    n = len(points.bytes)
    if n <= MOST_POINTS:
        return points
    starts = np.linspace(0, n, MOST_POINTS, endpoint=False, dtype=np.int64)
    ends = np.append(starts[1:], n) - 1
    return Points(points.bytes[starts], points.value[ends], tuple(column[ends] for column in points.numbers))


def _best_pair(left: Points, right: Points, room: int) -> tuple[int, tuple[int, int]] | None:
    """The most valuable pair of points that fit together; None if none does."""
    partner = np.searchsorted(right.bytes, room - left.bytes, side="right") - 1
    fits = np.flatnonzero(partner >= 0)
    if not len(fits):
        return None
    value = left.value[fits] + right.value[partner[fits]]
    best = int(np.argmax(value))
    return int(value[best]), (int(fits[best]), int(partner[fits[best]]))
