"""Quick, bounded measurements of GPUs and of the links between them, through torch (CUDA, or ROCm under its name).

`torch` is passed in: it may be missing, and a test passes a stand-in. Every probe raises whatever torch raises; its
memory goes back to torch when it ends, and to the driver with `torch.cuda.empty_cache()`, which the caller does after
each one: cuBLAS cuts its workspace, which stays, out of what torch has kept, and would pin all of the last probe's.
Bandwidths and products are timed by the GPU's own events, latencies and hand-overs by the host, as a caller waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from runtime_adapter.local_machine.probes import Limits, Measured, best_product, rates_told, repeat

BUFFER_BYTES = 2**30
"""Read and copied on a GPU: many times the largest cache of one (256 MB)."""
LINK_BYTES = 2**27
"""Sent over a link: long enough for its full rate, short enough for slow links."""
SMALL_BYTES = 2**13
"""A hand-over of one token is of this order: a hidden vector of 4096 values in 16 bits."""
SMALL_COPIES = 50
"""Copies whose median is a latency: single ones scatter."""
PRODUCT_SIZES = (4096, 8192)
FIRST_BF16 = (8, 0)
"""Compute capability from which 16-bit products run in bf16; older GPUs have fp16 only."""


@dataclass(frozen=True)
class GpuFacts:
    """One GPU as its driver reports it; `own_bytes` is what this process's torch already holds of it."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    own_bytes: int
    capability: tuple[int, int]

    @property
    def in_use_bytes(self) -> int:
        """What others hold, and the driver's own context for this process, which torch cannot tell apart."""
        return max(0, self.total_bytes - self.free_bytes - self.own_bytes)


@dataclass(frozen=True)
class MeasuredLink:
    bandwidth: Measured
    latency: Measured


def gpu_facts(torch: Any, index: int) -> GpuFacts:
    """What the driver says about GPU `index`; asking starts a CUDA context in this process."""
    free, total = torch.cuda.mem_get_info(index)
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    own = torch.cuda.memory_reserved(index)
    return GpuFacts(index, str(name), int(total), int(free), int(own), (int(capability[0]), int(capability[1])))


def gpu_bandwidth(torch: Any, gpu: GpuFacts, limits: Limits) -> Measured:
    """Bytes/s of reading (a sum over float32) or of copying (both directions counted), whichever is faster."""
    count = _size(BUFFER_BYTES, gpu) // 4
    source = torch.zeros(count, dtype=torch.float32, device=f"cuda:{gpu.index}")
    target = torch.zeros_like(source)
    reads = repeat(_on_gpu(torch, gpu.index, lambda: source.sum()), limits)
    copies = repeat(_on_gpu(torch, gpu.index, lambda: target.copy_(source)), limits)
    n_bytes = 4 * count
    read, copy = n_bytes / median(reads), 2 * n_bytes / median(copies)
    told = f"torch.sum over {n_bytes / 2**20:,.0f} MiB of float32, {rates_told(n_bytes, reads)}"
    if copy > read:
        told = f"a copy of {n_bytes / 2**20:,.0f} MiB, both directions, {rates_told(2 * n_bytes, copies)}"
    other = f"reading {read / 1e9:,.0f} GB/s" if copy > read else f"copying {copy / 1e9:,.0f} GB/s"
    return Measured(max(read, copy), f"{told}; {other}")


