"""Bytes that transformers holds of packed checkpoints: by method, device and compute capability, the same for all."""

from __future__ import annotations

from typing import Any

import pytest

from cost_models import CostModel
from cost_models.held import held, held_note
from profiles import Hardware, InfeasiblePlacement, ModelProfile, Workload, load_hardware, load_profile
from profiles.formats.door import stored_as
from profiles.hf_config.reader import model_tensors
from profiles.presets import model_config_preset
from solver import evaluate, solve

WORK = Workload(prompt_tokens=64, generated_tokens=16)


def bytes_of(profile: ModelProfile, kind: str) -> int:
    return sum(block.weight_bytes.gpu if kind == "gpu" else block.weight_bytes.cpu for block in profile.blocks)


def both(model: str, quant: str | None, machine: str, target: str = "torch") -> tuple[str, str]:
    """What GPUs and the CPU hold: "packed" or "16 bits"."""
    profile, plain = load_profile(model, quant), load_profile(model, "bf16")
    found = held(profile, target, load_hardware(machine))
    names = {bytes_of(profile, "gpu"): "packed", bytes_of(plain, "gpu"): "16 bits"}
    return names[bytes_of(found, "gpu")], names[bytes_of(found, "cpu")]


PACKED, BITS_16 = "packed", "16 bits"


@pytest.mark.parametrize(
    ("model", "quant", "machine", "target", "expected"),
    [
        ("qwen3-30b-a3b", "fp8", "2xRTX4090,ram=128GB", "torch", (PACKED, BITS_16)),
        ("qwen3-30b-a3b", "fp8", "2xRTX3090,ram=128GB", "torch", (BITS_16, BITS_16)),
        ("qwen3-30b-a3b", "fp8", "1xRTX4090+1xRTX3090,ram=128GB", "torch", (BITS_16, BITS_16)),
        ("qwen3-30b-a3b", "fp8", "1xRTX4090,ram=128GB", "accelerate", (PACKED, PACKED)),
        ("qwen3-30b-a3b", "fp8", "1xRTX3090,ram=128GB", "sglang-kt", (PACKED, PACKED)),
        ("qwen3-30b-a3b", "fp8", "1xMI300X,ram=128GB", "torch", (PACKED, BITS_16)),
        ("gpt-oss-20b", None, "1xRTX3090,ram=128GB", "torch", (PACKED, BITS_16)),
        ("gpt-oss-20b", None, "1xV100,ram=128GB", "torch", (BITS_16, BITS_16)),
        ("qwen3-30b-a3b", "w4a16", "1xH100,ram=128GB", "torch", (BITS_16, BITS_16)),
        ("qwen3-30b-a3b", "nvfp4", "1xB200,ram=128GB", "torch", (BITS_16, BITS_16)),
        ("qwen3-30b-a3b", "nvfp4", "1xB200,ram=128GB", "sglang-kt", (PACKED, PACKED)),
        ("qwen3-30b-a3b", "gptq", "1xRTX3090,ram=128GB", "torch", (PACKED, PACKED)),
        ("qwen3-30b-a3b", "awq", "1xRTX3090,ram=128GB", "torch", (PACKED, PACKED)),
        ("qwen3-30b-a3b", "int4", "1xRTX3090,ram=128GB", "torch", (PACKED, PACKED)),
        ("qwen3-30b-a3b", "q4_k_m", "1xRTX3090,ram=128GB", "torch", (PACKED, PACKED)),
    ],
)
def test_what_is_held(model: str, quant: str | None, machine: str, target: str, expected: tuple[str, str]) -> None:
    assert both(model, quant, machine, target) == expected


def test_experts_grow_as_measured() -> None:
    """Loaded by transformers on a CPU, experts of fp8 take 2.00 times their file, of mxfp4 3.76 times."""
    cpu_only = load_hardware("1xV100,ram=2TB")
    for model, quant, ratio in (("deepseek-v3", None, 2.0), ("gpt-oss-120b", None, 3.76)):
        profile = load_profile(model, quant)
        stored, found = (p.layers[-1].experts for p in (profile, held(profile, "torch", cpu_only)))
        assert stored is not None
        assert found is not None
        assert found.weight_bytes.cpu / stored.weight_bytes.gpu == pytest.approx(ratio, abs=0.01)


