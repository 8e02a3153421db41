"""What runtimes hold beside the plan (staging buffers, contexts beyond the margin, copies while loading) and the time
of what they copy from the CPU to compute it on a GPU."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cost_models import CostModel, Step
from cost_models.targets import TARGETS, largest_tensor_bytes, load_peaks, target_memory
from moeplan.tables import load_lines
from profiles import Experts, Hardware, InfeasiblePlacement, ModelProfile, TargetError, Workload, load_hardware
from solver import evaluate, solve
from solver.evaluate import Evaluation

GPU = {"kind": "gpu", "memory_bytes": 1000, "bandwidth_bytes_per_s": 1e9, "flops_per_s": {"bf16": 1e12}}
CPU = {**GPU, "name": "cpu", "kind": "cpu", "memory_bytes": 2000, "safety_margin": 0}
PLAN = {
    "embedding": "cpu",
    "head": "cuda:1",
    "layers": [
        {"attention": "cuda:0", "experts": {"cpu": "all"}},
        {"attention": "cuda:1", "experts": {"cuda:1": "all"}},
    ],
}


def machine(**gpu: Any) -> Hardware:
    gpus = [{**GPU, **gpu, "name": f"cuda:{i}"} for i in range(2)]
    links = [{"between": ["cpu", f"cuda:{i}"], "bandwidth_bytes_per_s": 1e9, "latency_s": 0} for i in range(2)]
    return Hardware(name="two cards", devices=[*gpus, CPU], links=links)


def profile(**experts: Any) -> ModelProfile:
    layer = {
        "attention": {"weight_bytes": 50, "workspace_bytes": 1},
        "experts": {"weight_bytes": 300, "count": 4, "active": 2, "workspace_bytes": 2, **experts},
    }
    end = {"weight_bytes": 20, "workspace_bytes": 0}
    return ModelProfile(model="m", source="test", hidden_size=4, embedding=end, head=end, layers=[layer, layer])


def judged(
    target: str, hardware: Hardware | None = None, model: ModelProfile | None = None, **options: Any
) -> Evaluation:
    request = Workload(prompt_tokens=1, generated_tokens=1, prefill_chunk=1)
    return evaluate(PLAN, model or profile(), hardware or machine(), request, target=target, **options)


def used(found: Evaluation) -> dict[str, int]:
    return {device: held.used_bytes for device, held in found.memory.items()}


def test_a_plain_runtime_needs_weights_and_the_largest_transient() -> None:
    assert used(judged("torch")) == {"cuda:0": 51, "cuda:1": 372, "cpu": 322}


def test_llama_cpp_stages_the_largest_tensor_on_gpus_whose_layers_have_experts_on_the_cpu() -> None:
    projections = {"gate": 90, "up": 90, "down": 120}
    found = judged("llama.cpp", model=profile(projection_bytes=projections))
    assert used(found) == {"cuda:0": 51 + 120, "cuda:1": 372, "cpu": 322}
    assert used(judged("llama.cpp"))["cuda:0"] == 51 + 100, "a third, where projections are not known"
    wider = profile(projection_bytes=projections, weight_bytes={"gpu": 300, "cpu": 600})
    assert used(judged("llama.cpp", model=wider))["cuda:0"] == 51 + 240, "as the CPU stores it"


def test_accelerate_streams_what_is_on_the_cpu_through_its_first_gpu() -> None:
    assert used(judged("accelerate")) == {"cuda:0": 51 + 300, "cuda:1": 372, "cpu": 322}


def test_a_target_may_have_workspaces_of_its_own() -> None:
    other = profile(workspace_by_target={"llama.cpp": 40})
    assert used(judged("llama.cpp", model=other))["cuda:1"] == 370 + 40
    assert used(judged("torch", model=other))["cuda:1"] == 372


@pytest.mark.parametrize(
    ("context", "margin", "extra"), [(100, 0.10, 0), (100, 0.05, 50), (100, 0.0, 100), (None, 0.0, 0), (99, 0.10, 0)]
)
def test_the_context_counts_where_the_margin_does_not_cover_it(context: int | None, margin: float, extra: int) -> None:
    found = judged("torch", machine(context_bytes=context), safety_margin=margin)
    assert used(found)["cuda:0"] == 51 + extra
    assert used(found)["cpu"] == 322


def test_an_empty_gpu_has_no_context() -> None:
    alone = {**PLAN, "layers": [{"attention": "cuda:1", "experts": {"cpu": "all"}}] * 2}
    found = evaluate(alone, profile(), machine(context_bytes=100), safety_margin=0)
    assert found.memory["cuda:0"].used_bytes == 0


def test_solve_leaves_room_for_the_context() -> None:
    """With its whole memory usable, a card of 471 bytes takes one layer and the head; with a context it does not."""
    request = Workload(prompt_tokens=1, generated_tokens=1, prefill_chunk=1)
    options: dict[str, Any] = {
        "safety_margin": 0.0,
        "pins": {"layers.0-1": ["cuda:0", "cuda:1"], "head": "cuda:1"},
    }
    assert solve(profile(), machine(memory_bytes=373), request, **options).status == "optimal"
    with pytest.raises(InfeasiblePlacement):
        solve(profile(), machine(memory_bytes=373, context_bytes=20), request, **options)
    plan = solve(profile(), machine(memory_bytes=393, context_bytes=20), request, **options)
    assert max(held.free_bytes for held in (plan.memory or {}).values()) >= 0


def test_real_cards_keep_their_memory() -> None:
    """The default margin covers the context of every card in the catalogue from 8 GB on."""
    for phrase in ("1xRTX4090", "8xL40-46GB", "1xA100-80GB"):
        gpu = load_hardware(phrase).gpus[0]
        assert gpu.context_bytes == 750 * 2**20
        assert gpu.memory_bytes * 0.1 > gpu.context_bytes


def test_what_is_held_while_loading() -> None:
    weights, experts = {"cuda:0": 120, "cuda:1": 0, "cpu": 300}, {"cuda:0": [60, 40], "cpu": [90, 100]}
    peaks = {name: load_peaks(memory, weights, experts, 1000) for name, memory in TARGETS.items()}
    assert peaks == {
        "torch": {"cpu": 1000},
        "ktransformers": {"cuda:0": 220},
        "llama.cpp": {},
        "accelerate": {"cuda:0": 180, "cpu": 400},
        "sglang-kt": {"cpu": 500},
    }


def test_load_peaks_are_in_the_judgement_and_warn_where_they_do_not_fit() -> None:
    found = judged("torch")
    assert found.memory["cpu"].load_peak_bytes == 740
    assert found.memory["cuda:0"].load_peak_bytes is None
    assert load_lines(found.memory, machine()) == []
    small = Hardware(name="s", devices=[*machine().gpus, {**CPU, "memory_bytes": 500}], links=machine().links)
    (line,) = load_lines(judged("torch", small).memory, small)
    assert line.startswith("warning: while loading, cpu holds 0.00 GB, 0.00 GB more than it has")


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(TargetError, match=r"'vllm' is not known; use one of torch, ktransformers, llama\.cpp"):
        target_memory("vllm")
    with pytest.raises(TargetError, match=r"\['torch'\] is not known; use one of .*accelerate, sglang-kt"):
        solve(profile(), machine(), target=["torch"])  # type: ignore[arg-type]


def test_largest_tensor_rounds_up() -> None:
    assert largest_tensor_bytes(Experts(weight_bytes=100, count=4, active=1)) == 34
    assert TARGETS["ktransformers"].gpu_ratio == Fraction(11, 6)


def test_a_plan_document_tells_the_load_peak(tmp_path: Path) -> None:
    request = Workload(prompt_tokens=1, generated_tokens=1, prefill_chunk=1)
    plan = solve(profile(), machine(), request, pins={"layers.1": "cuda:1"})
    plan.save(tmp_path / "plan.json")
    memory = json.loads((tmp_path / "plan.json").read_text())["memory"]
    assert memory["cpu"]["load_peak_bytes"] == 740
    assert "load_peak_bytes" not in memory["cuda:0"]


# ---- time ----

STORED = {"weight_bytes": {"gpu": 300, "cpu": 600}, "params": 10**6}


def costs(target: str, *, batch: int = 1, bandwidth: float = 1e3, order: int = 1, engine: str = "torch") -> CostModel:
    """A CPU that reads `bandwidth` bytes a second behind links of a million: slow enough to rather copy."""
    gpus = [{**GPU, "name": f"cuda:{i}", "bandwidth_bytes_per_s": 1e9 * (i + 1)} for i in range(2)]
    cpu = {**CPU, "bandwidth_bytes_per_s": bandwidth, "bandwidth_efficiency": 1.0}
    links = [{"between": ["cpu", f"cuda:{i}"], "bandwidth_bytes_per_s": 1e6, "latency_s": 1e-3 * i} for i in range(2)]
    hardware = Hardware(name="slow host", devices=[*gpus, cpu][::order], links=links)
    return CostModel(profile(**STORED), hardware, Workload(batch_size=batch), target=target, engine=engine)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 31), (1, 32), (4, 7), (4, 8), (1, 512)])
def test_llama_cpp_copies_experts_for_32_tokens_or_more_if_that_is_quicker(batch: int, tokens: int) -> None:
    step, copies = Step(tokens, 0), batch * tokens >= 32
    plain, found = (costs(target, batch=batch, engine="llama.cpp") for target in ("torch", "llama.cpp"))
    there = plain.experts_from_s(0, "cuda:1", "cpu", step)
    copied = 1e-3 + 600 / 1e6 + plain.block_s("experts", 0, "cuda:1", step)
    assert copied < there
    assert found.experts_from_s(0, "cuda:1", "cpu", step) == pytest.approx(copied if copies else there, rel=1e-12)
    for a, d in (("cpu", "cpu"), ("cpu", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:0", "cuda:1")):
        assert found.experts_from_s(0, a, d, step) == plain.experts_from_s(0, a, d, step)


def test_llama_cpp_computes_on_the_cpu_what_that_does_quicker() -> None:
    """8 bytes a token go there and back in half the time that 600 bytes take."""
    known = costs("torch", bandwidth=1e12)
    links = [link.replace(bandwidth_bytes_per_s=1e5, latency_s=0) for link in known.hardware.links]
    quick = known.hardware.replace(links=links, devices=[d.replace(sync_s=0) for d in known.hardware.devices])
    plain, found = (
        CostModel(known.profile, quick, known.workload, target=t, engine="llama.cpp") for t in ("torch", "llama.cpp")
    )
    there = plain.experts_from_s(0, "cuda:0", "cpu", Step(32, 0))
    assert there < 600 / 1e5
    assert found.experts_from_s(0, "cuda:0", "cpu", Step(32, 0)) == there


@pytest.mark.parametrize("tokens", [1, 31, 32, 512])
def test_llama_cpp_copies_the_part_of_a_split_layer_that_is_on_the_cpu(tokens: int) -> None:
    step, plain, found = Step(tokens, 0), costs("torch", engine="llama.cpp"), costs("llama.cpp", engine="llama.cpp")
    there = plain.split_experts_s(0, "cuda:0", {"cpu": [0, 1, 2]}, step)
    copied = 450 / 1e6 + plain.split_experts_s(0, "cuda:0", {"cuda:0": [0, 1, 2]}, step)
    own = plain.split_experts_s(0, "cuda:0", {"cuda:0": [3]}, step)
    both = found.split_experts_s(0, "cuda:0", {"cpu": [0, 1, 2], "cuda:0": [3]}, step)
    if tokens >= 32:
        assert both == pytest.approx(max(own, min(there, copied)), rel=1e-12)
        assert copied < there
    else:
        assert both == plain.split_experts_s(0, "cuda:0", {"cpu": [0, 1, 2], "cuda:0": [3]}, step)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("tokens", [1, 512])
def test_accelerate_computes_what_is_on_the_cpu_on_the_first_gpu(tokens: int, order: int) -> None:
    """The first of the machine, whatever its number."""
    step, plain, found = Step(tokens, 9), costs("torch", order=order), costs("accelerate", order=order)
    first, other = ("cuda:0", "cuda:1")[::order]
    latency = 1e-3 * int(first[-1])
    for part, stored in (("embedding", 20), ("attention", 50), ("experts", 600), ("head", 20)):
        copied = latency + stored / 1e6
        assert found.block_s(part, 0, "cpu", step) == pytest.approx(copied + plain.block_s(part, 0, first, step))
        assert found.block_s(part, 0, other, step) == plain.block_s(part, 0, other, step)
    assert found.hop_s("cpu", first, tokens) == 0
    assert found.hop_s(other, "cpu", tokens) == found.hop_s(other, first, tokens) == plain.hop_s(other, first, tokens)
    assert found.experts_from_s(0, first, "cpu", step) == found.block_s("experts", 0, "cpu", step)
    away = found.experts_from_s(0, other, "cpu", step) - found.block_s("experts", 0, "cpu", step)
    assert away == pytest.approx(2 * plain.hop_s(other, first, tokens) + plain.sync_s(first))
    names = ("cpu", "cuda:0", "cuda:1")
    for a, b, c in product(names, names, names):
        assert found.hop_s(a, c, tokens) <= found.hop_s(a, b, tokens) + found.hop_s(b, c, tokens) + 1e-15


def test_accelerate_copies_its_part_of_a_split_layer() -> None:
    step, plain, found = Step(512, 0), costs("torch"), costs("accelerate")
    split = found.split_experts_s(0, "cuda:1", {"cpu": [0], "cuda:1": [1, 2, 3]}, step)
    copied = 150 / 1e6 + plain.split_experts_s(0, "cuda:1", {"cuda:0": [0]}, step)
    assert split == pytest.approx(max(copied, plain.split_experts_s(0, "cuda:1", {"cuda:1": [1, 2, 3]}, step)))


def test_without_gpus_accelerate_computes_on_the_cpu() -> None:
    alone = Hardware(name="no card", devices=[CPU])
    plain, found = (CostModel(profile(), alone, target=target) for target in ("torch", "accelerate"))
    assert found.block_s("experts", 0, "cpu", Step(512, 0)) == plain.block_s("experts", 0, "cpu", Step(512, 0))
