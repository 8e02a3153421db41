"""The patterns' bound holds for every placement, those that a better plan may use are kept, and their numbers lead to
plans."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import numpy as np
import pytest
from oracle import BruteForce, Oracle
from strategies import Instance, random_instance
from tiny_problems import Plans, block_on, every_plan, problems, random_problem, turns_problem

from cost_models import CostModel
from profiles import load_hardware, load_profile
from profiles.placement import Objective
from solver.assignment import Assignment
from solver.column_generation.columns import ColumnSearch
from solver.cp_sat import patterns as patterns_module
from solver.cp_sat.counts import solve_counts
from solver.cp_sat.patterns import Pattern, groups_of, patterns_on, solve_patterns, worthwhile
from solver.cp_sat.run import Limits
from solver.problem import ExpertsCosts, LayerClass, Problem, build_problem
from solver.rules import Allowed

LIMITS = Limits(60.0)
OBJECTIVES: tuple[Objective, ...] = ("request", "decode", "prefill")
NO_PLAN = 2**62
"""What a plan has to be below while none is known."""


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


def every_load(problem: Problem) -> dict[int, list[Pattern]]:
    """All patterns of every device but a CPU without equals, whose experts are variables."""
    groups = groups_of(problem)
    return {g: list(patterns_on(problem, g)) for g, size in groups.items() if size > 1 or g != problem.cpu}


def started(problem: Problem) -> ColumnSearch:
    columns = ColumnSearch(problem)
    columns.start([], NO_PLAN, time.perf_counter() + 60)
    return columns


# ---- a bound over all placements ----


@pytest.mark.parametrize("batch", range(12))
def test_the_bound_holds_for_every_placement_of_a_tiny_instance(batch: int) -> None:
    """120 instances with two or three equal cards, every placement tried."""
    tight = 0
    for number in range(10 * batch, 10 * batch + 10):
        rng = random.Random(70_000 + number)
        instance = with_equal_cards(random_instance(rng, layers=(2, 3), gpus=(2, 3 if number % 2 else 2)))
        problem = problem_of(instance, number)
        loads = every_load(problem)
        found = solve_patterns(problem, LIMITS, loads)
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
            for g, cards in found.cards.items():
                assert sum(cards.values()) == groups_of(problem)[g]
                assert set(cards) <= set(loads[g])
    assert tight >= 1


@pytest.mark.parametrize("batch", range(3))
def test_a_bound_known_before_cuts_no_placement_off(batch: int) -> None:
    """Patterns do not know the order of layers: the best plan may cost less in them than a bound that does know it."""
    tight = cheaper = 0
    for problem, plans, rng in problems(72_000 + 24 * batch, 24, ordered=False):
        loads = every_load(problem)
        without = solve_patterns(problem, LIMITS, loads)
        if plans.least is None:
            continue
        assert without.status == "optimal"
        assert without.bound <= plans.least
        floor = rng.choice((plans.least, rng.randint(0, plans.least), without.bound))
        found = solve_patterns(problem, LIMITS, loads, floor=floor)
        assert found.status == "optimal"
        assert found.bound == max(floor, without.bound)
        tight, cheaper = tight + (without.bound == plans.least), cheaper + (without.bound < plans.least)
    assert tight >= 2
    assert cheaper >= 1


def test_layers_in_turns_cost_more_than_patterns_know() -> None:
    """Five hops, of which the patterns count one or two."""
    problem = turns_problem()
    truth = 8 + 5 * 10
    assert every_plan(problem).least == truth
    assert started(problem).bound == truth
    assert solve_patterns(problem, LIMITS, every_load(problem)).bound < truth
    found = solve_patterns(problem, LIMITS, every_load(problem), floor=truth)
    assert (found.status, found.bound) == ("optimal", truth)


@pytest.mark.parametrize("seed", range(71_000, 71_020))
def test_patterns_are_all_loads_that_fit(seed: int) -> None:
    rng = random.Random(seed)
    problem = problem_of(with_equal_cards(random_instance(rng, layers=(3, 5), gpus=(2, 2))), 0)
    first = problem.devices.index("cuda:0")
    found = set(patterns_on(problem, first))
    assert tuple(0 for _ in problem.expert_kinds) in found
    for pattern in found:
        load, workspace = 0, 0
        for kind, n in zip(problem.expert_kinds, pattern, strict=True):
            assert n <= kind.number
            if n:
                load += n * kind.experts.bytes[first]
                workspace = max(workspace, kind.experts.workspace)
        assert load + workspace <= problem.usable[first] or not load


def held_in(plans: Plans, d: int) -> set[Pattern]:
    """What device d holds of each kind of experts in any of the plans."""
    if not len(plans):
        return set()
    numbers = np.zeros((len(plans), len(plans.problem.expert_kinds)), np.int64)
    for k in range(numbers.shape[1]):
        numbers[:, k] = plans.held(d, k)
    return {tuple(map(int, row)) for row in np.unique(numbers, axis=0)}


@pytest.mark.parametrize("batch", range(4))
def test_every_plan_loads_its_cards_with_patterns(batch: int) -> None:
    for problem, plans, _ in problems(73_000 + 25 * batch, 25):
        for g, patterns in every_load(problem).items():
            assert len(set(patterns)) == len(patterns)
            for d, first in enumerate(problem.twins):
                assert first != g or held_in(plans, d) <= set(patterns)


# ---- patterns worth a look ----


@pytest.mark.parametrize("batch", range(4))
def test_no_pattern_of_a_better_plan_is_left_out(batch: int) -> None:
    """120 problems: all plans below `enough` ticks listed, for several of it; and the bound over what is kept holds."""
    dropped = tight = 0
    for problem, plans, rng in problems(74_000 + 30 * batch, 30):
        columns, loads = started(problem), every_load(problem)
        if not columns.first.prices:  # nothing that is above 0 was proved
            assert columns.bound == 0
            continue
        for enough in some_enough(plans, rng):
            kept = worthwhile(problem, columns, enough, 10**6)
            assert kept is not None
            below = plans.where(plans.ticks < enough)
            for g, patterns in kept.items():
                dropped += len(loads[g]) - len(patterns)
                for d, first in enumerate(problem.twins):
                    assert first != g or held_in(below, d) <= set(patterns)
            found = solve_patterns(problem, LIMITS, kept, floor=columns.bound)
            bound = enough if found.status == "infeasible" else min(found.bound, enough)
            if plans.least is not None:
                assert bound <= plans.least or bound == enough
                assert not (enough > plans.least < bound)
                tight += bound == min(enough, plans.least)
    assert dropped >= 5
    assert tight >= 5


def some_enough(plans: Plans, rng: random.Random) -> list[int]:
    """The best plan's ticks, one more, some more, and any plan's; without plans no number is enough."""
    if plans.least is None:
        return [NO_PLAN]
    some = plans.least + rng.randint(2, 2 + plans.least // 3)
    return [plans.least, plans.least + 1, some, int(rng.choice(plans.ticks))]


def test_too_many_patterns_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal cards; what a device without equals holds becomes variables instead."""
    for seed in range(75_000, 75_030):
        problem = random_problem(random.Random(seed), shape=(1 + seed % 2, 0, 4, 2))
        columns, sizes = started(problem), groups_of(problem)
        found = worthwhile(problem, columns, NO_PLAN, 10**6)
        assert found is not None
        number = sum(map(len, found.values()))
        assert worthwhile(problem, columns, NO_PLAN, number) == found
        assert worthwhile(problem, columns, NO_PLAN, number - 1) is None
        for name in ("MAX_LISTED", "MAX_OF_ONE"):
            monkeypatch.setattr(patterns_module, name, 2)
            fewer = worthwhile(problem, columns, NO_PLAN, 10**6)
            monkeypatch.undo()
            if name == "MAX_LISTED" and any(sizes[g] > 1 and len(patterns) > 2 for g, patterns in found.items()):
                assert fewer is None
            else:
                assert fewer == {g: p for g, p in found.items() if sizes[g] > 1 or len(p) <= 2}


