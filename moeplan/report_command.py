"""`moeplan report`: a plan as one HTML page. `moeplan.cli` imports this file last, to register it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeplan import cli
from moeplan.checked import read_file
from moeplan.cli import Hub, KvQuant, Mla, Quant
from moeplan.report import write_report
from profiles.document import read_text
from runtime_adapter.read_rules import guess_format


@cli.app.command("report")
def report(
    plan: Annotated[Path, typer.Argument(help="a plan, or a file that check reads, with --model and --hardware")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the page to write, e.g. report.html")],
    model: Annotated[str | None, typer.Option(help="instead of the model the plan names")] = None,
    hardware: Annotated[str | None, typer.Option(help="instead of the hardware the plan names")] = None,
    quant: Quant = None,
    kv_quant: KvQuant = None,
    mla: Mla = None,
    hub: Hub = False,
) -> None:
    """Write PLAN as one HTML page that needs no network: layer map, memory, times, and other tools' rules beside it."""
    text, formats = read_text(plan), {"quant": quant, "kv_quant": kv_quant, "mla": mla}
    found, profile, _ = read_file(text, str(plan), guess_format(text), model, formats)
    machine = None if hardware is None else cli._machine(hardware)
    write_report(found, output, profile=profile, hardware=machine)
    cli.console().print(f"wrote {output}", markup=False, highlight=False)
