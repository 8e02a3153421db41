"""Answers made of scenarios: the fewest GPUs, the frontier of a table, the longest context."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from cost_models import CostModel
from profiles import Placement, load_hardware, load_profile, load_workload
from profiles.catalogue import plain
from profiles.document import short
from profiles.errors import InfeasiblePlacement, MoeplanError
from profiles.placement import Granularity, Objective
from solver.evaluate import judge
from solver.feasibility.explain import infeasible, may_fit
from solver.solve import costs_of
from solver.what_if.ask import Asked, Machine
from solver.what_if.rows import SHOWN
from solver.what_if.scenarios import AXES, MARGIN, Question
from solver.what_if.what_if import what_if

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MOST_CONTEXT = 10**9
"""What a workload may ask for."""
LESS_IS_BETTER = ("objective_s", "bound_s", "decode_step_s", "prefill_s", "experts_on_cpu", "cost", "gap")
NUMBERS = tuple(name for name in SHOWN if name not in ("feasible", "status", "why", "binds", "plan"))


def smallest(
    profile: Any,
    hardware: Any,
    *,
    gpus: Iterable[int] = range(1, 17),
    at_least: Mapping[str, float] | None = None,
    objective: Objective | None = None,
    progress: bool = False,
    **options: Any,
) -> Series[Any]:
    """The row, as of `what_if`, of the fewest `gpus` with which the model fits and every column named in `at_least` has
    so much: {"tokens_per_s": 20}.

    `options` are those of `what_if`, with one value an axis. Asked for tokens/s, plans are made for decode unless
    `objective` says otherwise: then more GPUs never have less of them (to within `relative_gap`) and the answer is
    found by halving; otherwise by trying one number after the other. Raises MoeplanError where no number is enough.

    >>> row = smallest("qwen3-30b-a3b", "1xRTX4090", gpus=range(1, 5), at_least={"tokens_per_s": 12})
    >>> int(row["gpus"])
    3
    """
    wanted, numbers = dict(at_least or {}), sorted(set(gpus))
    strange = next((name for name in wanted if name not in NUMBERS), None)
    if strange is not None:
        raise MoeplanError(f"at_least: {short(strange)} is not a column of numbers; use one of {', '.join(NUMBERS)}")
    if not numbers:
        raise MoeplanError("gpus: has no values; give the numbers to choose from, e.g. range(1, 17)")
    objective = objective or ("decode" if "tokens_per_s" in wanted else "request")

    @cache
    def row(number: int) -> Series[Any]:
        table = what_if(profile, hardware, gpus=number, objective=objective, progress=progress, **options)
        if len(table) != 1:
            raise MoeplanError("smallest: give one value for each axis other than gpus")
        return table.iloc[0]

    def enough(number: int) -> bool:
        found = row(number)
        return bool(found["feasible"]) and all(found[name] >= least for name, least in wanted.items())

    if not wanted or (set(wanted) == {"tokens_per_s"} and objective == "decode"):
        k = bisect_left(numbers, True, key=enough)
    else:
        k = next((k for k, number in enumerate(numbers) if enough(number)), len(numbers))
    if k == len(numbers):
        raise _too_few(numbers[-1], row(numbers[-1]), wanted)
    return row(numbers[k])


def _too_few(number: int, row: Series[Any], wanted: Mapping[str, float]) -> MoeplanError:
    if not row["feasible"]:
        return InfeasiblePlacement(
            f"not even {number} GPUs are enough: {row['why']}", proven=row["status"] == "infeasible"
        )
    reached = ", ".join(f"{name} {row[name]:g}, not {least:g}" for name, least in wanted.items() if row[name] < least)
    return MoeplanError(f"not even {number} GPUs are enough: they reach {reached}; ask for less, or allow more GPUs")


def frontier(
    table: DataFrame, x: str = "gpus", y: str = "tokens_per_s", prices: Mapping[str, float] | None = None
) -> DataFrame:
    """The rows that no other beats: none has no more of `x` and a better `y`. Sorted by `x`, which less of is better.

    With `prices`, one of each GPU by its name, there is a column `cost` (GPUs times price), and `x` is that unless
    something else than gpus is named. More of `y` is better, or less where it is seconds or a share on the CPU.

    >>> import pandas
    >>> rows = {"gpus": [1, 2, 3, 4], "tokens_per_s": [5.0, 9.0, 8.0, 12.0], "feasible": True}
    >>> frontier(pandas.DataFrame(rows))["gpus"].tolist()
    [1, 2, 4]
    """
    found = table[table["feasible"].astype(bool)].copy()
    if prices is not None:
        found["cost"] = [_cost(row, prices) for row in found.to_dict("records")]
        x = "cost" if x == "gpus" else x
    for name, column in (("x", x), ("y", y)):
        if column not in found.columns or not all(isinstance(value, (int, float)) for value in found[column]):
            raise MoeplanError(
                f"{name}: {short(column)} is not a column of numbers of this table; it has {_axes(table)}"
            )
    sign = 1 if y in LESS_IS_BETTER else -1
    found = found.assign(_y=sign * found[y]).sort_values([x, "_y"], kind="stable")
    best = found["_y"].cummin().shift(fill_value=float("inf"))
    return found[found["_y"] < best].drop(columns="_y").reset_index(drop=True)


def _axes(table: DataFrame) -> str:
    return ", ".join([*(axis for axis in AXES if axis in table.columns), *NUMBERS])


def _cost(row: Mapping[str, Any], prices: Mapping[str, float]) -> float:
    """GPUs times the price of their kind; with one price only, that is of whatever the machine has."""
    known = {plain(name): price for name, price in prices.items()}
    gpu = row.get("gpu")
    if gpu is None and len(known) != 1:
        raise MoeplanError("prices: the table has no axis gpu, so give one price, that of the machine's GPU")
    price = known.get(plain(gpu)) if gpu is not None else next(iter(known.values()))
    if price is None:
        raise MoeplanError(f"prices: there is none of {short(gpu)}; add it")
    number = row.get("gpus")
    used = sum(device != "cpu" for device in row["plan"].memory) if number is None else number
    return float(price * used)


def largest_context(
    plan_or_profile: Any,
    hardware: Any = None,
    *,
    profile: Any = None,
    workload: Any = None,
    margin: float | None = None,
    granularity: Granularity = "module",
    target: str | None = None,
) -> int:
    """The most tokens a sequence for which a plan still fits, or any plan for the model: `plan_or_profile` is a
    Placement, or what `load_profile` takes.

    Exact: with one token more it does not fit (of a model as far as CP-SAT decides, which it nearly always does). What
    is left out is the plan's own, or the default. At most 10^9 tokens, what a workload may ask for. Raises
    InfeasiblePlacement where not even prompt and generated tokens fit.

    >>> largest_context("qwen3-30b-a3b", "2xRTX4090") > largest_context("qwen3-30b-a3b", "1xRTX4090")
    True
    """
    if isinstance(plan_or_profile, Placement):
        return _context_of_plan(
            plan_or_profile, costs_of(plan_or_profile, profile, hardware, workload, safety_margin=margin, target=target)
        )
    request = load_workload(workload)
    question = Question(
        load_profile(plan_or_profile), load_hardware(hardware), request, MARGIN if margin is None else margin,
        granularity, target or "torch", "request",
    )  # fmt: skip
    return _context_of_model(question, request.prompt_tokens + request.generated_tokens)


def _context_of_plan(plan: Placement, costs: CostModel) -> int:
    least = costs.workload.prompt_tokens + costs.workload.generated_tokens

    def short_bytes(tokens: int) -> dict[str, int]:
        return judge(plan, costs.with_room(tokens, costs.safety_margin)).short_bytes

    missing = short_bytes(least)
    if missing:
        where = ", ".join(f"{device} by {n} bytes" for device, n in missing.items())
        raise InfeasiblePlacement(f"the plan does not fit for {least} tokens: {where}", short_bytes=missing)
    return _largest(least, lambda tokens: not short_bytes(tokens))


def _context_of_model(question: Question, least: int) -> int:
    machine = Machine(question)

    def asked(tokens: int) -> Asked:
        return Asked(question.with_context(tokens), machine)

    if not may_fit(asked(least).problem, asked(least).costs):
        raise infeasible(asked(least).problem, asked(least).costs, None)
    return _largest(least, lambda tokens: may_fit(asked(tokens).problem, asked(tokens).costs) is True)


def _largest(least: int, fits: Callable[[int], bool]) -> int:
    """The most that fits, given that `least` does and less of anything that fits does too."""
    low, step = least, 1024
    while low + step <= MOST_CONTEXT and fits(low + step):
        low, step = low + step, 2 * step
    return low + bisect_left(range(1, min(step, MOST_CONTEXT + 1 - low)), True, key=lambda n: not fits(low + n))