def test_equal_devices_need_patterns() -> None:
    problem = random_problem(random.Random(76_000), shape=(2, 0, 3, 1))
    assert problem.twins == (0, 0, 2)
    with pytest.raises(AssertionError, match="need patterns"):
        solve_patterns(problem, LIMITS, {})


@pytest.mark.parametrize("cpu_first", [False, True])
def test_a_cpu_that_equals_the_cards_is_one_of_them(cpu_first: bool) -> None:
    """Unified memory, or a made-up machine; the CPU may come first."""
    problem = random_problem(random.Random(76_000), shape=(2, 0, 3, 1))
    names = ("cpu", "cuda:0", "cuda:1") if cpu_first else ("cuda:0", "cuda:1", "cpu")
    block = block_on(0, 1, 2, of=3)
    experts = ExpertsCosts((4, 4, 4), 0, ((5, 7, 7), (7, 5, 7), (7, 7, 5)), (5, 5, 5), (True,) * 3)
    problem = replace(
        problem,
        devices=names,
        usable=(9, 9, 9),
        embedding=block,
        head=block,
        hop=((0, 3, 3), (3, 0, 3), (3, 3, 0)),
        classes=(LayerClass(block, experts),),
        layer_class=(0, 0, 0, 0),
        rank=None,
        staging=(),
        main=None,
        whole_layers=False,
        tied_bytes=0,
    )
    plans = every_plan(problem)
    assert plans.least is not None
    assert set(problem.twins) == {0}
    kept = worthwhile(problem, started(problem), plans.least + 1, 10**6)
    assert kept is not None
    assert solve_patterns(problem, LIMITS, kept).bound <= plans.least


# ---- from numbers to plans ----


@pytest.mark.parametrize("machine", ["8xL40-46GB", "7xL40-46GB", "6xL40-46GB", "4xL40-46GB"])
def test_the_story_is_proved_by_patterns_and_attained_by_counts(machine: str) -> None:
    costs = CostModel(load_profile("deepseek-v2-measured"), load_hardware(machine))
    problem = build_problem(costs, objective="request", granularity="module", allowed=Allowed(costs, "torch", None))
    cpu = {problem.cpu}
    patterns = solve_patterns(problem, LIMITS, {g: p for g, p in every_load(problem).items() if g not in cpu})
    assert patterns.status == "optimal"
    counts = solve_counts(problem, LIMITS, floor=patterns.bound, cards=patterns.cards)
    assert counts.counts is not None
    cards = next(iter(patterns.cards.values()))
    experts = counts.counts.experts
    held = [sum(n for (_, _, d), n in experts.items() if d == card) for card in range(sum(cards.values()))]
    assert len(problem.expert_kinds) == 1
    assert sorted(held) == sorted(n for (n,), times in cards.items() for _ in range(times))


def test_without_equal_devices_all_numbers_are_variables() -> None:
    """No patterns are needed, and where no card has equals none of what they give up is lost but the order."""
    costs = CostModel(load_profile("qwen3-30b-a3b"), load_hardware("1xRTX4090"))
    problem = build_problem(costs, objective="request", granularity="module", allowed=Allowed(costs, "torch", None))
    found, counts = solve_patterns(problem, LIMITS, {}), solve_counts(problem, LIMITS)
    assert (found.status, found.cards) == ("optimal", {})
    assert [load.pattern for load in found.loads] == [None, None]
    assert found.bound == counts.bound
