"""Plans that fit even when blocks turn out larger: the check beside the judge, and the error where there is none."""

from __future__ import annotations

from cost_models import CostModel
from cost_models.memory import growth_bytes
from profiles.errors import InfeasiblePlacement
from profiles.placement import Placement
from profiles.units import gb
from solver.cp_sat.counts import least_shortage
from solver.cp_sat.run import Limits
from solver.evaluate import judge
from solver.problem import Problem, Robust

WORK = 2.0
"""What the fewest missing bytes are worth, in CP-SAT's count of seconds."""


def robust_short(placement: Placement, costs: CostModel, robust: float, blocks: int) -> dict[str, int]:
    """Bytes that each device, and each pool, lacks when those `blocks` of each device's blocks that gain most turn out
    larger by the share `robust` of their weights; what lacks none is left out. It shares no code with the models.

    Caches, workspaces and buffers are as evaluated. An embedding and a head that share weights gain for both.
    """
    profile = costs.profile
    weights: dict[str, list[int]] = {device: [] for device in costs.device}
    for block, home in ((profile.embedding, placement.embedding), (profile.head, placement.head)):
        weights[home].append(costs.weight_bytes(block, home))
    for placed, layer in zip(placement.layers, profile.layers, strict=True):
        weights[placed.attention].append(costs.weight_bytes(layer.attention, placed.attention))
        for device, part in placed.experts.items():
            assert layer.experts is not None
            ids = tuple(range(layer.experts.count)) if part == "all" else part
            weights[device].append(costs.expert_bytes(layer.experts, device, ids))
    gains = {
        device: sum(sorted((growth_bytes(n_bytes, robust) for n_bytes in sizes), reverse=True)[:blocks])
        for device, sizes in weights.items()
    }
    found = judge(placement, costs)
    missing = {device: gains[device] - held.free_bytes for device, held in found.memory.items()}
    for name, pool in found.pools.items():
        missing[name] = sum(gains[device.name] for device in costs.hardware.in_pool(name)) - pool.free_bytes
    return {name: n_bytes for name, n_bytes in missing.items() if n_bytes > 0}


def robust_infeasible(problem: Problem, costs: CostModel, robust: Robust) -> InfeasiblePlacement:
    """The error for a problem that has been proved to leave no room for deviations: the fewest bytes missing, whatever
    the order of the layers. Where this model finds that something fits, nothing is said to be proved."""
    found = least_shortage(problem, Limits(WORK, work=WORK))
    if found is not None and not any(found):
        return InfeasiblePlacement("no plan found, though some placement fits", proven=False)
    names = [*problem.devices, *(pool.name for pool in problem.shared)]
    short = {name: n for name, n in zip(names, found or (), strict=False) if n}
    blocks = f"any {robust.blocks} blocks" if robust.blocks > 1 else "any block"
    spare = f"with {blocks} of a device up to {100 * robust.share:g} % larger"
    missing = f"short of {gb(sum(short.values()))}: {', '.join(f'{d} {gb(n)}' for d, n in short.items())}; lower robust"
    why = missing if short else "granularity, target and pins together leave some block no device; loosen one of them"
    message = f"{costs.profile.model} does not fit {costs.hardware.name} {spare}: {why}"
    return InfeasiblePlacement(message, short_bytes=short, suggestions=["lower robust"] if short else [])
