"""What a plan on equal cards takes, from its totals."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from solver.equal_cards.card import Integers
from solver.equal_cards.moves import APART, ELSEWHERE
from solver.equal_cards.totals import Table
from solver.problem import BlockCosts, ExpertsCosts, Problem

TOO_DEAR = 2**62
"""Ticks of what is not allowed or does not fit."""


def first_card(problem: Problem) -> int:
    return next(d for d in range(len(problem.devices)) if d != problem.cpu)


def costs_are_of_totals(problem: Problem) -> bool:
    """Experts beside their attention are never dearer, nor are guests from another card than by way of the CPU; hops
    take the same there and back."""
    g, cpu = first_card(problem), problem.cpu
    other, hop, ticks = problem.other_twin(g), problem.hop, problem.expert_kinds[0].experts.ticks
    there_and_back = hop[g][cpu] == hop[cpu][g]
    near = (
        ticks[g][g] + ticks[cpu][cpu] <= ticks[cpu][g] + ticks[g][cpu]
        if other == g
        else (ticks[g][g] <= ticks[g][other] and ticks[g][other] + ticks[cpu][cpu] <= ticks[cpu][g] + ticks[g][cpu])
    )
    return there_and_back and near and hop[g][other] <= 2 * hop[g][cpu]


class Costs:
    """Ticks of totals: arrays over attentions of each class on cards, then experts on cards."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.g, self.cpu = first_card(problem), problem.cpu
        self.kind = problem.expert_kinds[0]
        numbers = np.indices([n + 1 for n in (*problem.class_sizes, self.kind.number)]).astype(np.int64)
        self.attention, self.experts = numbers[:-1], numbers[-1]
        own = sum((self.attention[c] for c in self.kind.classes), np.zeros_like(self.experts))
        self.both = np.minimum(own, self.experts)
        """Layers that could have both on cards."""
        self.own = own
        other = problem.other_twin(self.g)
        ticks = self.kind.experts.ticks
        self.guest = ticks[self.g][other] - ticks[self.g][self.g] if other != self.g else 0
        """What a layer costs more whose experts are on another card than its attention."""
        left = self.attention < self._sizes
        self.on_cpu = left.any(axis=0)
        self.opens, self.closes = left[problem.layer_class[0]], left[problem.layer_class[-1]]
        """Where the CPU has attention, and layers of the first one's class and the last one's."""
        self.base = self._base(self.kind.experts)
        self._fits = {ends: self._fit(*ends) for ends in ((False, False), (True, False), (False, True), (True, True))}

    @property
    def _sizes(self) -> Integers:
        sizes = self.problem.class_sizes
        return np.array(sizes).reshape(len(sizes), *[1] * (len(sizes) + 1))

    def _base(self, experts: ExpertsCosts) -> Integers:
        """Blocks, with as many layers' experts beside their attention as could be, of the others as many as can be sent
        from card to card."""
        problem, g, cpu = self.problem, self.g, self.cpu
        total: Integers = np.zeros_like(self.experts)
        for kind, here, n in zip(problem.classes, self.attention, problem.class_sizes, strict=True):
            total += here * kind.attention.ticks[g] + (n - here) * kind.attention.ticks[cpu]
        ticks, both = experts.ticks, self.both
        total += ticks[g][g] * both + ticks[cpu][g] * (self.experts - both) + ticks[g][cpu] * (self.own - both)
        total += ticks[cpu][cpu] * (self.kind.number - self.own - self.experts + both)
        return total

    def _fit(self, embedding: bool, head: bool) -> NDArray[np.bool_]:
        """Whether the CPU has room for what is not on cards, these ends included, and may have it."""
        problem, cpu = self.problem, self.cpu
        there: list[tuple[BlockCosts | ExpertsCosts, Integers]] = [
            (kind.attention, n - here)
            for kind, here, n in zip(problem.classes, self.attention, problem.class_sizes, strict=True)
        ]
        there.append((self.kind.experts, self.kind.number - self.experts))
        ends = (problem.embedding, embedding), (problem.head, head)
        there += [(block, np.full_like(self.experts, is_there)) for block, is_there in ends]
        n_bytes, workspace = np.zeros_like(self.experts), np.zeros_like(self.experts)
        fits: NDArray[np.bool_] = np.ones(self.experts.shape, bool)
        for block, number in there:
            n_bytes += number * block.bytes[cpu]
            workspace = np.maximum(workspace, np.where(number > 0, block.workspace, 0))
            if not block.allowed[cpu]:
                fits &= number == 0
        n_bytes -= problem.tied_bytes * (embedding and head)
        if problem.whole_layers:
            fits &= self.experts == self.own
        fits &= n_bytes + workspace <= problem.usable[cpu]
        return fits

    def of(self, table: Table, used: int) -> Integers:
        """Ticks of every state; TOO_DEAR of those out of reach."""
        reach = np.s_[..., : table.shape[-1]]
        both, near = self.both[reach], self.problem.hop[self.g][self.problem.other_twin(self.g)]
        local = np.minimum(table, both)
        ticks = self.base[reach] + self.guest * (both - local)
        reached = table >= 0
        if self.problem.whole_layers:
            reached &= local >= self.own[reach]
        for embedding, head in product(range(3), repeat=2):
            there = ticks[:, embedding, head]
            there += self._ends(embedding, head) + self._hops(used, embedding, head)[reach]
            reached[:, embedding, head] &= self._fits[embedding == ELSEWHERE, head == ELSEWHERE][reach]
        for mixed in range(2, len(table)):
            ticks[mixed] += near * (mixed - 1)
        return np.where(reached, ticks, TOO_DEAR)

    def _ends(self, embedding: int, head: int) -> int:
        at = [self.cpu if state == ELSEWHERE else self.g for state in (embedding, head)]
        return self.problem.embedding.ticks[at[0]] + self.problem.head.ticks[at[1]]

    def _hops(self, used: int, embedding: int, head: int) -> Integers:
        """The shortest walk from end to end past so many cards, and the CPU where that has attention."""
        g, cpu = self.g, self.cpu
        near, far = self.problem.hop[g][self.problem.other_twin(g)], self.problem.hop[g][cpu]
        outside = (embedding == ELSEWHERE) + (head == ELSEWHERE)
        if not used:
            return np.full_like(self.experts, far * (2 - outside))
        between = used - 1 + (embedding == APART) + (head == APART)
        # The CPU's layers are where the walk begins or ends, or else in its middle, instead of a hop between cards.
        at_an_end = (self.opens & (embedding == ELSEWHERE)) | (self.closes & (head == ELSEWHERE))
        detour = 2 * far - near * (between > 0)
        return np.where(self.on_cpu & ~at_an_end, detour, 0) + far * outside + near * between
