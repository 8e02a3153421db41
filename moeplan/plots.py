"""Pictures of plans and of what-if tables. Every function returns a matplotlib figure: nothing global, no window.

>>> from moeplan import solve
>>> from moeplan.plots import layer_map
>>> layer_map(solve("qwen3-30b-a3b", "1xRTX4090,ram=96GB")).savefig("map.png")  # doctest: +SKIP
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from moeplan import grid, palette
from moeplan.grid import AXES, Line, value_text
from profiles.device_names import short_name
from profiles.document import short
from profiles.errors import MoeplanError
from profiles.layer_map import (
    ATTENTION,
    TOP,
    attention_runs,
    cells,
    device_colours,
    device_order,
    ink,
)
from profiles.placement import DeviceMemory, Placement
from profiles.units import gb
from solver import Evaluation
from solver.breakdown import breakdown as time_parts
from solver.solve import costs_of
from solver.what_if import frontier as rows_worth_having

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    raise MoeplanError("plots: matplotlib is not installed; pip install 'moeplan[plots]'") from None

if TYPE_CHECKING:
    from pandas import DataFrame

LINE_MARKS = "os^Dv<>"
Y_NAMES = {
    "tokens_per_s": "decode speed, tokens/s",
    "prefill_s": "prompt, s",
    "decode_step_s": "a token, s",
    "objective_s": "objective, s",
}


class Chart(Figure):
    """A figure that a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png", dpi=96)
            return file.getvalue()


def memory_bars(plan: Placement | Evaluation) -> Chart:
    """A bar a device: weights, KV cache and workspace as shares of the usable memory, whose end is drawn as a border.

    Raises MoeplanError for a plan whose memory nobody has evaluated.
    """
    if not plan.memory:
        raise MoeplanError("plan: memory: missing; evaluate(plan) has it, and its answer can be drawn too")
    memory = {device: plan.memory[device] for device in device_order(plan.memory)}
    chart, axes = _chart(8, 1.6 + 0.32 * len(memory), "Memory of each device")
    _stack(axes, list(memory), palette.MEMORY, lambda device, part: _percent(memory[device], part))
    full = max(100.0, *(100 * held.used_bytes / max(1, held.usable_bytes) for held in memory.values()))
    for y, held in enumerate(memory.values()):
        over = held.free_bytes < 0
        says = f"{gb(held.used_bytes)} of {gb(held.usable_bytes)}" + (
            f": {gb(-held.free_bytes)} too much" if over else ""
        )
        axes.annotate(
            says, (full, y), (8, 0), textcoords="offset points", va="center", color=palette.BAD if over else "black"
        )
    axes.axvline(100, color="black", linewidth=1.5)
    axes.set_xlim(0, full * 1.005)
    axes.set_xlabel("share of usable memory, %; beyond the line nothing fits")
    _legend(axes, 3)
    return chart


def layer_map(plan: Placement) -> Chart:
    """Which layer is where: attention above, experts below, coloured and named by device."""
    colours = device_colours(plan.devices)
    chart, axes = _chart(9, 2.6, f"{plan.model or 'Model'} on {plan.hardware or 'machine'}, layer by layer")
    for device, colour in colours.items():
        mine = [cell for cell in cells(plan) if cell.device == device]
        axes.bar(
            [cell.column for cell in mine], [cell.height for cell in mine], width=1.0,
            bottom=[cell.bottom for cell in mine], color=colour, edgecolor="white", linewidth=0.5, label=device,
            hatch="//" if device == "cpu" else None,
        )  # fmt: skip
    for device, first, last in attention_runs(plan):
        if last - first + 1 >= len(short_name(device)):
            middle = ((first + last) / 2, (ATTENTION + TOP) / 2)
            axes.text(*middle, short_name(device), ha="center", va="center", fontsize=8, color=ink(colours[device]))
    axes.set_yticks([0.5, (ATTENTION + TOP) / 2], ["experts", "attention"])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(-1.6, len(plan.layers) + 0.6)
    axes.set_xlabel("layer; the embedding before the first, the head after the last")
    axes.spines["left"].set_visible(False)
    _legend(axes, 9)
    return chart


def speed(table: DataFrame, x: str = "gpus", y: str = "tokens_per_s") -> Chart:
    """`y` along axis `x` of a what-if table: one line for each combination of the other axes.

    Scenarios for which nothing fits are crosses on the floor, and a dashed border stands where fitting begins or ends.
    Raises MoeplanError when the table has no such axis.
    """
    values, found = grid.need_axis(table, x), list(grid.lines(table, x))
    chart, axes = _chart(8, 4.5, f"{_y_name(table, y).partition(',')[0].capitalize()} by {AXES[x]}")
    for number, line in enumerate(found):
        _draw_line(axes, line, [values.index(value) for value in line.values(x)], y, number)
    axes.set_xticks(range(len(values)), [value_text(x, value) for value in values])
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(AXES[x])
    axes.set_ylabel(_y_name(table, y))
    axes.grid(axis="y", alpha=0.3)
    if not table["feasible"].all():
        axes.plot([], [], "x", color="black", label="no plan")
        axes.plot([], [], "--", color="black", linewidth=1, label="border of what fits")
    _legend(axes, 2)
    return chart


