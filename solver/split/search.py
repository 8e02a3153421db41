"""Placements that split experts over devices: the bound, plans from its modes, and never worse than whole ones."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, pairwise, product
from typing import Any

from cost_models import CostModel, Step
from profiles.placement import Objective, Placement
from solver.cp_sat.busiest import fractional_bound
from solver.cp_sat.run import Limits
from solver.evaluate import judge
from solver.feasibility.explain import may_fit, some_plan
from solver.heuristics.walk import Walk
from solver.problem import Problem, objective_steps
from solver.search.plans import NO_CEILING, Candidate, ProvedInfeasible
from solver.search.portfolio import Portfolio
from solver.split.bound import SplitBound, split_bound
from solver.split.climb import Climb
from solver.split.counts import few_experts, split_counts
from solver.split.linear_program import Cards, Mode
from solver.split.plans import Planner, SplitPlan
from solver.split.tables import SplitTables
from solver.split.times import SplitTimes

WHOLE_SHARE = 0.5
"""Share of the time for plans of whole blocks where splitting is not seen to beat them all."""
MANY_EXPERTS = 256
"""With more experts in a layer two sorts of other GPUs take long, so one is tried first."""
MOST_WALKS = 60
FILLED = 4
TUNED = 3
"""So many of the best plans are tuned: more and fewer experts beside attention, as factors."""
CLIMBED, STEPS = 2, 10_000
"""So many of them are climbed from, and how many steps."""
COUNTS_WORK, COUNTS_GAP = 1.0, 0.001
"""CP-SAT's work on whole experts, about seconds."""
FACTORS = (0.8, 0.9, 0.95, 1.05, 1.1, 1.2)


@dataclass(frozen=True)
class _Found:
    """A plan that has been made, how long it takes, and the modes it was made from."""

    seconds: float
    plan: SplitPlan
    modes: Mapping[Mode, float]


