"""Which experts a step touches: expected distinct experts, and how one token's hits fall on the parts of a split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from profiles.model import Experts

MEANS_FROM_TOKENS = 32
"""From this many tokens in a step on, a split layer's hits are taken at their means: a part of any size that matters is
then hit almost surely, so the mean of the maximum and the maximum of the means nearly agree. Where this is still off:
two of 256 experts with 8 active are missed by 13 % of steps of 32 tokens."""

Hits = tuple[float, ...]


def use_probabilities(experts: Experts) -> tuple[float, ...]:
    """f_i, the probability that a token uses expert i: as given, else active / count."""
    return experts.frequencies or (experts.active / experts.count,) * experts.count


def touch_probabilities(experts: Experts, tokens: int) -> tuple[float, ...]:
    """Probability that at least one of `tokens` independent tokens uses expert i: 1 - (1 - f_i)^tokens."""
    return tuple(_touched(f, tokens) for f in use_probabilities(experts))


def _touched(f: float, tokens: int) -> float:
    return -math.expm1(tokens * math.log1p(-f)) if f < 1 else 1.0


def distinct_experts(experts: Experts, tokens: int, ids: Sequence[int] | None = None) -> float:
    """Expected number of distinct experts among `ids` (default: all) that a step of `tokens` tokens touches.

    >>> round(distinct_experts(Experts(weight_bytes=1, count=160, active=6), 1), 9)
    6.0
    """
    if experts.frequencies is None:
        n = experts.count if ids is None else len(ids)
        return n * _touched(experts.active / experts.count, tokens)
    touched = touch_probabilities(experts, tokens)
    return math.fsum(touched if ids is None else (touched[i] for i in ids))


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
