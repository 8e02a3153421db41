"""What one card can hold: the knapsacks against every contents there are, windows against every subset of layers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from tiny_problems import problems, random_problem

from solver.column_generation import contents as contents_module
from solver.column_generation import interleaved as interleaved_module
from solver.column_generation.contents import Contents, Integers, Knapsack, Prices, contents_of, merged
from solver.column_generation.interleaved import InterleavedKnapsack
from solver.column_generation.windows import Windows
from solver.problem import Problem

NEVER = -(10**15)
TURNS = ((1, 0, 6, 2), (2, 0, 5, 2), (1, 0, 5, 2), (1, 1, 7, 2), (1, 0, 8, 3), (2, 0, 9, 2), (1, 0, 10, 3))
"""Shapes whose layers take turns often enough for visits to matter."""


def random_prices(rng: random.Random, problem: Problem, size: int) -> Prices:
    """Of either sign; what a card pays for being visited is never a gain (`Network.prices`)."""
    n_kinds = len(problem.expert_kinds)

    def some(number: int) -> list[int]:
        return [rng.randint(-size, size) if rng.random() < 0.8 else 0 for _ in range(number)]

    def steps(numbers: Sequence[int]) -> list[tuple[int, int, int]]:
        chosen = [rng.randrange(len(numbers)) for _ in range(rng.choice((0, 0, 1, 3)))] if numbers else []
        return [(k, rng.randint(1, max(1, numbers[k])), rng.randint(-2 * size, 2 * size)) for k in chosen]

    return Prices(
        attention=some(len(problem.classes)),
        local=some(n_kinds),
        sent=some(n_kinds),
        taken=some(n_kinds),
        embedding=rng.randint(-size, size),
        head=rng.randint(-size, size),
        used=rng.randint(-size, size),
        visit=-rng.randint(0, size) if rng.random() < 0.8 else 0,
        first=rng.randint(0, size) if rng.random() < 0.5 else 0,
        last=rng.randint(0, size) if rng.random() < 0.5 else 0,
        attention_steps=steps(problem.class_sizes),
        experts_steps=steps([kind.number for kind in problem.expert_kinds]),
    )


def value_of(held: Contents, prices: Prices, problem: Problem) -> int:
    """What contents earn, from the meaning of each price."""
    total = held.embedding * prices.embedding + held.head * prices.head + held.used * prices.used
    total += held.visits * prices.visit + held.first * prices.first + held.last * prices.last
    total += sum(a * price for a, price in zip(held.attention, prices.attention, strict=True))
    for k, kind in enumerate(problem.expert_kinds):
        a, h, local = sum(held.attention[c] for c in kind.classes), held.experts[k], held.local[k]
        total += local * prices.local[k] + (a - local) * prices.sent[k] + (h - local) * prices.taken[k]
    total += sum(price for c, least, price in prices.attention_steps if held.attention[c] >= least)
    return total + sum(price for k, least, price in prices.experts_steps if held.experts[k] >= least)


def every_contents(problem: Problem, d: int, visits: int | Windows) -> Iterator[Contents]:
    """All that device d may hold and has room for; a card with attention takes so many visits, or what it needs."""
    sizes = zip(problem.classes, problem.class_sizes, strict=True)
    ends = [(0, 1) if block.allowed[d] else (0,) for block in (problem.embedding, problem.head)]
    for attention in product(*(range((n if kind.attention.allowed[d] else 0) + 1) for kind, n in sizes)):
        choices = []
        for kind in problem.expert_kinds:
            own = sum(attention[c] for c in kind.classes)
            options = [(h, k) for h in range((kind.number if kind.experts.allowed[d] else 0) + 1) for k in range(h + 1)]
            choices.append([(h, k) for h, k in options if k <= own and (own == h == k or not problem.whole_layers)])
        for held in product(*choices):
            experts, local = tuple(h for h, _ in held), tuple(k for _, k in held)
            for embedding, head in product(*ends):
                plain = Contents(attention, experts, local, embedding, head)
                if plain.bytes(problem, d) > problem.usable[d]:
                    continue
                if not any(attention):
                    yield plain
                elif isinstance(visits, int):
                    yield replace(plain, visits=visits, first=embedding, last=head)
                else:
                    for first, last in product(range(embedding + 1), range(head + 1)):
                        times = visits.visits(attention, first > 0, last > 0)
                        if times <= len(problem.layer_class) and (times == 1 or not problem.one_run):
                            yield replace(plain, visits=times, first=first, last=last)


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
        for c, n in enumerate(problem.class_sizes):
            assert sum(held.attention[c] for _, held in found) == n
        for k, kind in enumerate(problem.expert_kinds):
            assert sum(held.experts[k] for _, held in found) == kind.number
            together = [
                c in kind.classes and a == x
                for c, a, x in zip(problem.layer_class, plan.attention, plan.experts, strict=True)
            ]
            assert sum(held.local[k] for _, held in found) == sum(together)
        still = replace(
            plan, experts=tuple(a if d is not None else None for a, d in zip(plan.attention, plan.experts, strict=True))
        )
        no_hops = replace(problem, hop=tuple((0,) * len(problem.devices) for _ in problem.devices))
        if still == plan:
            assert sum(held.ticks(problem, d) for d, (_, held) in enumerate(found)) == plan.ticks(no_hops)


# ---- the knapsack ----


@pytest.mark.parametrize("batch", range(10))
def test_the_knapsack_finds_the_best_contents(batch: int) -> None:
    """200 problems, two devices each, with ends, tied bytes, workspaces, pins, whole layers and equal experts; being
    used may be worth something, but only to a card with attention, and steps may be dear or welcome."""
    paid = stepped = 0
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
            paid += prices.used + visits * prices.visit > 0
            stepped += bool(prices.attention_steps or prices.experts_steps)
    assert paid >= 5
    assert stepped >= 10


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
    merged_points = merged([grid.points(prices) for grid in grids], problem.usable[0])
    assert len(merged_points.bytes) <= 5
    assert np.all(np.diff(merged_points.bytes) >= 0)
    assert np.all(np.diff(merged_points.value) > 0)


@pytest.mark.parametrize("batch", range(4))
def test_with_room_for_everything_all_or_nothing_is_best(batch: int) -> None:
    rng = random.Random(3_200 + batch)
    for _ in range(25):
        problem = random_problem(rng, shape=rng.choice(((1, 0, 4, 2), (1, 0, 3, 3), (1, 0, 4, 3))))
        problem = replace(problem, usable=tuple(10**7 for _ in problem.usable))
        d, visits = rng.randrange(len(problem.devices)), rng.randint(1, 3)
        prices = random_prices(rng, problem, rng.choice((2, 9, 100)))
        knapsack = Knapsack(problem, d)
        assert knapsack._levels[-1].ample
        for some in (prices, replace(prices, attention_steps=(), experts_steps=())):
            assert knapsack.best(some, visits)[0] == most_earned(problem, d, some, visits)


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
    one = {tuple(map(int, row)) for row in windows.one}
    assert one == {held for held, n in runs.items() if n == 1}
    assert visits_listed(windows) == fewest_windows(one, problem.class_sizes)
    assert windows.beyond == 0
    assert set(visits_listed(windows)) == {held for held in runs if any(held)}
    for held, n in runs.items():
        assert windows.visits(held) <= n
        assert n > 2 or windows.visits(held) == n


def visits_listed(windows: Windows) -> dict[tuple[int, ...], int]:
    vectors, visits = windows.listed
    assert len(np.unique(vectors, axis=0)) == len(vectors) == len(visits)
    return {tuple(map(int, row)): int(n) for row, n in zip(vectors, visits, strict=True)}


def fewest_windows(one: set[tuple[int, ...]], sizes: tuple[int, ...]) -> dict[tuple[int, ...], int]:
    """For numbers within `sizes` the fewest of windows `one` that add up to them: one window more at a time."""
    found = dict.fromkeys(one, 1)
    last = set(one)
    while last:
        sums = {tuple(a + b for a, b in zip(held, window, strict=True)) for held in last for window in one}
        last = {held for held in sums if held not in found and all(a <= n for a, n in zip(held, sizes, strict=True))}
        found |= dict.fromkeys(last, 1 + max(found.values()))
    return found


@pytest.mark.parametrize("most_vectors", [1, 4000])
def test_what_too_many_windows_hold_is_not_told_apart(most_vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of attentions may be too many to list; then everything that two windows do not hold needs three at least,
    or two that one does not hold, where those of two are too many as well."""
    monkeypatch.setattr("solver.column_generation.windows.MOST_CELLS", 1)
    monkeypatch.setattr("solver.column_generation.windows.MOST_VECTORS", most_vectors)
    problem = random_problem(random.Random(4_100), shape=(1, 0, 10, 3))
    problem = replace(problem, layer_class=(0, 1, 2, 0, 2, 1, 0, 1, 2, 0))
    windows, runs = Windows(problem), least_runs(problem.layer_class, 3)
    fewest = fewest_windows({tuple(map(int, row)) for row in windows.one}, problem.class_sizes)
    beyond = 2 if most_vectors == 1 else 3
    assert windows.beyond == beyond
    assert visits_listed(windows) == {held: n for held, n in fewest.items() if n < beyond}
    assert max(fewest.values()) >= beyond
    for held, n in fewest.items():
        assert windows.visits(held) == min(n, beyond) <= runs[held]


