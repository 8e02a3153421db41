"""What lies between the cards, as rows of a linear program: every placement obeys them, whatever its cards hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from solver.column_generation.contents import Contents, PricedStep, Prices
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


@dataclass(frozen=True)
class Step:
    """Cards of group `g` that have at least `least` attentions of a class or experts of a kind, `index`."""

    g: int
    experts: bool
    index: int
    least: int

    @property
    def row(self) -> Row:
        return ("step", self.g, self.experts, self.index, self.least)

    def reached(self, contents: Contents) -> bool:
        return (contents.experts if self.experts else contents.attention)[self.index] >= self.least


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
        self.steps: list[Step] = []
        self.highest_price = 4 * self._dearest()

    def _dearest(self) -> int:
        """More than what any one row's worth of anything can cost."""
        problem = self.problem
        blocks = [problem.embedding, problem.head, *(kind.attention for kind in problem.classes)]
        experts = [kind.experts for kind in problem.classes if kind.experts is not None]
        away = max((max(map(max, x.ticks)) for x in experts), default=0)
        return max(max(block.ticks) for block in blocks) + away + 4 * max(map(max, problem.hop)) + 1

    def weight(self, name: Row) -> int:
        """About what one more of a number between cards costs."""
        hop = max(map(max, self.problem.hop))
        if name[0] not in ("away", "guests", "moved") or len(name) == 1:
            return hop
        kind = self.problem.expert_kinds[int(name[-1])]
        least = min(ticks[d] for d, ticks in enumerate(kind.experts.ticks))
        to_cpu = name[0] == "away" or name[-2] == self.problem.cpu
        return (max(ticks[self.problem.cpu] for ticks in kind.experts.ticks) - least) if to_cpu else hop

    def _limits(self) -> Iterator[tuple[Row, tuple[int, int]]]:
        for c, n in enumerate(self.problem.class_sizes):
            yield ("layers", c), (n, n)
        yield ("start",), (1, 1)
        yield ("end",), (1, 1)
        for g in self.groups:
            for row in ("embedding", "head", "in", "out", "cards", "embeddings", "heads"):
                yield (row, g), (0, 0)
            for row in ("opens", "entered", "visits", "first", "last"):
                yield (row, g), (0, UNLIMITED)
            for k in self._movable:
                for row in ("sent", "taken", "guests"):
                    yield (row, g, k), (0, 0)
                if self._buffer(k, g):
                    yield ("near", g, k), (0, UNLIMITED)
        yield ("visits",), (0, 0)
        yield ("cards",), (0, 0)
        yield ("away",), (0, 0)
        for k in self._movable:
            yield ("away", k), (0, 0)

    @property
    def _movable(self) -> range:
        """Kinds of experts that may leave their attention."""
        return range(0 if self.problem.whole_layers else len(self.problem.expert_kinds))

    def _buffer(self, k: int, g: int) -> int:
        return self.problem.kind_buffer(k, g)

    def buffers(self, g: int) -> list[int]:
        """The sizes of buffer that a card of group g may keep."""
        return sorted({0, *(self._buffer(k, g) for k in self._movable)})

    def _between(self) -> Iterator[Between]:
        cpu = self.problem.devices.index("cpu")
        n_layers = len(self.problem.layer_class)
        for g in self.groups:
            rows: dict[Row, int] = {("visits", g): 1, ("in", g): 1, ("out", g): 1, ("visits",): 1}
            yield Between(("visits", g), 0, n_layers, rows)
            yield Between(("cards", g), 0, self.groups[g], {("cards", g): 1, ("cards",): 1})
            for row in ("embeddings", "heads"):
                yield Between((row, g), 0, 1, {(row, g): -1})
            for k in self._movable:
                rows = {("taken", g, k): -1, ("guests", g, k): 1}
                if g == cpu:
                    rows["away", k] = 1
                yield Between(("guests", g, k), 0, self.problem.expert_kinds[k].number, rows)
        yield Between(("visits",), 0, n_layers, {("visits",): -1})
        yield Between(("cards",), 0, sum(self.groups.values()), {("cards",): -1})
        for k in self._movable:
            yield Between(("away", k), 0, self.problem.expert_kinds[k].number, {("away", k): -1, ("away",): 1})
        yield Between(("away",), 0, n_layers, {("away",): -1})
        for g in self.groups:
            for h in self.groups:
                yield from self._from_to(g, h)

    def _from_to(self, g: int, h: int) -> Iterator[Between]:
        """Experts sent, hops, and the walk's two ends, from a card of group g to one of group h."""
        problem, n_cards = self.problem, self.groups
        there = problem.other_twin(g) if g == h else h
        hop = problem.hop[g][there]
        others = n_cards[g] - 1 if g == h else n_cards[h]
        for k in self._movable if others else ():
            kind = problem.expert_kinds[k]
            rows: dict[Row, int] = {("sent", g, k): -1, ("guests", h, k): -1}
            if self._buffer(k, g) and h != problem.cpu:
                rows["near", g, k] = 1
            yield Between(("moved", g, h, k), kind.experts.ticks[g][there], kind.number, rows)
        n_layers = len(problem.layer_class)
        entries: dict[Row, int] = {("entered", h): n_cards[h]}
        onward = problem.in_order(g, h)
        if g == h and others:
            yield Between(("hop", g, h), hop, n_layers, {("out", g): -1, ("in", h): -1})
        elif g != h and onward:
            yield Between(("hop", g, h), hop, n_layers, {("out", g): -1, ("in", h): -1, **entries})
        start: dict[Row, int] = {("embedding", g): -1, ("in", h): -1, ("opens", h): -1, ("start",): 1, **entries}
        end: dict[Row, int] = {("head", g): -1, ("out", h): -1, ("end",): 1}
        if g == h:
            yield Between(("first", g), 0, 1, {**start, ("first", g): -1})
            yield Between(("last", g), 0, 1, {**end, ("last", g): -1})
        if others:
            yield Between(("start", g, h), hop, 1, start)
        if others and (problem.in_order(h, g) or not problem.head_in_order):
            yield Between(("end", h, g), problem.hop[there][g], 1, end)

    def add(self, step: Step) -> Between:
        """Count the cards that reach a step, from now on."""
        self.steps.append(step)
        self.limits[step.row] = (0, 0)
        self.between.append(Between(step.row, 0, self.groups[step.g], {step.row: -1}))
        return self.between[-1]

    def rows_of(self, contents: Contents, g: int) -> dict[Row, int]:
        """What contents of a card of group g count for."""
        rows: dict[Row, int] = {("layers", c): n for c, n in enumerate(contents.attention)}
        own = self.problem.by_kind(contents.attention)
        for k in self._movable:
            rows["sent", g, k] = own[k] - contents.local[k]
            rows["taken", g, k] = contents.experts[k] - contents.local[k]
            if self._buffer(k, g) > contents.staged:
                rows["near", g, k] = -rows["sent", g, k]
        rows["embedding", g] = rows["embeddings", g] = contents.embedding
        rows["head", g] = rows["heads", g] = contents.head
        rows["visits", g] = -contents.visits
        rows["first", g], rows["last", g] = contents.first, contents.last
        rows["entered", g] = rows["cards", g] = -contents.used
        rows |= {step.row: 1 for step in self.steps if step.g == g and step.reached(contents)}
        rows["opens", g] = contents.attention[self.problem.layer_class[0]]
        return rows

    def prices(self, duals: Mapping[Row, int], g: int, staged: int | None = None) -> Prices:
        """What contents of a card of group g earn at prices `duals` a row, less their own ticks; with a buffer of
        `staged` bytes, or as large as any."""
        problem, opening = self.problem, self.problem.layer_class[0]
        kinds = list(enumerate(problem.expert_kinds))
        return Prices(
            attention=[
                duals["layers", c] + (duals["opens", g] if c == opening else 0) - kind.attention.ticks[g]
                for c, kind in enumerate(problem.classes)
            ],
            local=[-kind.experts.ticks[g][g] for _, kind in kinds],
            sent=[
                duals.get(("sent", g, k), 0)
                - (duals.get(("near", g, k), 0) if staged is not None and self._buffer(k, g) > staged else 0)
                for k, _ in kinds
            ],
            taken=[duals.get(("taken", g, k), 0) for k, _ in kinds],
            embedding=duals["embedding", g] + duals.get(("embeddings", g), 0) - problem.embedding.ticks[g],
            head=duals["head", g] + duals.get(("heads", g), 0) - problem.head.ticks[g],
            used=-duals["entered", g] - duals.get(("cards", g), 0),
            visit=-duals["visits", g],
            first=duals.get(("first", g), 0),
            last=duals.get(("last", g), 0),
            attention_steps=self._steps(duals, g, experts=False),
            experts_steps=self._steps(duals, g, experts=True),
        )

    def _steps(self, duals: Mapping[Row, int], g: int, *, experts: bool) -> list[PricedStep]:
        return [
            (step.index, step.least, price)
            for step in self.steps
            if step.g == g and step.experts == experts and (price := duals.get(step.row, 0))
        ]
