"""The parts of the search: whole-number problems, interchangeable devices, counts and how they become plans."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import OBJECTIVES, BruteForce, Oracle
from strategies import Instance, instances, random_instance
from tiny_problems import problems

from cost_models import CostModel
from profiles import Device, Hardware, Link
from solver.assignment import Assignment, Counts, arrange
from solver.cp_sat.counts import _pair_off, solve_counts
from solver.cp_sat.free_order import solve_free_order
from solver.cp_sat.patterns import groups_of, patterns_on, solve_patterns
from solver.cp_sat.run import Limits
from solver.cp_sat.slices import solve_slices
from solver.evaluate import judge
from solver.problem import Problem, build_problem
from solver.rules import Allowed

LIMITS = Limits(60.0)


def problem_of(instance: Instance, objective: Any = "request", granularity: Any = "module") -> Problem:
    costs = CostModel(instance.profile, instance.hardware, instance.workload)
    return build_problem(costs, objective=objective, granularity=granularity, allowed=Allowed(costs, "torch", None))


def with_equal_cards(instance: Instance, pairs: tuple[tuple[int, int], ...] = ()) -> Instance:
    """All cards like the first, all host links like its own, and `pairs` of cards joined directly."""
    first = instance.hardware.gpus[0]
    cards = [first.replace(name=gpu.name) for gpu in instance.hardware.gpus]
    host = next(k for k in instance.hardware.links if "cpu" in k.between)
    links = [host.replace(between=("cpu", card.name)) for card in cards]
    links += [Link(between=(f"cuda:{a}", f"cuda:{b}"), bandwidth_bytes_per_s=1e11, latency_s=1e-6) for a, b in pairs]
    hardware = instance.hardware.replace(devices=(*cards, instance.hardware.cpu), links=tuple(links))
    return replace(instance, hardware=hardware, profile=_known_by_kind(instance.profile))


def _known_by_kind(profile: Any) -> Any:
    """No time measured on one card by its name: that would make it unlike the others."""

    def plain(block: Any) -> Any:
        known = {k: v for k, v in (block.measured_seconds or {}).items() if not k.startswith("cuda")}
        return block.replace(measured_seconds=known or None)

    layers = tuple(
        layer.replace(attention=plain(layer.attention), experts=layer.experts and plain(layer.experts))
        for layer in profile.layers
    )
    return profile.replace(embedding=plain(profile.embedding), head=plain(profile.head), layers=layers)


def random_assignment(rng: random.Random, problem: Problem) -> Assignment:
    n = len(problem.devices)
    attention = tuple(rng.randrange(n) for _ in problem.layer_class)
    experts = tuple(None if problem.classes[c].experts is None else rng.randrange(n) for c in problem.layer_class)
    return Assignment(rng.randrange(n), rng.randrange(n), attention, experts)


def counts_of(plan: Assignment, problem: Problem) -> Counts:
    classes, n = problem.layer_class, range(len(problem.devices))
    placed = list(zip(classes, plan.attention, plan.experts, strict=True))
    return Counts(
        embedding=plan.embedding,
        head=plan.head,
        attention={(c, a): sum((k, b) == (c, a) for k, b, _ in placed) for c in set(classes) for a in n},
        experts=dict(Counter((c, a, d) for c, a, d in placed if d is not None)),
        route=tuple(dict.fromkeys(plan.attention)),
    )


# ---- whole numbers ----


@settings(max_examples=80, deadline=None, derandomize=True)
@given(instances, st.sampled_from(OBJECTIVES), st.randoms(use_true_random=False))
def test_ticks_are_seconds(instance: Instance, objective: str, rng: random.Random) -> None:
    problem = problem_of(instance, objective)
    costs = CostModel(instance.profile, instance.hardware, instance.workload)
    for _ in range(5):
        plan = random_assignment(rng, problem)
        seconds = judge(plan.placement(problem), costs, objective).objective_s  # type: ignore[arg-type]
        if objective == "throughput":
            seconds *= instance.workload.batch_size
        off = (4 * len(problem.layer_class) + 4) * problem.tick_s
        assert plan.ticks(problem) * problem.tick_s == pytest.approx(seconds, abs=off, rel=1e-9)
        assert Assignment.of(plan.placement(problem), problem) == plan


@settings(max_examples=150, deadline=None, derandomize=True)
@given(instances, st.sampled_from(OBJECTIVES))
def test_hops_obey_the_triangle_inequality_after_rounding(instance: Instance, objective: str) -> None:
    hop = problem_of(instance, objective).hop
    for a in range(len(hop)):
        assert hop[a][a] == 0
        for b in range(len(hop)):
            assert hop[a][b] == hop[b][a]
            assert all(hop[a][b] <= hop[a][c] + hop[c][b] for c in range(len(hop)))


# ---- classes of layers, and kinds of experts ----


def windowed() -> Instance:
    """Two layers that differ in a window which is longer than any context, and two that differ in their attention."""
    instance = random_instance(random.Random(11), layers=(4, 4))
    layer = next(layer for layer in instance.profile.layers if layer.experts is not None)
    layer = layer.replace(attention=layer.attention.replace(kv_window_tokens=None, weight_bytes=10**6))
    windows = layer.replace(attention=layer.attention.replace(kv_window_tokens=10**9))
    heavier = layer.replace(attention=layer.attention.replace(weight_bytes=2 * 10**6))
    return replace(instance, profile=instance.profile.replace(layers=(layer, windows, heavier, layer)))


def test_layers_that_cost_the_same_are_of_one_class() -> None:
    instance = windowed()
    costs = CostModel(instance.profile, instance.hardware, instance.workload)
    assert costs.layer_class == (0, 1, 2, 0)
    problem = problem_of(instance)
    assert (problem.layer_class, problem.class_sizes) == ((0, 0, 1, 0), (3, 1))
    apart = problem_of(instance, granularity="expert")
    assert (apart.layer_class, apart.class_sizes) == ((0, 1, 2, 0), (2, 1, 1))
    assert apart.classes[0] == apart.classes[1]


def test_layers_that_may_not_be_in_the_same_places_are_not() -> None:
    instance = windowed()
    costs = CostModel(instance.profile, instance.hardware, instance.workload)
    allowed = Allowed(costs, "torch", {"layers.1.attention": ["cpu"]})
    problem = build_problem(costs, objective="request", granularity="module", allowed=allowed)
    assert problem.layer_class == (0, 1, 2, 0)
    assert [kind.classes for kind in problem.expert_kinds] == [(0, 1, 2)]


def test_equal_experts_are_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not where a GPU keeps other buffers for them, nor where attentions could be combined in too many ways."""
    problem = problem_of(windowed())
    (kind,) = problem.expert_kinds
    assert (kind.experts, kind.classes, kind.number) == (problem.classes[0].experts, (0, 1), 4)
    assert problem.by_kind((2, 1)) == (3,)
    staged = replace(problem, staging=(7, 7))
    assert (len(staged.expert_kinds), staged.kind_buffer(0, 0), staged.kind_buffer(0, staged.cpu)) == (1, 7, 0)
    apart = replace(problem, staging=(7, 8))
    assert [(one.classes, one.number) for one in apart.expert_kinds] == [((0,), 3), ((1,), 1)]
    assert [apart.kind_buffer(k, 0) for k in (0, 1)] == [7, 8]
    for most, n_kinds in ((4 * 2, 1), (4 * 2 - 1, 2)):
        monkeypatch.setattr("solver.problem.MOST_TOGETHER", most)
        assert len(replace(problem).expert_kinds) == n_kinds
    heavier = replace(kind.experts, workspace=kind.experts.workspace + 1)
    other = (problem.classes[0], replace(problem.classes[1], experts=heavier))
    monkeypatch.undo()
    assert [one.classes for one in replace(problem, classes=other).expert_kinds] == [(0,), (1,)]
    dense = (problem.classes[0], replace(problem.classes[1], experts=None))
    assert [one.number for one in replace(problem, classes=dense).expert_kinds] == [3]


