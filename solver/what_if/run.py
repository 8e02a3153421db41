"""Jobs on any executor: in chunks, with progress, and without losing a row where a worker dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from signal import SIG_IGN, SIGINT, signal
from typing import Any

from profiles.document import one_line
from solver.what_if.family import Job, answer_job
from solver.what_if.rows import Answer

Answers = dict[int, Answer]
Done = Callable[[Answers], None]
Failed = list[tuple[Job, str]]

ROUNDS = 2
"""Times that a job is tried together with others, before each of its scenarios is tried alone."""

_stop: Event | None = None


class Runner:
    """Hands jobs to an executor, by default to processes of its own, one a core; a single job is done here."""

    def __init__(self, executor: Executor | None) -> None:
        self._executor = executor

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """Calls `done` with the answers of each job as they come. What a dying worker left undone is tried again, by
        other workers and then scenario by scenario; one that kills its worker once more is answered with an error."""
        if self._executor is None and len(jobs) == 1:
            done(answer_job(jobs[0]))
            return
        left = list(jobs)
        for _ in range(ROUNDS):
            left = [job for job, _ in self._round(left, done)]
        alone = [replace(job, scenarios=(scenario,)) for job in left for scenario in job.scenarios]
        for one in alone:
            for _, why in self._round([one], done):
                done({one.scenarios[0].index: Answer("error", why=one_line(f"its worker died: {why}"))})

    def _round(self, jobs: Sequence[Job], done: Done) -> Failed:
        """Those that were not answered, and why."""
        if not jobs:
            return []
        if self._executor is None:
            with _own_pool(len(jobs)) as pool:
                return _submitted(pool, jobs, done)
        failed = _submitted(self._executor, jobs, done)
        if failed and _is_broken(self._executor):
            self._executor = None  # nothing can be handed to a broken pool: the rest is done by processes of our own
        return failed


def answer_here(job: Job) -> Answers:
    """`answer_job` in a worker, which stops between two scenarios when it is told to."""
    return answer_job(job, lambda: _stop is not None and _stop.is_set())


def _submitted(executor: Executor, jobs: Sequence[Job], done: Done) -> Failed:
    failed: Failed = []
    futures = {}
    with _without_main():
        for job in jobs:
            try:
                futures[executor.submit(answer_here, job)] = job
            except (BrokenExecutor, RuntimeError) as problem:
                failed.append((job, _said(problem)))
    for future in as_completed(futures):
        try:
            answers = future.result()
        except Exception as problem:
            failed.append((futures[future], _said(problem)))
        else:
            done(answers)
    return failed


def _said(problem: BaseException) -> str:
    return f"{type(problem).__name__} {problem}".strip()


def _is_broken(executor: Executor) -> bool:
    try:
        executor.submit(os.getpid).result()
    except Exception:
        return True
    return False


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _own_pool(most: int) -> Iterator[Executor]:
    """Fresh processes, at most `most`. When interrupted they finish the scenario that they are at, and no more."""
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(min(cores(), most), context, _begin, (stop,))
    try:
        yield pool
    except BaseException:
        stop.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _begin(stop: Event) -> None:
    """In a fresh worker: an interrupt is the parent's business, which tells it to stop."""
    global _stop
    _stop = stop
    signal(SIGINT, SIG_IGN)


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes that are started meanwhile do not import the script that is running: a worker needs nothing of it, and
    a script without `if __name__ == "__main__":` would ask the whole grid once more in each of them."""
    main = sys.modules["__main__"].__dict__
    names = ("__spec__", "__file__")
    kept: dict[str, Any] = {name: main[name] for name in names if name in main}
    main.update((name, None) for name in kept)
    try:
        yield
    finally:
        main.update(kept)
