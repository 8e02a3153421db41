"""The solver's rivals solve the same problem: same optimum, same memory rule; the suite is what it says it is."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from strategies import Instance as RandomInstance
from strategies import random_instance, random_placement

from cost_models import CostModel
from profiles import InfeasiblePlacement
from solver import solve
from solver.assignment import Assignment
from solver.evaluate import judge
from solver.problem import Problem, build_problem
from solver.rules import Allowed

# After everything else: the scripts there must not hide a package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import solver_benchmark
from instances import CLASSES, SMALL, STORY, SUITE, cluster, synthetic
from rivals import Run, fits, naive, scip_counts
from solver_measure import ROWS, PeerRow, RivalRow, Row, StoryRow, SuiteRow
from solver_report import SECTIONS, middle, ratio


def problem_of(costs: CostModel) -> Problem:
    return build_problem(costs, objective="request", granularity="module", allowed=Allowed(costs, "torch", None))


def rounding(problem: Problem) -> int:
    """Ticks by which two plans may differ that cost the same seconds."""
    return 4 * len(problem.layer_class) + 4


def best_ticks(instance: RandomInstance, problem: Problem) -> int | None:
    try:
        plan = solve(instance.profile, instance.hardware, instance.workload, time_limit=20, tie_tolerance=0.0)
    except InfeasiblePlacement as nothing:
        if nothing.proven:
            return None
        raise
    assert plan.status == "optimal"
    assignment = Assignment.of(plan, problem)
    assert assignment is not None
    return assignment.ticks(problem)


@pytest.mark.parametrize("seed", range(14))
def test_the_naive_model_and_counts_agree_with_solve(seed: int) -> None:
    instance = random_instance(random.Random(seed), layers=(2, 5))
    problem = problem_of(CostModel(instance.profile, instance.hardware, instance.workload))
    products = naive(problem, seconds=20, relative_gap=0, workers=1)
    counts = scip_counts(problem, seconds=20, relative_gap=0)
    best, near = best_ticks(instance, problem), rounding(problem)
    if best is None or products.ticks is None:
        assert (products.status, counts.status, best) == ("infeasible", "infeasible", None)
        return
    assert abs(products.ticks - best) <= near
    assert products.bound == products.ticks
    assert counts.bound <= products.ticks + near
    assert counts.ticks is None or counts.ticks >= products.ticks


def test_all_come_to_the_gap_on_a_real_model() -> None:
    one, gap = SMALL[3], 1e-3
    problem = problem_of(one.costs)
    runs = [naive(problem, seconds=60, relative_gap=gap), scip_counts(problem, seconds=60, relative_gap=gap)]
    plan = solve(one.profile, one.hardware, relative_gap=gap)
    assert [run.status for run in runs] == ["stopped", "stopped"]
    assert max(run.gap for run in runs) <= gap
    assert plan.objective_s is not None
    for run in runs:
        assert run.ticks is not None
        assert run.ticks * problem.tick_s == pytest.approx(plan.objective_s, rel=gap)


@pytest.mark.parametrize("seed", range(30))
def test_their_memory_rule_is_the_judges(seed: int) -> None:
    rng = random.Random(seed)
    instance = random_instance(rng)
    costs = CostModel(instance.profile, instance.hardware, instance.workload)
    problem, placement = problem_of(costs), random_placement(rng, instance)
    assignment = Assignment.of(placement, problem)
    assert assignment is not None
    assert fits(problem, assignment) == judge(placement, costs).feasible


def test_a_gap_needs_a_plan() -> None:
    assert Run("limit", 1.0, None, 7).gap == 1
    assert Run("limit", 1.0, 100, 90).gap == pytest.approx(0.1)
    assert Run("stopped", 1.0, 100, 101).gap == 0


def test_the_suite_is_balanced_and_fits_in_ram() -> None:
    assert len(SUITE) == len(set(SUITE)) >= 60
    found = Counter(one.label for one in SUITE)  # eleven of each when drawn; the memory rule moves borders a little
    assert set(found) == set(CLASSES)
    assert min(found.values()) >= 8
    assert all(one.profile.weight_bytes < 0.9 * one.hardware.cpu.memory_bytes for one in (*SUITE, *SMALL, STORY))


def test_machines_grow_and_models_with_them() -> None:
    machine = cluster(16)
    model = synthetic(30, machine)
    assert len({gpu.model for gpu in machine.gpus}) == 8
    assert len(model.layers) == 30
    assert len(set(model.layer_class)) == 3
    assert len(set(problem_of(CostModel(model, machine)).twins)) == 9


def rival_row(**changes: float) -> RivalRow:
    times = {"seconds": 1.0, "naive_seconds": 4.0, "scip_seconds": 2.0, "scip_own_seconds": 2.0, "limit_seconds": 8.0}
    gaps = {"gap": 0.0, "naive_gap": 0.0, "scip_gap": 0.0}
    return RivalRow(name="one", label="fits", layers=2, devices=2, scip_stopped=True, **(times | gaps | changes))


def test_ratios_say_when_they_are_bounds() -> None:
    open_ = rival_row(gap=0.5)
    assert ratio(rival_row(), 4.0, True) == (4.0, "")
    assert ratio(rival_row(), 8.0, False) == (8.0, ">")
    assert ratio(open_, 4.0, True) == (0.5, "<")
    assert ratio(open_, 8.0, False) is None
    assert middle([(4.0, ""), (8.0, ">"), None]) == "at least 6 (2 instances)"
    assert middle([None]) == "none"


def test_rows_are_kept_and_sections_replaced(tmp_path: Path) -> None:
    kept, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    rows: list[Row] = [
        StoryRow("story", 0.1, 0.2, "optimal"),
        SuiteRow("one", "fits", "module", 2, 1, 0.1, 0.1, 0.0, "optimal"),
        PeerRow("one", "fits", "module", 0.1, 0.0, 2.0, {"llama.cpp --fit": 3.0, "other": None}),
        rival_row(),
    ]
    for row in rows:
        solver_benchmark.add_row(kept, "suite", type(row).__name__, row)
    assert dict(solver_benchmark.read_rows(kept, "suite")) == {type(row).__name__: row for row in rows}
    assert list(solver_benchmark.read_rows(kept, "size")) == []
    assert {json.loads(line)["kind"] for line in kept.read_text().splitlines()} < {kind.__name__ for kind in ROWS}
    for part, lines in (("suite", ["old"]), ("rivals", ["kept"]), ("suite", SECTIONS["suite"][1](rows))):
        solver_benchmark.write(page, part, part, lines)
    text = page.read_text()
    assert "old" not in text
    assert "kept" in text
    assert text.count("<!-- suite: begin -->") == 1
    assert "+50.0%" in "\n".join(SECTIONS["baselines"][1](rows))
    assert "at least" not in "\n".join(SECTIONS["rivals"][1](rows))
