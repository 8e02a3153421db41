"""What equal cards can hold together: a dynamic program over one card after the other.

The state is what matters to the objective: attentions of each class and experts on all cards so far, how the two ends
of the token's walk are there, and how many cards have layers of both classes, as the walk comes to all of those twice
but one. Its value is the most layers that have both on one card. Cards that hold less than they could are not looked
at: leaving blocks out afterwards reaches the same totals with as many such layers.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.equal_cards.card import Card
from solver.equal_cards.moves import Index, Load, Move, Moves

Table = NDArray[np.int16]
"""[mixed, embedding, head, attentions of each class…, experts]: the most layers with both on one card, of so many
attentions and experts or more. The last axis ends with the most experts that are within reach."""
State = tuple[int, ...]

NEVER = -30_000
"""Of totals that are out of reach, with room for what one card more adds to it."""
N_WAYS = 3
"""Axes of a table before its totals."""


class Totals:
    """Tables by the number of cards with attention, made when they are asked for."""

    def __init__(self, card: Card) -> None:
        self.card, self.moves = card, Moves(card)
        self._ways = (self.moves.most_mixed + 1, 3, 3)
        first = self._nowhere(0)
        first.flat[0] = 0
        self._tables = [first]
        self._full = False

    def _nowhere(self, cards: int) -> Table:
        """Nothing within reach of so many cards."""
        most = max(0, self.card.guests(embedding=False, head=False))
        experts = min(self.card.n_experts, cards * most)
        return np.full((*self._ways, *(n + 1 for n in self.card.sizes), experts + 1), NEVER, np.int16)

    def used(self, cards: int) -> Table | None:
        """With attention on so many cards, or fewer; None where that many can hold no more than fewer."""
        while len(self._tables) <= cards and not self._full:
            following = self._one_more(self._tables[-1], len(self._tables))
            self._full = len(self._tables) > 1 and np.array_equal(following, self._tables[-1])
            if not self._full:
                self._tables.append(following)
        if cards >= len(self._tables):
            return None
        return self._alone if cards == 1 else self._tables[cards]

    def held(self, used: int, unused: int) -> Table | None:
        """As `used`, with so many cards beside those that have no attention but may have experts and ends."""
        table = self.used(used)
        if table is None or not unused:
            return table
        found = self._nowhere(used + unused)
        for beside in self.moves.beside(unused):
            # So many more experts, none of them beside its attention.
            rows = np.arange(found.shape[-1]) - beside.experts
            here = found[beside.after]
            there = table[beside.before][..., np.clip(rows, 0, table.shape[-1] - 1)]
            np.maximum(here, np.where(rows < table.shape[-1], there, np.int16(NEVER)), out=here)
        return found

    def _one_more(self, table: Table, cards: int) -> Table:
        found = self._nowhere(cards)
        _add(self.moves.among_others, table, found)
        found[found < 0] = NEVER
        return np.minimum(found, np.int16(self.card.n_experts))

    @cached_property
    def _alone(self) -> Table:
        """With attention on one card only."""
        found = self._tables[1].copy()
        _add(self.moves.alone, self._tables[0], found)
        return found

    # ---- back to single cards ----

    def loads(self, used: int, unused: int, state: State) -> list[Load]:
        """What the cards hold of which together nothing is missing from `state`, an index of `held(used, unused)`."""
        table, whole = self.used(used), self.held(used, unused)
        assert table is not None
        assert whole is not None
        loads: list[Load] = []
        for beside in self.moves.beside(unused) if unused else ():
            source = _before(state, beside.before, beside.after)
            if source is None:
                continue
            left = (*source[:-1], max(0, source[-1] - beside.experts))
            if left[-1] < table.shape[-1] and table[left] == whole[state]:
                state, loads = left, list(beside.loads)
                break
        for cards in range(used, 0, -1):
            state, load = self._last(cards, state)
            loads.append(load)
        return loads

    def _last(self, cards: int, state: State) -> tuple[State, Load]:
        """The state before the last of so many cards, and what that card holds."""
        table, before = self.used(cards), self._tables[cards - 1]
        assert table is not None
        for move in [*self.moves.among_others, *(self.moves.alone if cards == 1 else [])]:
            source = _before(state, move.before, move.after)
            if source is None:
                continue
            totals = np.maximum(np.array(source[N_WAYS:]) - move.options.numbers, 0)
            within = np.flatnonzero(totals[:, -1] < before.shape[-1])
            values = before[(*source[:N_WAYS], *totals[within].T)].astype(np.int64) + move.options.local[within]
            right = within[np.minimum(values, self.card.n_experts) == table[state]]
            if len(right):
                k = int(right[0])
                *attention, experts = move.options.numbers[k].tolist()
                return (*source[:N_WAYS], *totals[k].tolist()), Load(tuple(attention), experts, *move.ends)
        raise AssertionError("a total that no card reaches")


def _add(moves: list[Move], table: Table, found: Table) -> None:
    """`found` becomes the larger of itself and of `table` with one card more."""
    if not moves:
        return
    most = np.max([move.options.numbers.max(axis=0) for move in moves], axis=0).tolist()
    # Of fewer than none there are none: one more row in front of every axis for each that may be added.
    out_of_reach = found.shape[-1] - table.shape[-1]
    padded = np.pad(table, [(0, 0)] * N_WAYS + [(n, 0) for n in most], mode="edge")
    padded = np.pad(padded, [(0, 0)] * (padded.ndim - 1) + [(0, out_of_reach)], constant_values=NEVER)
    for move in moves:
        before, after = padded[move.before], found[move.after]
        for numbers, local in zip(move.options.numbers.tolist(), move.options.local.tolist(), strict=True):
            window: tuple[Any, ...] = tuple(
                slice(high - n, high - n + size)
                for high, n, size in zip(most, numbers, found.shape[N_WAYS:], strict=True)
            )
            np.maximum(after, before[(..., *window)] + np.int16(local), out=after)


def _before(state: State, before: Index, after: Index) -> State | None:
    """The state that a move came from; None where it does not lead to `state`."""
    ways: list[int] = []
    for now, from_, to in zip(state, before, after, strict=False):
        if isinstance(to, slice):
            ways.append(now)
        elif to == now and not isinstance(from_, slice):
            ways.append(from_)
        else:
            return None
    return (*ways, *state[N_WAYS:])
