"""The machine of a run: its GPUs and CPU from the catalogue, RAM as fast as the source or the catalogue says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from profiles.catalogue import CpuPart, GpuPart, find_cpu, find_gpu, find_link, machine_links, unknown_part
from profiles.document import one_line, short
from profiles.errors import HardwareError
from profiles.hardware import Device, Hardware
from profiles.read_phrase import GENERIC_CPU_FLOPS_PER_S, gpu_device
from profiles.run import Run, RunGpu
from profiles.units import gb

UNKNOWN_RAM_BYTES = 10**12
"""What a machine has that ran the model, where nobody says: enough for any."""

RamSource = Literal["stated", "catalogue", "measured"]
"""Where RAM's bytes/s are from: the source's theoretical peak, the CPU's in the catalogue, or a measured figure."""


@dataclass
class Machine:
    """A run's machine while it is put together; `notes` say what was assumed."""

    hardware: Hardware
    ram_source: RamSource
    notes: list[str] = field(default_factory=list)


def machine_of(run: Run) -> Machine:
    """The machine of `run`, GPUs as cuda:0, cuda:1, … in its order.

    RAM is the theoretical peak of the sockets that were used, or what was measured where nobody knows the peak. Raises
    HardwareError where a GPU is unknown that holds anything, or nothing says how fast RAM is.
    """
    notes: list[str] = []
    cpu, part, ram_source = _cpu(run, notes)
    gpus = _gpus(run, notes)
    devices = [gpu_device(f"cuda:{i}", p, memory or p.memory_bytes) for i, (p, memory) in enumerate(gpus)]
    named: list[tuple[str, GpuPart | None]] = [(d.name, p) for d, (p, _) in zip(devices, gpus, strict=True)]
    hardware = Hardware(
        name=run.machine or "measured machine",
        source=run.source,
        notes=tuple(notes),
        devices=(*devices, cpu),
        links=tuple(machine_links(named, part, _host_bytes_per_s(run))),
    )
    return Machine(hardware, ram_source, notes)


def _cpu(run: Run, notes: list[str]) -> tuple[Device, CpuPart | None, RamSource]:
    part = cpu_part(run.cpu) if run.cpu else None
    sockets = run.sockets or 1
    used = run.sockets_used or sockets
    ram_source: RamSource
    if run.ram_peak_bytes_per_s is not None:
        bandwidth, ram_source = run.ram_peak_bytes_per_s * used / sockets, "stated"
    elif part is not None:
        bandwidth, ram_source = part.peak_bytes_per_s * used, "catalogue"
    elif run.ram_measured_bytes_per_s is not None:
        bandwidth, ram_source = run.ram_measured_bytes_per_s, "measured"
    else:
        what = f"the CPU {short(run.cpu)} is not in the catalogue" if run.cpu else "no CPU is named"
        raise HardwareError(one_line(f"ram_peak_bytes_per_s: not known, and {what}; give it, e.g. 307.2 GB/s"))
    if run.sockets is None and part is not None:
        notes.append("sockets not stated: one is assumed")
    if run.ram_bytes is None:
        notes.append(f"RAM not stated: {gb(UNKNOWN_RAM_BYTES)} are assumed")
    cores = run.cores * used // sockets if run.cores else part.cores * used if part else None
    device = Device(
        name="cpu",
        kind="cpu",
        model=part.name if part else run.cpu,
        memory_bytes=run.ram_bytes or UNKNOWN_RAM_BYTES,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=_flops(part, used, cores, notes),
        cores=cores,
        clock_hz=part.clock_hz if part else None,
        sockets=used,
        isa=part.isa if part else None,
    )
    return device, part, ram_source


