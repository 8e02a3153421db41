"""The HTML pages: whole in one file, safe whatever a plan is called, and drawn by a real browser from disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as chrome
import pandas
import pytest

from moeplan import Placement, solve
from moeplan.explorer import write_explorer
from moeplan.report import write_report
from profiles import InfeasiblePlacement, MoeplanError

ROOT = Path(__file__).resolve().parents[1]
STORY = ("deepseek-v2-measured", "8xL40-46GB")
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&amp;<b>\u2028'\""
CONTEXTS = (4096, 65536)


def scenarios() -> Iterator[dict[str, Any]]:
    """One to four cards with little RAM, so that the first does not fit."""
    for gpus in (1, 2, 3, 4):
        for context in CONTEXTS:
            row: dict[str, Any] = {"gpus": gpus, "context": context, "quant": "q8_0"}
            try:
                plan = solve("mixtral-8x7b", f"{gpus}xRTX4090,ram=64GB", {"context_tokens": context}, relative_gap=0.01)
            except InfeasiblePlacement as problem:
                yield {**row, "feasible": False, "status": "infeasible", "why": str(problem)}
                continue
            told = plan.prediction
            assert told is not None
            yield {
                **row, "feasible": True, "status": plan.status, "plan": plan, "gap": plan.gap,
                "tokens_per_s": told.tokens_per_s, "prefill_s": told.prefill_s, "decode_step_s": told.decode_step_s,
            }  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pandas.DataFrame:
    return pandas.DataFrame(list(scenarios()))


@pytest.fixture(scope="module")
def plan() -> Placement:
    return solve(*STORY)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, plan: Placement, table: pandas.DataFrame) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {name: folder / f"{name}.html" for name in ("report", "explorer")}
    write_report(plan, found["report"])
    write_explorer(table, found["explorer"])
    return found


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    if (why := chrome.missing()) is not None:
        pytest.skip(why)
    with chrome.chromium() as started:
        yield started


def data_of(path: Path) -> Any:
    """What the page's script reads."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_explorer_holds_every_scenario_once(pages: dict[str, Path], table: pandas.DataFrame) -> None:
    data = data_of(pages["explorer"])
    assert [axis["name"] for axis in data["axes"]] == ["gpus", "context"]
    assert [axis["values"] for axis in data["axes"]] == [["1", "2", "3", "4"], ["4,096", "65,536"]]
    assert [row["fits"] for row in data["rows"]] == list(table["feasible"])
    assert not data["rows"][0]["fits"]
    assert "short of" in data["rows"][0]["why"]
    assert [row["tokens_per_s"] for row in data["rows"] if row["fits"]] == pytest.approx(
        list(table["tokens_per_s"].dropna()), rel=1e-5
    )
    for row, plan in zip(data["rows"], table["plan"], strict=True):
        if row["fits"]:
            shown = data["plans"][row["plan"]]
            assert [device for device, times in shown["attention"] for _ in range(times)] == [
                layer.attention for layer in plan.layers
            ]


def test_the_report_holds_what_the_plan_says(pages: dict[str, Path], plan: Placement) -> None:
    text, data = pages["report"].read_text(encoding="utf-8"), data_of(pages["report"])
    assert f"<dd>{plan.prediction.tokens_per_s:.1f}</dd>" in text  # type: ignore[union-attr]
    assert "short of 1.27 GB" in text  # layers split evenly, as compare says
    home = plan.layers[27].attention
    assert plan.to_dict()["layers"][27] == {"attention": home, "experts": {home: "all"}}
    assert sum(seconds for *_, seconds in data["decode"]) == pytest.approx(plan.prediction.decode_step_s)  # type: ignore[union-attr]
    assert data["plan"]["memory"]["cpu"] == [0, 0, 0, 486_400_000_000]