# ---- interchangeable devices ----


@pytest.mark.parametrize(
    ("pairs", "twins"),
    [
        ((), (0, 0, 0, 3)),
        (((0, 1), (1, 2), (0, 2)), (0, 0, 0, 3)),
        (((0, 1),), (0, 0, 2, 3)),
        (((1, 2),), (0, 1, 1, 3)),
        (((0, 1), (1, 2)), (0, 1, 0, 3)),
    ],
)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_cards_are_twins_as_far_as_their_links_are_alike(
    pairs: tuple[tuple[int, int], ...], twins: tuple[int, ...], objective: str
) -> None:
    instance = with_equal_cards(random_instance(random.Random(3), gpus=(3, 3)), pairs)
    slow_host = tuple(
        k.replace(latency_s=1e-3, bandwidth_bytes_per_s=1e9) if "cpu" in k.between else k
        for k in instance.hardware.links
    )
    instance = replace(instance, hardware=instance.hardware.replace(links=slow_host))
    assert problem_of(instance, objective).twins == twins


@pytest.mark.parametrize(
    "change",
    [
        {"memory_bytes": 10**9},
        {"reserved_bytes": 1},
        {"safety_margin": 0.5},
        {"bandwidth_bytes_per_s": 1e11},
        {"launch_s": 1e-3},
        {"sync_s": 5e-3},
    ],
    ids=str,
)
def test_a_card_that_differs_is_no_twin(change: dict[str, Any]) -> None:
    instance = with_equal_cards(random_instance(random.Random(8), gpus=(3, 3), layers=(6, 6)))
    devices = tuple(d.replace(**change) if d.name == "cuda:1" else d for d in instance.hardware.devices)
    assert problem_of(replace(instance, hardware=instance.hardware.replace(devices=devices))).twins == (0, 1, 0, 3)


