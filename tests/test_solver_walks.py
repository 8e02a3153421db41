"""Walks over the cards and the experts for them: cheapest, polished, dealt and filled, against trying everything."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise, permutations, product
from typing import Any

import numpy as np
import pytest
from strategies import random_instance
from tiny_problems import Plans, every_plan, problems, random_problem, turns_problem

from cost_models import CostModel
from profiles import InfeasiblePlacement
from solver import solve
from solver.assignment import Assignment
from solver.column_generation.columns import ColumnSearch
from solver.column_generation.contents import Contents
from solver.cp_sat.counts import solve_counts
from solver.cp_sat.free_order import solve_free_order
from solver.cp_sat.patterns import groups_of, patterns_on, solve_patterns
from solver.cp_sat.run import Limits
from solver.cp_sat.slices import solve_slices
from solver.heuristics.deal import Deal
from solver.heuristics.fill import fill
from solver.heuristics.paths import AwayPrices, away_prices, walks
from solver.heuristics.polish import Stretches, polish
from solver.heuristics.walk import Walk
from solver.problem import Problem, build_problem
from solver.rules import Allowed

LIMITS = Limits(60.0)
NO_PLAN = 2**62


def fillings(plans: Plans) -> dict[Walk, int]:
    """For every walk that experts can be found for, the ticks of the best."""
    best: dict[Walk, int] = {}
    for row in plans.ticks.argsort()[::-1]:
        walk = Walk(int(plans.embedding[row]), tuple(map(int, plans.attention[row])), int(plans.head[row]))
        best[walk] = int(plans.ticks[row])
    return best


def random_walk(rng: random.Random, problem: Problem) -> Walk:
    n = len(problem.devices)
    return Walk(rng.randrange(n), tuple(rng.randrange(n) for _ in problem.layer_class), rng.randrange(n))


def anyhow(problem: Problem) -> Problem:
    """Without what walks and fillings do not know: that a device must be used, or only once."""
    return replace(problem, main=None, one_run=False)


def in_order(problem: Problem, walk: Walk) -> bool:
    stops = (*walk.attention, walk.head) if problem.head_in_order else walk.attention
    return problem.rank is None or all(problem.rank[a] <= problem.rank[b] for a, b in pairwise(stops))


# ---- the cheapest walk ----


def random_away(rng: random.Random, problem: Problem, *, guests: bool) -> AwayPrices:
    groups, most = dict.fromkeys(problem.twins), max(problem.head.ticks) * 3 + 5
    return AwayPrices(
        sent={(g, k): float(rng.randint(0, most)) for g in groups for k in range(len(problem.expert_kinds))},
        worth={g: rng.uniform(0, most / 3) if guests else 0.0 for g in groups},
    )


@pytest.mark.parametrize("batch", range(4))
def test_walks_are_contiguous_allowed_and_fit(batch: int) -> None:
    """At random prices and at those of the columns; blocks that a walk leaves on the CPU are not weighed there."""
    found = 0
    for problem, _, rng in problems(1_000 + 15 * batch, 15):
        columns = ColumnSearch(problem)
        columns.start([], NO_PLAN, 2**62)
        prices = [random_away(rng, problem, guests=True)]
        prices += away_prices(problem, columns.first.prices) if columns.first.prices else []
        for of in prices:
            priced = walks(problem, of)
            assert [one.ticks for one in priced] == sorted(one.ticks for one in priced)
            for walk in (one.walk for one in priced):
                found += 1
                stretches = [a for i, a in enumerate(walk.attention) if i == 0 or walk.attention[i - 1] != a]
                assert len(set(stretches)) == len(stretches)
                assert walk.embedding in (walk.attention[0], problem.cpu)
                assert walk.head in (walk.attention[-1], problem.cpu)
                assert in_order(problem, walk)
                assert all(held_on(problem, walk, d).fits(problem, d) for d in stretches if d != problem.cpu)
                assert problem.embedding.allowed[walk.embedding]
                assert problem.head.allowed[walk.head]
    assert found >= 50


def held_on(problem: Problem, walk: Walk, d: int) -> Contents:
    """Attention and ends of a walk on one device."""
    placed = list(zip(problem.layer_class, walk.attention, strict=True))
    attention = tuple(sum((k, a) == (c, d) for k, a in placed) for c in range(len(problem.classes)))
    nothing = (0,) * len(problem.expert_kinds)
    return Contents(attention, nothing, nothing, int(walk.embedding == d), int(walk.head == d))


def every_walk(problem: Problem) -> Iterator[Walk]:
    """All that visit a device once, in order, with embedding and head at the ends or on the CPU."""
    n_layers, devices = len(problem.layer_class), range(len(problem.devices))
    for n in range(1, min(n_layers, len(devices)) + 1):
        for cards, cuts in product(permutations(devices, n), combinations(range(1, n_layers), n - 1)):
            spans = zip(cards, pairwise((0, *cuts, n_layers)), strict=True)
            attention = tuple(d for d, (start, stop) in spans for _ in range(stop - start))
            for ends in product({cards[0], problem.cpu}, {cards[-1], problem.cpu}):
                walk = Walk(ends[0], attention, ends[1])
                if in_order(problem, walk) and problem.embedding.allowed[ends[0]] and problem.head.allowed[ends[1]]:
                    yield walk


def price_of(problem: Problem, walk: Walk, prices: AwayPrices) -> float | None:
    """Ticks of a walk whose experts are with their attention where that saves and fits, else away at `prices`; None
    where attention does not fit. Room is kept for the workspace of all experts of attention here, wherever they are;
    an embedding or head that is on the CPU, away from the walk's end, takes none there."""
    total = float(problem.embedding.ticks[walk.embedding] + problem.head.ticks[walk.head])
    total += sum(problem.hop[a][b] for a, b in pairwise((walk.embedding, *walk.attention, walk.head)))
    placed = list(zip(problem.layer_class, walk.attention, strict=True))
    for d in dict.fromkeys(walk.attention):
        kinds = [problem.classes[c] for c, a in placed if a == d]
        if not all(kind.attention.allowed[d] for kind in kinds):
            return None
        first, last = walk.attention[0] == d == walk.embedding, walk.attention[-1] == d == walk.head
        ends = [problem.embedding] * first + [problem.head] * last
        blocks = [*ends, *(kind.attention for kind in kinds)]
        room = problem.usable[d] - sum(block.bytes[d] for block in blocks) + problem.tied_bytes * (first and last)
        needs = [block.workspace for block in blocks]
        room -= max(needs + [kind.experts.workspace for kind in kinds if kind.experts is not None])
        if room < 0:
            return None
        total += sum(kind.attention.ticks[d] for kind in kinds)
        options = []
        for k, alike in enumerate(problem.expert_kinds):
            n = sum(c in alike.classes and a == d for c, a in placed)
            away, local = prices.sent[problem.twins[d], k], alike.experts.ticks[d][d]
            here = range((n if alike.experts.allowed[d] else 0) + 1)
            options.append([(h * alike.experts.bytes[d], h * local + (n - h) * away) for h in here])
        fitting = [chosen for chosen in product(*options) if sum(n_bytes for n_bytes, _ in chosen) <= room]
        total += min(sum(ticks for _, ticks in chosen) for chosen in fitting)
    return total


