"""What one change of the machine is worth, each by solving again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from profiles import load_placement
from profiles.errors import InfeasiblePlacement
from profiles.hardware import Device, Hardware
from solver.search.plans import Candidate
from solver.solve import costs_of
from solver.what_if.ask import Asked, Effort, Machine
from solver.what_if.quick import Columns
from solver.what_if.scenarios import Question

if TYPE_CHECKING:
    from pandas import DataFrame

GB = 10**9
FASTER = 1.1


@dataclass(frozen=True)
class Change:
    """One change: what is changed, where, by how much in which unit."""

    what: str
    where: str
    amount: float
    unit: str
    machine: Hardware


def sensitivity(
    plan: Any,
    profile: Any = None,
    hardware: Any = None,
    *,
    workload: Any = None,
    margin: float | None = None,
    time_limit: float = 2.0,
    relative_gap: float = 0.0,
    seed: int = 0,
) -> DataFrame:
    """What single changes of the machine are worth to a plan's objective: a row each, most worth first.

    One GB more on each device, and links, RAM and the GPUs' memory 10 % faster. Each is solved again, beginning with
    the plan; so is the machine as it is, which `saved_s` seconds and `saved`, as a share, are counted from. What is
    left out is taken from the plan document, as by `evaluate`. `gap` says how much may be undetected.

    >>> from solver import solve
    >>> found = sensitivity(solve("qwen3-30b-a3b", "1xRTX4090,ram=96GB"))
    >>> found.iloc[0][["what", "where"]].tolist()
    ['memory bandwidth', 'cpu']
    """
    import pandas

    plan = load_placement(plan)
    costs = costs_of(plan, profile, hardware, workload, safety_margin=margin)
    effort = Effort(time_limit, relative_gap, seed)
    base = Question(
        costs.profile, costs.hardware, costs.workload, costs.safety_margin, plan.granularity or "module",
        costs.target, plan.objective or "request",
    )  # fmt: skip
    columns, here = Columns(), _asked(base, costs.hardware)
    before = here.search(here.judged(plan), 0.0, columns, effort)
    if before.best is None:
        raise InfeasiblePlacement("nothing fits the machine as it is; what_if says what would", proven=before.proven)
    best, bound_s, asked = before.best, before.bound_s, dict[int, tuple[Asked, Candidate, float]]()
    changes = list(changes_of(costs.hardware))
    for k, change in enumerate(changes):
        same = next((j for j in range(k) if _alike(changes[j], change, here)), None)
        if same is not None:
            continue
        there = _asked(base, change.machine)
        found = there.search(there.judged(best.placement), 0.0, columns, effort)
        assert found.best is not None, "what fits a machine fits one with more"
        asked[k] = there, found.best, found.bound_s
        back = here.judged(found.best.placement)
        best = back if back is not None and back.seconds < best.seconds else best
    rows = []
    for k, change in enumerate(changes):
        j = k if k in asked else next(j for j in asked if _alike(changes[j], change, here))
        there, found_best, found_bound = asked[j]
        kept = there.judged(best.placement)
        after = kept if kept is not None and kept.seconds < found_best.seconds else found_best
        rows.append(_row(change, best.seconds, min(bound_s, best.seconds), after, min(found_bound, after.seconds)))
    found_table = pandas.DataFrame(rows)
    return found_table.sort_values("saved_s", ascending=False, kind="stable").reset_index(drop=True)


def _row(change: Change, before_s: float, before_bound_s: float, after: Candidate, bound_s: float) -> dict[str, Any]:
    seconds = after.seconds
    return {
        "what": change.what,
        "where": change.where,
        "amount": change.amount,
        "unit": change.unit,
        "saved_s": before_s - seconds,
        "saved": 1 - seconds / before_s if before_s else 0.0,
        "objective_s": seconds,
        "tokens_per_s": after.evaluation.prediction.tokens_per_s,
        "gap": max(1 - before_bound_s / before_s, 1 - bound_s / seconds) if before_s and seconds else 0.0,
    }


def _asked(base: Question, machine: Hardware) -> Asked:
    question = replace(base, hardware=machine)
    return Asked(question, Machine(question))


def _alike(one: Change, other: Change, here: Asked) -> bool:
    """Whether both are one GB more on devices that nothing tells apart."""
    problem = here.problem
    if one.what != "memory" or other.what != "memory":
        return False
    first, second = (problem.twins[problem.devices.index(change.where)] for change in (one, other))
    return first == second


def changes_of(machine: Hardware) -> Iterator[Change]:
    """All changes that are asked about; a machine without links of a kind has none of them made faster."""
    for device in machine.devices:
        yield Change("memory", device.name, 1, "GB", _with(machine, _larger(device)))
    yield _faster_memory(machine, "cpu")
    if machine.gpus:
        yield _faster_memory(machine, "gpu")
    for where, to_cpu in (("GPU to CPU", True), ("GPU to GPU", False)):
        links = [link for link in machine.links if ("cpu" in link.between) == to_cpu]
        if links:
            faster = tuple(
                link.replace(bandwidth_bytes_per_s=FASTER * link.bandwidth_bytes_per_s) if link in links else link
                for link in machine.links
            )
            yield Change("link bandwidth", where, 10, "%", machine.replace(links=faster))


def _larger(device: Device) -> Device:
    budget = None if device.budget_bytes is None else device.budget_bytes + GB
    return device.replace(memory_bytes=device.memory_bytes + GB, budget_bytes=budget)


def _faster_memory(machine: Hardware, kind: str) -> Change:
    faster = [
        device.replace(bandwidth_bytes_per_s=FASTER * device.bandwidth_bytes_per_s)
        for device in machine.devices
        if device.kind == kind
    ]
    return Change("memory bandwidth", "cpu" if kind == "cpu" else "GPUs", 10, "%", _with(machine, *faster))


def _with(machine: Hardware, *changed: Device) -> Hardware:
    by_name = {device.name: device for device in changed}
    return machine.replace(devices=tuple(by_name.get(device.name, device) for device in machine.devices))
