"""From cheap to dear: bounds that hold for every placement, and plans, until one meets the other or time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from profiles.placement import Placement
from solver.assignment import Assignment
from solver.column_generation.columns import ColumnSearch
from solver.column_generation.contents import contents_of
from solver.cp_sat.busiest import solve_busiest
from solver.cp_sat.counts import solve_counts
from solver.cp_sat.free_order import is_small, solve_free_order
from solver.cp_sat.patterns import MAX_PATTERNS, solve_patterns, worthwhile
from solver.cp_sat.scip_counts import solve_scip_counts
from solver.cp_sat.slices import solve_slices
from solver.deviations import reserved
from solver.equal_cards.best import EqualCards
from solver.heuristics.deal import Deal
from solver.problem import Problem
from solver.search.plans import NO_CEILING, PlanSearch, ProvedInfeasible

FEW_PATTERNS = 40
"""So many patterns are solved in no time, so they come before anything that is slow."""
RESERVED_SHARE = 0.4
"""Share of the time for plans that keep too much free for deviations."""
UNORDERED_SHARE = 0.5
"""Share of the time for the search without a target's order of devices."""
ROUNDS_PER_SECOND = 60
"""Linear programs of the branching for each second of the time limit: about a third of it on two slow cores. All shares
add up to less than the limit, so that the plan does not depend on how busy the machine is."""
SMALL = 10
"""So many times fewer where the free-order model decides soon."""
FIRST_ROUNDS = 0.25
"""Share of these before anything that is slower."""


