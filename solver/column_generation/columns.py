"""A bound from what whole cards can hold: column generation, and branching on what lies between the cards.

Every placement loads each card with some contents, and the contents of all cards together make up the model. The linear
program that mixes contents card by card is therefore a lower bound over all placements, and a good one, since no card
in it holds half a layer more than fits. Contents are generated where prices ask for them (Gilmore and Gomory 1961).
At any prices the Lagrangian bound is valid; it is computed in whole ticks, so no rounding of the LP can spoil it.

The numbers between cards (cards used, experts on the CPU, hops, …) are whole in every placement. Where they are not in
the linear program, it is solved again for fewer and for more of them, and the worse of the two bounds holds for all.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count

from ortools.linear_solver import pywraplp

from solver.column_generation.contents import Contents, Knapsack
from solver.column_generation.interleaved import InterleavedKnapsack
from solver.column_generation.network import UNLIMITED, Network, Row, Step
from solver.column_generation.windows import Windows
from solver.problem import Problem

WHOLE = 1e-5
"""A number this near to a whole one counts as whole."""

WARM_UP = 60
"""Rounds of quick columns before the first exact one, at most."""

DIVE = 6
"""Rounds of quick columns after each card that is settled."""

BRANCH_FIRST = (
    *("away", "heads", "cards", "experts", "attention", "visits"),
    *("guests", "moved", "embeddings", "first", "last", "start", "end", "hop"),
)
"""What is branched on first. Experts on the CPU cost most, and what cards hold settles what lies between them; steps of
one card's numbers of `experts` and `attention` are counted when they are branched on."""


def _tries() -> tuple[pywraplp.MPSolverParameters, ...]:
    """From where the last program ended; should that end abnormally, afresh by either algorithm."""
    kinds = pywraplp.MPSolverParameters
    onward, dual, primal = kinds(), kinds(), kinds()
    for afresh, algorithm in ((dual, kinds.DUAL), (primal, kinds.PRIMAL)):
        afresh.SetIntegerParam(kinds.INCREMENTALITY, kinds.INCREMENTALITY_OFF)
        afresh.SetIntegerParam(kinds.LP_ALGORITHM, algorithm)
    return onward, dual, primal


TRIES = _tries()

Range = tuple[int, int]
Ranges = Mapping[Row, Range]


@dataclass(frozen=True)
class Priced:
    """Prices by row, the most that one card of each group earns at them, and the bound that this proves."""

    prices: Mapping[Row, int]
    earned: Mapping[int, int]
    bound: int


@dataclass(frozen=True)
class _Node:
    """A part of all placements: those whose numbers between cards lie in `ranges`. In the linear program's solution the
    number `branch` is `value`; None if all are whole."""

    bound: int
    ranges: Ranges
    branch: Row | None = None
    value: float = 0.0

    def parts(self, most: int) -> list[Ranges]:
        """With fewer and with more of the number to branch on, of which there are at most `most`."""
        assert self.branch is not None
        low, high = self.ranges.get(self.branch, (0, most))
        floor = math.floor(self.value)
        sides = [(low, min(floor, high)), (floor + 1, high)]
        return [{**self.ranges, self.branch: (least, up)} for least, up in sides if least <= up]


def _is_broken(value: float) -> bool:
    return abs(value - round(value)) > WHOLE


