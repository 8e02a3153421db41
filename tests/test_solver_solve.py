"""Plans against a second opinion, against brute force, against each other, and against the story."""

from __future__ import annotations

import importlib
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from oracle import OBJECTIVES, BruteForce, Oracle
from strategies import Instance, random_instance

from cost_models import CostModel
from profiles import Hardware, InfeasiblePlacement, MoeplanError, Placement, TargetError, load_hardware
from solver import solve
from solver.assignment import Assignment, Counts, arrange
from solver.baselines import hand_plans
from solver.cp_sat.counts import solve_counts
from solver.cp_sat.patterns import PatternOutcome
from solver.cp_sat.run import Limits, Outcome
from solver.evaluate import judge
from solver.problem import Problem, build_problem
from solver.rules import Allowed

SOLVE = importlib.import_module("solver.solve")  # `solver.solve` itself is the function
PORTFOLIO = importlib.import_module("solver.search.portfolio")
PLANS = importlib.import_module("solver.search.plans")
TIME_LIMIT = 60.0
"""Seconds; no instance here needs more than a few."""


def oracle_of(instance: Instance) -> Oracle:
    return Oracle(instance.profile, instance.hardware, instance.workload)


def costs_of(instance: Instance) -> CostModel:
    return CostModel(instance.profile, instance.hardware, instance.workload)


def problem_of(instance: Instance, options: dict[str, Any]) -> Problem:
    costs = costs_of(instance)
    return build_problem(
        costs,
        objective=options["objective"],
        granularity=options["granularity"],
        allowed=Allowed(costs, "torch", options.get("pins")),
    )


