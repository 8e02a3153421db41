"""Engines' habits fitted to points: robust least squares on the logarithms of predicted over measured seconds.

Each constant has a prior, the figure before anything was fitted, and how far it is believed to be from it; every
computer counts alike, however often it was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fidelity_points import Point
from numpy.typing import NDArray
from scipy.optimize import least_squares

from cost_models.engines import Engine, engines

LLAMA = ("llama.cpp", "ik_llama.cpp")
OLD = ("ktransformers", "sglang-kt")
ALL = (*LLAMA, *OLD)
OUTLIER = 0.2
"""Errors beyond so much count linearly, not squared."""


@dataclass(frozen=True)
class Constant:
    """`prior` and the standard deviation of its logarithm; where it stands in the engines' documents."""

    name: str
    prior: float
    deviation: float
    engines: tuple[str, ...]
    paths: tuple[str, ...]


CONSTANTS = (
    Constant("GPU launch, s", 17.5e-6, 0.4, ALL, ("gpu.launch_s.attention", "gpu.launch_s.experts")),
    Constant("GPU launch, latent, llama.cpp, s", 100e-6, 0.7, ("llama.cpp",), ("gpu.launch_s.latent",)),
    Constant("GPU launch, latent, s", 50e-6, 0.5, ("ik_llama.cpp", *OLD), ("gpu.launch_s.latent",)),
    Constant("GPU bandwidth share", 0.7, 0.2, ALL, ("gpu.bandwidth_efficiency",)),
    Constant("GPU cache share, llama.cpp", 0.6, 0.7, ("llama.cpp",), ("gpu.cache_efficiency",)),
    Constant("GPU scores, FLOP/s", 2e12, 0.7, ("ik_llama.cpp", *OLD), ("gpu.scores_per_s",)),
    Constant("GPU scores, latent, FLOP/s", 5e12, 0.7, ("ik_llama.cpp", *OLD), ("gpu.latent_scores_per_s",)),
    Constant("GPU products share", 0.5, 0.5, ALL, ("gpu.flops_efficiency",)),
    Constant("Blackwell", 0.5, 0.5, LLAMA, ("gpu.products.2.value",)),
    Constant(
        "CPU launch, s", 15e-6, 0.7, ALL, ("cpu.launch_s.attention", "cpu.launch_s.latent", "cpu.launch_s.experts")
    ),
    Constant("hand-over to the CPU, s", 30e-6, 0.5, ALL, ("cpu.sync_s",)),
    Constant("CPU bandwidth share", 0.75, 0.2, ALL, ("cpu.bandwidth_efficiency",)),
    Constant("CPU bandwidth exponent beyond 60 GB/s", 0.7, 0.2, ALL, ("cpu.bandwidth_exponent",)),
    Constant("sockets exponent", 0.3, 0.7, LLAMA, ("cpu.sockets_exponent",)),
    Constant("sockets exponent, copies of weights", 0.9, 0.3, OLD, ("cpu.sockets_exponent",)),
    Constant("CPU scores, FLOP/s", 0.75e12, 0.7, ALL, ("cpu.scores_per_s",)),
    Constant("CPU scores, latent, FLOP/s", 1.9e12, 0.7, ALL, ("cpu.latent_scores_per_s",)),
    Constant("unpacking < 2 bits, a core and s", 8e9, 0.7, LLAMA, ("cpu.unpacking.0.params_per_core_s",)),
    Constant("unpacking < 3.1 bits, a core and s", 20e9, 0.5, LLAMA, ("cpu.unpacking.1.params_per_core_s",)),
    Constant("CPU FLOPs a cycle and core", 32.0, 0.5, LLAMA, ("cpu.flops_per_cycle",)),
    Constant("CPU FLOPs a cycle and core, KTransformers", 32.0, 0.5, OLD, ("cpu.flops_per_cycle",)),
    Constant("exponent of cores", 0.8, 0.2, ALL, ("cpu.cores_exponent",)),
)
Logs = NDArray[np.float64]


def priors() -> Logs:
    return np.log([constant.prior for constant in CONSTANTS])


def with_constants(logs: Logs) -> dict[str, Engine]:
    """The engines with these constants, by name. An exponent or a share does not exceed 1."""
    documents = {engine.name: engine.model_dump() for engine in engines().engines}
    for constant, log in zip(CONSTANTS, logs, strict=True):
        share = "share" in constant.name or "exponent" in constant.name
        value = min(1.0, float(np.exp(log))) if share else float(np.exp(log))
        for name in constant.engines:
            for path in constant.paths:
                _put(documents[name], path.split("."), value)
    return {name: Engine.model_validate(document) for name, document in documents.items()}


def _put(document: Any, path: Sequence[str], value: float) -> None:
    *way, last = (int(key) if key.isdigit() else key for key in path)
    for key in way:
        document = list(document)[key] if isinstance(key, int) else document[key]
    document[last] = value


def use(found: Sequence[Point], known: Mapping[str, Engine]) -> None:
    """From now on the points are predicted with these engines."""
    for point in found:
        point.costs.engine = known[point.costs.engine.name]


def fit(found: Sequence[Point]) -> Logs:
    """The constants' logarithms that fit the points; afterwards these are predicted with them."""
    measured = [(point, what) for point in found for what in point.fitted]
    often = Counter((point.host, what is point.prefill) for point, what in measured)
    weight = np.array([often[point.host, what is point.prefill] ** -0.5 for point, what in measured])
    start, spread = priors(), np.array([constant.deviation for constant in CONSTANTS])

    def residuals(logs: Logs) -> Logs:
        use(found, with_constants(logs))
        off = np.array([np.log(what.predicted_s() / what.seconds) for _, what in measured])
        # An error of OUTLIER on one computer weighs as much as a constant two deviations from its prior.
        together: Logs = np.concatenate([weight * off / OUTLIER * 2, (logs - start) / spread])
        return together

    logs: Logs = least_squares(residuals, start, loss="soft_l1", f_scale=2.0, x_scale=spread, max_nfev=12).x
    use(found, with_constants(logs))
    return logs
