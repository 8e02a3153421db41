"""What one card can hold: the knapsacks against every contents there are, windows against every subset of layers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from tiny_problems import problems, random_problem

from solver import contents as contents_module
from solver.contents import Contents, Knapsack, Prices, contents_of, merged
from solver.interleaved import InterleavedKnapsack
from solver.problem import Problem
from solver.windows import Windows

NEVER = -(10**15)
TURNS = ((1, 0, 6, 2), (2, 0, 5, 2), (1, 0, 5, 2), (1, 1, 7, 2), (1, 0, 8, 3), (2, 0, 9, 2), (1, 0, 10, 3))
"""Shapes whose layers take turns often enough for visits to matter."""


def random_prices(rng: random.Random, problem: Problem, size: int) -> Prices:
    """Of either sign; what a card pays for being used or visited is never a gain (`Network.prices`)."""

    def some() -> list[int]:
        return [rng.randint(-size, size) if rng.random() < 0.8 else 0 for _ in problem.classes]

    return Prices(
        attention=some(),
        local=some(),
        sent=some(),
        taken=some(),
        embedding=rng.randint(-size, size),
        head=rng.randint(-size, size),
        used=-rng.randint(0, size),
        visit=-rng.randint(0, size) if rng.random() < 0.8 else 0,
    )


def value_of(held: Contents, prices: Prices, problem: Problem) -> int:
    """What contents earn, from the meaning of each price."""
    total = held.embedding * prices.embedding + held.head * prices.head + held.used * prices.used
    total += held.visits * prices.visit
    for c, kind in enumerate(problem.classes):
        a, h, local = held.attention[c], held.experts[c], held.local[c]
        total += a * prices.attention[c]
        if kind.experts is not None:
            total += local * prices.local[c] + (a - local) * prices.sent[c] + (h - local) * prices.taken[c]
    return total


def every_contents(problem: Problem, d: int, visits: int | Windows) -> Iterator[Contents]:
    """All that device d may hold and has room for; a card with attention takes so many visits, or what it needs."""
    choices = []
    for kind, n in zip(problem.classes, problem.class_sizes, strict=True):
        most = n if kind.attention.allowed[d] else 0
        most_experts = n if kind.experts is not None and kind.experts.allowed[d] else 0
        pairs = product(range(most + 1), range(most_experts + 1))
        options = [(a, h, k) for a, h in pairs for k in range(min(a, h) + 1)]
        if problem.whole_layers and kind.experts is not None:
            options = [(a, h, k) for a, h, k in options if a == h == k]
        choices.append(options)
    ends = [(0, 1) if block.allowed[d] else (0,) for block in (problem.embedding, problem.head)]
    for held in product(*choices):
        attention, experts, local = (tuple(column) for column in zip(*held, strict=True))
        times = visits if isinstance(visits, int) else visits.visits(attention)
        if problem.one_run and not isinstance(visits, int) and times > 1:
            continue
        for embedding, head in product(*ends):
            found = Contents(attention, experts, local, embedding, head, times if any(attention) else 0)
            if found.bytes(problem, d) <= problem.usable[d]:
                yield found


def most_earned(problem: Problem, d: int, prices: Prices, visits: int | Windows) -> int:
    return max((value_of(held, prices, problem) for held in every_contents(problem, d, visits)), default=NEVER)


# ---- contents of plans ----


@pytest.mark.parametrize("batch", range(4))
def test_contents_of_a_plan_are_what_its_cards_hold(batch: int) -> None:
    """Bytes fit, blocks are all there, and ticks are the plan's but for hops and hand-overs."""
    for problem, plans, rng in problems(1_000 + 25 * batch, 25):
        if not len(plans):
            continue
        plan = plans.plan(rng.randrange(len(plans)))
        found = contents_of(problem, plan)
        assert [g for g, _ in found] == list(problem.twins)
        for d, (_, held) in enumerate(found):
            assert held.bytes(problem, d) <= problem.usable[d]
        assert sum(held.embedding for _, held in found) == sum(held.head for _, held in found) == 1
        for c, kind in enumerate(problem.classes):
            assert sum(held.attention[c] for _, held in found) == problem.class_sizes[c]
            assert sum(held.experts[c] for _, held in found) == problem.class_sizes[c] * (kind.experts is not None)
        still = replace(
            plan, experts=tuple(a if d is not None else None for a, d in zip(plan.attention, plan.experts, strict=True))
        )
        no_hops = replace(problem, hop=tuple((0,) * len(problem.devices) for _ in problem.devices))
        if still == plan:
            assert sum(held.ticks(problem, d) for d, (_, held) in enumerate(found)) == plan.ticks(no_hops)


