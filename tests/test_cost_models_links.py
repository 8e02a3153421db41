"""Hops: the cheapest way for that many bytes, symmetric, and never longer than a detour."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import hop_seconds
from strategies import hardwares

from cost_models.links import Links
from profiles import Device, Hardware, Link

N_BYTES = st.integers(0, 10**11)


def machine(n_gpus: int, *links: tuple[str, str, float, float]) -> Hardware:
    """A machine with `links` of (a, b, bytes/s, seconds)."""
    names = [*(f"cuda:{i}" for i in range(n_gpus)), "cpu"]
    devices = [
        Device(
            name=name,
            kind="cpu" if name == "cpu" else "gpu",
            memory_bytes=10**9,
            bandwidth_bytes_per_s=1e11,
            flops_per_s={"bf16": 1e12},
        )
        for name in names
    ]
    made = [Link(between=(a, b), bandwidth_bytes_per_s=rate, latency_s=late) for a, b, rate, late in links]
    return Hardware(name="a machine", devices=devices, links=made)


def test_one_link() -> None:
    links = Links(machine(1, ("cpu", "cuda:0", 25e9, 10e-6)))
    assert links.hop_s("cpu", "cuda:0", 25_000) == pytest.approx(11e-6, rel=1e-12)
    assert links.hop_s("cuda:0", "cpu", 0) == 10e-6
    assert links.hop_s("cpu", "cpu", 10**12) == 0.0
    assert links.hop_s("cuda:0", "cuda:0", 10**12) == 0.0


def test_through_the_host_latencies_add_and_the_slowest_link_counts_once() -> None:
    links = Links(machine(2, ("cpu", "cuda:0", 25e9, 10e-6), ("cpu", "cuda:1", 10e9, 7e-6)))
    assert links.hop_s("cuda:0", "cuda:1", 10**9) == pytest.approx(17e-6 + 0.1, rel=1e-12)


def test_a_narrow_quick_way_is_best_for_small_messages_and_a_wide_slow_one_for_big() -> None:
    hardware = machine(
        2, ("cpu", "cuda:0", 100e9, 50e-6), ("cpu", "cuda:1", 100e9, 50e-6), ("cuda:0", "cuda:1", 1e9, 1e-6)
    )
    links = Links(hardware)
    assert links.hop_s("cuda:0", "cuda:1", 1000) == pytest.approx(1e-6 + 1e-6, rel=1e-12)
    assert links.hop_s("cuda:0", "cuda:1", 10**9) == pytest.approx(100e-6 + 0.01, rel=1e-12)
    even = 99e-6 / (1e-9 - 1e-11)  # where both take the same time
    assert links.hop_s("cuda:0", "cuda:1", even * 0.99) == pytest.approx(1e-6 + even * 0.99e-9, rel=1e-12)
    assert links.hop_s("cuda:0", "cuda:1", even * 1.01) == pytest.approx(100e-6 + even * 1.01e-11, rel=1e-12)


def test_three_ways_each_best_for_some_size() -> None:
    hardware = machine(
        3,
        ("cpu", "cuda:0", 1e9, 1e-6),
        ("cpu", "cuda:1", 10e9, 20e-6),
        ("cuda:1", "cuda:0", 10e9, 1e-6),
        ("cpu", "cuda:2", 1000e9, 400e-6),
        ("cuda:2", "cuda:0", 1000e9, 1e-6),
    )
    links = Links(hardware)
    for n_bytes, latency, rate in ((100, 1e-6, 1e9), (10**6, 21e-6, 10e9), (10**9, 401e-6, 1000e9)):
        assert links.hop_s("cpu", "cuda:0", n_bytes) == pytest.approx(latency + n_bytes / rate, rel=1e-12)


def test_of_two_links_between_the_same_devices_each_is_a_choice() -> None:
    links = Links(machine(1, ("cpu", "cuda:0", 1e9, 1e-6), ("cuda:0", "cpu", 100e9, 50e-6)))
    assert links.hop_s("cpu", "cuda:0", 10) == pytest.approx(1e-6 + 1e-8, rel=1e-12)
    assert links.hop_s("cpu", "cuda:0", 10**9) == pytest.approx(50e-6 + 0.01, rel=1e-12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(hardwares, N_BYTES)
def test_hops_are_the_cheapest_of_all_ways(hardware: Hardware, n_bytes: int) -> None:
    links, names = Links(hardware), [device.name for device in hardware.devices]
    for a in names:
        for b in names:
            assert links.hop_s(a, b, n_bytes) == pytest.approx(hop_seconds(hardware, a, b, n_bytes), rel=1e-12, abs=0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(hardwares, N_BYTES)
def test_hops_are_symmetric_and_obey_the_triangle_inequality(hardware: Hardware, n_bytes: int) -> None:
    links, names = Links(hardware), [device.name for device in hardware.devices]
    for a in names:
        for b in names:
            direct = links.hop_s(a, b, n_bytes)
            assert direct == pytest.approx(links.hop_s(b, a, n_bytes), rel=1e-12, abs=0)
            assert direct >= 0
            for c in names:
                detour = links.hop_s(a, c, n_bytes) + links.hop_s(c, b, n_bytes)
                assert direct <= detour * (1 + 1e-12)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(hardwares, N_BYTES, st.floats(1.0, 10.0))
def test_more_bytes_take_longer_and_wider_links_do_not(hardware: Hardware, n_bytes: int, factor: float) -> None:
    wider = hardware.replace(
        links=tuple(k.replace(bandwidth_bytes_per_s=k.bandwidth_bytes_per_s * factor) for k in hardware.links)
    )
    for a in (device.name for device in hardware.devices):
        now = Links(hardware).hop_s(a, "cpu", n_bytes)
        assert Links(hardware).hop_s(a, "cpu", n_bytes * factor) >= now
        assert Links(wider).hop_s(a, "cpu", n_bytes) <= now
