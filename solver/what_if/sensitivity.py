"""What one change of the machine is worth, each by solving again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from profiles import Placement, load_placement
from profiles.errors import InfeasiblePlacement
from profiles.hardware import Device, Hardware, Pool
from solver.search.plans import Candidate
from solver.solve import costs_of
from solver.what_if.ask import Asked, Effort, Machine
from solver.what_if.quick import Shared
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

    One GB more on each device (in each pool, where devices share one), and links, RAM and the GPUs' memory 10 % faster.
    Each is solved again, beginning with the plan; so is the machine as it is, which `saved_s` seconds and `saved`, as a
    share, are counted from. What is left out is taken from the plan document, as by `evaluate`. `gap` says how much may
    be undetected.

    >>> from solver import solve
    >>> found = sensitivity(solve("qwen3-30b-a3b", "1xRTX4090,ram=96GB"))
    >>> found.iloc[0][["what", "where"]].tolist()
    ['memory bandwidth', 'cpu']
    """
    import pandas  # it takes a second, and solving does not need it

    plan = load_placement(plan)
    costs = costs_of(plan, profile, hardware, workload, safety_margin=margin)
    base = Question(
        costs.as_stored, costs.hardware, costs.workload, costs.safety_margin, plan.granularity or "module",
        costs.target, plan.objective or "request",
    )  # fmt: skip
    worth = _Worth(base, plan, Effort(time_limit, relative_gap, seed))
    rows = pandas.DataFrame([worth.row(change) for change in worth.changes])
    return rows.sort_values("saved_s", ascending=False, kind="stable").reset_index(drop=True)


class _Worth:
    """The machine as it is and after each change, solved; every plan that is found is tried in all the others, so that
    luck in one search is not taken for the worth of a change."""

    def __init__(self, base: Question, plan: Placement, effort: Effort) -> None:
        self._base, self._effort, self._shared = base, effort, Shared()
        self._here = self._asked(base.hardware)
        found = self._here.search(self._here.judged(plan), 0.0, self._shared, effort)
        if found.best is None:
            raise InfeasiblePlacement("nothing fits the machine as it is; what_if says what would", proven=found.proven)
        self._best, self._bound_s = found.best, found.bound_s
        self.changes = list(changes_of(base.hardware))
        self._after = {self._key(change): self._solved(change) for change in self._different()}

    def row(self, change: Change) -> dict[str, Any]:
        there, best, bound_s = self._after[self._key(change)]
        kept, before_s = there.judged(self._best.placement), self._best.seconds
        best = kept if kept is not None and kept.seconds < best.seconds else best
        gaps = [1 - min(bound_s, best.seconds) / best.seconds, 1 - min(self._bound_s, before_s) / before_s]
        return {
            "what": change.what,
            "where": change.where,
            "amount": change.amount,
            "unit": change.unit,
            "saved_s": before_s - best.seconds,
            "saved": 1 - best.seconds / before_s,
            "objective_s": best.seconds,
            "tokens_per_s": best.evaluation.prediction.tokens_per_s,
            "gap": max(gaps),
        }

    def _asked(self, machine: Hardware) -> Asked:
        question = replace(self._base, hardware=machine)
        return Asked(question, Machine(question))

    def _key(self, change: Change) -> tuple[str, str]:
        """The same for one GB more on devices that nothing tells apart."""
        problem = self._here.problem
        if change.what != "memory" or change.where not in problem.devices:
            return change.what, change.where
        return change.what, problem.devices[problem.twins[problem.devices.index(change.where)]]

    def _different(self) -> list[Change]:
        return list({self._key(change): change for change in reversed(self.changes)}.values())

    def _solved(self, change: Change) -> tuple[Asked, Candidate, float]:
        there = self._asked(change.machine)
        found = there.search(there.judged(self._best.placement), 0.0, self._shared, self._effort)
        assert found.best is not None, "what fits a machine fits one with more"
        back = self._here.judged(found.best.placement)
        if back is not None and back.seconds < self._best.seconds:
            self._best = back
        return there, found.best, found.bound_s


def changes_of(machine: Hardware) -> Iterator[Change]:
    """All changes that are asked about; a machine without links of a kind has none of them made faster."""
    for device in machine.devices:
        if device.pool is None:
            yield Change("memory", device.name, 1, "GB", _with(machine, _larger(device)))
    for pool in machine.pools:
        yield Change("memory", pool.name, 1, "GB", _with_larger(machine, pool))
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


def _with_larger(machine: Hardware, pool: Pool) -> Hardware:
    """Every device that shares the pool may have all of what is more."""
    larger = pool.replace(memory_bytes=pool.memory_bytes + GB)
    pools = tuple(larger if one == pool else one for one in machine.pools)
    devices = tuple(_larger(device) if device.pool == pool.name else device for device in machine.devices)
    return machine.replace(devices=devices, pools=pools)


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
