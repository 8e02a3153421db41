"""A placement in the problem's own terms: device indices, and what they cost in ticks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from profiles.placement import LayerPlacement, Placement
from solver.problem import Problem


@dataclass(frozen=True)
class Assignment:
    """Device index of every block; `experts[i]` is None for a dense layer."""

    embedding: int
    head: int
    attention: tuple[int, ...]
    experts: tuple[int | None, ...]

    def ticks(self, problem: Problem) -> int:
        """The objective in ticks."""
        if problem.bottleneck:
            return max(self.busy(problem))
        total = problem.embedding.ticks[self.embedding] + problem.head.ticks[self.head]
        stops = (self.embedding, *self.attention, self.head)
        total += sum(problem.hop[a][b] for a, b in pairwise(stops))
        for c, a, d in zip(problem.layer_class, self.attention, self.experts, strict=True):
            total += problem.classes[c].attention.ticks[a]
            experts = problem.classes[c].experts
            if experts is not None and d is not None:
                total += experts.ticks[a][d]
        return total

    def busy(self, problem: Problem) -> list[int]:
        """Ticks of work of each device, hops and hand-overs left out."""
        busy = [0] * len(problem.devices)
        busy[self.embedding] += problem.embedding.ticks[self.embedding]
        busy[self.head] += problem.head.ticks[self.head]
        for c, a, d in zip(problem.layer_class, self.attention, self.experts, strict=True):
            busy[a] += problem.classes[c].attention.ticks[a]
            experts = problem.classes[c].experts
            if experts is not None and d is not None:
                busy[d] += experts.busy[d]
        return busy

    def canonical(self, problem: Problem, rank: Sequence[int] | None = None) -> Assignment:
        """The same plan with interchangeable devices renamed in the order in which a token first meets them: by their
        `rank`, or as they are numbered."""
        met = (*self.attention, *(d for d in self.experts if d is not None), self.embedding, self.head)
        new = names_in_turn(problem, met, rank)
        experts = tuple(None if d is None else new[d] for d in self.experts)
        return Assignment(new[self.embedding], new[self.head], tuple(new[a] for a in self.attention), experts)

    def placement(self, problem: Problem) -> Placement:
        """The bare plan, with device names."""
        names = problem.devices
        layers = [
            LayerPlacement(attention=names[a], experts={} if d is None else {names[d]: "all"})
            for a, d in zip(self.attention, self.experts, strict=True)
        ]
        return Placement(embedding=names[self.embedding], head=names[self.head], layers=layers)

    @staticmethod
    def of(placement: Placement, problem: Problem) -> Assignment | None:
        """The assignment a placement describes; None when it splits a layer's experts."""
        index = {name: i for i, name in enumerate(problem.devices)}
        experts: list[int | None] = []
        for layer in placement.layers:
            if layer.experts and layer.experts_device is None:
                return None
            experts.append(index[layer.experts_device] if layer.experts_device else None)
        attention = tuple(index[layer.attention] for layer in placement.layers)
        return Assignment(index[placement.embedding], index[placement.head], attention, tuple(experts))


def names_in_turn(problem: Problem, met: Iterable[int], rank: Sequence[int] | None = None) -> dict[int, int]:
    """New names for devices that are `met` in this order, so that those of equal devices rise: by their `rank`, or as
    they are numbered."""
    devices = range(len(problem.devices))
    groups: dict[int, list[int]] = {}
    for d in sorted(devices, key=lambda d: (rank[d] if rank else 0, d)):
        groups.setdefault(problem.twins[d], []).append(d)
    return {d: groups[problem.twins[d]].pop(0) for d in dict.fromkeys((*met, *devices))}


@dataclass(frozen=True)
class Counts:
    """How many layers of class c have attention on a and experts on d, whatever their order.

    `experts[c, a, d]` for classes with experts, `attention[c, a]` for all; `route` is the order in which a token
    visits the devices that have attention.
    """

    embedding: int
    head: int
    attention: dict[tuple[int, int], int]
    experts: dict[tuple[int, int, int], int]
    route: tuple[int, ...]


def arrange(counts: Counts, problem: Problem) -> Assignment:
    """Layers in order, given only the counts: stay on a device while it has room for the next layer's class, then go
    on, along the route or to where the token can stay longest, whichever turns out cheaper. Optimal where the counts
    allow contiguous slices, else a start."""
    plans = []
    for by_run in (False, True):
        attention = lay_out(problem, counts.attention, counts.route, by_run)
        experts = experts_for(attention, counts, problem)
        plans.append(Assignment(counts.embedding, counts.head, attention, experts))
    return min(plans, key=lambda plan: plan.ticks(problem))


def lay_out(
    problem: Problem, counts: Mapping[tuple[int, int], int], route: Sequence[int], by_run: bool
) -> tuple[int, ...]:
    """A device for each layer's attention, `counts[c, a]` of class c on a: as long as there is room on the same one,
    then on the next of `route`, or with `by_run` on the one where the token can stay longest."""
    room = dict(counts)
    attention: list[int] = []
    for i, c in enumerate(problem.layer_class):
        if not attention or room[c, attention[-1]] == 0:
            open_ = [a for a in route if room[c, a] > 0]
            upcoming = problem.layer_class[i:]
            here = max(open_, key=lambda a: _run_length(upcoming, a, room)) if by_run else open_[0]
        else:
            here = attention[-1]
        room[c, here] -= 1
        attention.append(here)
    return tuple(attention)


def _run_length(upcoming: Sequence[int], device: int, room: dict[tuple[int, int], int]) -> int:
    """How many of the upcoming layers `device` can take before it lacks room for the next one's class."""
    left = {c: room[c, device] for c in set(upcoming)}
    for n, c in enumerate(upcoming):
        if left[c] == 0:
            return n
        left[c] -= 1
    return len(upcoming)


def experts_for(attention: Sequence[int], counts: Counts, problem: Problem) -> tuple[int | None, ...]:
    """Deal each slice's experts out by the counts: the slice's own device first, other GPUs next, the CPU last, since
    late layers concentrate on fewer experts (ik_llama.cpp pull request 2262)."""
    n = len(problem.devices)
    queue: dict[tuple[int, int], list[int]] = {}
    for c, a in {(c, a) for c, a in zip(problem.layer_class, attention, strict=True)}:
        order = sorted(range(n), key=lambda d: (problem.devices[d] == "cpu", d != a, d))
        queue[c, a] = [d for d in order for _ in range(counts.experts.get((c, a, d), 0))]
    return tuple(
        queue[c, a].pop(0) if problem.classes[c].experts is not None else None
        for c, a in zip(problem.layer_class, attention, strict=True)
    )