@pytest.mark.parametrize("batch", range(4))
def test_the_cheapest_walk_is_found(batch: int) -> None:
    """Where guests are worth nothing and one kind of experts competes for room; else a walk, at its price or more."""
    exact = 0
    for problem, _, rng in problems(2_000 + 25 * batch, 25, whole=False):
        prices = random_away(rng, problem, guests=False)
        experts = [kind.experts for kind in problem.expert_kinds]
        found = walks(problem, prices)
        truths = [price for walk in every_walk(problem) if (price := price_of(problem, walk, prices)) is not None]
        assert (not found) == (not truths)
        for one in found:
            price = price_of(problem, one.walk, prices)
            assert price is not None
            assert price <= one.ticks
        if found and len(experts) < 2 and all(min(x.bytes) for x in experts):
            exact += 1
            assert found[0].ticks == min(truths)
            assert price_of(problem, found[0].walk, prices) == min(truths)
        elif found:
            assert found[0].ticks >= min(truths)
    assert exact >= 5


def test_too_many_cards_are_visited_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for problem, _, rng in problems(3_000, 30, whole=False):
        prices = random_away(rng, problem, guests=False)
        every = {one.walk: one.ticks for one in walks(problem, prices)}
        monkeypatch.setattr("solver.heuristics.paths.MOST_STATES", 1)
        some = walks(problem, prices)
        monkeypatch.undo()
        assert len(some) <= len(every)
        assert all(price_of(problem, one.walk, prices) is not None for one in some)
        assert not some or min(every.values()) <= some[0].ticks


