"""A plan beside the rules of other runtimes and of people, all with the same bytes and under the same evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from cost_models import CostModel
from profiles import Workload, load_hardware, load_profile, load_workload
from profiles.placement import Granularity, Objective, Placement
from profiles.units import gb
from solver.baselines import RULES
from solver.evaluate import Evaluation, judge
from solver.rules import Allowed, Pins, breaks
from solver.simplicity import cpu_expert_bytes
from solver.solve import solve

if TYPE_CHECKING:
    from pandas import DataFrame

TIE = 0.001
"""Layouts whose objectives differ by no more than this share are called equal: no model of time here is that exact."""
COLUMNS = (
    "layout", "to the plan", "{objective}", "prefill", "tokens/s", "experts\non CPU", "unused\non GPUs", "most on one",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One layout. Seconds, speed and `ratio` (its objective over the plan's) are None where it does not fit; all but
    the name is empty where `placement` is None, because the rule gave up or does not apply.

    `short_bytes` are what devices lack, `unused_bytes` what every device has left. `forbidden` says in words what about
    it the target, the pins or the granularity do not allow; such a layout may be better than the plan.
    """

    name: str
    placement: Placement | None
    short_bytes: dict[str, int]
    unused_bytes: dict[str, int]
    cpu_expert_bytes: int = 0
    forbidden: str | None = None
    objective_s: float | None = None
    prefill_s: float | None = None
    decode_step_s: float | None = None
    tokens_per_s: float | None = None
    ratio: float | None = None

    @property
    def fits(self) -> bool:
        return self.placement is not None and not self.short_bytes

    @property
    def allowed(self) -> bool:
        return self.forbidden is None

    @property
    def tie(self) -> bool:
        """As good as the plan, to within 0.1 %."""
        return self.ratio is not None and abs(self.ratio - 1) <= TIE

    @property
    def unused_gpu_bytes(self) -> int:
        return sum(n for device, n in self.unused_bytes.items() if device != "cpu")

    @property
    def most_unused(self) -> tuple[str, int] | None:
        """The GPU with most bytes unused; None without GPUs or without a placement."""
        gpus = [(device, n) for device, n in self.unused_bytes.items() if device != "cpu"]
        return max(gpus, key=lambda gpu: gpu[1], default=None)

    @property
    def verdict(self) -> str:
        """`tie`, how many times the plan's objective it takes, how much it is short, or `gives up`."""
        if self.placement is None:
            return "gives up"
        if self.ratio is None:
            return f"short of {gb(sum(self.short_bytes.values()))}"
        return "tie" if self.tie else f"{self.ratio:.3f} ×"

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data, for JSON."""
        return {
            "name": self.name,
            "fits": self.fits,
            "allowed": self.allowed,
            "forbidden": self.forbidden,
            "verdict": self.verdict,
            "ratio": self.ratio,
            "objective_s": self.objective_s,
            "prefill_s": self.prefill_s,
            "decode_step_s": self.decode_step_s,
            "tokens_per_s": self.tokens_per_s,
            "cpu_expert_bytes": self.cpu_expert_bytes,
            "short_bytes": self.short_bytes,
            "unused_bytes": self.unused_bytes,
        }


@dataclass(frozen=True)
class Comparison:
    """A solved plan, its own row, and one row a rule: those that fit from the best on, then those that do not, the
    least short first, then those that gave up."""

    plan: Placement
    ours: Row
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data: the plan document and the rows' figures."""
        rows = [row.to_dict() for row in (self.ours, *self.rows)]
        return {"schema": 1, "objective": self.plan.objective, "plan": self.plan.to_dict(), "rows": rows}

    def to_frame(self) -> DataFrame:
        """One row a layout, the plan's first; bytes of GPUs added up, and what does not fit without any seconds."""
        import pandas  # it takes a second, and solving does not need it

        rows = []
        for row in (self.ours, *self.rows):
            found = row.to_dict()
            device, most = row.most_unused or (None, None)
            found["short_bytes"] = sum(row.short_bytes.values())
            found["unused_bytes"] = row.unused_gpu_bytes
            rows.append({**found, "most_unused_device": device, "most_unused_bytes": most})
        return pandas.DataFrame(rows)

    def text_columns(self) -> list[str]:
        return [column.format(objective=self.plan.objective) for column in COLUMNS]

    def text_rows(self) -> Iterator[list[str]]:
        """The rows for people, one text a column of `text_columns`, the plan's first; `*` marks what is not allowed."""
        proved = self.plan.status or "not proved" if not self.plan.gap else f"gap {self.plan.gap:.2%}"
        yield [self.ours.name, proved if self.ours.fits else self.ours.verdict, *_cells(self.ours)]
        for row in self.rows:
            yield [row.name + (" *" if row.forbidden is not None else ""), row.verdict, *_cells(row)]

    def notes(self) -> list[str]:
        """For each reason why layouts are not allowed, though they were compared, one line."""
        reasons = dict.fromkeys(row.forbidden for row in self.rows if row.forbidden is not None)
        names = {why: ", ".join(row.name for row in self.rows if row.forbidden == why) for why in reasons}
        return [f"* not allowed here ({why}): {those}" for why, those in names.items()]

    @property
    def title(self) -> str:
        return f"{self.plan.model} on {self.plan.hardware}: same usable bytes, same evaluator for all"

    def _repr_html_(self) -> str:
        """A notebook shows it as a table, with the notes below."""
        head = "".join(f"<th>{escape(column)}</th>" for column in self.text_columns())
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>" for cells in self.text_rows())
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes())
        return f"<table><caption>{escape(self.title)}</caption><tr>{head}</tr>{body}</table>{notes}"


