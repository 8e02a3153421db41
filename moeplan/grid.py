"""A what-if table as a grid: its axes, their values for people, and the lines along one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from profiles.document import short
from profiles.errors import MoeplanError
from profiles.units import gb

if TYPE_CHECKING:
    from pandas import DataFrame

AXES = {
    "gpus": "GPUs",
    "gpu": "GPU",
    "memory": "memory a GPU",
    "link": "link",
    "ram_bandwidth": "RAM bandwidth",
    "context": "context tokens",
    "batch": "batch size",
    "prompt": "prompt tokens",
    "quant": "weights",
    "margin": "safety margin",
    "granularity": "granularity",
    "target": "runtime",
}
"""What `what_if` can vary, and what people call it."""


@dataclass(frozen=True)
class Line:
    """Rows of a table that differ along one axis only, in its order; `fixed` is the value of every other axis."""

    fixed: dict[str, Any]
    rows: DataFrame

    @property
    def name(self) -> str:
        return ", ".join(f"{AXES[axis]} {value_text(axis, value)}" for axis, value in self.fixed.items())

    def values(self, axis: str) -> list[Any]:
        return [plain(value) for value in self.rows[axis]]


def axes_of(table: DataFrame) -> dict[str, list[Any]]:
    """The axes along which the table's rows differ, each with its values: numbers ascending, all else as they come.

    >>> import pandas
    >>> axes_of(pandas.DataFrame({"gpus": [2, 1], "context": [4096, 4096], "gpu": ["b", "a"]}))
    {'gpus': [1, 2], 'gpu': ['b', 'a']}
    """
    found = {axis: _values(table[axis].tolist()) for axis in AXES if axis in table.columns}
    return {axis: values for axis, values in found.items() if len(values) > 1}


def need_axis(table: DataFrame, x: str) -> list[Any]:
    """The values of axis `x`. Raises MoeplanError when it is no column of the table, or no axis."""
    if x not in AXES or x not in table.columns:
        known = ", ".join(axis for axis in AXES if axis in table.columns)
        raise MoeplanError(f"x: {short(x)} is not an axis of this table; use one of {known or 'the axes of what_if'}")
    if table.empty:
        raise MoeplanError("table: has no rows; give what_if at least one scenario")
    return _values(table[x].tolist())


def lines(table: DataFrame, x: str) -> Iterator[Line]:
    """One line along `x` for each combination of values that the other axes have in the table."""
    order = need_axis(table, x)
    others = [axis for axis in axes_of(table) if axis != x]
    groups = table.groupby(others, dropna=False, sort=False) if others else [((), table)]
    for key, rows in groups:
        place = [order.index(plain(value)) for value in rows[x]]
        rows = rows.iloc[sorted(range(len(place)), key=place.__getitem__)]
        yield Line(dict(zip(others, map(plain, key), strict=True)), rows)


def value_text(axis: str, value: Any) -> str:
    """A value of an axis for people.

    >>> value_text("memory", 48_000_000_000), value_text("margin", 0.05), value_text("context", 32768)
    ('48 GB', '5%', '32,768')
    """
    if value is None:
        return "as given"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if axis == "memory":
        return gb(value).replace(".00 ", " ")
    if axis in ("link", "ram_bandwidth"):
        return f"{value / 1e9:,g} GB/s"
    if axis == "margin":
        return f"{100 * value:g}%"
    return f"{value:,.0f}" if value == int(value) else f"{value:,g}"


def plain(value: Any) -> Any:
    """A cell as a plain Python value; None where there is nothing."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or value != value else value


def _values(column: Sequence[Any]) -> list[Any]:
    values = list(dict.fromkeys(map(plain, column)))
    numbers = all(isinstance(value, (int, float)) for value in values)
    return sorted(values) if numbers else values
