"""From cheap to dear: bounds that hold for every placement, and plans, until one meets the other or time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from cost_models import CostModel
from profiles.placement import Objective, Placement
from solver.assignment import Assignment, Counts, arrange, names_in_turn
from solver.busiest import solve_busiest
from solver.columns import ColumnSearch
from solver.contents import contents_of
from solver.counts import solve_counts
from solver.deal import Deal
from solver.deviations import reserved
from solver.evaluate import Evaluation, judge
from solver.fill import fill
from solver.free_order import is_small, solve_free_order
from solver.merge import merge
from solver.paths import away_prices, walks
from solver.patterns import MAX_PATTERNS, Load, solve_patterns, worthwhile
from solver.polish import polish
from solver.problem import Problem
from solver.robust import robust_short
from solver.scip_counts import solve_scip_counts
from solver.search import Limits, Outcome
from solver.slices import solve_slices
from solver.spread import Held, in_runs, spread
from solver.walk import Walk

STEPS = 1000
"""Steps of polishing a walk; more hardly ever find more."""
CROWD = 10
"""Devices that so many steps are enough for; more devices get as many times more."""
FEW_PATTERNS = 40
"""So many patterns are solved in no time, so they come before anything that is slow."""
FILL_WORK = 0.1
NO_CEILING = 2**62
RESERVED_SHARE = 0.4
"""Share of the time for plans that keep too much free for deviations."""
UNORDERED_SHARE = 0.5
"""Share of the time for the search without a target's order of devices."""
ROUNDS_PER_SECOND = 20
"""Linear programs of the branching for each second of the time limit: about a fifth of it on two slow cores. All shares
add up to less than the limit, so that the plan does not depend on how busy the machine is."""


class ProvedInfeasible(Exception):
    """No placement fits."""


@dataclass
class Candidate:
    placement: Placement
    evaluation: Evaluation

    @property
    def seconds(self) -> float:
        return self.evaluation.objective_s


