"""What all answers together say: bounds of looser scenarios, plans of tighter ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from solver.what_if.ask import RESOLUTION, Asked, Machine
from solver.what_if.rows import Answer
from solver.what_if.scenarios import Scenario, chunks

SAME = 1e-12
"""Objectives that differ by no more than this share are equal but for the order in which seconds were added up."""


def settled(scenarios: Sequence[Scenario], answers: dict[int, Answer]) -> dict[int, Answer]:
    """The answers, each with the best plan of those that are no looser, and the highest bound of those that are no
    tighter: so more GPUs, more memory or less context are never predicted to be slower, in any table."""
    found = dict(answers)
    for family in chunks(scenarios, len(scenarios) or 1):
        for k, scenario in enumerate(family):
            tighter = [one for one in family[:k] if scenario.looser(one)]
            best = min(tighter, key=lambda one: found[one.index].objective_s, default=None)
            if best is not None and found[best.index].objective_s < found[scenario.index].objective_s * (1 - SAME):
                found[scenario.index] = _with_plan_of(found[best.index], scenario, found[scenario.index])
        for k, scenario in reversed(list(enumerate(family))):
            bounds = [found[one.index].bound_s for one in family[k + 1 :] if one.looser(scenario)]
            finite = [bound for bound in bounds if bound < math.inf]
            found[scenario.index] = _with_bound(found[scenario.index], max(finite, default=0.0))
    return found


def _with_plan_of(other: Answer, scenario: Scenario, before: Answer) -> Answer:
    """A tighter scenario's plan as it is in this one; the bound stays."""
    assert other.plan is not None
    assert not isinstance(scenario.question, str)
    asked = Asked(scenario.question, Machine(scenario.question))
    best = asked.judged(other.plan)
    if best is None or best.seconds >= before.objective_s:
        return before
    return asked.answer(best, min(before.bound_s, best.seconds), before.seconds)


def _with_bound(answer: Answer, bound_s: float) -> Answer:
    plan = answer.plan
    if plan is None or plan.objective_s is None or bound_s <= answer.bound_s:
        return answer
    proved = bound_s >= plan.objective_s * (1 - RESOLUTION)
    bound_s = plan.objective_s if proved else bound_s
    status: Literal["optimal", "feasible"] = "optimal" if proved else "feasible"
    gap = (plan.objective_s - bound_s) / plan.objective_s
    return replace(answer, status=status, plan=plan.replace(status=status, bound_s=bound_s, gap=gap))
