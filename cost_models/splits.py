"""What a layer costs whose experts are split: the mean, over which experts the tokens hit, of the slowest part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cost_models.experts import distinct_experts, touch_probabilities
from profiles.model import Experts

Seconds = Callable[[float], float]
Floats = NDArray[np.float64]

MEANS_FROM_TOKENS = 32
"""From this many tokens in a step on, a split layer's hits are taken at their means: a part of any size that matters is
then hit almost surely, so the mean of the maximum and the maximum of the means nearly agree. Where this is still off:
two of 256 experts with 8 active are missed by 13 % of steps of 32 tokens."""


def mean_of_slowest(experts: Experts, parts: Sequence[Sequence[int]], seconds: Sequence[Seconds], tokens: int) -> float:
    """The mean of the maximum of `seconds[k](hits in part k)` over the parts that are hit.

    One token and equal experts: the hits are multivariate hypergeometric. Otherwise every expert is hit independently
    with its touch probability, so each part is Poisson-binomial (exact for independent routing; it ignores that a token
    uses exactly `active` experts). From MEANS_FROM_TOKENS tokens on: every part at its mean. The parts need not hold
    all experts. The maximum is at most t if every part's hits are among those that take at most t, which multiplies out
    over the parts (generating functions in the hypergeometric case), so no combinations of hits are gone through.
    """
    if tokens >= MEANS_FROM_TOKENS:
        means = [distinct_experts(experts, tokens, part) for part in parts]
        return max((s(hits) for s, hits in zip(seconds, means, strict=True) if hits > 0), default=0.0)
    one_draw = tokens == 1 and experts.frequencies is None
    most = [min(len(part), experts.active) if one_draw else len(part) for part in parts]
    times = [np.array([0.0, *map(s, range(1, n + 1))]) for s, n in zip(seconds, most, strict=True)]
    return mean_of_slowest_times(experts, parts, times, tokens)


def mean_of_slowest_times(
    experts: Experts, parts: Sequence[Sequence[int]], times: Sequence[Floats], tokens: int
) -> float:
    """`mean_of_slowest` for less than MEANS_FROM_TOKENS tokens, with the seconds of 0, 1, 2, … hits as arrays."""
    one_draw = tokens == 1 and experts.frequencies is None
    levels: Floats = np.unique(np.concatenate(times)) if times else np.zeros(1)
    within = [t[None, :] <= levels[:, None] for t in times]
    below = _drawn(experts, parts, within) if one_draw else _independent(experts, parts, within, tokens)
    return float(levels @ np.diff(below, prepend=0.0))


def _drawn(experts: Experts, parts: Sequence[Sequence[int]], within: Sequence[NDArray[np.bool_]]) -> Floats:
    """For each level the probability that all parts are within it, for one token's `active` different experts: ways to
    draw so, over all ways, counted by the coefficients of a product of polynomials."""
    k, elsewhere = experts.active, experts.count - sum(map(len, parts))
    factors = [ok * _ways(len(part), ok.shape[1] - 1) for part, ok in zip(parts, within, strict=True)]
    n_levels = len(within[0]) if within else 1
    ways: Floats = np.tile(_ways(elsewhere, k), (n_levels, 1))
    for factor in factors:
        product = np.zeros((n_levels, k + 1))
        for hits in range(factor.shape[1]):
            product[:, hits:] += factor[:, hits : hits + 1] * ways[:, : k + 1 - hits]
        ways = product
    return ways[:, k] / math.comb(experts.count, k)


def _ways(n: int, most: int) -> Floats:
    return np.array([float(math.comb(n, hits)) for hits in range(most + 1)])


def _independent(
    experts: Experts, parts: Sequence[Sequence[int]], within: Sequence[NDArray[np.bool_]], tokens: int
) -> Floats:
    """As `_drawn`, for experts that are hit independently."""
    touched = touch_probabilities(experts, tokens)
    below = np.ones(len(within[0]) if within else 1)
    for part, ok in zip(parts, within, strict=True):
        below = below * (ok @ poisson_binomial([touched[i] for i in part]))
    return below


def poisson_binomial(probabilities: Sequence[float]) -> Floats:
    """Distribution of a sum of independent 0/1 variables, by convolution.

    >>> poisson_binomial([0.5, 0.5]).tolist()
    [0.25, 0.5, 0.25]
    """
    counts: Floats = np.ones(1)
    for p in probabilities:
        counts = np.convolve(counts, (1 - p, p))
    return counts
