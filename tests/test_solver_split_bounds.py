"""Bounds on split experts: two sorts of guests, kinds of cards, whole experts on whole cards; each against every split
or very many."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from strategies import random_hardware, random_instance
from test_solver_split import best_of_all, costs_of, few_experts, random_split, sizes_over

from cost_models import CostModel, Step
from cost_models.experts import touch_probabilities
from cost_models.guest_sorts import SortRows, StepHits
from profiles import Experts, Workload, load_hardware, load_profile
from solver.cp_sat.run import Limits
from solver.evaluate import judge
from solver.heuristics.walk import Walk
from solver.problem import Problem, build_problem, objective_steps
from solver.rules import Allowed
from solver.split.bound import split_bound
from solver.split.card_groups import CardGroups
from solver.split.climb import Climb
from solver.split.counts import split_counts
from solver.split.plans import Planner
from solver.split.tables import SplitTables
from solver.split.times import SplitTimes

PAIRS = "4xRTX3090,link=nvlink,ram=64GB"


def problem_of(costs: CostModel) -> Problem:
    return build_problem(costs, objective="request", granularity="expert", allowed=Allowed(costs, "torch", None))


def few(count: int, active: int, machine: str, **workload: Any) -> CostModel:
    """Two layers of mixtral with other numbers of experts."""
    profile = load_profile("mixtral-8x7b")
    some = Experts(weight_bytes=count * 10**8, count=count, active=active)
    profile = profile.replace(layers=[profile.layers[0].replace(experts=some)] * 2)
    return CostModel(profile, load_hardware(machine), Workload(**workload))


# ---- rows of two sorts ----


@pytest.mark.parametrize("tokens", [1, 3, 512])
@pytest.mark.parametrize(("count", "active"), [(6, 2), (5, 3)])
def test_within_a_sort_an_even_split_is_the_best_and_rows_have_it(tokens: int, count: int, active: int) -> None:
    """Every split over a near card and two far ones, beside any number on the own card and the CPU."""
    costs = few(count, active, PAIRS)
    step, sorts = Step(tokens, 0), (["cuda:1"], ["cuda:2", "cuda:3"])
    experts = costs.layer(0).experts
    assert experts is not None
    touched = touch_probabilities(experts, tokens)[0]
    hits = [n * (touched if tokens >= 32 else 1.0) for n in range(count + 1)]
    times = {d: costs.hits_s(0, "cuda:0", d, hits, step) for d in costs.device}
    found = {d: np.array(times[d]) for d in times}
    rows = SortRows(
        experts,
        [touched],
        (1, 2),
        [StepHits(tokens, 1, found["cuda:0"], found["cpu"], (found["cuda:1"], found["cuda:2"]))],
    )
    for e, n in product(range(count + 1), repeat=2):
        for k in range(count + 1 - e - n):
            seconds = []
            for far in sizes_over(count - e - n - k, 2):
                parts, at = {}, 0
                for device, size in zip(["cuda:0", "cpu", *sorts[0], *sorts[1]], (e, n, k, *far), strict=True):
                    if size:
                        parts[device] = range(at, at + size)
                        at += size
                seconds.append(costs.split_experts_s(0, "cuda:0", parts, step))
            assert rows.row(e, n)[k] == pytest.approx(min(seconds), rel=1e-9)


def test_cards_of_nvlink_pairs_are_one_group_with_a_near_and_far_guests() -> None:
    problem = problem_of(few(8, 2, PAIRS))
    cards = CardGroups(problem)
    assert problem.twins == (0, 0, 2, 2, 4)
    assert cards.of == (0, 0, 0, 0, 4)
    assert sorted(map(sorted, cards.seen(3).values())) == [[0, 1], [2]]
    tables = SplitTables(problem, few(8, 2, PAIRS), [Step(1, 0, 1)])
    assert [(sort.groups, sort.bins) for sort in tables.sorts[0]] == [((0,), 1), ((0,), 2)]
    assert [cards.guests(2, sort) for sort in tables.sorts[0]] == [[3], [0, 1]]


# ---- bounds ----


def all_bounds(costs: CostModel) -> list[float]:
    problem, steps = problem_of(costs), objective_steps(costs, "request")
    found = []
    for sorts in (1, 2):
        tables = SplitTables(problem, costs, steps, sorts)
        bound = split_bound(tables)
        if bound is not None:
            found.append(bound.seconds)
        counts = split_counts(problem, tables, Limits(5, work=0.5), 0, None)
        found.append(counts.bound * problem.tick_s * (1 - 1e-9))
    return found


@pytest.mark.parametrize("seed", range(16))
def test_random_splits_stay_above_every_bound(seed: int) -> None:
    rng = random.Random(700 + seed)
    instance = few_experts(random_instance(rng, layers=(2, 5), gpus=(2, 4), loose=seed % 4 == 0), 6)
    if seed % 2:
        instance = replace(instance, hardware=random_hardware(rng, 4, 10**13, 10**13))
    costs = costs_of(instance)
    bounds = all_bounds(costs)
    for _ in range(150):
        found = judge(random_split(rng, instance, list(costs.device)), costs)
        assert not found.feasible or max(bounds) <= found.objective_s


@pytest.mark.parametrize("seed", range(6))
def test_every_split_of_two_cards_stays_above_every_bound(seed: int) -> None:
    rng = random.Random(800 + seed)
    instance = few_experts(random_instance(rng, layers=(1, 2), gpus=(2, 2)), 2)
    best = best_of_all(instance, "request")
    if best is not None:
        assert max(all_bounds(costs_of(instance))) <= best * (1 + 1e-6)


def test_whole_experts_raise_the_bound_and_small_steps_never_hurt() -> None:
    costs = CostModel(load_profile("mixtral-8x7b"), load_hardware("3xRTX4090,ram=256GB"), Workload())
    problem, steps = problem_of(costs), objective_steps(costs, "request")
    tables = SplitTables(problem, costs, steps)
    bound = split_bound(tables)
    assert bound is not None
    floor = int(bound.seconds / problem.tick_s)
    counts = split_counts(problem, tables, Limits(20, work=1.0), floor, None)
    assert counts.bound >= floor
    assert counts.modes is not None
    planner = Planner(problem, SplitTimes(problem, costs, steps), tables)
    n_layers, (start, end) = len(problem.layer_class), counts.ends
    numbers = [sum(layers) for layers in counts.attention]
    assert sum(numbers) == n_layers
    walk = Walk(start, tuple(d for d, n in enumerate(numbers) for _ in range(n)), end)
    plan = planner.pack(walk, counts.modes)
    climbed = Climb(planner, plan, 0).run(2000)
    assert planner.obeys(climbed)
    assert planner.seconds(climbed) <= planner.seconds(plan)
    assert judge(planner.placement(climbed), costs).objective_s == pytest.approx(planner.seconds(climbed), rel=1e-6)
    assert Climb(planner, plan, 0).run(2000).counts == climbed.counts


def test_a_cpu_with_nothing_but_the_ends_keeps_no_workspace_for_layers() -> None:
    """Found at random: attention just fits the card, embedding and head just the CPU."""
    rng = random.Random(1111)
    instance = few_experts(random_instance(rng, layers=(1, 2), gpus=(1, 2)), 2)
    best = best_of_all(instance, "request")
    assert best is not None
    assert max(all_bounds(costs_of(instance))) <= best * (1 + 1e-6)
