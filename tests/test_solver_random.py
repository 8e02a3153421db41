"""Random questions: no cap is broken, no bound is above what some placement attains, tiny ones agree with brute force.

300 questions, the same each time; `MOEPLAN_EXAMPLES=20000 .venv/bin/pytest -n 2 tests/test_solver_random.py` asks more,
of which about 2 000 are tiny.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import OBJECTIVES, BruteForce, Oracle, Spots
from strategies import Instance, random_instance
from test_solver_counts import with_equal_cards
from test_solver_relations import instance_of as turns_instance

from cost_models import CostModel
from profiles import InfeasiblePlacement, Placement
from solver import solve
from solver.baselines import hand_plans
from solver.equal_cards.best import EqualCards
from solver.rules import Allowed, breaks

EXAMPLES = int(os.environ.get("MOEPLAN_EXAMPLES", "300"))
PARTS = 4
"""The questions are asked in so many parts, which may run side by side."""
TIME_LIMIT = 30.0
OTHERS = 40
"""Placements drawn at random for each question; as many at most that differ from the plan in one or two blocks."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class Question:
    """What is asked, and the placements that its rules allow, as an oracle sees them."""

    seed: int
    shape: str
    objective: Any
    granularity: Any
    pins: dict[str, Any]
    tie_tolerance: float
    relative_gap: float

    @cached_property
    def instance(self) -> Instance:
        rng = random.Random(self.seed)
        if self.shape == "turns":
            return turns_instance(self.seed)
        size = {"tiny": ((1, 3), (0, 2)), "small": ((2, 5), (1, 3)), "wide": ((4, 10), (2, 4))}[self.shape]
        instance = random_instance(rng, layers=size[0], gpus=size[1])
        return with_equal_cards(instance) if instance.hardware.gpus and rng.random() < 0.4 else instance

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.instance.profile, self.instance.hardware, self.instance.workload)

    @cached_property
    def costs(self) -> CostModel:
        return CostModel(self.instance.profile, self.instance.hardware, self.instance.workload)

    @cached_property
    def used_pins(self) -> dict[str, Any]:
        """Those that the machine has devices for; a CPU alone has to hold everything."""
        names = self.oracle.names if self.instance.hardware.gpus else ()
        return {key: where for key, where in self.pins.items() if key in (*names, "head")}

    @cached_property
    def allowed(self) -> Allowed:
        return Allowed(self.costs, "torch", self.used_pins)

    def answer(self) -> Placement | None:
        """The plan; None where it is proved that nothing fits. Half of the questions go without the tables of equal
        cards, so that what comes after those is asked too."""
        with patch.object(EqualCards, "suits", return_value=False) if self.seed % 2 else nullcontext():
            return self._answer()

    def _answer(self) -> Placement | None:
        instance = self.instance
        try:
            return solve(
                instance.profile,
                instance.hardware,
                instance.workload,
                objective=self.objective,
                granularity=self.granularity,
                pins=self.used_pins,
                time_limit=TIME_LIMIT,
                tie_tolerance=self.tie_tolerance,
                relative_gap=self.relative_gap,
            )
        except InfeasiblePlacement as problem:
            if problem.proven:
                return None
            raise

    def may(self, placement: Placement) -> bool:
        """Whether the rules allow it and it fits."""
        together = all(layer.experts_device in (None, layer.attention) for layer in placement.layers)
        one_device = all(layer.experts_device is not None or not layer.experts for layer in placement.layers)
        return (
            one_device
            and (together or self.granularity == "module")
            and breaks(placement, self.allowed, self.oracle.names) is None
            and self.oracle.fits(placement)
        )

    def seconds(self, placement: Placement) -> float:
        return self.oracle.objective(placement, self.objective)

    # ---- other placements ----

    def others(self, rng: random.Random, plan: Placement | None) -> Iterator[Placement]:
        """Hand rules, random placements, and small steps from the plan; whether they are allowed and fit, or not."""
        yield from hand_plans(self.costs).values()
        names = self.oracle.names
        for _ in range(OTHERS):
            yield self._random(rng).placement(names)
        if plan is not None:
            start = _spots(plan, names)
            for _ in range(OTHERS):
                yield self._step(rng, start).placement(names)

    def _random(self, rng: random.Random) -> Spots:
        """Attention in runs or anyhow, experts mostly with it or on one device."""
        n, layers = len(self.oracle.names), self.instance.profile.layers
        attention = [rng.randrange(n) for _ in layers]
        if rng.random() < 0.7:
            cuts = sorted(rng.choices(range(len(layers) + 1), k=rng.randrange(n)))
            order = rng.sample(range(n), n)
            attention = [order[sum(cut <= i for cut in cuts)] for i in range(len(layers))]
        spill = rng.randrange(n)
        share = rng.random() if self.granularity == "module" else 1.0
        experts = [
            None if layer.experts is None else a if rng.random() < share else rng.choice((spill, rng.randrange(n)))
            for layer, a in zip(layers, attention, strict=True)
        ]
        ends = [rng.choice((attention[0], attention[-1], rng.randrange(n))) for _ in range(2)]
        return Spots(ends[0], ends[1], tuple(attention), tuple(experts))

    def _step(self, rng: random.Random, spots: Spots) -> Spots:
        """One or two blocks elsewhere, or two layers' blocks swapped."""
        n, n_layers = len(self.oracle.names), len(spots.attention)
        ends, attention, experts = [spots.embedding, spots.head], list(spots.attention), list(spots.experts)
        for _ in range(rng.randint(1, 2)):
            i, j, d, kind = rng.randrange(n_layers), rng.randrange(n_layers), rng.randrange(n), rng.random()
            if kind < 0.2:
                ends[rng.randrange(2)] = d
            elif kind < 0.5 and experts[i] is not None and self.granularity == "module":
                experts[i] = d
            elif kind < 0.75:
                attention[i] = d
                experts[i] = None if experts[i] is None else d
            elif experts[i] is not None and experts[j] is not None:
                attention[i], attention[j] = attention[j], attention[i]
                experts[i], experts[j] = experts[j], experts[i]
        return Spots(ends[0], ends[1], tuple(attention), tuple(experts))

    def brute_force(self) -> float | None:
        """The least objective of all placements; None where nothing fits. Not for devices in order."""
        kinds = [("embedding", 0), ("head", 0)]
        for i, layer in enumerate(self.instance.profile.layers):
            kinds += [("attention", i)] if layer.experts is None else [("attention", i), ("experts", i)]
        allowed = {key: {d for d, may in enumerate(self.allowed(*key)) if may} for key in kinds}
        best = BruteForce(
            self.oracle, self.objective, experts_with_attention=self.granularity == "layer", allowed=allowed
        ).best()
        return None if best is None else best[0]


