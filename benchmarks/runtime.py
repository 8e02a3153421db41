"""What following a plan costs and how well it is foretold, on a machine without GPUs: hooks, dry runs, rehearsals.

Parts: `hooks` (a 2 GB model with and without a plan, in turn), `dry_runs` (full-size models, each in a process of its
own), `rehearsal` (a model on virtual GPUs: predicted from measured blocks, then measured).

Run on an idle machine: python benchmarks/runtime.py [--part hooks dry_runs rehearsal] [--out docs/runtime_benchmark.md]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from gpu_bench import CPU, QWEN, random_model

from cost_models import CostModel
from profiles import Hardware, load_hardware, load_profile, load_workload
from profiles.placement import Placement
from profiles.presets import model_config_preset
from runtime_adapter import apply, dry_run
from runtime_adapter.placing import hooks
from runtime_adapter.rehearse import rehearse
from runtime_adapter.virtual_gpus import NAME
from solver import solve
from solver.evaluate import judge

Row = dict[str, Any]
TWO_GB: dict[str, Any] = {
    **QWEN, "num_hidden_layers": 16, "hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 12,
    "vocab_size": 16384,
}  # fmt: skip
FULL_SIZE = ("deepseek-v2", "deepseek-v3", "mixtral-8x22b", "qwen3-235b-a22b", "kimi-k2-instruct")
PROMPT = 2048


def hooks_cost(rounds: int = 60) -> Iterator[Row]:
    """A decode step of a model of 2 GB with all of a plan's hooks, where all its devices are the CPU, and without."""
    model, profile = random_model("Qwen3Moe", TWO_GB, torch.bfloat16, CPU)
    layers = [
        {"attention": f"cuda:{i % 2}", "experts": {f"cuda:{1 - i % 2}": "all"}} for i in range(len(profile.layers))
    ]
    plan = Placement(embedding="cuda:0", head="cuda:1", layers=layers)
    ids = torch.randint(1, 1000, (1, 8))

    def step() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            model(ids[:, :1])
        return time.perf_counter() - begin

    for _ in range(3):
        step()
    plain, placed, count = [], [], 0
    for _ in range(rounds):
        plain.append(median(step() for _ in range(6)))
        with apply(plan, model, devices={"cuda:0": "cpu", "cuda:1": "cpu"}):
            found = [h for m in model.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
            count = sum(isinstance(hook, hooks.PlanHook) for hook in found)
            placed.append(median(step() for _ in range(6)))
    # Round by round: the machine's speed drifts by more than what is looked for.
    more = median(with_hooks - without for with_hooks, without in zip(placed, plain, strict=True))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    yield {
        "model GB": size / 1e9, "step ms": median(plain) * 1e3, "with hooks ms": median(placed) * 1e3,
        "overhead": f"{more / median(plain):+.2%}",
    }  # fmt: skip
    with apply(plan, model, devices={"cuda:0": "cpu", "cuda:1": "cpu"}), clocked_hooks() as spent:
        for _ in range(rounds):
            step()
    yield {
        "hooks": count, "us a hook, in the step": sum(spent) / len(spent) * 1e6,
        "share of the step": f"{sum(spent) / rounds / median(placed):.2%}",
    }  # fmt: skip
    yield from hop_cost(profile.hidden_size)


@contextmanager
def clocked_hooks() -> Iterator[list[float]]:
    """Seconds of every call of a plan's hooks: between two layers they run from cold caches."""
    spent: list[float] = []

    def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begin = time.perf_counter()
            found = call(*args)
            spent.append(time.perf_counter() - begin)
            return found

        return timed

    kinds = [k for k in vars(hooks).values() if isinstance(k, type) and issubclass(k, hooks.PlanHook)]
    with ExitStack() as patches:
        for kind in kinds:
            if "__call__" in vars(kind) and kind is not hooks.OpenForward:  # which calls that of Bring
                patches.enter_context(patch.object(kind, "__call__", clocked(vars(kind)["__call__"])))
        yield spent


def hop_cost(hidden: int, calls: int = 3000) -> Iterator[Row]:
    """What a hook adds where nothing has to move, called by itself."""
    linear, states = torch.nn.Linear(1, 1), torch.randn(1, 1, hidden)
    bring = hooks.Bring(CPU)
    samples = []
    for _ in range(7):
        begin = time.perf_counter()
        for _ in range(calls):
            bring(linear, (states,), {})
        samples.append((time.perf_counter() - begin) / calls)
    yield {"one hook, nothing to move, us": min(samples) * 1e6}


def dry_runs() -> Iterator[Row]:
    """Full-size models, each in its own process, so that its memory is its own."""
    for name in FULL_SIZE:
        found = subprocess.run(
            [sys.executable, __file__, "--one-dry-run", name], capture_output=True, text=True, check=True
        )
        yield json.loads(found.stdout.splitlines()[-1])


def one_dry_run(name: str) -> Row:
    work = load_workload({"prompt_tokens": PROMPT, "generated_tokens": 1, "prefill_chunk": PROMPT})
    profile, machine = load_profile(name, "bf16"), load_hardware("8xH100-80GB,ram=2TB")
    plan = solve(profile, machine, work, time_limit=5.0)
    begin = time.perf_counter()
    run = dry_run(plan, dict(model_config_preset(name) or {}), PROMPT, 1)
    seconds = time.perf_counter() - begin
    memory, last = judge(plan, CostModel(profile, machine, work)).memory, run.phases[-1].devices
    exact = all(
        (last[d].weights_bytes, last[d].kv_bytes) == (memory[d].weights_bytes, memory[d].kv_bytes) for d in plan.devices
    )
    within = all(run.peak_bytes[d] <= memory[d].used_bytes for d in plan.devices)
    return {
        "model": name, "layers": len(profile.layers), "weights GB": profile.weight_bytes / 1e9, "seconds": seconds,
        "peak RSS GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "weights and KV": "exact" if exact else "DIFFER", "peaks": "within the plan" if within else "ABOVE THE PLAN",
    }  # fmt: skip


def rehearsal() -> Iterator[Row]:
    """Five placements of a model that was measured on the CPU and on one virtual GPU, beside their predictions."""
    torch.set_num_threads(1)
    shape = QWEN | {"num_hidden_layers": 8, "hidden_size": 1024, "moe_intermediate_size": 1024}
    model, profile = random_model("Qwen3Moe", shape, torch.bfloat16, CPU)
    rates = {"bandwidth_bytes_per_s": 10e9, "flops_per_s": {"bf16": 1e11}}
    gpus = [
        {"name": f"cuda:{i}", "kind": "gpu", "memory_bytes": int(profile.weight_bytes * 0.35), "sync_s": 1e-5, **rates}
        for i in range(2)
    ]
    cpu = {"name": "cpu", "kind": "cpu", "memory_bytes": 16 * 10**9, "sync_s": 1e-5, **rates}
    links = [{"between": ["cpu", g["name"]], "bandwidth_bytes_per_s": 4e9, "latency_s": 5e-5} for g in gpus]
    machine = Hardware(name="two virtual GPUs", devices=[*gpus, cpu], links=links)
    work = {"prompt_tokens": 32, "generated_tokens": 64, "prefill_chunk": 32}
    places: dict[str, torch.device | str] = {f"cuda:{i}": f"{NAME}:{i}" for i in range(len(gpus))}
    found = rehearse(model, machine, work, devices=places, repeats=3, rounds=5, most_rivals=5)
    yield from found.table.to_dict("records")
    apart = [abs(ratio - 1) for ratio in found.table["decode_ratio"]]
    yield {"plan": "median distance of decode", "decode_ratio": median(apart)}


PARTS = {"hooks": hooks_cost, "dry_runs": dry_runs, "rehearsal": rehearsal}


def shown(value: object) -> str:
    return (
        f"{value:,.0f}"
        if isinstance(value, float) and value >= 1000
        else f"{value:.3g}"
        if isinstance(value, float)
        else str(value)
    )


def table(rows: list[Row]) -> str:
    """Rows in Markdown; a row with other columns begins a table of its own."""
    lines: list[str] = []
    heads: list[str] = []
    for row in rows:
        if not set(row) <= set(heads):
            heads = list(row)
            lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        lines.append(f"| {' | '.join(shown(row.get(head, '')) for head in heads)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="write the tables to this page")
    parser.add_argument("--one-dry-run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_dry_run:
        print(json.dumps(one_dry_run(options.one_dry_run)))
        return
    page = [
        "# What following a plan costs",
        "",
        "Written by `python benchmarks/runtime.py --out docs/runtime_benchmark.md`.",
    ]
    for name in options.part:
        rows = []
        for row in PARTS[name]():
            print(", ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
            rows.append(row)
        what = str(PARTS[name].__doc__).splitlines()[0]
        page += ["", f"## {name.replace('_', ' ').capitalize()}", "", what, table(rows)]
    if options.out:
        options.out.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
