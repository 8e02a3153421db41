"""The linear program over modes of layers and kinds of cards; its prices, and the bound at any prices.

A *mode* is a layer with its attention on a card of one group, e experts there, n on the CPU and the others spread over
the other GPUs. A *kind* says what a card has beside the embedding and the head, since a workspace is kept for experts
however few they are: attention (`ALONE`), experts (`LENT`) or both (`BOTH`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ortools.linear_solver import pywraplp

from solver.split.tables import GB, SplitTables

ALONE, LENT, BOTH = "alone", "lent", "both"
Row = tuple[str | int, ...]
Cards = tuple[int, str]
"""A group and a kind of its cards."""
Ranges = Mapping[Cards, tuple[int, int]]
"""The least and the most cards of each group and kind."""
DEAR = 10.0
"""A layer that finds no room is left out at so many times its dearest mode: that keeps the program feasible."""


@dataclass(frozen=True)
class Mode:
    """A layer of class c with its attention and e experts on a card of one group and kind, n experts on the CPU and k
    on the first sort of other GPUs."""

    c: int
    group: int
    kind: str
    e: int
    n: int
    k: int


@dataclass
class _Column:
    """A variable that is no mode: its cost, its coefficients, and how many there are at least and at most."""

    cost: float
    rows: Mapping[Row, float]
    most: float
    least: float = 0.0
    variable: pywraplp.Variable | None = None

    @property
    def value(self) -> float:
        assert self.variable is not None
        return float(self.variable.solution_value())


class SplitProgram:
    """Rows are sums that may be at most `caps`; modes are added as prices ask for them."""

    def __init__(self, tables: SplitTables) -> None:
        self.tables, self.problem = tables, tables.problem
        self.groups, self.cpu = tables.groups, tables.cpu
        self.lp = pywraplp.Solver.CreateSolver("GLOP")
        self.lp.Objective().SetMinimization()
        self.rows: dict[Row, pywraplp.Constraint] = {}
        self.caps: dict[Row, float] = {}
        self.cards: dict[Cards, _Column] = {}
        self.others: list[_Column] = []
        self.within: dict[int, list[_Column]] = {}
        self.ends: dict[str, list[_Column]] = {"start": [], "end": []}
        self.modes: dict[Mode, pywraplp.Variable] = {}
        self.without: list[pywraplp.Variable] = []
        self._rows()
        self._variables()

    def kinds(self, g: int) -> tuple[str, ...]:
        """The CPU is one device: it needs no kinds."""
        return (BOTH,) if g == self.cpu else (ALONE, LENT, BOTH)

    # ---- rows ----

    def _rows(self) -> None:
        for g, size in self.groups.items():
            for kind in self.kinds(g):
                for row in ("room", "start", "end"):
                    self._at_most((row, g, kind), 0.0)
            self._at_most(("number", g), size)
            self._at_most(("opens", g), 0.0)
            self._at_most(("closes", g), 0.0)
        self._at_most(("ram",), self.tables.room(self.cpu, any_block=True))
        for g, sorts in self.tables.sorts.items():
            for j in range(len(sorts)):
                self._at_most(("lent", g, j), 0.0)
        self._at_most(("hops",), 1.0)
        self._at_most(("some",), -1.0)
        self.demand = [self.lp.Constraint(n, n) for n in self.problem.class_sizes]
        self.chosen = {end: self.lp.Constraint(1, 1) for end in self.ends}

    def _at_most(self, row: Row, cap: float) -> None:
        self.rows[row] = self.lp.Constraint(-self.lp.infinity(), cap)
        self.caps[row] = cap

    # ---- variables ----

    def _variables(self) -> None:
        problem = self.problem
        hops = [ticks for a, row in enumerate(problem.hop) for b, ticks in enumerate(row) if a != b]
        self._other(_Column(min(hops, default=0) * problem.tick_s, {("hops",): -1.0}, len(problem.devices)))
        for g, size in self.groups.items():
            for kind in self.kinds(g):
                rows: dict[Row, float] = {("room", g, kind): -self._capacity(g, kind), ("number", g): 1.0}
                rows |= {("start", g, kind): -1.0, ("end", g, kind): -1.0}
                if kind != LENT:
                    rows |= {("hops",): 1.0, ("some",): -1.0}
                self.cards[g, kind] = self._other(_Column(0.0, rows, size))
            for h in self.groups:
                self._add_ends(g, h)
        for g, sorts in self.tables.sorts.items():
            for j, h, kind in [
                (j, h, kind) for j, sort in enumerate(sorts) for h in sort.groups for kind in (LENT, BOTH)
            ]:
                lent: dict[Row, float] = {("lent", g, j): -1.0, ("room", h, kind): 1.0}
                flow = self._other(_Column(0.0, lent, self._most_lent()))
                if (h, kind) == (g, BOTH):
                    self.within.setdefault(g, []).append(flow)
        for c, constraint in enumerate(self.demand):
            dearest = max(kind.dearest_s for (k, _), kind in self.tables.kinds.items() if k == c)
            variable = self._variable(DEAR * dearest, {})
            constraint.SetCoefficient(variable, 1.0)
            self.without.append(variable)

    def _capacity(self, g: int, kind: str) -> float:
        """GB for blocks on a card of group g and a kind."""
        tables = self.tables
        if g == self.cpu:
            return tables.room(g, any_block=True)
        return tables.whole(tables.room(g, experts=True)) if kind == LENT else tables.room(g, True, kind == BOTH)

    def _most_lent(self) -> float:
        """GB of all experts, and more."""
        sizes = zip(self.problem.classes, self.problem.class_sizes, strict=True)
        return 1 + sum(n * max(kind.experts.bytes) / GB for kind, n in sizes if kind.experts is not None)

    def _add_ends(self, g: int, h: int) -> None:
        """The embedding and the head on group g, with the first or the last attention on group h."""
        problem, tick = self.problem, self.problem.tick_s
        for end, block, row, shared in (
            ("start", problem.embedding, "opens", 0),
            ("end", problem.head, "closes", problem.tied_bytes),
        ):
            if not block.allowed[g]:
                continue
            near = self.tables.cards.hop[(g, h) if end == "start" else (h, g)]
            for rows in self._homes(end, g, (block.bytes[g] - shared) / GB):
                column = _Column((block.ticks[g] + near) * tick, {**rows, (row, h): 1.0}, 1.0)
                column.variable = self._variable(column.cost, column.rows)
                self.chosen[end].SetCoefficient(column.variable, 1.0)
                self.ends[end].append(column)

    def _homes(self, end: str, g: int, size: float) -> list[dict[Row, float]]:
        """What a block of so many GB takes on group g: on a card of any kind, or where nothing else but an end is."""
        if g == self.cpu:
            return [{("ram",): size}]
        # Room that no whole expert fills is free.
        lent = max(0.0, size - self.tables.room(g, experts=True) + self._capacity(g, LENT))
        sizes = {ALONE: size, LENT: lent, BOTH: size}
        found: list[dict[Row, float]] = [{("number", g): 0.5}]
        for kind, room in sizes.items():
            found.append({("room", g, kind): room, (end, g, kind): 1.0})
        return found

    def _other(self, column: _Column) -> _Column:
        column.variable = self._variable(column.cost, column.rows)
        self.others.append(column)
        return column

    def _variable(self, cost: float, rows: Mapping[Row, float]) -> pywraplp.Variable:
        variable = self.lp.NumVar(0, self.lp.infinity(), "")
        self.lp.Objective().SetCoefficient(variable, cost * self.scale)
        for row, value in rows.items():
            self.rows[row].SetCoefficient(variable, value)
        return variable

    @cached_property
    def scale(self) -> float:
        """GLOP's tolerances are absolute: a layer should cost about one."""
        return 1.0 / max(1e-12, max(kind.attention_s for kind in self.tables.kinds.values()))

    def add(self, mode: Mode) -> bool:
        if mode in self.modes:
            return False
        kind = self.tables.kinds[mode.c, mode.group]
        rest = kind.count - mode.e - mode.n
        here = (kind.attention_bytes + kind.own_bytes[mode.e]) / GB
        rows: dict[Row, float] = {
            ("room", mode.group, mode.kind): here,
            ("ram",): float(kind.cpu_bytes[mode.n]) / GB + (here if mode.group == self.cpu else 0.0),
        }
        for j, n in enumerate((mode.k, rest - mode.k)):
            if n:
                rows["lent", mode.group, j] = float(kind.guest_bytes[n]) / GB
        if mode.c == self.problem.layer_class[0]:
            rows["opens", mode.group] = -1.0
        if mode.c == self.problem.layer_class[-1]:
            rows["closes", mode.group] = -1.0
        variable = self._variable(kind.attention_s + kind.split_s(mode.e, mode.n, mode.k), rows)
        self.demand[mode.c].SetCoefficient(variable, 1.0)
        self.modes[mode] = variable
        return True

    # ---- solutions and prices ----

    def limit(self, ranges: Ranges) -> None:
        """So many cards of each group and kind."""
        for cards, (least, most) in ranges.items():
            column = self.cards[cards]
            column.least, column.most = least, most
            assert column.variable is not None
            column.variable.SetBounds(least, most)
        for g, flows in self.within.items():
            # The only card of a group with attention takes no guests of its own layers.
            lonely = ranges[g, BOTH][1] <= 1 and ranges[g, ALONE][1] == 0
            for flow in flows:
                flow.most = 0.0 if lonely else self._most_lent()
                assert flow.variable is not None
                flow.variable.SetUb(flow.most if lonely else self.lp.infinity())

    def solve(self) -> dict[Row, float] | None:
        """The prices of all rows; None where GLOP fails."""
        if self.lp.Solve() != pywraplp.Solver.OPTIMAL:
            return None
        return {row: max(0.0, -constraint.dual_value() / self.scale) for row, constraint in self.rows.items()}

    def lends_itself(self, g: int) -> bool:
        """Whether cards of group g with attention and experts take guests of their own group."""
        return sum(flow.value for flow in self.within.get(g, ())) > 1e-6

    @property
    def value(self) -> float:
        return float(self.lp.Objective().Value()) / self.scale

    def on_cpu(self, end: str) -> bool:
        """Whether the solution has most of this end's block on the CPU."""
        return sum(column.value for column in self.ends[end] if ("ram",) in column.rows) > 0.5

    def cheapest(self, prices: Mapping[Row, float], c: int, g: int, kind: str) -> tuple[float, Mode]:
        """The least that a layer of class c on a card of group g costs at `prices`, and how."""
        costs = self.tables.kinds[c, g]
        here = prices["room", g, kind] + (prices[("ram",)] if g == self.cpu else 0.0)
        fixed = costs.attention_s + costs.attention_bytes / GB * here
        fixed -= prices["opens", g] * (c == self.problem.layer_class[0])
        fixed -= prices["closes", g] * (c == self.problem.layer_class[-1])
        lent = [prices["lent", g, j] for j in range(len(self.tables.sorts[g]))] or [0.0]
        least, split = costs.cheapest(here, prices[("ram",)], lent, own_too=kind != ALONE)
        return least + fixed, Mode(c, g, kind, *split)

    def bound(self, prices: Mapping[Row, float], layers: Sequence[float]) -> float:
        """The Lagrangian bound: `layers` is the least that a layer of each class costs at `prices`."""

        def reduced(column: _Column) -> float:
            return column.cost + sum(value * prices[row] for row, value in column.rows.items())

        total = sum(n * least for n, least in zip(self.problem.class_sizes, layers, strict=True))
        for column in self.others:
            gain = reduced(column)
            total += gain * (column.most if gain < 0 else column.least)
        total += sum(min(map(reduced, options)) for options in self.ends.values())
        return total - sum(cap * prices[row] for row, cap in self.caps.items())
