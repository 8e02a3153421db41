"""Tiny problems in whole numbers, drawn at random without a cost model, and every plan of one, listed.

Small numbers make ties, cards of no use, and contents that just fit as likely as they are rare in real machines.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from solver.assignment import Assignment
from solver.problem import BlockCosts, ExpertsCosts, LayerClass, Problem

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

MOST_PLANS = 120_000
"""Plans of a problem, feasible or not, that are worth listing."""
SHAPES = (
    # (equal cards, other cards, layers, classes)
    (1, 0, 6, 2),
    (1, 0, 5, 3),
    (2, 0, 4, 2),
    (2, 0, 3, 1),
    (1, 1, 4, 2),
    (1, 1, 3, 3),
    (3, 0, 3, 1),
    (2, 1, 3, 2),
    (2, 0, 5, 2),
)


@dataclass(frozen=True)
class Plans:
    """Every plan of `problem` that is allowed and fits, one a row: devices of the blocks and ticks."""

    problem: Problem
    embedding: Integers
    head: Integers
    attention: Integers
    experts: Integers
    """-1 where a layer is dense."""
    ticks: Integers

    def __len__(self) -> int:
        return len(self.ticks)

    @property
    def least(self) -> int | None:
        return int(self.ticks.min()) if len(self.ticks) else None

    def where(self, rows: Booleans) -> Plans:
        return Plans(
            self.problem,
            self.embedding[rows],
            self.head[rows],
            self.attention[rows],
            self.experts[rows],
            self.ticks[rows],
        )

    def plan(self, row: int) -> Assignment:
        experts = tuple(None if d < 0 else int(d) for d in self.experts[row])
        attention = tuple(map(int, self.attention[row]))
        return Assignment(int(self.embedding[row]), int(self.head[row]), attention, experts)

    @property
    def best(self) -> Assignment:
        return self.plan(int(self.ticks.argmin()))

    @cached_property
    def classes(self) -> Integers:
        return np.array(self.problem.layer_class)

    def held(self, d: int, k: int) -> Integers:
        """Experts of kind k on device d."""
        alike = np.isin(self.classes, self.problem.expert_kinds[k].classes)
        return np.asarray((self.experts[:, alike] == d).sum(axis=1))

    def runs(self, d: int) -> Integers:
        """Runs of attention on device d."""
        return _runs(self.attention, d)


def every_plan(problem: Problem) -> Plans:
    """All plans, each feasible one once: the rules of the problem's docstrings, applied row by row."""
    n_layers = len(problem.layer_class)
    kinds = [problem.classes[c] for c in problem.layer_class]
    choices = [_places(problem.embedding.allowed), _places(problem.head.allowed)]
    choices += [_places(kind.attention.allowed) for kind in kinds]
    choices += [_places(kind.experts.allowed) if kind.experts else [-1] for kind in kinds]
    rows = np.array(np.meshgrid(*choices, indexing="ij"), dtype=np.int64).reshape(2 + 2 * n_layers, -1).T
    attention, experts = rows[:, 2 : 2 + n_layers], rows[:, 2 + n_layers :]
    keep = np.ones(len(rows), dtype=bool)
    if problem.whole_layers:
        keep &= np.all((experts < 0) | (experts == attention), axis=1)
    if problem.rank is not None:
        rank = np.array(problem.rank)
        stops = np.column_stack([attention, rows[:, 1]]) if problem.head_in_order else attention
        keep &= np.all(np.diff(rank[stops], axis=1) >= 0, axis=1)
    if problem.one_run:
        keep &= np.all([_runs(attention, d) <= 1 for d in range(len(problem.devices))], axis=0)
    rows = rows[keep]
    rows = rows[_fits(problem, rows)]
    attention, experts = rows[:, 2 : 2 + n_layers], rows[:, 2 + n_layers :]
    return Plans(problem, rows[:, 0], rows[:, 1], attention, experts, _ticks(problem, rows))


def _runs(attention: Integers, d: int) -> Integers:
    here = attention == d
    return np.asarray(here[:, 0] + (here[:, 1:] & ~here[:, :-1]).sum(axis=1))


