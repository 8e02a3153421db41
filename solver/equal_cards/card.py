"""What one of several equal cards can hold: the contents to which nothing can be added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solver.problem import BlockCosts, Problem

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """Contents, one a row: attentions of each class, then experts. `local` is how many layers have both."""

    numbers: Integers
    local: Integers

    def where(self, rows: NDArray[np.bool_]) -> Options:
        return Options(self.numbers[rows], self.local[rows])


@dataclass(frozen=True)
class Card:
    """Bytes of one card's room and of what may be on it; blocks that are not allowed there are None. Equal figures have
    equal answers, so tables are kept by this."""

    room: int
    embedding: BlockCosts | None
    head: BlockCosts | None
    tied_bytes: int
    attention: tuple[BlockCosts | None, ...]
    experts: tuple[int, int] | None
    """Bytes, and workspace."""
    sizes: tuple[int, ...]
    """Layers of each class."""
    movable: tuple[bool, ...]
    """Which classes have experts."""
    opening: int
    closing: int
    """The classes of the first layer and of the last."""

    @staticmethod
    def of(problem: Problem, d: int) -> Card:
        """Device d of a problem with one kind of experts."""

        def allowed(block: BlockCosts) -> BlockCosts | None:
            return BlockCosts((block.bytes[d],), block.workspace, (), ()) if block.allowed[d] else None

        experts = problem.expert_kinds[0].experts
        return Card(
            room=problem.usable[d],
            embedding=allowed(problem.embedding),
            head=allowed(problem.head),
            tied_bytes=problem.tied_bytes,
            attention=tuple(allowed(kind.attention) for kind in problem.classes),
            experts=(experts.bytes[d], experts.workspace) if experts.allowed[d] else None,
            sizes=problem.class_sizes,
            movable=tuple(kind.experts is not None for kind in problem.classes),
            opening=problem.layer_class[0],
            closing=problem.layer_class[-1],
        )

    @cached_property
    def n_experts(self) -> int:
        """Layers that have experts."""
        return sum(n for n, movable in zip(self.sizes, self.movable, strict=True) if movable)

    def guests(self, embedding: bool, head: bool) -> int:
        """The most experts on a card without attention; -1 where the ends do not fit."""
        return int(self._most_experts(embedding, head).flat[0])

    def options(self, embedding: bool, head: bool, limits: Mapping[int, int] | None = None) -> Options:
        """Contents with some attention beside these ends, to which no attention and no experts can be added; `limits`
        are the most layers of a class."""
        most = self._most_experts(embedding, head)
        for c, limit in (limits or {}).items():
            most = most.take(range(min(limit, self.sizes[c]) + 1), axis=c)
        larger = np.full(most.shape, -1, np.int64)
        for axis in range(most.ndim):
            more = np.full(most.shape, -1, np.int64)
            before, after = [slice(None)] * most.ndim, [slice(None)] * most.ndim
            before[axis], after[axis] = slice(0, -1), slice(1, None)
            more[tuple(before)] = most[tuple(after)]
            larger = np.maximum(larger, more)
        maximal = most > larger
        maximal.flat[0] = False
        attention = np.argwhere(maximal)
        experts = most[maximal]
        own = attention @ np.array(self.movable, np.int64)
        return Options(np.column_stack([attention, experts]).astype(np.int64), np.minimum(own, experts))

    def _most_experts(self, embedding: bool, head: bool) -> Integers:
        """The most experts beside each number of attentions of each class; -1 where these do not fit."""
        numbers = np.indices([n + 1 for n in self.sizes])
        n_bytes = np.zeros(numbers.shape[1:], np.int64)
        workspace = np.zeros(numbers.shape[1:], np.int64)
        possible = np.ones(numbers.shape[1:], bool)
        for block, there in (
            (self.embedding, embedding),
            (self.head, head),
            *zip(self.attention, numbers, strict=True),
        ):
            if block is None:
                possible &= np.equal(there, 0)
                continue
            n_bytes += np.int64(there) * block.bytes[0]
            workspace = np.maximum(workspace, np.where(np.greater(there, 0), block.workspace, 0))
        n_bytes -= self.tied_bytes * (embedding and head)
        found = np.where(possible & (n_bytes + workspace <= self.room), 0, -1)
        if self.experts is None:
            return found
        weight, needed = self.experts
        left = self.room - n_bytes - np.maximum(workspace, needed)
        number = np.minimum(self.n_experts, left // weight if weight else np.where(left >= 0, self.n_experts, -1))
        return np.where(found < 0, -1, np.maximum(found, number))
