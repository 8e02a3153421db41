"""How often a token must come to a card: layers of different classes take turns, and a card may want only some of them.

Attention on a card forms runs of neighbouring layers, *windows*. What one window can hold of each class is known from
the order of the layers, and so is what two can, and more: what no k windows make up needs k + 1 visits at least.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solver.problem import Problem

Vectors = NDArray[np.int64]
MOST_CELLS = 12_000
"""Numbers of attentions by class up to which the windows of all of them are known."""
NEVER = 10**6
"""Windows of which no number makes something up."""
MOST_VECTORS = 4000
"""Otherwise: numbers that two windows make up beyond which they are not told apart from all others."""


class Windows:
    """Numbers of attentions by class that one window makes up, and two, and so on."""

    def __init__(self, problem: Problem) -> None:
        self._classes = np.array(problem.layer_class)
        self._n_classes = len(problem.classes)
        self._sizes = np.bincount(self._classes, minlength=self._n_classes)

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
    def listed(self) -> tuple[Vectors, Vectors]:
        """Numbers by class, and the fewest windows that may make each of them up; all others need `beyond`."""
        shape = tuple(self._sizes + 1)
        if np.prod(np.array(shape, dtype=float)) <= MOST_CELLS:
            fewest = self._fewest(shape)
            found = np.argwhere(fewest > 0)
            return found, fewest[tuple(found.T)]
        two = self._two(shape)
        found = np.concatenate([self.one, two])
        return found, np.repeat(np.array([1, 2], np.int64), [len(self.one), len(two)])

    @cached_property
    def ends(self) -> Vectors:
        """For each of `listed` the fewest windows of which one begins with the first layer, ends with the last, and
        both (columns), NEVER where none do; no more than `listed` says where not all numbers are listed."""
        vectors, visits = self.listed
        if self.beyond:
            return np.stack([visits] * 3, axis=1)
        shape = tuple(self._sizes + 1)
        fewest = np.full(shape, NEVER)
        fewest[tuple(vectors.T)] = visits
        fewest[(0,) * len(shape)] = 0
        order = np.eye(self._n_classes, dtype=np.int64)[self._classes]
        begun = _one_more(fewest, np.cumsum(order, axis=0))
        ended = _one_more(fewest, np.cumsum(order[::-1], axis=0))
        both = _one_more(ended, np.cumsum(order, axis=0))
        both[tuple(self._sizes)] = 1
        fewest_ends = [found[tuple(vectors.T)] for found in (begun, ended, both)]
        return np.asarray(np.minimum(NEVER, np.stack(fewest_ends, axis=1)))

    def _fewest(self, shape: tuple[int, ...]) -> Vectors:
        """The fewest windows for all numbers (0 for none): those of k and one more, as sums of two sets (by FFT)."""
        fewest = np.zeros(shape, np.int64)
        fewest[tuple(self.one.T)] = 1
        padded = [2 * n for n in shape]
        axes = tuple(range(len(shape)))
        windows = np.fft.rfftn(fewest, padded, axes)
        reached = (fewest > 0).astype(np.float64)
        cells = tuple(slice(0, n) for n in shape)
        for k in range(2, len(self._classes) + 1):
            sums = np.fft.irfftn(np.fft.rfftn(reached, padded, axes) * windows, padded, axes)[cells]
            fresh = (sums > 0.5) & (fewest == 0)
            fresh[(0,) * len(shape)] = False
            if not fresh.any():
                break
            fewest[fresh] = k
            reached = (fewest > 0).astype(np.float64)
        return fewest

    def _two(self, shape: tuple[int, ...]) -> Vectors:
        """Each row what two windows may hold, those of one window left out; none if these are too many to list."""
        one, nothing = self.one, np.zeros((0, self._n_classes), np.int64)
        if len(one) ** 2 > 4_000_000 or np.prod(np.array(shape, dtype=float)) > 1e7:
            return nothing
        sums = (one[:, None, :] + one[None, :, :]).reshape(-1, self._n_classes)
        sums = sums[np.all(sums <= self._sizes, axis=1)]
        there = np.zeros(shape, dtype=bool)
        there[tuple(sums.T)] = True
        there[tuple(one.T)] = False
        found = np.argwhere(there)
        return found if len(found) <= MOST_VECTORS else nothing

    @property
    def matter(self) -> bool:
        """False where one window makes up (nearly) everything that fits the counts: nothing to gain by telling."""
        runs = 1 + int(np.count_nonzero(np.diff(self._classes)))
        return runs > 2 * len(self._sizes)

    @cached_property
    def beyond(self) -> int:
        """At least so many visits does a card need that holds anything else; 0 where everything is listed."""
        vectors, visits = self.listed
        complete = len(vectors) + 1 == np.prod(np.array(self._sizes + 1, dtype=float))
        return 0 if complete else 1 + int(visits.max(initial=0))

    @cached_property
    def _visits(self) -> dict[tuple[int, ...], int]:
        vectors, visits = self.listed
        known = {tuple(row): n for row, n in zip(vectors.tolist(), visits.tolist(), strict=True)}
        known[(0,) * self._n_classes] = 0
        return known

    @cached_property
    def _ends(self) -> dict[tuple[int, ...], tuple[int, int, int]]:
        rows = zip(self.listed[0].tolist(), self.ends.tolist(), strict=True)
        return {tuple(row): (ends[0], ends[1], ends[2]) for row, ends in rows}

    def visits(self, attention: tuple[int, ...], first: bool = False, last: bool = False) -> int:
        """At least so many visits does a card need that holds so many attentions of each class: the `first` of all
        among them, or the `last`, where that is asked for."""
        if (first or last) and attention in self._ends:
            return self._ends[attention][2 if first and last else int(last)]
        return self._visits.get(attention, self.beyond)


def _one_more(fewest: Vectors, windows: Vectors) -> Vectors:
    """The fewest windows with one of `windows` among them."""
    found = np.full(fewest.shape, NEVER)
    for window in windows:
        there = tuple(slice(n, None) for n in window)
        rest = tuple(slice(0, size - n) for n, size in zip(window, fewest.shape, strict=True))
        found[there] = np.minimum(found[there], fewest[rest] + 1)
    return found
