"""What lies between the cards, as rows of a linear program: every placement obeys them, whatever its cards hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from solver.contents import Contents, Prices
from solver.problem import Problem

Row = tuple[str | int, ...]
UNLIMITED = 2**62


@dataclass(frozen=True)
class Between:
    """Something between the cards: its ticks, how often it can be at most, and what it counts for in each row."""

    name: Row
    ticks: int
    most: int
    rows: Mapping[Row, int]


class Network:
    """What every placement obeys between its cards: rows of a linear program, as least and most of a sum.

    Groups are interchangeable cards, named by their first. Blocks are somewhere; experts that leave a card arrive at
    another, and not on the CPU where a card has no buffer for that; the token's walk enters and leaves every used card,
    starts from the embedding's and ends at the head's.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.groups = {first: problem.twins.count(first) for first in dict.fromkeys(problem.twins)}
        self.limits: dict[Row, tuple[int, int]] = dict(self._limits())
        self.between = list(self._between())
        self.highest_price = 4 * self._dearest()

    def _dearest(self) -> int:
        """More than what any one row's worth of anything can cost."""
        problem = self.problem
        blocks = [problem.embedding, problem.head, *(kind.attention for kind in problem.classes)]
        experts = [kind.experts for kind in problem.classes if kind.experts is not None]
        away = max((max(map(max, x.ticks)) for x in experts), default=0)
        return max(max(block.ticks) for block in blocks) + away + 4 * max(map(max, problem.hop)) + 1

    def _limits(self) -> Iterator[tuple[Row, tuple[int, int]]]:
        for c, n in enumerate(self.problem.class_sizes):
            yield ("layers", c), (n, n)
        yield ("start",), (1, 1)
        yield ("end",), (1, 1)
        for g in self.groups:
            for row in ("embedding", "head", "in", "out"):
                yield (row, g), (0, 0)
            for row in ("opens", "entered", "visits"):
                yield (row, g), (0, UNLIMITED)
            for c in self._movable:
                for row in ("sent", "taken", "guests"):
                    yield (row, g, c), (0, 0)
                if self._buffer(c, g):
                    yield ("near", g, c), (0, UNLIMITED)
        yield ("visits",), (0, 0)
        for c in self._movable:
            yield ("away", c), (0, 0)

    @property
    def _movable(self) -> list[int]:
        """Classes whose experts may leave their attention."""
        problem = self.problem
        return [c for c, kind in enumerate(problem.classes) if kind.experts is not None and not problem.whole_layers]

    def _buffer(self, c: int, g: int) -> int:
        return self.problem.buffer(c, g, self.problem.cpu)

    def buffers(self, g: int) -> list[int]:
        """The sizes of buffer that a card of group g may keep."""
        return sorted({0, *(self._buffer(c, g) for c in self._movable)})

    def _between(self) -> Iterator[Between]:
        cpu = self.problem.devices.index("cpu")
        n_layers = len(self.problem.layer_class)
        for g in self.groups:
            rows: dict[Row, int] = {("visits", g): 1, ("in", g): 1, ("out", g): 1, ("visits",): 1}
            yield Between(("visits", g), 0, n_layers, rows)
            for c in self._movable:
                rows = {("taken", g, c): -1, ("guests", g, c): 1}
                if g == cpu:
                    rows["away", c] = 1
                yield Between(("guests", g, c), 0, self.problem.class_sizes[c], rows)
        yield Between(("visits",), 0, n_layers, {("visits",): -1})
        for c in self._movable:
            yield Between(("away", c), 0, self.problem.class_sizes[c], {("away", c): -1})
        for g in self.groups:
            for h in self.groups:
                yield from self._from_to(g, h)

    def _from_to(self, g: int, h: int) -> Iterator[Between]:
        """Experts sent, hops, and the walk's two ends, from a card of group g to one of group h."""
        problem, n_cards = self.problem, self.groups
        there = problem.other_twin(g) if g == h else h
        hop = problem.hop[g][there]
        others = n_cards[g] - 1 if g == h else n_cards[h]
        for c in self._movable if others else ():
            experts = problem.classes[c].experts
            assert experts is not None
            rows: dict[Row, int] = {("sent", g, c): -1, ("guests", h, c): -1}
            if self._buffer(c, g) and h != problem.cpu:
                rows["near", g, c] = 1
            yield Between(("moved", g, h, c), experts.ticks[g][there], problem.class_sizes[c], rows)
        n_layers = len(problem.layer_class)
        entries: dict[Row, int] = {("entered", h): n_cards[h]}
        onward = problem.in_order(g, h)
        if g == h and others:
            yield Between(("hop", g, h), hop, n_layers, {("out", g): -1, ("in", h): -1})
        elif g != h and onward:
            yield Between(("hop", g, h), hop, n_layers, {("out", g): -1, ("in", h): -1, **entries})
        nearest = 0 if g == h else hop
        rows = {("embedding", g): -1, ("in", h): -1, ("opens", h): -1, ("start",): 1, **entries}
        yield Between(("start", g, h), nearest, 1, rows)
        if problem.in_order(h, g) or not problem.head_in_order:
            yield Between(("end", h, g), nearest, 1, {("head", g): -1, ("out", h): -1, ("end",): 1})

    def rows_of(self, contents: Contents, g: int) -> dict[Row, int]:
        """What contents of a card of group g count for."""
        rows: dict[Row, int] = {("layers", c): n for c, n in enumerate(contents.attention)}
        for c in self._movable:
            rows["sent", g, c] = contents.attention[c] - contents.local[c]
            rows["taken", g, c] = contents.experts[c] - contents.local[c]
            if self._buffer(c, g) > contents.staged:
                rows["near", g, c] = -rows["sent", g, c]
        rows["embedding", g], rows["head", g] = contents.embedding, contents.head
        rows["visits", g] = -contents.visits
        rows["entered", g] = -contents.used
        rows["opens", g] = contents.attention[self.problem.layer_class[0]]
        return rows

    def prices(self, duals: Mapping[Row, int], g: int, staged: int | None = None) -> Prices:
        """What contents of a card of group g earn at prices `duals` a row, less their own ticks; with a buffer of
        `staged` bytes, or as large as any."""
        problem, opening = self.problem, self.problem.layer_class[0]
        kinds = list(enumerate(problem.classes))
        return Prices(
            attention=[
                duals["layers", c] + (duals["opens", g] if c == opening else 0) - kind.attention.ticks[g]
                for c, kind in kinds
            ],
            local=[0 if kind.experts is None else -kind.experts.ticks[g][g] for _, kind in kinds],
            sent=[
                duals.get(("sent", g, c), 0)
                - (duals.get(("near", g, c), 0) if staged is not None and self._buffer(c, g) > staged else 0)
                for c, _ in kinds
            ],
            taken=[duals.get(("taken", g, c), 0) for c, _ in kinds],
            embedding=duals["embedding", g] - problem.embedding.ticks[g],
            head=duals["head", g] - problem.head.ticks[g],
            used=-duals["entered", g],
            visit=-duals["visits", g],
        )
