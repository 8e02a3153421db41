"""Machines whose GPU and CPU read one memory, and those that look so but have two."""

from __future__ import annotations

import re

import pytest

from profiles import HardwareError, load_hardware
from profiles.catalogue import catalogue
from profiles.read_phrase import read_phrase


@pytest.mark.parametrize(
    ("text", "gpu", "pool_gb", "gpu_gb"),
    [
        ("Mac Studio M2 Ultra 192GB", "mps:0", 192, 144),  # llama.cpp prints 154.6e9 bytes of 192 GiB: 3/4
        ("MacBook Air M1 16GB", "mps:0", 16, 16 * 2 / 3),  # and 11453.25 MB of 16 GiB: 2/3
        ("M3-Ultra-512GB", "mps:0", 512, 384),
        ("DGX Spark", "cuda:0", 128, 128),
        ("Ryzen AI Max+ 395", "cuda:0", 128, 96),
        ("Strix Halo,ram=64GB", "cuda:0", 64, 48),
        ("Jetson AGX Orin", "cuda:0", 64, 64),
        ("MI300A", "cuda:0", 128, 128),
    ],
)
def test_gpu_and_cpu_share_one_pool(text: str, gpu: str, pool_gb: float, gpu_gb: float) -> None:
    machine = read_phrase(text)
    (pool,), (device,), cpu = machine.pools, machine.gpus, machine.cpu
    assert (device.name, device.pool, cpu.pool) == (gpu, pool.name, pool.name)
    assert pool.memory_bytes == cpu.memory_bytes == pool_gb * 1e9
    assert device.memory_bytes == pytest.approx(gpu_gb * 1e9, abs=1)
    assert {link.bandwidth_bytes_per_s for link in machine.links} == {device.bandwidth_bytes_per_s}
    assert cpu.bandwidth_bytes_per_s == device.bandwidth_bytes_per_s
    assert any("share" in note and "counted once" in note for note in machine.notes)
    assert load_hardware(machine.to_dict()) == machine


@pytest.mark.parametrize("part", [part for part in catalogue().gpus if part.unified], ids=lambda part: part.name)
def test_every_chip_with_each_of_its_sizes(part) -> None:  # type: ignore[no-untyped-def]
    for size in part.unified.sizes:
        machine = read_phrase(f"{re.sub('-[0-9]+GB$', '', part.name)}, ram={size / 1e9:g}GB")
        assert (machine.gpus[0].model, machine.pools[0].memory_bytes) == (part.name, size)
        assert machine.gpus[0].memory_bytes <= size


def test_a_size_tells_forms_of_a_chip_apart() -> None:
    assert read_phrase("M4 Max 36GB").gpus[0].bandwidth_bytes_per_s == 410e9
    assert read_phrase("M4 Max 128GB").gpus[0].bandwidth_bytes_per_s == 546e9
    assert read_phrase("M3 Max, ram=36GB").gpus[0].bandwidth_bytes_per_s == 300e9


@pytest.mark.parametrize("text", ["M2 Ultra", "M3 Max", "M4 Max", "M5 Max", "Apple M1"])
def test_the_size_that_is_asked_for_can_be_pasted(text: str) -> None:
    with pytest.raises(HardwareError) as caught:
        read_phrase(text)
    assert read_phrase(re.search(r"e\.g\. (\S+)$", str(caught.value))[1]).pools  # type: ignore[index]


def test_halves_of_one_chip_are_one_machine() -> None:
    machine = read_phrase("Ryzen AI Max+ 395 with Radeon 8060S, ram=96GB")
    assert (len(machine.gpus), machine.cpu.model, machine.pools[0].memory_bytes) == (1, "Ryzen-AI-Max+-395", 96 * 10**9)
    assert read_phrase("8060S,cpu=Ryzen AI Max+ 395").devices == read_phrase("Strix Halo").devices


def test_a_card_beside_a_chip_has_its_own_memory() -> None:
    machine = read_phrase("Strix Halo + RTX 3090")
    assert [(gpu.model, gpu.pool) for gpu in machine.gpus] == [("Strix-Halo-128GB", "unified"), ("RTX3090", None)]
    assert [(gpu.name, gpu.driven_by) for gpu in machine.gpus] == [("cuda:0", "rocm"), ("cuda:1", "cuda")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("M2 Ultra", "write which, e.g. Apple-M2-Ultra-192GB"),
        ("2x DGX Spark", "plan for one, 1xGB10"),
        ("M2 Max 64GB,cpu=EPYC-9654", "leave cpu=EPYC-9654 out"),
        ("M2 Max 64GB,ram=32GB", "keep one"),
        ("M2 Max 64GB,sockets=2", "leave sockets out"),
        ("DGX Spark,bandwidth=300GB/s", "leave its memory's speed out"),
        ("Strix Halo + M2 Max 64GB", "plan for one"),
    ],
)
def test_what_cannot_be(text: str, said: str) -> None:
    with pytest.raises(HardwareError) as caught:
        read_phrase(text)
    assert said in str(caught.value)


def test_superchips_have_two_memories() -> None:
    """GH200: the GPU's HBM and Grace's LPDDR are reached by both over NVLink-C2C, and are not one memory."""
    machine = read_phrase("NVIDIA GH200 480GB")
    assert machine.pools == ()
    assert (machine.gpus[0].memory_bytes, machine.cpu.memory_bytes) == (97871 * 2**20, 480 * 10**9)
    assert (machine.cpu.model, machine.links[0].bandwidth_bytes_per_s) == ("Grace-480GB", 337e9)
    assert any("memory of its own" in note for note in machine.notes)
    four = read_phrase("4xGB200")
    assert (four.cpu.sockets, four.cpu.memory_bytes) == (2, 960 * 10**9)


def test_documents_say_a_pool_themselves(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mac.yaml"
    path.write_text("name: mac\ndevices: [{use: Apple-M2-Ultra}, {kind: cpu, memory_bytes: 192 GB}]\n")
    with pytest.raises(HardwareError, match="shares its memory with the CPU; name the machine Apple-M2-Ultra-64GB"):
        load_hardware(path)
    path.write_text(
        "name: mac\n"
        "devices:\n"
        "- {use: Apple-M2-Ultra, memory_bytes: 144 GB, pool: unified}\n"
        "- {use: Apple-M2-Ultra, kind: cpu, memory_bytes: 192 GB, pool: unified}\n"
        "pools: [{name: unified, memory_bytes: 192 GB}]\n"
    )
    machine = load_hardware(path)
    assert [device.name for device in machine.devices] == ["mps:0", "cpu"]
    assert machine.links == read_phrase("Apple M2 Ultra 192GB").links
