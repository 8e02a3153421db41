"""What predictions have to beat: data sheets alone, and laws drawn through a machine's own runs.

data sheet     every block at the full bandwidth and peak of its device, no fixed prices
affine         seconds a token as a straight line in the number of layers with experts on the CPU, through the two
               runs that differ most in it, for the others of the sweep
last count     the measured speed at the nearest smaller number of such layers
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
from fidelity_points import Point, grouped
from fidelity_score import Guess, Scores, summary

from cost_models.calibrate import Measured, calibrate
from cost_models.roofline import peak_flops_per_s


def data_sheet_s(what: Measured) -> float:
    """Seconds by the data sheets."""
    total = 0.0
    for step in what.steps:
        for (name, work), often in step.work.items():
            device = what.costs.device[name]
            read = (work.weight_bytes + work.cache_bytes) / device.bandwidth_bytes_per_s
            total += often * max(read, (work.flops + work.scores) / peak_flops_per_s(device))
        total += step.copies_s
    return total


def data_sheets(found: Iterable[Point], kind: str) -> list[Guess]:
    """Every point by its data sheets."""
    guesses = []
    for point in found:
        what = point.decode if kind == "decode" else point.prefill
        if what is not None:
            seconds = data_sheet_s(what)
            guesses.append(Guess(point, kind, "sheet", what.seconds, seconds, seconds, seconds))
    return guesses


def along_layers(found: Sequence[Point]) -> dict[str, list[Guess]]:
    """Decode by the affine law, by the last count, and by us with the same two runs, on the same points: sweeps with at
    least three numbers of layers on the CPU."""
    guesses: dict[str, list[Guess]] = {"affine law": [], "last count": [], "ours, tier 2": []}
    for sweep in grouped((p for p in found if p.decode), lambda p: (p.setup, p.case.decode_context)).values():
        by_count = {point.run.cpu_layers: point for point in sweep if point.run.cpu_layers is not None}
        counts = sorted(n for n in by_count if n is not None)
        if len(counts) < 3:
            continue
        low, high = by_count[counts[0]], by_count[counts[-1]]
        ours = calibrate([*low.measured, *high.measured])
        line = _line(counts[0], _s(low), counts[-1], _s(high))
        for before, n in pairwise(counts[:-1]):
            point = by_count[n]
            assert point.decode is not None
            guesses["affine law"].append(_guess(point, line(n)))
            guesses["last count"].append(_guess(point, _s(by_count[before])))
            guesses["ours, tier 2"].append(_guess(point, point.decode.predicted_s(ours.logs)))
    return guesses


def rows(found: Sequence[Point], scores: Scores) -> list[tuple[str, ...]]:
    """(rule, what, points, median, p90) of each baseline, and of ours beside it."""
    named = [
        ("data sheet", "decode", data_sheets(found, "decode")),
        ("ours, tier 0", "decode", scores.of("0", "decode")),
        ("data sheet", "prefill", data_sheets(found, "prefill")),
        ("ours, tier 0", "prefill", scores.of("0", "prefill")),
        *((name, "decode along layers on the CPU", guesses) for name, guesses in along_layers(found).items()),
    ]
    cells = []
    for name, what, guesses in named:
        told = summary(guesses)
        if told["points"]:
            cells.append((name, what, str(told["points"]), f"{told['median']:.1%}", f"{told['p90']:.1%}"))
    return cells


def _line(x0: int, y0: float, x1: int, y1: float) -> Callable[[int], float]:
    return lambda x: float(np.interp(x, (x0, x1), (y0, y1)))


def _s(point: Point) -> float:
    assert point.decode is not None
    return point.decode.seconds


def _guess(point: Point, seconds: float) -> Guess:
    return Guess(point, "decode", "law", _s(point), seconds, seconds, seconds)
