"""How one step's hits fall on the parts of a split layer, by going through all of them: slow, and easy to believe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from cost_models.experts import distinct_experts, touch_probabilities
from cost_models.splits import MEANS_FROM_TOKENS
from profiles import Experts

Hits = tuple[float, ...]


def split_hits(experts: Experts, parts: Sequence[Sequence[int]], tokens: int) -> Iterator[tuple[float, Hits]]:
    """Joint distribution of the distinct experts hit in each part, as (probability, hits a part).

    One token and equal experts: multivariate hypergeometric. Otherwise every expert is hit independently with its
    touch probability, so each part is Poisson-binomial (exact for independent routing; it ignores that a token uses
    exactly `active` experts). From MEANS_FROM_TOKENS tokens on: the means, with probability 1. The parts need not hold
    all experts: what is hit elsewhere is summed over.
    """
    if tokens >= MEANS_FROM_TOKENS:
        yield 1.0, tuple(distinct_experts(experts, tokens, part) for part in parts)
    elif tokens == 1 and experts.frequencies is None:
        yield from _hypergeometric(experts, [len(part) for part in parts])
    else:
        touched = touch_probabilities(experts, tokens)
        counts = [_poisson_binomial([touched[i] for i in part]) for part in parts]
        for hits in product(*(range(len(count)) for count in counts)):
            probability = math.prod(count[h] for count, h in zip(counts, hits, strict=True))
            if probability > 1e-12:
                yield probability, tuple(float(h) for h in hits)


def _hypergeometric(experts: Experts, sizes: Sequence[int]) -> Iterator[tuple[float, Hits]]:
    ways, elsewhere = math.comb(experts.count, experts.active), experts.count - sum(sizes)
    for hits in product(*(range(min(size, experts.active) + 1) for size in sizes)):
        if 0 <= (rest := experts.active - sum(hits)) <= elsewhere:
            chosen = math.prod(math.comb(size, h) for size, h in zip(sizes, hits, strict=True))
            yield chosen * math.comb(elsewhere, rest) / ways, tuple(float(h) for h in hits)


def _poisson_binomial(probabilities: Sequence[float]) -> list[float]:
    """Distribution of a sum of independent 0/1 variables, by the textbook convolution."""
    counts = [1.0]
    for p in probabilities:
        counts = [
            (counts[k] * (1 - p) if k < len(counts) else 0.0) + (counts[k - 1] * p if k else 0.0)
            for k in range(len(counts) + 1)
        ]
    return counts