def compare(
    profile: Any,
    hardware: Any,
    workload: Any = None,
    *,
    safety_margin: float = 0.10,
    granularity: Granularity = "module",
    objective: Objective = "request",
    target: str = "torch",
    pins: Pins | None = None,
    time_limit: float = 10.0,
    relative_gap: float = 0.0,
    workers: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Solve as `solve` does, and put what every rule of `solver.baselines` makes of the same question beside the plan.

    All get the same usable bytes and are judged by `evaluate`. A rule that breaks the target's limits, the pins or the
    granularity is compared all the same, and flagged. Raises what `solve` raises.

    >>> found = compare("qwen3-30b-a3b", "1xRTX4090,ram=96GB")
    >>> all(row.ratio >= 0.999 for row in found.rows if row.fits and row.allowed)
    True
    """
    model, machine = load_profile(profile), load_hardware(hardware)
    request: Workload = load_workload(workload)
    plan = solve(
        model, machine, request, safety_margin=safety_margin, granularity=granularity, objective=objective,
        target=target, pins=pins, time_limit=time_limit, relative_gap=relative_gap, workers=workers, seed=seed,
    )  # fmt: skip
    return beside_rules(plan, CostModel(model, machine, request, safety_margin=safety_margin, target=target), pins)


def beside_rules(plan: Placement, costs: CostModel, pins: Pins | None = None, name: str = "moeplan") -> Comparison:
    """Put what every rule makes of the question beside any plan that answers it, solved here or read from a file."""
    found = judge(plan, costs, plan.objective or "request")
    plan = plan.replace(objective=found.objective, objective_s=found.objective_s)
    rules = _Rules(costs, plan, Allowed(costs, costs.target, pins))
    rows = [rules.row(name, rule(costs)) for name, rule in RULES.items()]
    return Comparison(plan, rules.row(name, plan), tuple(sorted(rows, key=_best_first)))


class _Rules:
    """Rows for layouts of one question, which `plan` answers."""

    def __init__(self, costs: CostModel, plan: Placement, allowed: Allowed) -> None:
        assert plan.objective is not None
        assert plan.objective_s is not None
        self.costs, self.plan, self.allowed = costs, plan, allowed
        self.objective, self.plan_s = plan.objective, plan.objective_s

    def row(self, name: str, placement: Placement | None) -> Row:
        if placement is None:
            return Row(name, None, {}, {})
        found = judge(placement, self.costs, self.objective)
        free = {device: max(0, held.free_bytes) for device, held in found.memory.items()}
        forbidden = breaks(placement, self.allowed, tuple(self.costs.device)) or self._too_fine(placement)
        held = cpu_expert_bytes(placement, self.costs)
        return Row(name, placement, found.short_bytes, free, held, forbidden, **self._seconds(found))

    def _seconds(self, found: Evaluation) -> dict[str, float]:
        if not found.feasible:
            return {}
        told = found.prediction
        return {
            "objective_s": found.objective_s,
            "prefill_s": told.prefill_s,
            "decode_step_s": told.decode_step_s,
            "tokens_per_s": told.tokens_per_s,
            "ratio": found.objective_s / self.plan_s,
        }

    def _too_fine(self, placement: Placement) -> str | None:
        """What in the placement is finer than the plan's granularity."""
        for i, layer in enumerate(placement.layers):
            if len(layer.experts) > 1 and self.plan.granularity != "expert":
                return f"experts of layer {i} split, with granularity {self.plan.granularity}"
            if set(layer.experts) - {layer.attention} and self.plan.granularity == "layer":
                return f"experts of layer {i} away from their attention, with granularity layer"
        return None


def _best_first(row: Row) -> tuple[float, ...]:
    if row.objective_s is not None:
        return 0, row.objective_s
    return (2, 0) if row.placement is None else (1, sum(row.short_bytes.values()))


def _cells(row: Row) -> list[str]:
    """All columns but the first two; what does not fit has no speed, and no memory left that could be used."""
    if row.placement is None:
        return [""] * (len(COLUMNS) - 2)
    speed = [_time(row.objective_s), _time(row.prefill_s), f"{row.tokens_per_s:.1f}" if row.tokens_per_s else ""]
    most = row.most_unused
    unused = [gb(row.unused_gpu_bytes), f"{gb(most[1])} {most[0]}"] if most else ["", ""]
    return [*speed, gb(row.cpu_expert_bytes), *unused]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"
