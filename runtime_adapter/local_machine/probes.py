"""Quick, bounded measurements of the CPU: how fast its RAM is read and how fast it multiplies matrices.

Every probe returns what it found together with how, and raises whatever went wrong: the caller turns that into a note.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

import numpy as np

READS: dict[str, Callable[[Any], object]] = {
    "np.add.reduce": np.add.reduce,
    "np.bitwise_or.reduce": np.bitwise_or.reduce,
}
"""Ways to read every byte once. Both are vectorised, release the GIL and keep up with C (docs/local_machine.md)."""
PASS_SECONDS = 0.05
"""One repetition lasts about this long, so that waking the threads is a small part of it."""
FILL_BYTES = 2**24
"""Fresh memory is filled in steps of this size, between which the clock is looked at."""
BUSY_SHARE = 0.9
"""Where the reading threads ran less of the time than this, the machine was too busy for a fair figure."""
STUCK_SECONDS = 10.0
"""A thread that has not answered for this long is given up."""


@dataclass(frozen=True)
class Limits:
    """What a probe may take: `seconds` is looked at between repetitions, of which there are at most `repetitions`."""

    seconds: float = 1.5
    repetitions: int = 7
    least_buffer_bytes: int = 2**28
    most_buffer_bytes: int = 2**33
    product_sizes: tuple[int, ...] = (512, 1024, 2048)


@dataclass(frozen=True)
class Measured:
    """A figure in SI units (bytes/s, FLOP/s or seconds) and, in words, how it was obtained."""

    value: float
    how: str


def repeat(run: Callable[[], float], limits: Limits) -> list[float]:
    """The seconds that each `run` says it took: one or more, until the limits are reached."""
    deadline = time.monotonic() + limits.seconds
    times: list[float] = []
    while not times or (len(times) < limits.repetitions and time.monotonic() < deadline):
        times.append(max(run(), 1e-9))
    return times


def rates_told(amount: float, times: Sequence[float], unit: str = "GB/s", scale: float = 1e9) -> str:
    """`median of 7, best 34.9 GB/s`: how a rate was drawn from its repetitions."""
    best = amount / min(times) / scale
    return f"median of {len(times)}, best {best:,.{1 if best >= 10 else 3}f} {unit}"


def threads_told(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def buffer_bytes_for(cache_bytes: int, available_bytes: int, limits: Limits) -> int:
    """Four times the last-level cache, but at most an eighth of the RAM that is free.

    Reading in circles over four caches' worth finds about 2 % in a cache that evicts at random, and nothing in one that
    evicts the oldest; over twice the cache it would be 20 %.
    """
    wanted = min(max(4 * cache_bytes, limits.least_buffer_bytes), limits.most_buffer_bytes)
    return max(2**20, min(wanted, available_bytes // 8))


def read_bandwidth(cpus: Sequence[int], cache_bytes: int, available_bytes: int, limits: Limits) -> Measured:
    """Bytes/s at which a thread on each of `cpus`, all at once, read memory that each of them has filled itself.

    The median of the faster of `READS`. Ignored: writes, reads across NUMA nodes, pages smaller than the kernel gives.
    """
    wanted = buffer_bytes_for(cache_bytes, available_bytes, limits)
    with _Crew(cpus, wanted // len(cpus) // 8 * 8, limits.seconds) as crew:
        read = {name: repeat(_passes(crew, operation), limits) for name, operation in READS.items()}
        filled, running = crew.filled_bytes, crew.running_share
    name = min(read, key=lambda name: median(read[name]))
    size = f"{filled / 2**20:,.0f} MiB"
    if cache_bytes:
        size += f" ({filled / cache_bytes:.1f} x the last-level cache)"
    how = f"{name} over uint64, {threads_told(len(cpus))}, one a CPU, {size}, {rates_told(filled, read[name])}"
    if running < BUSY_SHARE:
        how += f"; others used the CPUs meanwhile (these threads ran {running:.0%} of the time), idle it is faster"
    return Measured(filled / median(read[name]), how)


def _passes(crew: _Crew, operation: Callable[[Any], object]) -> Callable[[], float]:
    """Seconds of one pass over the crew's memory, as the mean of as many as last `PASS_SECONDS`."""
    count = max(1, math.ceil(PASS_SECONDS / crew.run(operation, 1)))
    return lambda: crew.run(operation, count) / count


