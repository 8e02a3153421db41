"""This machine as a Hardware: what its operating system and GPU driver say, and what quick probes measure.

`profiles.load_hardware("local")` finds `read_machine` here by its entry point (docs/decisions/0001).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import combinations
from time import monotonic
from typing import Any, TypeVar

from profiles.catalogue import CpuPart, GpuPart, find_cpu, find_gpu, machine_links
from profiles.document import one_line
from profiles.hardware import Device, Hardware, Link
from profiles.read_phrase import GENERIC_CPU_BYTES_PER_S, GENERIC_CPU_FLOPS_PER_S, cpu_device
from profiles.units import gb
from runtime_adapter.local_machine.facts import Facts, read_facts
from runtime_adapter.local_machine.gpu_probes import GpuFacts, gpu_bandwidth, gpu_facts, gpu_flops, host_link, peer_link
from runtime_adapter.local_machine.probes import Limits, Measured, numpy_flops, read_bandwidth, torch_flops

GENERIC_GPU_BYTES_PER_S = 300e9
GENERIC_GPU_FLOPS_PER_S = 50e12
"""Assumed of a GPU that is neither measured nor in the catalogue: an L4's bandwidth, a third of its products' rate."""
GPU_SECONDS = 30.0
"""All GPUs and links together: probes that would begin later are left out, and the notes say so."""
NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Without one of these, bf16 products on the CPU are emulated, many times slower than fp32."""
_VENDOR = re.compile(
    r"\((?:r|tm)\)|\b(?:nvidia|amd|geforce|tesla|quadro|(?:workstation|server) edition)\b", re.IGNORECASE
)
_SIZE = re.compile(r"\b\d+ ?GB\b", re.IGNORECASE)

T = TypeVar("T")


def read_machine(refresh: bool = False) -> Hardware:
    """This machine, called `local`; every figure's origin is in `notes`.

    Read and probed once a process (a few seconds, docs/local_machine.md), so that a plan and its check see the same
    bytes; `refresh` does it again. Never raises for a probe that fails: the catalogue's figure or a stated assumption
    takes its place.
    """
    if refresh:
        _this_machine.cache_clear()
    return _this_machine()


@cache
def _this_machine() -> Hardware:
    torch, without = _import_torch()
    return describe(read_facts(), torch, without)


def describe(
    facts: Facts, torch: Any = None, without_torch: str = "torch is not installed", limits: Limits | None = None
) -> Hardware:
    """The machine of `facts` and of the GPUs that `torch` sees; where it is None, `without_torch` says why."""
    reading = _Reading(torch, limits or Limits())
    part = _cpu_part(facts.cpu_name)
    cpu = _cpu(reading, facts, part)
    gpus = _find_gpus(reading, without_torch)
    devices = (*[_gpu(reading, gpu) for gpu in gpus], cpu)
    links = _links(reading, gpus, part)
    return Hardware(
        name="local",
        source="this machine: its operating system and GPU driver, and probes where the notes say measured",
        notes=tuple(reading.notes),  # complete only now
        devices=devices,
        links=tuple(links),
    )


@dataclass
class _Reading:
    """What one reading of the machine carries along: torch, the probes' limits, the notes so far, and the time."""

    torch: Any
    limits: Limits
    notes: list[str] = field(default_factory=list)
    gpu_deadline: float = field(default_factory=lambda: monotonic() + GPU_SECONDS)

    def note(self, text: str) -> None:
        self.notes.append(one_line(text))

    def probe(self, what: str, run: Callable[[], T], otherwise: str, on_gpu: bool = True) -> T | None:
        """What `run` finds; None after a note of why not, and of what is used instead."""
        try:
            if on_gpu and monotonic() > self.gpu_deadline:
                raise TimeoutError(f"the {GPU_SECONDS:g} s for GPUs are over")
            return run()
        except Exception as problem:  # a driver raises what it likes, and no probe is worth losing the machine
            why = f"{type(problem).__name__}: {problem}".split("\n")[0][:120]
            self.note(f"{what}: not measured ({why}); {otherwise}")
            return None
        finally:
            if on_gpu:
                with contextlib.suppress(Exception):  # a GPU that failed may fail here too
                    self.torch.cuda.empty_cache()


def _import_torch() -> tuple[Any, str]:
    """(torch, "") or (None, why it cannot be imported)."""
    try:
        import torch
    except ImportError as problem:
        missing = isinstance(problem, ModuleNotFoundError) and problem.name == "torch"
        return None, "torch is not installed" if missing else f"torch cannot be imported ({problem})"
    except OSError as problem:  # a library of its own that does not load
        return None, f"torch cannot be imported ({problem})"
    return torch, ""


# -- the CPU


