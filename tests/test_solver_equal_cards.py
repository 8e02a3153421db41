"""All that equal cards can hold together: no plan is below that bound, and with layers of one class one is at it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tiny_problems import Plans, every_plan, random_problem

from cost_models import CostModel
from profiles import Workload, load_hardware, load_profile
from solver import solve
from solver.assignment import Assignment
from solver.column_generation.columns import ColumnSearch
from solver.equal_cards.best import EqualCards
from solver.equal_cards.card import Card
from solver.equal_cards.moves import most_mixed
from solver.equal_cards.totals import Totals
from solver.problem import BlockCosts, Problem, build_problem
from solver.rules import Allowed
from solver.what_if import vary

SHAPES = (
    (1, 0, 6, 2),
    (1, 0, 5, 1),
    (1, 0, 5, 3),
    (2, 0, 4, 1),
    (2, 0, 5, 2),
    (2, 0, 4, 3),
    (3, 0, 3, 1),
    (4, 0, 3, 2),
)
"""(equal cards, other cards, layers, classes)"""


def suited(first_seed: int, number: int) -> Iterator[tuple[int, Problem, Plans]]:
    """Problems of equal cards, with all their plans."""
    for seed in range(first_seed, first_seed + number):
        rng = random.Random(seed)
        problem = random_problem(rng, ordered=False, shape=rng.choice(SHAPES))
        if EqualCards.suits(problem):
            yield seed, problem, every_plan(problem)


def asked(model: str, gpus: int, context: int, margin: float, batch: int = 1, **options: Any) -> Problem:
    machine = vary(load_hardware("8xL40-46GB"), gpus=gpus)
    request = Workload(context_tokens=context, batch_size=batch)
    costs = CostModel(load_profile(model), machine, request, safety_margin=margin)
    options = {"objective": "request", "granularity": "module"} | options
    return build_problem(costs, allowed=Allowed(costs, "torch", None), **options)


def is_among(plan: Assignment, plans: Plans) -> bool:
    experts = [-1 if d is None else d for d in plan.experts]
    same = (plans.embedding == plan.embedding) & (plans.head == plan.head)
    same &= (plans.attention == list(plan.attention)).all(axis=1) & (plans.experts == experts).all(axis=1)
    return bool(same.any())


@pytest.mark.parametrize("batch", range(6))
def test_no_plan_takes_less_and_nothing_fits_only_where_nothing_does(batch: int) -> None:
    seen: Counter[str] = Counter()
    for seed, problem, plans in suited(1_000 * batch, 500):
        found = EqualCards().best(problem)
        if found is None or plans.least is None:
            # With experts in two classes some totals are thought to be within reach that are not.
            assert plans.least is None, seed
            assert found is None or len(problem.expert_kinds[0].classes) > 1, seed
            seen["nothing fits"] += 1
            continue
        assert found.ticks <= plans.least, seed
        plan = found.plan
        assert plan.ticks(problem) >= found.ticks, seed
        if len(problem.classes) == 1:
            assert plan.ticks(problem) == found.ticks == plans.least, seed
        seen["met" if plan.ticks(problem) == found.ticks else "not met"] += 1
        assert plan.ticks(problem) > found.ticks or is_among(plan, plans), seed
    assert seen["met"] > 9 * seen["not met"]
    assert seen["nothing fits"] > 0


@pytest.mark.parametrize("gpus", [1, 2, 7, 12])
@pytest.mark.parametrize(
    ("model", "context", "margin", "batch"),
    [
        ("deepseek-v2", 4096, 0.1, 1),
        ("deepseek-v2", 32768, 0.05, 4),
        ("qwen3-235b-a22b", 32768, 0.2, 8),
        ("glm-4.5", 16384, 0.1, 2),
    ],
)
def test_plans_of_real_models_meet_the_bound(model: str, context: int, margin: float, batch: int, gpus: int) -> None:
    problem = asked(model, gpus, context, margin, batch)
    assert EqualCards.suits(problem)
    found = EqualCards().best(problem)
    if found is None:
        return
    plan = found.plan
    assert plan.ticks(problem) == found.ticks
    columns = ColumnSearch(problem).start([], found.ticks + 1, float("inf"))
    assert columns <= found.ticks


def test_tables_of_more_cards_are_kept_and_say_the_same() -> None:
    kept = EqualCards()
    for gpus in (9, 3, 11):
        problem = asked("deepseek-v2", gpus, 4096, 0.1)
        assert kept.best(problem) == EqualCards().best(problem)


def test_more_cards_never_take_longer() -> None:
    kept = EqualCards()
    found = [kept.best(asked("qwen3-235b-a22b", gpus, 8192, 0.1, 4)) for gpus in range(1, 17)]
    ticks = [one.ticks * asked("qwen3-235b-a22b", 1, 8192, 0.1, 4).tick_s for one in found if one is not None]
    assert ticks == sorted(ticks, reverse=True)
    assert ticks[0] > 2 * ticks[-1]


def test_tables_know_what_cards_hold_together() -> None:
    problem = asked("deepseek-v2", 8, 4096, 0.1)
    card = Card.of(problem, 0)
    totals = Totals(card)
    two = totals.used(2)
    assert two is not None
    nowhere = two[0, 0, 0]
    options = card.options(embedding=False, head=False)
    most = int(options.local.max())
    assert 0 < most < 16
    assert int(nowhere.max()) == 2 * most
    assert nowhere.shape == (2, 60, 2 * card.guests(embedding=False, head=False) + 1)
    # With one layer more than two cards have room for, whatever else they hold, there is no such total.
    assert int(nowhere[0, 0, -1]) >= 0
    assert int(nowhere[1, 59, -1]) < 0


def test_what_many_cards_cannot_hold_stays_out_of_reach() -> None:
    one = BlockCosts((1,), 0, (), ())
    totals = Totals(Card(2, None, None, 0, (one,), (1, 0), (300,), (True,), 0, 0))
    table = totals.used(200)
    assert table is not None
    assert int(table[0, 0, 0, 200, 200]) == 200
    assert int(table[0, 0, 0, 201, 200]) < 0
    assert int(table.max()) == 200


@pytest.mark.parametrize(("sizes", "most"), [((60,), 0), ((1, 59), 0), ((3, 58), 3), ((2, 30), 2), ((8, 80), 3)])
def test_cards_with_both_classes_are_counted_where_there_can_be_several(sizes: tuple[int, ...], most: int) -> None:
    assert most_mixed(sizes) == most


@pytest.mark.parametrize(
    "change",
    [
        {"bottleneck": True},
        {"split_experts": True},
        {"main": 0},
        {"staging": (1, 1)},
        {"one_run": True},
        {"rank": (0, 0, 0)},
        {"layer_class": (0, *[1, 0] * 4, *[1] * 51)},
    ],
)
def test_what_is_not_of_totals_alone_is_left_to_others(change: dict[str, Any]) -> None:
    problem = asked("deepseek-v2", 2, 4096, 0.1)
    assert EqualCards.suits(problem)
    assert not EqualCards.suits(replace(problem, **change))


def test_cards_that_differ_are_left_to_others() -> None:
    problem = asked("deepseek-v2", 2, 4096, 0.1)
    assert not EqualCards.suits(replace(problem, usable=(problem.usable[0] - 1, *problem.usable[1:])))


def test_whole_layers_stay_together() -> None:
    plan = solve("deepseek-v2", "7xL40-46GB", granularity="layer", tie_tolerance=0)
    assert plan.status == "optimal"
    assert all(layer.experts_device in (None, layer.attention) for layer in plan.layers)
