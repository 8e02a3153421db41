"""Tables of scenarios: every row as if solved alone, monotone by construction, and bad values said in one line."""

from __future__ import annotations

import random
from typing import Any

import pandas as pd
import pytest
from strategies import random_profile

from profiles import Hardware, InfeasiblePlacement, MoeplanError, Workload, load_hardware, load_profile
from solver import evaluate, solve, what_if
from solver.what_if import vary
from solver.what_if.rows import SHOWN

SMALL, MACHINE = "qwen3-30b-a3b", "1xRTX4090,ram=96GB"
GAP = 1e-3
TIES = 1e-3
"""By how much `solve` may return a plan with more room instead of the best."""


def quiet(*args: Any, **options: Any) -> pd.DataFrame:
    return what_if(*args, progress=False, **options)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return quiet(SMALL, MACHINE, gpus=[1, 2, 3], context=[4096, 65536], margin=[0.05])


def test_one_row_a_scenario_in_the_grids_order(table: pd.DataFrame) -> None:
    assert list(table.columns) == ["gpus", "context", "margin", *SHOWN]
    asked = [(g, c, m) for g in (1, 2, 3) for c in (4096, 65536) for m in (0.05,)]
    assert list(table[["gpus", "context", "margin"]].itertuples(index=False, name=None)) == asked


def test_every_row_is_what_solve_finds_alone(table: pd.DataFrame) -> None:
    for row in table.to_dict("records"):
        machine = vary(load_hardware(MACHINE), gpus=row["gpus"])
        request = Workload(context_tokens=row["context"])
        alone = solve(SMALL, machine, request, safety_margin=row["margin"])
        assert row["feasible"]
        assert alone.objective_s is not None
        assert alone.bound_s is not None
        assert row["bound_s"] <= alone.objective_s * (1 + 1e-9)
        assert row["objective_s"] >= alone.bound_s * (1 - 1e-9)
        assert row["objective_s"] <= alone.objective_s * (1 + GAP + 1e-9)
        assert alone.objective_s <= row["objective_s"] * (1 + (alone.gap or 0) + TIES)


def test_the_rows_figures_are_the_evaluators(table: pd.DataFrame) -> None:
    for row in table.to_dict("records"):
        plan = row["plan"]
        told = evaluate(
            plan, SMALL, vary(load_hardware(MACHINE), gpus=row["gpus"]), Workload(context_tokens=row["context"]),
            safety_margin=row["margin"],
        )  # fmt: skip
        gpus = [held for device, held in told.memory.items() if device != "cpu"]
        assert told.feasible
        assert told.objective_s == pytest.approx(row["objective_s"], rel=1e-12)
        assert row["tokens_per_s"] == pytest.approx(1 / told.prediction.decode_step_s, rel=1e-12)
        assert row["prefill_s"] == pytest.approx(told.prediction.prefill_s, rel=1e-12)
        assert row["gpu_used_bytes"] == sum(held.used_bytes for held in gpus)
        assert row["gpu_usable_bytes"] == sum(held.usable_bytes for held in gpus)
        assert row["gpu_headroom_bytes"] == min(held.usable_bytes - held.used_bytes for held in gpus)
        assert row["cpu_used_bytes"] == told.memory["cpu"].used_bytes
        on_cpu = sum("cpu" in layer.experts for layer in plan.layers)
        assert row["experts_on_cpu"] == pytest.approx(on_cpu / len(plan.layers))
        assert plan.status == row["status"]
        assert plan.gap == row["gap"] <= GAP


def test_what_binds_is_said(table: pd.DataFrame) -> None:
    fits = table["experts_on_cpu"] == 0
    assert all(said.startswith("GPU launches") for said in table["binds"][fits])
    assert all(said.startswith("GPU memory; ") for said in table["binds"][~fits])


ROOMIER = {"gpus": 1, "memory": 1, "context": -1, "margin": -1}
"""Axes along which a scenario has more room, and in which direction."""


