"""Whether two plans of one machine can be told apart: what both depend on alike cancels."""

from __future__ import annotations

import math
from statistics import NormalDist

from cost_models.calibrate import Calibrated, Measured
from cost_models.cost_model import CostModel
from cost_models.ledger import ledger
from cost_models.uncertainty import LEVEL, difference
from profiles.placement import Objective, Placement


def margin(a: Placement, b: Placement, costs: CostModel, objective: Objective = "request") -> float | None:
    """The share by which the predicted objectives of two plans must differ for the faster to be the faster with
    probability 90 %: e.g. 0.04. None for `throughput` and for split layers, which factors do not take apart.

    A machine that was calibrated, or plans that use it alike, have a small margin. Ignored: what no factor stands for.
    """
    if objective == "throughput" or any(_is_split(plan) for plan in (a, b)):
        return None
    known, (one, other) = Calibrated.of(costs.hardware), (_question(plan, costs, objective) for plan in (a, b))
    return math.expm1(NormalDist().inv_cdf(0.5 + LEVEL / 2) * difference(one, other, known))


def _is_split(plan: Placement) -> bool:
    return any(layer.experts and layer.experts_device is None for layer in plan.layers)


def _question(plan: Placement, costs: CostModel, objective: Objective) -> Measured:
    """Every step that the objective counts, as often as it does."""
    written = ledger(plan, costs, costs.decode_step())
    if objective == "decode":
        return Measured("decode", costs, (written,), 1.0, 0.0)
    read = [ledger(plan, costs, step) for step in costs.prefill_steps() for _ in range(step.times)]
    times = costs.workload.generated_tokens if objective == "request" else 0
    return Measured(objective, costs, (*read, *[written] * times), 1.0, 0.0)
