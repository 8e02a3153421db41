"""From what each card could hold and totals to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from solver.assignment import Assignment, Counts, experts_for
from solver.equal_cards.moves import Load
from solver.problem import Problem

Numbers = Mapping[tuple[int, int], int]
"""Attentions by class and device."""


def trimmed(problem: Problem, loads: Sequence[Load], totals: Sequence[int]) -> list[Load]:
    """The same cards with exactly so many attentions and experts: first those go whose layer is not whole there."""
    movable = set(problem.expert_kinds[0].classes)
    attention = [list(load.attention) for load in loads]
    experts = [load.experts for load in loads]

    def own(k: int) -> int:
        return sum(attention[k][c] for c in movable)

    for c, total in enumerate(totals[:-1]):
        for alone in (True, False):
            for k in range(len(loads)):
                spare = own(k) - experts[k] if alone and c in movable else attention[k][c]
                too_many = sum(numbers[c] for numbers in attention) - total
                attention[k][c] -= max(0, min(too_many, spare, attention[k][c]))
    for alone in (True, False):
        for k in range(len(loads)):
            spare = experts[k] - own(k) if alone else experts[k]
            experts[k] -= max(0, min(sum(experts) - totals[-1], spare))
    return [
        Load(tuple(numbers), n, load.embedding, load.head)
        for load, numbers, n in zip(loads, attention, experts, strict=True)
    ]


def laid_out(problem: Problem, loads: Sequence[Load]) -> Assignment:
    """A plan in which cards, named in turn, hold these loads, and the CPU what is left."""
    cpu = problem.cpu
    names = [d for d in range(len(problem.devices)) if d != cpu]
    by_name = dict(zip(names, loads, strict=False))
    embedding, head = (
        next((d for d, load in by_name.items() if getattr(load, end)), cpu) for end in ("embedding", "head")
    )
    attention = {(c, d): n for d, load in by_name.items() for c, n in enumerate(load.attention) if n}
    for c, n in enumerate(problem.class_sizes):
        left = n - sum(attention.get((c, d), 0) for d in names)
        attention |= {(c, cpu): left} if left else {}
    order = _walk(problem, attention, embedding, head)
    counts = Counts(embedding, head, attention, dict(_experts(problem, by_name, attention)), ())
    return Assignment(embedding, head, order, experts_for(order, counts, problem))


def _walk(problem: Problem, attention: Numbers, embedding: int, head: int) -> tuple[int, ...]:
    """A device for each layer's attention. From one class to the next, and from and to the ends, the token stays where
    it is if it can."""
    runs = [c for c, _ in groupby(problem.layer_class)]
    there = [[d for d in range(len(problem.devices)) if attention.get((c, d))] for c in runs]
    walk: list[int] = []
    here = embedding
    for k, c in enumerate(runs):
        coming = there[k + 1] if k + 1 < len(runs) else [head]
        # Not where it ends, if that is not the next: it would have to come back.
        may = [d for d in there[k] if d in coming and (d != here or len(there[k]) == 1)]
        last = next((d for d in may if d != head or len(coming) == 1), may[0] if may else None)
        devices = sorted(there[k], key=lambda d: (d == last, d != here, d != head or d in coming))
        walk += [d for d in devices for _ in range(attention[c, d])]
        here = devices[-1]
    return tuple(walk)


def _experts(
    problem: Problem, loads: Mapping[int, Load], attention: Numbers
) -> Iterator[tuple[tuple[int, int, int], int]]:
    """(class, attention's device, experts' device) and how many such layers there are."""
    cpu, classes = problem.cpu, problem.expert_kinds[0].classes
    left = {d: load.experts for d, load in loads.items()}
    left[cpu] = problem.expert_kinds[0].number - sum(left.values())
    waiting = {(c, a): attention.get((c, a), 0) for a in left for c in classes}
    cards = [d for d in left if d != cpu]
    # Beside their attention; then from card to card; then whatever is left.
    turns = [[(d, d) for d in cards], [(a, d) for a in cards for d in cards if a != d]]
    turns += [[(cpu, d) for d in cards], [(d, cpu) for d in (*cards, cpu)]]
    for a, d in (pair for turn in turns for pair in turn):
        for c in classes:
            n = min(waiting[c, a], left[d])
            if n:
                waiting[c, a] -= n
                left[d] -= n
                yield (c, a, d), n
