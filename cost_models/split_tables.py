"""What a layer costs for every way to split its experts between its own GPU, all other GPUs evenly, and the CPU.

Of other GPUs that are alike an even split is best: the hits on equal experts are multivariate hypergeometric (one
token) or independent (several), whose expectations of Schur-convex functions are Schur-convex in the parts' sizes
(Nevius, Proschan and Sethuraman, Annals of Statistics 1977), and the slowest of parts that take the same time for the
same hits is Schur-convex, as the time never falls with the hits. So the table is exact for GPUs that are alike. Where
they differ, each is taken to be as fast as the fastest of them: a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.cost_model import CostModel, Step
from cost_models.experts import touch_probabilities
from cost_models.splits import MEANS_FROM_TOKENS
from profiles.model import Experts

Floats = NDArray[np.float64]
IMPOSSIBLE = np.inf


@dataclass(frozen=True)
class SplitTable:
    """Seconds of one layer with its attention on one device: `seconds[e, n]` with e experts there, n on the CPU and the
    others on `others` more GPUs, as evenly as they go. Infinite where that cannot be (no other GPU, or the attention is
    on the CPU itself: then n is 0)."""

    seconds: Floats
    others: int


def split_table(
    costs: CostModel, layer: int, attention: str, guests: Sequence[str], steps: Sequence[Step]
) -> SplitTable:
    """The table for `layer` with its attention on `attention` and `guests` as other GPUs, summed over `steps`.

    Experts are taken as alike; where they are not, by their coldest: whatever experts a part has, it is hit at least as
    often as the same number of the least used ones, so the table is a lower bound.
    """
    experts = costs.layer(layer).experts
    assert experts is not None
    total = np.zeros((experts.count + 1, experts.count + 1))
    for step in steps:
        total += step.times * _of_step(costs, experts, layer, attention, guests, step)
    e, n = np.mgrid[: experts.count + 1, : experts.count + 1]
    rest = experts.count - e - n
    possible = (rest >= 0) & ((rest == 0) | bool(guests)) & ((n == 0) | (attention != "cpu"))
    return SplitTable(np.where(possible, total, IMPOSSIBLE), len(guests))


def _of_step(
    costs: CostModel, experts: Experts, layer: int, attention: str, guests: Sequence[str], step: Step
) -> Floats:
    tokens = step.tokens * costs.workload.batch_size
    count = experts.count

    def seconds(device: str, hits: Sequence[float] | Floats) -> Floats:
        return np.array(costs.hits_s(layer, attention, device, map(float, hits), step))

    if tokens >= MEANS_FROM_TOKENS:
        touched = np.concatenate(([0.0], np.cumsum(np.sort(touch_probabilities(experts, tokens)))))
        own, cpu = seconds(attention, touched), seconds("cpu", touched)
        guest = np.min([seconds(g, touched) for g in dict.fromkeys(guests)], axis=0) if guests else np.zeros(count + 1)
        e, n = np.mgrid[: count + 1, : count + 1]
        rest = np.maximum(0, count - e - n)
        slowest: Floats = np.maximum(np.maximum(own[e], cpu[n]), guest[-(-rest // max(1, len(guests)))])
        return slowest
    one_draw = tokens == 1 and experts.frequencies is None
    most = experts.active if one_draw else count
    hits = np.arange(most + 1, dtype=float)
    own, cpu = seconds(attention, hits), seconds("cpu", hits)
    guest = np.min([seconds(g, hits) for g in dict.fromkeys(guests)], axis=0) if guests else np.zeros(most + 1)
    if one_draw:
        return _drawn(experts, own, cpu, guest, len(guests), 0 if attention == "cpu" else experts.active)
    touched = np.sort(touch_probabilities(experts, tokens))
    return _independent(touched, own, cpu, guest, len(guests), 0 if attention == "cpu" else count)


def _drawn(experts: Experts, own: Floats, cpu: Floats, guest: Floats, bins: int, most: int) -> Floats:
    """One token's `active` different experts: C(e, i) C(n, j) ways to hit i experts here and j on the CPU, and those
    to hit the rest elsewhere, each with the slowest part. Of those on the CPU `most` are hit at most."""
    count, k = experts.count, experts.active
    ways = np.array([[float(math.comb(n, h)) for h in range(k + 1)] for n in range(count + 1)])
    fullest = _fullest(ways, k, max(1, bins))
    e, n = np.mgrid[: count + 1, : count + 1]
    rest = np.maximum(0, count - e - n)
    total = np.zeros((count + 1, count + 1))
    for i in range(k + 1):
        for j in range(min(most, k - i) + 1):
            elsewhere = k - i - j
            slowest = np.maximum(max(own[i], cpu[j]), guest)
            by_rest = fullest[:, elsewhere, :] @ slowest
            total += ways[:, i][:, None] * ways[:, j][None, :] * by_rest[rest]
    return total / math.comb(count, k)


def _fullest(ways: Floats, k: int, bins: int) -> Floats:
    """`[n, r, t]`: ways to hit r of n experts, spread evenly over `bins`, so that the fullest has exactly t hits."""
    count = len(ways) - 1
    at_most = np.zeros((count + 1, k + 1, k + 1))
    size, more = np.arange(count + 1) // bins, np.arange(count + 1) % bins
    for t in range(k + 1):
        limit = np.arange(k + 1) <= t
        small, large = ways[size] * limit, ways[np.minimum(size + 1, count)] * limit
        product = np.zeros((count + 1, k + 1))
        product[:, 0] = 1.0
        for b in range(bins):
            # Bins beyond the number of experts are empty: nothing more changes.
            if b > count:
                break
            factor = np.where((b < more)[:, None], large, small)
            product = _product(product, factor, k)
        at_most[:, :, t] = product
    return np.diff(at_most, axis=2, prepend=0.0)


def _product(one: Floats, other: Floats, k: int) -> Floats:
    """Row by row, polynomials up to degree k."""
    total = np.zeros_like(one)
    for h in range(k + 1):
        total[:, h:] += other[:, h : h + 1] * one[:, : k + 1 - h]
    return total


def _independent(touched: Floats, own: Floats, cpu: Floats, guest: Floats, bins: int, most: int) -> Floats:
    """Experts hit independently, `touched` rising: the slowest part is within a level if all parts are. With up to
    `most` experts on the CPU; beyond, nothing is said."""
    count = len(touched)
    hits = np.zeros((count + 1, count + 1))
    hits[0, 0] = 1.0
    for n in range(1, count + 1):
        p = touched[n - 1]
        hits[n] = hits[n - 1] * (1 - p)
        hits[n, 1:] += hits[n - 1, :-1] * p
    likely = hits.max(axis=0) > 1e-13
    levels = np.unique(np.concatenate([times[likely] for times in (own, cpu, guest)]))
    inside = [hits @ (times[:, None] <= levels) for times in (own, cpu, guest)]
    spread = np.arange(count + 1)
    size, more = spread // max(1, bins), spread % max(1, bins)
    per_bin = inside[2]
    elsewhere = per_bin[np.minimum(size + 1, count)] ** more[:, None] * per_bin[size] ** (max(1, bins) - more)[:, None]
    elsewhere *= np.append(np.diff(levels), 0.0)
    total = np.full((count + 1, count + 1), levels[-1])
    for e in range(count + 1):
        away = np.arange(min(most, count - e) + 1)
        within = np.einsum("nt,nt->n", inside[1][away] * inside[0][e], elsewhere[count - e - away])
        total[e, away] -= within
    return total
