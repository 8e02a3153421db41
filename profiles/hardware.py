"""The machine: devices with memory and speed, links with bandwidth and latency."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from profiles.device_names import BACKENDS, DEVICE_NAME, Backend, DeviceName, default_backend, gpu_type, is_gpu
from profiles.document import Document, Noun, SchemaOne
from profiles.errors import HardwareError, MoeplanError
from profiles.units import ByteCount, BytesPerSecond, FlopPerSecond, Seconds, Share

Ratio = Annotated[Share, Field(gt=0, le=1)]
Margin = Annotated[Share, Field(ge=0, lt=1)]
Factor = Annotated[Share, Field(ge=0.01, le=100)]
Count = Annotated[int, Field(ge=1, le=10**6, strict=True)]


class Calibration(Noun):
    """How a device was measured to differ from its engine's habits: factors, 1 where nothing is known.

    `launch` and `sync` multiply seconds, so more than 1 is slower; `bandwidth`, `cache` and `flops` multiply rates.
    """

    error: ClassVar[type[MoeplanError]] = HardwareError

    launch: Factor = 1.0
    sync: Factor = 1.0
    bandwidth: Factor = 1.0
    cache: Factor = 1.0
    flops: Factor = 1.0


class Uncertainty(Noun):
    """What measurements left open about a calibrated machine: the covariance of the logarithms of its factors, in the
    order of their names (`gpu.launch`, …, `link`; `cost_models/factors.py`)."""

    error: ClassVar[type[MoeplanError]] = HardwareError

    factors: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    covariance: tuple[tuple[Annotated[float, Field(ge=-100, le=100)], ...], ...]

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        if [len(row) for row in self.covariance] != [len(self.factors)] * len(self.factors):
            raise ValueError(f"covariance: give a row and a column for each of the {len(self.factors)} factors")
        return self


class Device(Noun):
    """A GPU or the CPU with its RAM. What is not given here (margin, overheads, efficiencies) has a sourced default.

    `context_bytes` is what driver and libraries hold in a process before its first tensor; the safety margin covers it
    where it is large enough, what is over counts as used. `budget_bytes` says absolutely what a plan may use here,
    context included: then neither margin nor `reserved_bytes` applies. `launch_s` is the fixed price of running a
    block, `sync_s` that of handing work to this device in mid-layer; `calibration` scales what the engine is known
    for. A CPU's bandwidth, FLOP/s and physical `cores` are those of all its `sockets` together; with `clock_hz` (the
    root of base times boost) they say what engines make of it. Facts for people and exports, which no formula uses:
    `threads` that may run at a time (logical CPUs within affinity and quota), `numa_nodes`, and the instruction sets
    that matter (`isa`: avx2, amx_bf16, …).

    `pool` names the memory that the device shares with others (`Pool`); `memory_bytes` is then the most that this
    device may have of it. `backend` is what drives a GPU (torch says `cuda:0` with ROCm, too): exports to llama.cpp
    name devices by it. `compute_capability` is NVIDIA's (`8.9`): which kernels there are for a GPU depends on it.
    """

    error: ClassVar[type[MoeplanError]] = HardwareError

    name: DeviceName
    kind: Literal["gpu", "cpu"]
    model: str | None = None
    backend: Backend | None = None
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = None
    memory_bytes: Annotated[ByteCount, Field(gt=0)]
    pool: str | None = None
    reserved_bytes: ByteCount = 0
    safety_margin: Margin | None = None
    budget_bytes: ByteCount | None = None
    context_bytes: ByteCount | None = None
    bandwidth_bytes_per_s: BytesPerSecond
    flops_per_s: Annotated[dict[str, FlopPerSecond], Field(min_length=1)]
    bandwidth_efficiency: Ratio | None = None
    flops_efficiency: Ratio | None = None
    launch_s: Seconds | None = None
    sync_s: Seconds | None = None
    calibration: Calibration | None = None
    cores: Count | None = None
    clock_hz: Annotated[Share, Field(gt=0)] | None = None
    sockets: Count | None = None
    threads: Count | None = None
    numa_nodes: Count | None = None
    isa: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _name_says_kind(self) -> Self:
        if (self.name == "cpu") != (self.kind == "cpu"):
            raise ValueError(f"{self.name} cannot be of kind {self.kind}; GPUs are cuda:<index>, the CPU is cpu")
        may = BACKENDS.get(gpu_type(self.name), ())
        if self.backend is not None and self.backend not in may:
            remedy = f"use {' or '.join(may)}" if may else "leave it out"
            raise ValueError(f"backend {self.backend} drives no {self.name}; {remedy}")
        return self

    @property
    def driven_by(self) -> Backend | None:
        """The backend, said or by default; None for the CPU."""
        return self.backend or (default_backend(self.name) if is_gpu(self.name) else None)

    @model_validator(mode="after")
    def _sockets_are_a_cpus(self) -> Self:
        if self.kind == "gpu" and self.sockets is not None:
            raise ValueError(f"sockets {self.sockets}: {self.name} is a GPU; leave it out, or write repeat: for more")
        return self

    @model_validator(mode="after")
    def _budget_exists(self) -> Self:
        budget, memory = self.budget_bytes, self.memory_bytes
        if budget is not None and budget > memory:
            raise ValueError(f"budget_bytes {budget} is more than memory_bytes {memory}; lower it")
        return self


class Pool(Noun):
    """Memory that several devices share, as in machines with unified memory: what they hold counts once against it.

    `reserved_bytes` and `safety_margin` are the pool's own; without a margin it has the largest of its devices'
    (`cost_models/memory.py`).
    """

    error: ClassVar[type[MoeplanError]] = HardwareError

    name: Annotated[str, Field(min_length=1, max_length=100)]
    memory_bytes: Annotated[ByteCount, Field(gt=0)]
    reserved_bytes: ByteCount = 0
    safety_margin: Margin | None = None

    @model_validator(mode="after")
    def _is_no_device(self) -> Self:
        if DEVICE_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name} is a device's name; call the pool e.g. unified")
        return self


class Link(Noun):
    """What lies between two devices, usable in both directions."""

    error: ClassVar[type[MoeplanError]] = HardwareError

    between: tuple[DeviceName, DeviceName]
    bandwidth_bytes_per_s: BytesPerSecond
    latency_s: Seconds


class Hardware(Document):
    """One machine. Every device can reach every other over its links; there is exactly one `cpu`.

    >>> gpu = {"name": "cuda:0", "kind": "gpu", "memory_bytes": "46 GB", "bandwidth_bytes_per_s": "864 GB/s",
    ...        "flops_per_s": {"bf16": "181 TFLOP/s"}}
    >>> cpu = {"name": "cpu", "kind": "cpu", "memory_bytes": "512 GB", "bandwidth_bytes_per_s": "200 GB/s",
    ...        "flops_per_s": {"bf16": "4 TFLOP/s"}}
    >>> link = {"between": ["cpu", "cuda:0"], "bandwidth_bytes_per_s": "25 GB/s", "latency_s": "10 us"}
    >>> Hardware(name="one card", devices=[gpu, cpu], links=[link]).gpus[0].memory_bytes
    46000000000
    """

    error: ClassVar[type[MoeplanError]] = HardwareError

    schema_: Annotated[SchemaOne, Field(alias="schema")] = 1
    name: Annotated[str, Field(min_length=1)]
    source: str | None = None
    notes: tuple[str, ...] = ()
    devices: Annotated[tuple[Device, ...], Field(min_length=1, max_length=1024)]
    pools: tuple[Pool, ...] = ()
    links: tuple[Link, ...] = ()
    uncertainty: Uncertainty | None = None

    @model_validator(mode="after")
    def _is_one_machine(self) -> Self:
        names = [device.name for device in self.devices]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"devices: {twice} is given twice; give each device its own name")
        if "cpu" not in names:
            raise ValueError("devices: there is no cpu; add one with the machine's RAM")
        for index, link in enumerate(self.links):
            stray = next((name for name in link.between if name not in names), None)
            if stray is not None:
                raise ValueError(f"links[{index}].between: {stray} is not a device here; use {', '.join(names)}")
            if link.between[0] == link.between[1]:
                raise ValueError(f"links[{index}].between: {link.between[0]} twice; name two devices")
        reached, frontier = {"cpu"}, ["cpu"]
        while frontier:
            here = frontier.pop()
            ends = [b if a == here else a for a, b in (link.between for link in self.links) if here in (a, b)]
            frontier += [end for end in ends if end not in reached]
            reached.update(ends)
        lost = next((name for name in names if name not in reached), None)
        if lost is not None:
            raise ValueError(f"links: nothing connects {lost} to the cpu; add a link")
        return self

    @model_validator(mode="after")
    def _has_its_pools(self) -> Self:
        sizes = {pool.name: pool.memory_bytes for pool in self.pools}
        names = [pool.name for pool in self.pools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"pools: {twice} is given twice; give each pool its own name")
        for device in self.devices:
            if device.pool is None:
                continue
            if device.pool not in sizes:
                raise ValueError(
                    f"devices: {device.name}: pool {device.pool} is not a pool here; "
                    f"add pools: [{{name: {device.pool}, memory_bytes: {device.memory_bytes}}}]"
                )
            if device.memory_bytes > sizes[device.pool]:
                raise ValueError(
                    f"devices: {device.name}: memory_bytes {device.memory_bytes} is more than the "
                    f"{sizes[device.pool]} of pool {device.pool}; lower it"
                )
        empty = next((name for name in names if not self.in_pool(name)), None)
        if empty is not None:
            raise ValueError(f"pools: no device is in {empty}; add pool: {empty} to those that share it")
        return self

    def to_dict(self) -> dict[str, Any]:
        """As every document; `pools` only where there are any."""
        return {key: value for key, value in super().to_dict().items() if key != "pools" or value}

    def in_pool(self, name: str) -> tuple[Device, ...]:
        """The devices that share the pool called `name`, in the machine's order."""
        return tuple(device for device in self.devices if device.pool == name)

    @property
    def backends(self) -> dict[str, Backend]:
        """What drives the GPUs for which their names do not say it."""
        return {gpu.name: gpu.backend for gpu in self.gpus if gpu.backend not in (None, default_backend(gpu.name))}

    @property
    def gpus(self) -> tuple[Device, ...]:
        return tuple(device for device in self.devices if device.kind == "gpu")

    @property
    def cpu(self) -> Device:
        return next(device for device in self.devices if device.kind == "cpu")

    def device(self, name: str) -> Device:
        """The device called `name`; HardwareError when there is none."""
        for device in self.devices:
            if device.name == name:
                return device
        known = ", ".join(device.name for device in self.devices)
        raise HardwareError(f"{self.name}: has no device {name}; it has {known}")