def _cpu(reading: _Reading, facts: Facts, part: CpuPart | None) -> Device:
    _note_facts(reading, facts, part)
    known = cpu_device(part, facts.memory_bytes, facts.sockets if part else 1)
    return known.replace(
        model=part.name if part else facts.cpu_name,
        reserved_bytes=min(facts.in_use_bytes, facts.memory_bytes),
        cores=facts.cores,
        threads=facts.threads,
        numa_nodes=sum(bool(node.cpus) for node in facts.numa) or None,
        isa=facts.isa or None,
        **_cpu_bandwidth(reading, facts, known, part),
        flops_per_s=_cpu_flops(reading, facts, known, part),
    )


def _note_facts(reading: _Reading, facts: Facts, part: CpuPart | None) -> None:
    name = facts.cpu_name or "of unknown name"
    known = f"the catalogue's {part.name}" if part else "not in the catalogue"
    reading.note(f"cpu: {name} ({known}); sockets, cores, NUMA nodes and instruction sets as the kernel reports")
    if facts.threads < facts.logical:
        limit = f"affinity {len(facts.usable)}" + (f", quota {facts.quota:g}" if facts.quota is not None else "")
        reading.note(f"cpu: {facts.threads} of {facts.logical} logical CPUs may be used here ({limit})")
    if len(facts.numa) > 1:
        nodes = (f"node {n.number} {len(n.cpus)} CPUs {gb(n.memory_bytes)}" for n in facts.numa)
        reading.note(f"cpu: NUMA {'; '.join(nodes)}; software that reads across nodes is slower than measured here")
    limit = "its control group's limit" if facts.memory_limited else "RAM as the kernel reports it"
    reading.note(
        f"cpu: memory {gb(facts.memory_bytes)} is {limit}; {gb(facts.in_use_bytes)} reserved, as others hold them now"
        f" (this process's own {gb(facts.own_bytes)} not counted)"
    )


