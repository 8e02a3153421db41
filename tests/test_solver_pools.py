"""Memory that several devices share: bytes count once against it, and no plan is better than the best that holds it."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from oracle import OBJECTIVES
from strategies import Instance, random_instance
from test_solver_explain import PLENTY, Trial, changed, explained, tiny
from test_solver_split import best_of_all, few_experts
from test_solver_targets import Case
from tiny_problems import every_plan, random_problem
from typer.testing import CliRunner

from cost_models import CostModel
from moeplan.cli import app
from profiles import (
    Device,
    Hardware,
    HardwareError,
    InfeasiblePlacement,
    LayerPlacement,
    Link,
    MoeplanError,
    Placement,
    Pool,
    load_hardware,
    load_profile,
)
from solver import compare, evaluate, solve, what_if
from solver.cp_sat.counts import solve_counts
from solver.cp_sat.free_order import solve_free_order
from solver.cp_sat.run import Limits
from solver.cp_sat.slices import solve_slices
from solver.evaluate import judge
from solver.feasibility.fits import Budget, least_missing
from solver.problem import Problem
from solver.rules import Allowed
from solver.shared import Shared
from solver.what_if.sensitivity import changes_of, sensitivity

GB = 10**9
MiB = 2**20
PATIENT: dict[str, Any] = {"time_limit": 60.0, "tie_tolerance": 0.0}
"""No instance here needs more than a few seconds; of equal plans the fastest."""


# ---- machines ----


def unified(
    memory: int = 128 * GB, gpu: int | None = None, *, name: str = "cuda:0", bandwidth: float = 273e9, **pool: Any
) -> Hardware:
    """One GPU and the CPU that share one memory, of which the GPU may have `gpu` bytes."""
    card = Device(
        name=name, kind="gpu", memory_bytes=gpu or memory, pool="unified", context_bytes=750 * MiB,
        bandwidth_bytes_per_s=bandwidth, flops_per_s={"bf16": 60e12},
    )  # fmt: skip
    cpu = Device(
        name="cpu", kind="cpu", memory_bytes=memory, pool="unified", bandwidth_bytes_per_s=0.6 * bandwidth,
        flops_per_s={"bf16": 2e12}, cores=20,
    )  # fmt: skip
    link = Link(between=("cpu", name), bandwidth_bytes_per_s=0.5 * bandwidth, latency_s=5e-6)
    pools = [Pool(name="unified", memory_bytes=memory, **pool)]
    return Hardware(name=f"unified {memory / GB:g} GB", devices=[card, cpu], links=[link], pools=pools)


def pooled(rng: random.Random, instance: Instance) -> Instance:
    """The same with the CPU and one GPU in a pool, all GPUs in it, or all but the CPU; with contexts now and then. The
    pool is smaller than its devices together, mostly by so much that it matters."""
    machine = instance.hardware
    gpus = [gpu.name for gpu in machine.gpus]
    options = [{*gpus[:1], "cpu"}, {*gpus, "cpu"}, {*gpus[-1:], "cpu"}]
    members = rng.choice(options + ([set(gpus)] if len(gpus) > 1 else []))
    roomy, devices = rng.choice((1.0, 1.5, 2.0)), []
    for device in machine.devices:
        memory = round(roomy * device.memory_bytes)
        more: dict[str, Any] = {"memory_bytes": memory, "pool": "both" if device.name in members else None}
        if device.kind == "gpu":
            more["context_bytes"] = rng.choice((None, None, memory // 20, memory // 7))
        if rng.random() < 0.1:
            more["budget_bytes"] = round(0.8 * memory)
        devices.append(device.replace(**more))
    sizes = [device.memory_bytes for device in devices if device.pool]
    size = rng.uniform(max(sizes), max(max(sizes), rng.choice((0.5, 0.7, 1.0)) * sum(sizes)))
    reserved = rng.choice((0, 0, round(size * 0.03)))
    margin = rng.choice((None, None, 0.0, 0.02))
    pool = Pool(name="both", memory_bytes=round(size), reserved_bytes=reserved, safety_margin=margin)
    return replace(instance, hardware=machine.replace(devices=tuple(devices), pools=(pool,)))


def usable_of_pool(machine: Hardware, name: str, margin: float = 0.10) -> int:
    """From the words of docs/model.md."""
    pool = next(pool for pool in machine.pools if pool.name == name)
    devices = [device for device in machine.devices if device.pool == name]
    default = {"cpu": 0.05, "gpu": margin}
    own = {d.name: default[d.kind] if d.safety_margin is None else d.safety_margin for d in devices}
    share = pool.safety_margin if pool.safety_margin is not None else max(own.values())
    left = math.floor(pool.memory_bytes * (1 - Fraction(str(share))))
    covered = 0
    for device in devices:
        if device.budget_bytes is None:  # a budget pays for the context itself
            set_aside = device.memory_bytes - math.floor(device.memory_bytes * (1 - Fraction(str(own[device.name]))))
            covered += min(device.context_bytes or 0, set_aside)
    uncovered = max(0, covered - (pool.memory_bytes - left))
    return max(0, left - pool.reserved_bytes - sum(device.reserved_bytes for device in devices) - uncovered)


# ---- the machine's own rules ----


def test_a_pool_is_read_and_written() -> None:
    machine = unified(gpu=96 * GB, safety_margin=0.08, reserved_bytes=2 * GB)
    assert Hardware.from_dict(machine.to_dict()) == machine
    assert load_hardware(machine.to_dict()) == machine
    assert [device.name for device in machine.in_pool("unified")] == ["cuda:0", "cpu"]
    assert "pools" not in load_hardware("1xRTX4090").to_dict()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pools": []}, "cuda:0: pool unified is not a pool here; add pools: [{name: unified, memory_bytes: "),
        ({"pools": [{"name": "unified", "memory_bytes": GB}]}, "is more than the 1000000000 of pool unified; lower it"),
        ({"pools": [{"name": "cpu", "memory_bytes": GB}]}, "cpu is a device's name; call the pool e.g. unified"),
        ({"pools": [{"name": "unified", "memory_bytes": 128 * GB}] * 2}, "unified is given twice"),
        (
            {"pools": [{"name": "unified", "memory_bytes": 128 * GB}, {"name": "other", "memory_bytes": GB}]},
            "no device is in other; add pool: other to those that share it",
        ),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused_in_one_line(change: dict[str, Any], says: str) -> None:
    with pytest.raises(HardwareError) as problem:
        Hardware.from_dict({**unified().to_dict(), **change}, "machine.yaml")
    assert str(problem.value).startswith("machine.yaml: ")
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)


def test_the_margin_of_a_pool_is_the_largest_of_its_devices_unless_given() -> None:
    profile = load_profile("qwen3-30b-a3b")

    def usable(machine: Hardware, margin: float = 0.10) -> int:
        found = CostModel(profile, machine, safety_margin=margin).pool_usable_bytes("unified")
        assert found == usable_of_pool(machine, "unified", margin)
        return found

    assert usable(unified(100 * GB)) == 90 * GB
    assert usable(unified(100 * GB), margin=0.02) == 95 * GB, "the CPU's"
    assert usable(unified(100 * GB, safety_margin=0.2, reserved_bytes=3 * GB)) == 77 * GB
    devices = tuple(d.replace(reserved_bytes=GB) for d in unified(100 * GB).devices)
    assert usable(unified(100 * GB).replace(devices=devices)) == 88 * GB
    assert usable(unified(100 * GB, safety_margin=0.0)) == 100 * GB - 750 * MiB, "the GPU's context has to be somewhere"


def test_what_the_judge_says_of_a_pool_is_the_sum_of_its_devices() -> None:
    profile, machine = load_profile("qwen3-30b-a3b"), unified(64 * GB)
    layers = [LayerPlacement(attention="cuda:0", experts={"cpu" if i % 2 else "cuda:0": "all"}) for i in range(48)]
    found = evaluate(Placement(embedding="cpu", head="cuda:0", layers=layers), profile, machine)
    both = sum(held.used_bytes for held in found.memory.values())
    assert found.pools["unified"].used_bytes == both
    assert not found.feasible
    assert found.short_bytes == {"unified": both - math.floor(0.9 * 64 * GB)}, "each device by itself has room"


# ---- everything tried out ----


@dataclass(frozen=True)
class Tried:
    """The least objective of all placements that fit, and of those that would if nothing were shared."""

    best: float
    apart: float

    @staticmethod
    def of(case: Case, granularity: str = "module") -> Tried:
        costs, best, apart = case.costs, math.inf, math.inf
        for placement in case.placements(Allowed(costs, case.target, None)):
            if granularity == "module" or all(x.experts_device in (None, x.attention) for x in placement.layers):
                found = judge(placement, costs, case.objective)
                if not found.short_bytes.keys() - found.pools.keys():
                    apart = min(apart, found.objective_s)
                    best = min(best, found.objective_s) if found.feasible else best
        return Tried(best, apart)


def case_of(seed: int, target: str) -> Case:
    rng = random.Random(seed)
    layers, gpus = rng.choice((((2, 3), (1, 1)), ((3, 4), (1, 1)), ((2, 2), (2, 2))))
    instance = pooled(rng, random_instance(rng, layers=layers, gpus=gpus))
    return Case(instance, target, OBJECTIVES[seed % 4])


def solved(instance: Instance, **options: Any) -> Placement | None:
    """The plan, which holds the pools; None where it is proved that nothing fits."""
    try:
        plan = solve(instance.profile, instance.hardware, instance.workload, **options)
    except InfeasiblePlacement as problem:
        if not problem.proven:
            raise
        return None
    costs = CostModel(instance.profile, instance.hardware, instance.workload, target=options.get("target", "torch"))
    held = judge(plan, costs).memory
    assert plan.pools is not None
    for pool in instance.hardware.pools:
        members = [device.name for device in instance.hardware.devices if device.pool == pool.name]
        usable = usable_of_pool(instance.hardware, pool.name)
        assert plan.pools[pool.name].used_bytes == sum(held[name].used_bytes for name in members) <= usable
        assert plan.pools[pool.name].usable_bytes == usable
    return plan


@pytest.mark.parametrize("target", ["torch", "llama.cpp", "accelerate"])
@pytest.mark.parametrize("granularity", ["module", "layer"])
def test_no_plan_that_holds_the_pool_is_better(target: str, granularity: str) -> None:
    """Every placement of 84 tiny instances in all: a plan is the best of those that fit, and there is none only where
    none fits."""
    infeasible, slower, fine = 0, 0, 0
    for seed in range(90_000, 90_014):
        case = case_of(seed, target)
        tried = Tried.of(case, "layer" if target == "accelerate" else granularity)
        plan = solved(case.instance, target=target, granularity=granularity, objective=case.objective, **PATIENT)
        assert (plan is None) == (tried.best == math.inf)
        if plan is None:
            infeasible += tried.apart < math.inf
            continue
        assert plan.status == "optimal"
        assert plan.objective_s == pytest.approx(tried.best, rel=1e-6)
        slower += tried.best > tried.apart * 1.001
        fine += tried.best == tried.apart
    assert infeasible + slower, "the pool decides"
    assert fine > 3


@pytest.mark.parametrize("objective", ["request", "throughput"])
def test_experts_may_be_split_within_a_pool(objective: Any) -> None:
    """12 instances with every division of every layer's experts: the plan fits, the bound is no more than the best of
    all, and nothing is found only where nothing fits."""
    ratios = []
    for seed in range(92_000, 92_006):
        rng = random.Random(seed)
        instance = pooled(rng, few_experts(random_instance(rng, layers=(2, 2), gpus=(1, 1)), 4))
        best = best_of_all(instance, objective)
        plan = solved(instance, granularity="expert", objective=objective, time_limit=60.0)
        assert (plan is None) == (best is None), seed
        if plan is not None and best is not None:
            assert plan.bound_s is not None
            assert plan.objective_s is not None
            assert plan.bound_s <= best * (1 + 1e-9)
            assert best * (1 - 1e-9) <= plan.objective_s
            assert plan.status == "feasible" or plan.objective_s <= best * (1 + 1e-6)
            ratios.append(plan.objective_s / best)
    assert 1 < len(ratios) < 6
    assert max(ratios) < 1.25


def shared_problem(rng: random.Random) -> Problem:
    problem = random_problem(rng)
    n = len(problem.devices)
    members = tuple(sorted(rng.sample(range(n), rng.randint(min(2, n), n))))
    most = sum(problem.usable[d] for d in members)
    contexts = tuple(rng.choice((0, 0, 1, 3)) for _ in members)
    return replace(problem, shared=(Shared("both", members, round(most * rng.uniform(0.3, 1.0)), contexts),))


def test_models_in_whole_numbers_count_what_is_shared() -> None:
    """Over every plan of 80 tiny problems: the exact model finds the best, the others a bound."""
    limits, exact, matters = Limits(20.0), 0, 0
    for seed in range(80):
        problem = shared_problem(random.Random(seed))
        plans = every_plan(problem)
        if problem.one_run:
            continue  # which the free-order model does not know
        free = solve_free_order(problem, limits, floor=0, hint=None)
        counts = solve_counts(problem, limits)
        slices = solve_slices(problem, limits, floor=0, hint=None)
        if plans.least is None:
            assert free.status == "infeasible"
            assert slices.assignment is None
            continue
        assert free.status == "optimal"
        assert free.bound == plans.least
        assert free.assignment is not None
        assert free.assignment.ticks(problem) == plans.least
        assert counts.bound <= plans.least
        assert counts.status != "infeasible"
        if slices.assignment is not None:
            assert slices.assignment.ticks(problem) >= plans.least
        exact += counts.bound == plans.least
        loose = every_plan(replace(problem, shared=())).least
        matters += loose is not None and loose < plans.least
    assert exact > 25
    assert matters > 3


# ---- when nothing fits ----


def pooled_trial(seed: int, **options: Any) -> Trial:
    trial = tiny(seed, **options)
    return changed(trial, hardware=pooled(random.Random(seed), trial.instance).hardware)


@pytest.mark.usefixtures("thorough")
@pytest.mark.parametrize(
    ("target", "granularity"),
    [("torch", "module"), ("torch", "layer"), ("llama.cpp", "module"), ("accelerate", "layer")],
)
def test_what_is_missing_is_the_least_over_devices_and_pools(granularity: str, target: str) -> None:
    shorts: set[str] = set()
    answers = []
    for seed in range(600, 610):
        trial = pooled_trial(seed, granularity=granularity, target=target)
        least = trial.fewest_missing()
        assert least is not None
        assert trial.fits() is (least == 0)
        answers.append(least == 0)
        if least:
            missing = least_missing(trial.demand, trial.room, Budget(PLENTY))
            assert missing is not None
            assert missing.least == least == sum(missing.bytes)
            shorts |= explained(trial).short_bytes.keys()
    assert 1 < sum(answers) < 10
    assert "both" in shorts


@pytest.fixture
def thorough(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fits.ONE_ANSWER", "fits.ONE_ATTEMPT", "explain.WORK"):
        monkeypatch.setattr(f"solver.feasibility.{name}", PLENTY)
    monkeypatch.setattr("solver.feasibility.fits.LONG_RUNS", 1)


def test_a_unified_machine_says_what_its_memory_lacks_and_what_would_do() -> None:
    profile, machine = load_profile("qwen3-235b-a22b", "q4_k_m"), unified(128 * GB)
    with pytest.raises(InfeasiblePlacement) as problem:
        solve(profile, machine)
    assert problem.value.proven
    assert list(problem.value.short_bytes) == ["unified"]
    short = problem.value.short_bytes["unified"]
    assert f"({short} bytes) at best on unified" in str(problem.value)
    added = next(said for said in problem.value.suggestions if said.startswith("add"))
    more = int(added.removeprefix("add ").removesuffix(" GB of shared memory"))
    assert solve(profile, unified((128 + more) * GB), relative_gap=0.5).pools is not None
    with pytest.raises(InfeasiblePlacement):
        solve(profile, unified((128 + more - 1) * GB))
    assert "use quant q3_k_m" in problem.value.suggestions
    assert solve(load_profile("qwen3-235b-a22b", "q3_k_m"), machine).status == "optimal"


def test_short_bytes_are_just_enough() -> None:
    """With so many bytes more in the pool it fits, and with one less it does not."""
    profile = load_profile("qwen3-235b-a22b", "q4_k_m")
    pool: dict[str, Any] = {"safety_margin": 0.0, "reserved_bytes": 0}
    machine = unified(140 * GB, gpu=90 * GB, **pool)
    with pytest.raises(InfeasiblePlacement) as problem:
        solve(profile, machine)
    short = problem.value.short_bytes["unified"]
    exactly = machine.pools[0].replace(memory_bytes=140 * GB + short)
    assert solve(profile, machine.replace(pools=(exactly,)), relative_gap=0.5).pools is not None
    with pytest.raises(InfeasiblePlacement) as once_more:
        solve(profile, machine.replace(pools=(exactly.replace(memory_bytes=140 * GB + short - 1),)))
    assert once_more.value.short_bytes == {"unified": 1}


# ---- machines that there are ----


@pytest.mark.parametrize("target", ["torch", "llama.cpp"])
@pytest.mark.parametrize(
    ("model", "quant", "machine"),
    [
        ("qwen3-235b-a22b", "q3_k_m", "GB10"),
        ("gpt-oss-120b", "q8_0", "Ryzen AI Max+ 395"),
        ("qwen3-235b-a22b", "q3_k_m", "Ryzen AI Max+ 395"),
        ("deepseek-v3", "q4_k_m", "M3-Ultra-512GB"),
    ],
)
def test_large_models_on_unified_machines_are_proved(model: str, quant: str, machine: str, target: str) -> None:
    plan = solve(load_profile(model, quant), machine, target=target, tie_tolerance=0.0)
    assert plan.status == "optimal"
    assert plan.pools is not None
    assert plan.memory is not None
    assert plan.pools["unified"].used_bytes == sum(held.used_bytes for held in plan.memory.values())
    assert plan.pools["unified"].free_bytes >= 0
    assert Placement.from_dict(plan.to_dict()) == plan


def test_the_same_question_has_the_same_plan() -> None:
    profile, machine = load_profile("qwen3-235b-a22b", "q3_k_m"), unified(128 * GB, 96 * GB)
    first, second = (solve(profile, machine) for _ in range(2))
    assert first.layers == second.layers


def test_rules_beside_a_plan_are_judged_by_the_pool_too() -> None:
    profile, machine = load_profile("qwen3-235b-a22b", "q3_k_m"), unified(128 * GB, 96 * GB)
    found = compare(profile, machine)
    for row in found.rows:
        if row.placement is not None:
            judged = evaluate(row.placement, profile, machine)
            assert row.fits == judged.feasible
            assert row.short_bytes == judged.short_bytes
            if row.fits and row.ratio is not None:
                assert row.ratio >= 1 - 1e-9


def test_deviations_are_kept_free_in_the_pool() -> None:
    profile, machine = load_profile("qwen3-235b-a22b", "q3_k_m"), unified(128 * GB)
    plan = solve(profile, machine, robust=0.2, robust_blocks=1)
    assert plan.pools is not None
    largest = max(layer.experts.weight_bytes.gpu for layer in profile.layers if layer.experts)
    assert plan.pools["unified"].free_bytes >= math.ceil(0.2 * largest)
    with pytest.raises(InfeasiblePlacement, match="unified"):
        solve(profile, machine, robust=0.2, robust_blocks=40)


def test_tables_and_documents_show_what_devices_share(tmp_path: Path) -> None:
    path = tmp_path / "machine.yaml"
    unified(24 * GB, 12 * GB, name="xpu:0").save(path)
    arguments = ["solve", "qwen3-30b-a3b", str(path), "--quant", "q4_k_m", "--target", "llama.cpp"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    assert re.search(r"unified +what devices share, in all +\d+\.\d\d GB +21\.60 GB", shown.stdout)
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert document["pools"]["unified"]["usable_bytes"] == 21_600_000_000
    assert re.search(r"unified +xpu:0, cpu +24\.00 GB", CliRunner().invoke(app, ["hardware", str(path)]).stdout)
    small = tmp_path / "small.yaml"
    unified(18 * GB, 12 * GB, name="xpu:0").save(small)
    short = CliRunner().invoke(app, [*arguments[:2], str(small), *arguments[3:], "--json"])
    assert short.exit_code == 3
    assert list(json.loads(short.stdout)["short"]) == ["unified"]
    command = tmp_path / "command.txt"
    command.write_text("llama-server -m x.gguf -fit off -ngl 99 -ot 'blk\\.([0-9]|1.)\\.ffn_.*_exps=CPU' -c 640")
    model = ["--model", "qwen3-30b-a3b", "--quant", "q4_k_m", "--hardware", str(path), "--time-limit", "0", "--json"]
    checked = json.loads(CliRunner().invoke(app, ["check", str(command), *model]).stdout)
    assert set(checked["memory"]) == {"xpu:0", "cpu"}, "the command's GPU is the machine's, by its number"
    assert checked["pools"]["unified"]["used_bytes"] > 18 * GB


# ---- what if ----


def test_a_grid_over_contexts_holds_the_pool() -> None:
    profile, machine = load_profile("qwen3-235b-a22b", "q3_k_m"), unified(128 * GB)
    table = what_if(profile, machine, context=[640, 4096, 8192, 65536], progress=False)
    assert table["feasible"].tolist()[0] is True
    assert table["feasible"].tolist()[-1] is False
    assert "unified" in table["why"].tolist()[-1]
    for row in table.to_dict("records"):
        if row["feasible"]:
            assert row["status"] == "optimal"
            assert row["plan"].pools["unified"].free_bytes >= 0


def test_there_is_no_second_gpu_in_the_same_memory() -> None:
    with pytest.raises(MoeplanError, match="cuda:0 of unified 128 GB shares its memory"):
        what_if(load_profile("qwen3-30b-a3b"), unified(), gpus=[1, 2], progress=False)
    with pytest.raises(MoeplanError, match=r"shares 128\.00 GB with others"):
        what_if(load_profile("qwen3-30b-a3b"), unified(), memory="200 GB", progress=False)
    table = what_if(load_profile("qwen3-30b-a3b"), unified(), gpus=[0, 1], progress=False)
    assert table["feasible"].tolist() == [True, True]


def test_a_gigabyte_more_is_one_of_the_pool() -> None:
    machine = unified(128 * GB, 96 * GB)
    more = [change for change in changes_of(machine) if change.what == "memory"]
    assert [change.where for change in more] == ["unified"]
    assert more[0].machine.pools[0].memory_bytes == 129 * GB
    assert {device.memory_bytes for device in more[0].machine.devices} == {97 * GB, 129 * GB}
    profile = load_profile("qwen3-235b-a22b", "q3_k_m")
    worth = sensitivity(solve(profile, machine), profile, machine)
    assert set(worth["where"]) == {"unified", "cpu", "GPUs", "GPU to CPU"}