def test_experts_that_may_not_be_with_their_attention_are_paid_for() -> None:
    """A card that is no place for experts does not look cheap for it."""
    base = random_problem(random.Random(5), shape=(2, 0, 3, 1))
    attention = replace(base.embedding, bytes=(1, 1, 1), workspace=0, ticks=(1, 1, 2), allowed=(True,) * 3)
    ticks = ((5, 7, 90), (7, 5, 90), (95, 95, 91))
    for allowed, sent in ((True, 3.0), (False, 3.0), (False, 80.0)):
        experts = base.classes[0].experts
        assert experts is not None
        experts = replace(experts, bytes=(1, 1, 1), workspace=0, ticks=ticks, allowed=(allowed, allowed, True))
        problem = replace(
            base,
            usable=(99, 99, 99),
            embedding=attention,
            head=attention,
            hop=((0, 0, 0),) * 3,
            classes=(replace(base.classes[0], attention=attention, experts=experts),),
            rank=None,
            whole_layers=False,
            main=None,
            tied_bytes=0,
        )
        prices = AwayPrices(dict.fromkeys(((0, 0), (2, 0)), sent), dict.fromkeys((0, 2), 0.0))
        assert walks(problem, prices)[0].ticks == 5 + 3 * min(sent, 5 if allowed else sent)


# ---- better walks ----


@pytest.mark.parametrize("batch", range(3))
def test_polishing_never_makes_it_worse(batch: int) -> None:
    """From walks that fit and others, by the judge that polishes; and what was in order stays so."""
    better = 0
    for problem, plans, rng in problems(4_000 + 10 * batch, 10):
        deal = Deal(problem)
        starts = [random_walk(rng, problem), *rng.sample(list(fillings(plans)), min(2, len(fillings(plans))))]
        for start in starts:
            found = polish(problem, start, deal, steps=150, seed=rng.randint(0, 9))
            assert deal.of(found) <= deal.of(start)
            assert in_order(problem, found) or not in_order(problem, start)
            better += deal.of(found) < deal.of(start)
    assert better >= 5


def test_polishing_keeps_to_its_seed_and_its_steps() -> None:
    problem, plans = next((p, plans) for p, plans, _ in problems(4_100, 30) if len(p.devices) > 3 and len(plans))
    start, deal = next(iter(fillings(plans))), Deal(problem)
    assert polish(problem, start, deal, steps=0, seed=3) == start
    first = polish(problem, start, deal, steps=300, seed=3)
    assert polish(problem, start, Deal(problem), steps=300, seed=3) == first
    assert Stretches.of(start).walk(len(start.attention)) == start


# ---- experts for a walk ----


@pytest.mark.parametrize("batch", range(6))
def test_a_deal_costs_no_less_than_the_best_filling(batch: int) -> None:
    """So a walk that looks good is good; and where nothing fits bytes are found short. 120 problems, 20 walks each."""
    exact = tried = 0
    for problem, _, rng in problems(5_000 + 20 * batch, 20):
        problem = anyhow(problem)
        plans = every_plan(problem)
        best, deal = fillings(plans), Deal(problem)
        for walk in rng.sample(list(best), min(15, len(best))):
            assert deal.of(walk) >= best[walk]
            exact, tried = exact + (deal.of(walk) == best[walk]), tried + 1
        for walk in (random_walk(rng, problem) for _ in range(5)):
            if walk not in best and in_order(problem, walk):
                assert deal.of(walk) >= deal._short
    assert exact >= 0.4 * tried


