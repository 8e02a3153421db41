"""Seconds of one block on one device: a measured time where there is one, else the roofline."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cost_models.engines import Habits, by_model
from profiles.hardware import Calibration, Device
from profiles.model import Block

UNTUNED = Calibration()
ASSUMED_CLOCK_HZ = 3e9
"""Of a CPU that does not say; an assumption."""


@dataclass(frozen=True)
class Work:
    """What running one block once asks of a device: bytes of weights and of cached keys and values that are read,
    floating-point operations of products, and parameters unpacked from `bits` each. `scores` are the operations of
    attention where each sequence has one new token, which is bound by how the cache is read; with more tokens they are
    products. `experts` of the layer are on the device."""

    kind: Literal["attention", "latent", "experts", "ends"]
    weight_bytes: float
    cache_bytes: float = 0.0
    flops: float = 0.0
    scores: float = 0.0
    params: float = 0.0
    bits: float = 16.0
    experts: int = 0


def roofline_s(device: Device, habits: Habits, work: Work) -> float:
    """launch + max(bytes / bandwidth reached, FLOPs / peak reached, parameters / unpacking rate) + time for the cache.

    The roofline of Williams, Waterman and Patterson (CACM 2009) with a launch constant, and a third roof for weights of
    few bits, which take a CPU longer to unpack than to read. What the device says of itself beats the engine's habits,
    and its calibration, if it has one, scales both. Ignored: caches, clocks that fall under load, the overlap of a
    kernel's head with another's tail.
    """
    tuned = device.calibration or UNTUNED
    return (
        launch_s(device, habits, work) * tuned.launch
        + max(
            work.weight_bytes / (read_bytes_per_s(device, habits) * tuned.bandwidth),
            work.flops / (flops_per_s(device, habits) * tuned.flops),
            work.params / (unpacked_per_s(device, habits, work.bits) * tuned.bandwidth),
        )
        + cache_s(device, habits, work) / tuned.cache
    )


def launch_s(device: Device, habits: Habits, work: Work) -> float:
    """The fixed price of running a block there."""
    if device.launch_s is not None:
        return device.launch_s
    known = habits.launch_s
    return getattr(known, work.kind) + work.experts * known.each_expert  # type: ignore[no-any-return]


def read_bytes_per_s(device: Device, habits: Habits) -> float:
    """Bytes/s at which an engine reads weights on the device."""
    bandwidth, knee = device.bandwidth_bytes_per_s, habits.knee_bytes_per_s
    if device.bandwidth_efficiency is not None:
        return bandwidth * device.bandwidth_efficiency
    sockets = device.sockets or 1
    per_socket = bandwidth / sockets
    if knee is not None and per_socket > knee:
        per_socket = knee * (per_socket / knee) ** habits.bandwidth_exponent
    together: float = sockets**habits.sockets_exponent
    return habits.bandwidth_efficiency * per_socket * together


def cache_s(device: Device, habits: Habits, work: Work) -> float:
    """Seconds to read the cache and, for one new token a sequence, to score it."""
    rate = habits.latent_scores_per_s if work.kind == "latent" else habits.scores_per_s
    if rate is not None and work.scores:
        return work.scores / rate
    if habits.cache_efficiency is not None:
        return work.cache_bytes / (habits.cache_efficiency * device.bandwidth_bytes_per_s)
    return work.cache_bytes / read_bytes_per_s(device, habits)


def flops_per_s(device: Device, habits: Habits) -> float:
    """FLOP/s that products of an engine reach on the device."""
    if device.flops_efficiency is not None:
        return peak_flops_per_s(device) * device.flops_efficiency
    if habits.flops_per_cycle is not None and device.cores is not None:
        cores: float = 32 * (device.cores / 32) ** habits.cores_exponent
        return cores * (device.clock_hz or ASSUMED_CLOCK_HZ) * habits.flops_per_cycle
    return peak_flops_per_s(device) * habits.flops_efficiency * (by_model(habits.products, device.model) or 1.0)


def unpacked_per_s(device: Device, habits: Habits, bits: float) -> float:
    """Parameters/s that all cores of the device unpack from weights of `bits`; infinite where nothing is known."""
    rates = [rule.params_per_core_s for rule in habits.unpacking if bits < rule.below_bits]
    return min(rates) * device.cores if rates and device.cores else float("inf")


def peak_flops_per_s(device: Device) -> float:
    """The peak of 16-bit products, which every engine here computes in whatever the weights are stored as.

    A device without a bf16 figure uses fp16, then fp32, then the best it has.
    """
    rates = device.flops_per_s
    return next((rates[kind] for kind in ("bf16", "fp16", "fp32") if kind in rates), max(rates.values()))


def measured_or(block: Block, device: Device, tokens: int, formula: Callable[[int], float]) -> float:
    """The block's measured time for `tokens` tokens on `device`, else `formula(tokens)`.

    The device's name, then its model, then its kind is looked up. Between two measured token counts: linear. Beyond
    them: the nearest measured time, scaled as the formula grows, so one decode measurement corrects prefill too.
    """
    table = block.measured_seconds or {}
    points = next((table[key] for key in (device.name, device.model, device.kind) if key and key in table), None)
    if points is None:
        return formula(tokens)
    known = sorted(points)
    right = bisect_left(known, tokens)
    if right < len(known) and known[right] == tokens:
        return points[tokens]
    if 0 < right < len(known):
        low, high = known[right - 1], known[right]
        share = (tokens - low) / (high - low)
        return points[low] + share * (points[high] - points[low])
    nearest = known[0] if right == 0 else known[-1]
    there = formula(nearest)
    return points[nearest] * (formula(tokens) / there if there else 1.0)
