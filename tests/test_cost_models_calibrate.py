"""Measured runs become a machine's factors, and what they leave open becomes intervals."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from strategies import Instance, random_instance

from cost_models import CostModel, Step
from cost_models.calibrate import Calibrated, Measured, calibrate
from cost_models.factors import FACTORS, link_factor, names, spread, tuned_devices
from cost_models.ledger import ledger
from cost_models.targets import TARGETS
from cost_models.uncertainty import deviation, difference, interval, plan_interval
from profiles import Hardware, Layer, MoeplanError, Placement, Workload, load_hardware, load_profile
from profiles.hardware import Uncertainty
from solver import solve
from solver.evaluate import judge

MACHINE = load_hardware("1xRTX4090,cpu=Ryzen-9-7950X,ram=128GB")
MODEL = load_profile("qwen3-30b-a3b", "q4_k_m")
HOST = ("cpu", "cpu", "cpu")
"""Where most of the random plans' experts are."""


def costs(machine: Hardware = MACHINE) -> CostModel:
    return CostModel(MODEL, machine, Workload(), target="llama.cpp")


def plan(on_cpu: int) -> Placement:
    layers = [
        {"attention": "cuda:0", "experts": {"cpu" if i < on_cpu else "cuda:0": "all"}} for i in range(len(MODEL.layers))
    ]
    return Placement(embedding="cpu", head="cuda:0", layers=layers)


def decode(on_cpu: int, context: float = 0.0, logs: np.ndarray | None = None, off: float = 1.0) -> Measured:
    """A decode step as measured on a machine with these factors; `off` times what its formula says."""
    what = Measured.decode(f"{on_cpu} at {context:g}", costs(), plan(on_cpu), context, 1.0)
    truth = what.predicted_s(np.zeros(len(FACTORS)) if logs is None else logs) * off
    return Measured(what.name, what.costs, what.steps, truth, what.noise)


def prefill(on_cpu: int, logs: np.ndarray) -> Measured:
    what = Measured.prefill(f"prompt {on_cpu}", costs(), plan(on_cpu), [(512, 0), (512, 512)], 1.0)
    return Measured(what.name, what.costs, what.steps, what.predicted_s(logs), what.noise)


def by_formula(seed: int) -> Instance:
    """A random model and machine; no block's time was measured, as such times are not entered in ledgers."""
    instance = random_instance(random.Random(seed), layers=(1, 6), gpus=(0, 3))
    profile = instance.profile

    def forgotten(layer: Layer) -> Layer:
        experts = layer.experts and layer.experts.replace(measured_seconds=None)
        return layer.replace(attention=layer.attention.replace(measured_seconds=None), experts=experts)

    ends = {name: getattr(profile, name).replace(measured_seconds=None) for name in ("embedding", "head")}
    plain = profile.replace(**ends, layers=[forgotten(layer) for layer in profile.layers])
    return Instance(plain, instance.hardware, instance.workload)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("engine", [None, "llama.cpp", "ik_llama.cpp"])
def test_ledgers_are_what_the_judge_counts(target: str, engine: str | None) -> None:
    """Prompts and answers of random plans; among them such as copy experts, for some or for all of their layers."""
    copied = 0
    for seed in range(100):
        instance, rng = by_formula(seed), random.Random(seed)
        names_ = [device.name for device in instance.hardware.devices]
        layers = [
            {"attention": rng.choice(names_), "experts": {rng.choice((*names_, *HOST)): "all"} if layer.experts else {}}
            for layer in instance.profile.layers
        ]
        placed = Placement(embedding=rng.choice(names_), head=rng.choice(names_), layers=layers)
        model = CostModel(instance.profile, instance.hardware, instance.workload, target=target, engine=engine)
        told = judge(placed, model).prediction
        prompt = [ledger(placed, model, step) for step in model.prefill_steps()]
        assert sum(each.seconds(model) for each in prompt) == pytest.approx(told.prefill_s, rel=1e-9)
        assert ledger(placed, model, model.decode_step()).seconds(model) == pytest.approx(told.decode_step_s, rel=1e-9)
        moved = [
            model.copies_experts(i, layer.attention, "cpu", step)
            for step in model.prefill_steps()
            for i, layer in enumerate(placed.layers)
            if "cpu" in layer.experts
        ]
        copied += any(moved)
    assert copied > 5 if target == "llama.cpp" else copied == 0


def test_split_layers_cannot_be_entered() -> None:
    half, rest = list(range(64)), list(range(64, 128))
    layers = [{"attention": "cuda:0", "experts": {"cuda:0": half, "cpu": rest}}] * len(MODEL.layers)
    with pytest.raises(MoeplanError, match=r"layers\[0\].experts: split"):
        ledger(Placement(embedding="cpu", head="cuda:0", layers=layers), costs(), Step(1, 0))


