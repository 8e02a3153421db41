"""How often a token must come to a card: layers of different classes take turns, and a card may want only some of them.

Attention on a card forms runs of neighbouring layers, *windows*. What one window can hold of each class is known from
the order of the layers, and so is what two can; contents that no two windows make up need three visits at least.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solver.problem import Problem

Vectors = NDArray[np.int64]
MOST_VECTORS = 4000
"""Vectors that two windows make up beyond which they are not told apart from all others."""


class Windows:
    """Numbers of attentions by class that one window makes up, and two."""

    def __init__(self, problem: Problem) -> None:
        self._classes = np.array(problem.layer_class)
        self._n_classes = len(problem.classes)

    @cached_property
    def one(self) -> Vectors:
        """Each row what a window of layers holds of each class."""
        n = len(self._classes)
        prefix = np.zeros((n + 1, self._n_classes), np.int64)
        prefix[np.arange(1, n + 1), self._classes] = 1
        prefix = prefix.cumsum(axis=0)
        starts, stops = np.triu_indices(n + 1, 1)
        return np.unique(prefix[stops] - prefix[starts], axis=0)

    @cached_property
    def two(self) -> Vectors | None:
        """Each row what two windows may hold, those of one window left out; None if these are too many to list."""
        one, sizes = self.one, np.bincount(self._classes, minlength=self._n_classes)
        if len(one) ** 2 > 4_000_000:
            return None
        shape = tuple(sizes + 1)
        if np.prod(np.array(shape, dtype=float)) > 1e7:
            return None
        sums = (one[:, None, :] + one[None, :, :]).reshape(-1, self._n_classes)
        sums = sums[np.all(sums <= sizes, axis=1)]
        there = np.zeros(shape, dtype=bool)
        there[tuple(sums.T)] = True
        there[tuple(one.T)] = False
        found = np.argwhere(there)
        return found if len(found) <= MOST_VECTORS else None

    @property
    def matter(self) -> bool:
        """False where one window makes up (nearly) everything that fits the counts: nothing to gain by telling."""
        sizes = np.bincount(self._classes, minlength=self._n_classes)
        runs = 1 + int(np.count_nonzero(np.diff(self._classes)))
        return runs > 2 * len(sizes)

    @cached_property
    def _visits(self) -> dict[tuple[int, ...], int]:
        known = {tuple(map(int, row)): 2 for row in (self.two if self.two is not None else ())}
        known.update({tuple(map(int, row)): 1 for row in self.one})
        known[(0,) * self._n_classes] = 0
        return known

    def visits(self, attention: tuple[int, ...]) -> int:
        """At least so many visits does a card need that holds so many attentions of each class."""
        return self._visits.get(attention, 2 if self.two is None else 3)
