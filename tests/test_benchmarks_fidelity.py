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

from cost_models.engines import engine_of, engines  # noqa: E402
from profiles import read_runs  # noqa: E402


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
    unpacked = point_of(runs["m0533"])
    assert unpacked.prefill is not None
    assert unpacked.prefill not in unpacked.fitted
