"""The machine of a scenario: which devices and links it has, written down by hand."""

from __future__ import annotations

from typing import Any

import pytest

from profiles import Hardware, HardwareError, load_hardware
from solver.what_if import vary


def links(machine: Hardware) -> set[tuple[str, str, float]]:
    return {(*sorted(link.between), link.bandwidth_bytes_per_s / 1e9) for link in machine.links}  # type: ignore[misc]


def names(machine: Hardware) -> list[str]:
    return [device.name for device in machine.devices]


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(
    "phrase", ["{}xL40-46GB", "{}xA100-80GB-SXM", "{}xRTX3090,link=nvlink", "{}xH100,cpu=EPYC-9654"]
)
def test_more_and_fewer_gpus_have_the_links_that_their_phrase_gives(phrase: str, number: int) -> None:
    wanted = load_hardware(phrase.format(number))
    for start in (2, 4):
        found = vary(load_hardware(phrase.format(start)), gpus=number)
        assert names(found) == names(wanted)
        assert links(found) == links(wanted)
        assert [gpu.replace(name="cpu" if gpu.kind == "cpu" else gpu.name) for gpu in found.devices] == list(
            wanted.devices
        )


def test_the_devices_of_fewer_are_the_first_of_those_of_more() -> None:
    machine = load_hardware("3xRTX3090,link=nvlink")
    for number in range(8):
        few, more = vary(machine, gpus=number), vary(machine, gpus=number + 1)
        assert list(few.gpus) == list(more.gpus[:number])
        assert links(few) <= links(more)


def test_a_mixed_machine_keeps_its_first_kind_only() -> None:
    machine = vary(load_hardware("2xA100-80GB+4xRTX4090,ram=768GB"), gpus=3)
    assert [gpu.model for gpu in machine.gpus] == [load_hardware("1xA100-80GB").gpus[0].model] * 3
    assert machine.cpu.memory_bytes == 768 * 10**9


def test_no_gpus_at_all() -> None:
    machine = vary(load_hardware("2xRTX4090"), gpus=0)
    assert names(machine) == ["cpu"]
    assert machine.links == ()
    assert names(vary(machine, gpus=0)) == ["cpu"]
    with pytest.raises(HardwareError, match="has no GPU to take 2 of; name one with gpu"):
        vary(machine, gpus=2)


def test_another_gpu_comes_with_its_own_links_beside_this_cpu() -> None:
    machine = vary(load_hardware("4xRTX4090,cpu=EPYC-9654,ram=768GB"), gpu="H100", gpus=2)
    wanted = load_hardware("2xH100,cpu=EPYC-9654,ram=768GB")
    assert machine.devices == wanted.devices
    assert links(machine) == links(wanted)
    assert len(vary(load_hardware("4xRTX4090"), gpu="L40-46GB").gpus) == 4


def test_memory_links_and_ram() -> None:
    base = load_hardware("2xA100-80GB-SXM")
    machine = vary(base, memory=40 * 10**9, link=50e9, ram_bandwidth=400e9)
    assert [gpu.memory_bytes for gpu in machine.gpus] == [40 * 10**9] * 2
    assert machine.cpu.bandwidth_bytes_per_s == 400e9
    direct = {link for link in links(base) if "cpu" not in link}
    assert direct
    assert links(machine) == direct | {("cpu", "cuda:0", 50.0), ("cpu", "cuda:1", 50.0)}
    assert machine.name == "2xA100-80GB-SXM, memory=40.00 GB, link=50 GB/s, ram_bandwidth=400 GB/s"
    assert base == load_hardware("2xA100-80GB-SXM")


def test_gpus_that_no_catalogue_knows_are_joined_as_the_machine_joins_them() -> None:
    card = {
        "kind": "gpu",
        "memory_bytes": "80 GB",
        "bandwidth_bytes_per_s": "2 TB/s",
        "flops_per_s": {"bf16": "1 TFLOP/s"},
    }
    cpu = {**card, "kind": "cpu", "name": "cpu"}
    host = {"bandwidth_bytes_per_s": "25 GB/s", "latency_s": "10 us"}
    two = [{**card, "name": "cuda:0"}, {**card, "name": "cuda:1"}, cpu]
    ways = [{**host, "between": ["cpu", f"cuda:{i}"]} for i in range(2)]
    apart = Hardware(name="two", devices=two, links=ways)
    assert links(vary(apart, gpus=3)) == {("cpu", f"cuda:{i}", 25.0) for i in range(3)}
    direct = {"between": ["cuda:0", "cuda:1"], "bandwidth_bytes_per_s": "100 GB/s", "latency_s": "5 us"}
    joined = Hardware(name="two", devices=two, links=[*ways, direct])
    pairs = {("cuda:0", "cuda:1", 100.0), ("cuda:0", "cuda:2", 100.0), ("cuda:1", "cuda:2", 100.0)}
    assert links(vary(joined, gpus=3)) == links(vary(apart, gpus=3)) | pairs


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ("2xL40-46GB,ram=256GB", {"gpus": 3}, "3xL40-46GB,ram=256GB"),
        ("1xRTX4090,cpu=EPYC-9654", {"gpus": 2, "memory": 48 * 10**9}, "2xRTX4090-48GB,cpu=EPYC-9654"),
        ("8xL40-46GB", {"gpu": "RTX4090"}, "8xRTX4090"),
        ("2xA100-80GB+4xRTX4090", {"gpus": 1}, "2xA100-80GB+4xRTX4090, gpus=1"),
        ("2xRTX3090,link=nvlink", {"gpu": "RTX4090"}, "2xRTX3090,link=nvlink, gpu=RTX4090"),
    ],
)
def test_a_machine_is_called_by_the_phrase_that_means_it(before: str, changes: Any, after: str) -> None:
    machine = vary(load_hardware(before), **changes)
    assert machine.name == after
    if ", " not in after:
        assert load_hardware(after).devices == machine.devices
