"""What a layer costs by the number of experts on each device, for experts that are alike, asked many times.

The same figure as `mean_of_slowest`; what each device contributes is kept as a factor by its number of experts, so that
another split costs one product of the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

from cost_models.experts import touch_probabilities
from cost_models.splits import MEANS_FROM_TOKENS
from profiles.model import Experts

Floats = NDArray[np.float64]


class SlowestPart:
    """`mean(counts)`: seconds of a step of `tokens` tokens in all with `counts[d]` experts on each device, all of
    them together; `hits_s[d]` says what h hits take on device d. Experts have to be alike."""

    def __init__(self, experts: Experts, tokens: int, hits_s: Sequence[Floats]) -> None:
        assert experts.frequencies is None
        self.count, self.active, self.touched = experts.count, experts.active, touch_probabilities(experts, tokens)[0]
        self.one_draw = tokens == 1
        self.at_means = tokens >= MEANS_FROM_TOKENS
        most = min(experts.active if self.one_draw else experts.count, len(hits_s[0]) - 1)
        self._hits_s = [times[: most + 1] for times in hits_s]
        self._levels: Floats = np.unique(np.concatenate(self._hits_s))
        self._steps = np.append(np.diff(self._levels), 0.0)
        # Devices that take the same time for the same hits share their factors.
        self._like = [next(e for e in range(d + 1) if hits_s[e] is hits_s[d]) for d in range(len(hits_s))]
        self._factors: dict[tuple[int, int], Floats] = {}

    def mean(self, counts: Sequence[int]) -> float:
        if self.at_means:
            return float(max(self._hits_s[d][n] for d, n in enumerate(counts)))
        factors = [self._factor(self._like[d], n) for d, n in enumerate(counts) if n]
        within = factors[0][:, :1] if self.one_draw else factors[0]
        for factor in factors[1:]:
            within = within @ factor if self.one_draw else within * factor
        if self.one_draw:
            within = within[:, 0, -1] / comb(self.count, self.active)
        return float(self._levels[-1] - self._steps @ within)

    def _factor(self, d: int, n: int) -> Floats:
        """For each level: the chance that n independent experts on d are within it; for one draw the ways to hit so
        many of them, as a matrix that multiplies polynomials of ways."""
        if (d, n) not in self._factors:
            within = self._hits_s[d][None, : n + 1] <= self._levels[:, None]
            if self.one_draw:
                ways = np.array([float(comb(n, h)) for h in range(within.shape[1])]) * within
                self._factors[d, n] = multipliers(ways, self.active)
            else:
                self._factors[d, n] = within @ binomial(n, self.touched)
        return self._factors[d, n]


def multipliers(polynomials: Floats, degree: int) -> Floats:
    """One matrix a row: a polynomial's coefficients times it are those of the product, up to `degree`."""
    matrices = np.zeros((len(polynomials), degree + 1, degree + 1))
    for hits in range(min(degree + 1, polynomials.shape[1])):
        i = np.arange(degree + 1 - hits)
        matrices[:, i, i + hits] = polynomials[:, hits : hits + 1]
    return matrices


def binomial(n: int, p: float) -> Floats:
    """Chances of 0, 1, … n hits.

    >>> binomial(2, 0.5).tolist()
    [0.25, 0.5, 0.25]
    """
    chances = np.ones(1)
    for _ in range(n):
        chances = np.convolve(chances, (1 - p, p))
    return chances
