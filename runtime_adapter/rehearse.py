"""Measure, solve, apply, measure again: what was predicted for a plan and its rivals beside what they took.

Importing this file does not import torch; calling `rehearse` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import pandas as pd

from cost_models import CostModel
from profiles import load_hardware
from profiles.errors import ApplyError
from profiles.load import load_workload
from profiles.model import ModelProfile
from profiles.placement import Placement
from runtime_adapter.apply import apply
from runtime_adapter.measure import measure, together
from solver import solve
from solver.baselines import hand_plans
from solver.evaluate import judge

if TYPE_CHECKING:
    import torch

Told = Callable[[str], None]
"""Called with what is done next."""


@dataclass(frozen=True)
class Rehearsal:
    """The measured profile, the plan made from its first round, and a row for that and each rival in `table`.

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
    rounds: int = 1,
    seed: int = 0,
    told: Told = lambda _: None,
    **options: Any,
) -> Rehearsal:
    """Try a plan for a live model on the machine that it is on, which is left as it was.

    The model is measured on the CPU and on the first GPU of `hardware`, which stands for all; `options` go to `solve`.
    `devices` maps plan devices to torch devices as in `apply`. Up to `most_rivals` rules of other runtimes that fit
    are tried as well. The model's weights stay in host memory meanwhile. A machine that others share changes its speed
    by the minute: with `rounds` everything is measured so many times in turn, blocks and plans alike, and medians are
    compared. Raises what `measure`, `solve` and `apply` raise, and ApplyError where `rounds` is not a positive whole
    number.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ApplyError(f"rounds: {rounds!r} is not a number of rounds; use a whole number of at least 1")
    from runtime_adapter.measuring.steps import speed

    machine, request, mapped = load_hardware(hardware), load_workload(workload), dict(devices or {})
    kinds = ["cpu", *(gpu.name for gpu in machine.gpus[:1])]

    def measured(of: str) -> ModelProfile:
        told(f"measuring on {' and '.join(kinds)}{of}")
        places = {name: mapped.get(name, name) for name in kinds}
        return measure(model, request, devices=places, repeats=repeats, seed=seed)

    profiles = [measured("")]
    told("solving")
    plan = solve(profiles[0], machine, request, **options)
    margin = plan.safety_margin or 0.0
    rivals = _rivals(CostModel(profiles[0], machine, request, safety_margin=margin), plan, most_rivals)
    candidates = {"the plan": plan, **rivals}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for k in range(rounds):
        of = f", round {k + 1} of {rounds}" if rounds > 1 else ""
        profiles += [measured(of)] if k else []
        for name, candidate in candidates.items():
            told(f"running {name}{of}")
            used = {device: mapped.get(device, device) for device in candidate.devices}
            with apply(candidate, model, devices=used, keep_host=True):
                seconds[name].append(speed(model, request, repeats, seed))
    found = together(profiles)
    costs = CostModel(found, machine, request, safety_margin=margin)
    rows = [{"plan": name, **_row(costs, candidate, seconds[name])} for name, candidate in candidates.items()]
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


def _row(costs: CostModel, plan: Placement, seconds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    told = judge(plan, costs).prediction
    prefill, decode = (median(found) for found in zip(*seconds, strict=True))
    return {
        "experts_on_cpu": sum("cpu" in layer.experts for layer in plan.layers),
        "predicted_prefill_s": told.prefill_s,
        "measured_prefill_s": prefill,
        "prefill_ratio": prefill / told.prefill_s,
        "predicted_decode_step_s": told.decode_step_s,
        "measured_decode_step_s": decode,
        "decode_ratio": decode / told.decode_step_s,
    }
