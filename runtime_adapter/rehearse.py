"""Measure, solve, apply, measure again: what was predicted for a plan and its rivals beside what they took.

Importing this file does not import torch; calling `rehearse` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from cost_models import CostModel
from profiles import load_hardware
from profiles.load import load_workload
from profiles.model import ModelProfile
from profiles.placement import Placement
from runtime_adapter.apply import apply
from runtime_adapter.measure import measure
from solver import solve
from solver.baselines import hand_plans
from solver.evaluate import judge

if TYPE_CHECKING:
    import torch

Told = Callable[[str], None]
"""Called with what is done next."""


@dataclass(frozen=True)
class Rehearsal:
    """The measured profile, the plan that was made from it, and a row for it and each rival in `table`.

    Columns: `plan`, `experts_on_cpu` (layers whose experts are there, at least in part), and of `prefill_s` (the whole
    prompt) and `decode_step_s` (one token of each sequence at the mean context) what was `predicted_`, `measured_`,
    and the `_ratio` of measured to predicted.
    """

    profile: ModelProfile
    plan: Placement
    table: pd.DataFrame


def rehearse(
    model: torch.nn.Module,
    hardware: Any = "local",
    workload: Any = None,
    *,
    devices: Mapping[str, torch.device | str] | None = None,
    most_rivals: int = 5,
    repeats: int = 5,
    seed: int = 0,
    told: Told = lambda _: None,
    **options: Any,
) -> Rehearsal:
    """Try a plan for a live model on the machine that it is on, which is left as it was.

    The model is measured on the CPU and on the first GPU of `hardware`, which stands for all; `options` go to `solve`.
    `devices` maps plan devices to torch devices as in `apply`. Up to `most_rivals` rules of other runtimes that fit
    are tried as well. The model's weights stay in host memory meanwhile. Raises what `measure`, `solve` and `apply`
    raise.
    """
    machine, request, mapped = load_hardware(hardware), load_workload(workload), dict(devices or {})
    kinds = ["cpu", *(gpu.name for gpu in machine.gpus[:1])]
    told(f"measuring on {' and '.join(kinds)}")
    found = measure(
        model, request, devices={name: mapped.get(name, name) for name in kinds}, repeats=repeats, seed=seed
    )
    told("solving")
    plan = solve(found, machine, request, **options)
    costs = CostModel(found, machine, request, safety_margin=plan.safety_margin or 0.0)
    rows = []
    for name, candidate in {"the plan": plan, **_rivals(costs, plan, most_rivals)}.items():
        told(f"running {name}")
        used = {device: mapped.get(device, device) for device in candidate.devices}
        with apply(candidate, model, devices=used, keep_host=True):
            rows.append({"plan": name, **_row(costs, candidate, model, repeats, seed)})
    return Rehearsal(found, plan, pd.DataFrame(rows))


def _rivals(costs: CostModel, plan: Placement, most: int) -> dict[str, Placement]:
    """Other rules' plans that fit, each different from the plan and from each other."""
    seen, found = [(plan.embedding, plan.head, plan.layers)], dict[str, Placement]()
    for name, rival in hand_plans(costs).items():
        where = (rival.embedding, rival.head, rival.layers)
        if len(found) < most and where not in seen and judge(rival, costs).feasible:
            seen.append(where)
            found[name] = rival
    return found


def _row(costs: CostModel, plan: Placement, model: Any, repeats: int, seed: int) -> dict[str, Any]:
    from runtime_adapter.measuring.steps import speed

    told = judge(plan, costs).prediction
    prefill, decode = speed(model, costs.workload, repeats, seed)
    return {
        "experts_on_cpu": sum("cpu" in layer.experts for layer in plan.layers),
        "predicted_prefill_s": told.prefill_s,
        "measured_prefill_s": prefill,
        "prefill_ratio": prefill / told.prefill_s,
        "predicted_decode_step_s": told.decode_step_s,
        "measured_decode_step_s": decode,
        "decode_ratio": decode / told.decode_step_s,
    }
