"""What a search knows, and how it makes plans: from walks, from what each card holds, and from counts.

None of this proves anything. Every plan is judged (`solver/evaluate.py`), and kept if it is the best yet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from cost_models import CostModel
from profiles.placement import Objective, Placement
from solver.assignment import Assignment, Counts, arrange, names_in_turn
from solver.column_generation.columns import ColumnSearch
from solver.column_generation.contents import Contents, contents_of
from solver.cp_sat.patterns import Load
from solver.cp_sat.run import Limits, Outcome
from solver.evaluate import Evaluation, judge
from solver.feasibility.robust import robust_short
from solver.heuristics.deal import Deal
from solver.heuristics.fill import fill
from solver.heuristics.paths import away_prices, walks
from solver.heuristics.polish import polish
from solver.heuristics.spread import Held, in_runs, spread
from solver.heuristics.walk import Walk
from solver.problem import Problem

STEPS = 1000
"""Steps of polishing a walk; more hardly ever find more."""
AGAIN = 6
"""Times that the best plan is polished where nothing else is left to try."""
CROWD = 10
"""Devices that so many steps are enough for; more devices get as many times more."""
FILL_WORK = 0.1
WORTH_FILLING = 0.01
"""Walks that are dealt out so much worse than the best plan, as a share, are not worth an exact deal."""
NO_CEILING = 2**62


class ProvedInfeasible(Exception):
    """No placement fits."""


@dataclass
class Candidate:
    placement: Placement
    evaluation: Evaluation

    @property
    def seconds(self) -> float:
        return self.evaluation.objective_s


class PlanSearch:
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
        """A bound of so many ticks ends the search: what ticks cannot tell apart is as good."""
        if self.incumbent is None:
            return self.ceiling
        ticks = self.incumbent.ticks(self.problem)
        return min(self.ceiling, ticks - self.slack, math.ceil(ticks * (1 - self.limits.relative_gap)) + self.slack)

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
        """status, objective, bound and gap of the best plan as the plan document states them, to ticks' resolution."""
        assert self.best is not None
        assert self.incumbent is not None
        seconds = self.best.seconds
        proved = self.incumbent.ticks(self.problem) <= self.bound + self.slack
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

    # ---- plans ----

    def _is_near(self, walk: Walk, deal: Deal) -> bool:
        """Whether a walk may be all that is asked for."""
        return deal.of(walk) * (1 - 2 * self.limits.relative_gap) <= self.bound

    def _spread(self, loads: Sequence[Load], polished: bool = True) -> None:
        """Plans that load every card as the patterns say: in order, and polished with the experts where they are."""
        starts, held = spread(self.problem, loads)
        self._with_held(min(starts, key=Deal(self.problem, held).of), held, polished)

    def _loaded(self, cards: Sequence[tuple[int, Contents]], polished: bool = True) -> None:
        """A plan from what each card holds."""
        loads = [Load(g, 1, held.experts, held.attention, bool(held.embedding), bool(held.head)) for g, held in cards]
        if loads and all(sum(load.attention[c] for load in loads) <= n for c, n in enumerate(self.problem.class_sizes)):
            self._spread(loads, polished)

    def _with_held(self, start: Walk, held: Held, polished: bool = True) -> None:
        """Plans from a walk whose cards hold such experts, as it is and polished."""
        if self.ordered is not self.problem:
            names = self._names(start)
            start, held = start.renamed(names), {names[d]: experts for d, experts in held.items()}
        self._filled(start, held)
        if polished and not self.closed:
            better = self._polish(start, Deal(self.problem, held), steps=2 * STEPS)
            self._filled(better, held)
            if not self.closed:
                self._filled(self._polish(better, Deal(self.problem)))

    def _walks(self, columns: ColumnSearch, deal: Deal) -> list[Walk]:
        """Contiguous walks at the columns' prices, the most promising ones first."""
        starts: dict[Walk, int] = {}
        for prices in away_prices(self.problem, columns.first.prices):
            for priced in walks(self.problem, prices)[:3]:
                starts[priced.walk] = deal.of(priced.walk)
            if starts and min(starts.values()) * (1 - self.limits.relative_gap) <= self.bound:
                break
        return sorted(starts, key=lambda walk: starts[walk])[:3]

    def _polished(self, starts: list[Walk], deal: Deal) -> None:
        better: dict[Walk, int] = {}
        for walk in starts if len(self.problem.devices) <= CROWD else starts[:1]:
            if not self.closed and time.perf_counter() < self.deadline:
                found = self._polish(walk, deal)
                better[found] = deal.of(found)
        known = NO_CEILING if self.incumbent is None else self.incumbent.ticks(self.problem)
        for walk in sorted(better, key=lambda walk: better[walk])[:2]:
            if not self.closed and better[walk] < (1 + WORTH_FILLING) * known:
                self._filled(walk)

    def _polish(self, walk: Walk, deal: Deal, steps: int = STEPS, seed: int = 0) -> Walk:
        start = walk if self.ordered is self.problem else walk.renamed(self._names(walk))
        crowd = max(1, len(self.problem.devices) // CROWD)
        least = math.floor(self.bound / (1 - self.limits.relative_gap))
        return polish(self.ordered, start, deal, steps=steps * crowd, seed=self.limits.seed + seed, enough=least)

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

    def _again(self) -> None:
        """More polish of the best plan, with its experts where they are and anywhere, each time by other chances."""
        deal = Deal(self.problem)
        for seed in range(1, AGAIN + 1):
            if self.closed or self.incumbent is None or time.perf_counter() > self.deadline:
                return
            plan = self.incumbent
            walk = Walk(plan.embedding, plan.attention, plan.head)
            held = {
                d: held.experts for d, (_, held) in enumerate(contents_of(self.problem, plan)) if d != self.problem.cpu
            }
            better = self._polish(walk, Deal(self.problem, held), seed=seed)
            self._filled(better, held)
            self._filled(self._polish(better, deal, seed=seed))
