"""Groups of devices that are alike, wherever they are: equal devices that see the same around them.

Cards in NVLink pairs are twins only within a pair, but each sees one near card and the others far. What a bound says of
one device of such a group holds for each of them, so sums over the group serve as well as sums over twins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from solver.problem import Problem

View = tuple[object, ...]
"""What one device sees of another: hops, how its experts do there, and what kind of device it is."""


@dataclass(frozen=True)
class Sort:
    """Guests that serve attention on one group equally well: how they look from there, the groups that they are of, and
    how many a device of that group has of them."""

    views: frozenset[View]
    groups: tuple[int, ...]
    bins: int


class CardGroups:
    """`of[d]`: the first device of d's group; `size` of each group."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        n = len(problem.devices)
        looks = [self._look(d) for d in range(n)]
        self._kind = [looks.index(look) for look in looks]
        around = [(self._kind[d], sorted(map(repr, (self.view(d, e) for e in range(n) if e != d)))) for d in range(n)]
        self.of = tuple(around.index(key) for key in around)
        self.size = {first: self.of.count(first) for first in dict.fromkeys(self.of)}

    def _look(self, d: int) -> tuple[object, ...]:
        """All figures of a device by itself."""
        problem = self.problem
        blocks = [problem.embedding, problem.head, *(kind.attention for kind in problem.classes)]
        experts = [kind.experts for kind in problem.classes if kind.experts is not None]
        figures = [(b.bytes[d], b.ticks[d], b.allowed[d]) for b in blocks]
        figures += [(x.bytes[d], x.busy[d], x.allowed[d]) for x in experts]
        return (d == problem.cpu, problem.usable[d], *figures)

    def view(self, a: int, d: int) -> View:
        hop, classes = self.problem.hop, self.problem.classes
        there = tuple(kind.experts.ticks[a][d] for kind in classes if kind.experts is not None)
        return (hop[a][d], hop[d][a], there, self._kind[d])

    @cached_property
    def hop(self) -> dict[tuple[int, int], int]:
        """The shortest hop from one group to another; none within a group, where one device may do."""
        hop, n = self.problem.hop, range(len(self.of))
        return {
            (g, h): 0 if g == h else min(hop[a][b] for a in n for b in n if self.of[a] == g and self.of[b] == h)
            for g in self.size
            for h in self.size
        }

    def seen(self, a: int) -> dict[View, list[int]]:
        """Other GPUs, by how they look from device a."""
        found: dict[View, list[int]] = {}
        for d in range(len(self.of)):
            if d not in (a, self.problem.cpu):
                found.setdefault(self.view(a, d), []).append(d)
        return found

    def sort(self, a: int, views: Iterable[View]) -> Sort:
        """Those views from device a as one sort."""
        cards = [d for view in views for d in self.seen(a)[view]]
        return Sort(frozenset(views), tuple(sorted({self.of[d] for d in cards})), len(cards))

    def guests(self, a: int, sort: Sort) -> list[int]:
        """The GPUs of a sort for attention on device a."""
        return [d for d in range(len(self.of)) if d not in (a, self.problem.cpu) and self.view(a, d) in sort.views]
