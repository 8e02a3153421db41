"""Claim: decode reads CPU experts at 75 % or more of the memory bandwidth measured in the same run.

Every engine that runs here computes the same tokens with the same random weights, in turns, so that whatever else the
machine does hits all alike; each figure is the best of all turns, and so is the bandwidth, measured in between
with one reading thread a CPU. Bytes are those of the distinct experts that the tokens chose, as the engine holds them.

On a machine that others use, `--patience 20` waits up to 20 s before each measurement for the other work to pause.

Run: python benchmarks/cpu_experts.py [--shapes deepseek-v2,…] [--rounds 5] [--patience 20] [--out docs/cpu_experts.md]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from profiles.errors import ApplyError
from runtime_adapter.cpu_experts import ENGINES, ExpertEngine, engine_of
from runtime_adapter.cpu_experts.choose import Shape, distance, exact_token, first_experts
from runtime_adapter.local_machine.facts import Facts, read_facts
from runtime_adapter.local_machine.probes import Limits, read_bandwidth

SHAPES = {
    "deepseek-v2": (5120, 1536, 160, 6),
    "deepseek-v2-lite": (2048, 1408, 64, 6),
    "qwen3-235b-a22b": (4096, 1536, 128, 8),
    "qwen3-30b-a3b": (2048, 768, 128, 8),
}
"""(hidden size, intermediate size, experts, experts a token)."""
TOKENS = (1, 4, 32, 512)
REST_S = 0.1
"""kt-kernel's threads spin 50 ms after each call, and would take the next engine's time."""
IDLE_PERCENT, LOOK_S = 10.0, 0.3
"""Others pause when they use less than this share of all CPUs for so long."""


@dataclass
class Row:
    """One engine with one number of tokens: the best seconds so far, and bytes of weights a second then."""

    shape: str
    engine: str
    tokens: int
    error: float
    seconds: float = math.inf
    rate: float = 0.0


@dataclass
class Bench:
    """All engines of one shape, held at once, and the bandwidth as measured so far."""

    name: str
    facts: Facts
    patience: float
    asked: int = 0
    idle: int = 0
    engines: dict[str, ExpertEngine] = field(default_factory=dict)
    bits: dict[str, float] = field(default_factory=dict)
    rows: dict[tuple[str, int], Row] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    bandwidth: float = 0.0

    def build(self, names: list[str], gigabytes: float) -> None:
        """Make random experts of the shape, as many as fit in `gigabytes`, and every engine of `names` from them."""
        self.experts, self.full = random_experts(*SHAPES[self.name], gigabytes)
        self.timed = Shape.of(self.experts)
        call, exact = exact_token(self.experts)
        for name in names:
            begin = time.perf_counter()
            try:
                engine = engine_of(name)(first_experts(self.experts, self.timed.experts))
            except ApplyError as problem:
                self.absent[name] = str(problem)
                continue
            error = distance(engine(*call), exact)
            self.engines[name] = engine
            self.bits[name] = engine.held_bytes / self.timed.experts or self.timed.bytes_of_one
            for tokens in TOKENS:
                self.rows[name, tokens] = Row(self.name, name, tokens, error)
            print(f"  {name}: made in {time.perf_counter() - begin:.1f} s, error {error:.1e}", flush=True)

    def turn(self, seconds: float) -> None:
        """One turn of everything: the bandwidth, and each engine with each number of tokens for about `seconds`."""
        for name, engine in self.engines.items():
            self.wait()
            self.probe()
            for tokens in TOKENS:
                self.wait()
                self.measure(self.rows[name, tokens], engine, seconds)

    def wait(self) -> None:
        """Until others pause, or patience is at an end."""
        time.sleep(REST_S)
        deadline, paused = time.monotonic() + self.patience, False
        while not paused and time.monotonic() < deadline:
            paused = psutil.cpu_percent(LOOK_S) < IDLE_PERCENT
        self.asked, self.idle = self.asked + 1, self.idle + paused

    def probe(self) -> None:
        cpus, limits = self.facts.usable[: self.facts.threads], Limits(seconds=0.5)
        found = read_bandwidth(cpus, self.facts.cache_bytes, self.facts.available_bytes, limits)
        self.bandwidth = max(self.bandwidth, best_of(found.how), found.value)

    def measure(self, row: Row, engine: ExpertEngine, seconds: float) -> None:
        fewer = self.full.scaled(row.tokens, self.timed.experts)
        deadline = time.perf_counter() + seconds
        while True:
            call = self.timed.call(fewer)
            begin = time.perf_counter()
            engine(*call)
            took = time.perf_counter() - begin
            held = len(call[1].unique()) * self.bits[row.engine]
            row.seconds, row.rate = min(row.seconds, took * row.tokens / fewer), max(row.rate, held / took)
            if time.perf_counter() > deadline:
                return


def best_of(how: str) -> float:
    """The best rate that the probe tells beside its median."""
    return float(how.rsplit("best ", 1)[1].split(" ", 1)[0].replace(",", "")) * 1e9


def random_experts(
    hidden: int, intermediate: int, count: int, active: int, gigabytes: float
) -> tuple[nn.Module, Shape]:
    """A module with as many of `count` experts as fit, normal weights, bf16; and the shape of the whole."""
    one = 3 * hidden * intermediate * 2
    kept = max(active, min(count, int(gigabytes * 1e9 / one)))
    config = Qwen3MoeConfig(
        hidden_size=hidden, moe_intermediate_size=intermediate, num_experts=kept, num_experts_per_tok=active
    )
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        experts = Qwen3MoeExperts(config)
    for name, parameter in list(experts.named_parameters()):
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16)
        for of_one in weight:
            of_one.copy_(torch.randn(of_one.shape).div_(of_one.shape[1] ** 0.5))
        setattr(experts, name, nn.Parameter(weight, requires_grad=False))
    return experts, Shape(count, active, hidden, one, torch.bfloat16)


HEADINGS = ("shape", "engine", "tokens", "ms", "GB/s of weights", "% of bandwidth", "error against fp32")


def cells(bench: Bench) -> Iterator[tuple[str, ...]]:
    for row in sorted(bench.rows.values(), key=lambda row: (row.tokens, row.seconds)):
        share = f"{row.rate / bench.bandwidth:.0%}"
        rate, took = f"{row.rate / 1e9:.1f}", f"{1e3 * row.seconds:.2f}"
        yield row.shape, row.engine, str(row.tokens), took, rate, share, f"{row.error:.1e}"


def told(bench: Bench) -> str:
    return (
        f"{bench.name}: {bench.bandwidth / 1e9:.1f} GB/s read by {bench.facts.threads} threads; "
        f"{bench.timed.experts} of {bench.full.experts} experts, "
        f"{bench.timed.experts * bench.full.bytes_of_one / 1e9:.2f} GB in bf16"
        + (f"; others paused in {bench.idle} of {bench.asked} measurements" if bench.patience else "")
    )


def table(benches: list[Bench]) -> str:
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for bench in benches:
        lines += [f"| {' | '.join(row)} |" for row in cells(bench)]
    lines += ["", *(f"* {told(bench)}" for bench in benches)]
    lines += sorted({f"* not here: {reason}" for bench in benches for reason in bench.absent.values()})
    return "\n".join(lines) + "\n"


def machine(facts: Facts) -> str:
    isa, cache = ", ".join(facts.isa), f"{facts.cache_bytes / 2**20:.0f} MiB"
    return (
        f"{facts.cpu_name}, {facts.threads} threads ({isa}), last-level cache {cache}, "
        f"{facts.memory_bytes / 2**30:.0f} GiB; torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of them, separated by commas")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=5, help="turns of every engine")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one engine with one number of tokens, a turn")
    parser.add_argument("--gigabytes", type=float, default=1.2, help="of bf16 weights, a shape")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for others before a measurement")
    parser.add_argument("--out", type=Path, help="put the table into this page, between its two marks")
    options = parser.parse_args()
    facts, benches = read_facts(), list[Bench]()
    print(machine(facts))
    for name in options.shapes.split(","):
        bench = Bench(name, facts, options.patience)
        bench.build(options.engines.split(","), options.gigabytes)
        for _ in range(options.rounds):
            bench.turn(options.seconds)
        for engine in bench.engines.values():
            engine.close()
        bench.engines.clear()
        del bench.experts
        benches.append(bench)
        print(table([bench]), flush=True)
    if options.out:
        write(options.out, f"{machine(facts)}.\n\n{table(benches)}")


def write(page: Path, text: str) -> None:
    """Replace what is between the page's marks by `text`."""
    begin, end = "<!-- table -->\n", "<!-- end of table -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(before + begin + text + end + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
