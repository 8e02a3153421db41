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
from profiles import InfeasiblePlacement, LayerPlacement, Placement, load_profile
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
    """A question for `solve`, and the answer by brute force: the best objective, None where nothing fits."""

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
    """The plan, which fits, obeys the rules and is as good as it says; None where nothing fits."""
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
    else:
        assert plan.status == "feasible"
    return plan


def needs_a_buffer(plan: Placement, target: str) -> bool:
    """Whether some GPU keeps a buffer for what is on the CPU."""
    apart = any("cpu" in layer.experts and layer.attention != "cpu" for layer in plan.layers)
    return apart if target == "llama.cpp" else {"cpu"} < plan.devices


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
    """200 tiny instances."""
    for seed in range(80_000 + 10 * batch, 80_000 + 10 * batch + 10):
        plan = check(case_of(seed, target))
        assert plan is None or plan.status == "optimal"


def squeezed(rng: random.Random, instance: Instance) -> Instance:
    """The same on cards that hold a small part of the model each, and a CPU that could hold it all."""
    whole = sum(max(block.weight_bytes.gpu, block.weight_bytes.cpu) for block in instance.profile.blocks)

    def memory(kind: str) -> int:
        return 4 * whole if kind == "cpu" else round(whole * rng.uniform(0.1, 0.5))

    devices = tuple(d.replace(memory_bytes=memory(d.kind)) for d in instance.hardware.devices)
    return replace(instance, hardware=instance.hardware.replace(devices=devices))


@pytest.mark.parametrize("target", ["llama.cpp", "accelerate"])
def test_nothing_is_better_where_buffers_take_room(target: str) -> None:
    """40 instances of two or three cards. The first may have no room for the buffer, and is then better left empty."""
    buffers, empty = 0, 0
    for seed in range(81_000, 81_040):
        rng = random.Random(seed)
        three = random_instance(rng, layers=(2, 2), gpus=(3, 3))
        instance = squeezed(rng, three if seed % 2 else random_instance(rng, layers=(2, 3), gpus=(2, 2)))
        plan = check(Case(instance, target, ("request", "decode", "prefill")[seed % 3]))
        if plan is not None:
            assert plan.status == "optimal"
            buffers += needs_a_buffer(plan, target)
            empty += instance.hardware.gpus[0].name not in plan.devices
    assert buffers >= 5
    assert target == "llama.cpp" or empty >= 5


@pytest.mark.parametrize(
    ("model", "quant", "machine", "target", "gap"),
    [
        ("deepseek-v2-measured", None, "7xL40-46GB", "llama.cpp", 0.0),
        ("deepseek-v2-measured", None, "4xRTX4090,ram=1TB", "llama.cpp", 0.0),
        ("qwen3-235b-a22b", "q4_k_m", "7xL40-46GB", "llama.cpp", 0.0),
        ("qwen3-235b-a22b", "q4_k_m", "4xRTX4090,ram=1TB", "llama.cpp", 0.02),
        ("deepseek-v2-measured", None, "7xL40-46GB", "accelerate", 0.0),
        ("qwen3-235b-a22b", "q4_k_m", "4xRTX4090,ram=1TB", "accelerate", 0.005),
    ],
)
def test_large_models_are_planned_with_little_doubt(
    model: str, quant: str | None, machine: str, target: str, gap: float
) -> None:
    plan = solve(load_profile(model, quant), machine, target=target, tie_tolerance=0.0, time_limit=30.0)
    assert plan.gap is not None
    assert plan.gap <= gap
    assert plan.memory is not None
    assert all(held.used_bytes <= held.usable_bytes for held in plan.memory.values())