def gpu_flops(torch: Any, gpu: GpuFacts, limits: Limits) -> tuple[str, Measured]:
    """("bf16" or "fp16", FLOP/s) of torch's matrix product in the 16-bit type that the GPU computes in.

    Of random values: products of zeros take less power, so that a GPU keeps a higher clock (docs/gpu_check.md).
    """
    kind = "bf16" if gpu.capability >= FIRST_BF16 else "fp16"
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16

    def product(size: int) -> Callable[[], float]:
        a = torch.randn((size, size), dtype=dtype, device=f"cuda:{gpu.index}")
        return _on_gpu(torch, gpu.index, lambda: a @ a)

    fitting = [size for size in PRODUCT_SIZES if 4 * size**2 <= gpu.free_bytes // 8]  # two matrices of 2 bytes a value
    return kind, best_product(product, fitting or PRODUCT_SIZES[:1], f"torch, {kind}", limits)


def host_link(torch: Any, gpu: GpuFacts, limits: Limits) -> MeasuredLink:
    """Pinned RAM to the GPU and back: the slower direction's bandwidth, and the slower one's time of a small copy."""
    size, device = _size(LINK_BYTES, gpu), f"cuda:{gpu.index}"
    host = torch.zeros(size, dtype=torch.uint8).pin_memory()
    there = torch.zeros(size, dtype=torch.uint8, device=device)
    to_gpu = repeat(_on_gpu(torch, gpu.index, lambda: there.copy_(host, non_blocking=True)), limits)
    to_host = repeat(_on_gpu(torch, gpu.index, lambda: host.copy_(there, non_blocking=True)), limits)
    small, small_there = host[:SMALL_BYTES], there[:SMALL_BYTES]
    latency_to = _latency(torch, [gpu.index], lambda: small_there.copy_(small, non_blocking=True), limits)
    latency_back = _latency(torch, [gpu.index], lambda: small.copy_(small_there, non_blocking=True), limits)
    slower = max(to_gpu, to_host, key=median)
    both = f"{size / median(to_gpu) / 1e9:,.1f} GB/s to the GPU, {size / median(to_host) / 1e9:,.1f} GB/s back"
    rate = f"{both}, pinned, {size / 2**20:,.0f} MiB, {rates_told(size, slower)}"
    return MeasuredLink(Measured(size / median(slower), rate), max(latency_to, latency_back, key=lambda m: m.value))


def peer_link(torch: Any, one: GpuFacts, other: GpuFacts, limits: Limits) -> MeasuredLink:
    """From one GPU to another, as torch copies: directly where peer access is allowed, else through RAM."""
    size = min(_size(LINK_BYTES, one), _size(LINK_BYTES, other))
    direct = torch.cuda.can_device_access_peer(one.index, other.index)
    indices = [one.index, other.index]
    source = torch.zeros(size, dtype=torch.uint8, device=f"cuda:{one.index}")
    target = torch.zeros(size, dtype=torch.uint8, device=f"cuda:{other.index}")
    times = repeat(_by_host(torch, indices, lambda: target.copy_(source, non_blocking=True)), limits)
    small, small_there = source[:SMALL_BYTES], target[:SMALL_BYTES]
    latency = _latency(torch, indices, lambda: small_there.copy_(small, non_blocking=True), limits)
    how = f"{'with' if direct else 'without'} peer access, {size / 2**20:,.0f} MiB, {rates_told(size, times)}"
    return MeasuredLink(Measured(size / median(times), how), latency)


def _size(wanted: int, gpu: GpuFacts) -> int:
    """Whole kibibytes, at most an eighth of what is free on the GPU."""
    size = min(wanted, gpu.free_bytes // 8) // 1024 * 1024
    if size < SMALL_BYTES:
        raise MemoryError(f"only {gpu.free_bytes:,} bytes are free")
    return size


def _on_gpu(torch: Any, index: int, run: Callable[[], object]) -> Callable[[], float]:
    """Seconds of `run` on the GPU's own clock; run once before, so that nothing is set up while it is timed."""

    def timed() -> float:
        with torch.cuda.device(index):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3  # milliseconds

    timed()
    return timed


def _by_host(torch: Any, indices: list[int], run: Callable[[], object]) -> Callable[[], float]:
    """Seconds of `run` on the host's clock, until all GPUs of `indices` are done; run once before."""

    def wait() -> None:
        for index in indices:
            torch.cuda.synchronize(index)

    def timed() -> float:
        wait()
        begin = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - begin

    timed()
    return timed


def _latency(torch: Any, indices: list[int], run: Callable[[], object], limits: Limits) -> Measured:
    timed = _by_host(torch, indices, run)
    times = [seconds for _ in range(SMALL_COPIES // limits.repetitions + 1) for seconds in repeat(timed, limits)]
    return Measured(median(times), f"copy of {SMALL_BYTES // 1024} KiB and wait, median of {len(times)}")
