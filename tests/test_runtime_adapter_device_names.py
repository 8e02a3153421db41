"""GPUs of other makers: plans call them as torch does, each runtime's text as that runtime does, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_solver_pools import unified

from profiles import Device, Hardware, HardwareError, Link, Placement, TargetError, load_hardware, load_profile
from profiles.device_names import DEVICE_NAME, for_llama_cpp, in_order, of_llama_cpp
from profiles.layer_map import device_colours, device_order
from runtime_adapter import export, read_rules
from solver import solve, what_if

GB = 10**9
PROFILE = load_profile("qwen3-30b-a3b", "q4_k_m")
"""18.6 GB of weights: some of its experts are on the CPU of a machine with one small card."""


def machine(*gpus: tuple[str, str | None], memory: int = 12 * GB) -> Hardware:
    """Such GPUs, as (name, backend), beside a CPU."""
    devices = [
        Device(
            name=name, kind="gpu", backend=backend, memory_bytes=memory, bandwidth_bytes_per_s=450e9,
            flops_per_s={"bf16": 100e12},
        )
        for name, backend in gpus
    ]  # fmt: skip
    cpu = Device(name="cpu", kind="cpu", memory_bytes=64 * GB, bandwidth_bytes_per_s=60e9, flops_per_s={"bf16": 1e12})
    links = [Link(between=("cpu", name), bandwidth_bytes_per_s=25e9, latency_s=1e-5) for name, _ in gpus]
    return Hardware(name="others", devices=[*devices, cpu], links=links)


# ---- names ----


@pytest.mark.parametrize("name", ["cpu", "cuda:0", "cuda:13", "xpu:0", "mps:0", "npu:7", "hpu:0"])
def test_torch_names_are_names(name: str) -> None:
    import torch

    assert DEVICE_NAME.fullmatch(name)
    if not name.startswith("npu"):  # which torch knows once torch_npu is imported
        assert str(torch.device(name)) == name


@pytest.mark.parametrize("name", ["gpu:0", "cuda", "mps:1", "xpu:01", "ROCm0", "cuda:-1", "meta"])
def test_others_are_not(name: str) -> None:
    assert not DEVICE_NAME.fullmatch(name)
    with pytest.raises(HardwareError, match="is not a device name; use 'cpu', 'cuda:0'"):
        machine().replace(devices=[*machine().devices, {**unified().gpus[0].model_dump(), "name": name}])


def test_gpus_come_by_type_and_number_and_the_cpu_last() -> None:
    names = ["cpu", "xpu:0", "cuda:10", "mps:0", "cuda:2", "xpu:1"]
    assert sorted(names, key=in_order) == device_order(names)
    assert device_order(names) == ["cuda:2", "cuda:10", "xpu:0", "xpu:1", "mps:0", "cpu"]
    assert len(set(device_colours(names).values())) == len(names)


@pytest.mark.parametrize(
    ("name", "backend", "remedy"),
    [
        ("cuda:0", "sycl", "use cuda or rocm or vulkan"),
        ("mps:0", "cuda", "use metal or vulkan"),
        ("xpu:0", "rocm", "use sycl"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(name: str, backend: str, remedy: str) -> None:
    document = machine((name, None)).to_dict()
    document["devices"][0]["backend"] = backend
    with pytest.raises(HardwareError, match=f"backend {backend} drives no {name}; {remedy}"):
        load_hardware(document)


def test_llama_cpp_names_are_those_of_its_sources() -> None:
    """GGML_CUDA_NAME and so on of build 11434; the buffer of a Mac without unified memory is MTL0_Private."""
    backends: Any = {"cuda:0": "rocm", "cuda:1": "rocm"}
    assert for_llama_cpp(["cpu", "cuda:0", "cuda:1"], backends) == {"cuda:0": "ROCm0", "cuda:1": "ROCm1"}
    assert for_llama_cpp(["xpu:0", "mps:0", "npu:0", "hpu:0"], {}) == {
        "xpu:0": "SYCL0",
        "mps:0": "MTL0",
        "npu:0": "CANN0",
    }
    for word in ("MTL0", "Metal", "MTL0_Private", "MTL0_Mapped"):
        assert of_llama_cpp(word) == ("mps:0", "metal")
    assert of_llama_cpp("Vulkan3") == ("cuda:3", "vulkan")
    assert of_llama_cpp("CUDA_Host") is of_llama_cpp("RPC0") is of_llama_cpp("CUDA") is None


# ---- llama.cpp ----

LLAMA_CPP = [
    (machine(("cuda:0", "rocm"), ("cuda:1", "rocm"), memory=7 * GB), "ROCm0,ROCm1"),
    (machine(("xpu:0", None)), "SYCL0"),
    (machine(("xpu:0", "vulkan")), "Vulkan0"),
    (machine(("cuda:0", None), ("xpu:0", None), memory=7 * GB), "CUDA0,SYCL0"),
    (machine(("cuda:0", "vulkan"), ("xpu:0", "vulkan"), memory=7 * GB), "Vulkan0,Vulkan1"),
    (unified(24 * GB, 12 * GB, name="mps:0"), "MTL0"),
]


@pytest.mark.parametrize(("hardware", "names"), LLAMA_CPP, ids=[names for _, names in LLAMA_CPP])
def test_a_command_names_devices_as_llama_cpp_does_and_is_read_back(hardware: Hardware, names: str) -> None:
    plan = solve(PROFILE, hardware, target="llama.cpp", relative_gap=0.02)
    assert {"cpu"} < plan.devices, "so that there is a pattern"
    text = export(plan, "llama.cpp", model=PROFILE)
    assert f"-dev {names} -ngl" in text
    found = read_rules(text, "llama.cpp", PROFILE)
    named = dict(zip(names.split(","), device_order(gpu.name for gpu in hardware.gpus), strict=True))
    for word, name in named.items():
        assert of_llama_cpp(word) is not None
        assert name in plan.devices
    if not names.startswith("Vulkan"):
        assert (found.layers, found.embedding, found.head) == (plan.layers, plan.embedding, plan.head)


def test_gpus_that_no_reader_can_tell_apart_are_refused() -> None:
    both = machine(("cuda:0", None), ("xpu:0", "vulkan"), memory=7 * GB)
    plan = solve(PROFILE, both, target="llama.cpp", relative_gap=0.02)
    with pytest.raises(TargetError, match="would have GPUs called CUDA0 and Vulkan0"):
        export(plan, "llama.cpp", model=PROFILE)
    with pytest.raises(TargetError, match="and a device of another backend have one number"):
        read_rules("llama-server -m x.gguf -dev CUDA0,Vulkan0 -ngl 99 -ts 1,1", "llama.cpp", PROFILE)


def test_a_plan_for_cuda_names_no_devices() -> None:
    plan = solve(PROFILE, machine(("cuda:0", None)), target="llama.cpp", relative_gap=0.02)
    assert plan.backends is None
    assert "-dev" not in export(plan, "llama.cpp", model=PROFILE)


def test_a_plan_remembers_what_drives_its_gpus() -> None:
    plan = solve(PROFILE, machine(("cuda:0", "rocm")), target="llama.cpp", relative_gap=0.02)
    assert plan.backends == {"cuda:0": "rocm"}
    again = Placement.from_dict(plan.to_dict())
    assert "-dev ROCm0" in export(again, "llama.cpp", model=PROFILE)
    found = read_rules(export(again, "llama.cpp", model=PROFILE), "llama.cpp", PROFILE)
    assert found.backends == {"cuda:0": "rocm"}


@pytest.mark.parametrize("word", ["ROCm0", "SYCL0", "Vulkan0", "MTL0", "Metal", "CANN0", "CUDA0"])
def test_a_command_for_any_backend_is_read(word: str) -> None:
    rules = rf"-ot 'blk\.1\.ffn_.*_exps=CPU' -ot 'blk\.2\.ffn_.*_exps={word}'"
    text = f"llama-server -m x.gguf -fit off -dev {word} -ngl 99 {rules}"
    found = read_rules(text, "llama.cpp", PROFILE)
    meant = of_llama_cpp(word)
    assert meant is not None
    assert {found.layers[0].attention, found.head} == {meant[0]}
    assert found.layers[1].experts == {"cpu": "all"}
    assert found.layers[2].experts == {meant[0]: "all"}


def test_ik_llama_cpp_and_gaudi_are_refused_with_a_remedy() -> None:
    rocm = solve(PROFILE, machine(("cuda:0", "rocm")), target="llama.cpp", relative_gap=0.02)
    with pytest.raises(TargetError, match=r"ik_llama\.cpp: is kept up for CUDA and CPUs only.*export to llama\.cpp"):
        export(rocm, "ik_llama.cpp", model=PROFILE)
    gaudi = solve(PROFILE, machine(("hpu:0", None)), target="llama.cpp", relative_gap=0.02)
    with pytest.raises(TargetError, match=r"llama\.cpp: has no backend for hpu:0; use target torch"):
        export(gaudi, "llama.cpp", model=PROFILE)


# ---- the others ----


@pytest.mark.parametrize(
    ("name", "backend", "value"),
    [("xpu:0", None, 0), ("cuda:0", "rocm", 0), ("npu:0", None, 0), ("mps:0", None, "mps")],
)
def test_a_device_map_has_accelerates_names(name: str, backend: str | None, value: Any) -> None:
    """accelerate counts GPUs of the machine's own type by number; a Mac's is "mps"."""
    plan = solve(PROFILE, machine((name, backend)), target="accelerate", relative_gap=0.1)
    assert set(json.loads(export(plan, "accelerate", model=PROFILE)).values()) == {value, "cpu"}


def test_a_device_map_cannot_mean_gpus_of_two_types() -> None:
    plan = solve(
        PROFILE, machine(("cuda:0", None), ("xpu:0", None), memory=7 * GB), target="accelerate", relative_gap=0.1
    )
    with pytest.raises(TargetError, match=r"accelerate: the plan has GPUs of 2 types \(cuda, xpu.*keep to one"):
        export(plan, "accelerate", model=PROFILE)


@pytest.mark.parametrize("target", ["ktransformers", "sglang-kt"])
@pytest.mark.parametrize(("name", "backend"), [("cuda:0", "rocm"), ("xpu:0", None), ("mps:0", None)])
def test_targets_for_cuda_say_so(target: str, name: str, backend: str | None) -> None:
    with pytest.raises(TargetError, match=rf"target {target}: runs on CUDA GPUs, others has none.*use target llama"):
        solve(PROFILE, machine((name, backend)), target=target)
    torch = solve(PROFILE, machine((name, backend), memory=40 * GB), relative_gap=0.1)
    with pytest.raises(TargetError, match=rf"{target}: runs on CUDA GPUs, not on {name} .*; export to llama\.cpp"):
        export(torch, target, model=PROFILE)


@pytest.mark.parametrize("target", ["ktransformers", "sglang-kt"])
def test_beside_a_cuda_gpu_others_hold_nothing(target: str) -> None:
    plan = solve(PROFILE, machine(("xpu:0", None), ("cuda:0", None)), target=target, relative_gap=0.1)
    assert plan.devices == {"cuda:0", "cpu"}


@pytest.mark.parametrize("name", ["xpu:0", "mps:0", "npu:0", "hpu:0"])
def test_plans_are_made_for_any_gpu(name: str) -> None:
    plan = solve(PROFILE, machine((name, None)), relative_gap=0.02)
    assert plan.devices == {name, "cpu"}
    assert name in plan._repr_html_()
    table = what_if(PROFILE, machine((name, None)), gpus=[0, 1] if name == "mps:0" else [1, 2], progress=False)
    assert table["feasible"].all()