# ---- classes in turns ----


def with_equal_experts_workspace(problem: Problem) -> Problem:
    """Experts of all classes need the same workspace, as those of equal hidden size and top-k do."""
    classes = tuple(
        kind if kind.experts is None else replace(kind, experts=replace(kind.experts, workspace=3))
        for kind in problem.classes
    )
    return replace(problem, classes=classes)


def with_weightless_experts(problem: Problem, c: int) -> Problem:
    """Those of class c, and of all whose experts are the same."""
    experts = problem.classes[c].experts
    if experts is None:
        return problem
    light = replace(experts, bytes=(0,) * len(problem.devices))
    classes = tuple(replace(kind, experts=light) if kind.experts == experts else kind for kind in problem.classes)
    return replace(problem, classes=classes)


def interleaved(rng: random.Random) -> tuple[Problem, int, Windows] | None:
    problem = random_problem(rng, whole=False, shape=rng.choice(TURNS[:4]))
    if rng.random() < 0.7:
        problem = with_equal_experts_workspace(problem)
    if rng.random() < 0.3:
        problem = with_weightless_experts(problem, rng.randrange(len(problem.classes)))
    windows, d = Windows(problem), problem.devices.index("cuda:0")
    return (problem, d, windows) if InterleavedKnapsack.suits(problem, d, windows) else None


