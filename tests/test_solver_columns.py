"""The bound of whole cards: at its own prices, at any prices, and where it is branched, against every plan there is."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from tiny_problems import Plans, every_plan, problems, turns_problem

from solver.assignment import Assignment
from solver.column_generation import columns as columns_module
from solver.column_generation.columns import ColumnSearch, Ranges, _lagrangian, _Node
from solver.column_generation.contents import contents_of
from solver.column_generation.interleaved import InterleavedKnapsack
from solver.column_generation.network import UNLIMITED, Network, Row, Step
from solver.problem import Problem

NO_PLAN = 2**62
"""More ticks than any plan takes."""
ROUNDS = 50
LOOKS = 2000
"""Plans, the cheapest first, among which one is looked for."""


def soon() -> float:
    """A deadline that nothing here meets."""
    return time.perf_counter() + 60


def between(problem: Problem, plan: Assignment, steps: Sequence[Step] = ()) -> Counter[Row]:
    """How often everything between the cards is there in a plan, from what its name says."""
    twins = problem.twins
    runs = [a for i, a in enumerate(plan.attention) if i == 0 or plan.attention[i - 1] != a]
    found: Counter[Row] = Counter(("visits", twins[a]) for a in runs)
    found["visits",] = len(runs)
    found.update(("cards", twins[a]) for a in set(runs))
    found["cards",] = len(set(runs))
    found["embeddings", twins[plan.embedding]] = found["heads", twins[plan.head]] = 1
    found.update(("hop", twins[a], twins[b]) for a, b in pairwise(runs))
    begins: Row = ("start", twins[plan.embedding], twins[runs[0]])
    ends: Row = ("end", twins[runs[-1]], twins[plan.head])
    found[("first", twins[runs[0]]) if plan.embedding == runs[0] else begins] += 1
    found[("last", twins[runs[-1]]) if plan.head == runs[-1] else ends] += 1
    for c, a, d in zip(problem.layer_class, plan.attention, plan.experts, strict=True):
        if d is not None and d != a:
            k = kind_of(problem, c)
            found["moved", twins[a], twins[d], k] += 1
            found["guests", twins[d], k] += 1
            for name in (("away", k), ("away",)):
                found[name] += twins[d] == problem.cpu
    found.update(
        step.row for step in steps for d, g in enumerate(twins) if g == step.g and reaches(problem, plan, d, step)
    )
    return +found


def kind_of(problem: Problem, c: int) -> int:
    return next(k for k, kind in enumerate(problem.expert_kinds) if c in kind.classes)


def reaches(problem: Problem, plan: Assignment, d: int, step: Step) -> bool:
    """Whether device d holds so many attentions of the step's class, or experts of its kind."""
    if step.experts:
        classes = problem.expert_kinds[step.index].classes
        held = sum(c in classes and x == d for c, x in zip(problem.layer_class, plan.experts, strict=True))
    else:
        held = sum(c == step.index and a == d for c, a in zip(problem.layer_class, plan.attention, strict=True))
    return held >= step.least


def random_steps(rng: random.Random, problem: Problem, most: int = 4) -> list[Step]:
    """Some of what a card of any group may hold, none twice."""
    found = []
    for _ in range(rng.randint(0, most)):
        experts = bool(problem.expert_kinds) and rng.random() < 0.5
        index = rng.randrange(len(problem.expert_kinds if experts else problem.classes))
        number = problem.expert_kinds[index].number if experts else problem.class_sizes[index]
        found.append(Step(rng.choice(problem.twins), experts, index, rng.randint(1, max(1, number))))
    return list(dict.fromkeys(found))


def lies_in(found: Counter[Row], ranges: Ranges) -> bool:
    return all(low <= found[name] <= high for name, (low, high) in ranges.items())


def least_in(plans: Plans, ranges: Ranges, steps: Sequence[Step]) -> int:
    """Ticks of the cheapest plan with numbers in `ranges`; more than any where none of the cheapest plans is one."""
    for row in plans.ticks.argsort()[:LOOKS]:
        if lies_in(between(plans.problem, plans.plan(int(row)), steps), ranges):
            return int(plans.ticks[row])
    return NO_PLAN


# ---- what lies between the cards ----


