"""A bound over all placements that may split a layer's experts, and how layers would best be split.

Each layer chooses a *mode*: a device for its attention, e of its experts there, n on the CPU and the others spread over
the other GPUs. What a mode takes is in the tables of `cost_models/split_tables.py`. The linear program mixes modes,
class by class, within the bytes of each group of equal cards; experts are small beside a card, so little is lost.
Modes are generated where prices ask for them, and the bound is the Lagrangian one, valid at any prices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp

from cost_models import CostModel, Step
from cost_models.split_tables import split_table
from solver.problem import Problem

Floats = NDArray[np.float64]
Row = tuple[str | int, ...]
GB = 1e9
ROUNDS = 80
NEAR = 2e-5
"""Modes that cost so much more than the cheapest, as a share of the whole, are let in as well."""


@dataclass(frozen=True)
class Mode:
    """A layer of class c with its attention and e experts on a card of one group, n experts on the CPU."""

    c: int
    group: int
    e: int
    n: int


@dataclass(frozen=True)
class SplitBound:
    """Seconds that no placement beats; the modes that the linear program mixes, as numbers of layers; and whether it
    has the embedding and the head on the CPU."""

    seconds: float
    modes: Mapping[Mode, float]
    embedding_on_cpu: bool
    head_on_cpu: bool


@dataclass(frozen=True)
class _Kind:
    """One class of layers seen from one group: bytes of attention, least bytes of k experts, seconds of every split."""

    attention_bytes: float
    attention_s: float
    own_bytes: Floats
    guest_bytes: Floats
    cpu_bytes: Floats
    seconds: Floats


class SplitTables:
    """Seconds and bytes of all classes of a problem, by class and group of equal devices."""

    def __init__(self, problem: Problem, costs: CostModel, steps: Sequence[Step]) -> None:
        self.problem, self.costs, self.steps = problem, costs, steps
        self.groups = {first: problem.twins.count(first) for first in dict.fromkeys(problem.twins)}
        self.cpu = problem.devices.index("cpu")
        self._seconds: dict[tuple[int, int, tuple[bool, ...]], Floats] = {}
        self.kinds = {
            (c, g): self._kind(c, g)
            for c, kind in enumerate(problem.classes)
            for g in self.groups
            if kind.attention.allowed[g]
        }

    def layer_of(self, c: int) -> int:
        """Some layer of class c."""
        return self.problem.layer_class.index(c)

    def _kind(self, c: int, g: int) -> _Kind:
        problem, attention = self.problem, self.problem.classes[c].attention
        zero = np.zeros(1)
        if problem.classes[c].experts is None:
            return _Kind(attention.bytes[g], attention.ticks[g] * problem.tick_s, zero, zero, zero, np.zeros((1, 1)))
        gpu = next((d for d in self.groups if d != self.cpu), self.cpu)
        return _Kind(
            attention.bytes[g],
            attention.ticks[g] * problem.tick_s,
            self._least_bytes(c, g),
            self._least_bytes(c, gpu),
            self._least_bytes(c, self.cpu),
            self._table(c, g),
        )

    def _least_bytes(self, c: int, d: int) -> Floats:
        """At least the bytes of any k experts of class c on d."""
        experts = self.costs.layer(self.layer_of(c)).experts
        assert experts is not None
        stored = experts.weight_bytes.on(self.costs.device[self.problem.devices[d]].kind)
        if experts.expert_weight_bytes is None:
            return stored * np.arange(experts.count + 1) / experts.count
        sizes = np.sort(np.array(experts.expert_weight_bytes, dtype=float)) * stored / max(1, experts.weight_bytes.gpu)
        return np.concatenate(([0.0], np.cumsum(sizes)))

    def _table(self, c: int, g: int) -> Floats:
        experts = self.problem.classes[c].experts
        assert experts is not None
        layer = self.layer_of(c)
        key = (self.costs.layer_class[layer], g, experts.allowed)
        if key not in self._seconds:
            names = self.problem.devices
            guests = [names[d] for d in range(len(names)) if d not in (g, self.cpu) and experts.allowed[d]]
            table = split_table(self.costs, layer, names[g], guests, self.steps).seconds
            if not experts.allowed[g]:
                table[1:, :] = np.inf
            if not experts.allowed[self.cpu]:
                table[:, 1:] = np.inf
            self._seconds[key] = table
        return self._seconds[key]


class SplitProgram:
    """The linear program over modes."""

    def __init__(self, tables: SplitTables, charged: bool) -> None:
        self.charged = charged
        self.tables, self.problem = tables, tables.problem
        self.groups, self.cpu = tables.groups, tables.cpu
        self.gpus = [g for g in self.groups if g != self.cpu]
        self.lp = pywraplp.Solver.CreateSolver("GLOP")
        self.lp.Objective().SetMinimization()
        self.rows: dict[Row, pywraplp.Constraint] = {}
        self.caps: dict[Row, float] = {}
        self.others: list[tuple[float, float, dict[Row, float]]] = []
        self.ends: dict[str, list[tuple[float, dict[Row, float]]]] = {"start": [], "end": []}
        self._end_variables: dict[str, list[pywraplp.Variable]] = {"start": [], "end": []}
        self.modes: dict[Mode, pywraplp.Variable] = {}
        self._rows()
        self._variables()

    # ---- rows: sums that may be at most `cap` ----

    def _rows(self) -> None:
        problem = self.problem
        for g, size in self.groups.items():
            lean = self._workspace(g)[0]
            usable = problem.usable[g] / GB
            self._at_most(("room", g), size * max(0.0, usable - lean))
            self._at_most(("experts", g), 0.0)
            self._at_most(("cards", g), 0.0)
            self._at_most(("opens", g), 0.0)
            self._at_most(("closes", g), 0.0)
        self._at_most(("pool",), 0.0)
        self._at_most(("hops",), 1.0)
        self._at_most(("some",), -1.0 if self.charged else 0.0)
        self.demand = [self.lp.Constraint(n, n) for n in problem.class_sizes]
        self.chosen = {end: self.lp.Constraint(1, 1) for end in self.ends}

    def _at_most(self, row: Row, cap: float) -> None:
        self.rows[row] = self.lp.Constraint(-self.lp.infinity(), cap)
        self.caps[row] = cap

    def _workspace(self, g: int) -> tuple[float, float, float]:
        """GB that a card of group g needs at least while it runs: whatever is on it, with experts, with attention."""
        attention = [kind.attention.workspace for kind in self.problem.classes if kind.attention.allowed[g]]
        experts = [k.experts.workspace for k in self.problem.classes if k.experts is not None and k.experts.allowed[g]]
        full = min(experts, default=0)
        lean = min([full, *attention] if experts else attention, default=0)
        used = max(lean, min(attention, default=0)) if self.charged else lean
        return lean / GB, full / GB, used / GB

    # ---- variables ----

    def _variables(self) -> None:
        problem, tick = self.problem, self.problem.tick_s
        hops = [problem.hop[a][b] for a in range(len(problem.devices)) for b in range(len(problem.devices)) if a != b]
        total = self._most_guests()
        for g, size in self.groups.items():
            lean, full, used = self._workspace(g)
            usable = problem.usable[g] / GB
            self._other(0.0, size, {("experts", g): -max(0.0, usable - full), ("room", g): full - lean})
            # A card with experts has paid for theirs already.
            extra = max(0.0, used - full) if self.charged else 0.0
            more: dict[Row, float] = {("cards", g): -max(0.0, usable - used), ("room", g): extra}
            self._other(0.0, size, {**more, ("hops",): 1.0, ("some",): -1.0})
            if g != self.cpu:
                self._other(0.0, total, {("pool",): -1.0, ("room", g): 1.0, ("experts", g): 1.0})
        self._other(min(hops, default=0) * tick, len(problem.devices), {("hops",): -1.0})
        for g in self.groups:
            for h in self.groups:
                near = 0 if g == h else problem.hop[g][h]
                if problem.embedding.allowed[g]:
                    rows: dict[Row, float] = {("room", g): problem.embedding.bytes[g] / GB, ("opens", h): 1.0}
                    self._end("start", (problem.embedding.ticks[g] + near) * tick, rows)
                if problem.head.allowed[g]:
                    own = problem.head.bytes[g] - problem.tied_bytes
                    rows = {("room", g): own / GB, ("closes", h): 1.0}
                    self._end("end", (problem.head.ticks[g] + near) * tick, rows)

    def _most_guests(self) -> float:
        """GB of all experts, and more."""
        sizes = zip(self.problem.classes, self.problem.class_sizes, strict=True)
        return 1 + sum(n * max(kind.experts.bytes) / GB for kind, n in sizes if kind.experts is not None)

    def _other(self, cost: float, most: float, rows: dict[Row, float]) -> None:
        self._variable(cost, rows)
        self.others.append((cost, most, rows))

    def _end(self, end: str, cost: float, rows: dict[Row, float]) -> None:
        variable = self._variable(cost, rows)
        self.chosen[end].SetCoefficient(variable, 1.0)
        self.ends[end].append((cost, rows))
        self._end_variables[end].append(variable)

    def on_cpu(self, end: str) -> bool:
        """Whether the solution has most of this end's block on the CPU."""
        options = zip(self.ends[end], self._end_variables[end], strict=True)
        return bool(sum(v.solution_value() for (_, rows), v in options if ("room", self.cpu) in rows) > 0.5)

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
        cost = kind.attention_s + float(kind.seconds[mode.e, mode.n])
        own, away = kind.own_bytes[mode.e] / GB, kind.cpu_bytes[mode.n] / GB
        rest = len(kind.seconds) - 1 - mode.e - mode.n
        rows: dict[Row, float] = {
            ("room", mode.group): kind.attention_bytes / GB + own,
            ("experts", mode.group): own,
            ("cards", mode.group): kind.attention_bytes / GB + own,
            ("pool",): float(kind.guest_bytes[rest]) / GB,
        }
        rows["room", self.cpu] = rows.get(("room", self.cpu), 0.0) + away
        if mode.c == self.problem.layer_class[0]:
            rows["opens", mode.group] = -1.0
        if mode.c == self.problem.layer_class[-1]:
            rows["closes", mode.group] = -1.0
        variable = self._variable(cost, rows)
        self.demand[mode.c].SetCoefficient(variable, 1.0)
        self.modes[mode] = variable
        return True

    # ---- prices ----

    def cheapest(self, prices: Mapping[Row, float], c: int, g: int) -> tuple[float, Mode]:
        """The least that a layer of class c on group g costs at `prices`, and how."""
        kind = self.tables.kinds[c, g]
        bytes_here = prices["room", g] + prices["cards", g]
        own = kind.own_bytes / GB * (bytes_here + prices["experts", g])
        away = kind.cpu_bytes / GB * prices["room", self.cpu]
        pool = kind.guest_bytes / GB * prices[("pool",)]
        e, n = np.indices(kind.seconds.shape)
        rest = np.maximum(0, len(own) - 1 - e - n)
        value = kind.seconds + own[:, None] + away[None, :] + pool[rest]
        at = int(np.argmin(value))
        fixed = kind.attention_s + kind.attention_bytes / GB * bytes_here
        fixed -= prices["opens", g] * (c == self.problem.layer_class[0])
        fixed -= prices["closes", g] * (c == self.problem.layer_class[-1])
        return float(value.flat[at]) + fixed, Mode(c, g, *map(int, divmod(at, len(own))))

    def bound(self, prices: Mapping[Row, float], layers: Sequence[float]) -> float:
        """The Lagrangian bound: `layers` is the least that a layer of each class costs at `prices`."""

        def reduced(cost: float, rows: Mapping[Row, float]) -> float:
            return cost + sum(value * prices[row] for row, value in rows.items())

        total = sum(n * least for n, least in zip(self.problem.class_sizes, layers, strict=True))
        total += sum(min(0.0, reduced(cost, rows)) * most for cost, most, rows in self.others)
        for options in self.ends.values():
            total += min(reduced(cost, rows) for cost, rows in options)
        return total - sum(cap * prices[row] for row, cap in self.caps.items())


