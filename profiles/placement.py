"""The plan document: which block lives where, what that costs, and how good it is proved to be."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from profiles.device_names import Backend, DeviceName
from profiles.document import Document, Noun, SchemaOne, short, text_keys
from profiles.hardware import Margin
from profiles.layer_map import device_colours, device_order, svg
from profiles.units import Seconds, Share, gb
from profiles.workload import Workload

MAX_EXPERTS = 100_000

Objective = Literal["request", "decode", "prefill", "throughput"]
Granularity = Literal["layer", "module", "expert"]
Status = Literal["optimal", "feasible"]


def _expert_ids(value: object) -> object:
    """`value` if it is "all" or a list of expert ids, each once; ValueError otherwise."""
    if value == "all":
        return value
    if not isinstance(value, (list, tuple)):
        raise ValueError("is neither 'all' nor a list of expert ids; write e.g. [0, 1, 2]")
    stray = [i for i in value if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < MAX_EXPERTS]
    if stray:
        raise ValueError(f"expert id {short(stray[0])} is not a whole number from 0 to {MAX_EXPERTS - 1}; mend it")
    if not value:
        raise ValueError("a device with no expert ids; leave the device out")
    return value


def _first_twice(ids: list[int]) -> int | None:
    seen: set[int] = set()
    for i in ids:
        if i in seen:
            return i
        seen.add(i)
    return None


ExpertIds = tuple[int, ...]
ExpertsHere = Annotated[Literal["all"] | ExpertIds, BeforeValidator(_expert_ids)]
Count = Annotated[int, Field(ge=-(10**24), le=10**24, strict=True)]


class LayerPlacement(Noun):
    """Where one layer lives. `experts` is empty for a dense layer, one device -> "all", or device -> expert ids."""

    attention: DeviceName
    experts: Annotated[dict[DeviceName, ExpertsHere], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _each_expert_once(self) -> Self:
        if "all" in self.experts.values() and len(self.experts) > 1:
            raise ValueError("experts: 'all' on one device leaves none for another; list the ids of each device")
        twice = _first_twice([i for part in self.experts.values() if part != "all" for i in part])
        if twice is not None:
            raise ValueError(f"experts: expert {twice} is placed twice; keep one")
        return self

    @property
    def experts_device(self) -> str | None:
        """The one device of all experts; None for a dense or a split layer."""
        return next(iter(self.experts)) if "all" in self.experts.values() else None


class DeviceMemory(Noun):
    """Bytes on one device, counted as docs/model.md says. `used_bytes` must not exceed `usable_bytes`.

    `load_peak_bytes` is the most that the runtime holds there while it loads the weights, where that is known.
    """

    weights_bytes: Count
    kv_bytes: Count
    workspace_bytes: Count
    reserved_bytes: Count
    usable_bytes: Count
    load_peak_bytes: Count | None = None

    @property
    def used_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.workspace_bytes

    @property
    def free_bytes(self) -> int:
        """What is left of the usable memory; negative when the device overflows."""
        return self.usable_bytes - self.used_bytes


class PoolMemory(Noun):
    """Bytes in a memory that several devices share: `used_bytes` is the sum of theirs."""

    used_bytes: Count
    usable_bytes: Count

    @property
    def free_bytes(self) -> int:
        """What is left of the usable memory; negative when the pool overflows."""
        return self.usable_bytes - self.used_bytes


class Interval(Noun):
    """Seconds between which measurements are expected to lie `level` of the time, low and high."""

    level: Annotated[Share, Field(gt=0, lt=1)]
    prefill_s: tuple[Seconds, Seconds]
    decode_step_s: tuple[Seconds, Seconds]


class Prediction(Noun):
    """Predicted seconds, and how far they may be off where that is known. `tokens_per_s` is decode speed over the whole
    batch."""

    prefill_s: Seconds
    decode_step_s: Seconds
    tokens_per_s: Share
    interval: Interval | None = None


class Placement(Document):
    """A plan: block -> device. What a solver or an evaluator found out about it is filled in where known.

    `bound_s` is a proven lower bound over all placements that the granularity and target allow, and
    `gap` = (objective_s - bound_s) / objective_s. With granularity expert `module_bound_s` is what every plan takes at
    least that leaves each layer's experts whole. `pools` are memories that devices share; bytes of `memory` count once
    against theirs. `backends` has GPUs that are not driven as their names would have it. A placement written by hand
    needs only `embedding`, `head`, `layers`.

    >>> plan = Placement(embedding="cpu", head="cuda:0", layers=[{"attention": "cuda:0", "experts": {"cpu": "all"}}])
    >>> plan.layers[0].experts_device
    'cpu'
    """

    schema_: Annotated[SchemaOne, Field(alias="schema")] = 1
    model: str | None = None
    architecture: str | None = None
    quant: str | None = None
    kv_quant: str | None = None
    mla: str | None = None
    hardware: str | None = None
    target: str | None = None
    granularity: Granularity | None = None
    status: Status | None = None
    objective: Objective | None = None
    objective_s: Seconds | None = None
    bound_s: Seconds | None = None
    gap: Share | None = None
    module_bound_s: Seconds | None = None
    solve_s: Seconds | None = None
    backends: dict[DeviceName, Backend] | None = None
    embedding: DeviceName
    head: DeviceName
    layers: Annotated[tuple[LayerPlacement, ...], Field(min_length=1, max_length=10_000)]
    memory: dict[DeviceName, DeviceMemory] | None = None
    pools: dict[str, PoolMemory] | None = None
    prediction: Prediction | None = None
    workload: Annotated[Workload, BeforeValidator(text_keys)] | None = None
    safety_margin: Margin | None = None
    notes: tuple[str, ...] | None = None

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same blocks on devices of other names; what was found out about the plan is left as it is."""
        layers = tuple(
            layer.replace(
                attention=names.get(layer.attention, layer.attention),
                experts={names.get(device, device): part for device, part in layer.experts.items()},
            )
            for layer in self.layers
        )
        backends = {names.get(device, device): backend for device, backend in (self.backends or {}).items()} or None
        ends = {"embedding": names.get(self.embedding, self.embedding), "head": names.get(self.head, self.head)}
        return self.replace(layers=layers, backends=backends, **ends)

    @property
    def devices(self) -> frozenset[str]:
        """Every device that holds a block."""
        inner = {d for layer in self.layers for d in (layer.attention, *layer.experts)}
        return frozenset(inner | {self.embedding, self.head})

    def __str__(self) -> str:
        """One line, for tables that hold plans."""
        name = f"{self.model or 'model'} on {self.hardware or 'machine'}"
        if self.status is None or self.objective_s is None:
            return name
        return f"{name}: {self.status}, {self.objective} {self.objective_s:.3f} s, gap {self.gap or 0:.2%}"

    def _repr_html_(self) -> str:
        """A notebook shows the plan as its layer map and a table: one row a device, what it holds, how full it is."""
        colours = device_colours({*(self.memory or ()), *self.devices})
        rows = "".join(
            f"<tr><td><span style='color:{colours[device]}'>■</span> {escape(device)}</td>"
            f"<td style='text-align:left'>{escape(held)}</td>"
            f"<td>{self._meter(device)}</td><td>{escape(used)}</td><td>{escape(free)}</td></tr>"
            for device, held, used, free in self.device_rows()
        )
        columns = ("device", "holds", "memory", "used", "free")
        head = "".join(f"<th>{column}</th>" for column in columns)
        table = f"<table><caption>{escape(str(self))}</caption><tr>{head}</tr>{rows}</table>"
        return f"<div>{svg(self, colours)}{table}</div>"

    def _meter(self, device: str) -> str:
        held = (self.memory or {}).get(device)
        if held is None:
            return ""
        share = held.used_bytes / max(1, held.usable_bytes)
        return f"<progress max='1' value='{min(1.0, share):.3f}'>{share:.0%}</progress>"

    def device_rows(self) -> list[tuple[str, str, str, str]]:
        """(device, what it holds, used, free) for every device, as text for tables."""
        rows = []
        for device in device_order(self.memory or self.devices):
            memory = (self.memory or {}).get(device)
            used, free = (gb(memory.used_bytes), gb(memory.free_bytes)) if memory else ("?", "?")
            rows.append((device, self.holds(device), used, free))
        return rows

    def holds(self, device: str) -> str:
        """The blocks on `device`, in words."""
        attention = [i for i, layer in enumerate(self.layers) if layer.attention == device]
        experts = [i for i, layer in enumerate(self.layers) if device in layer.experts]
        held = [name for name, home in (("embedding", self.embedding), ("head", self.head)) if home == device]
        held += [f"attention {in_short(attention)}"] if attention else []
        held += [f"experts {in_short(experts)}"] if experts else []
        return ", ".join(held) or "nothing"


