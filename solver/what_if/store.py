"""Answers on disk, so that an interrupted grid can go on: the table itself, with each plan as JSON text."""

from __future__ import annotations

import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.document import one_line, write_text
from profiles.errors import MoeplanError
from profiles.placement import Placement
from solver.what_if.rows import Answer, table
from solver.what_if.scenarios import Scenario

if TYPE_CHECKING:
    from pandas import DataFrame

ROW, GRID = "row", "grid"
"""Columns of a file before the table's own: the scenario's place in the grid, and which grid that is."""


class Store:
    """Answers to the scenarios of one grid in a .csv or .parquet file, written whole each time (atomically)."""

    def __init__(self, path: str | Path, scenarios: list[Scenario], grid: str) -> None:
        self.path, self._scenarios, self._grid = Path(path), scenarios, grid
        if self.path.suffix not in (".csv", ".parquet"):
            raise MoeplanError(one_line(f"{path}: is neither .csv nor .parquet; give a file of one of these names"))
        self._parquet = self.path.suffix == ".parquet"
        if self._parquet:
            _need_pyarrow(self.path)

    def read(self) -> dict[int, Answer]:
        """What the file knows, by the scenario's index; nothing where there is no file yet, and no errors: what failed
        is tried again. Raises MoeplanError for a file of something else."""
        if not self.path.exists():
            return {}
        rows = self._rows()
        if set(rows.columns) != set(table(self._scenarios[:1], {0: Answer("error")}).columns) | {ROW, GRID}:
            raise self._wrong("is not a table of what_if")
        if set(rows[GRID]) != {self._grid} or not set(rows[ROW]).issubset(range(len(self._scenarios))):
            raise self._wrong("is of another grid, model, machine or options")
        try:
            answers = {int(row[ROW]): _answer(row) for row in rows.to_dict("records")}
        except (TypeError, ValueError, MoeplanError):
            raise self._wrong("has a row that cannot be read") from None
        return {index: answer for index, answer in answers.items() if answer.status != "error"}

    def write(self, answers: dict[int, Answer]) -> None:
        found = table([s for s in self._scenarios if s.index in answers], answers)
        found["plan"] = [None if plan is None else json.dumps(plan.to_dict()) for plan in found["plan"]]
        found.insert(0, ROW, sorted(answers))
        found.insert(0, GRID, self._grid)
        if not self._parquet:
            write_text(self.path, found.to_csv(index=False))
            return
        handle, new = tempfile.mkstemp(dir=self.path.parent, prefix=".moeplan-")
        os.close(handle)
        found.to_parquet(new, index=False)
        Path(new).replace(self.path)

    def _rows(self) -> DataFrame:
        import pandas

        try:
            if self._parquet:
                return pandas.read_parquet(self.path)
            return pandas.read_csv(self.path, float_precision="round_trip", dtype={GRID: str, "why": str, "plan": str})
        except (OSError, ValueError):
            raise self._wrong("cannot be read as a table") from None

    def _wrong(self, problem: str) -> MoeplanError:
        return MoeplanError(one_line(f"{self.path}: {problem}; give another file to resume, or remove it"))


def _answer(row: dict[str, Any]) -> Answer:
    row = {name: None if value != value else value for name, value in row.items()}
    plan = None if row["plan"] is None else Placement.from_dict(json.loads(row["plan"]), "plan")
    return Answer(
        status=row["status"],
        plan=plan,
        why=row["why"],
        binds=row["binds"],
        experts_on_cpu=row["experts_on_cpu"],
        seconds=row["seconds"],
    )


def _need_pyarrow(path: Path) -> None:
    if find_spec("pyarrow") is None:
        raise MoeplanError(one_line(f"{path}: parquet needs pyarrow; install it, or give a .csv file"))
