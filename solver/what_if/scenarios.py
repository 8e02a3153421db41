"""The grid: what is asked in each scenario, and which scenarios help each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from itertools import product
from math import prod
from typing import Any, get_args

from cost_models.targets import target_memory
from profiles import load_hardware, load_profile, load_workload
from profiles.catalogue import find_link
from profiles.document import short
from profiles.errors import MoeplanError
from profiles.hardware import Hardware
from profiles.model import ModelProfile
from profiles.placement import Granularity, Objective
from profiles.read_phrase import MAX_GPUS
from profiles.units import BYTE_UNITS, RATE_UNITS, parse_bytes, parse_quantity
from profiles.workload import Workload
from solver.rules import check_target
from solver.what_if.machines import vary

MACHINE = ("gpus", "gpu", "memory", "link", "ram_bandwidth")
REQUEST = {"context": "context_tokens", "batch": "batch_size", "prompt": "prompt_tokens"}
AXES = (*MACHINE, *REQUEST, "quant", "margin", "granularity", "target")
"""In the order of the table's columns and of the grid: the first changes slowest."""
ROOM = ("gpus", "memory", "context", "margin")
"""Axes that change how much fits and not how long anything takes. Their scenarios help each other."""
MARGIN = 0.10
MOST_SCENARIOS = 100_000

Axes = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What `solve` would be asked."""

    profile: ModelProfile
    hardware: Hardware
    workload: Workload
    margin: float
    granularity: Granularity
    target: str
    objective: Objective

    def with_context(self, tokens: int) -> Question:
        return replace(self, workload=self.workload.replace(context_tokens=tokens))


@dataclass(frozen=True)
class Scenario:
    """One row: where it is in the grid, its value on each axis, and the question, or why nobody can ask it."""

    index: int
    axes: Axes
    question: Question | str

    @cached_property
    def room(self) -> tuple[float, ...]:
        """More is looser: GPUs, bytes of each, and less context and margin."""
        signs = {"context": -1, "margin": -1}
        return tuple(signs.get(axis, 1) * self.axes.get(axis, 0) for axis in ROOM)

    @property
    def family(self) -> tuple[Any, ...]:
        """Scenarios of one family have the same times, and the devices of one with fewer GPUs are the first of those of
        one with more. A target that computes the CPU's blocks on a GPU does so only where there is one."""
        others = tuple(self.axes.get(axis) for axis in AXES if axis not in ROOM)
        if isinstance(self.question, str):
            return (*others, self.index)
        streams = target_memory(self.question.target).streams_blocks
        return (*others, streams and not self.question.hardware.gpus)

    def looser(self, other: Scenario) -> bool:
        """Whether whatever fits in `other` fits here, if both are of one family."""
        return all(a >= b for a, b in zip(self.room, other.room, strict=True))


class Grid:
    """All scenarios of some axes, and what they are of."""

    def __init__(
        self, profile: Any, hardware: Any, workload: Any, objective: Objective, axes: Mapping[str, Any]
    ) -> None:
        if objective not in get_args(Objective):
            raise MoeplanError(f"objective: {objective!r} is not known; use {', '.join(get_args(Objective))}")
        self.axes = {name: _values(name, axes[name]) for name in AXES if axes.get(name) is not None}
        self.objective, self.hardware = objective, load_hardware(hardware)
        self.workload = load_workload(workload)
        self._profiles = {quant: _profile(profile, quant) for quant in self.axes.get("quant", [None])}
        number = prod(map(len, self.axes.values()))
        if number > MOST_SCENARIOS:
            raise MoeplanError(f"the grid has {number} scenarios; give at most {MOST_SCENARIOS}, in parts if need be")
        self.scenarios = list(self._scenarios())
        impossible = {scenario.question for scenario in self.scenarios if isinstance(scenario.question, str)}
        if impossible and all(isinstance(scenario.question, str) for scenario in self.scenarios):
            raise MoeplanError(min(impossible))

    def fingerprint(self, *options: object) -> str:
        """The same for the same grid of the same model and machine, with the same options."""
        documents = [self.hardware, self.workload, *self._profiles.values()]
        told = [repr(options), self.objective, self.axes, *(document.to_dict() for document in documents)]
        return sha256(json.dumps(told).encode()).hexdigest()[:16]

    def _scenarios(self) -> Iterator[Scenario]:
        machine, request = cache(self._machine), cache(self._request)
        for index, values in enumerate(product(*self.axes.values())):
            axes = dict(zip(self.axes, values, strict=True))
            hardware = machine(*(axes.get(name) for name in MACHINE))
            workload = request(*(axes.get(name) for name in REQUEST))
            yield Scenario(index, axes, self._question(axes, hardware, workload))

    def _question(self, axes: Axes, hardware: Hardware, workload: Workload | str) -> Question | str:
        if isinstance(workload, str):
            return workload
        return Question(
            profile=self._profiles[axes.get("quant")],
            hardware=hardware,
            workload=workload,
            margin=axes.get("margin", MARGIN),
            granularity=axes.get("granularity", "module"),
            target=axes.get("target", "torch"),
            objective=self.objective,
        )

    def _machine(self, *values: Any) -> Hardware:
        changes = dict(zip(MACHINE, values, strict=True))
        given = {name: value for name, value in changes.items() if value is not None}
        return vary(self.hardware, **given) if given else self.hardware

    def _request(self, *values: Any) -> Workload | str:
        """The workload, or why there is no such one: values that are fine alone may not go together."""
        fields = dict(zip(REQUEST.values(), values, strict=True))
        try:
            return self.workload.replace(**{name: value for name, value in fields.items() if value is not None})
        except MoeplanError as problem:
            return str(problem)


