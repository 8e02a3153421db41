"""Pictures show what plans and tables say: bars, lines and borders are read back from the figures."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models import CostModel
from moeplan import Placement, Workload, evaluate, grid, load_hardware, load_profile, plots, solve
from moeplan.grid import axes_of, lines, value_text
from profiles import MoeplanError
from profiles.layer_map import cells, device_colours, svg
from profiles.presets import model_config_preset
from solver.breakdown import breakdown
from solver.evaluate import judge
from solver.what_if import scenarios

ROOT = Path(__file__).resolve().parents[1]
STORY = ("deepseek-v2-measured", "8xL40-46GB")
SPLIT = Placement(
    embedding="cpu",
    head="cuda:1",
    layers=[
        {"attention": "cuda:0", "experts": {}},
        {"attention": "cuda:0", "experts": {"cuda:1": [0, 1, 2], "cpu": [3]}},
        {"attention": "cuda:1", "experts": {"cuda:1": "all"}},
    ],
)


@pytest.fixture(scope="module")
def plan() -> Placement:
    return solve(*STORY)


def table(**columns: list[Any]) -> pandas.DataFrame:
    """A what-if table with these columns; what has no speed does not fit."""
    made = pandas.DataFrame(columns)
    return made.assign(feasible=made["tokens_per_s"].notna())


def test_cells_are_the_blocks() -> None:
    found = [(cell.device, cell.column, round(cell.height, 2)) for cell in cells(SPLIT)]
    assert found == [
        ("cpu", -1, 1.6),
        ("cuda:0", 0, 0.5),
        ("cuda:0", 1, 0.5),
        ("cuda:1", 1, 0.75),
        ("cpu", 1, 0.25),
        ("cuda:1", 2, 0.5),
        ("cuda:1", 2, 1.0),
        ("cuda:1", 3, 1.6),
    ]
    assert next(cell.says for cell in cells(SPLIT) if cell.height == 0.25) == "layer 1: 25% of experts on cpu"


@given(st.integers(1, 40))
def test_every_device_has_a_colour_of_its_own(gpus: int) -> None:
    colours = device_colours([*(f"cuda:{i}" for i in range(gpus)), "cpu"])
    assert len(set(colours.values())) == gpus + 1


def test_the_inline_picture_has_a_titled_rectangle_a_block(plan: Placement) -> None:
    text = svg(plan, device_colours(plan.memory or {}))
    assert text.count("<rect") == text.count("<title>") == 60 + 59 + 2
    assert text.count(f"layer 27: experts on {plan.layers[27].experts_device}") == 1
    assert plan._repr_html_().count("<svg") == 1


def test_a_plan_is_one_line_in_a_table(plan: Placement) -> None:
    assert "8xL40-46GB: optimal" in pandas.DataFrame({"plan": [plan]}).to_html()
    assert str(plan).startswith("deepseek-v2-measured on 8xL40-46GB: optimal, request 16.2")
    assert str(SPLIT) == "model on machine"


def bars(axes: Any) -> dict[str, list[Any]]:
    return {str(group.get_label()): list(group) for group in axes.containers}


def test_memory_bars_are_shares_of_what_is_usable(plan: Placement) -> None:
    axes = plots.memory_bars(plan).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [*(f"cuda:{i}" for i in range(8)), "cpu"]
    held = plan.memory["cuda:3"]  # type: ignore[index]
    drawn = {part: found[3].get_width() for part, found in bars(axes).items()}
    assert drawn["weights"] == pytest.approx(100 * held.weights_bytes / 41_400_000_000)
    assert sum(drawn.values()) == pytest.approx(100 * (1 - held.free_bytes / held.usable_bytes))
    assert [line.get_xdata()[0] for line in axes.lines] == [100]


def test_memory_that_overflows_crosses_the_border(plan: Placement) -> None:
    layers = [
        layer.replace(attention=f"cuda:{i // 8}", experts={f"cuda:{i // 8}": "all"} if layer.experts else {})
        for i, layer in enumerate(plan.layers)
    ]
    found = evaluate(plan.replace(layers=tuple(layers), embedding="cuda:0", head="cuda:7"))
    axes = plots.memory_bars(found).axes[0]
    ends = [sum(found[1].get_width() for found in bars(axes).values())]
    assert ends[0] == pytest.approx(100 * 41_822_131_456 / 41_400_000_000)
    assert axes.get_xlim()[1] > ends[0]
    assert sum("too much" in text.get_text() for text in axes.texts) == len(found.short_bytes) == 6
    with pytest.raises(MoeplanError, match="evaluate"):
        plots.memory_bars(plan.replace(memory=None))


def test_the_layer_map_draws_every_cell(plan: Placement) -> None:
    for shown in (plan, SPLIT):
        found = bars(plots.layer_map(shown).axes[0])
        assert set(found) == shown.devices
        assert sum(len(group) for group in found.values()) == len(list(cells(shown)))
    drawn = {(bar.get_x() + 0.5, round(bar.get_height(), 2)) for bar in found["cpu"]}
    assert drawn == {(-1, 1.6), (1, 0.25)}


def test_speed_has_a_line_each_and_a_border_where_fitting_begins() -> None:
    nan = math.nan
    shown = table(
        gpus=[1, 2, 4, 4, 2, 1], context=[4096] * 3 + [65536] * 3, tokens_per_s=[nan, 10.0, 20.0, 9.0, nan, nan]
    )
    axes = plots.speed(shown).axes[0]
    found = {str(line.get_label()): line for line in axes.lines if str(line.get_label())[0] != "_"}
    assert list(found) == [
        "context tokens 4,096", "context tokens 65,536", "no plan", "border of what fits"
    ]  # fmt: skip
    assert list(found["context tokens 4,096"].get_ydata())[1:] == [10, 20]
    assert [math.isnan(y) for y in found["context tokens 65,536"].get_ydata()] == [True, True, False]
    borders = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert borders == [0.5, 1.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]
    assert axes.get_xlabel() == "GPUs"


def test_the_frontier_leaves_out_what_is_worse_and_dearer() -> None:
    shown = table(gpus=[1, 2, 2, 3, 4], quant=list("aabab"), tokens_per_s=[5.0, 8.0, 9.0, 7.0, 9.0])
    (line,) = plots.frontier(shown).axes[0].lines
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [(1, 5), (2, 9)]


def test_wrong_columns_are_one_line() -> None:
    shown = table(gpus=[1, 2], tokens_per_s=[1.0, 2.0])
    with pytest.raises(MoeplanError, match="'cards' is not an axis of this table; use one of gpus"):
        plots.speed(shown, x="cards")
    with pytest.raises(MoeplanError, match="no column"):
        plots.speed(shown, y="pace")
    with pytest.raises(MoeplanError, match="x: 'price' is not a column of numbers"):
        plots.frontier(shown, x="price")
    with pytest.raises(MoeplanError, match="no rows"):
        plots.speed(shown[:0])


def test_values_are_written_for_people() -> None:
    said = [("link", 64e9, "64 GB/s"), ("margin", 0.1, "10%"), ("gpu", "L40", "L40"), ("quant", None, "as given")]
    assert [value_text(axis, value) for axis, value, _ in said] == [text for *_, text in said]


def test_every_axis_of_what_if_has_a_name() -> None:
    assert tuple(grid.AXES) == scenarios.AXES


def test_lines_differ_along_one_axis_only() -> None:
    shown = table(gpus=[2, 1, 2, 1], quant=[None, None, "fp8", "fp8"], batch=[1] * 4, tokens_per_s=[1.0] * 4)
    assert axes_of(shown) == {"gpus": [1, 2], "quant": [None, "fp8"]}
    assert [(line.name, line.values("gpus")) for line in lines(shown, "gpus")] == [
        ("weights as given", [1, 2]),
        ("weights fp8", [1, 2]),
    ]


QUESTIONS = [
    ("deepseek-v2-measured", "7xL40-46GB", {}),
    ("qwen3-30b-a3b", "1xRTX4090,ram=96GB", {"target": "llama.cpp"}),
    ("mixtral-8x7b", "1xRTX4090,ram=128GB", {"target": "accelerate"}),
    ("mixtral-8x22b", "3xL40-46GB", {"granularity": "expert"}),
]


@pytest.mark.parametrize(("model", "machine", "options"), QUESTIONS)
def test_the_parts_of_the_time_are_all_of_it(model: str, machine: str, options: dict[str, Any]) -> None:
    profile, hardware, work = load_profile(model), load_hardware(machine), Workload(prompt_tokens=900, batch_size=2)
    found = solve(profile, hardware, work, time_limit=3, relative_gap=0.05, **options)
    costs = CostModel(profile, hardware, work, target=options.get("target", "torch"))
    parts, told = breakdown(found, costs), judge(found, costs).prediction
    assert math.fsum(parts.prefill.values()) == pytest.approx(told.prefill_s, rel=1e-9)
    assert math.fsum(parts.decode.values()) == pytest.approx(told.decode_step_s, rel=1e-9)
    assert {place for _, place in parts.decode} <= {*costs.device, "links", "several devices"}


def test_the_breakdown_draws_all_of_the_time(plan: Placement) -> None:
    left, right = plots.breakdown(plan).axes
    told = plan.prediction
    assert told is not None
    for axes, milliseconds in ((left, 1e3 * told.prefill_s), (right, 1e3 * told.decode_step_s)):
        assert sum(bar.get_width() for group in axes.containers for bar in group) == pytest.approx(milliseconds)
        assert axes.get_xlabel() == "ms"


def test_figures_show_themselves_and_touch_nothing_global(plan: Placement) -> None:
    assert plots.layer_map(plan)._repr_png_().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_matplotlib_it_is_one_line() -> None:
    source = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from profiles import MoeplanError\n"
        "try:\n    import moeplan.plots\nexcept MoeplanError as problem:\n    print(problem)"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "plots: matplotlib is not installed; pip install 'moeplan[plots]'\n"


def test_the_newcomers_path_is_six_lines_at_most_and_works(tmp_path: Path) -> None:
    """From README.md: what is typed between `pip install` and a picture, for a config.json of one's own."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(
        r"```sh\n(pip install [^\n]+)\n```\n+<!-- not run: [^\n]+ -->\n```python\n(.*?)```", text, re.DOTALL
    )
    assert found is not None
    typed = [found[1], *filter(None, found[2].splitlines())]
    assert len(typed) <= 6
    assert typed[0] == 'pip install "moeplan[plots]"'
    config = model_config_preset("qwen3-30b-a3b")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "plot.py").write_text(found[2], encoding="utf-8")
    subprocess.run([sys.executable, "plot.py"], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