def limited(plans: Plans, walk: Walk, held: dict[int, tuple[int, ...]]) -> int | None:
    """Ticks of the best experts for `walk` with at most `held`, by kind, on the devices named there."""
    rows = (plans.embedding == walk.embedding) & (plans.head == walk.head)
    rows &= (plans.attention == walk.attention).all(axis=1)
    for d, most in held.items():
        for k, n in enumerate(most):
            rows &= plans.held(d, k) <= n
    return plans.where(rows).least


@pytest.mark.parametrize("batch", range(4))
def test_experts_are_filled_in_as_well_as_can_be(batch: int) -> None:
    """48 problems; with the experts of some devices given, and with a bound known before."""
    filled = 0
    for problem, _, rng in problems(6_000 + 12 * batch, 12):
        problem = anyhow(problem)
        plans = every_plan(problem)
        best, deal = fillings(plans), Deal(problem)
        for walk in [*rng.sample(list(best), min(4, len(best))), random_walk(rng, problem)]:
            plan = fill(problem, walk, LIMITS, floor=rng.choice((0, plans.least or 0)))
            if not in_order(problem, walk):
                continue
            assert (plan is None) == (walk not in best)
            if plan is not None:
                filled += 1
                assert plan.ticks(problem) == best[walk]
                assert Walk(plan.embedding, plan.attention, plan.head) == walk
                assert limited(plans, walk, {}) == plan.ticks(problem)
            d = rng.randrange(len(problem.devices))
            kinds = problem.expert_kinds
            held = {d: tuple(rng.randint(0, kind.number) if kind.experts.allowed[d] else 0 for kind in kinds)}
            least = limited(plans, walk, held)
            if not problem.whole_layers:
                some = fill(problem, walk, LIMITS, held=held)
                assert (None if some is None else some.ticks(problem)) == least
                given = Deal(problem, held).of(walk)
                assert given >= (deal._short if least is None else least)
    assert filled >= 15


@pytest.mark.parametrize("whole", [False, True])
def test_a_walk_that_is_forbidden_is_not_filled(whole: bool) -> None:
    """Nor one whose experts would have to be where they may not, or do not fit."""
    problem = replace(turns_problem(), whole_layers=whole)
    good = Walk(0, (0, 1, 0, 1, 0, 1), 1)
    assert fill(problem, good, LIMITS) is not None
    assert fill(problem, replace(good, attention=(0, 0, 0, 1, 0, 1)), LIMITS) is None
    assert fill(problem, replace(good, embedding=1), LIMITS) is None
    assert fill(problem, replace(good, head=0), LIMITS) is None
    assert fill(replace(problem, usable=(3, 9)), good, LIMITS) is None


# ---- devices in order ----


@pytest.mark.parametrize("batch", range(4))
def test_every_model_keeps_the_devices_in_order(batch: int) -> None:
    """60 problems whose devices have ranks: bounds of some, bounds and plans of others, against all plans in order."""
    ordered = 0
    for problem, plans, _ in problems(7_000 + 15 * batch, 15, ordered=True):
        if problem.rank is None or len(set(problem.rank)) == 1 or problem.main is not None:
            continue
        slices = solve_slices(problem, LIMITS, floor=0, hint=None)
        if slices.assignment is not None:
            assert in_order(problem, Walk(0, slices.assignment.attention, slices.assignment.head))
            assert plans.least is not None
            assert plans.least <= slices.assignment.ticks(problem)
        if plans.least is None:
            continue
        ordered += 1
        assert slices.bound <= plans.least
        assert solve_counts(problem, LIMITS).bound <= plans.least
        columns = ColumnSearch(problem)
        assert columns.start([], NO_PLAN, 2**62) <= columns.improve(NO_PLAN, 20, 2**62) <= plans.least
        loads = {g: list(patterns_on(problem, g)) for g in groups_of(problem)}
        assert solve_patterns(problem, LIMITS, loads).bound <= plans.least
        free = solve_free_order(problem, LIMITS, floor=0, hint=plans.best)
        assert free.assignment is not None
        assert free.bound == free.assignment.ticks(problem)
        assert free.bound == plans.least or problem.one_run
        if problem.one_run:
            assert isinstance(slices.assignment, Assignment)
            assert slices.assignment.ticks(problem) == slices.bound == plans.least
    assert ordered >= 5