class ColumnSearch:
    """Branch and price; `bound` rises while it runs."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.network = Network(problem)
        self.rounds = 0
        windows = Windows(problem)
        self._knapsacks = {g: dict(self._with_buffers(g, windows)) for g in self.network.groups}
        self._master = _Master(self.network)
        self._heap: list[tuple[int, int, _Node]] = []
        self._order = count()
        self.first = Priced({}, {}, 0)

    def _with_buffers(self, g: int, windows: Windows) -> Iterator[tuple[int, Knapsack | InterleavedKnapsack]]:
        """The knapsack of a card of group g beside a buffer of each size."""
        for staged in self.network.buffers(g):
            room = self.problem.usable[g] - staged
            if room >= 0:
                usable = tuple(room if d == g else n for d, n in enumerate(self.problem.usable))
                problem = replace(self.problem, usable=usable) if staged else self.problem
                suits = InterleavedKnapsack.suits(problem, g, windows)
                yield staged, InterleavedKnapsack(problem, g, windows) if suits else Knapsack(problem, g)

    def _best(self, duals: Mapping[Row, int], g: int) -> tuple[int, Contents]:
        """The most that a card of group g can earn, and contents that do."""
        found = [
            (*knapsack.best(self.network.prices(duals, g, staged)), staged)
            for staged, knapsack in self._knapsacks[g].items()
        ]
        value, contents, staged = max(found, key=lambda one: one[0])
        return value, replace(contents, staged=staged) if staged else contents

    def start(self, known: Iterable[tuple[int, Contents]], enough: int, deadline: float) -> int:
        """The bound of the first linear program, begun with `known` contents; stops early at `enough` ticks."""
        for g, contents in known:
            if contents.fits(self.problem, g):
                self._master.add(g, contents)
        self._warm_up(deadline, WARM_UP)
        self._put(self._solve({}, 0, enough, deadline))
        return self.bound

    def dive(self, deadline: float) -> list[tuple[int, Contents]]:
        """Whole contents of cards where the bound is least: those that the linear program uses wholly are settled, or
        else those that it uses most, and it is solved again for the other cards, with new columns. A plan may not come
        of it, and no bound does."""
        master, cpu = self._master, self.problem.cpu
        master.restrict(self._heap[0][2].ranges if self._heap else {})
        settled: dict[int, int] = {}
        cards = sum(size for g, size in self.network.groups.items() if g != cpu)
        while sum(settled.values()) < cards and time.perf_counter() < deadline:
            self._warm_up(deadline, DIVE)
            if master.solve() is None:
                break
            self.rounds += 1
            left = {
                k: variable.solution_value() - settled.get(k, 0)
                for k, (g, _, variable) in enumerate(master.columns)
                if g != cpu
            }
            most = max(left.values(), default=0.0)
            if most < WHOLE:
                break
            for k in [k for k, n in left.items() if n > 1 - WHOLE] or [max(left, key=lambda k: (left[k], k))]:
                settled[k] = settled.get(k, 0) + max(1, int(left[k] + WHOLE))
                master.columns[k][2].SetLb(settled[k])
        for k in settled:
            master.columns[k][2].SetLb(0)
        return [master.columns[k][:2] for k, n in settled.items() for _ in range(n)]

    def _warm_up(self, deadline: float, rounds: int) -> None:
        """Columns from quick knapsacks, as long as they bring new ones: exact ones cost several times as much."""
        for _ in range(rounds):
            solved = self._master.solve() if time.perf_counter() < deadline else None
            if solved is None:
                return
            self.rounds += 1
            fresh = [
                self._master.add(g, replace(contents, staged=staged) if staged else contents)
                for g, sizes in self._knapsacks.items()
                for staged, knapsack in sizes.items()
                if (contents := knapsack.quick(self.network.prices(solved[1], g, staged))).fits(self.problem, g)
            ]
            if not any(fresh):
                return

    @property
    def bound(self) -> int:
        return self._heap[0][0] if self._heap else 0

    @property
    def contents(self) -> Mapping[int, list[Contents]]:
        return self._master.contents

    def improve(self, enough: int, rounds: int, deadline: float) -> int:
        """Branch until the bound is `enough`, or `rounds` more linear programs or the time are over."""
        last = self.rounds + rounds
        while self._heap and self.bound < enough and self.rounds < last and time.perf_counter() < deadline:
            node = self._heap[0][2]
            if node.branch is None:
                break
            most = next(item.most for item in self.network.between if item.name == node.branch)
            parts = [self._solve(ranges, node.bound, enough, deadline) for ranges in node.parts(most)]
            heapq.heappop(self._heap)
            for part in parts:
                self._put(part)
        return self.bound

    def _put(self, node: _Node) -> None:
        heapq.heappush(self._heap, (node.bound, next(self._order), node))

    def _solve(self, ranges: Ranges, bound: int, enough: int, deadline: float) -> _Node:
        """Generate columns until no contents would improve the linear program over `ranges`."""
        master = self._master
        master.restrict(ranges)
        while True:
            solved = master.solve() if time.perf_counter() < deadline else None
            self.rounds += 1
            if solved is None:
                return _Node(bound, ranges)
            values, duals, at = solved
            best = {g: self._best(duals, g) for g in self._knapsacks}
            earned = {g: value for g, (value, _) in best.items()}
            here = _lagrangian(self.network, duals, earned, ranges)
            if not ranges and here >= self.first.bound:
                self.first = Priced(duals, earned, here)
            bound = max(bound, here)
            if bound >= enough:
                return _Node(bound, ranges)
            if at - bound < 1e-6 * at:
                break
            fresh = [
                master.add(g, contents)
                for g, (_, contents) in best.items()
                if contents.bytes(self.problem, g) <= self.problem.usable[g]
            ]
            if not any(fresh):
                break
        return _Node(bound, ranges, *self._broken(values))

    def _broken(self, values: Mapping[Row, float]) -> tuple[Row | None, float]:
        """The number to branch on, and its value: of the first of `BRANCH_FIRST` that is not whole the one that is
        furthest from it."""
        for names in BRANCH_FIRST:
            if names in ("experts", "attention"):
                step, reached = self._broken_step(names == "experts")
                if step is not None:
                    if step not in self.network.steps:
                        self._master.count(step)
                    return step.row, reached
                continue
            broken = [
                (len(name) == 1, self.network.weight(name) * min(value % 1, -value % 1), name)
                for name, value in values.items()
                if name[0] == names and _is_broken(value)
            ]
            if broken:
                name = max(broken, key=lambda item: item[:2])[2]
                return name, values[name]
        return None, 0.0

    def _broken_step(self, experts: bool) -> tuple[Step | None, float]:
        """The step that the least whole number of cards reaches, counting more where a card more would save more."""
        best: tuple[float, Step | None, float] = (0.0, None, 0.0)
        for g, size in self.network.groups.items():
            used = [
                (v, held) for h, held, var in self._master.columns if h == g and (v := var.solution_value()) > WHOLE
            ]
            if g == self.problem.cpu and size == 1:
                continue
            worth = max(WHOLE, -self._master.cards[g].dual_value())
            columns = [(v, held.experts if experts else held.attention) for v, held in used]
            for index in range(len(columns[0][1]) if columns else 0):
                for least in sorted({numbers[index] for _, numbers in columns} - {0}):
                    reached = sum(v for v, numbers in columns if numbers[index] >= least)
                    score = worth * abs(reached - round(reached))
                    if _is_broken(reached) and score > best[0] * (1 + WHOLE):
                        best = score, Step(g, experts, index, least), reached
        return best[1:]


class _Master:
    """The linear program: contents and what is between them, at least ticks."""

    def __init__(self, network: Network) -> None:
        self.network = network
        # GLOP's tolerances are absolute: costs should be near one.
        self.scale = network.highest_price / 1000
        self.lp = pywraplp.Solver.CreateSolver("GLOP")
        # Preprocessing would start every solve afresh.
        self.lp.SetSolverSpecificParametersAsString("use_preprocessing: false")
        self.lp.Objective().SetMinimization()
        infinity = self.lp.infinity()
        self.rows = {
            row: self.lp.Constraint(least, infinity if most == UNLIMITED else most)
            for row, (least, most) in network.limits.items()
        }
        self.cards = {g: self.lp.Constraint(0, size) for g, size in network.groups.items()}
        self.contents: dict[int, list[Contents]] = {g: [] for g in network.groups}
        self.columns: list[tuple[int, Contents, pywraplp.Variable]] = []
        self.between = {item.name: self._variable(item.ticks, item.rows) for item in network.between}
        self._restricted: set[Row] = set()
        # Rows may be missed at a price, so that there always is a solution; it bounds the duals, no bound counts it.
        for row, (_, most) in network.limits.items():
            for sign in (1,) if most == UNLIMITED else (1, -1):
                self._variable(network.highest_price, {row: sign})

    def _variable(self, ticks: int, rows: Mapping[Row, int]) -> pywraplp.Variable:
        variable = self.lp.NumVar(0, self.lp.infinity(), "")
        self.lp.Objective().SetCoefficient(variable, ticks / self.scale)
        for row, n in rows.items():
            if n:
                self.rows[row].SetCoefficient(variable, n)
        return variable

    def add(self, g: int, contents: Contents) -> bool:
        """Let cards of group g hold these contents; False if they could already."""
        if contents in self.contents[g]:
            return False
        variable = self._variable(contents.ticks(self.network.problem, g), self.network.rows_of(contents, g))
        self.cards[g].SetCoefficient(variable, 1)
        self.contents[g].append(contents)
        self.columns.append((g, contents, variable))
        return True

    def count(self, step: Step) -> None:
        """Know how many cards reach a step."""
        item = self.network.add(step)
        row = self.rows[step.row] = self.lp.Constraint(0, 0)
        self.between[item.name] = self._variable(item.ticks, item.rows)
        for sign in (1, -1):
            self._variable(self.network.highest_price, {step.row: sign})
        for g, contents, variable in self.columns:
            if g == step.g and step.reached(contents):
                row.SetCoefficient(variable, 1)

    def restrict(self, ranges: Ranges) -> None:
        """Keep numbers between cards in `ranges`, and only those."""
        for name in self._restricted.difference(ranges):
            self.between[name].SetBounds(0, self.lp.infinity())
        for name, (low, high) in ranges.items():
            self.between[name].SetBounds(low, high)
        self._restricted = set(ranges)

    def solve(self) -> tuple[dict[Row, float], dict[Row, int], float] | None:
        """Values between cards, prices in whole ticks and of the right sign, and the objective; None if GLOP fails."""
        if not any(self.lp.Solve(parameters) == pywraplp.Solver.OPTIMAL for parameters in TRIES):
            return None
        highest, duals = self.network.highest_price, {}
        for row, (_, most) in self.network.limits.items():
            dual = round(self.rows[row].dual_value() * self.scale)
            duals[row] = min(highest, max(0 if most == UNLIMITED else -highest, dual))
        values = {name: variable.solution_value() for name, variable in self.between.items()}
        return values, duals, self.lp.Objective().Value() * self.scale


def _lagrangian(network: Network, duals: Mapping[Row, int], earned: Mapping[int, int], ranges: Ranges) -> int:
    """The bound at prices `duals`: rows at their prices, and everything else as often as is cheapest."""
    bound = sum(least * duals[row] for row, (least, _) in network.limits.items())
    for item in network.between:
        low, high = ranges.get(item.name, (0, item.most))
        reduced = item.ticks - sum(n * duals[row] for row, n in item.rows.items())
        bound += reduced * (low if reduced > 0 else high)
    return bound - sum(max(0, earned[g]) * size for g, size in network.groups.items())
