"""`moeplan what-if`: a grid of scenarios, one plan each. `moeplan.cli` imports this file last, to register it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from moeplan import cli
from moeplan.cli import AsJson, GeneratedTokens, Hub, Machine, Model, Output, PrefillChunk
from moeplan.grid import AXES, value_text
from profiles import MoeplanError, Workload, load_hardware
from profiles.document import one_line, short, write_text
from profiles.units import parse_count
from solver import what_if

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_ROWS = 200
"""Rows that are printed; more are for a file."""

Values = str | None


def _axis(help: str) -> Any:
    return typer.Option(help=help, show_default=False)


@cli.app.command("what-if")
def ask(
    model: Model,
    hardware: Machine,
    gpus: Annotated[Values, _axis("numbers of GPUs: 8, 1-16, 2,4,8")] = None,
    gpu: Annotated[Values, _axis("other GPUs by name: RTX4090,L40-46GB")] = None,
    memory: Annotated[Values, _axis("memory of each GPU: '24 GB,48 GB'")] = None,
    link: Annotated[Values, _axis("between GPU and CPU: '25 GB/s', pcie4x16,pcie5x16")] = None,
    ram_bandwidth: Annotated[Values, _axis("peak of the CPU's memory: '200 GB/s,400 GB/s'")] = None,
    context_tokens: Annotated[Values, _axis("tokens a sequence to reserve KV for: 4096,32k")] = None,
    batch_size: Annotated[Values, _axis("sequences at a time: 1,4,16")] = None,
    prompt_tokens: Annotated[Values, _axis("prompt tokens of a request: 512,8192")] = None,
    quant: Annotated[Values, _axis("weight formats of a preset or config.json: bf16,q4_k_m")] = None,
    safety_margin: Annotated[Values, _axis("shares of the GPUs' memory never planned for: 0.05,0.10")] = None,
    granularity: Annotated[Values, _axis("layer,module,expert")] = None,
    target: Annotated[Values, _axis("runtimes: torch,llama.cpp,ktransformers")] = None,
    hub: Hub = False,
    generated_tokens: GeneratedTokens = 128,
    prefill_chunk: PrefillChunk = 512,
    objective: Annotated[str, typer.Option(help="request, decode, prefill or throughput")] = "request",
    time_limit: Annotated[float, typer.Option(help="seconds of work that a scenario is worth")] = 1.0,
    relative_gap: Annotated[float, typer.Option(help="near enough to the proved best, as a share")] = 1e-3,
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    resume: Annotated[
        Path | None, typer.Option(help="a .csv or .parquet file to write rows to as they come, and to go on from")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write a page to explore the grid, in one file")] = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Plan MODEL on HARDWARE for every combination of the values given: a table, a CSV file (-o) or a page (--html)."""
    axes = {
        "gpus": _values("gpus", gpus, _whole_numbers), "gpu": _values("gpu", gpu), "memory": _values("memory", memory),
        "link": _values("link", link), "ram_bandwidth": _values("ram-bandwidth", ram_bandwidth),
        "context": _values("context-tokens", context_tokens, _token_counts),
        "batch": _values("batch-size", batch_size, _whole_numbers),
        "prompt": _values("prompt-tokens", prompt_tokens, _token_counts),
        "quant": _values("quant", quant), "margin": _values("safety-margin", safety_margin, _shares),
        "granularity": _values("granularity", granularity), "target": _values("target", target),
    }  # fmt: skip
    given: dict[str, Any] = {name: values for name, values in axes.items() if values is not None}
    options: dict[str, Any] = {
        "objective": objective, "time_limit": time_limit, "relative_gap": relative_gap, "seed": seed, "resume": resume,
    }  # fmt: skip
    request = Workload(generated_tokens=generated_tokens, prefill_chunk=prefill_chunk)
    table = what_if(model, load_hardware(hardware), workload=request, **given, **options)
    _write(table, output)
    if html is not None:
        _explorer()(table, html)
    if as_json:
        print(json.dumps({"schema": 1, "rows": [_plain(row) for row in table.to_dict("records")]}, indent=2))
        return
    out = cli.console()
    out.print(rows_table(table, list(given), f"{model} on {hardware}"))
    if len(table) > MOST_ROWS:
        out.print(f"the first {MOST_ROWS} of {len(table)} scenarios; write all to a file with -o", highlight=False)
    for line in dict.fromkeys(why for why in table["why"].head(MOST_ROWS) if isinstance(why, str)):
        out.print(f"does not fit: {line}", highlight=False, markup=False, style="dim")