def _places(allowed: Sequence[bool]) -> list[int]:
    return [d for d, may in enumerate(allowed) if may]


def _fits(problem: Problem, rows: Integers) -> Booleans:
    n_layers = len(problem.layer_class)
    blocks: list[BlockCosts | ExpertsCosts | None] = [problem.embedding, problem.head]
    blocks += [problem.classes[c].attention for c in problem.layer_class]
    blocks += [problem.classes[c].experts for c in problem.layer_class]
    assert len(blocks) == 2 + 2 * n_layers
    fits = np.ones(len(rows), dtype=bool)
    sent = [(k, problem.staging[c]) for k, c in enumerate(problem.layer_class, 2)] if problem.staging else []
    held = []
    for d, usable in enumerate(problem.usable):
        load, workspace = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        for k, block in enumerate(blocks):
            if block is not None:
                here = rows[:, k] == d
                load += block.bytes[d] * here
                workspace = np.maximum(workspace, block.workspace * here)
        load -= problem.tied_bytes * ((rows[:, 0] == d) & (rows[:, 1] == d))
        buffer = np.zeros(len(rows), np.int64)
        for k, n_bytes in sent if d != problem.cpu else ():
            buffer = np.maximum(buffer, n_bytes * ((rows[:, k] == d) & (rows[:, k + n_layers] == problem.cpu)))
        fits &= load + workspace + buffer <= usable
        held.append(load + workspace + buffer)
    for pool in problem.shared:
        contexts = [n * np.any(rows == d, axis=1) for d, n in zip(pool.devices, pool.contexts, strict=True)]
        fits &= sum(held[d] for d in pool.devices) + sum(contexts) <= pool.usable
    if problem.main is not None:
        fits &= np.any(rows == problem.main, axis=1)
    return fits


def _ticks(problem: Problem, rows: Integers) -> Integers:
    n_layers, hop = len(problem.layer_class), np.array(problem.hop)
    stops = [0, *range(2, 2 + n_layers), 1]
    ticks = np.array(problem.embedding.ticks)[rows[:, 0]] + np.array(problem.head.ticks)[rows[:, 1]]
    for before, after in pairwise(stops):
        ticks = ticks + hop[rows[:, before], rows[:, after]]
    for i, c in enumerate(problem.layer_class):
        kind, a = problem.classes[c], rows[:, 2 + i]
        ticks = ticks + np.array(kind.attention.ticks)[a]
        if kind.experts is not None:
            ticks = ticks + np.array(kind.experts.ticks)[a, rows[:, 2 + n_layers + i]]
    return np.asarray(ticks)


# ---- problems by hand ----


def block_on(*devices: int, of: int = 2, n_bytes: int = 1, ticks: int = 1) -> BlockCosts:
    """A block that weighs and takes the same everywhere, allowed on `devices` of `of`."""
    return BlockCosts((n_bytes,) * of, 0, (ticks,) * of, tuple(d in devices for d in range(of)))


def turns_problem() -> Problem:
    """Three layers whose attention may only be on the card, in turns with three whose may only be on the CPU: a token
    goes there from the embedding and back to the head, and hops five times."""
    return Problem(
        devices=("cuda:0", "cpu"),
        usable=(9, 9),
        embedding=block_on(0),
        head=block_on(1),
        tied_bytes=0,
        hop=((0, 10), (10, 0)),
        classes=(LayerClass(block_on(0), None), LayerClass(block_on(1), None)),
        layer_class=(0, 1, 0, 1, 0, 1),
        whole_layers=False,
        bottleneck=False,
        tick_s=1e-9,
    )


# ---- problems drawn at random ----


def random_problem(
    rng: random.Random, *, whole: bool | None = None, ordered: bool | None = None, shape: tuple[int, ...] | None = None
) -> Problem:
    """A few equal cards, perhaps others, and the CPU, which may equal them too; layers of some classes, which may have
    equal experts, in turns, in blocks or anyhow."""
    problem = None
    while problem is None or _number(problem) > MOST_PLANS:
        problem = _random_problem(rng, whole, ordered, shape or rng.choice(SHAPES))
    return problem


