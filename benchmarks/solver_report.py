"""The tables and the plot of benchmarks/solver_benchmark.py, from rows of benchmarks/solver_measure.py, as markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

from instances import CLASSES, SMALL
from solver_measure import (
    NAIVE_WORKERS,
    RIVAL_GAP,
    SIZE_GAP,
    SIZE_GPUS,
    SIZE_LAYERS,
    SIZE_SECONDS,
    SUITE_GAP,
    SUITE_SECONDS,
    PeerRow,
    RivalRow,
    Row,
    SizeRow,
    StoryRow,
    SuiteRow,
    within,
)

PLOT = Path(__file__).resolve().parents[1] / "docs" / "images" / "solver_size.png"
IN_TIME = {"module": 1.0, "expert": 2.0}
"""Seconds within which the suite's gap is claimed."""
PEERS = ("split evenly, experts spilled", "llama.cpp --fit", "accelerate balanced")
"""Rules shown first; a rule that is not there is left out."""
TIE = 1e-3
UNKNOWN = "Not known to this version of the solver."
AnyRow = TypeVar("AnyRow", bound=Row)


# ---- words -----------------------------------------------------------------------------------------------------


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """A markdown table, the first `left` columns aligned left."""
    marks = ["---" if i < left else "--:" for i in range(len(headings))]
    return [f"| {' | '.join(cells)} |" for cells in (headings, marks, *rows)] + [""]


def percent(share: float) -> str:
    return "0" if share == 0 else f"{share:.3%}" if abs(share) < 0.1 else f"{share:.1%}"


def took(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.2f} s"


def of(rows: Iterable[Row], kind: type[AnyRow]) -> list[AnyRow]:
    return [row for row in rows if isinstance(row, kind)]


def labels(rows: Sequence[SuiteRow | RivalRow | PeerRow]) -> list[str]:
    """Classes that have rows, in the suite's order, any others first."""
    found = {row.label for row in rows}
    return [*sorted(found.difference(CLASSES)), *(label for label in CLASSES if label in found)]


# ---- suite -----------------------------------------------------------------------------------------------------


def suite_section(rows: Sequence[Row]) -> list[str]:
    lines = []
    for story in of(rows, StoryRow):
        lines.append(
            f"{story.name}, `relative_gap=0`: **{story.status}** in {took(story.seconds)} "
            f"(median; slowest run {took(story.slowest_seconds)})."
        )
    for granularity, gap in SUITE_GAP.items():
        here = [row for row in of(rows, SuiteRow) if row.granularity == granularity]
        lines += ["", f"### {granularity}", ""]
        lines += suite_tables(here, granularity, gap) if here else [UNKNOWN]
    return lines


def suite_tables(rows: Sequence[SuiteRow], granularity: str, gap: float) -> list[str]:
    """Limits of each call: 5 s, and the gap that is claimed."""
    limit = IN_TIME[granularity]

    def in_time(some: Sequence[SuiteRow]) -> str:
        return f"{sum(within(row.gap, gap) and row.seconds <= limit for row in some)} of {len(some)}"

    worst = max(rows, key=lambda row: row.gap)
    busy = 1 - sum(row.cpu_seconds for row in rows) / sum(row.seconds for row in rows)
    lines = [
        f"`time_limit={SUITE_SECONDS:g}, relative_gap={gap:g}`. **{in_time(rows)} proved to {gap:.1%} within "
        f"{limit:g} s**, {sum(within(row.gap, gap) for row in rows)} in the end. "
        f"Worst gap {percent(worst.gap)} ({worst.name}); "
        f"median {took(median(row.seconds for row in rows))}, slowest {took(max(row.seconds for row in rows))}. "
        f"The process was kept waiting {max(0.0, busy):.0%} of the time.",
        "",
    ]
    groups = [(label, [row for row in rows if row.label == label]) for label in labels(rows)]
    lines += table(
        ["class", f"{gap:.1%} within {limit:g} s", "median", "slowest", "worst gap"],
        [
            (
                label,
                in_time(some),
                took(median(row.seconds for row in some)),
                took(max(row.seconds for row in some)),
                percent(max(row.gap for row in some)),
            )
            for label, some in groups
        ],
    )
    return lines + table(
        ["instance", "class", "layers", "kinds of layers", "time", "gap", "status"],
        [
            (r.name, r.label, str(r.layers), str(r.layer_classes), took(r.seconds), percent(r.gap), r.status)
            for _, some in groups
            for r in some
        ],
        left=2,
    )


