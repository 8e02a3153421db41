"""Plans that predictions cannot tell apart: which are, and that a simpler one is simpler."""

from __future__ import annotations

import numpy as np
import pytest

from cost_models import CostModel
from cost_models.calibrate import Calibrated
from cost_models.factors import tuned_devices
from cost_models.telling_apart import margin
from profiles import Hardware, MoeplanError, load_hardware, load_profile
from profiles.placement import Objective, Placement
from solver import evaluate, solve
from solver.simplicity import cpu_expert_bytes, hops, simplest, wary

MACHINE = load_hardware("2xRTX4090,cpu=EPYC-9654,ram=512GB")
PROFILE = load_profile("qwen3-235b-a22b", quant="q4_k_m")
COSTS = CostModel(PROFILE, MACHINE)


def placed(on_gpu: int, away: int = 0) -> Placement:
    """The first layers' experts on cuda:0, of which some are away on cuda:1; all other experts on the CPU."""
    homes = ["cuda:1" if i < away else "cuda:0" if i < on_gpu else "cpu" for i in range(len(PROFILE.layers))]
    layers = [{"attention": "cuda:0", "experts": {home: "all"}} for home in homes]
    return Placement(embedding="cuda:0", head="cuda:0", layers=layers)


@pytest.mark.parametrize("objective", ["request", "decode", "prefill"])
def test_the_margin_is_what_machines_drawn_from_what_is_open_differ_by(objective: Objective) -> None:
    a, b = placed(4), placed(8)
    told = margin(a, b, COSTS, objective)
    assert told is not None
    drawn, known = [], Calibrated.of(MACHINE)
    for logs in np.random.default_rng(1).multivariate_normal(known.logs, known.covariance * 1e-4, 200):
        devices = tuned_devices(MACHINE, logs)
        there = MACHINE.replace(devices=[devices[d.name] for d in MACHINE.devices])
        seconds = [evaluate(plan, PROFILE, there, objective=objective).objective_s for plan in (a, b)]
        drawn.append(np.log(seconds[0] / seconds[1]))
    # A hundredth of the deviations, so that the ratio is linear in them; links are left alone here, and matter little.
    assert np.log1p(told) == pytest.approx(1.2816 * 100 * np.std(drawn), rel=0.2)


def test_plans_that_depend_on_the_machine_alike_have_a_small_margin_and_a_plan_none_to_itself() -> None:
    assert margin(placed(4), placed(4), COSTS) == 0
    near, far = margin(placed(4), placed(5), COSTS), margin(placed(0), placed(12), COSTS)
    assert near is not None
    assert far is not None
    assert 0 < near < far / 4


def test_no_margin_where_factors_do_not_reach() -> None:
    split = placed(4).replace(
        layers=[{"attention": "cuda:0", "experts": {"cpu": [0], "cuda:0": [*range(1, 128)]}}] * 94
    )
    assert margin(placed(4), split, COSTS) is None
    assert margin(placed(4), placed(5), COSTS, "throughput") is None


def test_hops_and_bytes_are_counted() -> None:
    assert hops(placed(4)) == 2 * 90
    assert hops(placed(4, away=2)) == 2 * 92
    there = [layer.experts.weight_bytes.cpu for layer in PROFILE.layers[4:] if layer.experts]
    assert cpu_expert_bytes(placed(4), COSTS) == sum(there)


def test_a_rival_has_to_be_simpler_and_too_near_to_tell() -> None:
    more_room = load_hardware("2xH100-80GB,cpu=EPYC-9654,ram=512GB")
    costs = CostModel(PROFILE, more_room)
    fastest, closer = placed(20, away=1), placed(20)
    found = simplest(fastest, [closer], costs, "request")
    assert found is not None
    assert found.placement is closer
    assert found.longer <= found.margin
    assert simplest(closer, [fastest], costs, "request") is None  # more hops
    assert simplest(closer, [placed(21)], costs, "request") is not None  # less on the CPU, and faster besides
    assert simplest(placed(0), [placed(94)], costs, "request") is None  # simpler, but does not fit


def test_a_wary_machine_has_a_worse_cpu_and_worse_links_and_the_same_gpus() -> None:
    other = wary(MACHINE)
    plan = placed(4)
    here, there = (evaluate(plan, PROFILE, machine).prediction for machine in (MACHINE, other))
    assert there.decode_step_s > 1.2 * here.decode_step_s
    assert other.gpus[0].bandwidth_bytes_per_s == MACHINE.gpus[0].bandwidth_bytes_per_s
    assert isinstance(other, Hardware)


def test_the_simplest_plan_keeps_the_bound_and_says_why() -> None:
    fastest = solve(PROFILE, "2xRTX4090,ram=512GB")
    plan = solve(PROFILE, "2xRTX4090,ram=512GB", prefer="simplest")
    costs = CostModel(PROFILE, load_hardware("2xRTX4090,ram=512GB"))
    assert cpu_expert_bytes(plan, costs) <= cpu_expert_bytes(fastest, costs)
    assert hops(plan) <= hops(fastest)
    assert plan.bound_s is not None
    assert plan.objective_s is not None
    assert plan.gap == pytest.approx((plan.objective_s - plan.bound_s) / plan.objective_s)
    assert evaluate(plan, PROFILE, "2xRTX4090,ram=512GB").feasible
    if (plan.layers, plan.embedding, plan.head) != (fastest.layers, fastest.embedding, fastest.head):
        assert any(note.startswith("taken for its simplicity") for note in plan.notes or ())


def test_odd_preferences_are_refused() -> None:
    with pytest.raises(MoeplanError, match="prefer: 'prettiest' is not known; use fastest, simplest"):
        solve("qwen3-30b-a3b", MACHINE, prefer="prettiest")  # type: ignore[arg-type]
    with pytest.raises(MoeplanError, match="prefer: 'simplest' does not look at robust"):
        solve("qwen3-30b-a3b", MACHINE, prefer="simplest", robust=0.1)
