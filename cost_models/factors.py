"""What may be changed about a machine to fit it to measurements: a factor a kind of device and habit, and links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cost_models.engines import engines
from profiles.hardware import Calibration, Device, Hardware

HABITS = ("launch", "sync", "bandwidth", "cache", "flops")
FACTORS: tuple[tuple[str, str], ...] = (
    *(("gpu", habit) for habit in HABITS if habit != "sync"),
    *(("cpu", habit) for habit in HABITS),
    ("link", "link"),
)
"""(device kind, habit), in the order of every vector of factors. Handing experts to another GPU is too rare to fit."""

Vector = NDArray[np.float64]


def spread() -> Vector:
    """How far machines are from their engines' habits: the standard deviation of each factor's logarithm."""
    known = engines().spread
    return np.array([getattr(known["cpu" if kind == "link" else kind], habit) for kind, habit in FACTORS])


def names() -> tuple[str, ...]:
    """The factors as a report and a file call them: gpu.launch, …, link."""
    return tuple(kind if kind == habit else f"{kind}.{habit}" for kind, habit in FACTORS)


def tuned_devices(hardware: Hardware, logs: Sequence[float] | Vector) -> Mapping[str, Device]:
    """The machine's devices by name, each calibration multiplied by the factors whose logarithms are given."""
    by_kind: dict[str, dict[str, float]] = {"gpu": {}, "cpu": {}, "link": {}}
    for (kind, habit), log in zip(FACTORS, logs, strict=True):
        by_kind[kind][habit] = float(np.exp(log))
    return {device.name: _tuned(device, by_kind[device.kind]) for device in hardware.devices}


def link_factor(logs: Sequence[float] | Vector) -> float:
    """How many times as fast weights are copied."""
    return float(np.exp(logs[FACTORS.index(("link", "link"))]))


def _tuned(device: Device, factors: Mapping[str, float]) -> Device:
    known = device.calibration or Calibration()
    changed = {habit: getattr(known, habit) * factor for habit, factor in factors.items()}
    # Validation costs more than the arithmetic, and the figures are checked when a file is written.
    return device.model_copy(update={"calibration": known.model_copy(update=changed)})
