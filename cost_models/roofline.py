"""Seconds of one block on one device: a measured time where there is one, else the roofline."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from cost_models.constants import BANDWIDTH_EFFICIENCY, FLOPS_EFFICIENCY, LAUNCH_S
from profiles.hardware import Device
from profiles.model import Block


def roofline_s(device: Device, n_bytes: float, flops: float) -> float:
    """launch + max(bytes / (bandwidth * efficiency), flops / (peak * efficiency)).

    The roofline of Williams, Waterman and Patterson (CACM 2009) with a launch constant. Ignored: caches, clocks that
    fall under load, the overlap of a kernel's head with another's tail.
    """
    launch = LAUNCH_S[device.kind] if device.launch_s is None else device.launch_s
    memory = device.bandwidth_efficiency or BANDWIDTH_EFFICIENCY[device.kind]
    compute = device.flops_efficiency or FLOPS_EFFICIENCY[device.kind]
    return launch + max(
        n_bytes / (device.bandwidth_bytes_per_s * memory),
        flops / (peak_flops_per_s(device) * compute),
    )


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
