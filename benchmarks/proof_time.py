"""Claim: counting patterns of equal cards proves a plan faster than counting named cards.

For each instance both bounds are computed in one process with one worker; the ratio is counts / patterns. Also shown:
what `solve` makes of the instance. Run: python benchmarks/proof_time.py [--seconds 20]
"""

from __future__ import annotations

import argparse
import platform
import time

from cost_models import CostModel
from profiles import load_hardware, load_profile
from solver import solve
from solver.counts import solve_counts
from solver.patterns import solve_patterns
from solver.problem import build_problem
from solver.rules import Allowed
from solver.search import Limits

INSTANCES = [
    ("deepseek-v2-measured", None, "8xL40-46GB"),
    ("deepseek-v2-measured", None, "7xL40-46GB"),
    ("deepseek-v2-measured", None, "6xL40-46GB"),
    ("deepseek-v2-measured", None, "4xL40-46GB"),
    ("deepseek-r1", None, "8xRTX4090,ram=1TB"),
    ("deepseek-r1", "int4", "4xL40+4xRTX4090+2xA10,ram=1TB"),
    ("qwen3-235b-a22b", None, "4xRTX4090,ram=1TB"),
    ("mixtral-8x22b", None, "2xA100-80GB+4xRTX4090,cpu=EPYC-9654,ram=768GB"),
    ("gpt-oss-120b", None, "3xRTX4090,ram=128GB"),
    ("glm-4.5", None, "8xA100-80GB"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="limit of each search")
    seconds = parser.parse_args().seconds
    print(f"{platform.machine()}, Python {platform.python_version()}, one worker, limit {seconds:g} s")
    print(f"{'model':22}{'machine':48}{'patterns':>10}{'counts':>10}{'ratio':>8}  {'solve':>8}  result")
    for model, quant, machine in INSTANCES:
        profile, hardware = load_profile(model, quant=quant), load_hardware(machine)
        costs = CostModel(profile, hardware)
        problem = build_problem(costs, objective="request", granularity="module", allowed=Allowed(costs, "torch", None))
        started = time.perf_counter()
        solve_patterns(problem, Limits(seconds))
        patterns_s = time.perf_counter() - started
        started = time.perf_counter()
        counts = solve_counts(problem, Limits(seconds))
        counts_s = time.perf_counter() - started
        plan = solve(profile, hardware, time_limit=seconds)
        mark = "" if counts.status == "optimal" else ">"
        print(
            f"{model:22}{machine:48}{patterns_s:9.2f}s{mark + format(counts_s, '.2f'):>9}s{counts_s / patterns_s:8.1f}"
            f"  {plan.solve_s:7.2f}s  {plan.status}, gap {plan.gap:.3%}"
        )


if __name__ == "__main__":
    main()
