"""What only a real GPU can tell: probes, plans on live models, the cost model's constants, overlap, speed end to end.

Everything is measured on cuda:0 and the CPU with random weights, in about five minutes on an H100. A part that fails
says so in the result, and the others go on. `--dry` walks through all of it on the CPU, with small shapes.

Run: python benchmarks/gpu.py --out gpu.json [--parts machine,live]
     python benchmarks/gpu.py --out gpu.json --write docs/gpu_check.md    (tables of a result that is there)
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_bench import CPU, GB, Bench, Table
from gpu_constants import constants, launches, overlap
from gpu_models import accelerate, end_to_end, live, refusals


def machine(bench: Bench) -> Table:
    """What `load_hardware("local")` finds, beside the catalogue's data sheet."""
    begin = time.perf_counter()
    found = bench.machine()
    seconds = time.perf_counter() - begin
    known, gpu, cpu = bench.listed(), found.gpus[0], found.cpu
    link, listed = found.links[0], known.gpus[0]
    for what, here, there in (
        ("GPU memory, GB", gpu.memory_bytes / GB, listed.memory_bytes / GB),
        ("GPU memory reserved, GB", gpu.reserved_bytes / GB, None),
        ("GPU bandwidth, GB/s", gpu.bandwidth_bytes_per_s / GB, listed.bandwidth_bytes_per_s / GB),
        ("GPU bf16 products, TFLOP/s", gpu.flops_per_s["bf16"] / 1e12, listed.flops_per_s["bf16"] / 1e12),
        ("link to RAM, GB/s", link.bandwidth_bytes_per_s / GB, known.links[0].bandwidth_bytes_per_s / GB),
        ("link to RAM, latency, us", link.latency_s * 1e6, known.links[0].latency_s * 1e6),
        ("RAM, GB/s", cpu.bandwidth_bytes_per_s / GB, None),
        *((f"CPU {kind} products, TFLOP/s", rate / 1e12, None) for kind, rate in cpu.flops_per_s.items()),
        ("seconds to read and probe", seconds, None),
    ):
        yield "Figures", {"figure": what, "measured": here, "data sheet": there, "ratio": there and here / there}
    for note in found.notes:
        yield "Notes", {"note": note}


ALL = (machine, live, refusals, constants, launches, overlap, end_to_end, accelerate)
PARTS: dict[str, Callable[[Bench], Table]] = {part.__name__: part for part in ALL}


def measure(part: Callable[[Bench], Table], bench: Bench, result: dict[str, Any], keep: Callable[[], None]) -> None:
    """Put all tables of a part, as far as it comes, into `result`, and keep it after each row."""
    begin, tables = time.perf_counter(), result.setdefault("tables", {})
    try:
        for title, row in part(bench):
            print(f"  {', '.join(f'{key} {shown(value)}' for key, value in row.items())}", flush=True)
            tables.setdefault(title, []).append(row)
            result["seconds"] = time.perf_counter() - begin
            keep()
    except Exception as problem:  # one part must not lose the others
        result["error"] = f"{type(problem).__name__}: {problem}"
        traceback.print_exc()
    result["seconds"] = time.perf_counter() - begin
    keep()


def shown(value: object) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def tables(result: Mapping[str, Any]) -> str:
    """The result in Markdown."""
    lines = [f"{result['machine']}. {sum(part['seconds'] for part in result['parts'].values()):.0f} s in all."]
    for name, part in result["parts"].items():
        lines += ["", f"### {name.replace('_', ' ').capitalize()}"]
        for title, rows in part["tables"].items():
            lines += ["", f"{title}:", "", f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
            lines += [f"| {' | '.join(shown(row.get(key)) for key in rows[0])} |" for row in rows]
        if "error" in part:
            lines += ["", f"Failed: {part['error']}"]
    return "\n".join(lines) + "\n"


def write(page: Path, result: Mapping[str, Any]) -> None:
    """Replace what is between the page's marks by the tables."""
    begin, end = "<!-- tables -->\n", "<!-- end of tables -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(before + begin + tables(result) + end + rest.split(end)[1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the result, as JSON")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of the parts, separated by commas")
    parser.add_argument("--dry", action="store_true", help="walk through it on the CPU")
    parser.add_argument("--write", type=Path, help="put the tables of the result at --out into this page")
    options = parser.parse_args()
    if options.write:
        write(options.write, json.loads(options.out.read_text(encoding="utf-8")))
        return
    if not options.dry and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing to measure (--dry walks through it on the CPU)")
    bench = Bench(CPU if options.dry else torch.device("cuda:0"))
    name = "dry run" if options.dry else torch.cuda.get_device_name(0)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    result: dict[str, Any] = {"machine": f"{name}, {torch.get_num_threads()} CPU threads, {versions}", "parts": {}}
    for part in options.parts.split(","):
        print(f"{part}:", flush=True)
        measure(
            PARTS[part],
            bench,
            result["parts"].setdefault(part, {}),
            lambda: options.out.write_text(json.dumps(result, indent=1), encoding="utf-8"),
        )


if __name__ == "__main__":
    main()
