"""accelerate: what is on the CPU is computed on the main GPU, the first that holds anything, which keeps a buffer for
the largest of those blocks.

So what fits depends on which GPU that is and how large that block is. With both given, the buffer is so many bytes less
of one GPU, and the rest is a problem like any other: `cases` lists them. Every placement that fits is in some case, and
every placement of a case fits, so the best plan of all cases is the best, and the least of their bounds holds for all.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from cost_models import CostModel
from profiles.placement import Placement
from solver.assignment import Assignment
from solver.problem import BlockCosts, ExpertsCosts, LayerClass, Problem
from solver.search.plans import ProvedInfeasible
from solver.search.portfolio import Portfolio

OTHERS_SHARE = 0.5
"""Share of the time for all cases but the last, which allows most on the CPU."""


class StreamSearch(Portfolio):
    """As `Portfolio`, case by case: the best plan so far is the one to beat in the next case. `within` is the case
    whose search found it, None for a hand rule's."""

    within: Problem | None = None

    def run(self, rules: Iterable[Placement]) -> None:
        """Fill `best` and `bound`, beginning with the plans of `rules`. Raises ProvedInfeasible."""
        for placement in rules:
            self._offer(Assignment.of(placement, self.problem), placement)
        self.peer = self.best
        todo = list(cases(self.problem, self.costs))
        bounds = [self._of_case(case, k == len(todo) - 1, len(todo) - 1) for k, case in enumerate(todo)]
        possible = [bound for bound in bounds if bound is not None]
        if not possible:
            raise ProvedInfeasible
        self.bound = min(possible)

    @property
    def home(self) -> Problem:
        return self.within or self.problem

    def _of_case(self, case: Problem, last: bool, n_others: int) -> int | None:
        """A bound on the plans of a case, one of which may become `best`; None where it has none."""
        seconds = self.limits.seconds * (1.0 if last else OTHERS_SHARE / n_others)
        until = min(self.deadline, time.perf_counter() + seconds)
        search = Portfolio(case, self.costs, self.objective, replace(self.limits, seconds=seconds), until)
        search.best, search.incumbent = self.best, self.incumbent
        try:
            search.run([])
        except ProvedInfeasible:
            return None
        if search.best is not self.best:
            self.best, self.incumbent, self.within = search.best, search.incumbent, case
        return search.bound


def cases(problem: Problem, costs: CostModel) -> Iterator[Problem]:
    """A problem for everything on the CPU, where there is no main GPU; one for nothing there; and one for each size
    that the largest block there may have and each GPU that may be the main one, those before it being empty."""
    streamed = _Streamed.of(problem, costs)
    gpus = [d for d in range(len(problem.devices)) if d != problem.cpu]
    mains = [m for k, m in enumerate(gpus) if not any(_replaces(problem, g, m) for g in gpus[:k])]
    found = [_limited(problem, streamed, streamed.sizes[-1], gpus), _limited(problem, streamed, 0, ())]
    for size in streamed.sizes:
        for m in reversed(mains):
            if size <= problem.usable[m]:
                room = problem.room.less([size * (d == m) for d in range(len(problem.devices))])
                limited = _limited(problem, streamed, size, gpus[: gpus.index(m)])
                found.append(replace(limited, usable=room.usable, shared=room.shared, main=m))
    return (case for case in found if _is_possible(case))


@dataclass(frozen=True)
class _Streamed:
    """Bytes of weights that are copied at once for a block on the CPU; of a layer of each class, its larger block's."""

    embedding: int
    head: int
    layers: tuple[int, ...]

    @staticmethod
    def of(problem: Problem, costs: CostModel) -> _Streamed:
        profile = costs.profile
        layers = [profile.layers[problem.layer_class.index(c)] for c in range(len(problem.classes))]
        return _Streamed(
            profile.embedding.weight_bytes.cpu,
            profile.head.weight_bytes.cpu,
            tuple(
                max(block.weight_bytes.cpu for block in (layer.attention, layer.experts) if block is not None)
                for layer in layers
            ),
        )

    @property
    def sizes(self) -> list[int]:
        return sorted({self.embedding, self.head, *self.layers})


def _limited(problem: Problem, streamed: _Streamed, most: int, empty: Collection[int]) -> Problem:
    """The problem with no block of more than `most` bytes on the CPU, and none at all on `empty`."""

    def mask(allowed: tuple[bool, ...], size: int) -> tuple[bool, ...]:
        barred = {*empty, *([problem.cpu] if size > most else [])}
        return tuple(may and d not in barred for d, may in enumerate(allowed))

    def block(found: BlockCosts, size: int) -> BlockCosts:
        return replace(found, allowed=mask(found.allowed, size))

    return replace(
        problem,
        embedding=block(problem.embedding, streamed.embedding),
        head=block(problem.head, streamed.head),
        classes=tuple(
            LayerClass(
                block(kind.attention, size),
                kind.experts and replace(kind.experts, allowed=mask(kind.experts.allowed, size)),
            )
            for kind, size in zip(problem.classes, streamed.layers, strict=True)
        ),
    )


def _is_possible(case: Problem) -> bool:
    """Whether each block may be somewhere."""
    blocks = [case.embedding.allowed, case.head.allowed]
    for kind in case.classes:
        experts = kind.experts.allowed if kind.experts is not None else kind.attention.allowed
        blocks.append(tuple(a and x for a, x in zip(kind.attention.allowed, experts, strict=True)))
    return all(map(any, blocks))


def _replaces(problem: Problem, g: int, m: int) -> bool:
    """Whether an empty GPU g can take over all that m holds, at no more ticks: then m need not be the main GPU."""
    blocks = [problem.embedding, problem.head, *(kind.attention for kind in problem.classes)]
    experts = [kind.experts for kind in problem.classes if kind.experts is not None]
    all_blocks: list[BlockCosts | ExpertsCosts] = [*blocks, *experts]
    others = [d for d in range(len(problem.devices)) if d not in (g, m)]
    pool, context = problem.room.pool_of, problem.room.contexts
    return (
        pool[g] in (-1, pool[m])
        and context[g] <= context[m]
        and problem.usable[g] >= problem.usable[m]
        and (problem.rank is None or problem.rank[g] == problem.rank[m])
        and all(x.allowed[g] >= x.allowed[m] and x.bytes[g] <= x.bytes[m] for x in all_blocks)
        and all(block.ticks[g] <= block.ticks[m] for block in blocks)
        and all(x.ticks[g][g] <= x.ticks[m][m] and x.busy[g] <= x.busy[m] for x in experts)
        and all(problem.hop[g][d] <= problem.hop[m][d] for d in others)
    )
