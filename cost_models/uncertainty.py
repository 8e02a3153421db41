"""How far a prediction may be off: an interval from what is not known of the machine's factors, and from noise."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from cost_models.calibrate import Calibrated, Measured
from cost_models.cost_model import CostModel
from cost_models.engines import engines
from cost_models.ledger import ledger
from profiles.placement import Interval, Placement

LEVEL = 0.80
"""How often an interval holds."""


def deviation(what: Measured, known: Calibrated) -> float:
    """Standard deviation of the logarithm of measured over predicted seconds: factors and noise together."""
    slope = what.slope(known.logs)
    # A covariance that was rounded, or written by hand, may be a little below zero somewhere.
    return math.hypot(math.sqrt(max(0.0, float(slope @ known.covariance @ slope))), what.noise)


def plan_interval(plan: Placement, costs: CostModel, prefill_s: float, decode_s: float) -> Interval | None:
    """Around a plan's predicted seconds, the intervals that measured ones are expected in; None where its layers are
    split, which cannot be taken apart into factors."""
    if any(layer.experts and layer.experts_device is None for layer in plan.layers):
        return None
    known, noise = Calibrated.of(costs.hardware), engines().spread["gpu"]
    read = tuple(ledger(plan, costs, step) for step in costs.prefill_steps())
    written = (ledger(plan, costs, costs.decode_step()),)
    reach = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    around = []
    for what, seconds in (
        (Measured("prefill", costs, read, prefill_s, noise.prefill_noise), prefill_s),
        (Measured("decode", costs, written, decode_s, noise.decode_noise), decode_s),
    ):
        factor = float(np.exp(reach * deviation(what, known)))
        around.append((seconds / factor, seconds * factor))
    return Interval(level=LEVEL, prefill_s=around[0], decode_step_s=around[1])


def interval(what: Measured, known: Calibrated, level: float = LEVEL) -> tuple[float, float]:
    """Seconds between which the measured ones lie with probability `level`."""
    middle = what.predicted_s(known.logs)
    reach = NormalDist().inv_cdf(0.5 + level / 2) * deviation(what, known)
    return middle * float(np.exp(-reach)), middle * float(np.exp(reach))


def difference(a: Measured, b: Measured, known: Calibrated) -> float:
    """Standard deviation of the logarithm of a's seconds over b's, two plans of one machine: what both depend on alike
    cancels, which is why plans can be told apart that are predicted no better than to 20 %. Noise is not counted."""
    slope = a.slope(known.logs) - b.slope(known.logs)
    return math.sqrt(max(0.0, float(slope @ known.covariance @ slope)))