@pytest.mark.parametrize("batch", range(6))
def test_every_plan_obeys_the_rows_at_no_more_than_its_ticks(batch: int) -> None:
    """150 problems, the best plan and some others of each; some steps are counted too."""
    exact = tried = reached = 0
    for problem, plans, rng in problems(1_000 + 25 * batch, 25):
        network = Network(problem)
        for step in random_steps(rng, problem):
            network.add(step)
        known = {item.name: item for item in network.between}
        for row in {int(plans.ticks.argmin()), *rng.choices(range(len(plans)), k=8)} if len(plans) else ():
            plan = plans.plan(row)
            sums, ticks = Counter[Row](), 0
            for name, n in between(problem, plan, network.steps).items():
                assert n <= known[name].most
                reached += name[0] == "step"
                ticks += n * known[name].ticks
                sums.update({r: n * k for r, k in known[name].rows.items()})
            for g, held in contents_of(problem, plan):
                ticks += held.ticks(problem, g)
                sums.update(network.rows_of(held, g))
            assert all(network.limits[r][0] <= n <= network.limits[r][1] for r, n in sums.items() if n)
            assert all(least <= sums[r] for r, (least, _) in network.limits.items())
            assert ticks <= plan.ticks(problem)
            exact, tried = exact + (ticks == plan.ticks(problem)), tried + 1
    assert exact >= 0.7 * tried
    assert reached >= 20


# ---- the bound ----


@pytest.mark.parametrize("batch", range(5))
def test_the_bound_is_no_more_than_any_plan_takes(batch: int) -> None:
    """200 problems: the first linear program, and some branches; begun with nothing, or with some plan's contents."""
    tight = tried = 0
    for problem, plans, rng in problems(2_000 + 40 * batch, 40):
        search = ColumnSearch(problem)
        known = contents_of(problem, plans.plan(rng.randrange(len(plans)))) if len(plans) and rng.random() < 0.5 else []
        first = search.start(known, NO_PLAN, soon())
        last = search.improve(NO_PLAN, ROUNDS, soon())
        assert first <= last
        if plans.least is not None:
            assert last <= plans.least
            tight, tried = tight + (last == plans.least), tried + 1
    assert tight >= 0.4 * tried


def test_layers_in_turns_are_visited_in_turns() -> None:
    problem = turns_problem()
    search = ColumnSearch(problem)
    assert search.start([], NO_PLAN, soon()) == every_plan(problem).least == 8 + 5 * 10


def test_classes_in_turns_are_looked_at_by_visits() -> None:
    """Or the tests here say nothing about those."""
    found = [ColumnSearch(problem) for problem, _, _ in problems(2_000, 150)]
    knapsacks = [k for search in found for of_group in search._knapsacks.values() for k in of_group.values()]
    assert sum(isinstance(k, InterleavedKnapsack) for k in knapsacks) >= 8


@pytest.mark.parametrize("batch", range(2))
def test_a_search_that_stops_early_has_a_bound_too(batch: int) -> None:
    """At what is enough, or when the time is over."""
    for problem, plans, rng in problems(3_000 + 20 * batch, 20):
        if plans.least is None:
            continue
        late = ColumnSearch(problem)
        assert late.start([], NO_PLAN, time.perf_counter() - 1) == late.improve(NO_PLAN, 9, soon()) == 0
        assert not late.first.prices
        whole = ColumnSearch(problem)
        best = max(whole.start([], NO_PLAN, soon()), whole.improve(NO_PLAN, ROUNDS, soon()))
        enough = rng.randint(0, plans.least)
        search = ColumnSearch(problem)
        bound = search.start([], enough, soon())
        assert bound <= search.improve(enough, ROUNDS, soon()) <= plans.least
        assert search.bound >= enough or search.bound <= best
        assert search.rounds <= whole.rounds


