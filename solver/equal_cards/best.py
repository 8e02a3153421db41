"""The best of all totals that equal cards and the CPU can hold, as a bound and as a plan.

What a plan costs depends on totals alone where cards are equal and experts are of one kind: how many attentions of each
class and how many experts are on cards, how many layers have both on one card, how many cards the token visits, and
where the two ends are. So the least over all totals within reach is a bound on every plan. It is nearly always
the optimum: what is left out of how classes of layers lie on the cards stands in docs/model.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.assignment import Assignment
from solver.equal_cards.card import Card
from solver.equal_cards.costs import TOO_DEAR, Costs, costs_are_of_totals, first_card
from solver.equal_cards.lay_out import laid_out, trimmed
from solver.equal_cards.moves import most_mixed
from solver.equal_cards.totals import N_WAYS, Totals
from solver.problem import Problem

MOST_CELLS = 140_000
"""Totals of attentions and experts, by the cards that have both classes where those are counted, up to which tables
take about a second."""
MOST_OF_OTHERS = 8
"""Layers of each class but the largest: more make what a card may hold too many things."""


@dataclass(frozen=True)
class Best:
    """No plan takes fewer `ticks`; `plan` takes so many, if the layers' order allows it."""

    ticks: int
    plan: Assignment


class EqualCards:
    """Finds the best totals; keeps tables of cards for problems that have the same ones."""

    def __init__(self) -> None:
        self._tables: dict[Card, Totals] = {}

    @staticmethod
    def suits(problem: Problem) -> bool:
        """Whether the costs of a plan are those of its totals, and the tables are small."""
        cards = [d for d in range(len(problem.devices)) if d != problem.cpu]
        plain = not problem.bottleneck and not problem.staging and not problem.split_experts
        free = problem.rank is None and problem.main is None and problem.robust is None and not problem.one_run
        if not (plain and free and cards and len(problem.expert_kinds) == 1):
            return False
        if problem.whole_layers and len(problem.expert_kinds[0].classes) > 1:
            return False  # which class a layer is of that is left out, is left open
        equal = {problem.twins[d] for d in cards} == {cards[0]} and problem.twins[problem.cpu] == problem.cpu
        runs = 1 + sum(a != b for a, b in zip(problem.layer_class, problem.layer_class[1:], strict=False))
        cells = float(np.prod([n + 1.0 for n in (*problem.class_sizes, problem.expert_kinds[0].number)]))
        cells *= 1 + most_mixed(problem.class_sizes)
        in_turn = runs == len(problem.classes) and all(n <= MOST_OF_OTHERS for n in sorted(problem.class_sizes)[:-1])
        return equal and in_turn and cells <= MOST_CELLS and costs_are_of_totals(problem)

    def best(self, problem: Problem) -> Best | None:
        """None if nothing fits."""
        card = Card.of(problem, first_card(problem))
        totals = self._tables.setdefault(card, Totals(card))
        costs, n_cards = Costs(problem), len(problem.devices) - 1
        best: tuple[int, int, tuple[int, ...]] | None = None
        for used in range(n_cards + 1):
            table = totals.held(used, n_cards - used)
            if table is None:
                break
            ticks = costs.of(table, used)
            where = int(ticks.argmin())
            if ticks.flat[where] < (TOO_DEAR if best is None else best[0]):
                state = tuple(int(i) for i in np.unravel_index(where, ticks.shape))
                best = int(ticks.flat[where]), used, state
        if best is None:
            return None
        ticks_of_best, used, state = best
        loads = totals.loads(used, n_cards - used, state)
        return Best(ticks_of_best, laid_out(problem, trimmed(problem, loads, state[N_WAYS:])))
