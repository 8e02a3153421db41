"""Scenarios that help each other: what one's answer says about another's.

All scenarios of a family have the same times. What fits in one fits in every looser one, so a looser one's bound is a
bound for the tighter, and a tighter one's plan is a plan for the looser (docs/what_if.md).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from profiles.document import one_line
from profiles.errors import MoeplanError
from profiles.placement import Placement
from solver.assignment import Assignment
from solver.column_generation.contents import Contents, contents_of
from solver.problem import Problem
from solver.search.plans import Candidate
from solver.what_if.ask import Asked, Effort, Machine
from solver.what_if.quick import Shared
from solver.what_if.rows import Answer, Status
from solver.what_if.scenarios import Question, Scenario


@dataclass(frozen=True)
class Job:
    """Scenarios of one family, from tight to loose, to be answered in one place."""

    scenarios: tuple[Scenario, ...]
    effort: Effort


@dataclass(frozen=True)
class _Known:
    """What was found: a plan with its seconds, and its bound; or that nothing fits. `held` is what the plan puts on
    each device, counted as in `problem`; without it, only the judge can say whether the plan fits elsewhere."""

    scenario: Scenario
    plan: Placement | None
    seconds: float
    bound_s: float
    problem: Problem
    held: Sequence[Contents] = ()

    @staticmethod
    def of(scenario: Scenario, asked: Asked, best: Candidate, bound_s: float) -> _Known:
        assignment = Assignment.of(best.placement, asked.problem)
        held = () if assignment is None else tuple(one for _, one in contents_of(asked.problem, assignment))
        return _Known(scenario, best.placement, best.seconds, min(bound_s, best.seconds), asked.problem, held)

    def may_fit(self, problem: Problem) -> bool:
        """Whether the plan may fit there; fewer devices have the names of the first of more."""
        if problem.layer_class != self.problem.layer_class:
            return True
        for name, held in zip(self.problem.devices, self.held, strict=False):
            if name not in problem.devices:
                if any((*held.attention, *held.experts, held.embedding, held.head)):
                    return False
            elif not held.fits(problem, problem.devices.index(name)):
                return False
        return True


class Family:
    """Answers one scenario after the other."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self._known: list[_Known] = []
        self._shared = Shared()
        self._machines: dict[int, Machine] = {}

    def answer(self, scenario: Scenario) -> Answer:
        """Never raises for what is wrong with one scenario: that is its answer."""
        started = perf_counter()
        if isinstance(scenario.question, str):
            return Answer("infeasible", why=scenario.question)
        try:
            return self._answer(scenario, Asked(scenario.question, self._machine(scenario.question)), started)
        except MoeplanError as problem:
            return Answer("infeasible", why=str(problem), seconds=_since(started))
        except Exception as problem:
            where = traceback.extract_tb(problem.__traceback__)[-1]
            said = f"{type(problem).__name__}: {problem} ({where.name}, line {where.lineno})"
            return Answer("error", why=one_line(said), seconds=_since(started))

    def _machine(self, question: Question) -> Machine:
        """By identity: scenarios with the same machine have the very same object, and it is long to compare."""
        key = id(question.hardware)
        if key not in self._machines:
            self._machines[key] = Machine(question)
        return self._machines[key]

    def _answer(self, scenario: Scenario, asked: Asked, started: float) -> Answer:
        looser = [one for one in self._known if one.scenario.looser(scenario)]
        if any(one.plan is None for one in looser):
            return Answer("infeasible", why=asked.why_not(proven=True), seconds=_since(started))
        floor_s = max((one.bound_s for one in looser), default=0.0)
        best = None if asked.quick else self._neighbours_plan(scenario, asked)
        bound_s = floor_s
        if best is None or best.seconds * (1 - self.effort.relative_gap) > floor_s:
            found = asked.search(best, floor_s, self._shared, self.effort)
            best, bound_s = found.best, found.bound_s
            if best is None:
                if found.proven:
                    self._known.append(_Known(scenario, None, float("inf"), float("inf"), asked.problem))
                status: Status = "infeasible" if found.proven else "no plan"
                return Answer(status, why=asked.why_not(found.proven), seconds=_since(started))
        if not asked.quick:
            self._known.append(_Known.of(scenario, asked, best, bound_s))
        return asked.answer(best, bound_s, _since(started))

    def _neighbours_plan(self, scenario: Scenario, asked: Asked) -> Candidate | None:
        """The best plan of a neighbour that fits here; times are the same, so the first that fits is it."""
        for one in sorted(self._known, key=lambda one: one.seconds):
            if one.plan is not None and one.may_fit(asked.problem):
                found = asked.judged(one.plan)
                if found is not None:
                    return found
        return None


def answer_job(job: Job, stopped: Callable[[], bool] = lambda: False) -> dict[int, Answer]:
    """Answers by index. What lies between two scenarios is asked last: often nothing is left to find out."""
    family, answers = Family(job.effort), dict[int, Answer]()
    for scenario in halving(job.scenarios):
        if stopped():
            break
        answers[scenario.index] = family.answer(scenario)
    return answers


def halving(scenarios: Sequence[Scenario]) -> Iterator[Scenario]:
    """The last, the first, then what is in the middle of what is left.

    >>> "".join(halving("abcde"))
    'eacbd'
    """
    if not scenarios:
        return
    yield scenarios[-1]
    if len(scenarios) > 1:
        yield scenarios[0]
    spans = [(0, len(scenarios) - 1)]
    for low, high in spans:
        if high - low > 1:
            middle = (low + high) // 2
            yield scenarios[middle]
            spans += [(low, middle), (middle, high)]


def _since(started: float) -> float:
    return round(perf_counter() - started, 4)
