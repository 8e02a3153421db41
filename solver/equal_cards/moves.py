"""Ways to add a card: what it holds, and how that changes where the two ends are and how often the walk comes twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from solver.equal_cards.card import Card, Options

Ends = tuple[bool, bool]
"""Whether a card has the embedding, and the head."""
Pair = tuple[int | slice, int | slice]
Index = tuple[int | slice, int | slice, int | slice]
"""Of a table's axes before the totals: mixed cards, embedding, head."""

ALL_ENDS: tuple[Ends, ...] = ((False, False), (True, False), (False, True), (True, True))
ELSEWHERE, AT_THE_END, APART = range(3)
"""How the embedding is there: not on these cards; on the card that has the first layer, so that the walk begins there
without a hop; on any card, with a hop. Likewise the head and the last layer."""
ANY = slice(None)
MOST_MIXED = 3
"""Cards with layers of both classes are counted up to this number."""


@dataclass(frozen=True)
class Load:
    """What one card holds."""

    attention: tuple[int, ...]
    experts: int
    embedding: bool = False
    head: bool = False


@dataclass(frozen=True)
class Move:
    """A card more with attention: the ends it has, what it may hold, and the states before and after."""

    ends: Ends
    options: Options
    before: Index
    after: Index


@dataclass(frozen=True)
class Beside:
    """Cards without attention: their loads, and the states before and after."""

    loads: tuple[Load, ...]
    before: Index
    after: Index

    @property
    def experts(self) -> int:
        return sum(load.experts for load in self.loads)


def most_mixed(sizes: Sequence[int]) -> int:
    """Up to how many cards with layers of both classes are counted; 0 where that changes nothing, as the one layer of a
    class is on one card."""
    return min(MOST_MIXED, *sizes) if len(sizes) == 2 and min(sizes) > 1 else 0


class Moves:
    """All ways for one kind of card."""

    def __init__(self, card: Card) -> None:
        self.card, self.most_mixed = card, most_mixed(card.sizes)

    @cached_property
    def among_others(self) -> list[Move]:
        """A card with attention that is not the only one."""
        opening, closing = self.card.opening, self.card.closing
        # A walk of several cards that begins on one does not end there but for a hop, nor begin where it ends: that
        # card has not all layers of the last one's class, or of the first one's.
        not_all = {} if opening == closing else {c: self.card.sizes[c] - 1 for c in (opening, closing)}
        not_closing, not_opening = ({c: n for c, n in not_all.items() if c == one} for one in (closing, opening))
        return [
            *self._way((False, False), (ANY, ANY)),
            *self._way((True, False), (AT_THE_END, ANY), opening, limits=not_closing),
            *self._way((True, False), (APART, ANY)),
            *self._way((False, True), (ANY, AT_THE_END), closing, limits=not_opening),
            *self._way((False, True), (ANY, APART)),
            *self._way((True, True), (AT_THE_END, APART), opening),
            *self._way((True, True), (APART, AT_THE_END), closing),
            *self._way((True, True), (APART, APART)),
        ]

    @cached_property
    def alone(self) -> list[Move]:
        """The only card with attention, where the walk over cards is at its beginning and its end."""
        opening, closing = self.card.opening, self.card.closing
        return [
            *self._way((True, False), (AT_THE_END, ANY), opening),
            *self._way((False, True), (ANY, AT_THE_END), closing),
            *self._way((True, True), (AT_THE_END, AT_THE_END), opening, closing),
        ]

    def _way(self, ends: Ends, after: Pair, *classes: int, limits: Mapping[int, int] | None = None) -> Iterator[Move]:
        """A card with these ends, at least one layer of each of `classes` and at most as many as `limits` say."""
        embedding, head = (ELSEWHERE if there else ANY for there in ends)
        limits = limits or {}
        same: list[Pair] = [(ANY, ANY)]
        mixed: list[Pair] = [(m, min(m + 1, self.most_mixed)) for m in range(self.most_mixed + 1)]
        # With both ends on one card the hop for the second of them is the one for coming back.
        cases = [(limits, classes, same)]
        if self.most_mixed and ends != (True, True):
            cases = [*(({**limits, other: 0}, classes, same) for other in (0, 1)), (limits, (0, 1), mixed)]
        for most, some, steps in cases:
            options = self.card.options(*ends, most)
            options = options.where(np.all(options.numbers[:, list(some)] > 0, axis=1))
            if len(options.local):
                yield from (Move(ends, options, (m, embedding, head), (then, *after)) for m, then in steps)

    def beside(self, unused: int) -> Iterator[Beside]:
        """So many cards without attention, which may have experts and ends."""
        none = (0,) * len(self.card.sizes)
        most = {ends: self.card.guests(*ends) for ends in ALL_ENDS}
        neither = ANY, ELSEWHERE, ELSEWHERE
        ways: list[tuple[list[Ends], Index, Index]] = [
            ([], (ANY, ANY, ANY), (ANY, ANY, ANY)),
            ([(True, False)], (ANY, ELSEWHERE, ANY), (ANY, APART, ANY)),
            ([(False, True)], (ANY, ANY, ELSEWHERE), (ANY, ANY, APART)),
            ([(True, True)], neither, (ANY, APART, APART)),
            ([(True, False), (False, True)], neither, (ANY, APART, APART)),
        ]
        for special, before, after in ways:
            ends = [*special, *[(False, False)] * (unused - len(special))]
            if len(special) <= unused and all(most[one] >= 0 for one in ends):
                yield Beside(tuple(Load(none, most[one], *one) for one in ends), before, after)
