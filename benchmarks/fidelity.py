"""How well speeds are predicted on machines that nothing was fitted to, from published measurements.

    --fit                fit engines' constants to the repository's measurements and print them, with how far each moves
                         when a computer is left out; cost_models/data/engines.yaml holds them to three digits
    --out PAGE           hold out one computer after the other, and write tables and a scatter plot
    --measurements FILE  score another file of the same form with the constants that moeplan ships
    --json               one document and nothing else on standard output

Tier 0 knows data sheets only. Tier 1 adds one measured run of the same machine, engine, model and settings, each in
turn; tier 2 two. Errors are of tokens/s. Scored are points of grade A, regime normal, with their machine's facts known.

Run: python benchmarks/fidelity.py [--json] [--fit] [--out docs/fidelity.md] [--measurements FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_baselines import rows
from fidelity_fit import CONSTANTS, fit
from fidelity_points import OURS, points
from fidelity_report import constants_table, write_page
from fidelity_score import Scores, as_shipped, held_out, summary
from fidelity_signs import choices, told
from rich.console import Console

from profiles import read_runs
from profiles.errors import MoeplanError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", type=Path, help="another file of measurements, scored with shipped constants")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--fit", action="store_true", help="print the constants that fit the repository's measurements")
    parser.add_argument("--out", type=Path, help="write this page, its plot beside it in images/")
    options = parser.parse_args()
    console = Console(stderr=True)
    try:
        found, left = points(options.measurements or OURS)
    except MoeplanError as problem:
        console.print(f"error: {problem}", style="red", markup=False, highlight=False)
        return 1
    for reason, count in sorted(left.items(), key=lambda item: -item[1]):
        console.print(f"left out, {count}: {reason}", markup=False, highlight=False, soft_wrap=True)
    if options.fit:
        for constant, log in zip(CONSTANTS, fit(found), strict=True):
            print(f"{np.exp(log):12.4g}  {constant.name} (before: {constant.prior:.4g})")
        return 0
    scores = as_shipped(found) if options.measurements else held_out(found)
    if options.out:
        signs = told(choices(read_runs(OURS)))
        write_page(options.out, scores, left, constants_table(scores.constants), rows(found, scores), signs)
    print(json.dumps(document(scores), indent=2) if options.json else text(scores))
    return 0


def document(scores: Scores) -> dict[str, Any]:
    """The scores as one JSON document."""
    tiers = {}
    for tier in "012":
        decode, prefill = summary(scores.of(tier, "decode")), summary(scores.of(tier, "prefill"))
        tiers[tier] = {
            "decode_median_error": decode["median"],
            "decode_p90_error": decode["p90"],
            "decode_covered_at_80": decode["covered"],
            "prefill_median_error": prefill["median"],
            "prefill_p90_error": prefill["p90"],
            "prefill_covered_at_80": prefill["covered"],
            "decode_predictions": decode["points"],
            "prefill_predictions": prefill["points"],
        }
    return {
        "tiers": tiers,
        "median_kendall_tau": float(np.median(scores.taus)) if scores.taus else None,
        "median_regret": float(np.median(scores.regrets)) if scores.regrets else None,
        "points": len({guess.point.run.id for guess in scores.guesses}),
    }


def text(scores: Scores) -> str:
    """The scores for people, a line a tier."""
    lines = [
        f"tier {tier}  {kind:7s}  median {found['median']:6.1%}  p90 {found['p90']:6.1%}  bias {found['bias']:+6.1%}  "
        f"in the interval {found['covered']:4.0%}  {found['points']} predictions"
        for tier in "012"
        for kind in ("decode", "prefill")
        if (found := summary(scores.of(tier, kind)))["points"]
    ]
    if scores.taus:
        lines.append(f"Kendall's tau inside a sweep, median: {np.median(scores.taus):.2f} ({len(scores.taus)} sweeps)")
    if scores.regrets:
        lines.append(f"regret, median: {np.median(scores.regrets):.1%} ({len(scores.regrets)} choices)")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