def test_what_is_held_is_held_again_and_nothing_else_changes() -> None:
    profile, machine = load_profile("qwen3-30b-a3b", "fp8"), load_hardware("1xRTX4090,ram=128GB")
    found = held(profile, "torch", machine)
    assert held(found, "torch", machine) == found
    assert held(profile, "llama.cpp", machine) is profile
    changed = {"packed_by", "embedding", "head", "layers"}
    assert {k: v for k, v in found.to_dict().items() if k not in changed} == {
        k: v for k, v in profile.to_dict().items() if k not in changed
    }
    assert [a.attention.params for a in found.layers] == [a.attention.params for a in profile.layers]
    assert ModelProfile.from_dict(profile.to_dict()) == profile


def test_a_tied_head_is_held_once() -> None:
    config = {**(model_config_preset("qwen3-30b-a3b") or {}), "tie_word_embeddings": True}
    assert stored_as(model_tensors(config), "mlx_4bit").tied_bytes > 0
    profile = load_profile(config, "mlx_4bit")
    found = held(profile, "torch", load_hardware("1xRTX4090"))
    assert found.tied_bytes == found.embedding.weight_bytes.gpu > profile.tied_bytes
    assert found.weight_bytes == load_profile(config, "bf16").weight_bytes


@pytest.fixture(scope="module")
def machine() -> Hardware:
    return load_hardware("1xRTX4090,ram=128GB")


def test_plan_bound_and_judge_use_the_same_bytes(machine: Hardware) -> None:
    profile = load_profile("qwen3-30b-a3b", "fp8")
    plan = solve(profile, machine, WORK, time_limit=5)
    costs = CostModel(profile, machine, WORK)
    assert plan.memory is not None
    on_cpu = [i for i, layer in enumerate(plan.layers) if layer.experts_device == "cpu"]
    assert on_cpu, "31 GB do not fit one card"
    weights = dict.fromkeys(("cuda:0", "cpu"), 0)
    for i, layer in enumerate(plan.layers):
        for part, device in (("attention", layer.attention), ("experts", layer.experts_device)):
            block = costs.block(part, i)
            weights[str(device)] += block.weight_bytes.cpu if device == "cpu" else block.weight_bytes.gpu
    for part in ("embedding", "head"):
        device = getattr(plan, part)
        block = costs.block(part, 0)
        weights[device] += block.weight_bytes.cpu if device == "cpu" else block.weight_bytes.gpu
    assert {d: plan.memory[d].weights_bytes for d in weights} == weights
    one = load_profile("qwen3-30b-a3b", "bf16").layers[on_cpu[0]].experts
    assert one is not None
    assert weights["cpu"] >= len(on_cpu) * one.weight_bytes.cpu
    judged = evaluate(plan, profile)
    assert judged.memory == plan.memory
    assert plan.notes is not None
    assert plan.notes[0].startswith("transformers unpacks fp8 weights to 16 bits on the CPU")
    assert plan.quant == "fp8"


def test_packed_bytes_that_would_fit_are_no_fit() -> None:
    """18 GB of 4-bit weights on a card of 24 GB and a CPU of 32 GB: transformers makes 61 GB of them."""
    machine = load_hardware("1xRTX4090,ram=32GB")
    with pytest.raises(InfeasiblePlacement, match=r"transformers unpacks modelopt weights.*what is stored"):
        solve(load_profile("qwen3-30b-a3b", "nvfp4"), machine, WORK, time_limit=5)
    assert solve(load_profile("qwen3-30b-a3b", "gptq"), machine, WORK, time_limit=5).memory


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compute_capability": None}, "cuda:0 is not known to have compute capability 8.9"),
        ({"compute_capability": "8.6"}, "cuda:0 is not known to have compute capability 8.9"),
        ({"compute_capability": "12.0"}, "on the CPU, where it has no kernel for them"),
        ({"compute_capability": None, "flops_per_s": {"bf16": 1e14, "fp8": 2e14}}, "on the CPU"),
    ],
)
def test_capability_is_the_machines(machine: Hardware, changes: dict[str, Any], words: str) -> None:
    plain = {"flops_per_s": {"bf16": 1e14}, **changes}
    devices = tuple(d.replace(**plain) if d.kind == "gpu" else d for d in machine.devices)
    said = held_note(load_profile("qwen3-30b-a3b", "fp8"), "torch", machine.replace(devices=devices))
    assert said is not None
    assert words in said
