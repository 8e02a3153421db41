"""The fewest GPUs, frontiers, the longest context, what a change is worth: against trying everything."""

from __future__ import annotations

import pandas as pd
import pytest

from profiles import InfeasiblePlacement, MoeplanError, Workload, load_hardware
from solver import evaluate, frontier, largest_context, sensitivity, smallest, solve, what_if
from solver.what_if import vary

MODEL, MACHINE = "qwen3-30b-a3b", "1xRTX4090,ram=96GB"


@pytest.fixture(scope="module")
def speeds() -> dict[int, float]:
    table = what_if(MODEL, MACHINE, gpus=range(1, 5), objective="decode", progress=False)
    return dict(zip(table["gpus"], table["tokens_per_s"], strict=True))


def test_smallest_is_what_a_table_says(speeds: dict[int, float]) -> None:
    for wanted in (1.0, speeds[1] * 1.2, speeds[2] * 1.1):
        fewest = min(number for number, speed in speeds.items() if speed >= wanted)
        row = smallest(MODEL, MACHINE, gpus=range(1, 5), at_least={"tokens_per_s": wanted})
        assert row["gpus"] == fewest
        assert row["tokens_per_s"] >= wanted


def test_smallest_without_a_wish_is_the_first_that_fits() -> None:
    # 61 GB of weights: 23 and 15 GB are too few, 46 and 15 enough.
    assert smallest(MODEL, "1xRTX4090,ram=16GB", gpus=range(1, 6))["gpus"] == 2
    row = smallest(MODEL, MACHINE, gpus=[3, 2], at_least={"gpu_headroom_bytes": 1}, objective="request")
    assert row["gpus"] == 2


def test_smallest_says_how_far_the_most_gets(speeds: dict[int, float]) -> None:
    with pytest.raises(MoeplanError, match=r"not even 4 GPUs are enough: they reach tokens_per_s [0-9.]+, not 1000;"):
        smallest(MODEL, MACHINE, gpus=range(1, 5), at_least={"tokens_per_s": 1000})
    with pytest.raises(InfeasiblePlacement, match="not even 1 GPUs are enough: qwen3-30b-a3b does not fit"):
        smallest(MODEL, "1xRTX4090,ram=16GB", gpus=[1])
    with pytest.raises(MoeplanError, match="at_least: 'speed' is not a column of numbers"):
        smallest(MODEL, MACHINE, at_least={"speed": 1})


def test_frontier_is_what_nothing_beats() -> None:
    table = pd.DataFrame(
        {
            "gpus": [4, 1, 2, 2, 3, 5],
            "gpu": ["a", "b", "a", "b", "a", "b"],
            "tokens_per_s": [9.0, 3.0, 5.0, 6.0, 6.0, 50.0],
            "prefill_s": [1.0, 9.0, 4.0, 5.0, 4.0, 0.1],
            "feasible": [True, True, True, True, True, False],
        }
    )
    assert frontier(table)["gpus"].tolist() == [1, 2, 4]
    assert frontier(table)["tokens_per_s"].tolist() == [3.0, 6.0, 9.0]
    assert frontier(table, y="prefill_s")["prefill_s"].tolist() == [9.0, 4.0, 1.0]
    by_cost = frontier(table, prices={"A": 100.0, "b": 1000.0})
    assert by_cost[["cost", "tokens_per_s"]].values.tolist() == [[200.0, 5.0], [300.0, 6.0], [400.0, 9.0]]
    with pytest.raises(MoeplanError, match="prices: there is none of 'b'"):
        frontier(table, prices={"a": 1.0})
    with pytest.raises(MoeplanError, match="y: 'speed' is not a column of numbers"):
        frontier(table, y="speed")
    with pytest.raises(MoeplanError, match="prices: the table has no axis gpu"):
        frontier(table.drop(columns="gpu"), prices={"a": 1.0, "b": 1.0})
    assert frontier(table.drop(columns="gpu"), prices={"a": 7.0})["cost"].tolist() == [7.0, 14.0, 28.0]


def test_the_largest_context_of_a_plan_is_exact() -> None:
    plan = solve(MODEL, "2xRTX4090,ram=96GB")
    most = largest_context(plan)
    request = plan.workload or Workload()
    assert evaluate(plan, workload=request.replace(context_tokens=most)).feasible
    assert not evaluate(plan, workload=request.replace(context_tokens=most + 1)).feasible


def test_the_largest_context_of_a_machine_is_exact() -> None:
    machine = "1xRTX4090,ram=48GB"
    most = largest_context(MODEL, machine)
    assert solve(MODEL, machine, Workload(context_tokens=most)).status
    with pytest.raises(InfeasiblePlacement) as problem:
        solve(MODEL, machine, Workload(context_tokens=most + 1))
    assert problem.value.proven
    with pytest.raises(InfeasiblePlacement):
        largest_context(MODEL, "1xRTX4090,ram=16GB")


def test_sensitivity_is_what_solving_again_says() -> None:
    plan = solve(MODEL, "2xRTX4090,ram=96GB")
    assert plan.objective_s is not None
    found = sensitivity(plan)
    assert found["saved_s"].is_monotonic_decreasing
    assert (found["saved_s"] >= -1e-12).all()
    rows = {(row["what"], row["where"]): row for row in found.to_dict("records")}
    assert rows["memory", "cuda:0"]["saved_s"] == rows["memory", "cuda:1"]["saved_s"]
    assert (rows["memory", "cuda:0"]["amount"], rows["memory", "cuda:0"]["unit"]) == (1, "GB")
    base = load_hardware("2xRTX4090,ram=96GB")
    first = base.gpus[0]
    larger = base.replace(
        devices=(first.replace(memory_bytes=first.memory_bytes + 10**9), *base.devices[1:]), name="larger"
    )
    faster = vary(base, ram_bandwidth=base.cpu.bandwidth_bytes_per_s * 1.1)
    for key, machine in ((("memory", "cuda:0"), larger), (("memory bandwidth", "cpu"), faster)):
        alone = solve(MODEL, machine, tie_tolerance=0.0)
        assert alone.objective_s is not None
        assert rows[key]["objective_s"] == pytest.approx(alone.objective_s, rel=2e-3)
    assert rows["memory bandwidth", "cpu"]["saved"] > 0
