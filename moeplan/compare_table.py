"""A comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from solver.compare import Comparison, Row


def comparison(found: Comparison) -> Iterator[RenderableType]:
    """The table, then one line for each layout that is not allowed here."""
    table = Table(title=found.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(found.text_columns()):
        table.add_column(column, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    for row, cells in zip((found.ours, *found.rows), found.text_rows(), strict=True):
        table.add_row(*_styled(row, cells), style="bold" if row is found.ours else None)
    yield table
    for note in found.notes():
        yield Text(note, style="dim")


def _styled(row: Row, cells: list[str]) -> list[Text]:
    verdict = "red" if not row.fits else "green" if row.tie else ""
    return [Text(cell, style=verdict if i == 1 else "") for i, cell in enumerate(cells)]