# ---- the knapsack ----


@pytest.mark.parametrize("batch", range(10))
def test_the_knapsack_finds_the_best_contents(batch: int) -> None:
    """200 problems, two devices each, with ends, tied bytes, workspaces, pins and whole layers."""
    for seed in range(2_000 + 20 * batch, 2_000 + 20 * batch + 20):
        rng = random.Random(seed)
        problem = random_problem(rng)
        for d in rng.sample(range(len(problem.devices)), 2):
            prices = random_prices(rng, problem, rng.choice((2, 9, 100, 10**9)))
            visits = rng.randint(1, 3)
            best, held = Knapsack(problem, d).best(prices, visits)
            assert best == most_earned(problem, d, prices, visits)
            assert value_of(held, prices, problem) == best
            assert held in set(every_contents(problem, d, visits))


@pytest.mark.parametrize("batch", range(4))
def test_thin_lists_only_make_the_best_look_better(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, dearer = random.Random(3_000 + batch), 0
    for _ in range(40):
        problem = random_problem(rng, shape=rng.choice(((1, 0, 6, 2), (1, 0, 6, 3), (2, 0, 8, 4))))
        d = rng.randrange(len(problem.devices))
        prices = random_prices(rng, problem, rng.choice((2, 9, 100)))
        knapsack = Knapsack(problem, d)
        exact, _ = knapsack.best(prices)
        for most in (1, 2, 3, 8):
            monkeypatch.setattr(contents_module, "MOST_POINTS", most)
            thin, _ = knapsack.best(prices)
            monkeypatch.undo()
            assert thin >= exact
            dearer += thin > exact
    assert dearer  # or nothing was thinned


def test_thin_lists_hold_at_most_so_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "MOST_POINTS", 5)
    rng = random.Random(3_100)
    problem = random_problem(rng, shape=(1, 0, 6, 2))
    grids = next(iter(contents_module._levels(problem, 0))).grids
    prices = random_prices(rng, problem, 100)
    merged_points = merged([grid.points(c, prices, True) for c, grid in enumerate(grids)], problem.usable[0])
    assert len(merged_points.bytes) <= 5
    assert np.all(np.diff(merged_points.bytes) >= 0)
    assert np.all(np.diff(merged_points.value) > 0)


# ---- windows ----


def least_runs(layer_class: tuple[int, ...], n_classes: int) -> dict[tuple[int, ...], int]:
    """For numbers of layers by class the fewest runs of layers that hold exactly those: every subset tried."""
    found: dict[tuple[int, ...], int] = {}
    for n in range(len(layer_class) + 1):
        for chosen in combinations(range(len(layer_class)), n):
            held = [0] * n_classes
            for i in chosen:
                held[layer_class[i]] += 1
            runs = sum(i - 1 not in chosen for i in chosen)
            found[tuple(held)] = min(found.get(tuple(held), n), runs)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_windows_are_runs_of_layers(seed: int) -> None:
    rng = random.Random(4_000 + seed)
    problem = random_problem(rng, shape=rng.choice(TURNS))
    layer_class = tuple(rng.randrange(len(problem.classes)) for _ in problem.layer_class)
    if seed % 3 == 0:
        layer_class = problem.layer_class
    problem = replace(problem, layer_class=layer_class)
    windows, runs = Windows(problem), least_runs(layer_class, len(problem.classes))
    assert {tuple(map(int, row)) for row in windows.one} == {held for held, n in runs.items() if n == 1}
    two = windows.two
    assert two is not None
    listed = {tuple(map(int, row)) for row in two}
    assert listed >= {held for held, n in runs.items() if n == 2}
    assert not listed & {held for held, n in runs.items() if n < 2}
    for held, n in runs.items():
        assert windows.visits(held) <= n
        assert n > 2 or windows.visits(held) == n