def problems(
    first_seed: int, number: int, *, whole: bool | None = None, ordered: bool | None = None
) -> Iterator[tuple[Problem, Plans, random.Random]]:
    """Problems with all their plans, and the generator that drew them."""
    for seed in range(first_seed, first_seed + number):
        rng = random.Random(seed)
        problem = random_problem(rng, whole=whole, ordered=ordered)
        yield problem, every_plan(problem), rng


def _number(problem: Problem) -> float:
    """Plans before any is ruled out by memory or order."""
    blocks = [problem.embedding.allowed, problem.head.allowed]
    for c in problem.layer_class:
        experts = problem.classes[c].experts
        blocks.append(problem.classes[c].attention.allowed)
        blocks += [experts.allowed] if experts is not None else []
    return float(np.prod([float(sum(allowed)) for allowed in blocks]))


class _Draw:
    """Figures by kind of device, so that equal cards are equal."""

    def __init__(self, rng: random.Random, kinds: Sequence[int]) -> None:
        self.rng, self.kinds, self.scale = rng, kinds, rng.choice((1, 1, 10, 1000))

    def of_kinds(self, least: int, most: int) -> tuple[int, ...]:
        found = {kind: self.rng.randint(least, most) for kind in sorted(set(self.kinds))}
        return tuple(found[kind] for kind in self.kinds)

    def ticks(self, most: int) -> tuple[int, ...]:
        return tuple(self.scale * n + (self.rng.randint(0, 3) if self.scale > 1 else 0) for n in self.of_kinds(0, most))

    def even_ticks(self, most: int) -> tuple[int, ...]:
        """As `ticks`, equal on equal devices."""
        found = dict(zip(self.kinds, self.ticks(most), strict=True))
        return tuple(found[kind] for kind in self.kinds)

    def bytes(self, most: int) -> tuple[int, ...]:
        if self.rng.random() < 0.6:
            return (self.rng.randint(0, most),) * len(self.kinds)
        return self.of_kinds(0, most)

    def workspace(self) -> int:
        return self.rng.choice((0, 0, 0, 1, 2, 5))

    def allowed(self) -> tuple[bool, ...]:
        """Mostly anywhere; sometimes not on one kind of devices, or on one card, which parts it from its equals."""
        draw = self.rng.random()
        if draw < 0.75:
            return (True,) * len(self.kinds)
        gone = self.rng.randrange(len(self.kinds))
        if draw < 0.94:
            may = tuple(kind != self.kinds[gone] for kind in self.kinds)
            return may if any(may) else (True,) * len(may)
        return tuple(d != gone for d in range(len(self.kinds)))

    def block(self, most_bytes: int, most_ticks: int) -> BlockCosts:
        return BlockCosts(self.bytes(most_bytes), self.workspace(), self.even_ticks(most_ticks), self.allowed())

    def hops(self, most: int) -> tuple[tuple[int, ...], ...]:
        """Symmetric, equal for equal cards, and obeying the triangle inequality."""
        n, between = len(self.kinds), {}
        for a in sorted(set(self.kinds)):
            for b in sorted(set(self.kinds)):
                between[a, b] = between[b, a] = self.scale * self.rng.randint(0, most)
        hop = [[0 if a == b else between[self.kinds[a], self.kinds[b]] for b in range(n)] for a in range(n)]
        for k in range(n):
            hop = [[min(hop[a][b], hop[a][k] + hop[k][b]) for b in range(n)] for a in range(n)]
        return tuple(map(tuple, hop))