def ranges(numbers: list[int]) -> str:
    """Sorted whole numbers in short, exactly.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b, _ in _runs(numbers, gaps=False))


def in_short(numbers: list[int]) -> str:
    """As `ranges`, for people: four or more numbers with equal gaps are written with an ellipsis.

    >>> in_short([0, 1, 2, 5]), in_short([1, 3, 5, 7, 9, 10])
    ('0-2,5', '1,3,…,9,10')
    """
    runs = _runs(numbers, gaps=True)
    return ",".join(str(a) if a == b else f"{a}-{b}" if g == 1 else f"{a},{a + g},…,{b}" for a, b, g in runs)


def _runs(numbers: list[int], gaps: bool) -> list[tuple[int, int, int]]:
    """(first, last, gap) of each run of neighbours, and with `gaps` of four or more numbers equally far apart."""
    runs, i = [], 0
    while i < len(numbers):
        gap = numbers[i + 1] - numbers[i] if i + 1 < len(numbers) else 1
        end = i
        while end + 1 < len(numbers) and numbers[end + 1] - numbers[end] == gap:
            end += 1
        if gap != 1 and (not gaps or end - i < 3):
            gap, end = 1, i  # the next number may begin a run of its own
        runs.append((numbers[i], numbers[end], gap))
        i = end + 1
    return runs
