"""A comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from solver.compare import COLUMNS, Comparison, Row

DISPENSABLE = tuple(COLUMNS.index(name) for name in ("most on one", "prefill", "tokens/s", "experts\non CPU"))
"""Columns that a narrow terminal goes without, the first of these first."""
GAP = 2


def comparison(found: Comparison, width: int = 120) -> Iterator[RenderableType]:
    """The table in at most `width` columns of text, then one line for each reason why layouts are not allowed here."""
    cells = list(found.text_rows())
    kept = _kept([found.text_columns(), *cells], width)
    table = Table(title=found.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i in kept:
        table.add_column(found.text_columns()[i], justify="right" if i else "left", no_wrap=True)
    for row, texts in zip((found.ours, *found.rows), cells, strict=True):
        table.add_row(*(_styled(row, i, texts[i]) for i in kept), style="bold" if row is found.ours else None)
    yield table
    for note in found.notes():
        yield Text(note, style="dim")


def _kept(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The columns that fit, dispensable ones left out as need be."""
    needs = [max(len(line) for row in rows for line in row[i].split("\n")) + GAP for i in range(len(COLUMNS))]
    kept = list(range(len(COLUMNS)))
    for i in DISPENSABLE:
        if sum(needs[k] for k in kept) > width:
            kept.remove(i)
    return kept


def _styled(row: Row, column: int, text: str) -> Text:
    verdict = "red" if not row.fits else "green" if row.tie else ""
    return Text(text, style=verdict if column == 1 else "")