def shares_experts(problem: Problem) -> bool:
    return any(len(kind.classes) > 1 for kind in problem.expert_kinds)


def test_several_classes_often_have_equal_experts() -> None:
    """Or the tests here and elsewhere say little about kinds of experts."""
    assert sum(shares_experts(random_problem(random.Random(seed))) for seed in range(2_000, 2_200)) >= 40
    rng = random.Random(5_000)
    made = [one for one in (interleaved(rng) for _ in range(400)) if one is not None]
    assert sum(shares_experts(problem) for problem, _, _ in made) >= 0.2 * len(made) >= 4


@pytest.mark.parametrize("batch", range(10))
def test_the_best_contents_by_visits(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact where experts of all classes need the same workspace, else never less than what a card can earn."""
    rng, tried, exact, several, stepped = random.Random(5_000 + batch), 0, 0, 0, 0
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
            stepped += bool(prices.attention_steps or prices.experts_steps)
        several += held.visits > 1
    assert exact >= 5
    assert stepped >= 3


@pytest.mark.parametrize("batch", range(4))
def test_only_rows_without_promise_are_passed_over(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, tried, passed = random.Random(5_500 + batch), 0, 0
    promising = InterleavedKnapsack._promising

    def counted(knapsack: InterleavedKnapsack, rows: Integers, *args: Any) -> Integers:
        nonlocal passed
        kept = promising(knapsack, rows, *args)
        passed += len(rows) - len(kept)
        return kept

    monkeypatch.setattr(InterleavedKnapsack, "_promising", counted)
    while tried < 30:
        made = interleaved(rng)
        if made is None:
            continue
        tried += 1
        problem, knapsack = made[0], InterleavedKnapsack(*made)
        prices = random_prices(rng, problem, rng.choice((2, 9, 100, 10**9)))
        monkeypatch.setattr(interleaved_module, "FIRST_ROWS", 10**9)
        best, _ = knapsack.best(prices)
        for first in (1, 2, 5):
            monkeypatch.setattr(interleaved_module, "FIRST_ROWS", first)
            found, held = knapsack.best(prices)
            assert found == best
            assert value_of(held, prices, problem) == best
    assert passed >= 100


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
