"""Claim: predicted bytes are those of the real forward; workspace is never below it and at most 25 % or 512 MiB above.

Full-size models run their own transformers forward on fake tensors (`dry_run`), every layer of them: weights and KV
must be equal to the byte, and workspace is set beside what was alive at the peak. Two placements: `mixed`, attention in
eight blocks with experts in turn on the same GPU, the CPU and the next GPU; and `apart`, every kind of block on a GPU
of its own, which shows each form by itself. Bytes do not depend on the machine.

Run: python benchmarks/workspace.py [--models deepseek-v3,…] [--write docs/workspace.md]
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from cost_models import CostModel
from profiles import Workload, load_hardware, load_profile
from profiles.model import ModelProfile
from profiles.placement import Placement
from profiles.presets import model_config_preset
from runtime_adapter.dry_run import dry_run
from solver.evaluate import judge

MODELS = (
    *("deepseek-v2", "deepseek-v3", "mixtral-8x22b", "qwen3-235b-a22b", "gpt-oss-120b", "glm-4.5"),
    *("qwen3-next-80b-a3b-thinking", "kimi-k2-instruct", "llama-4-scout", "olmoe-1b-7b", "qwen3-30b-a3b"),
    "llama-3.1-70b",
)
CASES = ((512, 512), (2048, 2048), (8192, 8192), (8192, 512))
"""(prompt tokens, prefill chunk)."""
MOST_RATIO, MOST_EXCESS_BYTES = 1.25, 512 * 2**20
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One device of one run: what was alive at its peak beyond weights and KV, and what was predicted."""

    model: str
    placement: str
    prompt: int
    chunk: int
    device: str
    holds: str
    measured: int
    predicted: int
    exact: bool

    @property
    def ratio(self) -> float:
        return self.predicted / max(1, self.measured)

    @property
    def excess(self) -> int:
        return self.predicted - self.measured

    @property
    def within(self) -> bool:
        return self.excess >= 0 and (self.ratio <= MOST_RATIO or self.excess <= MOST_EXCESS_BYTES)


def mixed(profile: ModelProfile, gpus: int = 8) -> Placement:
    """Attention in blocks; experts of every third layer on the same GPU, on the CPU, on the next GPU."""
    layers = []
    for i, layer in enumerate(profile.layers):
        home = i * gpus // len(profile.layers)
        place = (f"cuda:{home}", "cpu", f"cuda:{(home + 1) % gpus}")[i % 3]
        layers.append({"attention": f"cuda:{home}", "experts": {place: "all"} if layer.experts else {}})
    return Placement(embedding="cuda:0", head=f"cuda:{gpus - 1}", layers=layers)


def apart(profile: ModelProfile) -> Placement:
    """Embedding, attention of sparse and of dense layers, experts and head each on a GPU of its own."""
    layers = [
        {"attention": "cuda:1", "experts": {"cuda:3": "all"}} if layer.experts else {"attention": "cuda:2"}
        for layer in profile.layers
    ]
    return Placement(embedding="cuda:0", head="cuda:4", layers=layers)


PLACEMENTS = {"mixed": mixed, "apart": apart}


def measure(model: str, placement: str, prompt: int, chunk: int) -> Iterator[Row]:
    """Run one case; one row a device of the plan."""
    config = model_config_preset(model)
    profile = load_profile(model, quant="bf16")
    plan = PLACEMENTS[placement](profile)
    run = dry_run(plan, config, prompt_tokens=prompt, prefill_chunk=chunk, new_tokens=0)
    workload = Workload(prompt_tokens=prompt, generated_tokens=0, prefill_chunk=chunk)
    memory = judge(plan, CostModel(profile, load_hardware("8xA100-80GB"), workload)).memory
    for device in sorted(plan.devices, key=lambda name: (name == "cpu", name)):
        held, end = memory[device], run.phases[-1].devices[device]
        exact = (held.weights_bytes, held.kv_bytes) == (end.weights_bytes, end.kv_bytes)
        measured = run.workspace_bytes[device]
        holds = plan.holds(device).split(" ")[0] if placement == "apart" else device
        yield Row(model, placement, prompt, chunk, device, holds, measured, held.workspace_bytes, exact)


def worst(rows: list[Row]) -> Row:
    """The row furthest from its measurement, by the looser of the two bounds."""
    return max(rows, key=lambda row: min(row.ratio / MOST_RATIO, row.excess / MOST_EXCESS_BYTES))


def table_rows(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """For each model and case: the busiest GPU and the CPU under `mixed`, and the extremes over all devices."""
    for model in dict.fromkeys(row.model for row in rows):
        for prompt, chunk in CASES:
            here = [row for row in rows if (row.model, row.prompt, row.chunk) == (model, prompt, chunk)]
            busiest = max((r for r in here if r.device != "cpu"), key=lambda row: row.measured)
            on_cpu = [row for row in here if row.device == "cpu"]
            yield (
                model,
                f"{prompt}" if chunk == prompt else f"{prompt} by {chunk}",
                "equal" if all(row.exact for row in here) else "DIFFERENT",
                _both(busiest),
                _both(on_cpu[0]) if on_cpu else "none",
                f"{min(row.ratio for row in here):.3f}",
                f"{worst(here).ratio:.3f}",
                f"{max(row.excess for row in here) / MIB:.0f}",
            )


HEADINGS = (
    "model",
    "prompt",
    "weights, KV",
    "busiest GPU: predicted / measured MiB",
    "CPU: predicted / measured MiB",
    "least ratio",
    "worst ratio",
    "most excess MiB",
)


def _both(row: Row) -> str:
    return f"{row.predicted / MIB:.0f} / {row.measured / MIB:.0f} = {row.ratio:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="presets, separated by commas")
    parser.add_argument("--write", type=Path, help="put the table into this page, between its two marks")
    options = parser.parse_args()
    started, rows, console = time.perf_counter(), list[Row](), Console(width=150)
    cases = [(m, p, *case) for m in options.models.split(",") for case in CASES for p in PLACEMENTS]
    for case in track(cases, description="dry runs", console=Console(stderr=True)):
        rows += measure(*case)
    table = Table(*HEADINGS)
    for cells in table_rows(rows):
        table.add_row(*cells)
    console.print(table)
    wrong = [row for row in rows if not row.within or not row.exact]
    for row in wrong:
        console.print(f"[red]outside the claim[/red]: {row}")
    seconds = time.perf_counter() - started
    console.print(f"{len(rows)} devices in {len(cases)} runs, {seconds:.0f} s, Python {platform.python_version()}")
    if options.write:
        write(options.write, rows)
    if wrong:
        raise SystemExit(1)


def write(page: Path, rows: list[Row]) -> None:
    """Replace what is between the page's marks by the table."""
    begin, end = "<!-- table -->\n", "<!-- end of table -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in table_rows(rows)]
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