@dataclass
class _Crew:
    """Threads, one a CPU, each with memory that it filled itself and that so lies on its own NUMA node."""

    cpus: Sequence[int]
    each_bytes: int
    fill_seconds: float
    _job: tuple[Callable[[Any], object], int] = (len, 0)
    _filled: list[int] = field(default_factory=list)
    _spans: list[tuple[float, float]] = field(default_factory=list)
    _ran_s: list[float] = field(default_factory=list)
    _took_s: list[float] = field(default_factory=list)
    _problems: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._gate = threading.Barrier(len(self.cpus) + 1, timeout=STUCK_SECONDS)
        for cpu in self.cpus:
            threading.Thread(target=self._work, args=(cpu,), daemon=True).start()
        self._meet()  # all have filled their memory
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.abort()  # ends the threads, which wait at it

    @property
    def filled_bytes(self) -> int:
        """Bytes of all threads; each keeps as many as the slowest has filled."""
        return min(self._filled) * len(self.cpus)

    @property
    def running_share(self) -> float:
        """Share of their working time in which the threads had a CPU: less than 1 where others use the CPUs too."""
        return sum(self._ran_s) / max(sum(self._took_s), 1e-9)

    def run(self, operation: Callable[[Any], object], count: int) -> float:
        """Seconds from the first thread's start to the last one's end, each working `count` times over its memory."""
        self._job, self._spans = (operation, count), []
        self._meet()
        self._meet()
        return max(end for _, end in self._spans) - min(begin for begin, _ in self._spans)

    def _meet(self) -> None:
        try:
            self._gate.wait()
        except threading.BrokenBarrierError:
            raise (self._problems or [TimeoutError("a thread does not answer")])[0] from None

    def _work(self, cpu: int) -> None:
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {cpu})  # of this thread alone
            memory = self._fill()
            self._gate.wait()
            memory = memory[: min(self._filled) // 8]
            while True:  # until the gate is broken
                self._gate.wait()
                operation, count = self._job
                begin, ran = time.perf_counter(), time.thread_time()
                for _ in range(count):
                    operation(memory)
                end = time.perf_counter()
                self._spans.append((begin, end))
                self._ran_s.append(time.thread_time() - ran)
                self._took_s.append(end - begin)
                self._gate.wait()
        except threading.BrokenBarrierError:
            pass  # the work is over, or another thread has failed
        except BaseException as problem:
            self._problems.append(problem)
            self._gate.abort()

    def _fill(self) -> Any:
        """Memory of this thread, filled for at most `fill_seconds`: a machine that swaps gets a smaller buffer."""
        memory, done = np.empty(self.each_bytes // 8, np.uint64), 0
        deadline = time.monotonic() + self.fill_seconds
        while done < len(memory) and (done == 0 or time.monotonic() < deadline):
            memory[done : done + FILL_BYTES // 8] = 1
            done = min(done + FILL_BYTES // 8, len(memory))
        self._filled.append(done * 8)
        return memory


def numpy_flops(limits: Limits) -> Measured:
    """fp32 FLOP/s of numpy's matrix product, with as many threads as its BLAS takes."""

    def product(size: int) -> Callable[[], float]:
        a = np.ones((size, size), np.float32)
        return lambda: _seconds(lambda: a @ a)

    return best_product(product, limits.product_sizes, "numpy, fp32", limits)


def torch_flops(torch: Any, dtype: str, threads: int, limits: Limits) -> Measured:
    """FLOP/s of torch's matrix product on the CPU in `dtype` (fp32 or bf16) with `threads` threads."""
    kind, before = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype], torch.get_num_threads()

    def product(size: int) -> Callable[[], float]:
        a = torch.ones((size, size), dtype=kind)
        return lambda: _seconds(lambda: a @ a)

    torch.set_num_threads(threads)
    try:
        return best_product(product, limits.product_sizes, f"torch, {dtype}, {threads_told(threads)}", limits)
    finally:
        torch.set_num_threads(before)


def best_product(
    product: Callable[[int], Callable[[], float]], sizes: Sequence[int], what: str, limits: Limits
) -> Measured:
    """The best median FLOP/s of square products, small ones first: where those take all the time, no larger follows.

    `product(n)` makes the function that multiplies two n x n matrices and returns its seconds; 2 n^3 FLOP each.
    """
    deadline = time.monotonic() + limits.seconds
    found: list[tuple[float, int, list[float]]] = []
    for size in sizes:
        if found and time.monotonic() + 8 * found[-1][2][0] > deadline:  # twice the size is eight times the work
            break
        multiply = product(size)
        multiply()  # kernels are chosen and packed on first use
        times = repeat(multiply, limits)
        found.append((2 * size**3 / median(times), size, times))
    rate, size, times = max(found)
    return Measured(rate, f"{what}, {size} x {size} product, {rates_told(2 * size**3, times, 'TFLOP/s', 1e12)}")


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
