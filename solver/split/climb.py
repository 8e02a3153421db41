"""Better split plans by small steps: some experts of a layer to another device, and others out of their way.

Late acceptance (Burke and Bykov 2017): a step is taken if the plan is no worse than it was some steps ago.
"""

from __future__ import annotations

import random

from solver.split.plans import Planner, SplitPlan, moved
from solver.split.times import Counts

MEMORY = 100
NUMBERS = (1, 1, 1, 2, 4)
"""How many experts move at a time, drawn at random."""
AWAY = 0.7
"""Share of the steps in which what has to make room goes where the others came from."""

Step = tuple[int, int, int, int]
"""A layer, from and to which device, and how many of its experts."""


class Climb:
    """The best split that was found for the walk of a plan; `steps` random steps from the same plan and seed are the
    same."""

    def __init__(self, planner: Planner, plan: SplitPlan, seed: int) -> None:
        self.planner, self.walk = planner, plan.walk
        self.counts, self.left = list(plan.counts), planner.free(plan)
        self.layers = [i for i, here in enumerate(plan.counts) if here is not None]
        self.seconds = {i: self._of(i, here) for i, here in enumerate(plan.counts) if here is not None}
        self._rng = random.Random(seed)

    def run(self, steps: int) -> SplitPlan:
        now = least = sum(self.seconds.values())
        best, late = list(self.counts), [now] * MEMORY
        for at in range(steps if self.layers else 0):
            moves = self._draw()
            if moves:
                after = {i: moved(self._here(i), d, e, n) for i, d, e, n in moves}
                seconds = {i: self._of(i, here) for i, here in after.items()}
                then = now + sum(seconds[i] - self.seconds[i] for i in after)
                if then <= max(now, late[at % MEMORY]):
                    self._take(moves, after, seconds)
                    now = then
                    if now < least * (1 - 1e-9):
                        least, best = now, list(self.counts)
            late[at % MEMORY] = now
        return SplitPlan(self.walk, best)

    def _here(self, i: int) -> Counts:
        here = self.counts[i]
        assert here is not None
        return here

    def _of(self, i: int, here: Counts) -> float:
        return self.planner.times.seconds(self.planner.problem.layer_class[i], self.walk.attention[i], here)

    def _size(self, i: int, d: int, n: int) -> int:
        return self.planner.bytes_of(i, d, 1) * n

    def _draw(self) -> list[Step]:
        """A step, or two so that everything fits; none where what was drawn cannot be."""
        rng, n_devices = self._rng, len(self.left)
        i = rng.choice(self.layers)
        d, e = rng.choice([d for d, n in enumerate(self._here(i)) if n]), rng.randrange(n_devices)
        if d == e or not self.planner.may(i, e):
            return []
        n = min(rng.choice(NUMBERS), self._here(i)[d])
        short = self._size(i, e, n) - self.left[e]
        if short <= 0:
            return [(i, d, e, n)]
        j = rng.choice(self.layers)
        m = -(-short // max(1, self._size(j, e, 1)))
        if j == i or m > self._here(j)[e]:
            return []
        f = d if rng.random() < AWAY else rng.randrange(n_devices)
        room = self.left[f] + (self._size(i, d, n) if f == d else 0)
        if f == e or not self.planner.may(j, f) or self._size(j, f, m) > room:
            return []
        return [(i, d, e, n), (j, e, f, m)]

    def _take(self, moves: list[Step], after: dict[int, Counts], seconds: dict[int, float]) -> None:
        for i, d, e, n in moves:
            self.left[d] += self._size(i, d, n)
            self.left[e] -= self._size(i, e, n)
        for i in after:
            self.counts[i] = after[i]
        self.seconds.update(seconds)
