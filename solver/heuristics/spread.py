"""From the numbers of a bound to a walk: cards get names, and layers their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solver.assignment import Counts, lay_out
from solver.cp_sat.patterns import Load
from solver.heuristics.walk import Walk
from solver.problem import Problem


@dataclass
class _Card:
    """A named card with the room its experts and ends leave, and the attentions it has got."""

    device: int
    room: int
    attention: list[int]


Held = dict[int, tuple[int, ...]]
"""Experts by kind on a device."""


def spread(problem: Problem, loads: Sequence[Load]) -> tuple[list[Walk], Held]:
    """Walks with the attention of `loads`, dealt out evenly to cards of the same pattern, and the experts of these."""
    free = {g: [d for d, twin in enumerate(problem.twins) if twin == g] for g in problem.twins}
    cards: list[_Card] = []
    held: Held = {}
    ends = {"embedding": problem.devices.index("cpu"), "head": problem.devices.index("cpu")}
    for load in loads:
        names = [free[load.device].pop(0) for _ in range(load.cards)]
        held |= {} if load.pattern is None else dict.fromkeys(names, load.pattern)
        mine = [_Card(d, _room(problem, d, load), [0] * len(problem.classes)) for d in names]
        # With several cards the head goes to another than the embedding: each leaves room for attention.
        for end, there, card in (("embedding", load.embedding, mine[0]), ("head", load.head, mine[-1])):
            if there:
                ends[end] = card.device
                card.room -= (problem.embedding if end == "embedding" else problem.head).bytes[card.device]
        for c, n in enumerate(load.attention):
            weight = problem.classes[c].attention.bytes[load.device]
            for _ in range(n):
                fits = [card for card in mine if card.room >= weight] or mine
                card = min(fits, key=lambda card: (card.attention[c], -card.room))
                card.attention[c] += 1
                card.room -= weight
        cards += mine
    named = {card.device for card in cards}
    cards += [_Card(d, n, [0] * len(problem.classes)) for d, n in enumerate(problem.usable) if d not in named]
    for c, n in enumerate(problem.class_sizes):
        weights = problem.classes[c].attention.bytes
        may = [card for card in cards if problem.classes[c].attention.allowed[card.device]]
        for _ in range(n - sum(card.attention[c] for card in cards)):
            # The loads left some out: to where there is most room.
            card = max(may, key=lambda card: card.room - weights[card.device])
            card.attention[c] += 1
            card.room -= weights[card.device]
    counts = {(c, card.device): n for card in cards for c, n in enumerate(card.attention)}
    used = [card.device for card in cards if any(card.attention)]
    route = sorted(used, key=lambda d: (d == ends["head"], d != ends["embedding"], d))
    found = [
        Walk(ends["embedding"], attention, ends["head"])
        for attention in (lay_out(problem, counts, route, by_run) for by_run in (False, True))
    ]
    return found, held


def in_runs(problem: Problem, counts: Counts) -> tuple[Walk, Held]:
    """A walk with as many layers on each device as `counts` have there, in one run each along their route whatever
    their classes, and the experts of these."""
    classes, devices = range(len(problem.classes)), range(len(problem.devices))
    attention = [d for d in counts.route for c in classes for _ in range(counts.attention[c, d])]
    held = {
        d: problem.by_kind([sum(counts.experts.get((c, a, d), 0) for a in devices) for c in classes])
        for d in devices
        if d != problem.cpu
    }
    return Walk(counts.embedding, tuple(attention), counts.head), held


def _room(problem: Problem, d: int, load: Load) -> int:
    """Bytes beside the experts of a pattern."""
    room = problem.usable[d]
    for kind, n in zip(problem.expert_kinds, load.pattern or (), strict=False):
        room -= n * kind.experts.bytes[d]
    return room
