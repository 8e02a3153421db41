"""From what each card could hold and totals to a plan's counts by device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from solver.assignment import Counts
from solver.equal_cards.totals import Load
from solver.problem import Problem


def trimmed(problem: Problem, loads: Sequence[Load], totals: Sequence[int]) -> list[Load]:
    """The same cards with exactly so many attentions and experts: first those whose layer is not whole there."""
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


def counts_of(problem: Problem, loads: Sequence[Load]) -> Counts:
    """Counts by device: cards named in turn, and experts sent wherever they are guests."""
    cpu = problem.cpu
    names = [d for d in range(len(problem.devices)) if d != cpu]
    by_name = dict(zip(names, loads, strict=False))
    ends = [next((d for d, load in by_name.items() if getattr(load, end)), cpu) for end in ("embedding", "head")]
    attention = {(c, d): n for d, load in by_name.items() for c, n in enumerate(load.attention)}
    for c, n in enumerate(problem.class_sizes):
        attention[c, cpu] = n - sum(attention.get((c, d), 0) for d in names)
        attention.update({(c, d): 0 for d in names if (c, d) not in attention})
    experts = dict(_experts(problem, by_name, attention))
    used = [d for d in (*names, cpu) if any(attention[c, d] for c in range(len(problem.classes)))]
    opening = problem.layer_class[0]

    def place(d: int) -> tuple[bool, bool, bool, bool]:
        """Along the route: the embedding's device, those that have layers of the first class, the head's last."""
        return d == ends[1] != ends[0], d != ends[0], not attention[opening, d], d == cpu

    return Counts(ends[0], ends[1], attention, experts, tuple(sorted(used, key=place)))


def _experts(
    problem: Problem, loads: dict[int, Load], attention: dict[tuple[int, int], int]
) -> Iterator[tuple[tuple[int, int, int], int]]:
    """(class, attention's device, experts' device) and how many such layers there are."""
    cpu, classes = problem.cpu, problem.expert_kinds[0].classes
    left = {d: load.experts for d, load in loads.items()}
    left[cpu] = problem.expert_kinds[0].number - sum(left.values())
    waiting = {(c, a): attention[c, a] for a in left for c in classes}
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
