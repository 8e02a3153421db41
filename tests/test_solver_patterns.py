"""The patterns' bound holds for every placement, and its answer leads to plans."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from oracle import BruteForce, Oracle
from strategies import Instance, random_instance

from cost_models import CostModel
from profiles import load_hardware, load_profile
from solver.assignment import Assignment
from solver.counts import solve_counts
from solver.patterns import groups_of, patterns_on, solve_patterns
from solver.problem import Problem, build_problem
from solver.rules import Allowed
from solver.search import Limits

LIMITS = Limits(60.0)
OBJECTIVES = ("request", "decode", "prefill")


def with_equal_cards(instance: Instance) -> Instance:
    """The same machine with all cards and their links like the first one's."""
    hardware = instance.hardware
    first = hardware.gpus[0]
    devices = tuple(d if d.kind == "cpu" else first.replace(name=d.name) for d in hardware.devices)
    host = next(link for link in hardware.links if "cpu" in link.between)
    links = tuple(host.replace(between=link.between) for link in hardware.links if "cpu" in link.between)
    return replace(instance, hardware=hardware.replace(devices=devices, links=links))


def problem_of(instance: Instance, number: int) -> Problem:
    costs = CostModel(instance.profile, instance.hardware, instance.workload)
    return build_problem(
        costs,
        objective=OBJECTIVES[number % 3],
        granularity="layer" if number % 4 == 3 else "module",
        allowed=Allowed(costs, "torch", {"layers.0.attention": ["cuda:0", "cpu"]} if number % 5 == 4 else None),
    )


@pytest.mark.parametrize("batch", range(12))
def test_the_bound_holds_for_every_placement_of_a_tiny_instance(batch: int) -> None:
    """120 instances with two or three equal cards, every placement tried."""
    tight = 0
    for number in range(10 * batch, 10 * batch + 10):
        rng = random.Random(70_000 + number)
        instance = with_equal_cards(random_instance(rng, layers=(2, 3), gpus=(2, 3 if number % 2 else 2)))
        problem = problem_of(instance, number)
        found = solve_patterns(problem, LIMITS)
        if found is None:  # a pin or a link told the cards apart
            continue
        allowed = {("attention", 0): {problem.devices.index(d) for d in ("cuda:0", "cpu")}} if number % 5 == 4 else None
        best = BruteForce(
            Oracle(instance.profile, instance.hardware, instance.workload),
            OBJECTIVES[number % 3],
            experts_with_attention=problem.whole_layers,
            allowed=allowed,
        ).best()
        if found.status == "infeasible":
            assert best is None
        if best is not None:
            spots = best[1]
            ticks = Assignment(spots.embedding, spots.head, spots.attention, spots.experts).ticks(problem)
            assert found.bound <= ticks
            tight += found.bound == ticks
            assert sum(found.cards[next(iter(found.cards))].values()) == groups_of(problem)[next(iter(found.cards))]
    assert tight >= 1


@pytest.mark.parametrize("seed", range(71_000, 71_020))
def test_patterns_are_all_loads_that_fit(seed: int) -> None:
    rng = random.Random(seed)
    problem = problem_of(with_equal_cards(random_instance(rng, layers=(3, 5), gpus=(2, 2))), 0)
    first = problem.devices.index("cuda:0")
    found = set(patterns_on(problem, first))
    assert tuple(0 for _ in problem.classes) in found
    for pattern in found:
        load, workspace = 0, 0
        for kind, n, most in zip(problem.classes, pattern, problem.class_sizes, strict=True):
            assert n <= most
            assert n == 0 or kind.experts is not None
            if n and kind.experts is not None:
                load += n * kind.experts.bytes[first]
                workspace = max(workspace, kind.experts.workspace)
        assert load + workspace <= problem.usable[first] or not load


@pytest.mark.parametrize("machine", ["8xL40-46GB", "7xL40-46GB", "6xL40-46GB", "4xL40-46GB"])
def test_the_story_is_proved_by_patterns_and_attained_by_counts(machine: str) -> None:
    costs = CostModel(load_profile("deepseek-v2-measured"), load_hardware(machine))
    problem = build_problem(costs, objective="request", granularity="module", allowed=Allowed(costs, "torch", None))
    patterns = solve_patterns(problem, LIMITS)
    assert patterns is not None
    assert patterns.status == "optimal"
    counts = solve_counts(problem, LIMITS, floor=patterns.bound, cards=patterns.cards)
    assert counts.counts is not None
    cards = next(iter(patterns.cards.values()))
    held = [
        sum(n for (c, _, d), n in counts.counts.experts.items() if d == card and c == 1)
        for card in range(sum(cards.values()))
    ]
    assert sorted(held) == sorted(n for (_, n), times in cards.items() for _ in range(times))


def test_without_equal_devices_there_are_no_patterns() -> None:
    costs = CostModel(load_profile("qwen3-30b-a3b"), load_hardware("1xRTX4090"))
    problem = build_problem(costs, objective="request", granularity="module", allowed=Allowed(costs, "torch", None))
    assert solve_patterns(problem, LIMITS) is None