def split_bound(tables: SplitTables, *, charged: bool = True) -> SplitBound | None:
    """The bound and the modes that reach it; None where the linear program has no solution or GLOP fails.

    `charged`: cards with attention keep its workspace. That gives the better bound; but as the program uses fractions
    of a card it then has few experts beside their attention, and plans are often better without.
    """
    program, best = SplitProgram(tables, charged), 0.0
    for c, g in tables.kinds:
        last = len(tables.kinds[c, g].seconds) - 1
        for e, n in {(last, 0), (0, last), divmod(int(np.argmin(tables.kinds[c, g].seconds)), last + 1)}:
            if np.isfinite(tables.kinds[c, g].seconds[e, n]):
                program.add(Mode(c, g, e, n))
    modes: dict[Mode, float] = {}
    on_cpu = {"start": False, "end": False}
    for _ in range(ROUNDS):
        if program.lp.Solve() != pywraplp.Solver.OPTIMAL:
            return None
        prices = {row: max(0.0, -constraint.dual_value() / program.scale) for row, constraint in program.rows.items()}
        found = {key: program.cheapest(prices, *key) for key in tables.kinds}
        least = [min(found[c, g][0] for k, g in tables.kinds if k == c) for c in range(len(tables.problem.classes))]
        best = max(best, program.bound(prices, least))
        value = program.lp.Objective().Value() / program.scale
        modes = {mode: weight for mode, v in program.modes.items() if (weight := v.solution_value()) > 1e-7}
        on_cpu = {end: program.on_cpu(end) for end in on_cpu}
        if value - best < 2e-5 * value:
            break
        fresh = [program.add(mode) for (c, _), (cost, mode) in found.items() if cost < least[c] + NEAR * value]
        if not any(fresh):
            break
    return SplitBound(best * (1 - 1e-9), modes, on_cpu["start"], on_cpu["end"])