def test_too_many_pairs_of_windows_count_as_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two windows hold may be too much to list; then everything that one does not hold needs two at least."""
    monkeypatch.setattr("solver.windows.MOST_VECTORS", 1)
    problem = random_problem(random.Random(4_100), shape=(1, 0, 10, 3))
    windows, runs = Windows(problem), least_runs(problem.layer_class, 3)
    assert windows.two is None
    assert max(runs.values()) > 2
    for held, n in runs.items():
        assert windows.visits(held) == min(n, 2)


# ---- classes in turns ----


def with_equal_experts_workspace(problem: Problem) -> Problem:
    """Experts of all classes need the same workspace, as those of equal hidden size and top-k do."""
    classes = tuple(
        kind if kind.experts is None else replace(kind, experts=replace(kind.experts, workspace=3))
        for kind in problem.classes
    )
    return replace(problem, classes=classes)


def with_weightless_experts(problem: Problem, c: int) -> Problem:
    kind = problem.classes[c]
    if kind.experts is not None:
        kind = replace(kind, experts=replace(kind.experts, bytes=(0,) * len(problem.devices)))
    return replace(problem, classes=(*problem.classes[:c], kind, *problem.classes[c + 1 :]))


def interleaved(rng: random.Random) -> tuple[Problem, int, Windows] | None:
    problem = random_problem(rng, whole=False, shape=rng.choice(TURNS[:4]))
    if rng.random() < 0.7:
        problem = with_equal_experts_workspace(problem)
    if rng.random() < 0.3:
        problem = with_weightless_experts(problem, rng.randrange(len(problem.classes)))
    windows, d = Windows(problem), problem.devices.index("cuda:0")
    return (problem, d, windows) if InterleavedKnapsack.suits(problem, d, windows) else None


@pytest.mark.parametrize("batch", range(10))
def test_the_best_contents_by_visits(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact where experts of all classes need the same workspace, else never less than what a card can earn."""
    rng, tried, exact, several = random.Random(5_000 + batch), 0, 0, 0
    while tried < 20:
        made = interleaved(rng)
        if made is None:
            continue
        problem, d, windows = made
        tried += 1
        prices = random_prices(rng, problem, rng.choice((2, 9, 100, 10**9)))
        best, held = InterleavedKnapsack(problem, d, windows).best(prices)
        truth = most_earned(problem, d, prices, windows)
        assert best >= truth
        workspaces = {kind.experts.workspace for kind in problem.classes if kind.experts is not None}
        if len(workspaces) <= 1:
            assert best == truth
            assert value_of(held, prices, problem) == best
            assert held in set(every_contents(problem, d, windows))
            exact += 1
        several += held.visits > 1
    assert exact >= 5


def test_every_plan_is_counted_no_more_visits_than_it_makes() -> None:
    for problem, plans, rng in problems(6_000, 60):
        windows = Windows(problem)
        for row in rng.sample(range(len(plans)), min(20, len(plans))):
            plan = plans.plan(row)
            for d in range(len(problem.devices)):
                attention = tuple(
                    sum(k == c and a == d for k, a in zip(problem.layer_class, plan.attention, strict=True))
                    for c in range(len(problem.classes))
                )
                assert windows.visits(attention) <= int(plans.runs(d)[row])
