"""The benchmark of predictions: what it reads, scores and prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import fidelity  # noqa: E402
from fidelity_fit import CONSTANTS, priors, with_constants  # noqa: E402
from fidelity_points import OURS, as_built, facts, point_of, points  # noqa: E402
from fidelity_score import as_shipped, summary  # noqa: E402
from fidelity_signs import as_one_card, choices, scattered, told, with_hit_rates  # noqa: E402

from cost_models import CostModel  # noqa: E402
from cost_models.engines import engine_of, engines  # noqa: E402
from profiles import Run, Workload, case_of, read_runs  # noqa: E402
from profiles.errors import MoeplanError  # noqa: E402
from solver import evaluate  # noqa: E402
from solver.evaluate import judge  # noqa: E402


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """The published sweep of one machine, in the form of a measurements file."""
    known = yaml.safe_load(OURS.read_text(encoding="utf-8"))
    return [
        record
        for record in known
        if record["machine_id"] == "mos_a10" and record["grade"] == "A" and record["regime"] == "normal"
    ][:12]


def test_every_known_run_is_a_point_or_says_why_not() -> None:
    found, left = points(OURS)
    runs = [run for run in read_runs(OURS) if run.grade == "A" and run.regime == "normal"]
    unscored = [run for run in runs if run.decode_tokens_per_s is None and run.prefill_tokens_per_s is None]
    assert len(found) >= 300
    assert len(runs) - len(unscored) - sum(left.values()) <= len(found) <= len(runs) - sum(left.values())


def test_another_file_is_scored_with_what_is_shipped(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "others.yaml"
    path.write_text(yaml.safe_dump(records), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["fidelity.py", "--measurements", str(path), "--json"])
    assert fidelity.main() == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"tiers", "median_kendall_tau", "median_regret", "points"}
    assert document["points"] == len(records)
    assert {"decode_median_error", "decode_p90_error", "prefill_median_error"} <= set(document["tiers"]["1"])
    assert document["tiers"]["1"]["decode_median_error"] < document["tiers"]["0"]["decode_median_error"] < 0.5
    assert document["median_kendall_tau"] > 0.9


def test_a_run_calibrates_those_of_its_own_settings(tmp_path: Path) -> None:
    """One machine with its memory as one node and as eight: neither says how fast the other is."""
    known = {record["id"]: record for record in yaml.safe_load(OURS.read_text(encoding="utf-8"))}
    path = tmp_path / "others.yaml"
    for ids, tier_1, any_settings in (
        (("m0226", "m0228"), 0, 2),
        (("m0228", "m0229"), 2, 2),
        (("m0226", "m0228", "m0229"), 2, 6),
    ):
        path.write_text(yaml.safe_dump([known[name] for name in ids]), encoding="utf-8")
        found, _ = points(path)
        assert len({point.setup for point in found}) == 1
        scores = as_shipped(found)
        assert len(scores.of("0", "decode")) == len(ids)
        assert len(scores.of("1", "decode")) == tier_1
        assert sum((g.tier, g.kind) == ("1", "decode") for g in scores.any_settings) == any_settings


def test_a_bad_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fidelity.py", "--measurements", str(tmp_path / "none.yaml"), "--json"])
    assert fidelity.main() == 1


def test_shipped_constants_are_the_fitted_ones() -> None:
    """Near enough to be rounded: data/engines.yaml is what `--fit` printed."""
    found, _ = points(OURS)
    scores = as_shipped(found)
    decode, prefill = summary(scores.of("0", "decode")), summary(scores.of("0", "prefill"))
    assert decode["median"] < 0.15
    assert prefill["median"] < 0.17
    assert decode["points"] >= 280


def test_constants_reach_the_engines() -> None:
    known = with_constants(priors())
    assert set(known) == {engine.name for engine in engines().engines}
    assert known["torch"] == engine_of("torch")
    for constant in CONSTANTS:
        for name in constant.engines:
            for path in constant.paths:
                value: Any = known[name]
                for key in path.split("."):
                    value = value[int(key)] if key.isdigit() else getattr(value, key)
                assert value == pytest.approx(constant.prior)


def test_what_the_sources_say_of_builds_is_followed() -> None:
    assert facts()["m0540"]["copies"] == "never"
    runs = {run.id: run for run in read_runs(OURS)}
    rule = engine_of("ik_llama.cpp")
    assert as_built(rule, runs["m0540"]).copies is None
    old = as_built(rule, runs["m0295"]).copies
    assert old is not None
    assert not old.per_expert
    assert as_built(rule, runs["m0240"]) == rule
    assert engine_of("sglang-kt").copies is None
    layerwise = as_built(engine_of("sglang-kt"), runs["m0091"]).copies
    assert layerwise is not None
    assert (layerwise.from_tokens, layerwise.per_expert) == (400, False)
    unpacked = point_of(runs["m0533"])
    assert unpacked.prefill is not None
    assert unpacked.prefill not in unpacked.fitted


# --- memory that overflowed silently ---


def short_bytes(run: Run) -> dict[str, int]:
    """What the run's own placement lacks by the judge; a CPU that is not named may be any, as no time is asked for."""
    if run.cpu is None and run.ram_peak_bytes_per_s is None:
        run = run.replace(ram_peak_bytes_per_s=100e9)
    case = case_of(run)
    prompt, generated, depth = run.prompt_tokens or 512, run.generated_tokens or 128, run.context_depth or 0
    workload = Workload(
        prompt_tokens=prompt,
        generated_tokens=generated,
        context_tokens=depth + prompt + generated,
        prefill_chunk=run.ubatch or 512,
        batch_size=case.batch_size,
    )
    return evaluate(case.placement, case.profile, case.hardware, workload, target="llama.cpp").short_bytes


