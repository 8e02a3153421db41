"""Published measurements as points that a cost model is scored on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cost_models import CostModel
from cost_models.calibrate import Measured
from cost_models.engines import Copies, Engine
from cost_models.targets import TARGETS
from profiles import Case, Run, Workload, case_of, read_runs
from profiles.document import parse_document
from profiles.errors import MoeplanError

OURS = Path(__file__).with_name("measurements.yaml")
FACTS = Path(__file__).with_name("measurements_facts.yaml")
DESKTOPS = ("Ryzen", "Core")


@dataclass(frozen=True)
class Point:
    """One run that can be predicted. `decode` and `prefill` are None where they were not measured."""

    case: Case
    costs: CostModel
    decode: Measured | None
    prefill: Measured | None

    @property
    def run(self) -> Run:
        return self.case.run

    @property
    def measured(self) -> tuple[Measured, ...]:
        return tuple(found for found in (self.decode, self.prefill) if found is not None)

    @property
    def fitted(self) -> tuple[Measured, ...]:
        """What engines' constants are fitted to: not prompts on kernels that nobody would use today."""
        unpacked = facts().get(self.run.id, {}).get("kernels") == "unpacked"
        return tuple(what for what in self.measured if not (unpacked and what is self.prefill))

    @property
    def host(self) -> str:
        """The computer: one with other cards in it, or measured by the same person with the same CPU, is no new one."""
        owner = (self.run.machine or self.run.id).split("_")[0]
        return f"{owner} {self.case.hardware.cpu.model or self.run.machine}"

    @property
    def setup(self) -> tuple[object, ...]:
        """What a user would calibrate for: one machine, engine and model."""
        run = self.run
        return run.machine, self.case.engine, run.model, run.quant, run.attention

    @property
    def settings(self) -> tuple[object, ...]:
        """How the machine was set, as far as it is recorded: a user keeps to the settings that were calibrated."""
        return self.run.threads, self.run.prefill_threads, self.run.sockets_used, self.run.numa

    @property
    def desktop(self) -> bool:
        return (self.case.hardware.cpu.model or "").startswith(DESKTOPS)


def points(path: Path, regimes: Iterable[str] = ("normal",)) -> tuple[list[Point], dict[str, int]]:
    """The points of grade A of these regimes, and how many runs were left out for which reason."""
    found: list[Point] = []
    left: dict[str, int] = defaultdict(int)
    for run in read_runs(path):
        if run.grade != "A" or run.regime not in regimes:
            continue
        try:
            point = point_of(run)
        except MoeplanError as problem:
            left[str(problem).removeprefix(f"{run.id}: ")] += 1
            continue
        if point.measured:
            found.append(point)
    return found, dict(left)


def point_of(run: Run) -> Point:
    """The run as a point; MoeplanError where a fact is missing or its engine is unknown."""
    case = case_of(run)
    if case.engine == "other":
        raise MoeplanError(f"{run.id}: engine: changed versions and systems of papers are not modelled")
    target = case.engine if case.engine in TARGETS else "llama.cpp"
    workload = Workload(batch_size=case.batch_size)
    costs = CostModel(case.profile, case.hardware, workload, target=target, engine=case.engine)
    costs.engine = as_built(costs.engine, run)
    decode = prefill = None
    if run.decode_tokens_per_s is not None:
        seconds = case.batch_size / run.decode_tokens_per_s
        decode = Measured.decode(run.id, costs, case.placement, case.decode_context, seconds)
    if run.prefill_tokens_per_s is not None and case.prefill_chunks:
        tokens = case.batch_size * sum(n for n, _ in case.prefill_chunks)
        seconds = tokens / run.prefill_tokens_per_s
        prefill = Measured.prefill(run.id, costs, case.placement, case.prefill_chunks, seconds)
    return Point(case, costs, decode, prefill)


def as_built(engine: Engine, run: Run) -> Engine:
    """The engine as the run used it: experts that are repacked for the CPU stay there, and others are copied from as
    many tokens as a fact says."""
    copies, fact = engine.copies, facts().get(run.id, {}).get("copies")
    if fact == "never" or re.search(r"\brtr\b", run.placement_text or ""):
        copies = None
    elif fact is not None:
        known = Copies(from_tokens=1) if copies is None else copies
        copies = known.replace(from_tokens=int(fact.split()[1]), per_expert=False)
    return engine.replace(copies=copies)


@cache
def facts() -> dict[str, dict[str, str]]:
    """What is known of runs beyond their record, by id."""
    document = parse_document(FACTS.read_text(encoding="utf-8"), FACTS.name)
    known: dict[str, dict[str, str]] = {}
    for fact in document["facts"]:
        first, last = (int(end[1:]) for end in fact["ids"].split("-"))
        known.update({f"m{number:04d}": fact for number in range(first, last + 1)})
    return known


def grouped(found: Iterable[Point], key: Callable[[Point], object]) -> dict[object, list[Point]]:
    """The points by key, in their order."""
    groups: dict[object, list[Point]] = defaultdict(list)
    for point in found:
        groups[key(point)].append(point)
    return dict(groups)