def rows_table(table: DataFrame, axes: list[str], title: str) -> Table:
    """The rows for people: what was varied, then speed, what fits and what binds."""
    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for axis in axes:
        found.add_column(AXES[axis], justify="right")
    for heading in ("tokens/s", "prefill", "gap", "experts\non CPU", "free on\nfullest GPU"):
        found.add_column(heading, justify="right")
    found.add_column("what binds")
    for row in table.head(MOST_ROWS).to_dict("records"):
        values = [value_text(axis, row[axis]) for axis in axes]
        found.add_row(*values, *_shown(row))
    return found


def _shown(row: dict[str, Any]) -> Sequence[str | Text]:
    if not row["feasible"]:
        return [Text("-")] * 5 + [Text(row["status"], style="bold red")]
    free = row["gpu_headroom_bytes"]
    return [
        f"{row['tokens_per_s']:,.1f}",
        f"{row['prefill_s']:,.2f} s",
        f"{row['gap']:.2%}",
        f"{row['experts_on_cpu']:.0%}",
        "-" if free is None or free != free else f"{free / 1e9:,.2f} GB",
        row["binds"],
    ]


def _write(table: DataFrame, path: Path | None) -> None:
    """The table without plans as CSV, with plans as JSON."""
    if path is None:
        return
    if path.suffix == ".json":
        write_text(path, json.dumps({"schema": 1, "rows": [_plain(row) for row in table.to_dict("records")]}, indent=1))
    elif path.suffix == ".csv":
        write_text(path, table.drop(columns="plan").to_csv(index=False))
    else:
        raise MoeplanError(one_line(f"{path}: is neither .csv nor .json; give a file of one of these names"))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: nothing for what is not there, and the plan's document."""
    plan = row["plan"]
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in row.items() if name != "plan"}
    plain = {name: None if value != value else value for name, value in plain.items()}
    return {**plain, "plan": None if plan is None else plan.to_dict()}


def _explorer() -> Callable[[DataFrame, Path], None]:
    from moeplan.explorer import write_explorer  # it may need a library that is not installed, and says so

    return write_explorer


# ---- values ---------------------------------------------------------------------------------------------------------


def _values(option: str, text: str | None, read: Callable[[str], list[Any]] | None = None) -> list[Any] | None:
    """The values of an option, separated by commas."""
    if text is None:
        return None
    found: list[Any] = []
    for part in (part.strip() for part in text.split(",")):
        try:
            found += [part] if read is None else read(part)
        except ValueError as problem:
            raise MoeplanError(f"--{option}: {short(part)} {problem}") from None
    return found


def _whole_numbers(text: str) -> list[int]:
    """`8`, or `1-16` for all from 1 to 16."""
    match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", text)
    if match is None:
        raise ValueError("is not a whole number; write e.g. 8, 1-16 or 2,4,8")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last <= first + 10_000:
        raise ValueError("is not a range from few to more; write e.g. 1-16")
    return list(range(first, last + 1))


def _token_counts(text: str) -> list[int]:
    """`4096` or `4k`, or a range as of other whole numbers."""
    return [parse_count(text)] if re.search("[kKmM]$", text) else _whole_numbers(text)


def _shares(text: str) -> list[float]:
    try:
        return [float(text)]
    except ValueError:
        raise ValueError("is not a share; write e.g. 0.10") from None
