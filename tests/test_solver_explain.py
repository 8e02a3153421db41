"""When nothing fits: what is short, by how few bytes, and changes that help and are the smallest of their kind."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from strategies import Instance, random_instance

from cost_models import CostModel
from profiles import (
    Experts,
    Hardware,
    InfeasiblePlacement,
    Layer,
    LayerPlacement,
    ModelProfile,
    Placement,
    Workload,
    load_hardware,
    load_profile,
)
from solver import explain, solve
from solver.changes import _largest, _smallest
from solver.evaluate import judge
from solver.explain import infeasible
from solver.fits import Budget, Missing, fits, least_missing
from solver.needs import Demand, demand_of
from solver.problem import Problem, build_problem
from solver.rules import Allowed, Pins, breaks

PLENTY = 1e6
"""Work: no question here is left open."""


@pytest.fixture
def thorough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is answered, however long that takes."""
    monkeypatch.setattr("solver.fits.ONE_ANSWER", PLENTY)
    monkeypatch.setattr("solver.fits.ONE_ATTEMPT", PLENTY)
    monkeypatch.setattr("solver.explain.WORK", PLENTY)


# ---- everything tried out ----


class Trial:
    """One instance with all its placements."""

    def __init__(
        self, instance: Instance, granularity: str = "module", target: str = "torch", pins: Pins | None = None
    ) -> None:
        self.instance, self.granularity, self.target, self.pins = instance, granularity, target, pins
        self.costs = CostModel(instance.profile, instance.hardware, instance.workload, target=target)
        self.allowed = Allowed(self.costs, target, pins)

    @property
    def demand(self) -> Demand:
        return demand_of(
            self.costs,
            self.allowed,
            whole_layers=self.granularity == "layer",
            split=self.granularity == "expert",
        )

    @property
    def problem(self) -> Problem:
        granularity: Any = "layer" if self.granularity == "layer" else "module"
        return build_problem(self.costs, objective="request", granularity=granularity, allowed=self.allowed)

    @property
    def usable(self) -> list[int]:
        return [max(0, self.costs.usable_bytes(d) - self.costs.overhead_bytes(d)) for d in self.costs.device]

    def placements(self) -> Iterator[Placement]:
        """All that the granularity, the target and the pins allow."""
        names = list(self.costs.device)
        options = [list(self._layer(layer, names)) for layer in self.instance.profile.layers]
        for embedding, head, *layers in product(names, names, *options):
            placement = Placement(embedding=embedding, head=head, layers=layers)
            if breaks(placement, self.allowed, names) is None:
                yield placement

    def _layer(self, layer: Layer, names: list[str]) -> Iterator[LayerPlacement]:
        for attention in names:
            if layer.experts is None:
                yield LayerPlacement(attention=attention, experts={})
                continue
            for experts in [{attention: "all"}] if self.granularity == "layer" else self._experts(layer.experts, names):
                yield LayerPlacement(attention=attention, experts=experts)

    def _experts(self, experts: Experts, names: list[str]) -> Iterator[dict[str, Any]]:
        if self.granularity == "module":
            yield from ({name: "all"} for name in names)
            return
        for homes in product(names, repeat=experts.count):
            if experts.expert_weight_bytes or list(homes) == sorted(homes):
                yield {name: [i for i, home in enumerate(homes) if home == name] for name in dict.fromkeys(homes)}

    def fewest_missing(self) -> int | None:
        """Of all placements the least sum of what devices lack; None where nothing is allowed at all."""
        return min((sum(judge(found, self.costs).short_bytes.values()) for found in self.placements()), default=None)


def tiny(seed: int, **more: Any) -> Trial:
    rng = random.Random(seed)
    options = {"layers": (2, 3), "gpus": (1, 2), **{k: v for k, v in more.items() if k in ("layers", "gpus")}}
    instance = random_instance(rng, **options)
    return Trial(instance, **{k: v for k, v in more.items() if k not in options})


def check_against(trial: Trial) -> bool:
    """Whether it fits, and the fewest bytes missing, as found by trying everything; returns whether it fits."""
    least = trial.fewest_missing()
    assert least is not None
    answer = fits(trial.demand, trial.usable, Budget(PLENTY))
    if len(trial.demand.enough) == 1:
        assert answer is (least == 0)
    else:
        assert answer in (None, least == 0)
    if least:
        missing = least_missing(trial.demand, trial.usable, Budget(PLENTY))
        assert missing is not None
        check_missing(missing, least, trial)
    return least == 0


def check_missing(missing: Missing, least: int, trial: Trial) -> None:
    assert missing.least <= least <= sum(missing.bytes)
    if len(trial.demand.enough) == 1:
        assert missing.proved
    devices = tuple(
        device.replace(budget_bytes=usable + more, memory_bytes=max(device.memory_bytes, usable + more))
        for device, usable, more in zip(trial.instance.hardware.devices, trial.usable, missing.bytes, strict=True)
    )
    helped = replace(trial.instance, hardware=trial.instance.hardware.replace(devices=devices))
    assert Trial(helped, trial.granularity, trial.target, trial.pins).fewest_missing() == 0


@pytest.mark.usefixtures("thorough")
@pytest.mark.parametrize("granularity", ["module", "layer"])
def test_the_shortage_is_the_least_of_all_placements(granularity: str) -> None:
    answers = [check_against(tiny(seed, granularity=granularity, layers=(2, 2))) for seed in range(100, 125)]
    assert 3 < sum(answers) < 22, "some fit, some do not"


@pytest.mark.usefixtures("thorough")
def test_experts_that_may_be_divided() -> None:
    answers = []
    for seed in range(200, 240):
        trial = tiny(seed, granularity="expert", layers=(2, 2), gpus=(1, 1))
        if all(layer.experts is None or layer.experts.count <= 4 for layer in trial.instance.profile.layers):
            answers.append(check_against(trial))
    assert 0 < sum(answers) < len(answers)


@pytest.mark.usefixtures("thorough")
@pytest.mark.parametrize("target", ["ktransformers", "llama.cpp", "accelerate"])
def test_what_targets_forbid_and_keep_counts(target: str) -> None:
    granularity = "layer" if target == "accelerate" else "module"
    trials = [tiny(s, target=target, granularity=granularity, layers=(2, 2), gpus=(2, 2)) for s in range(300, 312)]
    assert len({check_against(trial) for trial in trials}) == 2
