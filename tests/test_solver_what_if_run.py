"""Grids on executors: the same rows wherever they are answered, none lost with a worker, and files to go on from."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from profiles import MoeplanError
from solver import what_if
from solver.what_if import family, run

MODEL, MACHINE = "qwen3-30b-a3b", "1xRTX4090,ram=96GB"
GRID: dict[str, Any] = {"gpus": [2, 3], "context": [4096, 8192], "batch": [1, 2]}
"""Two families, so two jobs."""


def asked(**options: Any) -> pd.DataFrame:
    return what_if(MODEL, MACHINE, **{**GRID, "progress": False, **options})


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """But for the time it took."""
    for table in (one, other):
        assert (table["seconds"] >= 0).all()
    plans = [[plan.replace(solve_s=None) for plan in table["plan"]] for table in (one, other)]
    assert plans[0] == plans[1]
    left_out = ["seconds", "plan"]
    pd.testing.assert_frame_equal(one.drop(columns=left_out), other.drop(columns=left_out), check_dtype=False)


@pytest.fixture(scope="module")
def here() -> pd.DataFrame:
    """In this process, one job after the other."""
    with ThreadPoolExecutor(1) as threads:
        return asked(executor=threads)


def test_processes_of_its_own_give_the_same_rows(here: pd.DataFrame, capfd: pytest.CaptureFixture[str]) -> None:
    same(asked(progress=True), here)
    out = capfd.readouterr()
    assert out.out == ""


def test_a_process_pool_that_is_given_gives_the_same_rows(here: pd.DataFrame) -> None:
    with ProcessPoolExecutor(2, mp_context=run.get_context("spawn")) as pool:
        same(asked(executor=pool), here)


def test_dask_workers_over_tcp_give_the_same_rows(here: pd.DataFrame) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="tcp://127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1")
        same(asked(executor=client.get_executor()), here)


class Killing(Executor):
    """A process pool, one of whose workers dies in the middle of the work that it is handed first."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=run.get_context("spawn"))
        self.killed = threading.Event()

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        if not self.killed.is_set():
            self.killed.set()
            return self.pool.submit(os._exit, 1)
        return self.pool.submit(function, *args, **options)


def test_a_worker_that_dies_changes_nothing_but_time(here: pd.DataFrame) -> None:
    killing = Killing()
    same(asked(executor=killing), here)
    assert killing.killed.is_set()
    with pytest.raises(BrokenProcessPool):
        killing.pool.submit(os.getpid).result()


class Deadly(Executor):
    """Answers here, but dies of one scenario, whenever it is part of a job."""

    def __init__(self, index: int) -> None:
        self.index, self.handed = index, 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.handed += 1
        if args and any(scenario.index == self.index for scenario in args[0].scenarios):
            future.set_exception(BrokenProcessPool("a worker died"))
        else:
            future.set_result(function(*args, **options))
        return future


def test_a_scenario_that_kills_its_workers_costs_no_other_row() -> None:
    deadly = Deadly(3)
    table = asked(executor=deadly)
    assert table["status"][3] == "error"
    assert table["why"][3] == "its worker died: BrokenProcessPool a worker died"
    assert table["plan"][3] is None
    others = table.drop(index=3)
    assert others["feasible"].all()


def test_what_goes_wrong_in_one_scenario_is_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = family.Asked.search

    def failing(asked: Any, *args: Any) -> Any:
        if asked.question.workload.context_tokens == 16384:
            raise ZeroDivisionError("a bug")
        return judged(asked, *args)

    monkeypatch.setattr(family.Asked, "search", failing)
    table = what_if(MODEL, MACHINE, gpus=2, context=[4096, 8192, 16384], progress=False)
    assert table["status"].tolist().count("error") == 1
    assert "ZeroDivisionError: a bug" in table["why"][2]
    assert table["feasible"].tolist() == [True, True, False]


class Interrupted(Executor):
    """Answers the first job, and then the user has had enough."""

    def __init__(self) -> None:
        self.handed = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.handed += 1
        if self.handed == 1:
            future.set_result(function(*args, **options))
            return future
        return Stopped()


class Stopped(Future[Any]):
    def __init__(self) -> None:
        super().__init__()
        super().set_result(None)

    def result(self, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt


class Counting(Executor):
    """Answers here, and counts jobs."""

    def __init__(self) -> None:
        self.handed = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.handed += 1
        future.set_result(function(*args, **options))
        return future


def test_an_interrupted_grid_goes_on_where_it_was(here: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    first = Counting()
    whole = asked(executor=first, resume=path)
    assert first.handed == 2
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], *(row for row in rows[1:] if row.split(",")[4] == "1")]) + "\n")
    second = Counting()
    again = asked(executor=second, resume=path)
    assert second.handed == 1
    same(again, whole)
    same(again, here)
    third = Counting()
    same(asked(executor=third, resume=path), here)
    assert third.handed == 0


def test_interrupting_keeps_what_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    raised = 0
    for _ in range(9):  # futures that are done come in any order, so the interrupt may come before the first answer
        try:
            asked(executor=Interrupted(), resume=path)
        except KeyboardInterrupt:
            raised += 1
        if path.exists():
            break
    assert raised
    kept = pd.read_csv(path)
    assert len(kept) == 4
    assert kept["feasible"].all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpus": [1, 2]}, "is of another grid, model, machine or options"),
        ({"relative_gap": 0.01}, "is of another grid, model, machine or options"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "grid.csv"
    small = {"gpus": [3], "context": None, "batch": None}
    asked(**small, resume=path)
    before = path.read_text()
    with pytest.raises(MoeplanError, match=said) as problem:
        asked(**{**small, **change}, resume=path)
    assert str(path) in str(problem.value)
    assert path.read_text() == before


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "{}", "\x00\x01"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "grid.csv"
    path.write_text(text)
    with pytest.raises(MoeplanError, match=r"grid\.csv: "):
        asked(resume=path)
    assert path.read_text() == text


def test_other_names_than_csv_and_parquet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MoeplanError, match=r"is neither \.csv nor \.parquet"):
        asked(resume=tmp_path / "grid.xlsx")


def test_a_script_without_a_guard_works(tmp_path: Path) -> None:
    """Workers are started by spawning, which imports the script again where it can."""
    script = tmp_path / "newcomer.py"
    script.write_text(
        "from moeplan import what_if\n"
        f"table = what_if({MODEL!r}, {MACHINE!r}, gpus=[3, 4], batch=[1, 2], progress=False)\n"
        "print('rows', len(table))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "rows 4\n", done.stderr
    assert done.stderr == ""
