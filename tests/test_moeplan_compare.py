"""`moeplan compare` as its users meet it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from moeplan import Placement, compare
from moeplan.compare_table import comparison
from solver.baselines import RULES

STORY = ("deepseek-v2-measured", "8xL40-46GB")


def test_the_table_names_every_rule_and_says_what_is_short(moeplan: Any) -> None:
    status, out, _ = moeplan("compare", *STORY)
    assert status == 0
    lines = out.splitlines()
    assert all(any(line.strip().startswith(name) for line in lines) for name in ("moeplan", *RULES))
    assert any("layers split evenly" in line and "short of 1.27 GB" in line for line in lines)
    assert any("moeplan" in line and "optimal" in line for line in lines)
    assert "the plan is optimal" in lines[-1]
    assert "…" not in out
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("width", [70, 80, 100, 120])
def test_a_narrow_terminal_goes_without_some_columns(width: int) -> None:
    out = Console(width=width, file=io.StringIO())
    found = compare("mixtral-8x7b", "4xRTX4090,ram=256GB")
    for part in comparison(found, width):
        out.print(part)
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(any(line.strip().startswith(name) for line in lines) for name in ("moeplan", *RULES))
    assert any("layers split evenly" in line and "short of" in line for line in lines)
    assert not any("…" in line for line in lines)
    header = " ".join(lines[:6])
    assert ("most on one" in header) == (width == 120)
    assert "on GPUs" in header


def test_ties_and_what_is_not_allowed_can_be_seen(moeplan: Any) -> None:
    status, out, _ = moeplan("compare", "qwen3-30b-a3b", "1xRTX4090,ram=96GB", "--target", "ktransformers")
    assert status == 0
    assert any("KTransformers even split" in line and " tie " in line for line in out.splitlines())
    assert "accelerate balanced *" in out
    assert "* not allowed here (embedding on cuda:0)" in out


def test_json_is_one_document(moeplan: Any) -> None:
    status, out, _ = moeplan("compare", *STORY, "--json", "--objective", "decode")
    document = json.loads(out)
    assert status == 0
    assert document["schema"] == 1
    assert document["objective"] == "decode"
    assert document["rows"][0]["name"] == "moeplan"
    assert {row["name"] for row in document["rows"]} == {"moeplan", *RULES}
    assert Placement.from_dict(document["plan"]).status == "optimal"
    assert all(row["fits"] == (not row["short_bytes"]) for row in document["rows"])


def test_options_reach_the_solver_and_the_rules(moeplan: Any) -> None:
    status, out, _ = moeplan(
        "compare", "qwen3-30b-a3b", "1xRTX4090,ram=96GB", "--json", "--pin", "head=cpu", "--safety-margin", 0.3,
        "--prompt-tokens", 2000,
    )  # fmt: skip
    document = json.loads(out)
    assert status == 0
    assert document["plan"]["head"] == "cpu"
    assert document["plan"]["safety_margin"] == 0.3
    assert document["plan"]["workload"]["prompt_tokens"] == 2000
    assert "head on cuda:0" in [row["forbidden"] for row in document["rows"]]


def test_nothing_fits(moeplan: Any) -> None:
    status, out, _ = moeplan("compare", STORY[0], "1xL40-46GB,ram=8GB", "--json")
    document = json.loads(out)
    assert (status, document["status"]) == (3, "infeasible")
    assert sum(document["short"].values()) > 250 * 10**9
    status, out, err = moeplan("compare", STORY[0], "1xL40-46GB,ram=8GB")
    assert (status, out) == (3, "")
    assert "does not fit" in err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("no-such-model", STORY[1]), 1, "no-such-model"),
        ((STORY[0], "8xNothing"), 1, "8xNothing"),
        ((*STORY, "--objective", "speed"), 1, "speed"),
        ((*STORY, "--pin", "head"), 1, "--pin"),
        ((STORY[0],), 2, "hardware"),
    ],
)
def test_mistakes_are_told_in_short(moeplan: Any, arguments: tuple[str, ...], status: int, said: str) -> None:
    found, out, err = moeplan("compare", *arguments)
    assert (found, out) == (status, "")
    assert said.lower() in err.lower()
    assert "Traceback" not in err


@pytest.mark.parametrize("module", ["moeplan.cli", "moeplan.compare_command"])
def test_either_file_may_be_imported_first(module: str) -> None:
    code = f"import {module}, moeplan.cli; print([known.name for known in moeplan.cli.app.registered_commands])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("'compare'") == 1


def test_the_file_is_a_script_too() -> None:
    done = subprocess.run([sys.executable, "-m", "moeplan.cli", "compare", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "beside" in done.stdout
