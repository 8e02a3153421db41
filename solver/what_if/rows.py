"""A scenario and its answer as a row of the table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cost_models import CostModel
from profiles.placement import Placement
from solver.simplicity import cpu_expert_bytes
from solver.what_if.scenarios import AXES, Scenario

if TYPE_CHECKING:
    from pandas import DataFrame

Status = Literal["optimal", "feasible", "infeasible", "no plan", "error"]
SHOWN = (
    *("feasible", "status", "why", "gap", "objective_s", "bound_s", "tokens_per_s", "decode_step_s", "prefill_s"),
    *("gpu_used_bytes", "gpu_usable_bytes", "gpu_headroom_bytes", "cpu_used_bytes", "cpu_usable_bytes"),
    *("experts_on_cpu", "binds", "seconds", "plan"),
)
"""Columns after those of the axes."""


@dataclass(frozen=True)
class Answer:
    """What was found out about a scenario: a plan with all its figures, or why there is none; `seconds` it took."""

    status: Status
    plan: Placement | None = None
    why: str | None = None
    binds: str | None = None
    experts_on_cpu: float | None = None
    seconds: float = 0.0

    @property
    def objective_s(self) -> float:
        """Infinite where there is no plan."""
        found = None if self.plan is None else self.plan.objective_s
        return float("inf") if found is None else found

    @property
    def bound_s(self) -> float:
        """Seconds that no plan takes less than, as far as that is known: infinite where nothing fits."""
        if self.plan is None:
            return float("inf") if self.status == "infeasible" else 0.0
        return self.plan.bound_s or 0.0


def table(scenarios: Iterable[Scenario], answers: dict[int, Answer]) -> DataFrame:
    """One row a scenario, in the grid's order: its axes, then what `SHOWN` names."""
    import pandas  # it takes a second, and solving does not need it

    scenarios = list(scenarios)
    rows = [{**scenario.axes, **_shown(answers[scenario.index])} for scenario in scenarios]
    axes = [axis for axis in AXES if scenarios and axis in scenarios[0].axes]
    return pandas.DataFrame(rows, columns=[*axes, *SHOWN])


def _shown(answer: Answer) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SHOWN)
    row |= {"feasible": answer.plan is not None, "status": answer.status, "why": answer.why, "seconds": answer.seconds}
    plan = answer.plan
    if plan is None or plan.memory is None or plan.prediction is None:
        return row
    gpus = [held for device, held in plan.memory.items() if device != "cpu"]
    cpu = plan.memory["cpu"]
    return row | {
        "gap": plan.gap,
        "objective_s": plan.objective_s,
        "bound_s": plan.bound_s,
        "tokens_per_s": plan.prediction.tokens_per_s,
        "decode_step_s": plan.prediction.decode_step_s,
        "prefill_s": plan.prediction.prefill_s,
        "gpu_used_bytes": sum(held.used_bytes for held in gpus),
        "gpu_usable_bytes": sum(held.usable_bytes for held in gpus),
        "gpu_headroom_bytes": min((held.free_bytes for held in gpus), default=None),
        "cpu_used_bytes": cpu.used_bytes,
        "cpu_usable_bytes": cpu.usable_bytes,
        "experts_on_cpu": answer.experts_on_cpu,
        "binds": answer.binds,
        "plan": plan,
    }


def share_on_cpu(plan: Placement, costs: CostModel) -> float:
    """Share of the experts' weights that is on the CPU, in bytes as it stores them; 0 where there are no experts."""
    whole = sum(layer.experts.weight_bytes.cpu for layer in costs.profile.layers if layer.experts is not None)
    return cpu_expert_bytes(plan, costs) / whole if whole else 0.0
