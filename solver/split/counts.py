"""Whole experts on whole cards: how many attentions and experts each device holds and how many layers have which split.

For models of few large experts, where the fractions of the linear program leave too much open: a card with room for
58.9 experts holds 58. Memory is exact but for the bytes of an expert, rounded down; the order of layers is forgotten,
and which layer's experts a card takes. So the bound holds for every placement that splits experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from solver.cp_sat.run import Limits, bound_of, search, total
from solver.problem import Problem
from solver.split.linear_program import BOTH, Mode
from solver.split.tables import SplitTables

FEW_EXPERTS = 16
"""With more experts in a layer there are too many splits to go through, and little is lost by fractions."""


@dataclass(frozen=True)
class SplitCounts:
    """Ticks that no placement beats; and where a solution was found, the devices of the embedding and the head, the
    numbers of attentions on each device and the layers of each mode."""

    bound: int
    ends: tuple[int, int] = (0, 0)
    attention: tuple[tuple[int, ...], ...] = ()
    modes: dict[Mode, float] | None = None


def few_experts(problem: Problem, tables: SplitTables) -> bool:
    """Whether layers have few experts, all alike, so that `split_counts` may be asked."""
    return all(
        costs.count <= FEW_EXPERTS and np.ptp(np.diff(costs.guest_bytes)) < 1.0
        for costs in tables.kinds.values()
        if costs.count
    )


def split_counts(problem: Problem, tables: SplitTables, limits: Limits, floor: int, ceiling: int | None) -> SplitCounts:
    """The best numbers with objectives below `ceiling` ticks, and a bound of at least `floor`."""
    return _Counts(problem, tables).solve(limits, floor, ceiling)


class _Counts:
    def __init__(self, problem: Problem, tables: SplitTables) -> None:
        self.problem, self.tables = problem, tables
        self.cp = cp_model.CpModel()
        self.devices, self.classes = range(len(problem.devices)), range(len(problem.classes))
        self.cost: list[tuple[int, cp_model.IntVar]] = []
        self._modes()
        self._devices()
        self._ends()
        self._links()

    # ---- variables ----

    def _modes(self) -> None:
        tables = self.tables
        self.modes: dict[Mode, cp_model.IntVar] = {}
        for (c, g), costs in tables.kinds.items():
            two = costs.rows is not None
            for e, n in zip(*np.nonzero(np.isfinite(costs.seconds)), strict=True):
                rest = costs.count - int(e) - int(n)
                for k in range(rest + 1) if two else (rest,):
                    mode = Mode(c, g, BOTH, int(e), int(n), k)
                    self.modes[mode] = self.cp.new_int_var(0, self.problem.class_sizes[c], "")
                    seconds = costs.attention_s + costs.split_s(mode.e, mode.n, k)
                    self.cost.append((int(seconds / self.problem.tick_s), self.modes[mode]))

    def _devices(self) -> None:
        problem, cp = self.problem, self.cp
        sizes = problem.class_sizes
        self.attention = {
            (d, c): cp.new_int_var(0, sizes[c] * problem.classes[c].attention.allowed[d], "")
            for d in self.devices
            for c in self.classes
        }
        self.own = {
            (d, c): cp.new_int_var(0, sizes[c] * self._count(c), "") for d in self.devices for c in self.classes
        }
        self.guests = {
            (d, c): cp.new_int_var(0, sizes[c] * self._count(c), "") for d in self.devices for c in self.classes
        }
        self.used = [cp.new_bool_var("") for _ in self.devices]
        self.ends = {end: [cp.new_bool_var("") for _ in self.devices] for end in ("start", "end")}
        for d in self.devices:
            self._room(d)
        first = {twin: d for d, twin in reversed(list(enumerate(problem.twins)))}
        for d, twin in enumerate(problem.twins):
            if d != twin:
                before = max(e for e in range(first[twin], d) if problem.twins[e] == twin)
                cp.add(
                    sum(self.attention[before, c] for c in self.classes)
                    >= sum(self.attention[d, c] for c in self.classes)
                )

    def _count(self, c: int) -> int:
        return next(costs.count for (k, _), costs in self.tables.kinds.items() if k == c)

    def _room(self, d: int) -> None:
        problem, cp = self.problem, self.cp
        need = cp.new_int_var(0, problem.usable[d], "")
        terms = [
            (1, need),
            (problem.embedding.bytes[d], self.ends["start"][d]),
            (problem.head.bytes[d], self.ends["end"][d]),
        ]
        for c, kind in enumerate(problem.classes):
            runs, holds = cp.new_bool_var(""), cp.new_bool_var("")
            here = self.attention[d, c]
            cp.add(here <= problem.class_sizes[c] * runs)
            cp.add(need >= min(kind.attention.workspace, problem.usable[d]) * runs)
            cp.add_implication(runs, self.used[d])
            terms.append((kind.attention.bytes[d], here))
            cp.add(self.own[d, c] <= self._count(c) * here)
            if kind.experts is not None:
                most = problem.class_sizes[c] * self._count(c) * kind.experts.allowed[d]
                cp.add(self.own[d, c] + self.guests[d, c] <= most * holds)
                cp.add(self.guests[d, c] <= self._count(c) * (problem.class_sizes[c] - here))
                cp.add(need >= min(kind.experts.workspace, problem.usable[d]) * holds)
                one = kind.experts.bytes[d] // self._count(c)
                terms += [(one, self.own[d, c]), (one, self.guests[d, c])]
        cp.add(total(terms) <= problem.usable[d] + problem.tied_bytes)

    def _ends(self) -> None:
        """The embedding and the head somewhere, and the hops between them and groups that have such attention."""
        problem, cards = self.problem, self.tables.cards
        for end, block, c in (
            ("start", problem.embedding, problem.layer_class[0]),
            ("end", problem.head, problem.layer_class[-1]),
        ):
            self.cp.add_exactly_one(self.ends[end])
            first = {h: self.cp.new_bool_var("") for h in self.tables.groups}
            self.cp.add_exactly_one(list(first.values()))
            for h in first:
                self.cp.add(sum(v for m, v in self.modes.items() if (m.c, m.group) == (c, h)) >= first[h])
            for d in self.devices:
                if not block.allowed[d]:
                    self.cp.add(self.ends[end][d] == 0)
                self.cost.append((block.ticks[d], self.ends[end][d]))
                for h in first:
                    pair = (cards.of[d], h) if end == "start" else (h, cards.of[d])
                    if cards.hop[pair]:
                        hop = self.cp.new_bool_var("")
                        self.cp.add_bool_or([self.ends[end][d].negated(), first[h].negated(), hop])
                        self.cost.append((cards.hop[pair], hop))

    # ---- what holds them together ----

    def _links(self) -> None:
        problem, cp, groups = self.problem, self.cp, self.tables.cards.of
        for c in self.classes:
            cp.add(sum(v for m, v in self.modes.items() if m.c == c) == problem.class_sizes[c])
            for g in self.tables.groups:
                mine = [(m, v) for m, v in self.modes.items() if (m.c, m.group) == (c, g)]
                cards = [d for d in self.devices if groups[d] == g]
                cp.add(sum(self.attention[d, c] for d in cards) == sum(v for _, v in mine))
                cp.add(sum(self.own[d, c] for d in cards) == total((m.e, v) for m, v in mine))
            cp.add(self.guests[problem.cpu, c] == total((m.n, v) for m, v in self.modes.items() if m.c == c))
            self._lend(c)
        hops = [ticks for a, row in enumerate(problem.hop) for b, ticks in enumerate(row) if a != b]
        moves = cp.new_int_var(0, len(problem.devices), "")
        cp.add(moves >= sum(self.used) - 1)
        self.cost.append((min(hops, default=0), moves))

    def _lend(self, c: int) -> None:
        """Guests on every group come from groups that count it to one of their sorts."""
        taken: dict[int, list[cp_model.IntVar]] = {g: [] for g in self.tables.groups}
        for g, sorts in self.tables.sorts.items():
            mine = [(m, v) for m, v in self.modes.items() if (m.c, m.group) == (c, g)]
            for j, sort in enumerate(sorts):
                flows = []
                for h in sort.groups:
                    flows.append(self.cp.new_int_var(0, self.problem.class_sizes[c] * self._count(c), ""))
                    taken[h].append(flows[-1])
                lent = [(m.k if j == 0 else self._count(c) - m.e - m.n - m.k, v) for m, v in mine]
                self.cp.add(sum(flows) == total(lent))
        for h in self.tables.groups:
            if h != self.problem.cpu:
                cards = [d for d in self.devices if self.tables.cards.of[d] == h]
                self.cp.add(sum(self.guests[d, c] for d in cards) == sum(taken[h]))

    # ---- the answer ----

    def solve(self, limits: Limits, floor: int, ceiling: int | None) -> SplitCounts:
        objective = total(self.cost)
        self.cp.add(objective >= floor)
        if ceiling is not None:
            self.cp.add(objective <= ceiling)
        self.cp.minimize(objective)
        solver, status = search(self.cp, limits)
        if status == "infeasible":
            return SplitCounts(ceiling or floor)
        bound = max(floor, bound_of(solver, status))
        if status not in ("optimal", "feasible"):
            return SplitCounts(bound)
        attention = tuple(tuple(solver.value(self.attention[d, c]) for c in self.classes) for d in self.devices)
        start, end = (next(d for d in self.devices if solver.value(self.ends[which][d])) for which in ("start", "end"))
        return SplitCounts(
            bound, (start, end), attention, {m: float(n) for m, v in self.modes.items() if (n := solver.value(v))}
        )
