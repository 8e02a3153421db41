"""Plans for each target against everything that its rules allow, tried out and judged one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from oracle import OBJECTIVES
from strategies import Instance, random_instance

from cost_models import CostModel
from profiles import InfeasiblePlacement, LayerPlacement, Placement
from solver import evaluate, solve
from solver.evaluate import judge
from solver.rules import Allowed, breaks

TARGETS = ("llama.cpp", "accelerate", "ktransformers", "sglang-kt")
TIME_LIMIT = 60.0
"""Seconds; no instance here needs more than a few."""
TIE_TOLERANCE = 1e-3
"""That of `solve` by default: among plans so near to the best it takes the roomiest."""


@dataclass(frozen=True)
class Case:
    """A question for `solve`, with what brute force finds: the best objective, None where nothing fits; and whether a
    plain runtime, which keeps no buffers, could do better on the same costs."""

    instance: Instance
    target: str
    objective: Any

    @property
    def costs(self) -> CostModel:
        return CostModel(self.instance.profile, self.instance.hardware, self.instance.workload, target=self.target)

    def placements(self, allowed: Allowed) -> Iterator[Placement]:
        """Every placement of whole blocks that the target's rules allow."""
        names = tuple(self.costs.device)

        def homes(kind: str, layer: int) -> list[str]:
            return [name for name, may in zip(names, allowed(kind, layer), strict=True) if may]

        options = []
        for i, layer in enumerate(self.instance.profile.layers):
            experts: list[dict[str, Any]] = [{}] if layer.experts is None else [{d: "all"} for d in homes("experts", i)]
            options.append([LayerPlacement(attention=a, experts=x) for a in homes("attention", i) for x in experts])
        for embedding, head, *layers in product(homes("embedding", 0), homes("head", 0), *options):
            placement = Placement(embedding=embedding, head=head, layers=layers)
            if breaks(placement, allowed, names) is None:
                yield placement

    def best(self) -> float | None:
        costs = self.costs
        found = (judge(p, costs, self.objective) for p in self.placements(Allowed(costs, self.target, None)))
        return min((one.objective_s for one in found if one.feasible), default=None)

    def plan(self, **options: Any) -> Placement | None:
        asked = self.instance
        try:
            return solve(
                asked.profile,
                asked.hardware,
                asked.workload,
                target=self.target,
                objective=self.objective,
                time_limit=TIME_LIMIT,
                **options,
            )
        except InfeasiblePlacement as problem:
            if not problem.proven:
                raise
            return None


def check(case: Case) -> Placement | None:
    best, plan = case.best(), case.plan()
    assert (plan is None) == (best is None)
    if plan is None or best is None:
        return None
    costs = case.costs
    assert breaks(plan, Allowed(costs, case.target, None), tuple(costs.device)) is None
    asked = case.instance
    found = evaluate(plan, asked.profile, asked.hardware, asked.workload, target=case.target, objective=case.objective)
    assert found.feasible
    assert plan.objective_s == pytest.approx(found.objective_s, rel=1e-12)
    assert plan.bound_s is not None
    assert plan.bound_s <= best * (1 + 1e-9)
    if plan.status == "optimal":
        assert found.objective_s <= best * (1 + TIE_TOLERANCE + 1e-6)
    return plan


def case_of(seed: int, target: str) -> Case:
    rng = random.Random(seed)
    instance = random_instance(rng, layers=(2, 3), gpus=(1, 2))
    if rng.random() < 0.5:
        instance = with_equal_cards(instance)
    return Case(instance, target, OBJECTIVES[seed % 4])


def with_equal_cards(instance: Instance) -> Instance:
    hardware, first = instance.hardware, instance.hardware.gpus[0]
    devices = tuple(d if d.kind == "cpu" else first.replace(name=d.name) for d in hardware.devices)
    host = next(link for link in hardware.links if "cpu" in link.between)
    links = tuple(host.replace(between=k.between) if "cpu" in k.between else k for k in hardware.links)
    return replace(instance, hardware=hardware.replace(devices=devices, links=links))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", range(5))
def test_nothing_that_the_rules_allow_is_better(target: str, batch: int) -> None:
    plans = [check(case_of(seed, target)) for seed in range(80_000 + 10 * batch, 80_000 + 10 * batch + 10)]
    assert any(plan is not None for plan in plans)
    assert all(plan is None or plan.status == "optimal" for plan in plans)
