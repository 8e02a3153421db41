"""A comparison's figures are the evaluator's own, nothing is left out, and equals are called equal."""

from __future__ import annotations

import random
from typing import Any

import pytest
from oracle import OBJECTIVES, Oracle
from strategies import random_instance

from cost_models import CostModel
from moeplan import Comparison, InfeasiblePlacement, MoeplanError, compare, evaluate, load_hardware, load_profile
from solver.baselines import RULES, hand_plans
from solver.compare import Row
from solver.evaluate import judge

STORY = ("deepseek-v2-measured", "8xL40-46GB")


@pytest.fixture(scope="module")
def story() -> Comparison:
    return compare(*STORY)


def row_of(found: Comparison, name: str) -> Row:
    (row,) = (row for row in found.rows if row.name == name)
    return row


def test_every_rule_has_a_row_and_the_plan_its_own(story: Comparison) -> None:
    assert sorted(row.name for row in story.rows) == sorted(RULES)
    assert story.ours.name == "moeplan"
    assert (story.ours.ratio, story.ours.tie, story.ours.fits) == (1.0, True, True)
    assert story.ours.objective_s == story.plan.objective_s


def test_figures_are_those_of_evaluate(story: Comparison) -> None:
    for row in (story.ours, *story.rows):
        assert row.placement is not None
        found = evaluate(row.placement, *STORY)
        assert row.short_bytes == found.short_bytes
        assert row.unused_bytes == {device: max(0, held.free_bytes) for device, held in found.memory.items()}
        if row.fits:
            told = found.prediction
            assert (row.objective_s, row.prefill_s) == (found.objective_s, told.prefill_s)
            assert (row.decode_step_s, row.tokens_per_s) == (told.decode_step_s, told.tokens_per_s)
            assert row.ratio == found.objective_s / story.plan.objective_s


def test_what_does_not_fit_is_last_and_says_how_much_it_lacks(story: Comparison) -> None:
    even = row_of(story, "layers split evenly")
    assert story.rows[-1] is even
    assert even.short_bytes == dict.fromkeys(("cuda:2", "cuda:4", "cuda:6"), 422_131_456)
    assert (even.fits, even.objective_s, even.ratio, even.verdict) == (False, None, None, "short of 1.27 GB")
    ratios = [row.ratio for row in story.rows if row.ratio is not None]
    assert ratios == sorted(ratios)
    assert ratios[0] > 1.05