def test_a_pin_parts_twins() -> None:
    instance = with_equal_cards(random_instance(random.Random(4), gpus=(3, 3)))
    costs = CostModel(instance.profile, instance.hardware, instance.workload)
    allowed = Allowed(costs, "torch", {"head": ["cuda:1", "cpu"]})
    problem = build_problem(costs, objective="request", granularity="module", allowed=allowed)
    assert problem.twins == (0, 1, 0, 3)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(instances, st.booleans(), st.sampled_from(OBJECTIVES), st.randoms(use_true_random=False))
def test_swapping_twins_changes_nothing(instance: Instance, equal: bool, objective: str, rng: random.Random) -> None:
    instance = with_equal_cards(instance) if equal else instance
    problem = problem_of(instance, objective)
    costs = CostModel(instance.profile, instance.hardware, instance.workload)
    if equal:
        assert len(set(problem.twins)) == 2
    groups: dict[int, list[int]] = {}
    for d, twin in enumerate(problem.twins):
        groups.setdefault(twin, []).append(d)
    new = {d: e for g in groups.values() for d, e in zip(g, rng.sample(g, len(g)), strict=True)}
    plan = random_assignment(rng, problem)
    renamed = Assignment(
        new[plan.embedding],
        new[plan.head],
        tuple(new[a] for a in plan.attention),
        tuple(None if d is None else new[d] for d in plan.experts),
    )
    assert renamed.ticks(problem) == plan.ticks(problem)
    used = {d.name: m.free_bytes for d, m in zip(instance.hardware.devices, _memory(plan, problem, costs), strict=True)}
    after = {
        d.name: m.free_bytes for d, m in zip(instance.hardware.devices, _memory(renamed, problem, costs), strict=True)
    }
    assert {problem.devices[new[d]]: used[name] for d, name in enumerate(problem.devices)} == after
    assert renamed.canonical(problem) == plan.canonical(problem)
    canonical = plan.canonical(problem)
    assert canonical.canonical(problem) == canonical
    assert canonical.ticks(problem) == plan.ticks(problem)
    assert sorted(m.free_bytes for m in _memory(canonical, problem, costs)) == sorted(used.values())


def _memory(plan: Assignment, problem: Problem, costs: CostModel) -> list[Any]:
    return list(judge(plan.placement(problem), costs).memory.values())


# ---- counts become plans ----


@settings(max_examples=200, deadline=None, derandomize=True)
@given(instances, st.sampled_from(OBJECTIVES), st.randoms(use_true_random=False))
def test_arranging_keeps_the_counts(instance: Instance, objective: str, rng: random.Random) -> None:
    problem = problem_of(instance, objective)
    counts = counts_of(random_assignment(rng, problem), problem)
    plan = arrange(counts, problem)
    found = counts_of(plan, problem)
    assert (found.embedding, found.head) == (counts.embedding, counts.head)
    assert found.attention == counts.attention
    assert found.experts == counts.experts
    assert [x is None for x in plan.experts] == [problem.classes[c].experts is None for c in problem.layer_class]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(instances, st.randoms(use_true_random=False))
