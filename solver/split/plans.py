"""Plans that split layers: from the modes of `solver/split/bound.py` and a walk to numbers of experts on every device.

Every layer gets a mode of its class in the linear program's proportions. Its own experts go to its card, and those that
the mode spreads over other GPUs are dealt out evenly, each card's room being handed out in step with the layers that
may use it. What does not fit goes to the CPU, and what room is left at the end is filled from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from profiles.placement import LayerPlacement, Placement
from solver.heuristics.walk import Walk
from solver.problem import Problem
from solver.split.linear_program import ALONE, BOTH, Mode
from solver.split.tables import Split, SplitTables
from solver.split.times import Counts, SplitTimes

FILL_WORK = 6000
"""So many moves are looked at, about, to fill one plan."""


@dataclass
class SplitPlan:
    """A walk and, for each layer, its experts on each device (None for a dense layer)."""

    walk: Walk
    counts: list[Counts | None]


class Planner:
    """Makes and mends split plans of one problem."""

    def __init__(self, problem: Problem, times: SplitTimes, tables: SplitTables) -> None:
        self.problem, self.times = problem, times
        self.cards, self.sorts = tables.cards, tables.sorts
        self.cpu = problem.devices.index("cpu")
        self.gpus = [d for d in range(len(problem.devices)) if d != self.cpu]
        self._ones: dict[int, int] = {}
        self._bytes: dict[tuple[int, int, int], int] = {}

    # ---- bytes ----

    def bytes_of(self, i: int, d: int, n: int) -> int:
        """Bytes of n experts of layer i on device d (where experts differ, of n average ones)."""
        key = (self.problem.layer_class[i], d, n)
        if key not in self._bytes:
            experts = self.times.experts(key[0])
            stored = experts.weight_bytes.on(self.times.costs.device[self.problem.devices[d]].kind)
            self._bytes[key] = -(-stored * n // experts.count)
        return self._bytes[key]

    def rooms(self, walk: Walk) -> list[int]:
        """Bytes for experts on each device beside attention, embedding and head, and the workspaces of all; 0 where all
        else fits only without experts, negative where it does not."""
        problem = self.problem
        most = max((kind.experts.workspace for kind in problem.classes if kind.experts is not None), default=0)
        rooms = []
        for d, usable in enumerate(problem.usable):
            need, room = 0, usable
            for block, home in ((problem.embedding, walk.embedding), (problem.head, walk.head)):
                if home == d:
                    room, need = room - block.bytes[d], max(need, block.workspace)
            room += problem.tied_bytes * (walk.embedding == walk.head == d)
            for c, a in zip(problem.layer_class, walk.attention, strict=True):
                if a == d:
                    attention = problem.classes[c].attention
                    room, need = room - attention.bytes[d], max(need, attention.workspace)
            rooms.append(room - need if room < need else max(0, room - max(need, most)))
        return rooms

    # ---- a first deal ----

    def deal(self, walk: Walk, modes: Mapping[Mode, float]) -> SplitPlan:
        problem = self.problem
        rooms = self.rooms(walk)
        chosen = self._chosen(walk, modes, rooms)
        counts: list[Counts | None] = [None] * len(problem.layer_class)
        self._own_at_most(walk, chosen, rooms)
        for i, (e, _, _) in chosen.items():
            rooms[walk.attention[i]] -= self.bytes_of(i, walk.attention[i], e)
        wanted = {i: self._wanted(i, walk.attention[i], split) for i, split in chosen.items()}
        total = dict.fromkeys(self.gpus, 0)
        for d, amount in ((d, n * self._one(i)) for i in wanted for cards, n in wanted[i] for d in cards):
            total[d] += amount
        so_far, used = dict.fromkeys(self.gpus, 0), dict.fromkeys(self.gpus, 0)
        for i, (e, _, _) in chosen.items():
            here = [0] * len(problem.devices)
            for cards, amount in wanted[i]:
                limits = {}
                for d in cards:
                    so_far[d] += amount * self._one(i)
                    budget = max(0, rooms[d]) * so_far[d] // max(1, total[d]) - used[d]
                    limits[d] = max(0, budget) // self._one(i)
                self._spread(i, amount, limits, here)
            for d in self.gpus:
                used[d] += here[d] * self._one(i)
            here[walk.attention[i]] += e
            counts[i] = self._with_rest(i, here)
        return self._finished(SplitPlan(walk, counts), chosen)

    def _with_rest(self, i: int, here: list[int]) -> Counts:
        """Layer i with the experts that are nowhere yet on the CPU."""
        here[self.cpu] += self._count(i) - sum(here)
        return tuple(here)

    def _finished(self, plan: SplitPlan, chosen: Mapping[int, Split]) -> SplitPlan:
        self._settle(plan, chosen)
        self.mend(plan)
        return plan

    def _settle(self, plan: SplitPlan, chosen: Mapping[int, Split]) -> None:
        """What found no room on its own sort of cards, and is on the CPU though its mode has it on none: to any."""
        left = self.free(plan)
        for i, (_, n, _) in chosen.items():
            a, before = plan.walk.attention[i], plan.counts[i]
            assert before is not None
            homeless = before[self.cpu] - n
            if a == self.cpu or homeless <= 0:
                continue
            here = list(before)
            limits = {d: here[d] + max(0, left[d]) // self._one(i) for d in self.gpus if d != a and self.may(i, d)}
            self._spread(i, homeless, limits, here)
            for d in limits:
                left[d] -= (here[d] - before[d]) * self._one(i)
            here[self.cpu] -= sum(here) - self._count(i)
            plan.counts[i] = tuple(here)

    def pack(self, walk: Walk, modes: Mapping[Mode, float]) -> SplitPlan:
        """As `deal` for few large experts, of which every one counts: those for other GPUs go one by one, as evenly as
        they go, to the card with most room for each layer that it may still serve; layers with experts on the CPU come
        last."""
        rooms = self.rooms(walk)
        chosen = self._chosen(walk, modes, rooms)
        self._own_at_most(walk, chosen, rooms)
        counts: list[Counts | None] = [None] * len(self.problem.layer_class)
        for i, (e, _, _) in chosen.items():
            rooms[walk.attention[i]] -= e * self._one(i)
        served = {d: sum(walk.attention[i] != d for i in chosen) for d in self.gpus}
        for i in sorted(chosen, key=lambda i: (chosen[i][1], i)):
            a, e = walk.attention[i], chosen[i][0]
            here = [0] * len(self.problem.devices)
            share = {d: rooms[d] / max(1, served[d]) for d in self.gpus}
            for cards, amount in self._wanted(i, a, chosen[i]):
                self._one_by_one(i, cards, amount, share, here, rooms)
            for d in self.gpus:
                served[d] -= d != a
            here[a] += e
            counts[i] = self._with_rest(i, here)
        return self._finished(SplitPlan(walk, counts), chosen)

    def _one_by_one(
        self, i: int, cards: list[int], amount: int, share: Mapping[int, float], here: list[int], rooms: list[int]
    ) -> None:
        """`amount` experts of layer i to cards with room, about evenly, in step with `share` bytes a layer."""
        level = -(-amount // max(1, len(cards)))
        for _ in range(amount):
            open_ = [d for d in cards if rooms[d] >= self._one(i)]
            if open_:
                d = min(open_, key=lambda d: (max(level, here[d] + 1), here[d] * self._one(i) - share[d], d))
                here[d], rooms[d] = here[d] + 1, rooms[d] - self._one(i)

    def _wanted(self, i: int, a: int, split: Split) -> list[tuple[list[int], int]]:
        """How many experts of layer i go to each sort of other GPUs, and which cards those are."""
        e, n, k = split
        rest = self._count(i) - e - n
        amounts = (min(k, rest), rest - min(k, rest))
        return [
            ([d for d in self.cards.guests(a, sort) if self.may(i, d)], amount)
            for sort, amount in zip(self.sorts[self.cards.of[a]], amounts, strict=False)
        ]

    def _count(self, i: int) -> int:
        return self.times.experts(self.problem.layer_class[i]).count

    def _one(self, i: int) -> int:
        c = self.problem.layer_class[i]
        if c not in self._ones:
            self._ones[c] = max(1, self.bytes_of(i, self.gpus[0] if self.gpus else self.cpu, 1))
        return self._ones[c]

    def may(self, i: int, d: int) -> bool:
        experts = self.problem.classes[self.problem.layer_class[i]].experts
        return experts is not None and experts.allowed[d]

    def _chosen(self, walk: Walk, modes: Mapping[Mode, float], rooms: Sequence[int]) -> dict[int, Split]:
        """(own, CPU) experts for each layer with experts, in the proportions of `modes`: those of the layer's own group
        and kind of card, if the class has any there, or of its group, or any."""
        problem, given = self.problem, dict[Mode, float]()
        chosen = {}
        for i, (c, a) in enumerate(zip(problem.layer_class, walk.attention, strict=True)):
            if problem.classes[c].experts is None:
                continue
            every = [mode for mode in modes if mode.c == c]
            group = [mode for mode in every if mode.group == self.cards.of[a]]
            mine = [mode for mode in group if mode.kind == (BOTH if rooms[a] else ALONE)] or group or every
            weight = sum(modes[mode] for mode in mine)
            done = 1 + sum(given.get(mode, 0.0) for mode in mine)
            best = max(mine, key=lambda mode: modes[mode] / weight * done - given.get(mode, 0.0))
            given[best] = given.get(best, 0.0) + 1.0
            e, n = (best.e, best.n) if a != self.cpu else (best.n or best.e, 0)
            alone = len(self.sorts[self.cards.of[a]]) == 1 or best.group != self.cards.of[a]
            chosen[i] = (e if self.may(i, a) else 0, n, self._count(i) if alone else best.k)
        return chosen

    def _own_at_most(self, walk: Walk, chosen: dict[int, Split], rooms: Sequence[int]) -> None:
        """Fewer own experts on cards that have no room for what their layers' modes ask."""
        for d in range(len(rooms)):
            mine = [i for i in chosen if walk.attention[i] == d]
            asked = sum(self.bytes_of(i, d, chosen[i][0]) for i in mine)
            if asked > rooms[d]:
                share = max(0.0, rooms[d] / asked)
                for i in mine:
                    e, n, k = chosen[i]
                    chosen[i] = int(e * share), n, k

    def _spread(self, i: int, n: int, limits: Mapping[int, int], here: list[int]) -> None:
        """Deal n experts out to `limits`, evenly in time, as far as there is room."""
        pace = {d: self.pace(i, d) for d in limits if limits[d] > 0}
        while n and pace:
            # As far as all can go at once, then one by one.
            level = n / sum(1 / p for p in pace.values())
            for d in list(pace):
                more = min(int(level / pace[d]), limits[d] - here[d], n)
                here[d], n = here[d] + more, n - more
                if here[d] >= limits[d]:
                    del pace[d]
            if n and pace and n <= len(pace):
                for d in sorted(pace, key=lambda d: ((here[d] + 1) * pace[d], d))[:n]:
                    here[d], n = here[d] + 1, n - 1
                    if here[d] >= limits[d]:
                        del pace[d]

    def pace(self, i: int, d: int) -> float:
        """How slow device d is for experts of layer i."""
        experts = self.problem.classes[self.problem.layer_class[i]].experts
        assert experts is not None
        return experts.busy[d] + 1

    # ---- mending ----

    def free(self, plan: SplitPlan) -> list[int]:
        """Bytes left on each device; negative where it overflows."""
        left = self.rooms(plan.walk)
        for i, here in enumerate(plan.counts):
            for d, n in enumerate(here or ()):
                if n:
                    left[d] -= self.bytes_of(i, d, n)
        return left

    def mend(self, plan: SplitPlan) -> None:
        """Move experts off devices that overflow: to GPUs with room, else to the CPU."""
        left = self.free(plan)
        for d in self.gpus:
            layers = [i for i, here in enumerate(plan.counts) if here is not None and here[d]]
            while left[d] < 0 and layers:
                i = max(layers, key=lambda i: (plan.counts[i] or (0,) * (d + 1))[d])
                self.move(plan, i, d, self._refuge(i, d, left), left)
                layers = [i for i in layers if (plan.counts[i] or (0,) * (d + 1))[d]]

    def _refuge(self, i: int, d: int, left: Sequence[int]) -> int:
        open_ = [e for e in self.gpus if e != d and left[e] >= self._one(i) + 1 and self.may(i, e)]
        return max(open_, key=lambda e: left[e]) if open_ else self.cpu

    def move(self, plan: SplitPlan, i: int, d: int, e: int, left: list[int], n: int = 1) -> None:
        """n experts of layer i from device d to e."""
        here = plan.counts[i]
        assert here is not None
        for device, by in ((d, -n), (e, n)):
            left[device] += self.bytes_of(i, device, here[device]) - self.bytes_of(i, device, here[device] + by)
        plan.counts[i] = moved(here, d, e, n)

    def fill(self, plan: SplitPlan) -> None:
        """Use room that is left: experts from the CPU, as long as that makes their layer faster."""
        left, work = self.free(plan), 0
        while work < FILL_WORK:
            best: tuple[float, int, int, int] | None = None
            for i, d in self._openings(plan, left):
                here = plan.counts[i]
                assert here is not None
                n = min(here[self.cpu], left[d] // (self._one(i) + 1))
                for some in {n, max(1, n // 3), min(n, 8), 1}:
                    work += 1
                    gain = self._gain(plan, i, self.cpu, d, some) / some
                    if gain > 0 and (best is None or gain > best[0]):
                        best = (gain, i, d, some)
            if best is None:
                return
            self.move(plan, best[1], self.cpu, best[2], left, best[3])

    def _openings(self, plan: SplitPlan, left: Sequence[int]) -> list[tuple[int, int]]:
        """A layer and a GPU with room for some of its CPU experts, one of each kind of layer and GPU."""
        problem, seen, found = self.problem, set[tuple[object, ...]](), []
        for i, here in enumerate(plan.counts):
            if here is None or not here[self.cpu] or plan.walk.attention[i] == self.cpu:
                continue
            c, a = problem.layer_class[i], plan.walk.attention[i]
            shape = (c, problem.twins[a], here[a], here[self.cpu])
            for d in self.gpus:
                key = (shape, d == a, problem.twins[d], here[d])
                if left[d] > self._one(i) and self.may(i, d) and key not in seen:
                    seen.add(key)
                    found.append((i, d))
        return found

    def _gain(self, plan: SplitPlan, i: int, d: int, e: int, n: int) -> float:
        here = plan.counts[i]
        assert here is not None
        c, a = self.problem.layer_class[i], plan.walk.attention[i]
        return self.times.seconds(c, a, here) - self.times.seconds(c, a, moved(here, d, e, n))

    # ---- what a plan is, and takes ----

    def obeys(self, plan: SplitPlan) -> bool:
        """Whether every expert is where it may be and every device has room."""
        placed = ((i, d) for i, here in enumerate(plan.counts) for d, n in enumerate(here or ()) if n)
        return all(self.may(i, d) for i, d in placed) and min(self.free(plan)) >= 0

    def seconds(self, plan: SplitPlan) -> float:
        """The objective, for steps that add up."""
        problem, walk = self.problem, plan.walk
        ticks = problem.embedding.ticks[walk.embedding] + problem.head.ticks[walk.head]
        stops = (walk.embedding, *walk.attention, walk.head)
        ticks += sum(problem.hop[a][b] for a, b in pairwise(stops))
        ticks += sum(
            problem.classes[c].attention.ticks[a] for c, a in zip(problem.layer_class, walk.attention, strict=True)
        )
        total = ticks * problem.tick_s
        for c, a, here in zip(problem.layer_class, walk.attention, plan.counts, strict=True):
            total += self.times.seconds(c, a, here) if here is not None else 0.0
        return total

    def placement(self, plan: SplitPlan) -> Placement:
        names, layers = self.problem.devices, []
        for c, a, here in zip(self.problem.layer_class, plan.walk.attention, plan.counts, strict=True):
            held = self.times.ids(c, a, here) if here is not None else {}
            whole = len(held) == 1
            layers.append(
                LayerPlacement(
                    attention=names[a], experts={names[d]: "all" if whole else ids for d, ids in held.items()}
                )
            )
        return Placement(embedding=names[plan.walk.embedding], head=names[plan.walk.head], layers=layers)


def moved(counts: Counts, d: int, e: int, n: int) -> Counts:
    """`counts` with n experts more on e and fewer on d."""
    here = list(counts)
    here[d] -= n
    here[e] += n
    return tuple(here)