def _random_problem(rng: random.Random, whole: bool | None, ordered: bool | None, shape: tuple[int, ...]) -> Problem:
    equal, others, n_layers, n_classes = shape
    names = [*(f"cuda:{i}" for i in range(equal + others)), "cpu"]
    kinds = [*([0] * equal), *range(1, 1 + others), 0 if rng.random() < 0.03 else 9]
    if rng.random() < 0.15:
        names, kinds = names[::-1], kinds[::-1]
    draw = _Draw(rng, kinds)
    away = draw.hops(rng.choice((2, 6)))
    classes = [_class(draw, away)]
    for _ in range(1, n_classes):
        other = rng.random()
        if other < 0.45:
            classes.append(replace(_class(draw, away), experts=rng.choice(classes).experts))
        else:
            classes.append(_class(draw, away) if other < 0.85 else _like(draw, away, classes[-1]))
    embedding, head = draw.block(5, 6), draw.block(5, 6)
    order = rng.choice(("turns", "turns", "blocks", "any"))
    layer_class = [i % n_classes for i in range(n_layers)]
    if order == "any":
        rng.shuffle(layer_class)
    layer_class = sorted(layer_class) if order == "blocks" else layer_class
    kinds_of_layers = [classes[c] for c in layer_class]
    everything = max(embedding.bytes) + max(head.bytes) + sum(max(kind.attention.bytes) for kind in kinds_of_layers)
    everything += sum(max(kind.experts.bytes) for kind in kinds_of_layers if kind.experts is not None)
    share = {kind: rng.choice((0.2, 0.35, 0.5, 0.8, 1.2)) for kind in set(kinds)}
    ordered = rng.random() < 0.2 if ordered is None else ordered
    rank = tuple(rng.choice((-1, 0, 1)) if rng.random() < 0.5 else 0 for _ in names) if ordered else None
    if ordered and rng.random() < 0.4:
        rank = tuple(0 if name == "cpu" else 1 + int(name[5:]) for name in names)
    return Problem(
        devices=tuple(names),
        usable=tuple(round(everything * share[kind]) + 2 for kind in kinds),
        embedding=embedding,
        head=head,
        tied_bytes=min(*embedding.bytes, *head.bytes) if rng.random() < 0.4 else 0,
        hop=draw.hops(rng.choice((1, 4, 9))),
        classes=tuple(classes),
        layer_class=tuple(layer_class),
        whole_layers=rng.random() < 0.2 if whole is None else whole,
        bottleneck=False,
        tick_s=1e-9,
        rank=rank,
        head_in_order=rank is not None and rng.random() < 0.5,
        staging=_staging(rng, classes) if rng.random() < 0.2 else (),
        main=names.index("cuda:0") if rng.random() < 0.1 else None,
        one_run=rng.random() < 0.1 if rank is None else len(set(rank)) == len(rank),
    )


def _staging(rng: random.Random, classes: Sequence[LayerClass]) -> tuple[int, ...]:
    """Bytes by class, mostly the same where experts are."""
    sizes = [rng.randint(0, 3) for _ in classes]
    if rng.random() < 0.8:
        first = [next(c for c, other in enumerate(classes) if other.experts == kind.experts) for kind in classes]
        sizes = [sizes[c] for c in first]
    return tuple(sizes)


def _class(draw: _Draw, away: tuple[tuple[int, ...], ...]) -> LayerClass:
    attention = draw.block(4, 8)
    if draw.rng.random() < 0.25:
        return LayerClass(attention, None)
    busy, sync = draw.even_ticks(12), draw.even_ticks(3)
    devices = range(len(busy))
    ticks = tuple(tuple(busy[d] if a == d else busy[d] + sync[d] + 2 * away[a][d] for d in devices) for a in devices)
    experts = ExpertsCosts(draw.bytes(9), draw.workspace(), ticks, busy, draw.allowed())
    return LayerClass(attention, experts)


def _like(draw: _Draw, away: tuple[tuple[int, ...], ...], kind: LayerClass) -> LayerClass:
    """A class of as many bytes, in the same places, that takes other times."""
    other = _class(draw, away)
    attention = replace(other.attention, bytes=kind.attention.bytes, allowed=kind.attention.allowed)
    if kind.experts is None or other.experts is None:
        return LayerClass(attention, None if kind.experts is None else kind.experts)
    return LayerClass(attention, replace(other.experts, bytes=kind.experts.bytes, allowed=kind.experts.allowed))
