"""Threads of our own, each kept on one CPU, that share out small pieces of work as they get through them.

torch's own threads (OpenMP) cut every operation into equal parts and wait for the slowest part at its end, twelve times
a token of six experts. These take the next piece when they have done one, over all experts of a token, and stay on
their CPUs (docs/cpu_experts.md).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch

Job = Callable[[], object]


def run(jobs: Sequence[Job]) -> None:
    """Do all jobs with `size()` threads, in no order, and return when all are done.

    Jobs run without gradients, and in inference mode where the caller is; the first problem that one raises is raised
    here, after the others have stopped taking jobs.
    """
    if size() > 1 and jobs:
        _crew(os.getpid(), size()).run(jobs)
    else:
        for job in jobs:
            job()


def size() -> int:
    """How many threads do the jobs: as many as torch would use, at most one a CPU."""
    return min(torch.get_num_threads(), len(_cpus()))


class Crew:
    """One thread on each of `cpus`. They do one list of jobs at a time; other callers wait their turn."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._turn = threading.Lock()
        # Locks as signals, released by the other side: much quicker than a semaphore, which is written in Python.
        self._starts, self._ends = [_closed() for _ in cpus], [_closed() for _ in cpus]
        self._jobs: Sequence[Job] = ()
        self._next: Iterator[int] = iter(())
        self._inference = False
        self._problems: list[BaseException] = []
        threads = torch.get_num_threads()
        for which, cpu in enumerate(cpus):
            threading.Thread(target=self._work, args=(which, cpu), name=f"experts-{cpu}", daemon=True).start()
        for end in self._ends:
            end.acquire()
        torch.set_num_threads(threads)  # each worker has set 1 for itself, and for threads that are yet to come

    def run(self, jobs: Sequence[Job]) -> None:
        with self._turn:
            self._jobs, self._next, self._problems = jobs, itertools.count(), []
            self._inference = torch.is_inference_mode_enabled()
            for start in self._starts:
                start.release()
            try:
                for end in self._ends:
                    end.acquire()
            except BaseException:  # an interrupt: the threads go on with these jobs, so the next ones need others
                _crew.cache_clear()
                raise
            self._jobs, problems = (), self._problems
        if problems:
            raise problems[0]

    def _work(self, which: int, cpu: int) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not allowed there, or no such thing there
            os.sched_setaffinity(0, {cpu})  # of this thread alone
        torch.get_num_threads()  # torch's own first look, which would undo the next line if it came later
        torch.set_num_threads(1)
        while True:
            self._ends[which].release()
            self._starts[which].acquire()
            try:
                with torch.inference_mode(self._inference), torch.no_grad():
                    while (number := next(self._next)) < len(self._jobs) and not self._problems:
                        self._jobs[number]()
            except BaseException as problem:
                self._problems.append(problem)


def _closed() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@lru_cache(maxsize=4)
def _crew(process: int, count: int) -> Crew:
    """The crew of this process: a fork has no threads but its own."""
    return Crew(_cpus()[:count])


@lru_cache(maxsize=1)
def _cpus() -> tuple[int, ...]:
    """The CPUs this process may use, one of every core before the second of any."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    seen: dict[str, int] = {}
    order = []
    for cpu in usable:
        core = f"{cpu}"
        with contextlib.suppress(OSError):
            core = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        seen[core] = seen.get(core, 0) + 1
        order.append((seen[core], cpu))
    return tuple(cpu for _, cpu in sorted(order))