@pytest.mark.parametrize("seed", range(8))
def test_no_table_says_that_more_is_slower(seed: int) -> None:
    """On random models and machines, with random values on random axes: whatever has no fewer GPUs, no less memory, no
    more context and no more margin is predicted no slower, and fits where the other does."""
    rng = random.Random(seed)
    profile = random_profile(rng, rng.randint(2, 6))
    whole = sum(max(block.weight_bytes.gpu, block.weight_bytes.cpu) for block in profile.blocks)
    n_gpus = rng.randint(1, 2)
    machine = equal_cards(rng, n_gpus, whole)
    axes = {
        "gpus": [1, 2, 3],
        "memory": [round(whole * share) for share in sorted(rng.uniform(0.1, 0.7) for _ in range(2))],
        "context": [4096, 40_000],
        "margin": [0.02, 0.3],
    }
    given = {name: axes[name] for name in rng.sample(sorted(axes), 2)}
    objective = rng.choice(("request", "decode", "prefill", "throughput"))
    target = rng.choice(("torch", "torch", "llama.cpp", "accelerate"))
    table = quiet(
        profile, machine, **given, batch=rng.choice((1, 3)), objective=objective, target=target, granularity="module",
        time_limit=0.2, workload=Workload(prompt_tokens=64, generated_tokens=8),
    )  # fmt: skip
    assert not (table["status"] == "error").any(), table["why"].tolist()
    rows = table.to_dict("records")
    for one in rows:
        for other in rows:
            looser = all(one[axis] * ROOMIER[axis] >= other[axis] * ROOMIER[axis] for axis in given)
            if one is not other and looser and other["feasible"]:
                assert one["feasible"]
                assert one["objective_s"] <= other["objective_s"] * (1 + 1e-12)
                assert one["bound_s"] <= other["objective_s"] * (1 + 1e-12)


def equal_cards(rng: random.Random, n_gpus: int, whole: int) -> Hardware:
    card = {
        "kind": "gpu", "memory_bytes": round(whole * rng.uniform(0.1, 0.8)), "bandwidth_bytes_per_s": 9e11,
        "flops_per_s": {"bf16": 1e14},
    }  # fmt: skip
    cpu = {
        "name": "cpu", "kind": "cpu", "memory_bytes": round(whole * rng.uniform(0.5, 2)),
        "bandwidth_bytes_per_s": 1e11, "flops_per_s": {"bf16": 2e12},
    }  # fmt: skip
    links = [{"between": ("cpu", f"cuda:{i}"), "bandwidth_bytes_per_s": 2e10, "latency_s": 1e-5} for i in range(n_gpus)]
    return Hardware(
        name="equal cards", devices=[*({**card, "name": f"cuda:{i}"} for i in range(n_gpus)), cpu], links=links
    )


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_bounds_hold(seed: int) -> None:
    """Each scenario solved alone, without any neighbour: no plan of it is below the bound that the table states."""
    rng = random.Random(100 + seed)
    profile = random_profile(rng, rng.randint(2, 5))
    whole = sum(max(block.weight_bytes.gpu, block.weight_bytes.cpu) for block in profile.blocks)
    machine, request = equal_cards(rng, 2, whole), Workload(prompt_tokens=64, generated_tokens=8)
    target = rng.choice(("torch", "llama.cpp", "accelerate"))
    table = quiet(profile, machine, gpus=[1, 2, 3], margin=[0.05, 0.3][seed % 2 :], target=target, workload=request)
    for row in table.to_dict("records"):
        try:
            alone = solve(
                profile, vary(machine, gpus=row["gpus"]), request, safety_margin=row["margin"], target=target,
                tie_tolerance=0.0,
            )  # fmt: skip
        except InfeasiblePlacement:
            assert (row["status"], row["feasible"]) == ("infeasible", False)
            continue
        assert alone.objective_s is not None
        assert row["feasible"]
        assert row["bound_s"] <= alone.objective_s * (1 + 1e-6)
        assert row["objective_s"] <= alone.objective_s * (1 + GAP + 1e-9)


