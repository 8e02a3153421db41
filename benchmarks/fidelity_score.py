"""Scores of predictions, machine by machine: error by tier, intervals, order within a sweep, and regret."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fidelity_fit import Logs, fit, use, with_constants
from fidelity_points import Point, grouped
from rich.progress import track
from scipy.stats import kendalltau

from cost_models.calibrate import Calibrated, Measured, calibrate
from cost_models.engines import engines
from cost_models.uncertainty import interval

MOST_CHOICES = 6
"""Runs of one setup that are taken in turn to calibrate the others; of more, these many, evenly spread."""


@dataclass(frozen=True)
class Guess:
    """One prediction of seconds, and the interval given with it."""

    point: Point
    kind: str
    tier: str
    measured_s: float
    predicted_s: float
    low_s: float
    high_s: float

    @property
    def error(self) -> float:
        """Of tokens/s, signed: more than 0 promises too much."""
        return self.measured_s / self.predicted_s - 1

    @property
    def held(self) -> bool:
        return self.low_s <= self.measured_s <= self.high_s


@dataclass
class Scores:
    """All guesses, and per sweep Kendall's tau and regret. `any_settings` are guesses of tiers 1 and 2 that were
    calibrated with runs of other settings, too."""

    guesses: list[Guess] = field(default_factory=list)
    any_settings: list[Guess] = field(default_factory=list)
    taus: list[float] = field(default_factory=list)
    regrets: list[float] = field(default_factory=list)
    constants: list[Logs] = field(default_factory=list)

    def of(self, tier: str, kind: str, which: Callable[[Point], bool] = lambda _: True) -> list[Guess]:
        return [g for g in self.guesses if g.tier == tier and g.kind == kind and which(g.point)]


def held_out(found: Sequence[Point]) -> Scores:
    """Each computer's points predicted with constants that were fitted to all others."""
    scores = Scores()
    for _, theirs in track(grouped(found, lambda p: p.host).items(), "computers held out", transient=True):
        scores.constants.append(fit([point for point in found if point.host != theirs[0].host]))
        use(theirs, with_constants(scores.constants[-1]))
        _score(theirs, scores)
    return scores


def as_shipped(found: Sequence[Point]) -> Scores:
    """Points predicted with the constants that moeplan ships."""
    scores = Scores()
    use(found, {engine.name: engine for engine in engines().engines})
    _score(found, scores)
    return scores


def _score(found: Sequence[Point], scores: Scores) -> None:
    nothing = calibrate([])
    for point in found:
        scores.guesses += _guesses(point, "0", nothing)
    for setup in grouped(found, lambda p: p.setup).values():
        alike = grouped(setup, lambda p: p.settings).values()
        guesses = [guess for runs in alike for guess in _calibrated(runs)]
        scores.guesses += guesses
        scores.any_settings += guesses if len(alike) == 1 else _calibrated(setup)
    for sweep in grouped(found, lambda p: (p.run.sweep, *p.setup)).values():
        _order(sweep, scores)


def _guesses(point: Point, tier: str, known: Calibrated) -> list[Guess]:
    kinds = (("decode", point.decode), ("prefill", point.prefill))
    return [_guess(point, kind, tier, what, known) for kind, what in kinds if what is not None]


def _guess(point: Point, kind: str, tier: str, what: Measured, known: Calibrated) -> Guess:
    low, high = interval(what, known)
    return Guess(point, kind, tier, what.seconds, what.predicted_s(known.logs), low, high)


def _calibrated(setup: Sequence[Point]) -> list[Guess]:
    """Tier 1: every other run after calibrating with one, each in turn. Tier 2: with two, the one and the run that is
    least like it: most layers apart on the CPU, then most tokens apart in the cache."""
    found: list[Guess] = []
    chosen = setup[:: -(-len(setup) // MOST_CHOICES)]
    for one in chosen:
        known = calibrate(one.measured)
        for other in setup:
            found += _guesses(other, "1", known) if other is not one else []
        if len(setup) > 2:
            two = max((other for other in setup if other is not one), key=lambda other: _unlike(one, other))
            known = calibrate([*one.measured, *two.measured])
            for other in setup:
                found += _guesses(other, "2", known) if other not in (one, two) else []
    return found


def _unlike(a: Point, b: Point) -> tuple[int, float]:
    layers = abs((a.run.cpu_layers or 0) - (b.run.cpu_layers or 0))
    return layers, abs(a.case.decode_context - b.case.decode_context)


def _order(sweep: Sequence[Point], scores: Scores) -> None:
    """Kendall's tau over all decode speeds of a sweep; regret among its plans of the same work."""
    known = [point for point in sweep if point.decode is not None]
    seconds = {id(point): point.decode.predicted_s() for point in known if point.decode is not None}
    if len(known) > 2:
        tau = kendalltau([seconds[id(p)] for p in known], [_seconds(p) for p in known]).statistic
        if not np.isnan(tau):
            scores.taus.append(float(tau))
    for plans in grouped(known, lambda p: p.case.decode_context).values():
        if len({point.case.placement.to_json() for point in plans}) > 1:
            chosen = min(plans, key=lambda point: seconds[id(point)])
            scores.regrets.append(1 - min(map(_seconds, plans)) / _seconds(chosen))


def _seconds(point: Point) -> float:
    assert point.decode is not None
    return point.decode.seconds


def summary(guesses: Iterable[Guess]) -> dict[str, Any]:
    """Points, and of the errors of tokens/s: median and 90th percentile of their size, the median itself as bias; and
    how many measurements lay in their interval."""
    known = list(guesses)
    errors = np.array([guess.error for guess in known])
    if not known:
        return {"points": 0, "median": None, "p90": None, "bias": None, "covered": None}
    size = np.abs(errors)
    return {
        "points": len(errors),
        "median": float(np.median(size)),
        "p90": float(np.percentile(size, 90)),
        "bias": float(np.median(errors)),
        "covered": float(np.mean([guess.held for guess in known])),
    }