def test_what_overflowed_when_it_was_measured_does_not_fit() -> None:
    """So no plan is chosen where a driver moved weights to RAM: all three such runs that say what they ran."""
    found, left = {}, []
    for run in (run for run in read_runs(OURS) if run.regime == "vram_overflow"):
        try:
            found[run.id] = short_bytes(run)
        except MoeplanError as problem:
            left.append(str(problem))
    assert set(found) == {"m0748", "m0893", "m0894"}
    assert all(short.get("cuda:0", 0) > 0 for short in found.values())
    assert all("has the shapes of no preset" in problem for problem in left)
    assert len(left) == 7


def test_neighbours_of_what_overflowed_fit() -> None:
    """The same two machines and models with fewer experts on the card, which ran as meant."""
    normal = [run for run in read_runs(OURS) if run.regime == "normal"]
    cards = [run for run in normal if run.machine in ("gh_5090_285k", "gh_5070_pr15952")]
    assert len(cards) == 15
    refused = {run.id: short for run in cards if (short := short_bytes(run))}
    assert set(refused) == {"m0895"}  # filled to 90 %, beyond what the default margin leaves
    assert refused["m0895"]["cuda:0"] < 0.1 * 12_820_938_752


# --- signs of what was compared ---

COMPARED = """
share  uniform  front-loading  frequency
0.1      56.57          57.18      58.60
0.5      65.25          73.65      76.19
0.8      79.20          89.20     100.67
"""
"""Tokens/s on 4 x RTX 4090, Qwen3-Next-80B-A3B-Instruct-FP8 (fidelity_signs.SOURCE)."""


def test_the_most_used_experts_and_whole_layers_are_rightly_preferred() -> None:
    """Where frequency and front-loading beat uniform in KTransformers' table, predictions do so, too."""
    table = [tuple(map(float, line.split())) for line in COMPARED.strip().splitlines()[1:]]
    found = choices(read_runs(OURS), [share for share, *_ in table])
    assert [(row.share, *row.measured) for row in found] == table
    for row in found:
        uniform, front, frequency = row.predicted
        assert frequency > uniform * 1.02
        assert front > uniform
    assert told(found).startswith("the most used experts instead of any were measured faster in 3 of 3 rows (+3.6% to")


def test_hot_experts_are_worth_more_the_hotter_they_are() -> None:
    run = next(r for r in read_runs(OURS) if r.gpu_expert_share == 0.5 and r.expert_strategy == "uniform")
    case = as_one_card(case_of(run))
    spread, gains = scattered(case.placement), []
    for hit in (0.5, 0.6, 0.8):
        skewed = with_hit_rates(case.profile, [(0.5, hit), (1.0, 1.0)])
        experts = skewed.layers[0].experts
        assert experts is not None
        assert experts.frequencies is not None
        assert sum(experts.frequencies) == pytest.approx(experts.active)
        costs = CostModel(skewed, case.hardware, Workload(), target="sglang-kt")
        hot, any_ = (judge(plan, costs).prediction.decode_step_s for plan in (case.placement, spread))
        gains.append(any_ / hot - 1)
    assert gains[0] == pytest.approx(0.0, abs=1e-9)
    assert gains[0] < gains[1] < gains[2]