# ---- rivals ----------------------------------------------------------------------------------------------------


Ratio = tuple[float, str]
"""A ratio of times and "", ">" or "<" where it is only a bound."""


def ratio(row: RivalRow, seconds: float, reached: bool) -> Ratio | None:
    """The rival's time over ours; None where neither came to the gap."""
    ours = within(row.gap, RIVAL_GAP)
    if not reached and not ours:
        return None
    mark = "" if reached and ours else ">" if ours else "<"
    return (seconds if reached else row.limit_seconds) / (row.seconds if ours else row.limit_seconds), mark


def shown(found: Ratio | None) -> str:
    return "both open" if found is None else f"{found[1]}{found[0]:.3g}"


def middle(found: Sequence[Ratio | None]) -> str:
    """A bound for the median from below: what is only known to be less than something counts as 0."""
    known = [0.0 if mark == "<" else value for value, mark in (one for one in found if one is not None)]
    if not known:
        return "none"
    at_least = any(one is not None and one[1] for one in found)
    return f"{'at least ' if at_least else ''}{median(known):.3g} ({len(known)} instances)"


def rivals_section(rows: Sequence[Row]) -> list[str]:
    found = of(rows, RivalRow)
    reached = {row.name: (within(row.naive_gap, RIVAL_GAP), within(row.scip_gap, RIVAL_GAP)) for row in found}
    products = {row.name: ratio(row, row.naive_seconds, reached[row.name][0]) for row in found}
    counts = {row.name: ratio(row, row.scip_seconds, reached[row.name][1]) for row in found}
    own = {row.name: ratio(row, row.scip_own_seconds, row.scip_stopped) for row in found}
    done = [row for row in found if reached[row.name][0]]
    lines = [
        f"Seconds to a gap of {RIVAL_GAP:.1%}, limit {found[0].limit_seconds:g} s: {len(SMALL)} small instances "
        "(chosen by hand so that the naive model has a chance), then the first of the suite. Naive: a boolean per "
        f"block and device and one per product of two, CP-SAT with {NAIVE_WORKERS} workers. SCIP: counts per class of "
        "layers and pair of devices, one thread, loops apart from the route allowed; where the plan laid out from them "
        "is not within the gap, a second search for a tenth of it. Ours: one worker. Both rivals are in "
        "`benchmarks/rivals.py`; a gap beside a time is what was left at the end.",
        "",
        f"- naive / ours, median: **{middle(list(products.values()))}**; the naive model finishes {len(done)} of "
        f"{len(found)}; of those, median {middle([products[row.name] for row in done])}.",
        f"- SCIP's counts / ours, to a plan within the gap, median: **{middle(list(counts.values()))}**; SCIP comes to "
        f"such a plan in {sum(scip for _, scip in reached.values())} of {len(found)}.",
        f"- SCIP's counts / ours, to the gap of SCIP's own model, whose counts may not lie in order at that price: "
        f"median {middle(list(own.values()))}.",
        "",
    ]
    return lines + table(
        ["instance", "class", "ours", "naive", "SCIP", "naive / ours", "SCIP / ours"],
        [
            (
                row.name,
                row.label,
                outcome(row.seconds, row.gap),
                outcome(row.naive_seconds, row.naive_gap),
                outcome(row.scip_seconds, row.scip_gap),
                shown(products[row.name]),
                shown(counts[row.name]),
            )
            for row in found
        ],
        left=2,
    )


def outcome(seconds: float, gap: float) -> str:
    return (
        took(seconds)
        if gap <= RIVAL_GAP
        else f"{took(seconds)}, no plan"
        if gap == 1
        else f"{took(seconds)}, {gap:.2%}"
    )


# ---- baselines -------------------------------------------------------------------------------------------------


def baselines_section(rows: Sequence[Row]) -> list[str]:
    lines = [
        "Predicted seconds of a rule's plan over those of ours, less 1, for one request; `solver.evaluate` judges "
        f"both. A rule whose plan does not fit has no gain; within {TIE:.1%} is a tie. Rules that split a layer's "
        "experts are compared with our plans that may. Predicted, not measured on such machines.",
        "",
        "Cells of the first tables: median gain (ties, plans that do not fit, of all).",
    ]
    for granularity in SUITE_GAP:
        here = [row for row in of(rows, PeerRow) if row.granularity == granularity]
        lines += ["", f"### {granularity}", ""]
        lines += baselines_tables(here) if here else [UNKNOWN]
    return lines