class SplitSearch:
    """`best` as evaluated, and the bound in seconds over all placements that may split experts."""

    def __init__(
        self, problem: Problem, costs: CostModel, objective: Objective, limits: Limits, deadline: float
    ) -> None:
        self.problem, self.costs, self.objective = problem, costs, objective
        self.limits, self.deadline = limits, deadline
        self.best: Candidate | None = None
        self.bound_s = 0.0
        self.whole_bound_s = 0.0

    def run(self, rules: Iterable[Placement]) -> None:
        """Whole blocks first, then the bound over all splits, and plans from its modes."""
        rules = list(rules)
        for placement in rules:
            self._offer(placement)
        self._glance()
        if self.problem.bottleneck:
            sequences = self.costs.workload.batch_size
            self.bound_s = fractional_bound(self.problem) * self.problem.tick_s / sequences
        else:
            steps = _by_tokens(objective_steps(self.costs, self.objective))
            times = SplitTimes(self.problem, self.costs, steps)
            tables = SplitTables(self.problem, self.costs, steps, 1 if self._most_experts > MANY_EXPERTS else 2)
            self._by_tables(tables, times)
            if tables.differ and tables.most_sorts == 1 and not self.closed and not self.late:
                self._by_tables(SplitTables(self.problem, self.costs, steps), times)
        if self.best is not None and self.best.seconds > self.whole_bound_s and not self.late:
            # Whole blocks may still be better than what was found: never return less than they give.
            self._whole(rules, math.ceil(self.best.seconds / self.problem.tick_s))
        if self.best is None:
            self._whole(rules, NO_CEILING)
        if self.problem.shared and not self.closed:
            self._by_divisions()
        if self.best is None and may_fit(self.problem, self.costs) is False:
            raise ProvedInfeasible

    @property
    def _most_experts(self) -> int:
        return max((layer.experts.count for layer in self.costs.profile.layers if layer.experts), default=0)

    def _by_tables(self, tables: SplitTables, times: SplitTimes) -> None:
        """The bound of the linear program over such tables, and plans from its modes."""
        bound = split_bound(tables, self.deadline)
        if bound is not None:
            self.bound_s = max(self.bound_s, bound.seconds)
            planner = Planner(self.problem, times, tables)
            few = few_experts(self.problem, tables)
            found = self._from_modes(bound, planner, 0 if few else TUNED)
            if few and not self.closed and not self.late:
                self._by_counts(planner, tables, found)

    def _by_counts(self, planner: Planner, tables: SplitTables, plans: list[_Found]) -> None:
        """Whole experts on whole cards: a bound, and plans from the numbers found."""
        tick, best = self.problem.tick_s, self.best
        ceiling = None if best is None else math.ceil(best.seconds / tick) + 1
        limits = replace(
            self.limits,
            seconds=max(0.01, self.deadline - time.perf_counter()),
            work=COUNTS_WORK,
            relative_gap=COUNTS_GAP,
            workers=1,
        )
        found = split_counts(self.problem, tables, limits, math.floor(self.bound_s / tick), ceiling)
        # Costs are rounded down to ticks, and the ceiling is above the best plan.
        self.bound_s = max(self.bound_s, found.bound * tick * (1 - 1e-9))
        if found.modes is None or self.closed:
            self._climbed(planner, plans)
            return
        (start, end), numbers = found.ends, [sum(layers) for layers in found.attention]
        order = sorted(range(len(numbers)), key=lambda d: (d == end, d != start, d))
        walk = Walk(start, tuple(d for d in order for _ in range(numbers[d])), end)
        for one in (walk, *with_other_ends(self.problem, walk)):
            if _may(self.problem, one) and min(planner.rooms(one)) >= 0:
                for plan in (planner.pack(one, found.modes), planner.deal(one, found.modes)):
                    planner.fill(plan)
                    plans.append(_Found(planner.seconds(plan), plan, found.modes))
        self._climbed(planner, plans)

    def _climbed(self, planner: Planner, plans: list[_Found]) -> None:
        """The best few, and what small steps make of them."""
        for one in sorted(plans, key=lambda one: one.seconds)[:CLIMBED]:
            self._offer_split(planner, one.plan)
            if not self.closed and not self.late and planner.obeys(one.plan):
                self._offer_split(planner, Climb(planner, one.plan, self.limits.seed).run(STEPS))

    def _glance(self) -> None:
        """What whole blocks take at least."""
        portfolio = Portfolio(self._unsplit(), self.costs, self.objective, self.limits, self.deadline)
        with suppress(ProvedInfeasible):
            portfolio.first_look([] if self.best is None else [self.best.placement])
        self._learn(portfolio)

    def _whole(self, rules: list[Placement], ceiling: int) -> None:
        """The best plan of whole blocks below `ceiling` ticks."""
        limits = replace(self.limits, seconds=WHOLE_SHARE * self.limits.seconds)
        portfolio = Portfolio(self._unsplit(), self.costs, self.objective, limits, self.deadline)
        portfolio.ceiling = ceiling
        try:
            portfolio.run(rules)
        except ProvedInfeasible:
            return
        self._learn(portfolio)

    def _by_divisions(self) -> None:
        """Plans in which every device has a part of what it shares as its own, and if that is of no use, any plan."""
        for room in self.problem.room.divided():
            if self.closed or self.late:
                return
            apart = replace(self.problem, usable=room.usable, shared=())
            search = SplitSearch(apart, self.costs, self.objective, self.limits, self.deadline)
            with suppress(ProvedInfeasible):
                search.run([] if self.best is None else [self.best.placement])
            self.best = search.best or self.best
        if self.best is None:
            found = some_plan(self.problem, self.costs)
            if found is not None:
                self._offer(found)

    def _unsplit(self) -> Problem:
        return replace(self.problem, split_experts=False)

    def _learn(self, portfolio: Portfolio) -> None:
        self.whole_bound_s = max(self.whole_bound_s, portfolio.bound_s)
        if portfolio.best is not None:
            self._offer(portfolio.best.placement)

    # ---- plans from modes ----

    def _from_modes(self, bound: SplitBound, planner: Planner, most_tuned: int) -> list[_Found]:
        """Plans from walks as the bound has them, the best of them with other ends, and some of
        those tuned."""
        if self.closed:
            return []
        walks = dict.fromkeys(walks_of(self.problem, bound, planner.cards.of))
        found = self._filled(
            planner, [self._dealt(planner, walk, bound.modes) for walk in self._in_time(walks, planner)]
        )
        if found and not self.closed:
            ends = with_other_ends(self.problem, found[0].plan.walk)
            more = [self._dealt(planner, walk, bound.modes) for walk in self._in_time(ends, planner)]
            found = sorted([*found, *self._filled(planner, more)], key=lambda one: one.seconds)
        for one in found[:most_tuned]:
            if not self.closed:
                self._offer_split(planner, self._tuned(planner, one).plan)
        return found

    def _in_time(self, walks: Iterable[Walk], planner: Planner) -> Iterator[Walk]:
        """Those with room for their attention, until time is up."""
        for walk in walks:
            if self.late:
                return
            if min(planner.rooms(walk)) >= 0:
                yield walk

    def _dealt(self, planner: Planner, walk: Walk, modes: Mapping[Mode, float]) -> _Found:
        plan = planner.deal(walk, modes)
        return _Found(planner.seconds(plan), plan, modes)

    def _filled(self, planner: Planner, found: list[_Found]) -> list[_Found]:
        """The best few, with what room they leave used, offered, best first."""
        better = []
        for one in sorted(found, key=lambda one: one.seconds)[:FILLED]:
            if not self.late:
                planner.fill(one.plan)
            better.append(replace(one, seconds=planner.seconds(one.plan)))
        better.sort(key=lambda one: one.seconds)
        if better:
            self._offer_split(planner, better[0].plan)
        return better

    def _made(self, planner: Planner, walk: Walk, modes: Mapping[Mode, float]) -> _Found:
        found = self._dealt(planner, walk, modes)
        planner.fill(found.plan)
        return replace(found, seconds=planner.seconds(found.plan))

    def _tuned(self, planner: Planner, start: _Found) -> _Found:
        """More or fewer experts beside their attention, and on the CPU, as long as that helps."""
        best, better = start, True
        while better and not self.late:
            better = False
            for own, cpu in [*((f, 1.0) for f in FACTORS), *((1.0, f) for f in FACTORS)]:
                modes = {_scaled(mode, own, cpu, planner): weight for mode, weight in best.modes.items()}
                if len(modes) == len(best.modes) and not self.late:
                    found = self._made(planner, best.plan.walk, modes)
                    if found.seconds < best.seconds * (1 - 1e-4):
                        best, better = found, True
        return best

    # ---- what is known ----

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    @property
    def closed(self) -> bool:
        return self.best is not None and self.best.seconds * (1 - self.limits.relative_gap) <= self.bound_s

    def _offer_split(self, planner: Planner, plan: SplitPlan) -> None:
        if planner.obeys(plan):
            self._offer(planner.placement(plan))

    def _offer(self, placement: Placement) -> None:
        if self.best is not None and placement == self.best.placement:
            return
        evaluation = judge(placement, self.costs, self.objective)
        if evaluation.feasible and (self.best is None or evaluation.objective_s < self.best.seconds):
            self.best = Candidate(placement, evaluation)

    def proof(self) -> dict[str, Any]:
        """status, objective, bound and gap as the plan document states them."""
        assert self.best is not None
        seconds = self.best.seconds
        bound_s = min(seconds, self.bound_s)
        gap = (seconds - bound_s) / seconds if seconds else 0.0
        proved = gap <= 1e-9
        return {
            "status": "optimal" if proved else "feasible",
            "objective_s": seconds,
            "bound_s": seconds if proved else bound_s,
            "gap": 0.0 if proved else gap,
            "module_bound_s": min(self.whole_bound_s, seconds) if self.problem.bottleneck else self.whole_bound_s,
        }


