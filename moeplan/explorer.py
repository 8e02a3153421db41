"""A what-if table as one HTML page: sliders over the solved grid, the picture of the scenario they point at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeplan import palette
from moeplan.grid import AXES, axes_of, plain, value_text
from moeplan.html_page import html_text, plan_data, write_page
from profiles.errors import MoeplanError
from profiles.layer_map import device_colours
from profiles.placement import Placement

if TYPE_CHECKING:
    from pandas import DataFrame

NUMBERS = ("tokens_per_s", "prefill_s", "decode_step_s", "gap", "gpu_headroom_bytes", "experts_on_cpu")
TEXTS = ("status", "why", "binds")


def write_explorer(table: DataFrame, path: str | Path, *, title: str | None = None) -> None:
    """Write the page for a table of `what_if` to `path`, atomically. Nothing is computed in it: it looks rows up.

    Of rows with the same scenario the last one counts. Raises MoeplanError where the table has no rows or lacks
    `feasible`, where plotly is missing, or where the file cannot be written.
    """
    if table.empty or "feasible" not in table.columns:
        raise MoeplanError("table: has no rows of what_if, or lacks the column feasible; give what what_if returned")
    axes, plans = axes_of(table), _Plans()
    rows = [_row(row, axes, plans) for row in table.to_dict("records")]
    data = {
        "axes": _axes(axes, rows),
        "rows": rows,
        "plans": plans.shown,
        "colours": device_colours({device for plan in plans.shown for device in plan["devices"]}),
        "parts": list(palette.MEMORY.items()),
    }
    heading = title or plans.title or "What if"
    fits = sum(row["fits"] for row in rows)
    texts = {"heading": html_text(heading), "scenarios": f"{len(rows):,} scenarios, {fits:,} of which fit"}
    write_page(path, "explorer", heading, texts, data)


class _Plans:
    """The different plans of a table, each once."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []
        self.title: str | None = None
        self._number: dict[str, int] = {}

    def number(self, plan: Placement) -> int:
        """Where the plan is in `shown`."""
        self.title = self.title or (plan.model and f"{plan.model}: what if …")
        data = plan_data(plan)
        number = self._number.setdefault(json.dumps(data), len(self.shown))
        if number == len(self.shown):
            self.shown.append(data)
        return number


def _row(row: dict[str, Any], axes: dict[str, list[Any]], plans: _Plans) -> dict[str, Any]:
    """A scenario for the page: its place on each axis, and what is known of it."""
    found: dict[str, Any] = {"at": [values.index(plain(row[axis])) for axis, values in axes.items()]}
    found["fits"] = bool(row["feasible"])
    for name in (*NUMBERS, *TEXTS):
        value = plain(row.get(name))
        if value is not None:
            found[name] = float(f"{value:.6g}") if name in NUMBERS else str(value)
    if isinstance(row.get("plan"), Placement):
        found["plan"] = plans.number(row["plan"])
    return found


def _axes(axes: dict[str, list[Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Axes for the page, which starts at the last scenario that fits, or else at the last."""
    start = next((row["at"] for row in reversed(rows) if row["fits"]), rows[-1]["at"])
    return [
        {
            "name": axis,
            "title": AXES[axis],
            "values": [value_text(axis, value) for value in values],
            "ordered": all(isinstance(value, (int, float)) for value in values),
            "start": start[number],
        }
        for number, (axis, values) in enumerate(axes.items())
    ]