def test_pages_are_whole_and_ask_for_nothing(pages: dict[str, Path]) -> None:
    from plotly.offline import get_plotlyjs

    for path in pages.values():
        text = path.read_text(encoding="utf-8")
        ours = text.replace(get_plotlyjs(), "")
        assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import|url\(", ours)
        assert "default-src 'none'" in ours
        assert len(ours) < 80_000
        assert len(text) < 6_000_000


def test_a_name_never_becomes_script(tmp_path: Path, plan: Placement, table: pandas.DataFrame) -> None:
    write_explorer(table.assign(quant=[EVIL] * 4 + ["b"] * 4, why=EVIL), tmp_path / "x.html", title=EVIL)
    named = plan.replace(notes=(EVIL,), quant=EVIL)
    write_report(named, tmp_path / "r.html", profile=STORY[0], hardware=STORY[1])
    for name in ("x.html", "r.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "<script>window.hacked" not in text
        assert "<img" not in text.split("<script>")[0]


def test_bad_tables_and_places_are_one_line(tmp_path: Path, plan: Placement, table: pandas.DataFrame) -> None:
    with pytest.raises(MoeplanError, match="no rows"):
        write_explorer(table[:0], tmp_path / "x.html")
    with pytest.raises(MoeplanError, match="cannot be written"):
        write_explorer(table, tmp_path / "none" / "x.html")
    with pytest.raises(MoeplanError, match="names no model"):
        write_report(plan.replace(model=None), tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_without_plotly_it_is_one_line(tmp_path: Path) -> None:
    source = (
        "import sys; sys.modules['plotly'] = None\n"
        "import moeplan, moeplan.report\n"
        "try:\n    moeplan.report.write_report(moeplan.solve('qwen3-30b-a3b', '1xRTX4090,ram=96GB'), 'r.html')\n"
        "except moeplan.MoeplanError as problem:\n    print(problem)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{source}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "HTML pages: plotly is not installed; pip install 'moeplan[plots]'\n"
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_report(moeplan: Any, tmp_path: Path, plan: Placement) -> None:
    document, page = tmp_path / "plan.yaml", tmp_path / "report.html"
    plan.save(document)
    assert moeplan("report", document, "-o", page) == (0, f"wrote {page}\n", "")
    assert "deepseek-v2-measured on 8xL40-46GB" in page.read_text(encoding="utf-8")
    status, out, err = moeplan("report", document, "-o", page, "--hardware", "2xL40-46GB")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "has no cuda:2" in err


# ---- in a browser ------------------------------------------------------------------------------------------------


def text_of(page: Any, id_: str) -> str:
    return str(page.execute_script("return document.getElementById(arguments[0]).textContent", id_))


def bars(page: Any, id_: str) -> list[str]:
    """Where the bars of a chart are, as it draws them."""
    script = "return [...document.querySelectorAll(`#${arguments[0]} .bars .point path`)].map(p => p.getAttribute('d'))"
    return list(page.execute_script(script, id_))


def overflows(page: Any) -> bool:
    return bool(page.execute_script("return document.documentElement.scrollWidth > innerWidth"))


WINDOWS = pytest.mark.parametrize(
    "window", [{}, {"wide": 390, "high": 844}, {"dark": True}], ids=["desk", "phone", "dark"]
)


@WINDOWS
def test_the_report_draws_itself(page: Any, pages: dict[str, Path], window: dict[str, Any]) -> None:
    chrome.show(page, pages["report"], **window)
    assert chrome.complaints(page) == []
    assert len(bars(page, "map")) == 60 + 59 + 2
    assert all(bars(page, chart) for chart in ("memory", "prefill", "decode", "peers"))
    assert not overflows(page)
    ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") != window.get("dark", False)


@WINDOWS
def test_sliders_move_the_picture(page: Any, pages: dict[str, Path], window: dict[str, Any]) -> None:
    """By keyboard alone: from four cards to three, and on to one, for which nothing fits."""
    from selenium.webdriver.common.keys import Keys

    chrome.show(page, pages["explorer"], **window)
    slider = page.find_element("id", "axis-gpus")
    seen = []
    for _ in range(4):
        seen.append((text_of(page, "figure-tokens_per_s") if not at_one(page) else "", bars(page, "map")))
        slider.send_keys(Keys.ARROW_LEFT)
    speeds, maps = [speed for speed, _ in seen[:3]], [tuple(map_) for _, map_ in seen[:3]]
    assert len(set(speeds)) == len(set(maps)) == 3
    assert text_of(page, "axis-gpus-value") == "1"
    assert text_of(page, "verdict").startswith("mixtral-8x7b does not fit 1xRTX4090")
    assert not page.find_element("id", "picture").is_displayed()
    assert page.execute_script("return document.querySelectorAll('#line .shapelayer path').length") > 1
    assert not overflows(page)
    assert chrome.complaints(page) == []


def at_one(page: Any) -> bool:
    return text_of(page, "axis-gpus-value") == "1"


def test_the_explorer_says_the_rows_figures(page: Any, pages: dict[str, Path], table: pandas.DataFrame) -> None:
    from selenium.webdriver.common.keys import Keys

    chrome.show(page, pages["explorer"])
    assert text_of(page, "axis-context-value") == "65,536"
    page.find_element("id", "axis-context").send_keys(Keys.HOME)
    assert text_of(page, "axis-context-value") == "4,096"
    (row,) = table[(table["gpus"] == 4) & (table["context"] == 4096)].to_dict("records")
    said = float(text_of(page, "figure-tokens_per_s").replace(",", ""))
    assert said == pytest.approx(row["tokens_per_s"], rel=5e-3)
    page.find_element("css selector", "#across option[value='1']").click()
    assert text_of(page, "rows").startswith("context tokens")


def test_what_nobody_knows_is_not_said_to_overflow(page: Any, tmp_path: Path) -> None:
    rows = {"gpus": [1, 2, 3], "feasible": [False, False, False], "status": ["infeasible", "error", "no plan"]}
    why = ["short of 1 GB", "its worker died", None]
    write_explorer(pandas.DataFrame({**rows, "why": why, "tokens_per_s": None}), tmp_path / "x.html", title="odd")
    chrome.show(page, tmp_path / "x.html")
    said = []
    for place in range(3):
        page.execute_script("at[0] = arguments[0]; draw()", place)
        said.append(text_of(page, "verdict"))
    assert said == ["short of 1 GB", "error: its worker died", "no plan"]
    legend = "return [...document.querySelectorAll('#line .legendtext')].map(t => t.textContent)"
    assert page.execute_script(legend) == ["fits", "does not fit", "not known", "chosen"]
    assert chrome.complaints(page) == []


def test_a_plan_that_does_not_fit_can_be_looked_at(page: Any, tmp_path: Path) -> None:
    """Eight layers a card, written by hand: six cards are short of 422 131 456 bytes each."""
    layers = [{"attention": f"cuda:{i // 8}", "experts": {f"cuda:{i // 8}": "all"} if i else {}} for i in range(60)]
    by_hand = Placement(embedding="cuda:0", head="cuda:7", layers=layers)
    write_report(by_hand, tmp_path / "r.html", profile=STORY[0], hardware=STORY[1])
    chrome.show(page, tmp_path / "r.html")
    said = page.execute_script("return document.querySelector('header .bad').textContent")
    assert said.startswith("does not fit: cuda:1 overflows by 422131456 bytes (0.42 GB); cuda:2 ")
    marks = page.execute_script(
        "return [...document.querySelectorAll('#memory .annotation-text')].map(t => t.textContent)"
    )
    assert marks == ["0.42 GB too much"] * 6
    assert chrome.complaints(page) == []


def test_every_control_has_a_name_and_can_be_reached(page: Any, pages: dict[str, Path]) -> None:
    chrome.show(page, pages["explorer"])
    unnamed = "return [...document.querySelectorAll('input, select')].filter(c => !c.labels.length).map(c => c.id)"
    assert page.execute_script(unnamed) == []
    pictures = "return [...document.querySelectorAll('figure')].map(f => f.getAttribute('aria-label'))"
    assert all(page.execute_script(pictures))
    page.execute_cdp_cmd(
        "Input.dispatchKeyEvent", {"type": "keyDown", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
    )
    assert page.execute_script("return document.activeElement.id") == "axis-gpus"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.execute_script(outline) == "solid"


def test_a_hostile_name_is_only_text(page: Any, tmp_path: Path, table: pandas.DataFrame) -> None:
    named = table.assign(gpu=[EVIL] * 4 + ["b"] * 4, why=EVIL)
    write_explorer(named, tmp_path / "x.html", title=EVIL)
    chrome.show(page, tmp_path / "x.html")
    assert page.execute_script("return window.hacked === undefined")
    assert page.execute_script("return document.querySelector('h1').textContent") == EVIL
    assert page.execute_script("return document.querySelector('#axis-gpu option').textContent") == EVIL
    assert page.execute_script("return document.querySelectorAll('img').length") == 0
    assert chrome.complaints(page) == []