def _by_tokens(steps: Iterable[Step]) -> list[Step]:
    """Steps of equal tokens as one: experts do not care how much is in the cache."""
    times: dict[int, int] = {}
    for step in steps:
        times[step.tokens] = times.get(step.tokens, 0) + step.times
    return [Step(tokens, 0, n) for tokens, n in times.items()]


def _scaled(mode: Mode, own: float, cpu: float, planner: Planner) -> Mode:
    if planner.problem.classes[mode.c].experts is None:
        return mode
    count = planner.times.experts(mode.c).count
    e = min(count, round(mode.e * own))
    n = min(count - e, round(mode.n * cpu))
    rest, before = count - e - n, count - mode.e - mode.n
    return replace(mode, e=e, n=n, k=round(mode.k * rest / before) if before else rest)


def walks_of(problem: Problem, bound: SplitBound, group: Sequence[int]) -> Iterator[Walk]:
    """Contiguous walks with attention on the groups and kinds of cards where the bound's modes have it, in their
    proportions, first on as many cards as it has, then on any number; embedding and head at the walk's ends, or on the
    CPU."""
    weight: dict[Cards, float] = {}
    for mode, layers in bound.modes.items():
        weight[mode.group, mode.kind] = weight.get((mode.group, mode.kind), 0.0) + layers
    used = [which for which in weight if weight[which] >= 0.75] or [max(weight, key=lambda which: weight[which])]
    most = [group.count(g) for g, _ in used]
    first = tuple(max(1, round(bound.cards[which])) for which in used)
    cpu = problem.devices.index("cpu")
    seen = set()
    for numbers in islice((first, *product(*(range(1, n + 1) for n in most))), MOST_WALKS):
        attention = _on_cards(problem, group, weight, dict(zip(used, numbers, strict=True)))
        if attention is None:
            continue
        embedding = cpu if bound.embedding_on_cpu else attention[0]
        walk = Walk(embedding, attention, cpu if bound.head_on_cpu else attention[-1])
        for one in (walk, *with_other_ends(problem, walk)):
            if _may(problem, one):
                if one not in seen:
                    seen.add(one)
                    yield one
                break


