"""Seconds and bytes of split layers, class by class, as seen from each group of equal devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cost_models import CostModel, Step
from cost_models.experts import touch_probabilities
from cost_models.guest_sorts import SortRows, StepHits
from cost_models.split_tables import split_table
from cost_models.splits import MEANS_FROM_TOKENS
from profiles.model import Experts
from solver.problem import Problem
from solver.split.card_groups import CardGroups, Sort, View

Floats = NDArray[np.float64]
Split = tuple[int, int, int]
"""Experts beside the attention, on the CPU, and on the first sort of other GPUs."""
GB = 1e9
MOST_SORTS = 2
BATCH, BATCHES, MOST_SPLITS = 16, 5, 60_000_000
"""Rows are made so many at a time, in so many goes for one question, and so many in all; what is left open counts with
what it costs at least."""
EXACT = 1e-4
"""Rows that promise so little more, as a share, are not made."""


@dataclass
class LayerCosts:
    """One class of layers seen from one group: bytes of attention, least bytes of k experts, and at least the seconds
    of every split `seconds[e, n]`; where there are two sorts of guests, `rows` has them by how many are on the first.
    """

    attention_bytes: float
    attention_s: float
    own_bytes: Floats
    guest_bytes: Floats
    cpu_bytes: Floats
    seconds: Floats
    rows: SortRows | None = None

    @property
    def count(self) -> int:
        return len(self.seconds) - 1

    @cached_property
    def dearest_s(self) -> float:
        return self.attention_s + float(self.seconds[np.isfinite(self.seconds)].max(initial=0.0))

    @cached_property
    def _rest(self) -> NDArray[np.intp]:
        e, n = np.indices(self.seconds.shape)
        return np.asarray(np.maximum(0, self.count - e - n))

    def split_s(self, e: int, n: int, k: int) -> float:
        """Seconds with e experts beside the attention, n on the CPU and k on the first sort of guests."""
        if self.rows is None or not np.isfinite(self.seconds[e, n]):
            return float(self.seconds[e, n])
        at = self.rows.at(e, n)
        return float(self.rows.all[at, k])

    def cheapest(self, own: float, away: float, lent: Sequence[float], *, own_too: bool) -> tuple[float, Split]:
        """What no split costs less than at prices a GB beside the attention, on the CPU and on each sort of other GPUs,
        and the cheapest found. Rows are made from the most promising one on, until none may be better."""
        rows = len(self.seconds) if own_too else 1
        value = self.seconds[:rows] + (self.cpu_bytes / GB * away)[None, :]
        value += (self.own_bytes[:rows] / GB * own)[:, None]
        value += (self.guest_bytes / GB * min(lent))[self._rest[:rows]]
        if self.rows is None:
            at = divmod(int(np.argmin(value)), value.shape[1])
            return float(value[at]), (*at, int(self._rest[at]))
        best, split = np.inf, (0, self.count, 0)
        fresh = [(e, n) for e, n in self.rows.known if e < rows]
        for _ in range(BATCHES):
            if fresh:
                found, where = self._cheapest_of(fresh, own, away, lent)
                best, split = min((best, split), (found, where))
                value[tuple(np.array(fresh).T)] = np.inf
            fresh = (
                self._promising(value, best * (1 - EXACT)) if len(self.rows.known) * self.count**2 < MOST_SPLITS else []
            )
            for pair in fresh:
                self.rows.at(*pair)
            if not fresh:
                break
        return min(best, float(value.min())), split

    @staticmethod
    def _promising(value: Floats, below: float) -> list[tuple[int, int]]:
        """The few (e, n) that promise most, as far as they promise to be `below`."""
        flat = value.ravel()
        few = np.argpartition(flat, BATCH)[:BATCH] if len(flat) > BATCH else np.arange(len(flat))
        return [divmod(int(at), value.shape[1]) for at in few if flat[at] < below]

    def _cheapest_of(
        self, pairs: Sequence[tuple[int, int]], own: float, away: float, lent: Sequence[float]
    ) -> tuple[float, Split]:
        """Of splits with such (e, n)."""
        assert self.rows is not None
        at = np.array([self.rows.known[pair] for pair in pairs])
        e, n = np.array(pairs).T
        k = np.arange(self.count + 1)
        rest = (self.count - e - n)[:, None]
        guests = self.guest_bytes / GB
        value = self.rows.all[at] + guests[None, :] * lent[0] + guests[np.maximum(0, rest - k)] * lent[1]
        value += (self.own_bytes[e] / GB * own + self.cpu_bytes[n] / GB * away)[:, None]
        i, best = divmod(int(np.argmin(value)), len(k))
        return float(value[i, best]), (*pairs[i], best)


def _apart(one: Sequence[View], other: Sequence[View], pace: Mapping[View, float]) -> bool:
    """Whether one sort is seen to be faster than the next."""
    return pace[other[0]] > pace[one[-1]] * (1 + 1e-9)


def _are_alike(experts: Experts) -> bool:
    return experts.frequencies is None and experts.expert_weight_bytes is None


def alike_experts(problem: Problem, costs: CostModel) -> list[int]:
    """For each class the first one with equal experts, whatever its attention."""
    found = [costs.layer(problem.layer_class.index(c)).experts for c in range(len(problem.classes))]
    return [found.index(experts) for experts in found]


def hits_s(problem: Problem, costs: CostModel, c: int, a: int, d: int, step: Step) -> Floats:
    """Seconds of 0, 1, … hits on device d for attention of class c on a; where they are taken at their means, of as
    many experts."""
    layer, tokens, names = problem.layer_class.index(c), step.tokens * costs.workload.batch_size, problem.devices
    experts = costs.layer(layer).experts
    assert experts is not None
    hit = touch_probabilities(experts, tokens)[0] if tokens >= MEANS_FROM_TOKENS else 1.0
    hits = (n * hit for n in range((experts.active if tokens == 1 else experts.count) + 1))
    return np.array(costs.hits_s(layer, names[a], names[d], hits, step))


class SplitTables:
    """Seconds and bytes of all classes of a problem, by class and group of equal devices. Other GPUs are taken as one
    sort, as fast as the fastest and as near as the nearest, or as two."""

    def __init__(self, problem: Problem, costs: CostModel, steps: Sequence[Step], most_sorts: int = MOST_SORTS) -> None:
        self.most_sorts = most_sorts
        self.problem, self.costs, self.steps = problem, costs, steps
        self.cards = CardGroups(problem)
        self.differ = False
        self.groups = self.cards.size
        self.cpu = problem.devices.index("cpu")
        self._seconds: dict[tuple[int, int, tuple[bool, ...]], Floats] = {}
        self._rows: dict[tuple[object, ...], SortRows] = {}
        self._alike = alike_experts(problem, costs)
        self.sorts = {g: self._sorts(g) for g in self.groups}
        self.kinds = {
            (c, g): self._kind(c, g)
            for c, kind in enumerate(problem.classes)
            for g in self.groups
            if kind.attention.allowed[g]
        }

    # ---- seconds ----

    def layer_of(self, c: int) -> int:
        """Some layer of class c."""
        return self.problem.layer_class.index(c)

    def _kind(self, c: int, g: int) -> LayerCosts:
        problem, attention = self.problem, self.problem.classes[c].attention
        seconds, zero = attention.ticks[g] * problem.tick_s, np.zeros(1)
        if problem.classes[c].experts is None:
            return LayerCosts(attention.bytes[g], seconds, zero, zero, zero, np.zeros((1, 1)))
        gpu = next((d for d in self.groups if d != self.cpu), self.cpu)
        own, guest, cpu = (self._least_bytes(c, d) for d in (g, gpu, self.cpu))
        return LayerCosts(attention.bytes[g], seconds, own, guest, cpu, self._table(c, g), self._sort_rows(c, g))

    def _table(self, c: int, g: int) -> Floats:
        experts = self.problem.classes[c].experts
        assert experts is not None
        layer = self.layer_of(c)
        key = (self._alike[c], g, experts.allowed)
        if key not in self._seconds:
            names = self.problem.devices
            alike = [[d for d in some if experts.allowed[d]] for some in self.cards.seen(g).values()]
            guests = [names[some[0]] for some in alike for _ in some]
            table = split_table(self.costs, layer, names[g], guests, self.steps).seconds
            if not experts.allowed[g]:
                table[1:, :] = np.inf
            if not experts.allowed[self.cpu]:
                table[:, 1:] = np.inf
            self._seconds[key] = table
        return self._seconds[key]

    # ---- sorts of guests ----

    def _sorts(self, g: int) -> tuple[Sort, ...]:
        """At most two sorts of guests for attention on group g; those that are most alike are taken as one."""
        cards = self.cards.seen(g)
        alike = all(x is None or _are_alike(x) for x in map(self._experts, range(len(self.problem.classes))))
        if not alike or g == self.cpu:
            return (self.cards.sort(g, cards),) if cards else ()
        classes = sorted({self._alike[c] for c, kind in enumerate(self.problem.classes) if kind.experts is not None})
        pace = {
            view: sum(float(self._hits(c, g, some[0], step).sum()) * step.times for c in classes for step in self.steps)
            for view, some in cards.items()
        }
        self.differ |= len(set(pace.values())) > 1
        found = [[view] for view in sorted(cards, key=lambda view: (pace[view], cards[view]))]
        while len(found) > 1 and (len(found) > self.most_sorts or not _apart(found[0], found[1], pace)):
            i = min(range(len(found) - 1), key=lambda i: pace[found[i + 1][0]] / max(pace[found[i][-1]], 1e-300))
            found[i : i + 2] = [found[i] + found[i + 1]]
        return tuple(self.cards.sort(g, views) for views in found)

    def _experts(self, c: int) -> Experts | None:
        return self.costs.layer(self.layer_of(c)).experts

    def _hits(self, c: int, a: int, d: int, step: Step) -> Floats:
        return hits_s(self.problem, self.costs, c, a, d, step)

    def _sort_rows(self, c: int, g: int) -> SortRows | None:
        """Splits over both sorts; groups that see the same share them."""
        sorts, experts = self.sorts[g], self._experts(c)
        if len(sorts) < MOST_SORTS or experts is None:
            return None
        steps = []
        for step in self.steps:
            tokens = step.tokens * self.costs.workload.batch_size
            first, second = (
                np.min([self._hits(c, g, self.cards.seen(g)[view][0], step) for view in sort.views], axis=0)
                for sort in sorts
            )
            own, cpu = self._hits(c, g, g, step), self._hits(c, g, self.cpu, step)
            steps.append(StepHits(tokens, step.times, own, cpu, (first, second)))
        bins = (sorts[0].bins, sorts[1].bins)
        key = (self._alike[c], bins, *(part.tobytes() for s in steps for part in (s.own, s.cpu, *s.sorts)))
        if key not in self._rows:
            self._rows[key] = SortRows(experts, [touch_probabilities(experts, s.tokens)[0] for s in steps], bins, steps)
        return self._rows[key]

    # ---- bytes ----

    def _least_bytes(self, c: int, d: int) -> Floats:
        """At least the bytes of any k experts of class c on d."""
        experts = self.costs.layer(self.layer_of(c)).experts
        assert experts is not None
        stored = experts.weight_bytes.on(self.costs.device[self.problem.devices[d]].kind)
        if experts.expert_weight_bytes is None:
            return stored * np.arange(experts.count + 1) / experts.count
        sizes = np.sort(np.array(experts.expert_weight_bytes, dtype=float)) * stored / max(1, experts.weight_bytes.gpu)
        return np.concatenate(([0.0], np.cumsum(sizes)))

    def room(self, g: int, attention: bool = False, experts: bool = False, *, any_block: bool = False) -> float:
        """GB for blocks on a card of group g that has attention, experts or both, or any of them; at least what is left
        beside their workspace."""
        runs = [kind.attention.workspace for kind in self.problem.classes if kind.attention.allowed[g]]
        holds = [k.experts.workspace for k in self.problem.classes if k.experts is not None and k.experts.allowed[g]]
        if any_block:
            ends = [block.workspace for block in (self.problem.embedding, self.problem.head) if block.allowed[g]]
            need = min([*runs, *holds, *ends], default=0)
        else:
            need = max(min(runs, default=0) if attention else 0, min(holds, default=0) if experts else 0)
        return max(0.0, (self.problem.usable[g] - need) / GB)

    def whole(self, room: float) -> float:
        """GB of whole experts within `room`, where all are of one size."""
        if self._one_size is None:
            return room
        return math.floor(room / self._one_size + 1e-9) * self._one_size

    @cached_property
    def _one_size(self) -> float | None:
        """GB of an expert on a GPU, if all take the same."""
        found = [self.costs.layer(self.layer_of(c)).experts for c in range(len(self.problem.classes))]
        sizes = {x.weight_bytes.gpu / x.count for x in found if x is not None and x.expert_weight_bytes is None}
        alike = all(x.expert_weight_bytes is None for x in found if x is not None)
        return sizes.pop() / GB if alike and len(sizes) == 1 else None
