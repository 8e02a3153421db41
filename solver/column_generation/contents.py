"""What one card can hold, and the best of it at given prices: an exact knapsack over all contents.

The contents of a card are how many attentions and how many experts of each class lie on it, and whether the embedding
and the head do. The best contents are found by merging, class by class, the lists of undominated (bytes, value) pairs
(Nemhauser and Ullmann, Management Science 1969), in whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from solver.assignment import Assignment
from solver.column_generation.windows import Windows
from solver.deviations import Block, nominal, spare_bytes
from solver.problem import Problem

Integers = NDArray[np.int64]
MOST_LEVELS = 6
"""Workspaces that are told apart; more are rounded together, which can only make the best look better."""
MOST_POINTS = 6000
"""Undominated pairs that are kept of a list; longer ones are thinned, which can only make the best look better."""


@dataclass(frozen=True)
class Contents:
    """Numbers of attentions by class; of experts, and of layers that have both here, by kind of experts; whether (0 or
    1) the embedding and the head are there; how often a token has to come here at least; and bytes of the buffer that
    is kept here: kinds that need a larger one (`Problem.staging`) have no experts of attention here on the CPU.
    `first`, `last` (0 or 1): the walk begins with the embedding and the first layer here, ends with the last and the
    head."""

    attention: tuple[int, ...]
    experts: tuple[int, ...]
    local: tuple[int, ...]
    embedding: int = 0
    head: int = 0
    visits: int = 0
    staged: int = 0
    first: int = 0
    last: int = 0

    @property
    def used(self) -> int:
        """1 if a token has to come here at all."""
        return int(any(self.attention))

    def ticks(self, problem: Problem, device: int) -> int:
        """Time of what is done here without leaving: blocks, and experts beside their attention."""
        total = self.embedding * problem.embedding.ticks[device] + self.head * problem.head.ticks[device]
        total += sum(n * kind.attention.ticks[device] for kind, n in zip(problem.classes, self.attention, strict=True))
        for kind, local in zip(problem.expert_kinds, self.local, strict=True):
            total += local * kind.experts.ticks[device][device]
        return total

    def bytes(self, problem: Problem, device: int) -> int:
        """Bytes used on `device`, workspace and what is kept free for deviations included."""
        held = self._held(problem)
        total = sum(n * block.bytes[device] for block, n in held) - problem.tied_bytes * self.embedding * self.head
        workspace = max((block.workspace for block, n in held if n), default=0)
        spare = spare_bytes(problem, device, held) if problem.robust is not None else 0
        return total + workspace + self.staged + spare

    def _held(self, problem: Problem) -> list[tuple[Block, int]]:
        """Blocks, and how many of them are here."""
        return [
            (problem.embedding, self.embedding),
            (problem.head, self.head),
            *((kind.attention, n) for kind, n in zip(problem.classes, self.attention, strict=True)),
            *((kind.experts, n) for kind, n in zip(problem.expert_kinds, self.experts, strict=True)),
        ]

    def fits(self, problem: Problem, device: int) -> bool:
        """Whether `device` may hold these and has room for them."""
        may = all(block.allowed[device] for block, n in self._held(problem) if n)
        return may and self.bytes(problem, device) <= problem.usable[device]


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
        first, last = plan.embedding == plan.attention[0] == d, plan.head == plan.attention[-1] == d
        visits = windows.visits(attention, first, last)
        numbers = attention, problem.by_kind(experts), problem.by_kind(local)
        found.append((g, Contents(*numbers, *ends, visits, staged, int(first), int(last))))
    return found


PricedStep = tuple[int, int, int]
"""What a card earns that has at least so many of something: which class or kind, how many, ticks."""


@dataclass(frozen=True)
class Prices:
    """What a card earns, in ticks: for an attention of each class; for experts of each kind beside their attention, for
    an attention whose experts are elsewhere, for experts that are guests; for the embedding and the head; for being
    used at all, for every visit that it needs, and for every step that its attentions and its experts reach; and, never
    less than 0, for having the walk's beginning and its end."""

    attention: Sequence[int]
    local: Sequence[int]
    sent: Sequence[int]
    taken: Sequence[int]
    embedding: int
    head: int
    used: int
    visit: int
    first: int = 0
    last: int = 0
    attention_steps: Sequence[PricedStep] = ()
    experts_steps: Sequence[PricedStep] = ()

    def together(self, k: int) -> bool:
        """Whether attention and experts of kind k earn more as one layer's than as two layers' on one card."""
        return self.local[k] > self.sent[k] + self.taken[k]


@dataclass(frozen=True)
class Points:
    """Undominated pairs, both rising; `numbers[k]` are each point's index into the k-th grid's numbers."""

    bytes: Integers
    value: Integers
    numbers: tuple[Integers, ...]