def test_without_runs_nothing_is_known_but_the_spread() -> None:
    found = calibrate([])
    assert not found.logs.any()
    assert np.allclose(found.covariance, Calibrated.of(MACHINE).covariance)
    assert np.allclose(np.sqrt(np.diag(found.covariance)), spread())
    assert len(names()) == len(set(names())) == len(FACTORS)


def test_factors_do_what_they_say() -> None:
    for place, (kind, habit) in enumerate(FACTORS):
        logs = np.zeros(len(FACTORS))
        logs[place] = np.log(2.0)
        tuned = tuned_devices(MACHINE, logs)
        assert link_factor(logs) == pytest.approx(2.0 if kind == "link" else 1.0)
        for device in tuned.values():
            assert device.calibration is not None
            expected = {habit: 2.0} if device.kind == kind else {}
            assert {k: v for k, v in device.calibration.model_dump().items() if v != 1.0} == pytest.approx(expected)


def test_many_runs_find_the_machine() -> None:
    truth = np.zeros(len(FACTORS))
    truth[FACTORS.index(("cpu", "bandwidth"))] = np.log(0.6)
    truth[FACTORS.index(("gpu", "launch"))] = np.log(1.4)
    truth[FACTORS.index(("link", "link"))] = np.log(0.7)
    runs = [decode(n, context, truth) for n in (0, 12, 24, 48) for context in (0.0, 8192.0)]
    found = calibrate([*runs, prefill(24, truth), prefill(48, truth)])
    for what in (decode(36, 4096.0, truth), prefill(12, truth)):
        assert what.predicted_s(found.logs) == pytest.approx(what.seconds, rel=what.noise / 2)
    assert found.logs[FACTORS.index(("cpu", "bandwidth"))] == pytest.approx(np.log(0.6), abs=0.1)


def test_one_run_is_met_and_narrows_what_is_like_it() -> None:
    nothing, slow = calibrate([]), decode(48, 0.0, off=1.5)
    found = calibrate([slow])
    assert slow.predicted_s(found.logs) == pytest.approx(slow.seconds, rel=0.05)
    assert deviation(slow, found) < deviation(slow, nothing) / 2
    near, far = decode(40), decode(0)
    assert deviation(near, found) / deviation(near, nothing) < deviation(far, found) / deviation(far, nothing)


@pytest.mark.parametrize("runs", [0, 1, 2])
def test_intervals_hold_as_often_as_they_say(runs: int) -> None:
    """Machines drawn as the spread says: 8 of 10 measurements are in their interval, calibrated or not."""
    rng = np.random.default_rng(runs)
    held = []
    for _ in range(150):
        truth = rng.normal(0.0, spread())
        noisy = [decode(n, c, truth, float(np.exp(rng.normal(0.0, 0.05)))) for n, c in ((48, 0.0), (0, 0.0))[:runs]]
        asked = decode(24, 4096.0, truth, float(np.exp(rng.normal(0.0, 0.05))))
        low, high = interval(asked, calibrate(noisy))
        held.append(low <= asked.seconds <= high)
    assert 0.68 <= np.mean(held) <= 0.92


def test_plans_that_are_alike_can_be_told_apart() -> None:
    nothing = calibrate([])
    assert difference(decode(24), decode(24), nothing) == 0.0
    assert difference(decode(24), decode(22), nothing) < deviation(decode(24), nothing) / 4


def test_a_calibrated_machine_survives_its_file(tmp_path: Path) -> None:
    found = calibrate([decode(48, 0.0, off=1.5)])
    after = found.hardware(MACHINE)
    after.save(tmp_path / "machine.yaml")
    again = load_hardware(tmp_path / "machine.yaml")
    assert again == after
    assert np.allclose(Calibrated.of(again).covariance, found.covariance, atol=1e-8)
    model = costs(again)
    step = ledger(plan(48), model, Step(1, 0.0))
    assert step.seconds(model) == pytest.approx(decode(48).predicted_s(found.logs), rel=1e-6)
    wide = plan_interval(plan(48), costs(), 1.0, 1.0)
    tight = plan_interval(plan(48), model, 1.0, 1.0)
    assert wide is not None
    assert tight is not None
    assert tight.decode_step_s[1] < wide.decode_step_s[1]


def test_a_plan_says_how_far_it_may_be_off() -> None:
    placed = solve(MODEL, MACHINE, target="llama.cpp")
    assert placed.prediction is not None
    told = placed.prediction.interval
    assert told is not None
    assert told.decode_step_s[0] < placed.prediction.decode_step_s < told.decode_step_s[1]
    assert told.prefill_s[0] < placed.prediction.prefill_s < told.prefill_s[1]


def test_a_covariance_is_square() -> None:
    with pytest.raises(ValueError, match="a row and a column"):
        Uncertainty(factors=("a", "b"), covariance=((1.0, 0.0),))
    odd = MACHINE.replace(uncertainty=Uncertainty(factors=("a",), covariance=((1.0,),)))
    assert np.allclose(Calibrated.of(odd).covariance, calibrate([]).covariance)