def _cpu_bandwidth(reading: _Reading, facts: Facts, known: Device, part: CpuPart | None) -> dict[str, float]:
    """The fields that say how fast RAM is: what a plain loop reads, of which engines reach a part."""
    rate = known.bandwidth_bytes_per_s
    instead = f"the catalogue's {rate / 1e9:,.0f} GB/s instead (the peak, {part.memory})" if part else (
        f"{GENERIC_CPU_BYTES_PER_S / 1e9:g} GB/s assumed")  # fmt: skip
    cpus = facts.usable[:: len(facts.usable) // facts.threads][: facts.threads]
    found = reading.probe(
        "cpu bandwidth",
        partial(read_bandwidth, cpus, facts.cache_bytes, facts.available_bytes, reading.limits),
        instead,
        on_gpu=False,
    )
    if found is None:
        return {}
    reading.note(f"cpu bandwidth: {found.value / 1e9:,.1f} GB/s measured by reading: {found.how}")
    return {"bandwidth_bytes_per_s": found.value}


def _cpu_flops(reading: _Reading, facts: Facts, known: Device, part: CpuPart | None) -> dict[str, float]:
    """FLOP/s of fp32, and of bf16 where the CPU has it; all are peaks, which the default efficiency discounts."""
    instead = "the catalogue's figure instead" if part else f"{GENERIC_CPU_FLOPS_PER_S / 1e12:g} TFLOP/s bf16 assumed"
    torch, found = reading.torch, dict[str, Measured]()
    kinds = ["fp32", "bf16"] if torch is not None and NATIVE_BF16 & set(facts.isa) else ["fp32"]
    for kind in kinds:
        run = partial(torch_flops, torch, kind, facts.threads) if torch is not None else numpy_flops
        rate = reading.probe(f"cpu {kind} products", partial(run, reading.limits), instead, on_gpu=False)
        if rate is not None:
            found[kind] = rate
            reading.note(f"cpu {kind} products: {rate.value / 1e12:,.3g} TFLOP/s measured: {rate.how}")
    if "bf16" in found and "fp32" in found and found["bf16"].value < found["fp32"].value:
        reading.note("cpu: bf16 products are slower than fp32 ones here; fp32 is planned with")
        del found["bf16"]
    if not found:
        return known.flops_per_s
    # numpy has no bf16: a part that is known keeps its figure for it.
    kept = {"bf16": known.flops_per_s["bf16"]} if torch is None and part and "bf16" in known.flops_per_s else {}
    if kept:
        reading.note(f"cpu bf16 products: {kept['bf16'] / 1e12:,.3g} TFLOP/s from the catalogue ({known.model})")
    return kept | {kind: rate.value for kind, rate in found.items()}


def _cpu_part(name: str | None) -> CpuPart | None:
    """The catalogue's CPU whose name is part of `name`: the longest run of words that is one.

    >>> part = _cpu_part("AMD EPYC 9654 96-Core Processor")
    >>> part.name if part else None
    'EPYC-9654'
    """
    words = _VENDOR.sub(" ", name or "").split()
    runs = [words[i:j] for i, j in combinations(range(len(words) + 1), 2)]
    named = [" ".join(run) for run in sorted(runs, key=len, reverse=True)]
    found = (find_cpu(run) for run in named if re.search("[a-z]", run, re.IGNORECASE))  # a number alone is no name
    return next((part for part in found if part is not None), None)


# -- GPUs and links


def _find_gpus(reading: _Reading, without_torch: str) -> list[GpuFacts]:
    """The GPUs that torch sees and whose driver answers."""
    if reading.torch is None:
        reading.note(f"GPUs: none are seen, because {without_torch}; install moeplan[torch] if there are any")
        return []
    try:
        count = int(reading.torch.cuda.device_count()) if reading.torch.cuda.is_available() else 0
    except Exception as problem:  # as in `probe`
        reading.note(f"GPUs: none are seen, because torch cannot ask for them ({problem})")
        return []
    if count == 0:
        reading.note(f"GPUs: none, as torch {getattr(reading.torch, '__version__', '')} reports")
    found = (
        reading.probe(f"cuda:{index}", partial(gpu_facts, reading.torch, index), "this GPU is left out")
        for index in range(count)
    )
    return [gpu for gpu in found if gpu is not None]


def _gpu(reading: _Reading, gpu: GpuFacts) -> Device:
    name, part, torch, limits = f"cuda:{gpu.index}", _gpu_part(gpu), reading.torch, reading.limits
    known = f"the catalogue's {part.name}" if part else "not in the catalogue"
    major, minor = gpu.capability
    reading.note(
        f"{name}: {gpu.name} ({known}), compute capability {major}.{minor}; memory {gb(gpu.total_bytes)} as the driver"
        f" reports, {gb(gpu.in_use_bytes)} reserved: held by others, this process's own CUDA context included"
    )
    rate, flops = (part.bandwidth_bytes_per_s, part.flops_per_s) if part else (
        GENERIC_GPU_BYTES_PER_S, {"fp16": GENERIC_GPU_FLOPS_PER_S})  # fmt: skip
    origin = "from the catalogue instead" if part else "assumed"
    kind = next(kind for kind in ("bf16", "fp16", *flops) if kind in flops)
    read = reading.probe(
        f"{name} bandwidth", partial(gpu_bandwidth, torch, gpu, limits), f"{rate / 1e9:,.0f} GB/s {origin}"
    )
    if read is not None:
        reading.note(f"{name} bandwidth: {read.value / 1e9:,.0f} GB/s measured: {read.how}")
    product = reading.probe(
        f"{name} products",
        partial(gpu_flops, torch, gpu, limits),
        f"{flops[kind] / 1e12:,.0f} TFLOP/s {kind} {origin}",
    )
    if product is not None:
        flops = {product[0]: product[1].value}
        reading.note(f"{name} products: {product[1].value / 1e12:,.3g} TFLOP/s measured: {product[1].how}")
    return Device(
        name=name,
        kind="gpu",
        model=part.name if part else gpu.name,
        memory_bytes=gpu.total_bytes,
        reserved_bytes=gpu.in_use_bytes,
        bandwidth_bytes_per_s=rate if read is None else read.value,
        flops_per_s=flops,
    )


def _gpu_part(gpu: GpuFacts) -> GpuPart | None:
    """The catalogue's GPU of the driver's name, with and without the size in it; never one whose name is only a part
    of it, since an "RTX 4090 Laptop GPU" is no RTX 4090."""
    bare = _VENDOR.sub(" ", gpu.name)
    without = _SIZE.sub(" ", bare)
    names = (gpu.name, bare, f"{without} {round(gpu.total_bytes / 2**30)}GB", without)
    return next((part for name in names if (part := find_gpu(name, gpu.total_bytes)) is not None), None)


def _links(reading: _Reading, gpus: list[GpuFacts], cpu: CpuPart | None) -> list[Link]:
    """Every GPU's way to RAM and every pair's: measured, or as the catalogue knows parts of these names."""
    torch, limits = reading.torch, reading.limits
    links = {link.between: link for link in machine_links([(f"cuda:{g.index}", _gpu_part(g)) for g in gpus], cpu)}
    ends = [("cpu", f"cuda:{gpu.index}", partial(host_link, torch, gpu, limits)) for gpu in gpus]
    ends += [
        (f"cuda:{one.index}", f"cuda:{other.index}", partial(peer_link, torch, one, other, limits))
        for one, other in combinations(gpus, 2)
    ]
    for one_end, other_end, run in ends:
        between = (one_end, other_end)
        what, known = " - ".join(between), links.get(between)
        instead = "its hand-overs are planned through RAM" if known is None else (
            f"the catalogue's {known.bandwidth_bytes_per_s / 1e9:,.1f} GB/s and"
            f" {known.latency_s * 1e6:g} us (assumed) instead")  # fmt: skip
        found = reading.probe(what, run, instead)
        if found is None:
            continue
        rate, latency = found.bandwidth, found.latency
        reading.note(f"{what}: {rate.value / 1e9:,.1f} GB/s measured: {rate.how}")
        reading.note(f"{what}: {latency.value * 1e6:,.1f} us measured: {latency.how}")
        links[between] = Link(between=between, bandwidth_bytes_per_s=rate.value, latency_s=latency.value)
    return list(links.values())
