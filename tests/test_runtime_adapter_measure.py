"""Measuring a live model: every second lands on its block, every byte too, and nothing of the model changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cost_models import CostModel
from profiles import Hardware, load_hardware, load_placement, load_profile, load_workload
from profiles.errors import ApplyError, ProfileError
from runtime_adapter.measure import measure, together
from runtime_adapter.rehearse import rehearse
from solver import evaluate

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import vgpu  # noqa: E402, F401 -- these need torch
from tiny_models import FAMILIES, tiny_model  # noqa: E402

from runtime_adapter.anatomy import anatomy_of  # noqa: E402
from runtime_adapter.measuring import steps, stopwatch  # noqa: E402
from runtime_adapter.measuring.live_model import live_model  # noqa: E402

WORK = {"prompt_tokens": 6, "generated_tokens": 4, "prefill_chunk": 4}
SECONDS = {"embedding": 1.0, "attention": 2.0, "experts": 16.0, "head": 4.0}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Time stands still but for what a test adds to it."""
    now = {"s": 0.0}
    for module in (steps, stopwatch):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now["s"])
    return now


def spend(clock: dict[str, float], seconds: float) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        clock["s"] += seconds

    return hook


def slowed(family: str, clock: dict[str, float]) -> Any:
    """A model whose blocks take so long by the clock; dense layers half a second less, experts a bit more a token."""
    model = tiny_model(family)
    anatomy = anatomy_of(model)
    anatomy.embedding.register_forward_hook(spend(clock, SECONDS["embedding"]))
    anatomy.head.register_forward_hook(spend(clock, SECONDS["head"]))
    for layer, experts in zip(anatomy.layers, anatomy.experts, strict=True):
        layer.self_attn.register_forward_hook(spend(clock, SECONDS["attention"] - 0.5 * (experts is None)))
        if experts is not None:
            experts.register_forward_hook(
                lambda _, args, __: clock.__setitem__("s", clock["s"] + SECONDS["experts"] + len(args[0]) / 64)
            )
    return model


@pytest.mark.parametrize("family", ["deepseek_v2", "qwen3_moe", "gpt_oss"])
def test_every_second_lands_on_its_block(family: str, clock: dict[str, float]) -> None:
    model = slowed(family, clock)
    found = measure(model, WORK, devices={"cpu": "cpu"}, repeats=2)
    counts = (1, 4, 8, 64)
    assert found.embedding.measured_seconds == {"cpu": pytest.approx(dict.fromkeys(counts, SECONDS["embedding"]))}
    assert found.head.measured_seconds == {"cpu": pytest.approx(dict.fromkeys(counts, SECONDS["head"]))}
    for layer in found.layers:
        told, spent = layer.attention.measured_seconds, SECONDS["attention"] - 0.5 * (layer.experts is None)
        assert told == {"cpu": pytest.approx(dict.fromkeys(counts, spent))}
        if layer.experts is not None:
            told = layer.experts.measured_seconds
            assert told == {"cpu": pytest.approx({n: SECONDS["experts"] + n / 64 for n in (1, 4, 8, 64)})}


def test_predictions_from_measured_times_are_what_the_model_takes(clock: dict[str, float]) -> None:
    model = slowed("mixtral", clock)
    found = measure(model, WORK, devices={"cpu": "cpu"}, repeats=1)
    machine = load_hardware("8xL40-46GB")
    layers = [{"attention": "cpu", "experts": {"cpu": "all"}}] * 3
    told = evaluate({"embedding": "cpu", "head": "cpu", "layers": layers}, found, machine, WORK).prediction
    ids = torch.ones((1, 1), dtype=torch.long)
    with torch.no_grad():
        before = clock["s"]
        model(ids)
        assert told.decode_step_s == pytest.approx(clock["s"] - before)
        before = clock["s"]
        for tokens in (4, 2):
            model(ids.expand(1, tokens))
    assert told.prefill_s == pytest.approx(clock["s"] - before, rel=0.01)  # 2 tokens lie between the measured 1 and 4


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_live_tensors_and_nothing_is_left_behind(family: str) -> None:
    model = tiny_model(family)
    state = [(m, list(vars(m)), dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()]
    values = [p.detach().clone() for p in model.parameters()]
    found = measure(model, WORK, devices={"cpu": "cpu", "cuda:0": "vgpu:0"}, repeats=1)
    assert found.weight_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert all(set(block.measured_seconds or {}) == {"cpu", "gpu"} for block in found.blocks)
    assert [(m, list(vars(m)), dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()] == state
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))
    assert load_profile(found.to_dict()) == found


def test_layers_of_one_shape_get_one_time(clock: dict[str, float]) -> None:
    model = tiny_model("mixtral")
    for i, layer in enumerate(anatomy_of(model).layers):
        layer.self_attn.register_forward_hook(spend(clock, 1.0 + i))
    found = measure(model, WORK, devices={"cpu": "cpu"}, repeats=1)
    assert len(set(found.layer_class)) == 1
    assert (found.layers[0].attention.measured_seconds or {})["cpu"][1] == pytest.approx(2.0)


