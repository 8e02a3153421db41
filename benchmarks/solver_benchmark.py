"""Claims about the solver, each with its table: how fast it proves, how much faster than other formulations of the same
problem, what its plans gain over the rules that people and runtimes use, and how it grows.

    suite      66 real instances, module and expert granularity; seconds to a proof of the story's plan
    rivals     seconds to the same gap: the naive product model (CP-SAT, 2 workers), counts in SCIP (1), ours (1)
    baselines  predicted seconds of our plans and of the rules in solver/baselines
    size       seconds and gap against layers and GPUs, with a plot (needs matplotlib)

Run: python benchmarks/solver_benchmark.py [--part PART …] [--limit N] [--rows FILE] [--out docs/solver_benchmark.md]

`--rows` keeps each row as soon as it is measured, and what is in the file already is not measured again: delete it
after a change. (This file cannot be called solver.py: it would hide the package from every script beside it.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from instances import SMALL
from rich.console import Console
from rich.progress import Progress
from solver_measure import CASES, ROWS, Row, timed_instance
from solver_report import SECTIONS

PAGE_START = """\
# The solver, measured

Written by `python benchmarks/solver_benchmark.py --out docs/solver_benchmark.md`, a section a `--part`. The instances,
and how they were drawn, are in `benchmarks/instances.py`. Their classes say how many of the experts' bytes exceed the
GPUs (nearly fits: at most 5 % above or below; mostly CPU: more than half), unless the cards differ or NVLink joins only
pairs of them. A time is of one call of `solve`, model and machine loaded: building the problem, the search, and the
check of the plan.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="default: all")
    parser.add_argument("--limit", type=int, help="only the first N cases of the part's list")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of each search in rivals (default 60)")
    parser.add_argument("--rows", type=Path, help="JSON lines: rows measured so far, and where new ones go")
    parser.add_argument("--out", type=Path, help="put the sections into this page, which is made if need be")
    options = parser.parse_args()
    console = Console()
    timed_instance(SMALL[0])  # the first call loads what later ones find loaded
    for part in options.part:
        rows = measure(part, options.limit, options.seconds, options.rows, console)
        title, section = SECTIONS[part]
        lines = [machine(), "", *section(rows)] if rows else ["Nothing measured."]
        console.print(f"\n## {title}\n", "\n".join(lines), sep="\n", markup=False, highlight=False, soft_wrap=True)
        if options.out:
            write(options.out, part, title, lines)


def machine() -> str:
    """One line: what the times are of."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = f"{os.cpu_count()} CPUs ({names[0] if names else platform.machine()})"
    versions = f"Python {platform.python_version()}, OR-Tools {version('ortools')}"
    return f"{platform.system()} {platform.machine()}, {cpu}, {versions}."


def measure(part: str, limit: int | None, seconds: float, file: Path | None, console: Console) -> list[Row]:
    """The part's rows, in the order of its list; those of `file` are taken from there and new ones added to it."""
    known, rows = dict(read_rows(file, part)), []
    cases = list(CASES[part](limit, seconds))
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(part, total=len(cases))
        for name, measured in cases:
            progress.update(task, description=f"{part}: {name}")
            row = known.get(name)
            if row is None and (row := measured()) is not None:
                console.print(str(row), highlight=False, markup=False, soft_wrap=True)
                add_row(file, part, name, row)
            if row is not None:
                rows.append(row)
            progress.advance(task)
    return rows


def read_rows(file: Path | None, part: str) -> Iterator[tuple[str, Row]]:
    if file is None or not file.exists():
        return
    kinds = {kind.__name__: kind for kind in ROWS}
    for line in file.read_text(encoding="utf-8").splitlines():
        stored = json.loads(line)
        if stored["part"] == part:
            yield stored["case"], kinds[stored["kind"]](**stored["row"])


def add_row(file: Path | None, part: str, name: str, row: Row) -> None:
    if file is None:
        return
    stored = {"part": part, "case": name, "kind": type(row).__name__, "row": asdict(row)}
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(stored) + "\n")


def write(page: Path, part: str, title: str, lines: list[str]) -> None:
    """Replace the part's section in `page`, between its two marks; page and section are made where there is none."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    text = page.read_text(encoding="utf-8") if page.exists() else PAGE_START
    if begin not in text:
        text = f"{text.rstrip()}\n\n## {title}\n\n{begin}\n{end}\n"
    before, after = text.split(begin)[0], text.split(end)[1]
    section = "\n".join(lines).strip()
    page.write_text(f"{before}{begin}\n{section}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
