"""What a layer costs that is split over its own GPU, the CPU and two sorts of other GPUs, such as near and far ones.

Within a sort an even split is best (`cost_models/split_tables.py`). All splits would be a cube of figures, of which few
matter: so rows are made as they are asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.slowest import multipliers
from cost_models.splits import MEANS_FROM_TOKENS
from profiles.model import Experts

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StepHits:
    """Seconds of 0, 1, … hits in one step of `tokens` tokens in all that comes `times` times: on the attention's own
    device, on the CPU and on a GPU of each sort. Where hits are taken at their means: of as many experts."""

    tokens: int
    times: int
    own: Floats
    cpu: Floats
    sorts: tuple[Floats, Floats]


class SortRows:
    """`row(e, n)[k]`: seconds with e experts on the own device, n on the CPU, k on `bins[0]` GPUs of the first sort and
    the rest on `bins[1]` of the second, for experts that are alike."""

    def __init__(self, experts: Experts, touched: Sequence[float], bins: tuple[int, int], hits: Sequence[StepHits]):
        self.count = experts.count
        kinds = [
            _AtMeans if step.tokens >= MEANS_FROM_TOKENS else _Drawn if step.tokens == 1 else _Independent
            for step in hits
        ]
        self._times = [step.times for step in hits]
        self._steps = [kind(experts, p, bins, step) for kind, p, step in zip(kinds, touched, hits, strict=True)]

        self.known: dict[tuple[int, int], int] = {}
        self.all: Floats = np.full((16, self.count + 1), np.inf)

    def at(self, e: int, n: int) -> int:
        """Where in `all` the row of (e, n) is, made if need be; beyond the experts that are left it is infinite."""
        if (e, n) not in self.known:
            at = self.known[e, n] = len(self.known)
            if at == len(self.all):
                self.all = np.concatenate((self.all, np.full_like(self.all, np.inf)))
            self.all[at, : self.count - e - n + 1] = self.row(e, n)
        return self.known[e, n]

    def row(self, e: int, n: int) -> Floats:
        """Seconds by the number on the first sort, from none to all that are left."""
        parts = (times * step.row(e, n) for times, step in zip(self._times, self._steps, strict=True))
        return np.asarray(np.sum(list(parts), axis=0))


class _AtMeans:
    def __init__(self, experts: Experts, touched: float, bins: tuple[int, int], step: StepHits) -> None:
        self.step, self.count = step, experts.count
        fullest = np.arange(experts.count + 1)
        self._sorts = [times[-(-fullest // b)] for times, b in zip(step.sorts, bins, strict=True)]

    def row(self, e: int, n: int) -> Floats:
        rest = self.count - e - n
        guests = np.maximum(self._sorts[0][: rest + 1], self._sorts[1][rest::-1] if rest else self._sorts[1][:1])
        return np.asarray(np.maximum(guests, max(self.step.own[e], self.step.cpu[n])))


class _Levels(ABC):
    """Steps whose slowest part is within a level if all parts are: `_part(times)[n]` says for each level in how many
    ways, or how likely, n experts are."""

    def __init__(self, experts: Experts, touched: float, bins: tuple[int, int], step: StepHits) -> None:
        self.count, self.active, self.touched = experts.count, experts.active, touched
        times = (step.own, step.cpu, *step.sorts)
        self._levels: Floats = np.unique(np.concatenate([t[: self._most() + 1] for t in times]))
        self._rise = np.append(np.diff(self._levels), 0.0)
        self._own, self._cpu = self._part(step.own), self._part(step.cpu)
        self._sorts = [self._spread(self._part(t), b) for t, b in zip(step.sorts, bins, strict=True)]
        self._guests: dict[int, Floats] = {}

    def _most(self) -> int:
        return self.count

    @abstractmethod
    def _part(self, times: Floats) -> Floats: ...

    @abstractmethod
    def _times(self, one: Floats, other: Floats) -> Floats: ...

    @abstractmethod
    def row(self, e: int, n: int) -> Floats: ...

    def _spread(self, part: Floats, bins: int) -> Floats:
        """The same for 0, 1, … experts that are spread evenly over `bins`."""
        n = np.arange(self.count + 1)
        small, large, more = part[n // bins], part[np.minimum(n // bins + 1, self.count)], n % bins
        total = small if bins else part
        for b in range(1, bins):
            if b <= self.count:
                larger = (b <= more).reshape(-1, *(1,) * (part.ndim - 1))
                total = self._times(total, np.where(larger, large, small))
        return total

    def _with(self, rest: int) -> Floats:
        """Ways of `rest` experts on both sorts, by how many are on the first."""
        if rest not in self._guests:
            first, second = self._sorts[0][: rest + 1], self._sorts[1][: rest + 1][::-1]
            self._guests[rest] = self._times(first, second)
        return self._guests[rest]


class _Independent(_Levels):
    def _part(self, times: Floats) -> Floats:
        chances = np.zeros((self.count + 1, self.count + 1))
        chances[0, 0] = 1.0
        for n in range(1, self.count + 1):
            chances[n] = chances[n - 1] * (1 - self.touched)
            chances[n, 1:] += chances[n - 1, :-1] * self.touched
        return chances @ (times[: self.count + 1, None] <= self._levels)

    def _times(self, one: Floats, other: Floats) -> Floats:
        return one * other

    def row(self, e: int, n: int) -> Floats:
        within = self._with(self.count - e - n) @ (self._own[e] * self._cpu[n] * self._rise)
        return np.asarray(self._levels[-1] - within)


class _Drawn(_Levels):
    """One token: polynomials of ways to hit, the last axis their degree."""

    def __init__(self, experts: Experts, touched: float, bins: tuple[int, int], step: StepHits) -> None:
        super().__init__(experts, touched, bins, step)
        self._matrices: dict[int, Floats] = {}

    def _most(self) -> int:
        return self.active

    def _part(self, times: Floats) -> Floats:
        k = self.active
        ways = np.array([[float(math.comb(n, h)) for h in range(k + 1)] for n in range(self.count + 1)])
        return ways[:, None, :] * (times[None, : k + 1] <= self._levels[:, None])[None]

    def _times(self, one: Floats, other: Floats) -> Floats:
        total = np.zeros(np.broadcast_shapes(one.shape, other.shape))
        for h in range(self.active + 1):
            total[..., h:] += one[..., h : h + 1] * other[..., : self.active + 1 - h]
        return total

    def row(self, e: int, n: int) -> Floats:
        here = self._own[e] if n == 0 else (self._own[e][:, None, :] @ self._by_cpu(n))[:, 0]
        here = np.ascontiguousarray(here[:, ::-1] * self._rise[:, None]).ravel()
        guests = self._with(self.count - e - n)
        found = guests.reshape(len(guests), -1) @ here
        return np.asarray(self._levels[-1] - found / math.comb(self.count, self.active))

    def _by_cpu(self, n: int) -> Floats:
        """For each level the matrix that multiplies a polynomial by that of n experts on the CPU."""
        if n not in self._matrices:
            self._matrices[n] = multipliers(self._cpu[n], self.active)
        return self._matrices[n]