def chunks(scenarios: Iterable[Scenario], most: int) -> list[list[Scenario]]:
    """Scenarios that are answered together: those of one family from tight to loose, in parts of at most `most`."""
    families: dict[object, list[Scenario]] = {}
    for scenario in scenarios:
        families.setdefault(scenario.family, []).append(scenario)
    found = []
    for family in families.values():
        family = tight_to_loose(family)
        parts = -(-len(family) // most)
        size = -(-len(family) // parts)
        found += [family[i : i + size] for i in range(0, len(family), size)]
    return found


def tight_to_loose(family: Sequence[Scenario]) -> list[Scenario]:
    """No scenario stands before one that it is looser than; those with equally many GPUs stand together."""
    ranks = [sorted({scenario.room[k] for scenario in family}) for k in range(len(ROOM))]

    def key(scenario: Scenario) -> tuple[float, int, int]:
        _, *others = (ranks[k].index(value) for k, value in enumerate(scenario.room))
        return scenario.room[0], sum(others), scenario.index

    return sorted(family, key=key)


def _profile(model: Any, quant: str | None) -> ModelProfile:
    if quant is None:
        return load_profile(model)
    if isinstance(model, (ModelProfile, dict)):
        raise MoeplanError("quant: a profile has its bytes; name the model by a preset or its config.json")
    return load_profile(model, quant)


# ---- values of one axis --------------------------------------------------------------------------------------------


def _values(name: str, given: Any) -> list[Any]:
    """The values of one axis, checked; MoeplanError names the first that is wrong."""
    many = [given] if isinstance(given, (str, int, float)) or not isinstance(given, Iterable) else list(given)
    if not many:
        raise MoeplanError(f"{name}: has no values; give at least one, or leave it out")
    values = []
    for value in many:
        value = value.item() if hasattr(value, "item") else value
        try:
            values.append(_READERS[name](value))
        except ValueError as problem:
            raise MoeplanError(f"{name}: {short(value)}: {problem}") from None
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise MoeplanError(f"{name}: {short(twice)} is given twice; keep one")
    return values


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return value

    return read


def _gpu(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a name; write e.g. RTX4090")
    return value


def _memory(value: Any) -> int:
    found = parse_quantity(value, BYTE_UNITS, "48 GB")
    if not 1 <= found <= 1e15:
        raise ValueError("is not between 1 byte and 1000 TB; write e.g. '48 GB'")
    return parse_bytes(value)


def _rate(value: Any) -> float:
    found = parse_quantity(value, RATE_UNITS, "50 GB/s")
    if not 1e6 <= found <= 1e14:
        raise ValueError("is not between 1 MB/s and 100 TB/s; write e.g. '50 GB/s'")
    return found


def _link(value: Any) -> float:
    part = find_link(value) if isinstance(value, str) else None
    return _rate(value) if part is None else part.bandwidth_bytes_per_s


def _margin(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError("is not a share; give a number from 0 to below 1, e.g. 0.10")
    return float(value)


def _granularity(value: Any) -> str:
    if value not in get_args(Granularity):
        raise ValueError(f"is not known; use {', '.join(get_args(Granularity))}")
    return str(value)


def _target(value: Any) -> str:
    check_target(value)
    return str(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "gpus": _whole(0, MAX_GPUS),
    "gpu": _gpu,
    "memory": _memory,
    "link": _link,
    "ram_bandwidth": _rate,
    **dict.fromkeys(REQUEST, _whole(1, 10**9)),
    "quant": _gpu,
    "margin": _margin,
    "granularity": _granularity,
    "target": _target,
}
