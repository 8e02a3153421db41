"""A grid of 1,024 scenarios against the same calls of `solve` in a loop: seconds, and whether objectives agree.

    python benchmarks/what_if.py                   # both models, the loop over a sample of 64 scenarios
    python benchmarks/what_if.py --sample 1024     # the whole loop, which takes some three minutes a model

The grid runs on all cores with progress, the loop in this process, one call after the other. Both stop at the same
relative gap; the loop has `solve`'s own time limit. Times depend on what else the machine does: the load is printed.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from typing import Any

from profiles import InfeasiblePlacement, Workload, load_hardware, load_profile
from solver import solve, what_if
from solver.what_if import vary
from solver.what_if.run import cores

MODELS = ("deepseek-v2", "qwen3-235b-a22b")
MACHINE = "8xL40-46GB"
GRID: dict[str, Any] = {
    "gpus": range(1, 17),
    "context": [4096, 8192, 16384, 32768],
    "batch": [1, 2, 4, 8],
    "margin": [0.05, 0.10, 0.15, 0.20],
}
GAP = 1e-3
TIES = 1e-3
"""By how much `solve` may return a plan with more room instead of the best."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=64, help="scenarios of the loop, drawn at random")
    parser.add_argument("--models", default=",".join(MODELS))
    options = parser.parse_args()
    print(f"{cores()} cores, load {os.getloadavg()[0]:.1f} at the start")
    for model in options.models.split(","):
        measure(model, options.sample)


def measure(model: str, sample: int) -> None:
    started, worked = time.perf_counter(), sum(os.times()[:4])
    table = what_if(model, MACHINE, **GRID, relative_gap=GAP)
    seconds, work = time.perf_counter() - started, sum(os.times()[:4]) - worked
    fits, within = table["feasible"].sum(), (table["gap"] <= GAP).sum()
    print(f"{model}: {len(table)} scenarios in {seconds:.1f} s ({work:.0f} s of work), load {os.getloadavg()[0]:.1f}")
    print(
        f"  {fits} fit, {within} within {GAP:.1%}; widest gap {table['gap'].max():.2%}, mean {table['gap'].mean():.3%}"
    )
    rows = random.Random(0).sample(table.to_dict("records"), min(sample, len(table)))
    alone, agree = loop(model, rows)
    whole = alone * len(table) / len(rows)
    times = f"{whole:.0f} s in all, {whole / seconds:.1f} times as long"
    print(f"  solve in a loop: {alone:.0f} s for {len(rows)} of them, so {times}")
    print(f"  objectives agree within the gaps in {agree} of {len(rows)}; load {os.getloadavg()[0]:.1f}")


def loop(model: str, rows: list[dict[str, Any]]) -> tuple[float, int]:
    """Seconds, and in how many rows the objectives agree within the gaps and ties."""
    profile, machine = load_profile(model), load_hardware(MACHINE)
    seconds, agree = 0.0, 0
    for row in rows:
        there = vary(machine, gpus=row["gpus"])
        request = Workload(context_tokens=row["context"], batch_size=row["batch"])
        started = time.perf_counter()
        try:
            plan = solve(profile, there, request, safety_margin=row["margin"], relative_gap=GAP)
        except InfeasiblePlacement:
            plan = None
        seconds += time.perf_counter() - started
        if plan is None or plan.objective_s is None:
            agree += not row["feasible"]
            continue
        most = 1 + max(plan.gap or 0.0, row["gap"]) + TIES
        agree += row["objective_s"] <= plan.objective_s * most and plan.objective_s <= row["objective_s"] * most
    return seconds, agree


if __name__ == "__main__":
    main()