@pytest.mark.parametrize("batch", range(6))
def test_the_bound_holds_at_any_prices(batch: int) -> None:
    """Not only those of a linear program: a price for each row, of either sign, none below 0 for what has no most."""
    positive = stepped = 0
    for problem, plans, rng in problems(4_000 + 15 * batch, 15):
        if plans.least is None:
            continue
        search = ColumnSearch(problem)
        search.start([], NO_PLAN, soon())
        network, good = search.network, search.first.prices
        for step in random_steps(rng, problem):
            network.add(step)
        for size in (2, 20, network.highest_price // 50 + 1, network.highest_price):
            for start in (good, {}):
                prices = {
                    row: start.get(row, 0) + (rng.randint(-size, size) if rng.random() < 0.4 else 0)
                    for row in network.limits
                }
                prices = {row: max(0, n) if network.limits[row][1] == UNLIMITED else n for row, n in prices.items()}
                earned = {g: search._best(prices, g)[0] for g in network.groups}
                bound = _lagrangian(network, prices, earned, {})
                assert bound <= plans.least
                positive += bound > 0
                stepped += any(prices[step.row] for step in network.steps)
    assert positive >= 5
    assert stepped >= 5


# ---- branches ----


def random_ranges(rng: random.Random, search: ColumnSearch) -> Ranges:
    """Some numbers at most, or at least, so many."""
    ranges: dict[Row, tuple[int, int]] = {}
    for item in rng.sample(search.network.between, min(3, len(search.network.between))):
        cut = rng.randint(0, min(item.most, 3))
        ranges[item.name] = rng.choice(((0, cut), (min(item.most, cut), item.most)))
    return ranges


@pytest.mark.parametrize("batch", range(6))
def test_the_bound_of_a_part_holds_in_it(batch: int) -> None:
    """72 problems, numbers between cards restricted at random, one part after the other with the columns of all."""
    inside = 0
    for problem, plans, rng in problems(5_000 + 12 * batch, 12):
        if plans.least is None:
            continue
        search = ColumnSearch(problem)
        search.start([], NO_PLAN, soon())
        for step in random_steps(rng, problem):
            search._master.count(step)
        for _ in range(3):
            ranges = random_ranges(rng, search)
            least = least_in(plans, ranges, search.network.steps)
            assert search._solve(ranges, 0, NO_PLAN, soon()).bound <= least
            inside += least > search.bound
        assert search._solve({}, 0, NO_PLAN, soon()).bound <= plans.least
    assert inside >= 3


@pytest.mark.parametrize("steps_first", [False, True])
@pytest.mark.parametrize("batch", range(5))
def test_every_plan_lies_in_one_part_and_takes_no_less_than_its_bound(
    batch: int, steps_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is branched on first."""
    if steps_first:
        monkeypatch.setattr(columns_module, "BRANCH_FIRST", ("attention", "experts", *columns_module.BRANCH_FIRST))
    branched = stepped = 0
    for problem, plans, rng in problems(6_000 + 12 * batch, 12):
        search = ColumnSearch(problem)
        search.start([], NO_PLAN, soon())
        search.improve(NO_PLAN, ROUNDS, soon())
        nodes = [node for _, _, node in search._heap]
        assert search.bound == min(node.bound for node in nodes)
        branched += len(nodes) > 1
        stepped += any(name[0] == "step" for node in nodes for name in node.ranges)
        rows = {*plans.ticks.argsort()[:20], *rng.choices(range(len(plans)), k=20)} if len(plans) else ()
        for row in map(int, rows):
            found = between(problem, plans.plan(row), search.network.steps)
            of_it = [node for node in nodes if lies_in(found, node.ranges)]
            assert len(of_it) == 1
            assert of_it[0].bound <= plans.ticks[row]
    assert branched >= 1
    assert stepped >= steps_first


@pytest.mark.parametrize("value", [0.5, 2.999, 3.0001])
def test_parts_share_nothing_and_leave_nothing_out(value: float) -> None:
    name: Row = ("visits",)
    fewer, more = _Node(7, {name: (0, 5), ("away", 0): (1, 2)}, name, value).parts(9)
    assert (fewer[name], more[name]) == ((0, int(value)), (int(value) + 1, 5))
    assert fewer["away", 0] == more["away", 0] == (1, 2)
    assert _Node(7, {}, name, value).parts(9) == [{name: (0, int(value))}, {name: (int(value) + 1, 9)}]
    assert _Node(7, {}, name, value).parts(int(value)) == [{name: (0, int(value))}]


# ---- contents of single cards ----


@pytest.mark.parametrize("batch", range(3))
def test_a_dive_settles_contents_that_fit_and_changes_no_bound(batch: int) -> None:
    several = 0
    for problem, plans, _ in problems(7_000 + 20 * batch, 20):
        search = ColumnSearch(problem)
        search.start([], NO_PLAN, soon())
        search.improve(NO_PLAN, ROUNDS // 5, soon())
        bound = search.bound
        found = search.dive(soon())
        several += len(found) > 1
        assert all(held.fits(problem, g) and g != problem.cpu for g, held in found)
        assert all(n <= search.network.groups[g] for g, n in Counter(g for g, _ in found).items())
        assert all(variable.lb() == 0 for _, _, variable in search._master.columns)
        assert search.bound == bound <= search.improve(NO_PLAN, ROUNDS // 5, soon())
        assert plans.least is None or search.bound <= plans.least
    assert several >= 2
