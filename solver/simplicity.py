"""Among plans that predictions cannot tell apart, a simpler one: fewer bytes of experts on the CPU, fewer hops."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cost_models import CostModel
from cost_models.calibrate import Calibrated
from cost_models.factors import FACTORS, link_factor, tuned_devices
from cost_models.telling_apart import margin
from profiles.hardware import Hardware
from profiles.placement import Objective, Placement
from solver.evaluate import Evaluation, judge


@dataclass(frozen=True)
class Simpler:
    """A simpler plan: the share that it is predicted to take longer, and the share that predictions can tell."""

    placement: Placement
    evaluation: Evaluation
    longer: float
    margin: float

    @property
    def note(self) -> str:
        """Why it was taken, in one line."""
        than = f"{abs(self.longer):.2%} {'slower' if self.longer >= 0 else 'faster'} than the fastest plan found"
        return (
            f"taken for its simplicity: predicted {than}, and these times tell the two apart from {self.margin:.1%} on"
        )


def simplest(fastest: Placement, rivals: Iterable[Placement], costs: CostModel, objective: Objective) -> Simpler | None:
    """The simplest of the rivals that fit, take no more than can be told from the fastest plan, and are simpler than
    it: no more bytes of experts on the CPU and no more hops, and less of one; None where there is none."""
    best_s, found = judge(fastest, costs, objective).objective_s, list[Simpler]()
    bytes_there, changes = cpu_expert_bytes(fastest, costs), hops(fastest)
    for rival in rivals:
        told = judge(rival, costs, objective)
        less = cpu_expert_bytes(rival, costs) - bytes_there, hops(rival) - changes
        if not told.feasible or max(less) > 0 or less == (0, 0):
            continue
        share = margin(fastest, rival, costs, objective)
        longer = told.objective_s / best_s - 1
        if share is not None and longer <= share:
            found.append(Simpler(rival, told, longer, share))
    return min(
        found, key=lambda one: (cpu_expert_bytes(one.placement, costs), hops(one.placement), one.longer), default=None
    )


def wary(machine: Hardware) -> Hardware:
    """The machine with a CPU and links as much worse as one in six is, by what is left open of them: what is best there
    leaves the CPU and hops alone where that costs little."""
    known = Calibrated.of(machine)
    deviations = np.sqrt(np.diag(known.covariance))
    logs = [
        0.0 if kind == "gpu" else float(d) if habit in ("launch", "sync") else -float(d)
        for (kind, habit), d in zip(FACTORS, deviations, strict=True)
    ]
    devices, slower = tuned_devices(machine, logs), link_factor(logs)
    links = [
        link.replace(bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * slower, latency_s=link.latency_s / slower)
        for link in machine.links
    ]
    return machine.replace(devices=[devices[device.name] for device in machine.devices], links=links)


def cpu_expert_bytes(plan: Placement, costs: CostModel) -> int:
    """Bytes of experts on the CPU."""
    total = 0
    for i, layer in enumerate(plan.layers):
        experts, part = costs.layer(i).experts, layer.experts.get("cpu")
        if experts is not None and part is not None:
            total += costs.expert_bytes(experts, "cpu", range(experts.count) if part == "all" else part)
    return total


def hops(plan: Placement) -> int:
    """How often a token changes the device, to each part of a layer's experts and back.

    >>> layers = [{"attention": "cuda:0", "experts": {"cpu": "all"}}, {"attention": "cuda:1"}]
    >>> hops(Placement(embedding="cpu", head="cuda:1", layers=layers))
    4
    """
    walk = [plan.embedding, *(layer.attention for layer in plan.layers), plan.head]
    away = sum(device != layer.attention for layer in plan.layers for device in layer.experts)
    return sum(a != b for a, b in pairwise(walk)) + 2 * away