def test_what_does_not_fit_says_what_is_short() -> None:
    table = quiet(SMALL, "1xRTX4090,ram=16GB", gpus=[1, 4])
    first, last = table.to_dict("records")
    assert (first["feasible"], first["status"]) == (False, "infeasible")
    assert "does not fit 1xRTX4090,ram=16GB: short of" in first["why"]
    assert "bytes" in first["why"]
    assert first["plan"] is None
    assert last["feasible"]


def test_a_request_that_its_context_cannot_hold_is_a_row_of_its_own() -> None:
    table = quiet(SMALL, "3xRTX4090", prompt=[512, 8192], context=[4096, 16384])
    assert table[["context", "prompt"]].values.tolist() == [[4096, 512], [4096, 8192], [16384, 512], [16384, 8192]]
    assert table["feasible"].tolist() == [True, False, True, True]
    assert table["status"][1] == "infeasible"
    assert "context_tokens: 4096 cannot hold" in table["why"][1]


def test_quant_and_gpu_are_axes() -> None:
    table = quiet(SMALL, "2xRTX4090", gpu=["L40-46GB", "RTX4090"], quant=["bf16", "q4_k_m"])
    plans = table["plan"].tolist()
    assert [plan.quant for plan in plans] == ["bf16", "q4_k_m"] * 2
    assert [len(plan.memory) for plan in plans] == [3] * 4
    assert plans[0].hardware == "2xL40-46GB"
    assert table["feasible"].all()


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"gpus": []}, "gpus: has no values; give at least one, or leave it out"),
        ({"gpus": [1, 65]}, "gpus: 65: is not a whole number from 0 to 64"),
        ({"gpus": [1, 1]}, "gpus: 1 is given twice; keep one"),
        ({"gpus": True}, "gpus: True: is not a whole number"),
        ({"margin": [0.1, 1.0]}, "margin: 1.0: is not a share"),
        ({"memory": "48 apples"}, "memory: '48 apples': '48 apples' is not a quantity"),
        ({"link": "pcie9"}, "link: 'pcie9': 'pcie9' is not a quantity"),
        ({"ram_bandwidth": 3}, "ram_bandwidth: 3: is not between 1 MB/s and 100 TB/s"),
        ({"context": 100}, "context_tokens: 100 cannot hold prompt_tokens + generated_tokens"),
        ({"gpu": "RTX4091"}, "did you mean"),
        ({"gpu": "2xRTX4090"}, "gpu: '2xRTX4090' is not one kind of GPU"),
        ({"target": "vllm"}, "vllm"),
        ({"granularity": "tensor"}, "granularity: 'tensor': is not known; use layer, module, expert"),
        ({"quant": "q9"}, "q9"),
        ({"objective": "fun"}, "objective: 'fun' is not known"),
        ({"time_limit": 0}, "time_limit: 0 is out of range"),
        ({"relative_gap": 1}, "relative_gap: 1 is out of range"),
        ({"seed": -1}, "seed: -1 is not a seed"),
    ],
)
def test_bad_values_are_said_in_one_line(axes: dict[str, Any], said: str) -> None:
    with pytest.raises(MoeplanError) as problem:
        quiet(SMALL, MACHINE, **axes)
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)


def test_quant_needs_a_model_by_name() -> None:
    with pytest.raises(MoeplanError, match="quant: a profile has its bytes"):
        quiet(load_profile(SMALL), MACHINE, quant="q4_k_m")


def test_memory_and_an_absolute_budget_contradict() -> None:
    with pytest.raises(MoeplanError, match="memory: cuda:0 of 1xRTX4090,budget=20GB has an absolute budget"):
        quiet(SMALL, "1xRTX4090,budget=20GB", memory="48 GB")