def options_of(seed: int) -> dict[str, Any]:
    """Objective and granularity take turns."""
    return {"objective": OBJECTIVES[seed % 4], "granularity": ("module", "layer")[seed // 4 % 2]}


def plan_of(instance: Instance, **options: Any) -> Placement:
    """Exact: only plans that are equally good may give way to roomier ones."""
    return solve(
        instance.profile, instance.hardware, instance.workload, time_limit=TIME_LIMIT, tie_tolerance=0, **options
    )


def plan_or_none(instance: Instance, **options: Any) -> Placement | None:
    try:
        return plan_of(instance, **options)
    except InfeasiblePlacement as problem:
        if not problem.proven:
            raise
        return None


def seconds(plan: Placement | None) -> float:
    """The objective; infinite where nothing fits."""
    if plan is None:
        return float("inf")
    assert plan.objective_s is not None
    return plan.objective_s


def brute_force(instance: Instance, options: dict[str, Any], **more: Any) -> BruteForce:
    return BruteForce(
        oracle_of(instance),
        options["objective"],
        experts_with_attention=options["granularity"] == "layer",
        **more,
    )


# ---- what a plan claims is true ----


@pytest.mark.parametrize("batch", range(50))
def test_plans_say_what_the_oracle_says(batch: int) -> None:
    """500 random instances, ten a batch."""
    for seed in range(10 * batch, 10 * batch + 10):
        instance, options = random_instance(random.Random(seed)), options_of(seed)
        plan = plan_or_none(instance, **options)
        if plan is not None:
            check_plan(plan, instance, options)


def check_plan(plan: Placement, instance: Instance, options: dict[str, Any]) -> None:
    oracle = oracle_of(instance)
    assert oracle.fits(plan)
    assert plan.objective == options["objective"]
    assert plan.granularity == options["granularity"]
    assert plan.objective_s == pytest.approx(oracle.objective(plan, options["objective"]), rel=1e-9, abs=0)
    assert plan.memory is not None
    assert {name: held.used_bytes for name, held in plan.memory.items()} == oracle.used(plan)
    assert plan.prediction is not None
    assert plan.prediction.decode_step_s == pytest.approx(oracle.decode_step(plan), rel=1e-9)
    assert plan.bound_s is not None
    assert plan.gap is not None
    assert 0 <= plan.bound_s <= seconds(plan)
    assert plan.gap == pytest.approx((seconds(plan) - plan.bound_s) / seconds(plan), abs=1e-12)
    if plan.status == "optimal":
        assert plan.gap == 0
    else:
        assert plan.status == "feasible"
    if options["granularity"] == "layer":
        assert all(layer.experts_device in (None, layer.attention) for layer in plan.layers)
    problem = problem_of(instance, options)
    assignment = Assignment.of(plan, problem)
    assert assignment is not None
    ticks = assignment.ticks(problem)
    per_sequence = instance.workload.batch_size if options["objective"] == "throughput" else 1
    off = 4 * len(plan.layers) + 4
    assert abs(ticks * problem.tick_s - seconds(plan) * per_sequence) <= off * problem.tick_s + 1e-9 * seconds(plan)
    for rule in hand_plans(costs_of(instance)).values():
        whole = all(layer.experts_device in (None, layer.attention) for layer in rule.layers)
        if oracle.fits(rule) and (whole or options["granularity"] == "module"):
            assert seconds(plan) <= oracle.objective(rule, options["objective"]) * (1 + 1e-12)


# ---- brute force ----


@pytest.mark.parametrize("batch", range(20))
def test_nothing_is_better_than_an_optimal_plan(batch: int) -> None:
    """200 tiny instances, ten a batch: everything tried out."""
    for seed in range(10_000 + 10 * batch, 10_000 + 10 * batch + 10):
        rng, options = random.Random(seed), options_of(seed)
        instance = random_instance(rng, layers=(2, 3), gpus=(1, 2))
        best = brute_force(instance, options).best()
        try:
            plan = plan_of(instance, **options)
        except InfeasiblePlacement as problem:
            assert best is None
            check_infeasible(problem, instance, options)
            continue
        assert best is not None
        assert plan.status == "optimal"
        assert seconds(plan) == pytest.approx(best[0], rel=1e-6)
        assert plan.bound_s is not None
        assert plan.bound_s <= best[0] * (1 + 1e-6)


def check_infeasible(problem: InfeasiblePlacement, instance: Instance, options: dict[str, Any]) -> None:
    """What is said to be short is short, and just so: with those bytes something fits, with one fewer nothing does."""
    assert problem.proven
    assert problem.short_bytes
    assert all(n > 0 for n in problem.short_bytes.values())
    assert "\n" not in str(problem)
    assert brute_force(instance, options, extra_bytes=problem.short_bytes).best() is not None
    name = next(iter(problem.short_bytes))
    fewer = {**problem.short_bytes, name: problem.short_bytes[name] - 1}
    assert brute_force(instance, options, extra_bytes=fewer).best() is None


@pytest.mark.parametrize("batch", range(10))
def test_the_counts_are_a_bound_over_all_placements(batch: int) -> None:
    """100 tiny instances with dear hops and layers in turns, where going back and forth may pay."""
    for seed in range(20_000 + 10 * batch, 20_000 + 10 * batch + 10):
        rng, options = random.Random(seed), options_of(seed)
        instance = random_instance(rng, layers=(3, 4), gpus=(1, 2))
        problem = problem_of(instance, options)
        found = solve_counts(problem, Limits(TIME_LIMIT))
        best = brute_force(instance, options).best()
        assert (found.status == "infeasible") == (best is None)
        if best is None:
            continue
        per_sequence = instance.workload.batch_size if options["objective"] == "throughput" else 1
        off = 4 * len(instance.profile.layers) + 4
        assert found.bound * problem.tick_s <= best[0] * per_sequence * (1 + 1e-9) + off * problem.tick_s
        ticks = Assignment(best[1].embedding, best[1].head, best[1].attention, best[1].experts).ticks(problem)
        assert found.bound <= ticks


@pytest.mark.parametrize("seed", range(30_000, 30_024))
def test_equal_cards_do_not_mislead(seed: int) -> None:
    """Three equal cards, two or three layers: symmetry breaking must leave an optimum standing."""
    rng, options = random.Random(seed), options_of(seed)
    instance = random_instance(rng, layers=(2, 3), gpus=(3, 3))
    first = instance.hardware.gpus[0]
    cards = {gpu.name: first.replace(name=gpu.name) for gpu in instance.hardware.gpus}
    devices = tuple(cards.get(device.name, device) for device in instance.hardware.devices)
    host = next(k for k in instance.hardware.links if "cpu" in k.between)
    links = tuple(host.replace(between=k.between) if "cpu" in k.between else k for k in instance.hardware.links)
    instance = replace(instance, hardware=instance.hardware.replace(devices=devices, links=links))
    plan, best = plan_or_none(instance, **options), brute_force(instance, options).best()
    assert (plan is None) == (best is None)
    if best is not None:
        assert seconds(plan) == pytest.approx(best[0], rel=1e-6)


@pytest.mark.parametrize("seed", range(40_000, 40_040))
def test_pinned_plans_against_brute_force(seed: int) -> None:
    rng, options = random.Random(seed), options_of(seed)
    instance = random_instance(rng, layers=(2, 3), gpus=(1, 2))
    names = [device.name for device in instance.hardware.devices]
    keys = ["embedding", "head", "attention", "experts", "layers.0", "layers.1.attention", "layers.0-1.experts"]
    pins = {rng.choice(keys): rng.sample(names, rng.randint(1, len(names))) for _ in range(2)}
    allowed: dict[tuple[str, int], set[int]] = {}
    n_layers = len(instance.profile.layers)
    for key, where in pins.items():
        for kind, layer in _named_by(key, n_layers):
            spots = {names.index(name) for name in where}
            allowed[kind, layer] = allowed.get((kind, layer), set(range(len(names)))) & spots
    if not all(allowed.values()):
        with pytest.raises(MoeplanError, match="leaves"):
            plan_of(instance, pins=pins, **options)
        return
    best = brute_force(instance, options, allowed=allowed).best()
    plan = plan_or_none(instance, pins=pins, **options)
    assert (plan is None) == (best is None)
    if best is not None and plan is not None:
        assert plan.status == "optimal"
        assert seconds(plan) == pytest.approx(best[0], rel=1e-6)
        assert seconds(plan) >= seconds(plan_or_none(instance, **options)) * (1 - 1e-6)


def _named_by(key: str, n_layers: int) -> list[tuple[str, int]]:
    return {
        "embedding": [("embedding", 0)],
        "head": [("head", 0)],
        "attention": [("attention", i) for i in range(n_layers)],
        "experts": [("experts", i) for i in range(n_layers)],
        "layers.0": [("attention", 0), ("experts", 0)],
        "layers.1.attention": [("attention", 1)],
        "layers.0-1.experts": [("experts", 0), ("experts", 1)],
    }[key]


# ---- relations between instances ----


def no_worse(one: Placement | None, other: Placement | None) -> bool:
    """`one` is at least as good, up to rounding; where a search stopped early only the bounds can be compared."""
    if one is not None and one.status == "feasible":
        assert one.bound_s is not None
        return one.bound_s <= seconds(other) * (1 + 1e-6)
    return seconds(one) <= seconds(other) * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(50_000, 50_030))
def test_more_memory_never_hurts(seed: int) -> None:
    rng, options = random.Random(seed), options_of(seed)
    instance = random_instance(rng, layers=(2, 5))
    before = plan_or_none(instance, **options)
    lucky = rng.choice(instance.hardware.devices)
    more = lucky.replace(memory_bytes=round(lucky.memory_bytes * rng.uniform(1.05, 3)))
    devices = tuple(more if device is lucky else device for device in instance.hardware.devices)
    after = plan_or_none(replace(instance, hardware=instance.hardware.replace(devices=devices)), **options)
    assert no_worse(after, before)


@pytest.mark.parametrize("seed", range(51_000, 51_030))
def test_a_faster_link_never_hurts(seed: int) -> None:
    rng, options = random.Random(seed), options_of(seed)
    instance = random_instance(rng, layers=(2, 5))
    links = tuple(
        k.replace(bandwidth_bytes_per_s=k.bandwidth_bytes_per_s * 4, latency_s=k.latency_s / 2)
        if rng.random() < 0.5
        else k
        for k in instance.hardware.links
    )
    after = plan_or_none(replace(instance, hardware=instance.hardware.replace(links=links)), **options)
    assert no_worse(after, plan_or_none(instance, **options))


@pytest.mark.parametrize("seed", range(52_000, 52_030))
def test_a_card_more_never_hurts(seed: int) -> None:
    rng, options = random.Random(seed), options_of(seed)
    instance = random_instance(rng, layers=(2, 5), gpus=(2, 3))
    gone = rng.choice(instance.hardware.gpus).name
    fewer = instance.hardware.replace(
        devices=tuple(device for device in instance.hardware.devices if device.name != gone),
        links=tuple(link for link in instance.hardware.links if gone not in link.between),
    )
    without = plan_or_none(replace(instance, hardware=fewer), **options)
    assert no_worse(plan_or_none(instance, **options), without)


@pytest.mark.parametrize("seed", range(53_000, 53_016))
def test_modules_are_at_least_as_free_as_layers(seed: int) -> None:
    instance, objective = random_instance(random.Random(seed), layers=(2, 5)), OBJECTIVES[seed % 4]
    module = plan_or_none(instance, granularity="module", objective=objective)
    assert no_worse(module, plan_or_none(instance, granularity="layer", objective=objective))


@pytest.mark.parametrize("seed", range(54_000, 54_012))
def test_the_same_question_has_the_same_answer(seed: int) -> None:
    """Whatever was solved in between."""
    options = options_of(seed)
    one, other = (random_instance(random.Random(s), layers=(3, 5), loose=True) for s in (seed, seed + 1))
    first = [plan_of(one, **options), plan_of(other, **options)]
    second = [plan_of(other, **options), plan_of(one, **options)][::-1]
    for before, after in zip(first, second, strict=True):
        assert before.replace(solve_s=None) == after.replace(solve_s=None)


@pytest.mark.parametrize("seed", range(55_000, 55_020))
def test_names_of_devices_do_not_matter(seed: int) -> None:
    rng, options = random.Random(seed), options_of(seed)
    instance = random_instance(rng, layers=(2, 4), gpus=(2, 3))
    names = [gpu.name for gpu in instance.hardware.gpus]
    new = dict(zip(names, rng.sample(names, len(names)), strict=True)) | {"cpu": "cpu"}
    hardware = instance.hardware.replace(
        devices=tuple(device.replace(name=new[device.name]) for device in instance.hardware.devices),
        links=tuple(k.replace(between=(new[k.between[0]], new[k.between[1]])) for k in instance.hardware.links),
    )
    anywhere = _measured_by_kind(instance)
    plans = [plan_or_none(replace(anywhere, hardware=h), **options) for h in (instance.hardware, hardware)]
    assert seconds(plans[0]) == pytest.approx(seconds(plans[1]), rel=1e-6)


def _measured_by_kind(instance: Instance) -> Instance:
    """The same model with no time measured on one card by its name."""

    def plain(block: Any) -> Any:
        known = {k: v for k, v in (block.measured_seconds or {}).items() if not k.startswith("cuda")}
        return block.replace(measured_seconds=known or None)

    layers = tuple(
        layer.replace(attention=plain(layer.attention), experts=layer.experts and plain(layer.experts))
        for layer in instance.profile.layers
    )
    profile = instance.profile.replace(
        embedding=plain(instance.profile.embedding), head=plain(instance.profile.head), layers=layers
    )
    return replace(instance, profile=profile)


# ---- pins, targets and other options ----


MODEL, CARD = "deepseek-v2-lite", "2xRTX4090,ram=256GB"


@pytest.mark.parametrize(
    ("pins", "holds"),
    [
        ({"embedding": "cuda:1"}, lambda p: p.embedding == "cuda:1"),
        ({"head": "cpu"}, lambda p: p.head == "cpu"),
        ({"attention": "cuda:1"}, lambda p: all(layer.attention == "cuda:1" for layer in p.layers)),
        ({"experts": "cpu"}, lambda p: all(layer.experts_device in (None, "cpu") for layer in p.layers)),
        ({"layers.3": "cpu"}, lambda p: p.layers[3].attention == p.layers[3].experts_device == "cpu"),
        ({"layers.3.experts": "cpu"}, lambda p: p.layers[3].experts_device == "cpu"),
        ({"layers.4.attention": ["cpu"]}, lambda p: p.layers[4].attention == "cpu"),
        ({"layers.2-5": "cuda:1"}, lambda p: {layer.attention for layer in p.layers[2:6]} == {"cuda:1"}),
        ({"layers.2-5.experts": "cuda:1"}, lambda p: {x.experts_device for x in p.layers[2:6]} == {"cuda:1"}),
        ({"layers.2-5.attention": "cuda:1"}, lambda p: {x.attention for x in p.layers[2:6]} == {"cuda:1"}),
        ({"embedding": ["cuda:0", "cuda:1"]}, lambda p: p.embedding != "cpu"),
        (
            {"experts": ["cpu", "cuda:1"], "layers.1.experts": ["cpu", "cuda:0"]},
            lambda p: p.layers[1].experts_device == "cpu",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_pins_hold_and_only_cost(pins: dict[str, Any], holds: Any) -> None:
    free, pinned = (solve(MODEL, CARD, pins=p, time_limit=TIME_LIMIT) for p in (None, pins))
    assert holds(pinned)
    assert pinned.bound_s is not None
    assert free.bound_s is not None
    assert seconds(pinned) >= free.bound_s * (1 - 1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pins": {"layer.3": "cpu"}}, "'layer.3' is no block"),
        ({"pins": {"layers.": "cpu"}}, "is no block"),
        ({"pins": {"layers.3.mlp": "cpu"}}, "is no block"),
        ({"pins": {"layers.27": "cpu"}}, "layers 0 to 26"),
        ({"pins": {"layers.5-3": "cpu"}}, "layers 0 to 26"),
        ({"pins": {"head": "cuda:2"}}, "no device cuda:2"),
        ({"pins": {"head": ["cpu", "gpu"]}}, "no device gpu"),
        ({"pins": {"head": []}}, "pins: 'head'"),
        ({"pins": {"head": 0}}, "pins: 'head'"),
        ({"pins": {3: "cpu"}}, "pins: 3 is no block"),
        ({"pins": "head"}, "pins"),
        ({"pins": {"attention": "cuda:0", "layers.1": "cpu"}}, "leaves layers.1.attention no device"),
        ({"target": "ktransformers", "pins": {"embedding": "cuda:0"}}, "leaves embedding no device"),
        ({"granularity": "atom"}, "granularity: 'atom'"),
        ({"granularity": "tensor"}, "granularity: 'tensor'"),
        ({"objective": "speed"}, "objective: 'speed'"),
        ({"time_limit": 0}, "time_limit: 0"),
        ({"time_limit": -1}, "time_limit: -1"),
        ({"time_limit": float("nan")}, "time_limit: nan"),
        ({"time_limit": float("inf")}, "time_limit: inf"),
        ({"time_limit": "soon"}, "time_limit: 'soon'"),
        ({"relative_gap": -0.1}, "relative_gap: -0.1"),
        ({"tie_tolerance": -0.1}, "tie_tolerance: -0.1"),
        ({"tie_tolerance": 1}, "tie_tolerance: 1"),
        ({"tie_tolerance": float("nan")}, "tie_tolerance: nan"),
        ({"workers": 0}, "workers: 0"),
        ({"workers": True}, "workers: True"),
        ({"seed": "lucky"}, "seed: 'lucky'"),
        ({"seed": 2**40}, "seed: 1099511627776"),
        ({"safety_margin": 1}, "safety_margin: 1"),
        ({"safety_margin": -0.1}, "safety_margin: -0.1"),
        ({"safety_margin": None}, "safety_margin: None"),
    ],
    ids=str,
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(MoeplanError) as refused:
        solve(MODEL, CARD, **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_layer_number_of_any_length_is_refused() -> None:
    with pytest.raises(MoeplanError, match="is no block"):
        solve(MODEL, CARD, pins={"layers." + "9" * 5000: "cpu"})


@pytest.mark.parametrize("target", ["vllm", "", None, ["torch"]])
def test_an_unknown_target_is_refused(target: Any) -> None:
    with pytest.raises(TargetError, match=r"target: .* is not known"):
        solve(MODEL, CARD, target=target)


@pytest.mark.parametrize("granularity", ["layer", "module"])
@pytest.mark.parametrize(("model", "homes"), [(MODEL, {"cuda:0", "cuda:1"}), ("mixtral-8x7b", {"cuda:0"})])
def test_what_ktransformers_cannot_do_is_not_planned(model: str, homes: set[str], granularity: Any) -> None:
    plan = solve(
        model, "2xH200,ram=256GB", target="ktransformers", granularity=granularity, pins={"layers.2": ["cuda:0"]}
    )
    assert plan.embedding == "cpu"
    assert {layer.attention for layer in plan.layers} <= homes
    assert all(layer.experts_device is not None for layer in plan.layers[1:])
    assert plan.target == "ktransformers"


def test_ktransformers_needs_a_card() -> None:
    cpu = load_hardware(CARD).cpu
    with pytest.raises(MoeplanError, match="ktransformers"):
        solve(MODEL, Hardware(name="no card", devices=[cpu]), target="ktransformers")


def test_without_cards_everything_is_on_the_cpu() -> None:
    plan = solve(MODEL, Hardware(name="no card", devices=[load_hardware(CARD).cpu]))
    assert plan.devices == {"cpu"}
    assert (plan.status, plan.gap) == ("optimal", 0)


def test_pins_that_contradict_the_granularity_are_infeasible() -> None:
    with pytest.raises(InfeasiblePlacement) as problem:
        solve(MODEL, CARD, granularity="layer", pins={"attention": "cuda:0", "experts": "cpu"})
    assert problem.value.proven
    assert problem.value.short_bytes == {}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("what", ["cpu", "link"])
def test_a_rate_without_its_giga_is_slow_but_solved(what: str, objective: Any) -> None:
    """`bandwidth_bytes_per_s: 25` for 25 GB/s: seconds that do not fit 64 bits of the finest tick."""
    hardware = load_hardware(CARD)
    if what == "cpu":
        devices = tuple(d.replace(bandwidth_bytes_per_s=25.0) if d.kind == "cpu" else d for d in hardware.devices)
        hardware = hardware.replace(devices=devices)
    else:
        hardware = hardware.replace(links=tuple(k.replace(bandwidth_bytes_per_s=25.0) for k in hardware.links))
    plan = solve(MODEL, hardware, objective=objective, time_limit=TIME_LIMIT, relative_gap=0.1)
    assert plan.bound_s is not None
    assert plan.bound_s <= seconds(plan)


# ---- a search that is cut short tells the truth ----


MODELS = ("solve_patterns", "solve_counts", "solve_scip_counts", "solve_busiest", "solve_slices", "solve_free_order")
"""Those that have a time limit of their own."""


def blind(monkeypatch: pytest.MonkeyPatch, *models: str) -> None:
    """As if these models found nothing in time, and nor did the tables of equal cards."""

    def nothing(*_: Any, floor: int = 0, **__: Any) -> Outcome:
        return Outcome("unknown", floor)

    def no_patterns(*_: Any, floor: int = 0) -> PatternOutcome:
        return PatternOutcome("unknown", floor)

    monkeypatch.setattr(PORTFOLIO.EqualCards, "suits", lambda _: False)
    for model in models:
        monkeypatch.setattr(PORTFOLIO, model, no_patterns if model == "solve_patterns" else nothing)


@pytest.mark.parametrize("with_columns", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(60_000, 60_006))
def test_without_a_bound_from_the_counts_nothing_false_is_claimed(
    seed: int, objective: Any, with_columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts find nothing in time, nor perhaps the columns: whatever is still proved must hold."""
    instance = random_instance(random.Random(seed), layers=(2, 3), gpus=(2, 2), loose=True)
    options = {"objective": objective, "granularity": "module"}
    blind(monkeypatch, "solve_patterns", "solve_counts", "solve_scip_counts", "solve_busiest")
    if not with_columns:
        monkeypatch.setattr(PORTFOLIO.ColumnSearch, "start", lambda *_: 0)
    plan, best = plan_of(instance, **options), brute_force(instance, options).best()
    assert best is not None
    assert plan.bound_s is not None
    assert plan.bound_s <= best[0] * (1 + 1e-6)
    if plan.status == "optimal":
        assert seconds(plan) == pytest.approx(best[0], rel=1e-6)


def test_nothing_found_in_time_is_not_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model finds anything, and no experts are found for any walk."""
    blind(monkeypatch, *MODELS)
    monkeypatch.setattr(PLANS, "fill", lambda *_, **__: None)
    monkeypatch.setattr(SOLVE, "hand_plans", lambda _: {})
    with pytest.raises(InfeasiblePlacement, match="time_limit") as problem:
        solve(MODEL, CARD)
    assert not problem.value.proven


@pytest.mark.parametrize("seed", range(61_000, 61_010))
def test_a_gap_that_is_allowed_is_kept(seed: int) -> None:
    instance, options = random_instance(random.Random(seed), layers=(2, 3), gpus=(1, 2)), options_of(seed)
    plan, best = plan_or_none(instance, relative_gap=0.2, **options), brute_force(instance, options).best()
    assert (plan is None) == (best is None)
    if plan is not None and best is not None:
        check_plan(plan, instance, options)
        assert plan.bound_s is not None
        assert plan.bound_s <= best[0] * (1 + 1e-6)
        assert seconds(plan) <= best[0] / 0.8 * (1 + 1e-6)


def test_counts_without_order_keep_their_memory() -> None:
    """Counts that fit always become a plan: no order changes what a device holds."""
    for seed in range(7, 30):
        instance = random_instance(random.Random(seed), layers=(6, 6), gpus=(3, 3))
        problem = problem_of(instance, options_of(seed))
        found = solve_counts(problem, Limits(TIME_LIMIT))
        if found.counts is not None:
            assert isinstance(found.counts, Counts)
            plan = arrange(found.counts, problem).placement(problem)
            assert judge(plan, costs_of(instance)).feasible


# ---- the story ----


def test_eight_cards_hold_deepseek_v2_and_no_card_overflows() -> None:
    plan = solve("deepseek-v2-measured", "8xL40-46GB", time_limit=TIME_LIMIT)
    assert (plan.status, plan.gap) == ("optimal", 0.0)
    assert plan.memory is not None
    assert {plan.memory[f"cuda:{i}"].usable_bytes for i in range(8)} == {41_400_000_000}
    assert all(held.used_bytes <= held.usable_bytes for held in plan.memory.values())
    assert "cpu" not in {device for layer in plan.layers for device in (layer.attention, layer.experts_device)}
    experts = [layer.experts_device for layer in plan.layers]
    assert max(experts.count(f"cuda:{i}") for i in range(8)) == 8  # 8 x 4.94 GB fit where 8 x 5.2 GB do not
    cards = [layer.attention for layer in plan.layers]
    assert sum(card != after for card, after in pairwise(cards)) == len(set(cards)) - 1


def test_seven_cards_need_the_cpu_for_some_experts() -> None:
    plan = solve("deepseek-v2-measured", "7xL40-46GB", time_limit=TIME_LIMIT)
    assert plan.status == "optimal"
    assert any(layer.experts_device == "cpu" for layer in plan.layers)
    assert plan.memory is not None
    assert all(held.used_bytes <= held.usable_bytes for held in plan.memory.values())


def test_one_card_and_little_ram_cannot_hold_it() -> None:
    with pytest.raises(InfeasiblePlacement) as problem:
        solve("deepseek-v2-measured", "1xL40-46GB,ram=8GB", time_limit=TIME_LIMIT)
    assert problem.value.proven
    assert sum(problem.value.short_bytes.values()) > 250 * 10**9
    assert [words.split()[-1] for words in problem.value.suggestions] == ["(L40)", "RAM", "GPU"]
    assert "does not fit" in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("granularity", ["layer", "module"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_story_in_every_granularity_and_objective(granularity: Any, objective: Any) -> None:
    options = {"granularity": granularity, "objective": objective, "relative_gap": 0.1}
    plan = solve("deepseek-v2-measured", "8xL40-46GB", time_limit=TIME_LIMIT, **options)
    assert plan.status in ("optimal", "feasible")
    assert plan.bound_s is not None
    assert plan.bound_s <= seconds(plan)