def test_the_batch_counts_in_tokens() -> None:
    found = measure(tiny_model("mixtral"), {**WORK, "batch_size": 3}, devices={"cpu": "cpu"}, repeats=1)
    assert set((found.head.measured_seconds or {})["cpu"]) == {3, 12, 24, 192}


def test_two_gpus_are_kept_by_name() -> None:
    devices = {"cuda:0": "vgpu:0", "cuda:1": "vgpu:1"}
    found = measure(tiny_model("mixtral"), WORK, devices=devices, repeats=1)
    assert set(found.head.measured_seconds or {}) == {"cuda:0", "cuda:1"}


@pytest.mark.parametrize("repeats", [0, True, 1.5])
def test_odd_repeats_are_refused(repeats: Any) -> None:
    with pytest.raises(ApplyError, match=r"^repeats: "):
        measure(tiny_model("mixtral"), WORK, repeats=repeats)


def machine(weights: int) -> Hardware:
    rates = {"bandwidth_bytes_per_s": 10e9, "flops_per_s": {"bf16": 1e11}}
    gpus = [{"name": f"cuda:{i}", "kind": "gpu", "memory_bytes": weights // 2, **rates} for i in range(2)]
    links = [{"between": ["cpu", gpu["name"]], "bandwidth_bytes_per_s": 4e9, "latency_s": 1e-5} for gpu in gpus]
    cpu = {"name": "cpu", "kind": "cpu", "memory_bytes": 10**9, **rates}
    return Hardware(name="small", devices=[*gpus, cpu], links=links)


def test_a_rehearsal_runs_the_plan_and_rivals_and_tells_both_times() -> None:
    model = tiny_model("qwen2_moe")
    place = machine(sum(p.numel() * p.element_size() for p in model.parameters()))
    said: list[str] = []
    stand_ins = {"cuda:0": "vgpu:0", "cuda:1": "vgpu:1"}
    found = rehearse(model, place, WORK, devices=stand_ins, most_rivals=2, repeats=1, told=said.append)
    assert said[:3] == ["measuring on cpu and cuda:0", "solving", "running the plan"]
    assert found.table["plan"].iloc[0] == "the plan"
    assert len(found.table) == len(said) - 2 == 3
    costs = CostModel(found.profile, place, load_workload(WORK))
    assert costs.profile.weight_bytes > 0
    told = evaluate(load_placement(found.plan), found.profile, place, WORK).prediction
    first = found.table.iloc[0]
    assert first["predicted_decode_step_s"] == told.decode_step_s
    assert first["predicted_prefill_s"] == told.prefill_s
    for kind in ("prefill", "decode"):
        name = "prefill_s" if kind == "prefill" else "decode_step_s"
        ratio = found.table[f"measured_{name}"] / found.table[f"predicted_{name}"]
        assert list(found.table[f"{kind}_ratio"]) == pytest.approx(list(ratio))
    assert all(p.device.type == "cpu" and p.numel() for p in model.parameters())


def test_rounds_measure_all_in_turn_and_compare_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2_moe")
    place = machine(sum(p.numel() * p.element_size() for p in model.parameters()))
    said: list[str] = []
    times = iter([(1.0, 0.1), (3.0, 0.5), (2.0, 0.2)])
    monkeypatch.setattr("runtime_adapter.measuring.steps.speed", lambda *_: next(times))
    found = rehearse(
        model, place, WORK, devices={"cuda:0": "vgpu:0", "cuda:1": "vgpu:1"}, most_rivals=0, repeats=1, rounds=3,
        told=said.append,
    )  # fmt: skip
    assert said[1:] == [
        "solving",
        "running the plan, round 1 of 3",
        "measuring on cpu and cuda:0, round 2 of 3",
        "running the plan, round 2 of 3",
        "measuring on cpu and cuda:0, round 3 of 3",
        "running the plan, round 3 of 3",
    ]
    assert list(found.table["measured_prefill_s"]) == [2.0]
    assert list(found.table["measured_decode_step_s"]) == [0.2]


def test_measurements_together_have_medians_of_every_time() -> None:
    measured = [measure(tiny_model("mixtral"), WORK, devices={"cpu": "cpu"}, repeats=1) for _ in range(3)]
    found = together(measured)
    for part in ("attention", "experts"):
        several = [getattr(profile.layers[1], part).measured_seconds["cpu"][1] for profile in measured]
        assert getattr(found.layers[1], part).measured_seconds["cpu"][1] == sorted(several)[1]
    assert found.weight_bytes == measured[0].weight_bytes
    assert together(measured[:1]) == measured[0]


@pytest.mark.parametrize("rounds", [0, True, 2.0])
def test_odd_rounds_are_refused(rounds: Any) -> None:
    model = tiny_model("qwen2_moe")
    with pytest.raises(ApplyError, match=r"^rounds: "):
        rehearse(model, machine(10**6), WORK, rounds=rounds)


def test_a_model_too_large_for_random_weights_is_refused_before_it_is_made() -> None:
    with pytest.raises(ProfileError, match=r"deepseek-v3: its weights take \d+ bytes, more than 50% of the \d+"):
        live_model("deepseek-v3", 0.5, 0)
