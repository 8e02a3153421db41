"""`moeplan what-if` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from moeplan import MoeplanError, cli, solve

MODEL, MACHINE = "qwen3-30b-a3b", "1xRTX4090,ram=96GB"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["what-if", MODEL, MACHINE, *map(str, arguments)])


def test_one_row_a_scenario() -> None:
    done = run("--gpus", "2-3", "--context-tokens", "4096,8192")
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()[:1] in ("2", "3")]
    assert [row[:2] for row in rows] == [["2", "4,096"], ["2", "8,192"], ["3", "4,096"], ["3", "8,192"]]
    assert "GPU launches" in done.stdout


def test_json_is_one_document_with_plans() -> None:
    done = run("--gpus", "3", "--json")
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["gpus"], row["feasible"], row["why"]) == (3, True, None)
    assert row["plan"]["hardware"] == "3xRTX4090,ram=96GB"
    alone = solve(MODEL, "3xRTX4090,ram=96GB")
    assert alone.objective_s == pytest.approx(row["objective_s"], rel=2e-3)


def test_files(tmp_path: Path) -> None:
    table, page = tmp_path / "rows.csv", tmp_path / "page.html"
    pytest.importorskip("plotly")
    done = run("--gpus", "1,3", "--memory", "24 GB", "-o", table, "--html", page)
    assert done.exit_code == 0
    rows = pd.read_csv(table)
    assert rows["gpus"].tolist() == [1, 3]
    assert rows["memory"].tolist() == [24_000_000_000] * 2
    assert "plan" not in rows
    assert "<html" in page.read_text(encoding="utf-8")[:2000]


def test_what_does_not_fit_is_said() -> None:
    done = CliRunner().invoke(cli.app, ["what-if", MODEL, "1xRTX4090,ram=16GB", "--gpus", "1"])
    assert done.exit_code == 0
    assert "infeasible" in done.stdout
    assert "does not fit: qwen3-30b-a3b does not fit 1xRTX4090,ram=16GB: short of" in done.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpus", "many"), "--gpus: 'many' is not a whole number; write e.g. 8, 1-16 or 2,4,8"),
        (("--gpus", "5-2"), "--gpus: '5-2' is not a range"),
        (("--gpus", "1,"), "--gpus: '' is not a whole number"),
        (("--gpus", "1-99"), "gpus: 65: is not a whole number from 0 to 64"),
        (("--safety-margin", "ten"), "--safety-margin: 'ten' is not a share; write e.g. 0.10"),
        (("--memory", "48"), "memory: "),
        (("--link", "pcie9"), "link: 'pcie9'"),
        (("--gpus", "3", "-o", "rows.xlsx"), "rows.xlsx: is neither .csv nor .json"),
        (("--resume", "rows.txt"), "rows.txt: is neither .csv nor .parquet"),
    ],
)
def test_bad_values_are_said_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, MoeplanError) or "memory" in said
    if isinstance(done.exception, MoeplanError):
        assert said in str(done.exception)
        assert "\n" not in str(done.exception)