class Portfolio:
    """`best` as evaluated, `incumbent` in ticks, and `bound` in ticks over all placements that are allowed. Plans of
    `ceiling` ticks and more are of no interest.

    Where `problem` is one without its devices' order, `ordered` is the one with it: plans are renamed to obey it.
    """

    def __init__(
        self,
        problem: Problem,
        costs: CostModel,
        objective: Objective,
        limits: Limits,
        deadline: float,
        ordered: Problem | None = None,
    ) -> None:
        self.problem, self.costs, self.objective = problem, costs, objective
        self.ordered = ordered or problem
        self.limits, self.deadline = limits, deadline
        self.bound = 0
        self.ceiling = NO_CEILING
        self.best: Candidate | None = None
        self.incumbent: Assignment | None = None
        self.peer: Candidate | None = None

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
            self._by_cards()
        if not self.closed:
            slices = solve_slices(self.problem, self._limits(0.1), floor=self.bound, hint=self.incumbent)
            if self.problem.one_run:
                self._raise_bound(slices.status, slices.bound)
            self._offer(slices.assignment)
        if not self.closed and is_small(self.problem):
            free = solve_free_order(self.problem, self._limits(0.2), floor=self.bound, hint=self.incumbent)
            if free.status == "infeasible" and self.incumbent is None:
                raise ProvedInfeasible
            self.bound = max(self.bound, free.bound)
            self._offer(free.assignment)

    def first_look(self, rules: Iterable[Placement]) -> None:
        """As `run`, with no more than a first bound, of the coarser problem where there is one."""
        for placement in rules:
            self._offer(Assignment.of(placement, self.problem), placement)
        self.peer = self.best
        if self.problem.bottleneck:
            self._by_busiest()
            return
        merged = merge(self.problem)
        problem, constant = (self.problem, 0) if merged is None else (merged.problem, merged.constant)
        start = ColumnSearch(problem).start([], self._enough - constant, self.deadline)
        self.bound = max(self.bound, start + constant)

    def _by_cards(self) -> None:
        """What does not ask for the order of the layers."""
        self._by_merged()
        if not self.closed:
            self._by_columns()
        if not self.closed:
            self._by_scip()
        if not self.closed:
            counts = solve_counts(self.problem, self._limits(0.1), floor=self.bound)
            self._raise_bound(counts.status, counts.bound)
            self._arranged(counts)

    def _by_busiest(self) -> None:
        """The exact model for the bottleneck; contiguous slices where its plan breaks the order of the devices."""
        ceiling = None if self.incumbent is None else self.incumbent.ticks(self.problem)
        found = solve_busiest(self.problem, self._limits(), floor=self.bound, ceiling=ceiling)
        self._raise_bound(found.status, found.bound)
        self._offer(found.assignment)
        if not self.closed and self.problem.rank is not None:
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

    def _by_merged(self) -> None:
        """The bound of a coarser problem, and walks from its best loads."""
        merged = merge(self.problem)
        if merged is None:
            return
        columns = ColumnSearch(merged.problem)
        enough = self._enough - merged.constant
        self.bound = max(self.bound, columns.start([], enough, self.deadline) + merged.constant)
        patterns = worthwhile(merged.problem, columns, enough, MAX_PATTERNS) if columns.first.prices else None
        if self.closed or not patterns:
            return
        floor = max(0, self.bound - merged.constant)
        found = solve_patterns(merged.problem, self._limits(0.05), patterns, floor=floor)
        self.bound = max(self.bound, min(found.bound + merged.constant, self._enough))
        if found.loads and not self.closed:
            starts, _ = spread(merged.problem, found.loads)
            deal = Deal(self.problem)
            start = min(starts, key=deal.of)
            self._filled(start)
            if not self.closed:
                self._filled(self._polish(start, deal))

    def _by_columns(self) -> None:
        """The columns' bound and walks at their prices, then branching, and whole patterns once they are few."""
        columns, deal = ColumnSearch(self.problem), Deal(self.problem)
        known = contents_of(self.problem, self.incumbent) if self.incumbent is not None else []
        self.bound = max(self.bound, columns.start(known, self._enough, self.deadline))
        if self.closed or not columns.first.prices:
            return
        starts = self._walks(columns, deal)
        for walk in starts[:1]:
            self._filled(walk)
        self._by_patterns(columns, deal, FEW_PATTERNS)
        self._polished(starts, deal)
        self._dived(columns)
        if not self.closed:
            rounds = math.ceil(ROUNDS_PER_SECOND * min(self.limits.seconds, 10))
            if self.problem.unordered is not None:
                # Equal cards in order are groups of one: a round takes longer, and the bound without order is known.
                rounds = math.ceil(rounds / 5)
            self.bound = max(self.bound, columns.improve(self._enough, rounds, self.deadline))
        self._by_patterns(columns, deal, MAX_PATTERNS)

    def _by_scip(self) -> None:
        """Counts that another solver finds, laid out and polished; they prove nothing here."""
        limits = replace(self._limits(0.1), relative_gap=self.limits.relative_gap)
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

    def _spread(self, loads: Sequence[Load]) -> None:
        """Plans that load every card as the patterns say: in order, and polished with the experts where they are."""
        starts, held = spread(self.problem, loads)
        self._with_held(min(starts, key=Deal(self.problem, held).of), held)

    def _dived(self, columns: ColumnSearch) -> None:
        """A plan from whole contents that the columns settle on."""
        if self.closed:
            return
        cards = columns.dive(self.deadline)
        loads = [Load(g, 1, held.experts, held.attention, bool(held.embedding), bool(held.head)) for g, held in cards]
        if loads and all(sum(load.attention[c] for load in loads) <= n for c, n in enumerate(self.problem.class_sizes)):
            self._spread(loads)

    def _with_held(self, start: Walk, held: Held) -> None:
        """Plans from a walk whose cards hold such experts, as it is and polished."""
        if self.ordered is not self.problem:
            names = self._names(start)
            start, held = start.renamed(names), {names[d]: experts for d, experts in held.items()}
        self._filled(start, held)
        if not self.closed:
            self._filled(self._polish(start, Deal(self.problem, held), steps=2 * STEPS), held)

    def _walks(self, columns: ColumnSearch, deal: Deal) -> list[Walk]:
        """Contiguous walks at the columns' prices, the most promising ones first."""
        starts: dict[Walk, int] = {}
        for prices in away_prices(self.problem, columns.first.prices):
            for priced in walks(self.problem, prices)[:3]:
                starts[priced.walk] = deal.of(priced.walk)
        return sorted(starts, key=lambda walk: starts[walk])[:3]

    def _polished(self, starts: list[Walk], deal: Deal) -> None:
        better: dict[Walk, int] = {}
        for walk in starts if len(self.problem.devices) <= CROWD else starts[:1]:
            if not self.closed and time.perf_counter() < self.deadline:
                found = self._polish(walk, deal)
                better[found] = deal.of(found)
        for walk in sorted(better, key=lambda walk: better[walk])[:2]:
            if not self.closed:
                self._filled(walk)

    def _polish(self, walk: Walk, deal: Deal, steps: int = STEPS) -> Walk:
        start = walk if self.ordered is self.problem else walk.renamed(self._names(walk))
        crowd = max(1, len(self.problem.devices) // CROWD)
        return polish(self.ordered, start, deal, steps=steps * crowd, seed=self.limits.seed)

    def _names(self, walk: Walk) -> dict[int, int]:
        """New names for the cards of a walk, in the order in which they have to be visited."""
        return names_in_turn(self.problem, (*walk.attention, walk.embedding, walk.head), self.ordered.rank)

    def _filled(self, walk: Walk, held: Held | None = None) -> None:
        limits = self._limits(0.02)
        self._offer(
            fill(self.problem, walk, replace(limits, work=min(limits.work, FILL_WORK)), floor=self.bound, held=held)
        )

    def _arranged(self, outcome: Outcome, deal: Deal | None = None) -> None:
        """A plan with these counts, and what polishing makes of it."""
        if outcome.counts is not None:
            self._laid_out(outcome.counts, deal)

    def _laid_out(self, counts: Counts, deal: Deal | None) -> None:
        plan = arrange(counts, self.problem)
        self._offer(plan)
        if self.ordered.rank is not None and not self.closed:
            # The devices' order may forbid to come back to one for layers of another class.
            self._with_held(*in_runs(self.problem, counts))
        if deal is not None and not self.closed:
            walk = Walk(plan.embedding, plan.attention, plan.head)
            self._filled(self._polish(walk, deal, steps=2 * STEPS))

    def _raise_bound(self, status: str, bound: int) -> None:
        if status == "infeasible":
            raise ProvedInfeasible
        self.bound = max(self.bound, bound)

    @property
    def closed(self) -> bool:
        """A plan meets the bound or comes as near as the caller asked for, or none below `ceiling` exists."""
        return self._enough <= self.bound

    @property
    def _enough(self) -> int:
        """A bound of so many ticks ends the search."""
        if self.incumbent is None:
            return self.ceiling
        ticks = self.incumbent.ticks(self.problem)
        return min(self.ceiling, ticks, math.ceil(ticks * (1 - self.limits.relative_gap)) + self.slack)

    @property
    def bound_s(self) -> float:
        """The bound in seconds, less what rounding may have added."""
        batch = self.costs.workload.batch_size if self.problem.bottleneck else 1
        return max(0.0, (self.bound - self.slack) * self.problem.tick_s / batch)

    @property
    def slack(self) -> int:
        """So many ticks may rounding have raised the integer optimum over the true one: a few a layer."""
        return 4 * len(self.problem.layer_class) + 4

    @property
    def home(self) -> Problem:
        """The problem in which plans near the best one are looked for."""
        return self.problem

    def proof(self) -> dict[str, Any]:
        """status, objective, bound and gap of the best plan as the plan document states them."""
        assert self.best is not None
        assert self.incumbent is not None
        seconds = self.best.seconds
        proved = self.incumbent.ticks(self.problem) <= self.bound
        bound_s = seconds if proved else min(seconds, self.bound_s)
        return {
            "status": "optimal" if proved else "feasible",
            "objective_s": seconds,
            "bound_s": bound_s,
            "gap": (seconds - bound_s) / seconds if seconds else 0.0,
        }

    def _limits(self, share: float = math.inf) -> Limits:
        """The time left, and no more work than `share` of the whole time limit: how the time is divided between the
        models must not depend on the machine's load, or the plan would."""
        left = max(0.0, self.deadline - time.perf_counter())
        return replace(self.limits, seconds=left, work=share * self.limits.seconds)

    def _offer(self, assignment: Assignment | None, placement: Placement | None = None) -> None:
        """Keep a plan if it fits and is the best yet: `best` in seconds as evaluated, `incumbent` in ticks."""
        if assignment is not None and placement is None:
            apart = self.ordered is not self.problem
            assignment = assignment.canonical(self.problem, self.ordered.rank if apart else None)
        if assignment is None or not self._in_order(assignment):
            return
        found = self.judged(assignment, placement)
        if found is None:
            return
        if self.best is None or found.seconds < self.best.seconds:
            self.best = found
        if self.incumbent is None or assignment.ticks(self.problem) < self.incumbent.ticks(self.problem):
            self.incumbent = assignment

    def judged(self, plan: Assignment, placement: Placement | None = None) -> Candidate | None:
        """The plan as evaluated; None if it does not fit, or leaves no room for deviations."""
        placement = placement or plan.placement(self.problem)
        evaluation = judge(placement, self.costs, self.objective)
        if not evaluation.feasible:
            return None
        robust = self.problem.robust
        short = robust is not None and robust_short(placement, self.costs, robust.share, robust.blocks)
        return None if short else Candidate(placement, evaluation)

    def _in_order(self, plan: Assignment) -> bool:
        stops = (*plan.attention, plan.head) if self.ordered.head_in_order else plan.attention
        return all(self.ordered.in_order(a, b) for a, b in pairwise(stops))