def test_arranging_finds_slices_again(instance: Instance, rng: random.Random) -> None:
    """Layers of one class in slices along a route: what comes back is no worse."""
    one_class = instance.profile.replace(layers=(instance.profile.layers[0],) * len(instance.profile.layers))
    problem = problem_of(replace(instance, profile=one_class))
    n = len(problem.devices)
    order = rng.sample(range(n), n)
    attention = tuple(sorted((rng.choice(order) for _ in problem.layer_class), key=order.index))
    experts = tuple(a if problem.classes[0].experts is not None else None for a in attention)
    plan = Assignment(rng.randrange(n), rng.randrange(n), attention, experts)
    assert arrange(counts_of(plan, problem), problem).ticks(problem) <= plan.ticks(problem)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=7), st.data())
def test_guests_are_paired_off(groups: list[int], data: st.DataObject) -> None:
    """Whatever numbers real pairs give, pairs come out with those numbers, in one group, and nobody with itself."""
    twins = [groups.index(g) for g in groups]
    places = [(c, a, d) for c in (0, 1) for a in range(len(twins)) for d in range(len(twins))]
    places = [(c, a, d) for c, a, d in places if a != d and twins[a] == twins[d]]
    real = data.draw(st.lists(st.sampled_from(places), max_size=12)) if places else []
    keys = [(c, d) for c in (0, 1) for d in range(len(twins))]
    sent = {(c, d): sum((k, a) == (c, d) for k, a, _ in real) for c, d in keys}
    taken = {(c, d): sum((k, e) == (c, d) for k, _, e in real) for c, d in keys}
    model: Any = SimpleNamespace(
        problem=SimpleNamespace(twins=twins), sent=sent, taken=taken, devices=range(len(twins))
    )
    solver: Any = SimpleNamespace(value=lambda number: number)
    pairs = _pair_off(model, solver)
    assert all(a != d and twins[a] == twins[d] and n > 0 for (_, a, d), n in pairs.items())
    for c, d in keys:
        assert sum(n for (k, a, _), n in pairs.items() if (k, a) == (c, d)) == sent[c, d]
        assert sum(n for (k, _, e), n in pairs.items() if (k, e) == (c, d)) == taken[c, d]


# ---- the models against each other ----


@pytest.mark.parametrize("batch", range(12))
def test_counts_slices_and_free_order_agree_with_brute_force(batch: int) -> None:
    """Counts <= everything; slices >= the best of all; free order is the best of all. 60 instances of one objective."""
    for seed in range(70_000 + 5 * batch, 70_000 + 5 * batch + 5):
        rng = random.Random(seed)
        instance = random_instance(rng, layers=(2, 4), gpus=(1, 2) if seed % 2 else (2, 2))
        instance = with_equal_cards(instance) if seed % 3 == 0 else instance
        granularity = ("module", "layer")[seed % 2]
        problem = problem_of(instance, "request", granularity)
        oracle = Oracle(instance.profile, instance.hardware, instance.workload)
        best = BruteForce(oracle, "request", experts_with_attention=granularity == "layer").best()
        counts = solve_counts(problem, LIMITS)
        slices = solve_slices(problem, LIMITS, floor=0, hint=None)
        if best is None:
            assert (counts.status, slices.status) == ("infeasible", "infeasible")
            continue
        spots = best[1]
        optimum = Assignment(spots.embedding, spots.head, spots.attention, spots.experts)
        ticks, off = optimum.ticks(problem), 4 * len(problem.layer_class) + 4
        assert counts.status == "optimal"
        assert counts.bound <= ticks
        costs = CostModel(instance.profile, instance.hardware, instance.workload)
        if slices.assignment is not None:
            assert judge(slices.assignment.placement(problem), costs).feasible
            assert counts.bound <= slices.assignment.ticks(problem)
            assert slices.assignment.ticks(problem) >= ticks - off
            attention = slices.assignment.attention
            runs = [a for i, a in enumerate(attention) if i == 0 or attention[i - 1] != a]
            assert len(runs) == len(set(runs))
        free = solve_free_order(problem, LIMITS, floor=counts.bound, hint=optimum)
        assert free.status == "optimal"
        assert free.assignment is not None
        assert abs(free.assignment.ticks(problem) - ticks) <= off
        assert free.bound == free.assignment.ticks(problem)
        assert judge(free.assignment.placement(problem), costs).feasible


