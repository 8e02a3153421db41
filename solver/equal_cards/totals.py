"""What equal cards can hold together: a dynamic program over one card after the other.

The state is what matters to the objective: attentions of each class and experts on all cards so far, and how the two
ends of the token's walk are there. Its value is the most layers that have both on one card. Cards that hold less than
they could are not looked at: leaving blocks out afterwards reaches the same totals with as many such layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.equal_cards.card import Card, Options

Table = NDArray[np.int16]
"""[embedding, head, attentions of each class…, experts]: the most layers with both on one card, of so many or more."""
Index = tuple[int | slice, int | slice]

NEVER = -30_000
"""Of totals that are out of reach, with room for what is added to it."""
ELSEWHERE, AT_THE_END, APART = range(3)
"""How the embedding is there: not on these cards; on the card that has the first layer, so that the walk begins there
without a hop; on any card, with a hop. Likewise the head and the last layer."""
ANY = slice(None)


@dataclass(frozen=True)
class Load:
    """What one card holds."""

    attention: tuple[int, ...]
    experts: int
    embedding: bool = False
    head: bool = False


@dataclass(frozen=True)
class _Move:
    """A card more: the ends it has, what it may hold, and the states before and after."""

    ends: tuple[bool, bool]
    options: Options
    before: Index
    after: Index


class Totals:
    """Tables by the number of cards with attention, made when they are asked for."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self._shape = (3, 3, *(n + 1 for n in card.sizes), card.n_experts + 1)
        first = np.full(self._shape, NEVER, np.int16)
        first[(0,) * len(self._shape)] = 0
        self._tables = [first]
        self._full = False

    def used(self, cards: int) -> Table | None:
        """With attention on so many cards, or fewer; None where that many can hold no more than fewer."""
        while len(self._tables) <= cards and not self._full:
            following = self._one_more(self._tables[-1])
            self._full = len(self._tables) > 1 and np.array_equal(following, self._tables[-1])
            if not self._full:
                self._tables.append(following)
        if cards >= len(self._tables):
            return None
        return self._only_one if cards == 1 else self._tables[cards]

    def held(self, used: int, unused: int) -> Table | None:
        """As `used`, with so many cards beside those that have no attention but may have experts and ends."""
        table = self.used(used)
        if table is None or not unused:
            return table
        found = np.full(self._shape, NEVER, np.int16)
        for guests, _, before, after in self._beside(unused):
            more = self._with_guests(table[before], guests)
            np.maximum(found[after], more, out=found[after])
        return found

    def _beside(self, unused: int) -> Iterator[tuple[int, list[Load], Index, Index]]:
        """What unused cards may hold: their experts in all, the loads, and the states before and after."""
        none = (0,) * len(self.card.sizes)
        most = {ends: self.card.guests(*ends) for ends in ((False, False), (True, False), (False, True), (True, True))}
        ways: list[tuple[list[tuple[bool, bool]], Index, Index]] = [
            ([], (ANY, ANY), (ANY, ANY)),
            ([(True, False)], (ELSEWHERE, ANY), (APART, ANY)),
            ([(False, True)], (ANY, ELSEWHERE), (ANY, APART)),
            ([(True, True)], (ELSEWHERE, ELSEWHERE), (APART, APART)),
            ([(True, False), (False, True)], (ELSEWHERE, ELSEWHERE), (APART, APART)),
        ]
        for special, before, after in ways:
            ends = [*special, *[(False, False)] * (unused - len(special))]
            if len(special) <= unused and all(most[one] >= 0 for one in ends):
                yield sum(most[one] for one in ends), [Load(none, most[one], *one) for one in ends], before, after

    def _with_guests(self, table: Table, guests: int) -> Table:
        """With so many more experts, none of them beside its attention."""
        rows = np.maximum(np.arange(table.shape[-1]) - guests, 0)
        return table[..., rows]

    @cached_property
    def _moves(self) -> list[_Move]:
        """Every way to add a card with attention where it is not the only one."""
        opening, closing = self.card.opening, self.card.closing
        # A walk of several cards that begins on one does not end there but for a hop, nor begin where it ends: that
        # card has not all layers of the last one's class, or of the first one's.
        not_closing, not_opening = (None, None) if opening == closing else (closing, opening)
        return [
            *self._way((False, False), (ANY, ANY)),
            *self._way((True, False), (AT_THE_END, ANY), opening, but_one=not_closing),
            *self._way((True, False), (APART, ANY)),
            *self._way((False, True), (ANY, AT_THE_END), closing, but_one=not_opening),
            *self._way((False, True), (ANY, APART)),
            *self._way((True, True), (AT_THE_END, APART), opening),
            *self._way((True, True), (APART, AT_THE_END), closing),
            *self._way((True, True), (APART, APART)),
        ]

    @cached_property
    def _moves_of_one(self) -> list[_Move]:
        """Ways to have attention on one card only, where the walk over cards is at its beginning and its end."""
        opening, closing = self.card.opening, self.card.closing
        return [
            *self._way((True, False), (AT_THE_END, ANY), opening),
            *self._way((False, True), (ANY, AT_THE_END), closing),
            *self._way((True, True), (AT_THE_END, AT_THE_END), opening, closing),
        ]

    def _way(self, ends: tuple[bool, bool], after: Index, *classes: int, but_one: int | None = None) -> Iterator[_Move]:
        """A card with these ends and at least one layer of each of `classes`."""
        options = self.card.options(*ends, but_one=but_one)
        options = options.where(np.all(options.numbers[:, list(classes)] > 0, axis=1))
        embedding, head = (ELSEWHERE if there else ANY for there in ends)
        if len(options.local):
            yield _Move(ends, options, (embedding, head), after)

    def _one_more(self, table: Table) -> Table:
        found = np.full(self._shape, NEVER, np.int16)
        for move in self._moves:
            self._add(table, move, found)
        return np.minimum(found, np.int16(self.card.n_experts))

    @cached_property
    def _only_one(self) -> Table:
        """With attention on one card only."""
        found = self._tables[1].copy()
        for move in self._moves_of_one:
            self._add(self._tables[0], move, found)
        return found

    def _add(self, table: Table, move: _Move, found: Table) -> None:
        """`found` becomes the larger of itself and of `table` with one of the options more."""
        before, after = table[move.before], found[move.after]
        n_totals = len(self._shape) - 2
        most = move.options.numbers.max(axis=0)
        # Of fewer than none there are none: one more row in front of every axis for each that may be added.
        padded = np.pad(before, [(0, 0)] * (before.ndim - n_totals) + [(int(n), 0) for n in most], mode="edge")
        for numbers, local in zip(move.options.numbers.tolist(), move.options.local.tolist(), strict=True):
            window: tuple[Any, ...] = tuple(
                slice(int(high) - n, int(high) - n + size)
                for high, n, size in zip(most, numbers, self._shape[2:], strict=True)
            )
            np.maximum(after, padded[(..., *window)] + np.int16(local), out=after)

    # ---- back to single cards ----

    def loads(self, used: int, unused: int, state: tuple[int, ...]) -> list[Load]:
        """What the cards hold of which together nothing is missing from `state`, an index of `held(used, unused)`."""
        table = self.held(used, unused)
        assert table is not None
        value, loads = int(table[state]), list[Load]()
        for guests, beside, before, after in self._beside(unused) if unused else ():
            source = _before(state, before, after)
            if source is None:
                continue
            left = (*source[:-1], max(0, source[-1] - guests))
            found = self.used(used)
            assert found is not None
            if found[left] == value:
                state, loads = left, beside
                break
        for cards in range(used, 0, -1):
            state, load = self._last(cards, state)
            loads.append(load)
        return loads

    def _last(self, cards: int, state: tuple[int, ...]) -> tuple[tuple[int, ...], Load]:
        """The state before the last of so many cards, and what that card holds."""
        table = self.used(cards)
        assert table is not None
        for move in [*self._moves, *(self._moves_of_one if cards == 1 else [])]:
            source = _before(state, move.before, move.after)
            if source is None:
                continue
            totals = np.maximum(np.array(source[2:]) - move.options.numbers, 0)
            values = self._tables[cards - 1][(*source[:2], *totals.T)].astype(np.int64) + move.options.local
            right = np.flatnonzero(np.minimum(values, self.card.n_experts) == table[state])
            if len(right):
                k = int(right[0])
                *attention, experts = move.options.numbers[k].tolist()
                return (*source[:2], *totals[k].tolist()), Load(tuple(attention), experts, *move.ends)
        raise AssertionError("a total that no card reaches")


def _before(state: tuple[int, ...], before: Index, after: Index) -> tuple[int, ...] | None:
    """The state that a move came from; None where it does not lead to `state`."""
    ends: list[int] = []
    for now, from_, to in zip(state, before, after, strict=False):
        if isinstance(to, slice):
            ends.append(now)
        elif to == now and not isinstance(from_, slice):
            ends.append(from_)
        else:
            return None
    return (*ends, *state[2:])