def obeys(attention: list[str], pins: dict[str, Any]) -> bool:
    """Layers on a device that is `last` have only such behind them, those on one that is `first` only such before."""
    last, first = ({d for d, words in pins.items() if word in words} for word in ("last", "first"))
    return all((a not in last or b in last) and (b not in first or a in first) for a, b in combinations(attention, 2))


@pytest.mark.parametrize("seed", range(8_000, 8_040))
def test_pinned_first_and_last_as_well_as_can_be(seed: int) -> None:
    """Every placement tried, those kept that are in order; the words are looked at anew here."""
    rng = random.Random(seed)
    instance = random_instance(rng, layers=(2, 4), gpus=(1, 2))
    costs = CostModel(instance.profile, instance.hardware, instance.workload)
    names = list(costs.device)
    pins: dict[str, Any] = {rng.choice(names): rng.choice(("last", "first"))}
    if rng.random() < 0.5:
        pins[rng.choice(names)] = rng.choice(("last", "first", ["attention", "experts", "head", "last"]))
    objective: Any = ("request", "decode", "prefill", "throughput")[seed % 4]
    granularity: Any = ("module", "layer")[seed // 4 % 2]
    kinds = {d: [word for word in words if word != "last"] for d, words in pins.items() if isinstance(words, list)}
    allowed = Allowed(costs, "torch", kinds)
    free = build_problem(costs, objective=objective, granularity=granularity, allowed=allowed)
    plans = every_plan(free)
    kept = [obeys([names[a] for a in row], pins) for row in plans.attention]
    those = plans.where(np.array(kept, dtype=bool))
    best = those.least
    if best is not None and free.bottleneck:
        best = min(those.plan(row).ticks(free) for row in range(len(those)))
    options = {"pins": pins, "objective": objective, "granularity": granularity, "tie_tolerance": 0.0}
    question = (instance.profile, instance.hardware, instance.workload)
    if best is None:
        with pytest.raises(InfeasiblePlacement) as refused:
            solve(*question, time_limit=60.0, **options)
        assert refused.value.proven
        return
    plan = solve(*question, time_limit=60.0, **options)
    assert plan.status == "optimal"
    assert obeys([layer.attention for layer in plan.layers], pins)
    sequences = instance.workload.batch_size if free.bottleneck else 1
    off = (4 * len(plan.layers) + 4) * free.tick_s
    assert plan.objective_s == pytest.approx(best * free.tick_s / sequences, rel=1e-9, abs=off)


def test_that_nothing_fits_in_order_is_proved() -> None:
    """Though everything fits if the devices may be visited in any order."""
    instance = random_instance(random.Random(42_331_769), layers=(2, 5), gpus=(1, 3))
    question = (instance.profile, instance.hardware, instance.workload)
    assert solve(*question).status == "optimal"
    with pytest.raises(InfeasiblePlacement) as refused:
        solve(*question, pins={"cpu": "first", "cuda:0": "last"})
    assert refused.value.proven


def test_a_layer_pinned_away_amid_others_moves_whole() -> None:
    """No run of layers on each device obeys these pins; a walk to and fro does."""
    pins = {"layers.0-2": "cuda:0", "layers.3.experts": "cpu", "layers.4-26": "cuda:0"}
    plan = solve("deepseek-v2-lite", "1xA100-80GB,ram=64GB", granularity="layer", pins=pins)
    assert plan.status == "optimal"
    assert [i for i, layer in enumerate(plan.layers) if layer.attention == "cpu"] == [3]
