"""What `moeplan check` finds out about a file: what is where, what that costs, and what our own plan would gain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cost_models.targets import TARGETS as ENGINES
from profiles import Hardware, ModelProfile, MoeplanError, Placement, Workload, load_profile
from profiles.document import parse_document
from profiles.load import formats_of
from runtime_adapter.read_rules import as_stored, read_rules
from solver import Evaluation, evaluate, solve

SAME = 0.001
"""Plans whose objectives differ by no more than this share are called equal."""
Formats = Mapping[str, Any]
"""`quant`, `kv_quant` and `mla`, as `load_profile` takes them."""


def read_file(
    text: str, where: str, format: str, model: str | None, formats: Formats
) -> tuple[Placement, ModelProfile | None, ModelProfile | None]:
    """The placement of a file; its model's profile with bytes as the file has them, and as our plan is to have them.

    The two differ only where the caller says what GPUs store ("gpu=…,cpu=…"). They are None where neither the caller
    nor the file names a model. Raises MoeplanError, one line, for what cannot be read.
    """
    if format == "moeplan":
        plan = Placement.from_dict(parse_document(text, where), where)
        profile = _profile_of(plan, model, formats)
        return plan, profile, profile
    if model is None:
        raise MoeplanError(
            f"{where}: looks like a file for {format}, which names no model; pass --model and --hardware"
        )
    profile = load_profile(model, **formats)
    plan = read_rules(text, format, profile, where)

    def load(quant: str) -> ModelProfile:
        return load_profile(model, **{**formats, "quant": quant})

    stored = as_stored(text, format, profile, load)
    return plan, stored, profile if "gpu=" in (formats["quant"] or "").lower() else stored


def _profile_of(plan: Placement, model: str | None, formats: Formats) -> ModelProfile | None:
    """The plan's model, in the plan's formats where it is read from shapes."""
    if model is not None:
        return load_profile(model, **formats)
    if plan.model is None:
        return None
    return load_profile(plan.model, **formats_of(plan))


@dataclass(frozen=True)
class Question:
    """A model on a machine under a load, as both the file's placement and our own plan are judged."""

    profile: ModelProfile
    machine: Hardware
    workload: Workload
    safety_margin: float
    target: str

    @classmethod
    def about(
        cls,
        plan: Placement,
        profile: ModelProfile,
        machine: Hardware,
        changes: Mapping[str, int],
        safety_margin: float | None = None,
        target: str | None = None,
    ) -> Question:
        """As the plan says it, but for what is given."""
        margin = next(m for m in (safety_margin, plan.safety_margin, 0.10) if m is not None)
        known = plan.target if plan.target in ENGINES else None
        request = (plan.workload or Workload()).replace(**changes)
        return cls(profile, machine, request, margin, target or known or "torch")

    def judge(self, plan: Placement) -> Evaluation:
        """Bytes and seconds of any placement."""
        return evaluate(
            plan, self.profile, self.machine, self.workload, safety_margin=self.safety_margin, target=self.target
        )

    def best(self, plan: Placement, time_limit: float) -> Placement:
        """Our plan, as fine as `plan`'s own. Raises MoeplanError where there is none."""
        split = any(len(layer.experts) > 1 for layer in plan.layers)
        return solve(
            self.profile,
            self.machine,
            self.workload,
            safety_margin=self.safety_margin,
            granularity="expert" if split else "module",
            objective=plan.objective or "request",
            target=self.target,
            time_limit=time_limit,
        )


@dataclass(frozen=True)
class Checked:
    """A file's placement and what it comes to; beside it our own plan, or in words why there is none."""

    format: str
    plan: Placement
    found: Evaluation
    counted: tuple[str, ...] = ()
    ours: Placement | None = None
    judged: Evaluation | None = None
    why_not: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about the file, then how its bytes were counted."""
        return (*(self.plan.notes or ()), *self.counted)

    @property
    def verdict(self) -> str | None:
        """What our plan would gain, in words; None where none was asked for."""
        if self.judged is None:
            return self.why_not
        ours, theirs = self.judged.objective_s, self.found.objective_s
        plan = f"moeplan's plan, same bytes and target: {self.judged.objective} {ours:.4g} s"
        if not self.found.feasible:
            return f"{plan}, and fits"
        if ours >= theirs * (1 - SAME):
            return f"{plan}; this file is as good"
        return f"{plan} instead of {theirs:.4g} s, {1 - ours / theirs:.1%} less"

    def document(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        status = "fits" if self.found.feasible else "infeasible"
        return {
            "schema": 1,
            "status": status,
            "format": self.format,
            **_figures(self.found),
            "notes": list(self.notes),
            "verdict": self.verdict,
            "ours": None if self.judged is None else _figures(self.judged),
        }


def _figures(found: Evaluation) -> dict[str, Any]:
    return {
        "short": found.short_bytes,
        "objective": found.objective,
        "objective_s": found.objective_s,
        "memory": {device: held.model_dump(exclude_none=True) for device, held in found.memory.items()},
        **({"pools": {name: held.model_dump() for name, held in found.pools.items()}} if found.pools else {}),
        "prediction": found.prediction.model_dump(),
    }
