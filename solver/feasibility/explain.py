"""Why nothing fits, by how many bytes, and the smallest changes that would help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from cost_models import CostModel
from cost_models.held import held_note
from profiles.errors import InfeasiblePlacement
from profiles.hardware import Device
from profiles.placement import Placement
from profiles.units import gb
from profiles.workload import Workload
from solver.feasibility.changes import Changes
from solver.feasibility.fits import Budget, Missing, fits, least_missing, numbers_that_fit
from solver.feasibility.needs import demand_of, laid_out
from solver.problem import Problem
from solver.rules import Pins

WORK = 2.0
"""What an explanation may cost in all, in CP-SAT's count of seconds; most take a tenth of it."""
QUICK_WORK = 0.3
"""The same for saying no more than what is short."""
READABLE = 10**7
"""Bytes from which GB with two digits say enough."""


class _Permissions:
    """What the problem itself says about what may go where."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.rank, self.head_in_order = problem.rank, problem.head_in_order

    def __call__(self, kind: str, layer: int) -> tuple[bool, ...]:
        problem = self._problem
        if kind in ("embedding", "head"):
            return (problem.embedding if kind == "embedding" else problem.head).allowed
        found = problem.classes[problem.layer_class[layer]]
        if kind == "attention":
            return found.attention.allowed
        return found.experts.allowed if found.experts is not None else (True,) * len(problem.devices)


def may_fit(problem: Problem, costs: CostModel) -> bool | None:
    """Whether anything fits, asked apart from the models that look for plans; None where that is left open."""
    demand = demand_of(costs, _Permissions(problem), whole_layers=problem.whole_layers, split=problem.split_experts)
    return fits(demand, problem.room, Budget(WORK))


def some_plan(problem: Problem, costs: CostModel) -> Placement | None:
    """Any placement that fits, for layers whose experts may be divided; None where none was found."""
    demand = demand_of(costs, _Permissions(problem), whole_layers=problem.whole_layers, split=problem.split_experts)
    for needs in demand.enough:
        number = numbers_that_fit(needs, problem.room, Budget(WORK))
        if number is not None:
            return laid_out(needs, number, costs)
    return None


def shortage(problem: Problem, costs: CostModel) -> str:
    """What is short, in words, of a problem proved infeasible; quicker than `infeasible`, which says what helps."""
    demand = demand_of(costs, _Permissions(problem), whole_layers=problem.whole_layers, split=problem.split_experts)
    return _said(least_missing(demand, problem.room, Budget(QUICK_WORK)), problem, costs)


def infeasible(problem: Problem, costs: CostModel, pins: Pins | None = None) -> InfeasiblePlacement:
    """The error for a problem proved infeasible: the fewest bytes missing in all, and the smallest changes that help.

    `pins` are those that the problem was built with; where they are not, no change is suggested.
    """
    budget = Budget(WORK)
    whole_layers, split = problem.whole_layers, problem.split_experts
    demand = demand_of(costs, _Permissions(problem), whole_layers=whole_layers, split=split)
    budget.share(2)
    missing = least_missing(demand, problem.room, budget)
    suggestions, remark = [], ""
    if missing is not None:
        changes = Changes(costs, pins, budget, whole_layers=whole_layers, split=split)
        if changes.demand == demand:
            suggestions, remark = _suggestions(changes, budget), _remark(changes, costs.workload)
    message = _said(missing, problem, costs) + remark
    if suggestions:
        message += f"; {' or '.join(suggestions)}"
    return InfeasiblePlacement(message, short_bytes=_short(missing, _names(problem)), suggestions=suggestions)


def _names(problem: Problem) -> list[str]:
    """Devices, then memories that they share: no pool has a device's name."""
    return [*problem.devices, *(pool.name for pool in problem.shared)]


def _said(missing: Missing | None, problem: Problem, costs: CostModel) -> str:
    why = "granularity, target and pins together leave some block no device; loosen one of them"
    if missing is not None:
        unpacked = held_note(costs.as_stored, costs.target, costs.hardware)
        why = f"short of {_where(missing, _names(problem))}" + (f" ({unpacked})" if unpacked else "")
    return f"{costs.profile.model} does not fit {costs.hardware.name}: {why}"


def _suggestions(changes: Changes, budget: Budget) -> list[str]:
    """One of each kind that helps; all kinds may cost the same, and what one leaves is for the others."""
    kinds: dict[str, Callable[[], object]] = {
        "add {}": lambda: _gpus(changes.more_gpus()),
        "lower context_tokens to {}": changes.longest_context,
        "lower batch_size to {}": changes.largest_batch,
        "lower prefill_chunk to {}": changes.largest_chunk,
        "lower safety_margin to {}": changes.largest_margin,
        "add {} GB of RAM": lambda: changes.more_memory("cpu"),
        "add {} GB to each GPU": lambda: changes.more_memory("gpu"),
        "add {} GB of shared memory": changes.more_shared_memory,
        "use quant {}": changes.finest_quant,
    }
    found = []
    for others, (words, smallest) in zip(range(len(kinds), 0, -1), kinds.items(), strict=True):
        budget.share(others)
        answer = smallest()
        found += [] if answer is None else [words.format(answer)]
    return found


def _gpus(found: tuple[int, Device] | None) -> str | None:
    if found is None:
        return None
    number, twin = found
    model = f" ({twin.model})" if twin.model else ""
    return f"{number} GPU{'s' if number > 1 else ''} like {twin.name}{model}"


def _remark(changes: Changes, asked: Workload) -> str:
    """That no shorter context would do, where that is so."""
    least = asked.prompt_tokens + asked.generated_tokens
    if changes.fits_for(asked.replace(context_tokens=least)) is not False:
        return ""
    return f"; even the {least} tokens of prompt and answer do not fit"


def _short(missing: Missing | None, devices: Sequence[str]) -> dict[str, int]:
    if missing is None:
        return {}
    if not missing.bytes:
        return {"all devices": missing.least}
    return {name: n for name, n in zip(devices, missing.bytes, strict=True) if n > 0}


def _where(missing: Missing, devices: Sequence[str]) -> str:
    """Bytes in all, how few they could be, and device by device, neighbours that miss as much together."""
    if not missing.bytes:
        return f"at least {_exactly(missing.least)}"
    in_all = sum(missing.bytes)
    told = f"{_exactly(in_all)} at best" if missing.proved else _exactly(in_all, f"proved: at least {missing.least}")
    if len(short := _short(missing, devices)) == 1:
        return f"{told} on {next(iter(short))}"
    parts = []
    for size, run in groupby(zip(devices, missing.bytes, strict=True), key=lambda item: _size(item[1])):
        names = [name for name, n_bytes in run if n_bytes]
        parts += [f"{names[0]} to {names[-1]} {size} each"] if len(names) > 1 else [f"{name} {size}" for name in names]
    return f"{told}: {', '.join(parts)}"


def _exactly(n_bytes: int, *more: str) -> str:
    beside = [f"{n_bytes} bytes", *more] if n_bytes >= READABLE else more
    return _size(n_bytes) + (f" ({'; '.join(beside)})" if beside else "")


def _size(n_bytes: int) -> str:
    return gb(n_bytes) if n_bytes >= READABLE else f"{n_bytes} byte{'s' if n_bytes > 1 else ''}"