def _on_cards(
    problem: Problem, group: Sequence[int], weight: Mapping[Cards, float], numbers: Mapping[Cards, int]
) -> tuple[int, ...] | None:
    """Layers in order, in proportion to `weight` on so many cards of each group and kind; None if there are too few."""
    left = {g: [d for d, first in enumerate(group) if first == g] for g in dict.fromkeys(group)}
    cards, sizes = list[int](), list[float]()
    for which in sorted(numbers):
        for _ in range(numbers[which]):
            if not left[which[0]]:
                return None
            cards.append(left[which[0]].pop(0))
            sizes.append(weight[which] / numbers[which])
    return _slices(problem, cards, sizes)


def with_other_ends(problem: Problem, walk: Walk) -> Iterator[Walk]:
    """The same walk with embedding and head at its ends, or on the CPU."""
    cpu = problem.devices.index("cpu")
    for embedding, head in product((walk.attention[0], cpu), (walk.attention[-1], cpu)):
        other = Walk(embedding, walk.attention, head)
        if other != walk and _may(problem, other):
            yield other


def _slices(problem: Problem, cards: list[int], sizes: list[float]) -> tuple[int, ...] | None:
    """Layers in order on `cards`, in proportion to `sizes`; None if that leaves a card without any."""
    n_layers, attention, done = len(problem.layer_class), list[int](), 0.0
    for d, size in zip(cards, sizes, strict=True):
        done += size
        stop = round(done / sum(sizes) * n_layers)
        if stop <= len(attention):
            return None
        attention += [d] * (stop - len(attention))
    return tuple(attention)


def _may(problem: Problem, walk: Walk) -> bool:
    """Whether pins, target and order allow the walk."""
    attention = all(
        problem.classes[c].attention.allowed[a] for c, a in zip(problem.layer_class, walk.attention, strict=True)
    )
    ends = problem.embedding.allowed[walk.embedding] and problem.head.allowed[walk.head]
    stops = (*walk.attention, walk.head) if problem.head_in_order else walk.attention
    return attention and ends and all(problem.in_order(a, b) for a, b in pairwise(stops))
