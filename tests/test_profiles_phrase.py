"""Hardware phrases: what they mean, and that what they name can be loaded again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles import HardwareError, load_hardware
from profiles.catalogue import catalogue, find_gpu
from profiles.read_phrase import read_phrase


def test_the_story() -> None:
    machine = read_phrase("8xL40-46GB")
    assert [device.name for device in machine.devices] == [*(f"cuda:{i}" for i in range(8)), "cpu"]
    assert {gpu.memory_bytes for gpu in machine.gpus} == {46_000_000_000}
    assert machine.name == "8xL40-46GB"
    assert machine.cpu.memory_bytes == 512 * 10**9
    assert machine.cpu.bandwidth_bytes_per_s == 200e9
    assert machine.cpu.flops_per_s == {"bf16": 4e12}
    assert any("no CPU is named" in note for note in machine.notes)
    assert {link.between for link in machine.links} == {("cpu", f"cuda:{i}") for i in range(8)}
    assert {link.bandwidth_bytes_per_s for link in machine.links} == {25.5e9}


def test_two_kinds_of_gpu_in_order() -> None:
    machine = read_phrase("2xA100-80GB+4xRTX4090,cpu=EPYC-9654,ram=768GB")
    assert [gpu.model for gpu in machine.gpus] == ["A100-80GB"] * 2 + ["RTX4090"] * 4
    assert machine.gpus[0].memory_bytes == 80_000_000_000
    assert machine.gpus[2].memory_bytes == 24564 * 2**20
    assert machine.cpu.model == "EPYC-9654"
    assert machine.cpu.bandwidth_bytes_per_s == 460.8e9  # the peak: what is reached of it is the engine's
    assert machine.cpu.bandwidth_efficiency is None
    assert (machine.cpu.cores, machine.cpu.sockets) == (96, 1)
    assert machine.cpu.memory_bytes == 768 * 10**9
    assert len(machine.links) == 6


@pytest.mark.parametrize("text", ["RTX4090", "rtx 4090", "RTX-4090", "1xRTX4090", "NVIDIA GeForce RTX 4090", "4090"])
def test_spelling_does_not_matter(text: str) -> None:
    assert [gpu.model for gpu in read_phrase(text).gpus] == ["RTX4090"]


@pytest.mark.parametrize(
    ("text", "model", "memory_bytes"),
    [
        ("RTX4090-24GB", "RTX4090", 24 * 10**9),
        ("rtx4090 48 GB", "RTX4090", 48 * 10**9),
        ("L40-46GiB", "L40", 46 * 2**30),
        ("V100-32GB", "V100-32GB", 32 * 10**9),
        ("A100-40GB", "A100-40GB", 40 * 10**9),
        ("A100-SXM4-80GB", "A100-80GB-SXM", 80 * 10**9),
        ("H100-SXM-80GB", "H100-SXM", 80 * 10**9),
        ("RTX3080-12GB", "RTX3080-12GB", 12 * 10**9),
        ("RTX3080-20GB", "RTX3080-10GB", 20 * 10**9),
        ("MI300X", "MI300X", 196592 * 2**20),
    ],
)
def test_a_size_means_exactly_that(text: str, model: str, memory_bytes: int) -> None:
    (gpu,) = read_phrase(text).gpus
    assert (gpu.model, gpu.memory_bytes) == (model, memory_bytes)


def test_cpu_only_and_small_ram() -> None:
    assert [device.name for device in read_phrase("cpu=EPYC-9654,ram=512GB").devices] == ["cpu"]
    assert read_phrase("1xL40-46GB,ram=8GB").cpu.memory_bytes == 8 * 10**9


def test_sockets_multiply_and_say_so() -> None:
    one, two = read_phrase("L40,cpu=EPYC-9654"), read_phrase("L40,cpu=EPYC-9654,sockets=2")
    assert two.cpu.bandwidth_bytes_per_s == 2 * one.cpu.bandwidth_bytes_per_s
    assert two.cpu.flops_per_s["bf16"] == 2 * one.cpu.flops_per_s["bf16"]
    assert any("2 sockets" in note for note in two.notes)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("RTX5090", 52e9),
        ("RTX5090,cpu=EPYC-7763", 25.5e9),  # the CPU is the slower end
        ("RTX4090,cpu=Xeon-Platinum-8260", 12.5e9),
        ("RTX4090,link=pcie5x16", 52e9),
        ("RTX4090,link=PCIe 4.0 x8", 12.75e9),
        ("RTX4090,link=50GB/s", 50e9),
        ("GH200", 337e9),
    ],
)
def test_host_links(text: str, rate: float) -> None:
    assert {link.bandwidth_bytes_per_s for link in read_phrase(text).links} == {rate}


def _direct(text: str) -> dict[tuple[str, str], float]:
    links = read_phrase(text).links
    return {link.between: link.bandwidth_bytes_per_s for link in links if "cpu" not in link.between}


def test_nvlink_only_where_it_is_sure_or_asked_for() -> None:
    assert len(_direct("4xH100-SXM")) == 6
    assert set(_direct("4xH100-SXM").values()) == {450e9}
    assert set(_direct("8xMI300X").values()) == {64e9}
    assert _direct("4xA100-80GB") == _direct("4xRTX3090") == _direct("4xL40") == {}
    assert _direct("5xRTX3090,link=nvlink") == {("cuda:0", "cuda:1"): 56.25e9, ("cuda:2", "cuda:3"): 56.25e9}
    assert len(_direct("2xH100-SXM+2xH200")) == 2  # only equal parts are joined


def test_a_bare_name_says_what_it_was_taken_for() -> None:
    assert any("H100-PCIe" in note for note in read_phrase("8xH100").notes)
    assert not any("taken for" in note for note in read_phrase("8xH100-SXM").notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A100", "A100-40GB"),
        ("RTX40", "RTX4080"),
        ("8xL40-46", "did you mean L40"),
        ("8xL40,cpu=EPYC", "EPYC-"),
        ("8xL40,rma=1GB", "did you mean ram"),
        ("8xL40,2xLL4", "did you mean L4"),
        ("A100", "A100-80GB"),
        ("4090,ram=64GB DDR5-6000", "add cpu=…"),
        ("4090,cpu=12900K,ram=128GB DDR4", "DDR4-3200"),
        ("RTX 3090, 24GB", "ram=24GB"),
        ("4090,cpu=2xEPYC-9654,sockets=4", "leave sockets out"),
        ("4090,cpu=EPYC-9654,EPYC 7763", "keep one"),
        ("4090,64GB RAM,128GB RAM", "keep one"),
        ("4090,bandwidth=fast", "bandwidth=75GB/s"),
        ("AMD Radeon Graphics", "Strix-Halo-128GB"),
        ("[Radeon RX 7900 XT/7900 XTX/7900 GRE/7900M]", "RX7900XT or RX7900XTX"),
        ("8xL40,link=nvlink", "none of its GPUs has NVLink"),
    ],
)
def test_errors_name_the_remedy(text: str, said: str) -> None:
    with pytest.raises(HardwareError) as caught:
        read_phrase(text)
    assert said in str(caught.value)
    assert text in str(caught.value)


def test_memory_tells_apart_what_shares_a_name() -> None:
    assert find_gpu("NVIDIA GeForce RTX 5060 Ti", 8151 * 2**20).name == "RTX5060Ti-8GB"
    assert [gpu.model for gpu in read_phrase("4060 Ti 16GB + 4060 Ti").gpus] == ["RTX4060Ti-16GB", "RTX4060Ti-8GB"]
    assert any("RTX4060Ti-16GB" in note for note in read_phrase("4060 Ti").notes)
    assert read_phrase("V100-32GB").gpus[0].model == "V100-32GB"
    assert any("no such size" in note for note in read_phrase("RTX4090-48GB").notes)


def test_cards_with_several_gpus_say_so() -> None:
    for text, each in (("8xMI250X", 2), ("A16", 4)):
        machine = read_phrase(text)
        assert any(f"of the {each} GPUs that a card shows" in note for note in machine.notes)
    assert not any("a card shows" in note for note in read_phrase("8xMI300X").notes)


@pytest.mark.parametrize(
    "text", ["RX 4090", "Radeon 4090", "Tesla M4", "Intel L4", "RTX 4090 Laptop GPU", "cpu=Intel 9654", "cpu=13900"]
)
def test_another_card_is_never_taken_for_it(text: str) -> None:
    with pytest.raises(HardwareError, match=r"unknown [CG]PU"):
        read_phrase(text)


def test_ram_as_people_say_it() -> None:
    assert read_phrase("4090,ram=128").cpu.memory_bytes == 128 * 10**9
    assert read_phrase("4090,ram=128G").cpu.memory_bytes == 128 * 10**9
    assert read_phrase("4090,ram=128GiB").cpu.memory_bytes == 128 * 2**30
    assert any("taken for RAM" in note for note in read_phrase("3090,16GB").notes)
    assert any("RAM is not stated" in note for note in read_phrase("3090").notes)


@pytest.mark.parametrize(
    ("text", "gb_per_s"),
    [
        ("cpu=EPYC-9654,ram=12x64GB", 460.8),
        ("cpu=EPYC-9654,ram=4x64GB", 4 * 4800 * 8e-3),
        ("cpu=2xEPYC-9654,ram=16x64GB", 2 * 8 * 4800 * 8e-3),
        ("cpu=9950X,ram=2x48GB DDR5-6000", 2 * 6000 * 8e-3),
        ("cpu=12900K,ram=128GB DDR4-3200", 2 * 3200 * 8e-3),
        ("cpu=Xeon 6980P,ram=1.5TB MRDIMM-8800", 12 * 8800 * 8e-3),
        ("cpu=EPYC-9654,ram=4x64GB,bandwidth=140GB/s", 140),
    ],
)
def test_rams_speed_follows_from_filled_channels(text: str, gb_per_s: float) -> None:
    machine = read_phrase(text)
    assert machine.cpu.bandwidth_bytes_per_s == pytest.approx(gb_per_s * 1e9)


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from([p.name for p in catalogue().gpus if p.unified is None])),
        min_size=1,
        max_size=4,
    ),
    cpu=st.sampled_from([part.name for part in catalogue().cpus]),
    ram=st.integers(1, 4096),
)
def test_any_phrase_round_trips_through_its_name(parts: list[tuple[int, str]], cpu: str, ram: int) -> None:
    text = "+".join(f"{count}x{name}" for count, name in parts) + f",cpu={cpu},ram={ram}GB"
    machine = read_phrase(text)
    assert len(machine.gpus) == sum(count for count, _ in parts)
    assert machine.cpu.memory_bytes == ram * 10**9
    assert load_hardware(machine.name) == machine
    assert load_hardware(machine.to_dict()) == machine


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.text("0123456789xXL40-+=,GBcpuram ", max_size=40))
def test_any_text_is_a_machine_or_one_line(text: str) -> None:
    message = ""
    try:
        read_phrase(text)
    except HardwareError as problem:
        message = str(problem)
    assert "\n" not in message
    assert len(message) < 500
