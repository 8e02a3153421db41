"""A search that begins with what neighbours know: their plans, their bounds, and what their cards hold.

It has the cheap steps of `Portfolio` in another order. Neighbours' plans are good from the start, so the bound comes
first, and what makes plans only as far as the two do not meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from profiles.placement import Placement
from solver.assignment import Assignment
from solver.column_generation.columns import ColumnSearch
from solver.column_generation.contents import Contents, contents_of
from solver.equal_cards.best import EqualCards
from solver.heuristics.deal import Deal
from solver.problem import Problem
from solver.search.portfolio import FEW_PATTERNS, Portfolio

ROUNDS_PER_SECOND = 50
"""Linear programs of the branching for each second that a scenario is worth."""
WORTH_PATTERNS = 2.0
"""Seconds from which a scenario is worth patterns, and as much branching once more."""


class Shared:
    """What searches of a family leave for each other: tables of equal cards, and the contents of cards that linear
    programs ended with, by the card's name."""

    def __init__(self) -> None:
        self.equal_cards = EqualCards()
        self._layer_class: tuple[int, ...] = ()
        self._held: Mapping[str, Sequence[Contents]] = {}

    def known(self, problem: Problem) -> Iterator[tuple[int, Contents]]:
        """Those for a problem with the same classes of layers."""
        if problem.layer_class == self._layer_class:
            for g in dict.fromkeys(problem.twins):
                yield from ((g, contents) for contents in self._held.get(problem.devices[g], ()))

    def keep(self, problem: Problem, search: ColumnSearch) -> None:
        self._layer_class = problem.layer_class
        self._held = {problem.devices[g]: tuple(found) for g, found in search.contents.items()}


class Quick(Portfolio):
    """`Portfolio` for one of many alike problems."""

    @property
    def suits(self) -> bool:
        """Whether the cheap steps say enough about the problem: they leave out what devices share."""
        return not self.problem.bottleneck and self.problem.unordered is None and not self.problem.shared

    def know(self, plan: Placement | None, floor_s: float) -> None:
        """Begin with a plan that fits, and seconds that none takes less than."""
        self.bound = max(self.bound, math.floor(floor_s / self.problem.tick_s) - self.slack)
        if plan is not None:
            self._offer(Assignment.of(plan, self.problem), plan)

    def run_near(self, known: Shared) -> None:
        """As `run`, with the cheap steps only, and `known` columns, which become its own. Raises ProvedInfeasible."""
        self._by_equal_cards(known.equal_cards)
        if self.closed:
            return
        columns, deal = ColumnSearch(self.problem), Deal(self.problem)
        contents = contents_of(self.problem, self.incumbent) if self.incumbent is not None else []
        start = columns.start([*contents, *known.known(self.problem)], self._enough, self.deadline)
        self.bound = max(self.bound, start)
        if columns.first.prices and not self.closed:
            self._by_steps(columns, deal)
        known.keep(self.problem, columns)

    def _by_steps(self, columns: ColumnSearch, deal: Deal) -> None:
        walks = self._walks(columns, deal)[:1]
        for walk in walks:
            self._filled(walk)
        self._met(columns)
        self._polished(walks, deal)
        if self.limits.seconds >= WORTH_PATTERNS:
            self._by_patterns(columns, deal, FEW_PATTERNS)
            self._met(columns)

    def _met(self, columns: ColumnSearch) -> None:
        """Plans of what the linear program would have cards hold, before and after branching."""
        rounds = math.ceil(ROUNDS_PER_SECOND * self.limits.seconds)
        if not self.closed:
            self._loaded(columns.dive(self.deadline), polished=False)
        if not self.closed:
            self.bound = max(self.bound, columns.improve(self._enough, rounds, self.deadline))
        if not self.closed:
            self._loaded(columns.dive(self.deadline), polished=False)