class Knapsack:
    """The best contents of one device."""

    def __init__(self, problem: Problem, device: int) -> None:
        self.problem, self.device = problem, device
        self._levels = [level for one in nominal(problem, device) for level in _levels(one, device)]
        if len(self._levels) > 1 and self._levels[-1].ample:
            # Room for everything beside the largest workspace: nothing is gained by keeping less.
            self._levels = self._levels[-1:]
        self._for_guests: dict[tuple[object, ...], _Level] = {}
        for level in self._levels:
            self._for_guests.setdefault(level.guests, level)

    def best(self, prices: Prices, visits: int = 1) -> tuple[int, Contents]:
        """The most that contents of this device can earn, and contents that do (where lists were thinned, that earn
        about as much but may not fit). A card that is used at all is taken to need so many `visits`."""
        levels = self._levels if visits else self._for_guests.values()
        return max((level.best(prices, visits) for level in levels), key=lambda found: found[0])

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


def _bytes_of_all(problem: Problem, device: int) -> int:
    """What the whole model takes on one device: where there is room for that, bytes do not matter."""
    blocks = [(problem.embedding, 1), (problem.head, 1)]
    blocks += [(kind.attention, n) for kind, n in zip(problem.classes, problem.class_sizes, strict=True)]
    experts = sum(kind.number * kind.experts.bytes[device] for kind in problem.expert_kinds)
    return experts + sum(n * block.bytes[device] for block, n in blocks)


class _Level:
    """Contents of blocks that need at most `workspace`, in `room` bytes."""

    def __init__(self, problem: Problem, device: int, workspace: int, room: int) -> None:
        self.problem, self.device, self.room, self.workspace = problem, device, room, workspace
        self.ends = [
            block.allowed[device] and block.workspace <= workspace and block.bytes[device] <= self.room
            for block in (problem.embedding, problem.head)
        ]
        self.ample = _bytes_of_all(problem, device) <= self.room

    @cached_property
    def grids(self) -> list[_Grid]:
        return list(self._grids(attention=True))

    @cached_property
    def grids_of_guests(self) -> list[_Grid]:
        """Those of a card without attention."""
        return list(self._grids(attention=False))

    def _grids(self, *, attention: bool) -> Iterator[_Grid]:
        for c, kind in enumerate(self.problem.classes):
            if kind.experts is None:
                yield _Grid(self, (c,), None, attention)
        for k, alike in enumerate(self.problem.expert_kinds):
            yield _Grid(self, alike.classes, k, attention)

    @property
    def guests(self) -> tuple[object, ...]:
        """What a card without attention may hold here: of levels that agree the first has most room."""
        kinds = self.problem.expert_kinds
        return self.problem, *self.ends, *(kind.experts.workspace <= self.workspace for kind in kinds)

    def best(self, prices: Prices, visits: int) -> tuple[int, Contents]:
        """As a card that is used, or that has guests and ends only."""
        return max((self._best(prices, n) for n in {visits, 0}), key=lambda found: found[0])

    def _best(self, prices: Prices, visits: int) -> tuple[int, Contents]:
        grids = self.grids if visits else self.grids_of_guests
        lists = [grid.extremes(prices) if self.ample else grid.points(prices) for grid in grids]
        if visits and prices.used + prices.visit * visits + prices.first + prices.last > 0:
            # Only a card that does have attention is used: one grid or the other has some.
            some = [(grid.extremes if self.ample else grid.points)(prices, some=True) for grid in grids]
            mixed = [[*lists[:k], points, *lists[k + 1 :]] for k, points in enumerate(some) if len(points.bytes)]
        else:
            mixed = [lists]
        found = [self._of(lists, prices, visits) for lists in mixed]
        return max((one for one in found if one is not None), key=lambda one: one[0], default=self._nothing)

    @property
    def _nothing(self) -> tuple[int, Contents]:
        none = (0,) * len(self.problem.expert_kinds)
        return 0, Contents((0,) * len(self.problem.classes), none, none)

    def _of(self, lists: list[Points], prices: Prices, visits: int) -> tuple[int, Contents] | None:
        """The best of one point of each list; None if none of them fit together."""
        half = (len(lists) + 1) // 2
        left, right = merged(lists[:half], self.room), merged(lists[half:], self.room)
        best, where, ends = None, (0, 0), (0, 0)
        # An end that earns nothing only takes room.
        paid = (prices.embedding + prices.first > 0, prices.head + prices.last > 0)
        for embedding, head in product(*(range(1 + (may and pays)) for may, pays in zip(self.ends, paid, strict=True))):
            room = self.room - embedding * self.problem.embedding.bytes[self.device]
            room -= head * self.problem.head.bytes[self.device] - self.problem.tied_bytes * embedding * head
            found = _best_pair(left, right, room)
            if found is not None:
                value = found[0] + embedding * prices.embedding + head * prices.head
                value += (embedding * prices.first + head * prices.last) * (visits > 0)
                if best is None or value > best:
                    best, where, ends = value, found[1], (embedding, head)
        if best is None:
            return None
        rows = [int(numbers[where[0]]) for numbers in left.numbers] + [
            int(numbers[where[1]]) for numbers in right.numbers
        ]
        earned = best + (prices.used + prices.visit * visits if visits else 0)
        return earned, self._contents(rows, prices, ends, visits)

    def _contents(self, rows: Sequence[int], prices: Prices, ends: tuple[int, int], visits: int) -> Contents:
        """Those at a row of each grid."""
        problem = self.problem
        attention, experts, local = [0] * len(problem.classes), [], []
        for grid, row in zip(self.grids if visits else self.grids_of_guests, rows, strict=True):
            for c, numbers in zip(grid.classes, grid.attention, strict=True):
                attention[c] = int(numbers[row])
            if grid.kind is not None:
                experts.append(int(grid.experts[row]))
                local.append(int(grid.local[row]) if grid.whole or prices.together(grid.kind) else 0)
        numbers = tuple(attention), tuple(experts), tuple(local)
        if not any(attention):
            return Contents(*numbers, *ends)
        return Contents(*numbers, *ends, visits, first=ends[0], last=ends[1])