def baselines_tables(found: Sequence[PeerRow]) -> list[str]:
    rules = list(dict.fromkeys(rule for row in found for rule in row.rules_s))
    shown_first = [rule for rule in PEERS if rule in rules]
    best = "best of all rules"
    gains = {(row.name, rule): gain(row, row.rules_s.get(rule)) for row in found for rule in rules}
    gains |= {(row.name, best): gain(row, min(fitting(row).values(), default=None)) for row in found}
    lines: list[str] = []
    for rules_of in ([*shown_first, best], [rule for rule in rules if rule not in shown_first]):
        columns = [(label, [r for r in found if r.label == label]) for label in labels(found)] + [("all", found)]
        lines += table(
            ["rule", *(label for label, _ in columns)],
            [(rule, *(verdict([gains[r.name, rule] for r in some]) for _, some in columns)) for rule in rules_of],
        )
    return lines + table(
        ["instance", "class", *shown_first, "best rule", "its gain"],
        [
            (
                row.name,
                row.label,
                *(gain_shown(gains[row.name, rule]) for rule in shown_first),
                min(fitting(row), key=lambda rule: fitting(row)[rule], default="none"),
                gain_shown(gains[row.name, best]),
            )
            for label in labels(found)
            for row in found
            if row.label == label
        ],
        left=2,
    )


def fitting(row: PeerRow) -> dict[str, float]:
    return {rule: seconds for rule, seconds in row.rules_s.items() if seconds is not None}


def gain(row: PeerRow, seconds: float | None) -> float | None:
    return None if seconds is None else seconds / row.plan_s - 1


def gain_shown(value: float | None) -> str:
    return "does not fit" if value is None else "tie" if abs(value) <= TIE else f"{value:+.1%}"


def verdict(gains: Sequence[float | None]) -> str:
    known = [value for value in gains if value is not None]
    ties = sum(abs(value) <= TIE for value in known)
    counts = f"({ties}, {len(gains) - len(known)}, {len(gains)})"
    return f"{gain_shown(median(known))} {counts}" if known else f"never fits {counts}"


# ---- size ------------------------------------------------------------------------------------------------------


def size_section(rows: Sequence[Row]) -> list[str]:
    found = of(rows, SizeRow)
    plot(found)
    lines = [
        f"`time_limit={SIZE_SECONDS:g}, relative_gap={SIZE_GAP:g}`. Synthetic models on GPUs of eight kinds in four "
        "hosts. A tenth of the experts exceeds the GPUs, or less where a layer's experts would not fit on the smallest "
        "card (`synthetic` and `cluster` in `benchmarks/instances.py`).",
        "",
    ]
    lines += table(
        ["layers", "GPUs", "time", "gap", "status"],
        [(str(row.layers), str(row.gpus), took(row.seconds), percent(row.gap), row.status) for row in found],
        left=0,
    )
    return [*lines, f"![Time and gap against layers and GPUs](images/{PLOT.name})"]


def plot(rows: Sequence[SizeRow]) -> None:
    """Write time and gap against GPUs, a line for each number of layers, to `PLOT`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for layers in SIZE_LAYERS:
        line = sorted((row.gpus, row.seconds, 100 * row.gap) for row in rows if row.layers == layers)
        left.plot([gpus for gpus, _, _ in line], [seconds for _, seconds, _ in line], "o-", label=f"{layers} layers")
        right.plot([gpus for gpus, _, _ in line], [gap for _, _, gap in line], "o-", label=f"{layers} layers")
    left.set(title="seconds", xlabel="GPUs", xscale="log", yscale="log", xticks=SIZE_GPUS, xticklabels=SIZE_GPUS)
    right.set(title="gap in percent", xlabel="GPUs", xscale="log", xticks=SIZE_GPUS, xticklabels=SIZE_GPUS)
    left.yaxis.set_major_formatter("{x:g}")
    for axes in (left, right):
        axes.minorticks_off()
        axes.legend()
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=150, metadata={"Software": None})
    plt.close(figure)


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Row]], list[str]]]] = {
    "suite": ("Proofs on real instances", suite_section),
    "rivals": ("Against other formulations", rivals_section),
    "baselines": ("Gain over rules", baselines_section),
    "size": ("Size", size_section),
}
"""Of each part its title and what writes it."""