@pytest.mark.parametrize("batch", range(10))
def test_patterns_are_a_bound_over_all_placements(batch: int) -> None:
    """40 instances with two or three equal cards, which may be loaded in any way."""
    for seed in range(80_000 + 4 * batch, 80_000 + 4 * batch + 4):
        rng, objective = random.Random(seed), OBJECTIVES[seed % 3]
        n_gpus = 2 + seed % 2
        instance = with_equal_cards(random_instance(rng, layers=(2, 3), gpus=(n_gpus, n_gpus)))
        granularity = ("module", "layer")[seed // 4 % 2]
        problem = problem_of(instance, objective, granularity)
        oracle = Oracle(instance.profile, instance.hardware, instance.workload)
        best = BruteForce(oracle, objective, experts_with_attention=granularity == "layer").best()
        every_load = {g: list(patterns_on(problem, g)) for g in groups_of(problem)}
        found = solve_patterns(problem, LIMITS, every_load)
        if best is None:
            assert found.bound >= 0
            continue
        spots = best[1]
        assert found.status != "infeasible"
        assert found.bound <= Assignment(spots.embedding, spots.head, spots.attention, spots.experts).ticks(problem)


def test_hops_dear_enough_to_go_back() -> None:
    """Two classes in turns and room for one of each per card: the token goes to and fro, and the plan says so."""
    gib = 10**9

    def card(i: int) -> Device:
        return Device(
            name=f"cuda:{i}",
            kind="gpu",
            memory_bytes=9 * gib,
            safety_margin=0.0,
            bandwidth_bytes_per_s=(900e9, 450e9)[i],
            flops_per_s={"bf16": 1e14},
        )

    cpu = Device(name="cpu", kind="cpu", memory_bytes=100, bandwidth_bytes_per_s=1e10, flops_per_s={"bf16": 1e12})
    links = [Link(between=("cpu", f"cuda:{i}"), bandwidth_bytes_per_s=25e9, latency_s=1e-3) for i in range(2)]
    hardware = Hardware(name="two cards", devices=[card(0), card(1), cpu], links=links)
    base = random_instance(random.Random(0))
    big, small = ({"weight_bytes": n * gib, "workspace_bytes": 0, "params": 0} for n in (4, 1))
    profile = base.profile.replace(
        embedding={"weight_bytes": 0, "workspace_bytes": 0},
        head={"weight_bytes": 0, "workspace_bytes": 0},
        tied_bytes=0,
        layers=[{"attention": big}, {"attention": small}, {"attention": big}, {"attention": small}, {"attention": big}],
    )
    instance = Instance(profile, hardware, base.workload)
    problem = problem_of(instance, "decode")
    oracle = Oracle(instance.profile, instance.hardware, instance.workload)
    best = BruteForce(oracle, "decode").best()
    assert best is not None
    optimum = Assignment(best[1].embedding, best[1].head, best[1].attention, best[1].experts)
    assert solve_counts(problem, LIMITS).bound <= optimum.ticks(problem)
    free = solve_free_order(problem, LIMITS, floor=0, hint=optimum)
    assert free.assignment is not None
    assert abs(free.assignment.ticks(problem) - optimum.ticks(problem)) <= 24


def test_a_bound_that_knows_the_order_cuts_no_counts_off() -> None:
    """Counts forget the order of layers, so the best plan may cost less in them than a bound known from elsewhere."""
    cheaper = 0
    for problem, plans, _ in problems(90_000, 60, ordered=False):
        if plans.least is None:
            assert solve_counts(problem, LIMITS, floor=7).status == "infeasible"
            continue
        without, found = (solve_counts(problem, LIMITS, floor=floor) for floor in (0, plans.least))
        assert (without.status, found.status) == ("optimal", "optimal")
        assert without.bound <= plans.least == found.bound
        cheaper += without.bound < plans.least
    assert cheaper >= 3