def _spots(plan: Placement, names: tuple[str, ...]) -> Spots:
    return Spots(
        names.index(plan.embedding),
        names.index(plan.head),
        tuple(names.index(layer.attention) for layer in plan.layers),
        tuple(names.index(layer.experts_device) if layer.experts_device else None for layer in plan.layers),
    )


PINS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"cuda:0": "attention"},
    {"cuda:0": ["embedding", "attention", "experts"]},
    {"cuda:1": "last"},
    {"cpu": "first", "cuda:0": "last"},
    {"cpu": ["experts", "embedding"]},
    {"head": "cpu"},
)
questions = st.builds(
    Question,
    seed=st.integers(0, 2**40),
    shape=st.sampled_from((*("tiny",) * 4, *("small",) * 34, "wide", "turns")),
    objective=st.sampled_from(OBJECTIVES),
    granularity=st.sampled_from(("module", "module", "layer")),
    pins=st.sampled_from(PINS),
    tie_tolerance=st.sampled_from((0.0, 0.001)),
    relative_gap=st.sampled_from((0.0, 0.0, 0.0, 0.02)),
)


@pytest.mark.parametrize("part", range(PARTS))
@settings(
    max_examples=-(-EXAMPLES // PARTS),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(questions)
def test_no_answer_is_false(part: int, question: Question) -> None:
    question = replace(question, seed=PARTS * question.seed + part)
    rng, plan = random.Random(question.seed), question.answer()
    attained = [question.seconds(other) for other in question.others(rng, plan) if question.may(other)]
    truth = question.brute_force() if question.shape == "tiny" and question.allowed.rank is None else None
    if plan is None:
        assert not attained
        assert truth is None
        return
    seconds, bound = plan.objective_s, plan.bound_s
    assert seconds is not None
    assert bound is not None
    assert plan.gap is not None
    assert question.may(plan)
    assert in_order(plan, question.used_pins)
    assert plan.memory is not None
    assert {name: held.used_bytes for name, held in plan.memory.items()} == question.oracle.used(plan)
    assert seconds == pytest.approx(question.seconds(plan), rel=1e-9)
    assert 0 <= bound <= seconds
    best = min([seconds, *attained, *([] if truth is None else [truth])])
    assert bound <= best * (1 + ROUNDING)
    allowed = max(question.tie_tolerance, question.relative_gap) + ROUNDING
    if plan.status == "optimal":
        assert seconds * (1 - allowed) <= best
        assert plan.gap <= allowed
    if truth is not None:
        assert seconds * (1 - allowed) <= truth
        assert plan.status == "optimal" or question.relative_gap
    rules = [question.seconds(rule) for rule in hand_plans(question.costs).values() if question.may(rule)]
    assert all(seconds <= rule * (1 + ROUNDING) for rule in rules)


def in_order(plan: Placement, pins: dict[str, Any]) -> bool:
    """Devices that are `first` before all others along the layers, those that are `last` after them."""
    place = {d: {"first": -1, "last": 1}.get(words, 0) for d, words in pins.items() if isinstance(words, str)}
    return all(place.get(a.attention, 0) <= place.get(b.attention, 0) for a, b in pairwise(plan.layers))