def test_bytes_of_experts_on_the_cpu(story: Comparison) -> None:
    layer = load_profile(STORY[0]).layers[1]
    assert layer.experts is not None
    for row in (story.ours, *story.rows):
        assert row.placement is not None
        whole = sum(layer.experts_device == "cpu" for layer in row.placement.layers)
        split = any(len(layer.experts) > 1 for layer in row.placement.layers)
        assert split or row.cpu_expert_bytes == whole * layer.experts.weight_bytes.cpu
    masked = row_of(story, "sglang-kt uniform, one GPU")
    assert masked.placement is not None
    left = [len(placed.experts["cpu"]) for placed in masked.placement.layers[1:]]
    assert set(left) == {147, 148}
    assert masked.cpu_expert_bytes == sum(-(-layer.experts.weight_bytes.cpu * n // 160) for n in left)


def test_unused_memory_is_of_gpus(story: Comparison) -> None:
    front = row_of(story, "llama.cpp -ncmoe")
    gpus = {device: n for device, n in front.unused_bytes.items() if device != "cpu"}
    assert len(gpus) == 8
    assert front.unused_gpu_bytes == sum(gpus.values())
    assert front.most_unused == max(gpus.items(), key=lambda item: item[1])
    assert front.unused_gpu_bytes > story.ours.unused_gpu_bytes


# ---- limits of the question ----


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("batch", range(5))
def test_no_allowed_rule_is_better_than_the_plan(batch: int, objective: Any) -> None:
    for seed in range(80_000 + 5 * batch, 80_005 + 5 * batch):
        instance = random_instance(random.Random(seed), layers=(2, 5), gpus=(1, 3))
        try:
            found = compare(instance.profile, instance.hardware, instance.workload, objective=objective, time_limit=60)
        except InfeasiblePlacement:
            continue
        oracle = Oracle(instance.profile, instance.hardware, instance.workload)
        assert len(found.rows) == len(RULES)
        for row in found.rows:
            if row.placement is None or any(len(layer.experts) > 1 for layer in row.placement.layers):
                continue
            assert row.fits == oracle.fits(row.placement)
            if row.objective_s is not None:
                assert row.objective_s == pytest.approx(oracle.objective(row.placement, objective), rel=1e-9)
            if row.ratio is not None and row.allowed:
                assert row.ratio >= 1 - 1e-6


def test_rules_that_break_the_targets_limits_are_compared_and_flagged() -> None:
    found = compare("deepseek-v2-lite", "2xRTX4090,ram=256GB", target="ktransformers")
    accelerate = row_of(found, "accelerate balanced")
    assert (accelerate.fits, accelerate.allowed) == (True, False)
    assert accelerate.forbidden == "embedding on cuda:0"
    assert accelerate.ratio is not None
    assert row_of(found, "KTransformers even split").allowed
    (note,) = (note for note in found.notes() if "embedding on cuda:0" in note)
    assert "accelerate balanced" in note
    assert "KTransformers" not in note
    assert [cells[0] for cells in found.text_rows() if cells[0].startswith("accelerate")] == ["accelerate balanced *"]


@pytest.mark.parametrize(
    ("options", "rule", "said"),
    [
        ({}, "sglang-kt uniform, one GPU", "split, with granularity module"),
        ({"granularity": "layer"}, "llama.cpp -ncmoe", "away from their attention, with granularity layer"),
        ({"pins": {"head": "cpu"}}, "llama.cpp -ncmoe", "head on cuda:0"),
    ],
)
def test_granularity_and_pins_flag_too(options: dict[str, Any], rule: str, said: str) -> None:
    row = row_of(compare("qwen3-30b-a3b", "1xRTX4090,ram=96GB", **options), rule)
    assert row.forbidden is not None
    assert said in row.forbidden


def test_what_is_not_allowed_may_be_better() -> None:
    """A mask splits layers, which granularity module does not."""
    found = compare("qwen3-30b-a3b", "1xRTX4090,ram=96GB", objective="decode", target="llama.cpp")
    best = found.rows[0]
    assert best.name == "sglang-kt uniform, one GPU"
    assert best.ratio is not None
    assert best.ratio < 0.999
    assert best.verdict.startswith("0.9")


def test_ties_are_called_ties() -> None:
    found = compare("qwen3-30b-a3b", "1xRTX4090,ram=96GB")
    ties = {row.name for row in found.rows if row.verdict == "tie"}
    assert "ik_llama.cpp --fit" in ties
    assert all(abs((row_of(found, name).ratio or 0) - 1) <= 0.001 for name in ties)
    apart = Row("x", found.plan, {}, {}, ratio=1.0011)
    assert (apart.tie, apart.verdict) == (False, "1.001 ×")
    assert Row("x", found.plan, {}, {}, ratio=0.9991).tie


def test_a_rule_that_gives_up_keeps_its_row() -> None:
    """A card too small for the attention of all layers: ik_llama.cpp cannot fit the model, the CPU can hold it."""
    machine = load_hardware("1xRTX4090,ram=96GB")
    card = machine.gpus[0].replace(memory_bytes=2_000_000_000)
    small = machine.replace(devices=(card, machine.cpu))
    found = compare("qwen3-30b-a3b", small)
    row = row_of(found, "ik_llama.cpp --fit")
    assert found.rows[-1] is row
    assert (row.placement, row.fits, row.verdict, row.most_unused) == (None, False, "gives up", None)
    costs = CostModel(load_profile("qwen3-30b-a3b"), small)
    assert "ik_llama.cpp --fit" not in hand_plans(costs)
    assert len(found.to_frame()) == 1 + len(RULES)


def test_without_gpus_nothing_is_unused_on_them() -> None:
    machine = load_hardware("1xRTX4090,ram=96GB")
    found = compare("qwen3-30b-a3b", machine.replace(devices=(machine.cpu,), links=()))
    assert (found.ours.unused_gpu_bytes, found.ours.most_unused) == (0, None)
    assert "gives up" in [row.verdict for row in found.rows]
    assert all(len(cells) == len(found.text_columns()) for cells in found.text_rows())


def test_bad_options_and_impossible_questions_are_those_of_solve() -> None:
    with pytest.raises(MoeplanError, match="objective: 'speed'"):
        compare(*STORY, objective="speed")  # type: ignore[arg-type]
    with pytest.raises(InfeasiblePlacement) as problem:
        compare(STORY[0], "1xL40-46GB,ram=8GB")
    assert problem.value.proven


@pytest.mark.parametrize("options", [{"safety_margin": 0.25}, {"target": "llama.cpp"}])
def test_all_get_the_same_margin_and_the_same_buffers(options: dict[str, Any]) -> None:
    found = compare("qwen3-30b-a3b", "2xRTX4090,ram=96GB", **options)
    costs = CostModel(load_profile("qwen3-30b-a3b"), load_hardware("2xRTX4090,ram=96GB"), **options)
    for row in found.rows:
        assert row.placement == RULES[row.name](costs)
        assert row.placement is not None
        held = judge(row.placement, costs).memory
        assert row.unused_bytes == {device: max(0, memory.free_bytes) for device, memory in held.items()}


# ---- how it is shown ----


def test_the_frame_has_a_row_a_layout(story: Comparison) -> None:
    frame = story.to_frame()
    assert list(frame["name"]) == ["moeplan", *(row.name for row in story.rows)]
    assert frame["ratio"].notna().sum() == sum(row.fits for row in (story.ours, *story.rows))
    assert frame.loc[0, "verdict"] == "tie"
    last = frame.iloc[-1]
    assert (last["short_bytes"], bool(last["fits"])) == (3 * 422_131_456, False)
    assert frame.loc[0, "unused_bytes"] == story.ours.unused_gpu_bytes
    assert (last["most_unused_device"], last["most_unused_bytes"]) == story.rows[-1].most_unused


def test_a_notebook_shows_every_row_escaped(story: Comparison) -> None:
    html = story._repr_html_()
    assert html.count("<tr>") == 2 + len(RULES)
    assert "short of 1.27 GB" in html
    named = Comparison(story.plan.replace(model="<b>"), story.ours, story.rows)
    assert "<b>" not in named._repr_html_()


def test_the_document_has_the_plan_and_all_rows(story: Comparison) -> None:
    document = story.to_dict()
    assert document["plan"] == story.plan.to_dict()
    assert document["rows"][0]["name"] == "moeplan"
    assert len(document["rows"]) == 1 + len(RULES)
