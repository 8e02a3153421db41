"""Parts of the catalogue as devices of a machine, and what a reader of it should know about their figures."""

from __future__ import annotations

from profiles.catalogue import GPU_CONTEXT_BYTES, CpuPart, GpuPart
from profiles.device_names import BACKENDS, default_backend, gpu_type
from profiles.hardware import Device
from profiles.parts import TORCH_TYPES

GENERIC_CPU_BYTES_PER_S = 200e9
GENERIC_CPU_FLOPS_PER_S = 4e12


def gpu_names(parts: list[GpuPart]) -> list[str]:
    """What torch calls these GPUs, in order: `cuda:0`, `cuda:1`, … by type."""
    kinds = [TORCH_TYPES[part.backend] for part in parts]
    return [f"{kind}:{kinds[:index].count(kind)}" for index, kind in enumerate(kinds)]


def gpu_device(name: str, part: GpuPart, memory_bytes: int) -> Device:
    """The device for one catalogue GPU. What drives it is said where that does not follow from its name."""
    says = part.backend in BACKENDS[gpu_type(name)] and part.backend != default_backend(name)
    return Device(
        name=name,
        kind="gpu",
        model=part.name,
        backend=part.backend if says else None,
        compute_capability=part.compute_capability,
        memory_bytes=memory_bytes,
        context_bytes=GPU_CONTEXT_BYTES,
        bandwidth_bytes_per_s=part.bandwidth_bytes_per_s,
        flops_per_s=part.flops_per_s,
    )


def cpu_device(part: CpuPart | None, ram_bytes: int, sockets: int = 1) -> Device:
    """The device for `sockets` catalogue CPUs, or for a generic CPU when `part` is None.

    The bandwidth is the peak: what an engine reaches of it is known of engines (`cost_models/engines.py`), and is less
    than what a benchmark of memory reaches.
    """
    bandwidth = part.peak_bytes_per_s if part else GENERIC_CPU_BYTES_PER_S
    flops = part.flops_per_s if part else {"bf16": GENERIC_CPU_FLOPS_PER_S}
    return Device(
        name="cpu",
        kind="cpu",
        model=part.name if part else None,
        memory_bytes=ram_bytes,
        bandwidth_bytes_per_s=bandwidth * sockets,
        flops_per_s={dtype: rate * sockets for dtype, rate in flops.items()},
        cores=part.cores * sockets if part else None,
        clock_hz=part.clock_hz if part else None,
        sockets=sockets,
    )


def cpu_notes(part: CpuPart | None, sockets: int = 1) -> list[str]:
    """What a reader of the machine should know about where its CPU's figures come from."""
    if part is None:
        speeds = f"{GENERIC_CPU_BYTES_PER_S / 1e9:g} GB/s and {GENERIC_CPU_FLOPS_PER_S / 1e12:g} TFLOP/s (bf16)"
        notes = [f"no CPU is named: {speeds} a socket are assumed; name one with cpu=…"]
    else:
        notes = [f"{part.name}: memory bandwidth is the peak ({part.memory_text}); FLOP/s {part.flops_source}"]
        notes += _figures_notes(part)
    if sockets > 1:
        notes.append(f"{sockets} sockets: figures multiplied by {sockets}, which software rarely reaches (NUMA)")
    return notes


def gpu_notes(part: GpuPart) -> list[str]:
    """What a reader of the machine should know about where a GPU's figures come from."""
    return _figures_notes(part)


def _figures_notes(part: GpuPart | CpuPart) -> list[str]:
    notes = [f"{part.name}: remembered, not looked up: {', '.join(part.unverified)}"] if part.unverified else []
    return notes + [f"{part.name}: in doubt: {doubt}" for doubt in part.doubts]
