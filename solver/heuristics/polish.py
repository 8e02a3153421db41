"""Better plans by small steps: late acceptance hill climbing over the stretches of the walk.

A stretch is a run of layers whose attention is on one card; a card may have several. A step moves the border between
stretches, or takes a stretch in or out, or gives it to another card, or moves the embedding or the head. Late
acceptance: Burke and Bykov, European Journal of Operational Research 2017.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from solver.heuristics.deal import Deal
from solver.heuristics.walk import Walk
from solver.problem import Problem

HISTORY = 60
"""A step is taken if the walk is no worse than so many steps ago."""


@dataclass(frozen=True)
class Stretches:
    """Cards in the order of the walk, the first layer on each, and the devices of embedding and head."""

    cards: tuple[int, ...]
    starts: tuple[int, ...]
    embedding: int
    head: int

    @staticmethod
    def of(walk: Walk) -> Stretches:
        begins = [i for i, d in enumerate(walk.attention) if i == 0 or d != walk.attention[i - 1]]
        return Stretches(tuple(walk.attention[i] for i in begins), tuple(begins), walk.embedding, walk.head)

    def walk(self, n_layers: int) -> Walk:
        attention: list[int] = []
        for d, start, stop in zip(self.cards, self.starts, (*self.starts[1:], n_layers), strict=True):
            attention += [d] * (stop - start)
        return Walk(self.embedding, tuple(attention), self.head)


def polish(problem: Problem, start: Walk, deal: Deal, *, steps: int, seed: int, enough: int = 0) -> Walk:
    """The best walk met in `steps` steps from `start`, as `deal` judges, or the first that takes no more than `enough`
    ticks."""
    rng, n_layers = random.Random(seed), len(problem.layer_class)
    here = best = Stretches.of(start)
    at = least = _ticks(problem, here, deal)
    history = [at] * HISTORY
    for step in range(steps):
        if least <= enough:
            break
        there = _step(problem, here, n_layers, rng)
        if there is not None and _in_order(problem, there):
            ticks = _ticks(problem, there, deal)
            if ticks <= at or ticks <= history[step % HISTORY]:
                here, at = there, ticks
                if at < least:
                    best, least = here, at
        history[step % HISTORY] = at
    return best.walk(n_layers)


def _ticks(problem: Problem, here: Stretches, deal: Deal) -> int:
    stops = (here.embedding, *here.cards, here.head)
    hops = sum(problem.hop[a][b] for a, b in pairwise(stops))
    return hops + deal.ticks(here.cards, here.starts, here.embedding, here.head)


def _in_order(problem: Problem, here: Stretches) -> bool:
    stops = (*here.cards, here.head) if problem.head_in_order else here.cards
    return all(problem.in_order(a, b) for a, b in pairwise(stops))


def _step(problem: Problem, here: Stretches, n_layers: int, rng: random.Random) -> Stretches | None:
    kind = rng.random()
    if kind < 0.55 and len(here.cards) > 1:
        return _shift(here, n_layers, rng)
    if kind < 0.65:
        return _end(problem, here, rng)
    return _other_cards(problem, here, n_layers, rng)


def _shift(here: Stretches, n_layers: int, rng: random.Random) -> Stretches | None:
    """Some layers from one stretch to another: every border between the two moves."""
    i, j = sorted(rng.sample(range(len(here.cards)), 2))
    if rng.random() < 0.4:
        j = i + 1
    by = rng.choice((-8, -5, -3, -2, -1, -1, 1, 1, 2, 3, 5, 8))
    starts = tuple(start + by if i < k <= j else start for k, start in enumerate(here.starts))
    return replace(here, starts=starts) if all(a < b for a, b in pairwise((*starts, n_layers))) else None


def _end(problem: Problem, here: Stretches, rng: random.Random) -> Stretches:
    """The embedding or the head on another device: at the walk's end, the CPU, or any."""
    first = rng.random() < 0.5
    near = here.cards[0] if first else here.cards[-1]
    where = rng.choice((near, problem.devices.index("cpu"), rng.randrange(len(problem.devices))))
    return replace(here, embedding=where) if first else replace(here, head=where)


def _other_cards(problem: Problem, here: Stretches, n_layers: int, rng: random.Random) -> Stretches | None:
    """Two stretches' cards swapped, a stretch to another card, out of the walk, or one more taken into it."""
    cards, starts = list(here.cards), list(here.starts)
    k, kind = rng.randrange(len(cards)), rng.random()
    if kind < 0.25 and len(cards) > 1:
        j = rng.randrange(len(cards))
        cards[k], cards[j] = cards[j], cards[k]
    elif kind < 0.45:
        cards[k] = rng.randrange(len(problem.devices))
    elif kind < 0.75 and len(cards) > 1:
        del cards[k]
        del starts[k if k else 1]
    else:
        stop = starts[k + 1] if k + 1 < len(starts) else n_layers
        if stop - starts[k] < 2:
            return None
        cards.insert(k + 1, rng.randrange(len(problem.devices)))
        starts.insert(k + 1, rng.randint(starts[k] + 1, stop - 1))
    cards, starts = _joined(cards, starts)
    embedding = cards[0] if here.embedding == here.cards[0] else here.embedding
    head = cards[-1] if here.head == here.cards[-1] else here.head
    return Stretches(tuple(cards), tuple(starts), embedding, head)


def _joined(cards: Sequence[int], starts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Neighbouring stretches of one card are one stretch."""
    keep = [k for k, d in enumerate(cards) if k == 0 or d != cards[k - 1]]
    return [cards[k] for k in keep], [starts[k] for k in keep]
