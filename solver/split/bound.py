"""A bound over all placements that split layers' experts, and the modes of layers that reach it.

The linear program of `solver/split/linear_program.py` mixes modes within the bytes of the cards; modes are generated
where prices ask for them, and the bound is the Lagrangian one, valid at any prices. Numbers of cards of each kind are
whole in every placement, so where they are not in the program it is solved again for fewer and for more.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from solver.split.linear_program import ALONE, BOTH, LENT, Cards, Mode, Ranges, SplitProgram
from solver.split.tables import SplitTables

ROUNDS = 80
"""Rounds of pricing for one linear program."""
NODES = 40
"""Linear programs, at most, over whole numbers of cards."""
WHOLE = 1e-4
"""Numbers of cards that are so near to a whole one are taken as whole."""
CLOSE = 1e-4
"""Pricing stops when the bound is so near to the program's value, as a share."""
NEAR = 2e-5
"""Modes that cost so much more than the cheapest, as a share of the whole, are let in as well."""


@dataclass(frozen=True)
class SplitBound:
    """Seconds that no placement beats; the modes that the linear program mixes, as numbers of layers; how many cards of
    each kind it uses; groups whose cards with attention take guests of their own group; and whether it has the
    embedding and the head on the CPU."""

    seconds: float
    modes: Mapping[Mode, float]
    cards: Mapping[Cards, float]
    lends_itself: tuple[int, ...]
    embedding_on_cpu: bool
    head_on_cpu: bool


def split_bound(tables: SplitTables, deadline: float = math.inf) -> SplitBound | None:
    """The bound and what reaches it, as far as it was found before the `deadline`; None where the linear program has no
    solution or GLOP fails."""
    search = _Search(SplitProgram(tables), deadline)
    return search.run()


class _Search:
    """Whole numbers of cards, the least bound first."""

    def __init__(self, program: SplitProgram, deadline: float) -> None:
        self.program, self.tables, self.deadline = program, program.tables, deadline
        for c, g in self.tables.kinds:
            costs = self.tables.kinds[c, g]
            _, fastest = costs.cheapest(0.0, 0.0, (0.0, 0.0), own_too=True)
            for e, n, k in {(costs.count, 0, 0), (0, costs.count, 0), fastest}:
                if math.isfinite(costs.seconds[e, n]):
                    program.add(Mode(c, g, BOTH, e, n, k))

    def run(self) -> SplitBound | None:
        everything = {cards: (0, self.tables.groups[cards[0]]) for cards in self.program.cards}
        first = self._solve(everything, 0.0)
        if first is None:
            return None
        # Ties go to the earlier one.
        open_: list[tuple[float, int, SplitBound, Ranges]] = [(first.seconds, 0, first, everything)]
        for serial in range(1, 2 * NODES, 2):
            _, _, found, ranges = open_[0]
            branch = _branch(found, ranges)
            if branch is None or self.late:
                break
            heapq.heappop(open_)
            for i, side in enumerate(branch):
                if self._possible(side):
                    # Where GLOP fails, what is known of the wider range still holds.
                    child = self._solve(side, found.seconds) or found
                    heapq.heappush(open_, (child.seconds, serial + i, child, side))
            if not open_:
                return None
        return open_[0][2]

    def _possible(self, ranges: Ranges) -> bool:
        groups = self.tables.groups
        return all(sum(least for (h, _), (least, _) in ranges.items() if h == g) <= groups[g] for g in groups)

    def _solve(self, ranges: Ranges, floor: float) -> SplitBound | None:
        """The program with so many cards: a bound of at least `floor`, that of a wider range; None where GLOP fails."""
        program, best, found = self.program, floor, None
        program.limit(ranges)
        for _ in range(ROUNDS):
            prices = program.solve()
            if prices is None:
                return found
            options = {
                (c, g, kind): program.cheapest(prices, c, g, kind)
                for c, g in self.tables.kinds
                for kind in program.kinds(g)
                if kind != LENT and ranges[g, kind][1]
            }
            least = [
                min((cost for (k, _, _), (cost, _) in options.items() if k == c), default=math.inf)
                for c in range(len(self.tables.problem.classes))
            ]
            best = max(best, program.bound(prices, least) * (1 - 1e-9))
            found = self._read(best)
            value = program.value
            if value - best < CLOSE * value:
                break
            fresh = [program.add(mode) for (c, _, _), (cost, mode) in options.items() if cost < least[c] + NEAR * value]
            if not any(fresh) or self.late:
                break
        return found

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def _read(self, seconds: float) -> SplitBound:
        program = self.program
        modes = {mode: weight for mode, v in program.modes.items() if (weight := v.solution_value()) > 1e-7}
        cards = {which: column.value for which, column in program.cards.items()}
        lends = tuple(g for g in program.groups if program.lends_itself(g))
        return SplitBound(seconds, modes, cards, lends, program.on_cpu("start"), program.on_cpu("end"))


def _branch(found: SplitBound, ranges: Ranges) -> tuple[Ranges, Ranges] | None:
    """Fewer and more cards of the kind whose number is least whole; where all are, and one card alone with attention
    lends room to its own layers, one such card or more. None if there is nothing to decide."""
    off = {which: abs(value - round(value)) for which, value in found.cards.items()}
    which = max(off, key=lambda which: off[which])
    (least, most), value = ranges[which], found.cards[which]
    if off[which] < WHOLE:
        return _lonely(found, ranges)
    return {**ranges, which: (least, math.floor(value))}, {**ranges, which: (math.ceil(value), most)}


def _lonely(found: SplitBound, ranges: Ranges) -> tuple[Ranges, Ranges] | None:
    for g in found.lends_itself:
        if found.cards[g, BOTH] + found.cards[g, ALONE] < 2 - WHOLE:
            for which, some in (((g, BOTH), 1), ((g, ALONE), 0)):
                least, most = ranges[which]
                if most > some:
                    return {**ranges, which: (least, some)}, {**ranges, which: (max(least, some + 1), most)}
    return None
