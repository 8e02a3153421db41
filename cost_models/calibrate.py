"""From measured runs of a machine to its own factors: what every engine's habits have to be multiplied by there.

Factors are the most probable ones, given how far machines usually are from the habits (`spread` in data/engines.yaml)
and how much runs differ among themselves: bounded least squares on the logarithms of predicted over measured seconds.
With no run they are 1; one run moves what it depends on most; many runs outweigh the prior. What is left open is the
covariance, from which `cost_models/uncertainty.py` makes intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from cost_models.cost_model import CostModel, Step
from cost_models.engines import engines
from cost_models.factors import FACTORS, Vector, link_factor, names, spread, tuned_devices
from cost_models.ledger import Ledger, ledger
from profiles.hardware import Hardware, Uncertainty
from profiles.placement import Placement

MOST = np.log(20.0)
"""No factor is believed to be further from 1."""


@dataclass(frozen=True)
class Measured:
    """Seconds that some steps of one placement took together, measured with `noise` (standard deviation of a log).

    `decode` and `prefill` are of runs, whose engine copied experts by its rule.
    """

    name: str
    costs: CostModel
    steps: tuple[Ledger, ...]
    seconds: float
    noise: float

    @classmethod
    def decode(cls, name: str, costs: CostModel, placement: Placement, context: float, seconds: float) -> Measured:
        """One decode step with `context` tokens in the cache."""
        noise = engines().spread["gpu"].decode_noise
        return cls(name, costs, (ledger(placement, costs, Step(1, context), by_rule=True),), seconds, noise)

    @classmethod
    def prefill(
        cls, name: str, costs: CostModel, placement: Placement, chunks: Sequence[tuple[int, int]], seconds: float
    ) -> Measured:
        """A prompt read in `chunks` of (new tokens, tokens in the cache)."""
        noise = engines().spread["gpu"].prefill_noise
        steps = tuple(ledger(placement, costs, Step(tokens, context), by_rule=True) for tokens, context in chunks)
        return cls(name, costs, steps, seconds, noise)

    def predicted_s(self, logs: Sequence[float] | Vector | None = None) -> float:
        """Seconds as predicted, with factors whose logarithms are given or the machine's own."""
        if logs is None:
            return sum(step.seconds(self.costs) for step in self.steps)
        devices = tuned_devices(self.costs.hardware, logs)
        return sum(step.seconds(self.costs, devices, link_factor(logs)) for step in self.steps)

    def slope(self, logs: Vector) -> Vector:
        """Derivatives of the logarithm of the predicted seconds by each factor's."""
        small = 1e-3
        here = np.log(self.predicted_s(logs))
        moved = [np.log(self.predicted_s(logs + small * unit)) for unit in np.eye(len(FACTORS))]
        slope: Vector = (np.array(moved) - here) / small
        return slope


@dataclass(frozen=True)
class Calibrated:
    """Logarithms of the factors, in the order of `factors.FACTORS`, and their covariance."""

    logs: Vector
    covariance: Vector

    def hardware(self, machine: Hardware) -> Hardware:
        """The machine with its devices calibrated and its links to the CPU as fast as was found."""
        devices = tuned_devices(machine, self.logs)
        factor = link_factor(self.logs)
        links = [
            link.replace(bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * factor) if "cpu" in link.between else link
            for link in machine.links
        ]
        return machine.replace(
            devices=[devices[device.name] for device in machine.devices],
            links=links,
            uncertainty=Uncertainty(factors=names(), covariance=self.covariance.round(9).tolist()),
        )

    @classmethod
    def of(cls, machine: Hardware) -> Calibrated:
        """What is left open about a machine as it is: what its calibration says, or what is known of machines. Where
        its file was written with other factors, the latter."""
        logs, known = np.zeros(len(FACTORS)), machine.uncertainty
        if known is None or known.factors != names():
            return cls(logs, np.diag(spread() ** 2))
        return cls(logs, np.array(known.covariance))


def calibrate(runs: Sequence[Measured]) -> Calibrated:
    """The factors that fit the runs, all of one machine, as well as what is known of machines allows.

    >>> bool(calibrate([]).logs.any())
    False
    """
    prior = spread()
    start = np.zeros(len(FACTORS))
    if not runs:
        return Calibrated(start, np.diag(prior**2))
    noise = np.array([run.noise for run in runs])

    def residuals(logs: Vector) -> Vector:
        off = np.array([np.log(run.predicted_s(logs) / run.seconds) for run in runs])
        together: Vector = np.concatenate([off / noise, logs / prior])
        return together

    found = least_squares(residuals, start, bounds=(-MOST, MOST), x_scale=prior)
    slopes = np.array([run.slope(found.x) for run in runs]) / noise[:, None]
    covariance = np.linalg.inv(slopes.T @ slopes + np.diag(prior**-2))
    return Calibrated(found.x, covariance)