class Portfolio(PlanSearch):
    """The search as a whole: what is tried, and in which order."""

    def run(self, rules: Iterable[Placement]) -> None:
        """Fill `best` and `bound`, beginning with the plans of `rules`. Raises ProvedInfeasible."""
        for placement in rules:
            self._offer(Assignment.of(placement, self.problem), placement)
        self.peer = self.best
        if self.problem.robust is not None and self.ordered is self.problem:
            self._by_reserved()
        if self.problem.bottleneck:
            self._by_busiest()
            return
        if self.problem.unordered is not None:
            self._by_unordered(self.problem.unordered)
        if not self.closed:
            self._by_equal_cards()
        if not self.closed:
            self._by_cards()
        if not self.closed:
            slices = solve_slices(self.problem, self._limits(0.1), floor=self.bound, hint=self.incumbent)
            if self.problem.one_run:
                self._raise_bound(slices.status, slices.bound)
            self._offer(slices.assignment)
        if not is_small(self.problem):
            self._again()
        elif not self.closed:
            free = solve_free_order(self.problem, self._limits(0.2), floor=self.bound, hint=self.incumbent)
            if free.status == "infeasible" and self.incumbent is None:
                raise ProvedInfeasible
            self.bound = max(self.bound, free.bound)
            self._offer(free.assignment)

    def first_look(self, rules: Iterable[Placement]) -> None:
        """As `run`, with no more than a first bound."""
        for placement in rules:
            self._offer(Assignment.of(placement, self.problem), placement)
        self.peer = self.best
        if self.problem.bottleneck:
            self._by_busiest()
            return
        self._by_equal_cards()
        if not self.closed:
            self.bound = max(self.bound, ColumnSearch(self.problem).start([], self._enough, self.deadline))

    def _by_equal_cards(self, tables: EqualCards | None = None) -> None:
        """All that equal cards can hold, looked at; nearly always that is the answer."""
        if not EqualCards.suits(self.problem):
            return
        found = (tables or EqualCards()).best(self.problem)
        if found is None:
            raise ProvedInfeasible
        self.bound = max(self.bound, found.ticks)
        self._offer(found.plan)

    def _by_cards(self) -> None:
        """What does not ask for the order of the layers."""
        self._by_columns()
        if not self.closed:
            self._by_scip()
        if not self.closed:
            counts = solve_counts(self.problem, self._limits(0.1), floor=self.bound)
            self._raise_bound(counts.status, counts.bound)
            self._arranged(counts)

    def _by_busiest(self) -> None:
        """The exact model for the bottleneck; contiguous slices where its plan leaves no room for a target's buffer."""
        ceiling = None if self.incumbent is None else self.incumbent.ticks(self.problem)
        found = solve_busiest(self.problem, self._limits(), floor=self.bound, ceiling=ceiling)
        self._raise_bound(found.status, found.bound)
        self._offer(found.assignment)
        if not self.closed and self.problem.staging:
            slices = solve_slices(self.problem, self._limits(), floor=self.bound, hint=self.incumbent)
            if self.problem.one_run:
                self._raise_bound(slices.status, slices.bound)
            self._offer(slices.assignment)

    def _by_reserved(self) -> None:
        """Plans that keep free on every device the most that could deviate there: easier to find, and hardly worse."""
        limits = replace(self.limits, seconds=RESERVED_SHARE * self.limits.seconds)
        until = min(self.deadline, time.perf_counter() + limits.seconds)
        search = Portfolio(reserved(self.problem), self.costs, self.objective, limits, until)
        with suppress(ProvedInfeasible):
            search.run([])
        self._offer(search.incumbent)

    def _by_unordered(self, loose: Problem) -> None:
        """As if equal cards could be visited in any order, which is easier as it does not matter which is which: its
        bound holds, and so do its plans once the cards are named in order."""
        seconds = UNORDERED_SHARE * self.limits.seconds
        until = min(self.deadline, time.perf_counter() + seconds)
        search = Portfolio(
            loose, self.costs, self.objective, replace(self.limits, seconds=seconds), until, ordered=self.problem
        )
        search.run([] if self.best is None else [self.best.placement])
        self.best, self.incumbent = search.best, search.incumbent
        self.bound = max(self.bound, search.bound)

    def _by_columns(self) -> None:
        """The columns' bound and walks at their prices, then branching, and whole patterns once they are few."""
        columns, deal = ColumnSearch(self.problem), Deal(self.problem)
        known = contents_of(self.problem, self.incumbent) if self.incumbent is not None else []
        self.bound = max(self.bound, columns.start(known, self._enough, self.deadline))
        if self.closed or not columns.first.prices:
            return
        starts = self._walks(columns, deal)
        for walk in starts[:1]:
            if self._is_near(walk, deal) or self.incumbent is None:
                self._filled(walk)
        self._loaded(columns.dive(self.deadline) if not self.closed else [], polished=False)
        self._polished(starts[:1], deal)
        rounds = math.ceil(ROUNDS_PER_SECOND * min(self.limits.seconds, 10))
        if self.problem.unordered is not None:
            # Equal cards in order are groups of one: a round takes longer, and the bound without order is known.
            rounds = math.ceil(rounds / 5)
        if is_small(self.problem):
            rounds = math.ceil(rounds / SMALL)
        self._branched(columns, math.ceil(FIRST_ROUNDS * rounds))
        self._by_patterns(columns, deal, FEW_PATTERNS)
        self._branched(columns, rounds)
        self._polished(starts[1:], deal)
        self._by_patterns(columns, deal, MAX_PATTERNS)

    def _branched(self, columns: ColumnSearch, rounds: int) -> None:
        """A better bound of the columns, and a plan of whole contents near it."""
        if not self.closed:
            self.bound = max(self.bound, columns.improve(self._enough, rounds, self.deadline))
        if not self.closed:
            self._loaded(columns.dive(self.deadline))

    def _by_scip(self) -> None:
        """Counts that another solver finds, laid out and polished; they prove nothing here."""
        limits = replace(self._limits(0.15), relative_gap=self.limits.relative_gap)
        found = solve_scip_counts(self.problem, limits)
        if found.counts is not None:
            self._laid_out(found.counts, Deal(self.problem))

    def _by_patterns(self, columns: ColumnSearch, deal: Deal, most: int) -> None:
        """Patterns that a better plan may use, if they are at most so many, and the plans of their best numbers."""
        patterns = None if self.closed else worthwhile(self.problem, columns, self._enough, most)
        if not patterns:
            return
        found = solve_patterns(self.problem, self._limits(0.08), patterns, floor=self.bound)
        if found.status == "infeasible" and self._enough == NO_CEILING:
            raise ProvedInfeasible
        # Nothing below `enough` was left out of the patterns, but what is above it was.
        self.bound = self._enough if found.status == "infeasible" else max(self.bound, min(found.bound, self._enough))
        if found.loads and not self.closed:
            self._spread(found.loads)
        if found.cards and not self.closed:
            self._arranged(solve_counts(self.problem, self._limits(0.04), floor=self.bound, cards=found.cards), deal)
