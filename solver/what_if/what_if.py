"""The grid of all given values: one row a scenario."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.placement import Objective
from solver.what_if.ask import Effort
from solver.what_if.family import Job
from solver.what_if.neighbours import settled
from solver.what_if.rows import Answer, table
from solver.what_if.run import Done, Runner
from solver.what_if.scenarios import Grid, chunks
from solver.what_if.store import Store

if TYPE_CHECKING:
    from pandas import DataFrame

CHUNK = 64
"""Scenarios that are answered in one place. The same whatever the executor, so that rows do not depend on it."""


def what_if(
    profile: Any,
    hardware: Any,
    *,
    gpus: Any = None,
    gpu: Any = None,
    memory: Any = None,
    link: Any = None,
    ram_bandwidth: Any = None,
    context: Any = None,
    batch: Any = None,
    prompt: Any = None,
    quant: Any = None,
    margin: Any = None,
    granularity: Any = None,
    target: Any = None,
    executor: Executor | None = None,
    progress: bool = True,
    time_limit: float = 1.0,
    workload: Any = None,
    objective: Objective = "request",
    relative_gap: float = 1e-3,
    seed: int = 0,
    resume: str | Path | None = None,
) -> DataFrame:
    """Plan every scenario of a grid: a DataFrame with one row for each combination of the values given.

    Each axis is one value or several; one that is left out stays as `profile`, `hardware`, `workload` and `solve` have
    it, and is no column. `gpus`, `gpu`, `memory` (a GPU; "48 GB"), `link` (GPU to CPU; "25 GB/s", "pcie5x16") and
    `ram_bandwidth` change the machine (`machines.vary`); `context`, `batch` and `prompt` are tokens, sequences, tokens
    of the workload; `quant` needs a model named by preset or config.json; `margin` is the GPUs' safety margin.

    After the axes come what was found (docs/what_if.md lists all columns): `feasible`, `status`, `why` not, the
    objective with its proven bound and gap, speeds, bytes, what `binds`, and the `plan`. A plan is within
    `relative_gap` of the best, or its row says how much is open: a scenario is worth `time_limit` seconds of work.
    More GPUs, more memory and less context or margin are never predicted to be slower.

    `executor`: any of concurrent.futures' kind, else processes of this machine. `resume`: a .csv or .parquet file that
    is written as rows come, and read to skip what an interrupted run has finished. Raises MoeplanError for bad values.

    >>> found = what_if("qwen3-30b-a3b", "1xRTX4090,ram=96GB", gpus=[1, 2], progress=False)
    >>> found[["gpus", "feasible"]].values.tolist(), found["tokens_per_s"].is_monotonic_increasing
    ([[1, True], [2, True]], True)
    """
    axes = {
        "gpus": gpus, "gpu": gpu, "memory": memory, "link": link, "ram_bandwidth": ram_bandwidth, "context": context,
        "batch": batch, "prompt": prompt, "quant": quant, "margin": margin, "granularity": granularity,
        "target": target,
    }  # fmt: skip
    effort = Effort(time_limit, relative_gap, seed)
    grid = Grid(profile, hardware, workload, objective, axes)
    store = None if resume is None else Store(resume, grid.scenarios, grid.fingerprint(effort))
    answers = {} if store is None else store.read()
    jobs = [
        Job(tuple(chunk), effort)
        for chunk in chunks(grid.scenarios, CHUNK)
        if not all(scenario.index in answers for scenario in chunk)
    ]
    with _shown(progress, len(grid.scenarios) - sum(len(job.scenarios) for job in jobs), len(grid.scenarios)) as bar:

        def done(found: dict[int, Answer]) -> None:
            answers.update(found)
            if store is not None:
                store.write(answers)
            bar(found)

        if jobs:
            Runner(executor).run(jobs, done)
    found = settled(grid.scenarios, answers)
    if store is not None:
        store.write(found)
    return table(grid.scenarios, found)


@contextmanager
def _shown(progress: bool, before: int, total: int) -> Iterator[Done]:
    """A bar on standard error."""
    if not progress:
        yield lambda found: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scenarios", total=total, completed=before)
        yield lambda found: bar.advance(task, len(found))
