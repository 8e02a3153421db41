"""One self-contained HTML file: style, scripts, plotly and data in it, nothing fetched from anywhere.

The files are in `moeplan/pages`. Whatever comes from a plan is escaped here, once: text for HTML by `html_text` and
`html_table`, data for scripts by `_script_json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from profiles.document import write_text
from profiles.errors import MoeplanError
from profiles.layer_map import device_order, expert_shares
from profiles.placement import DeviceMemory, Placement

html_text = escape


def write_page(path: str | Path, name: str, title: str, texts: Mapping[str, str], data: Mapping[str, Any]) -> None:
    """Write the page `name` (report or explorer): `texts` are HTML for the places in its body, `data` is what its
    script reads. Raises MoeplanError when plotly is not installed or the file cannot be written."""
    body = Template(_file(f"{name}.html")).substitute(texts)
    script = _file("charts.js") + "\n" + _file(f"{name}.js")
    whole = Template(_file("page.html")).substitute(
        title=escape(title),
        style=_file("style.css"),
        body=body,
        data=_script_json(data),
        plotly=_plotly(),
        script=script,
    )
    write_text(path, whole)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    """A table of texts; all columns but `text_columns` are numbers.

    >>> html_table(["a"], [["<b>"]])  # doctest: +ELLIPSIS
    '<table><thead><tr><th scope="col">a</th></tr></thead><tbody><tr><td class="text">&lt;b&gt;</td></tr></tbody>...'
    """
    start = ['<td class="text">' if i in text_columns else "<td>" for i in range(len(head))]
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    cells = ("".join(f"{td}{escape(cell)}</td>" for td, cell in zip(start, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def plan_data(plan: Placement) -> dict[str, Any]:
    """A plan for scripts: equal neighbouring layers as [what, how many], memory as [weights, KV, workspace, usable]."""
    shares = [[[device, round(share, 4)] for device, share in expert_shares(layer).items()] for layer in plan.layers]
    data: dict[str, Any] = {
        "devices": device_order({*(plan.memory or ()), *plan.devices}),
        "embedding": plan.embedding,
        "head": plan.head,
        "attention": _runs([layer.attention for layer in plan.layers]),
        "experts": _runs(shares),
    }
    if plan.memory:
        data["memory"] = {device: _memory(plan.memory[device]) for device in device_order(plan.memory)}
    return data


def _memory(held: DeviceMemory) -> list[int]:
    return [held.weights_bytes, held.kv_bytes, held.workspace_bytes, held.usable_bytes]


def _runs(values: Iterable[Any]) -> list[list[Any]]:
    return [[value, len(list(same))] for value, same in groupby(values)]


def _script_json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _file(name: str) -> str:
    return (files("moeplan") / "pages" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise MoeplanError("HTML pages: plotly is not installed; pip install 'moeplan[plots]'") from None
    return str(get_plotlyjs())