def frontier(table: DataFrame, x: str = "gpus", y: str = "tokens_per_s") -> Chart:
    """All scenarios that fit, `y` against `x`, and the line of those that no other beats, as `moeplan.frontier` has
    them. `x` is an axis of numbers, or a column of prices that you added."""
    best = rows_worth_having(table, x, y)
    fits = table[table["feasible"].astype(bool)]
    name = AXES.get(x, x)
    chart, axes = _chart(7, 4.5, f"What is worth having: {_y_name(table, y).partition(',')[0]} against {name}")
    axes.scatter(fits[x], fits[y], color=palette.OTHERS, s=18, label="fits")
    axes.step(best[x], best[y], where="post", color=palette.LINES[0], marker="o", label="nothing better for less")
    axes.set_xlabel(name)
    axes.set_ylabel(_y_name(table, y))
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    _legend(axes, 2)
    return chart


def breakdown(plan: Placement, profile: Any = None, hardware: Any = None, workload: Any = None) -> Chart:
    """Where the predicted time goes: for the prompt and for one token, a bar a device, by what it does.

    What is left out is taken from the plan document, as `evaluate` does.
    """
    found = time_parts(plan, costs_of(plan, profile, hardware, workload))
    places = found.places()
    chart = Chart(figsize=(9, 1.9 + 0.3 * len(places)), layout="constrained")
    left, right = chart.subplots(1, 2, sharey=True)
    spent = {what for what, _ in (*found.prefill, *found.decode)}
    colours = {what: colour for what, colour in palette.TIME.items() if what in spent}
    _time_bars(left, "prompt", places, found.prefill, colours)
    _time_bars(right, "one token", places, found.decode, colours)
    _legend(left, len(colours))
    return chart


def _time_bars(
    axes: Axes, name: str, places: Sequence[str], seconds: Mapping[tuple[str, str], float], colours: Mapping[str, str]
) -> None:
    together = sum(seconds.values())
    unit, scale = ("s", 1.0) if together >= 1 else ("ms", 1e3)
    _stack(axes, places, colours, lambda place, what: scale * seconds.get((what, place), 0.0))
    axes.set_title(f"{name}: {scale * together:,.3g} {unit}", loc="left")
    axes.set_xlabel(unit)
    _bare(axes)


def _draw_line(axes: Axes, line: Line, places: Sequence[int], y: str, number: int) -> None:
    colour, mark = palette.LINES[number % len(palette.LINES)], LINE_MARKS[number % len(LINE_MARKS)]
    fits = [bool(fit) for fit in line.rows["feasible"]]
    shown = [float(value) if fit else float("nan") for value, fit in zip(line.rows[y], fits, strict=True)]
    axes.plot(places, shown, color=colour, marker=mark, label=line.name or "_")
    none = [place for place, fit in zip(places, fits, strict=True) if not fit]
    if none:
        axes.plot(none, [0] * len(none), "x", color=colour, clip_on=False, label="_")
    for (a, b), (before, after) in zip(pairwise(places), pairwise(fits), strict=True):
        if before != after:
            axes.axvline((a + b) / 2, color=colour, linestyle="--", linewidth=1, alpha=0.7)


def _stack(axes: Axes, names: Sequence[str], parts: Mapping[str, str], size: Callable[[str, str], float]) -> None:
    """Horizontal bars, the first name on top, made of `parts` in their colours."""
    left = [0.0] * len(names)
    for part, colour in parts.items():
        sizes = [size(name, part) for name in names]
        axes.barh(range(len(names)), sizes, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _percent(held: DeviceMemory, part: str) -> float:
    sizes = {"weights": held.weights_bytes, "KV cache": held.kv_bytes, "workspace": held.workspace_bytes}
    return 100 * sizes[part] / max(1, held.usable_bytes)


def _y_name(table: DataFrame, y: str) -> str:
    if y not in table.columns:
        raise MoeplanError(f"y: {short(y)} is no column of this table; use one of {', '.join(Y_NAMES)}")
    return Y_NAMES.get(y, y)


def _chart(wide: float, high: float, title: str) -> tuple[Chart, Axes]:
    chart = Chart(figsize=(wide, high), layout="constrained")
    axes = chart.subplots()
    axes.set_title(title.replace("$", r"\$"), loc="left")
    _bare(axes)
    return chart, axes


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, columns: int) -> None:
    """Below the axes, where it hides nothing."""
    chart = axes.get_figure()
    handles, names = axes.get_legend_handles_labels()
    assert chart is not None
    if handles:
        chart.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False)