class _Grid:
    """Every number of attentions of some classes and of their experts, which are of one kind (None: dense layers), that
    a device has room for, from light to heavy."""

    def __init__(self, level: _Level, classes: Sequence[int], kind: int | None, attention: bool) -> None:
        problem, device, workspace, room = level.problem, level.device, level.workspace, level.room
        self.classes, self.kind = tuple(classes), kind
        self.whole = problem.whole_layers and kind is not None
        blocks = [problem.classes[c].attention for c in classes]
        most = [
            problem.class_sizes[c] if attention and block.allowed[device] and block.workspace <= workspace else 0
            for c, block in zip(classes, blocks, strict=True)
        ]
        most_experts, weight = 0, 0
        if kind is not None:
            alike = problem.expert_kinds[kind]
            weight = alike.experts.bytes[device]
            if alike.experts.allowed[device] and alike.experts.workspace <= workspace:
                most_experts = min(alike.number, room // weight if weight else alike.number)
        grid = np.indices([*(n + 1 for n in most), most_experts + 1]).reshape(len(most) + 1, -1)
        n_bytes = np.array([*(block.bytes[device] for block in blocks), weight]) @ grid
        own = grid[:-1].sum(axis=0)
        keep = n_bytes <= room
        if self.whole:
            keep &= own == grid[-1]
        order = np.flatnonzero(keep)[np.argsort(n_bytes[keep], kind="stable")]
        self.bytes: Integers = n_bytes[order]
        self.attention: Integers = grid[:-1, order]
        self.experts: Integers = grid[-1, order]
        self.own: Integers = own[order]
        self.local: Integers = np.minimum(self.own, self.experts)
        all_or_none = (self.attention == 0) | (self.attention == np.array(most)[:, None])
        beside = (self.experts == 0) | (self.experts == self.own) | (self.experts == most_experts)
        self._extremes = np.flatnonzero((all_or_none.all(axis=0) | (self.own == 1)) & beside)

    def extremes(self, prices: Prices, some: bool = False) -> Points:
        """As `points`, where bytes do not matter: without steps what rows earn is linear between these few."""
        if prices.attention_steps or prices.experts_steps:
            return most_valuable(self.points(prices, some))
        rows = self._extremes[self.own[self._extremes] > 0] if some else self._extremes
        value = np.array([prices.attention[c] for c in self.classes]) @ self.attention[:, rows]
        k = self.kind
        if k is not None:
            value = value + prices.sent[k] * self.own[rows] + prices.taken[k] * self.experts[rows]
            if self.whole or prices.together(k):
                value = value + (prices.local[k] - prices.sent[k] - prices.taken[k]) * self.local[rows]
        best = np.array([np.argmax(value)] if len(rows) else [], np.int64)
        return Points(self.bytes[rows][best], value[best], (rows[best],))

    def points(self, prices: Prices, some: bool = False) -> Points:
        """Undominated rows: all, or only those with `some` attention."""
        value = np.array([prices.attention[c] for c in self.classes]) @ self.attention
        for c, least, price in prices.attention_steps:
            if c in self.classes:
                value = value + price * (self.attention[self.classes.index(c)] >= least)
        k = self.kind
        if k is not None:
            value = value + prices.sent[k] * self.own + prices.taken[k] * self.experts
            if self.whole or prices.together(k):
                value = value + (prices.local[k] - prices.sent[k] - prices.taken[k]) * self.local
            for of, least, price in prices.experts_steps:
                if of == k:
                    value = value + price * (self.experts >= least)
        rows = np.flatnonzero(self.own) if some else np.arange(len(value))
        return undominated(self.bytes[rows], value[rows], (rows,))


def undominated(n_bytes: Integers, value: Integers, numbers: tuple[Integers, ...]) -> Points:
    """Of points that rise in bytes those worth more than every lighter one."""
    best = np.maximum.accumulate(value)
    if not len(value):
        return Points(n_bytes, value, numbers)
    keep = np.flatnonzero(np.concatenate(([True], value[1:] > best[:-1])))
    return Points(n_bytes[keep], value[keep], tuple(column[keep] for column in numbers))


def most_valuable(points: Points) -> Points:
    """The last of them alone."""
    return Points(points.bytes[-1:], points.value[-1:], tuple(column[-1:] for column in points.numbers))


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
