"""accelerate: what is on the CPU is computed on the main GPU, the first that holds anything, beside a buffer for the
largest of those blocks.

So what fits depends on which GPU that is and how large that block is. With both given, the buffer is so many bytes less
of one GPU, and the rest is a problem like any other: `cases` lists them. Every placement that fits is in a case that
allows it, and what a case allows fits, so the best plan of all cases is best and the least of their bounds holds for all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cost_models import CostModel
from profiles.placement import Placement
from solver.portfolio import Portfolio, ProvedInfeasible
from solver.problem import BlockCosts, ExpertsCosts, LayerClass, Problem

OTHERS_SHARE = 0.5
"""Share of the time for all cases but the last, which allows most on the CPU."""


class StreamSearch(Portfolio):
    """As `Portfolio`, case by case; a plan of one case is the one to beat in the next. `within` is the case that `best`
    is from, or `problem` as long as it is a hand rule's plan."""

    within: Problem

    def run(self, rules: Iterable[Placement]) -> None:
        """Fill `best` and `bound`, beginning with the plans of `rules`. Raises ProvedInfeasible."""
        self.within = self.problem
        first = Portfolio(self.problem, self.costs, self.objective, self.limits, self.deadline)
        first.offer_all(rules)
        self.best, self.incumbent = first.best, first.incumbent
        todo = list(cases(self.problem, self.costs))
        bounds = [bound for k, case in enumerate(todo) if (bound := self._of_case(case, k, len(todo))) is not None]
        if not bounds:
            raise ProvedInfeasible
        self.bound = min(bounds)

    def _of_case(self, case: Problem, k: int, n_cases: int) -> int | None:
        """A bound on the plans of one case, None where it has none; `best` may become one of them."""
        seconds = self.limits.seconds * (1.0 if k == n_cases - 1 else OTHERS_SHARE / (n_cases - 1))
        until = min(self.deadline, time.perf_counter() + seconds)
        limits = replace(self.limits, seconds=seconds)
        search = Portfolio(case, self.costs, self.objective, limits, until)
        try:
            search.run([] if self.best is None else [self.best.placement])
        except ProvedInfeasible:
            return None
        if search.incumbent != self.incumbent:
            self.within = case
        self.best, self.incumbent = search.best, search.incumbent
        return search.bound


def cases(problem: Problem, costs: CostModel) -> Iterator[Problem]:
    """One problem for each size that the largest block on the CPU may have, from 0, and each GPU that may be the main
    one; and that with everything on the CPU, where no GPU needs a buffer."""
    gpus = [d for d in range(len(problem.devices)) if d != problem.cpu]
    mains = [m for k, m in enumerate(gpus) if not any(_replaces(problem, g, m) for g in gpus[:k])]
    sizes = _Sizes(problem, costs)
    if problem.cpu in range(len(problem.devices)):
        yield _barred(_limited(problem, sizes, sizes.largest), gpus)
    yield _limited(problem, sizes, 0)
    for size in sizes.all:
        for m in reversed(mains):
            if size <= problem.usable[m]:
                usable = tuple(n - size if d == m else n for d, n in enumerate(problem.usable))
                limited = replace(_limited(problem, sizes, size), usable=usable, main=m)
                yield _barred(limited, gpus[: gpus.index(m)])
