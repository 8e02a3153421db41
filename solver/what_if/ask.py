"""One scenario's question: its problem, plans of neighbours as they are there, and its search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Literal

from cost_models import CostModel
from cost_models.engine_notes import engine_notes
from cost_models.uncertainty import plan_interval
from profiles.errors import MoeplanError
from profiles.placement import Interval, Objective, Placement
from solver.cp_sat.run import Limits
from solver.equal_cards.best import EqualCards
from solver.evaluate import judge
from solver.feasibility.explain import may_fit, shortage
from solver.problem import Problem, build_problem
from solver.rules import Allowed, coarser
from solver.search.plans import Candidate, ProvedInfeasible
from solver.search.portfolio import Portfolio
from solver.solve import described, hand_candidates, run, search_for
from solver.split.search import SplitSearch
from solver.what_if.binds import memory_binds, most_time
from solver.what_if.quick import Quick, Shared
from solver.what_if.rows import Answer, share_on_cpu
from solver.what_if.scenarios import Question

RESOLUTION = 5e-7
"""Plans this near to the bound, as a share, are proved best: to the solver's ticks (docs/model.md)."""
THOROUGH = 5.0
"""Seconds from which a scenario that stays open is searched as `solve` does."""
BRAKE = 10.0
"""A search is given up after so many times its `time_limit`, on a busy machine: until then its work is limited, so that
the plan does not depend on how busy that is."""


@dataclass(frozen=True)
class Effort:
    """What a scenario is worth: seconds of work, and how near to the best is near enough."""

    time_limit: float
    relative_gap: float
    seed: int

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("time_limit", self.time_limit, 1e-3, 1e9),
            ("relative_gap", self.relative_gap, 0, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < most:
                raise MoeplanError(f"{name}: {value!r} is out of range; give a number from {least:g} to below {most:g}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise MoeplanError(f"seed: {self.seed!r} is not a seed; use a whole number from 0 to 2147483647")

    @property
    def limits(self) -> Limits:
        return Limits(self.time_limit, relative_gap=self.relative_gap, seed=self.seed)


@dataclass(frozen=True)
class Found:
    """A plan as evaluated, or None where nothing fits (`proven`) or none was found; no plan takes less than `bound_s`
    seconds."""

    best: Candidate | None
    bound_s: float
    proven: bool = False


@dataclass(frozen=True)
class Figures:
    """What a plan is like whatever else fits beside it."""

    interval: Interval | None
    experts_on_cpu: float
    most_time: str


class Machine:
    """What all scenarios of a family on one machine share: no time depends on how much fits."""

    def __init__(self, question: Question) -> None:
        self.costs = CostModel(question.profile, question.hardware, question.workload, target=question.target)
        self.allowed = Allowed(self.costs, question.target, None)
        self.granularity = coarser(question.granularity, self.allowed.finest)

        self._figures: dict[object, Figures] = {}

    def figures(self, best: Candidate, objective: Objective) -> Figures:
        """Of one plan once."""
        plan, told = best.placement, best.evaluation.prediction
        key = plan.embedding, plan.head, *((layer.attention, *sorted(layer.experts.items())) for layer in plan.layers)
        if key not in self._figures:
            interval = plan_interval(plan, self.costs, told.prefill_s, told.decode_step_s)
            share = share_on_cpu(plan, self.costs)
            self._figures[key] = Figures(interval, share, most_time(plan, self.costs, objective))
        return self._figures[key]

    @cached_property
    def notes(self) -> tuple[str, ...]:
        return engine_notes(self.costs)


class Asked:
    """A question with its costs, and its problem once that is needed."""

    def __init__(self, question: Question, machine: Machine) -> None:
        self.question, self.machine = question, machine
        self.costs = machine.costs.with_room(question.workload.context_tokens, question.margin)
        self.allowed, self.granularity = machine.allowed, machine.granularity

    @cached_property
    def problem(self) -> Problem:
        return build_problem(
            self.costs, objective=self.question.objective, granularity=self.granularity, allowed=self.allowed
        )

    @cached_property
    def quick(self) -> bool:
        """Whether the answer is found sooner than a neighbour's plan is looked at."""
        return EqualCards.suits(self.problem) and not self.problem.shared

    def judged(self, plan: Placement) -> Candidate | None:
        """A plan of the same family as it is here; None where it does not fit."""
        bare = Placement(embedding=plan.embedding, head=plan.head, layers=plan.layers)
        if not bare.devices.issubset(self.costs.device):
            return None
        found = judge(bare, self.costs, self.question.objective)
        return Candidate(bare, found) if found.feasible else None

    def search(self, known: Candidate | None, floor_s: float, shared: Shared, effort: Effort) -> Found:
        """The best plan, begun with a `known` one and with seconds that none takes less than."""
        limits, deadline = effort.limits, perf_counter() + BRAKE * effort.time_limit
        search = search_for(self.problem, self.costs, self.question.objective, limits, deadline)
        if type(search) is Portfolio:
            search = Quick(self.problem, self.costs, self.question.objective, limits, deadline)
        try:
            self._run(search, known, floor_s, shared)
        except ProvedInfeasible:
            return Found(None, floor_s, proven=not may_fit(self.problem, self.costs))
        return Found(search.best, max(floor_s, search.bound_s))

    def _run(self, search: Portfolio | SplitSearch, known: Candidate | None, floor_s: float, shared: Shared) -> None:
        rules = [] if known is None else [known.placement]
        if isinstance(search, Quick):
            search.know(None if known is None else known.placement, floor_s)
            if search.suits:
                search.run_near(shared)
                for rule in [] if search.closed else hand_candidates(self.costs, self.allowed, self.problem):
                    search.know(rule, floor_s)
                if search.best is not None and (search.closed or search.limits.seconds < THOROUGH):
                    return
        run(search, [*rules, *hand_candidates(self.costs, self.allowed, self.problem)])

    def why_not(self, proven: bool) -> str:
        """What is missing, where nothing fits."""
        if not proven:
            return "no plan found in time; raise time_limit"
        return shortage(self.problem, self.costs)

    def answer(self, best: Candidate, bound_s: float, seconds: float) -> Answer:
        """A plan with all its figures."""
        objective_s = best.seconds
        proved = bound_s >= objective_s * (1 - RESOLUTION)
        bound_s = objective_s if proved else bound_s
        status: Literal["optimal", "feasible"] = "optimal" if proved else "feasible"
        proof = {
            "status": status,
            "objective_s": objective_s,
            "bound_s": bound_s,
            "gap": (objective_s - bound_s) / objective_s if objective_s else 0.0,
            "solve_s": round(seconds, 4),
        }
        objective = self.question.objective
        figures = self.machine.figures(best, objective)
        plan = described(best, proof, self.costs, objective, self.granularity, self.machine.notes, figures.interval)
        memory = "GPU memory; " if memory_binds(plan, best.evaluation, self.costs) else ""
        return Answer(
            status=status,
            plan=plan,
            binds=memory + figures.most_time,
            experts_on_cpu=figures.experts_on_cpu,
            seconds=round(seconds, 4),
        )
