"""Why nothing fits, by how many bytes, and the smallest changes that would help."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cost_models import CostModel
from cost_models.constants import CPU_SAFETY_MARGIN
from profiles.errors import InfeasiblePlacement
from profiles.hardware import Device
from profiles.units import gb
from solver.counts import least_shortage
from solver.problem import Problem
from solver.search import Limits

_SECONDS = 2.0
_PRINTED = 10**7
"""What `gb` prints is whole multiples of this."""


def infeasible(problem: Problem, costs: CostModel) -> InfeasiblePlacement:
    """The error for a problem proved infeasible: the fewest bytes missing in all, and what would supply them."""
    limits = Limits(_SECONDS)
    everywhere = [True] * len(problem.devices)
    missing = least_shortage(problem, limits, everywhere) or []
    short = {name: n for name, n in zip(problem.devices, missing, strict=False) if n > 0}
    suggestions = _suggestions(problem, costs, limits)
    where = ", ".join(f"{name} {gb(n)} ({n} bytes)" for name, n in short.items()) or "no device can hold some block"
    message = f"{costs.profile.model} does not fit {costs.hardware.name}: short of {where}"
    if suggestions:
        message += f"; {' or '.join(suggestions)}"
    return InfeasiblePlacement(message, short_bytes=short, suggestions=suggestions)


def _suggestions(problem: Problem, costs: CostModel, limits: Limits) -> list[str]:
    """More RAM alone, or more memory on every GPU alone, in bytes of the part as bought (before margins)."""
    is_gpu = [costs.device[name].kind == "gpu" for name in problem.devices]
    found = []
    ram = least_shortage(problem, limits, [not gpu for gpu in is_gpu])
    if ram is not None:
        found.append(f"add {_as_bought(sum(ram), [costs.hardware.cpu], costs)} of RAM")
    cards = least_shortage(problem, limits, is_gpu, even=True) if any(is_gpu) else None
    if cards is not None:
        found.append(f"add {_as_bought(max(cards), costs.hardware.gpus, costs)} to each GPU")
    return found


def _as_bought(n_bytes: int, parts: Sequence[Device], costs: CostModel) -> str:
    """So much memory on each of `parts` that, after the largest of their margins, `n_bytes` more are usable; rounded
    up to what is printed, so that it is enough."""
    defaults = {"gpu": costs.safety_margin, "cpu": CPU_SAFETY_MARGIN}
    margin = max(defaults[part.kind] if part.safety_margin is None else part.safety_margin for part in parts)
    return gb(math.ceil(n_bytes / (1 - margin) / _PRINTED) * _PRINTED)