def _flops(part: CpuPart | None, sockets: int, cores: int | None, notes: list[str]) -> dict[str, float]:
    """The catalogue's, less where only some of the cores could be used (virtual machines)."""
    if part is None:
        notes.append(f"CPU not in the catalogue: {GENERIC_CPU_FLOPS_PER_S / 1e12:g} TFLOP/s (bf16) are assumed")
        return {"bf16": GENERIC_CPU_FLOPS_PER_S * sockets}
    share = min(1.0, (cores or part.cores * sockets) / (part.cores * sockets))
    return {dtype: rate * sockets * share for dtype, rate in part.flops_per_s.items()}


def cpu_part(name: str) -> CpuPart | None:
    """The catalogue's CPU that a source means: what stands in brackets may name it or only describe it.

    >>> cpu_part("Xeon Platinum 8358 (30 vCPU VM)").name, cpu_part("2x9115 (EPYC 9115)").name
    ('Xeon-Platinum-8358', 'EPYC-9115')
    """
    outside, inside = re.sub(r"\(.*?\)", " ", name), re.findall(r"\((.*?)\)", name)
    plain = re.sub(r"\d+-core.*|processor|cpu @.*|\(r\)|\(tm\)|ryzen(?= threadr)", " ", name.lower())
    spellings = [name, outside, *inside, plain]
    return next((part for spelling in spellings if (part := find_cpu(spelling)) is not None), None)


def gpu_part(name: str, memory_bytes: int | None = None) -> GpuPart | None:
    """The catalogue's GPU that a source means; a size in its name is taken as description where no part has it.

    Of parts that share a name it is the one with `memory_bytes`, where the source gives that.

    >>> gpu_part("RTX 4090 48GB (modified)").name, gpu_part("RTX 5060 Ti 8GB").name
    ('RTX4090', 'RTX5060Ti-8GB')
    """
    outside = re.sub(r"\(.*?\)", " ", name)
    first = re.split(r"\bor\b", outside)[0]
    plain = re.sub(r"\d+ ?gb\b|generation|graphics|edition|workstation|server", " ", first.lower())
    spellings = [name, outside, first, plain]
    return next((part for spelling in spellings if (part := find_gpu(spelling, memory_bytes)) is not None), None)


def uses_gpus(run: Run) -> bool:
    """Whether anything was on a GPU: with attention on the CPU nothing is."""
    return run.attention != "cpu" and run.gpus != ()


def _gpus(run: Run, notes: list[str]) -> list[tuple[GpuPart, int | None]]:
    """(part, bytes) of every GPU. Where they hold nothing, unknown ones are left out."""
    if run.gpus is None:
        if uses_gpus(run):
            raise HardwareError("gpus: not known; say what the machine has, or attention='cpu' where it was not used")
        return []
    found: list[tuple[GpuPart, int | None]] = []
    for gpu in run.gpus:
        part = gpu_part(gpu.model, gpu.memory_bytes)
        if part is not None:
            found += [(part, gpu.memory_bytes)] * gpu.count
            continue
        if uses_gpus(run):
            raise HardwareError(one_line(f"gpus: {unknown_part('GPU', gpu.model)}"))
        notes.append(f"GPU left out, it is not in the catalogue and holds nothing: {gpu.model[:60]}")
    return found


def _host_bytes_per_s(run: Run) -> float | None:
    """What the source says of the way to all GPUs alike: a measured rate, or PCIe's generation and lanes."""
    rates = {_link_bytes_per_s(gpu) for gpu in run.gpus or ()}
    return rates.pop() if len(rates) == 1 else None


def _link_bytes_per_s(gpu: RunGpu) -> float | None:
    text = (gpu.pcie or "").lower()
    measured = re.search(r"h2d ([0-9]{1,4}(?:\.[0-9]{1,3})?) gb/s", text)
    if measured is not None:
        return float(measured[1]) * 1e9
    lanes = re.search(r"([3-6])(?:\.0)? ?x ?(16|8|4)", text)
    link = find_link(f"pcie{lanes[1]}x{lanes[2]}") if lanes else None
    return link.bandwidth_bytes_per_s if link else None
