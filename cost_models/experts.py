"""Which experts a step touches: the expected distinct ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from profiles.model import Experts


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
