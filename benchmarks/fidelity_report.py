"""The page about fidelity: tables, a plot of predicted against measured, and the worst points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from fidelity_fit import CONSTANTS, Logs
from fidelity_points import Point, grouped
from fidelity_score import Guess, Scores, summary
from fidelity_signs import SOURCE
from solver_report import table

MARK = "<!-- worst: written by hand -->"
"""What follows it on the page is kept."""


def write_page(
    page: Path,
    scores: Scores,
    left: Mapping[str, int],
    constants: Sequence[str],
    baselines: Sequence[Sequence[str]],
    signs: str,
) -> None:
    """Tables, plot and `signs`, a sentence; what people wrote on the page after MARK stays."""
    by_hand = page.read_text(encoding="utf-8").partition(MARK)[2] if page.exists() else "\n"
    plot = page.parent / "images" / f"{page.stem}.png"
    draw(scores, plot)
    lines = [
        "# Predictions against published measurements",
        "",
        "Written by `python benchmarks/fidelity.py --out docs/fidelity.md`. Every computer's points are predicted with",
        "engine constants that were fitted to all others. Tier 0 knows data sheets; tier 1 has one measured run of the",
        "same machine, engine, model and settings (threads, sockets, NUMA), each in turn (up to six); tier 2 has that",
        "and the run least like it. Errors are of tokens/s; bias above 0 promises too much; intervals are said to hold",
        "80 times in 100.",
        "",
        *tiers(scores),
        fill(f"With calibrating runs of any settings, decode is off by {any_settings(scores)}.", 120),
        "",
        f"Inside a sweep Kendall's tau is {np.median(scores.taus):.2f} at the median ({len(scores.taus)} sweeps).",
        f"Of {len(scores.regrets)} choices between measured plans of one machine and model, the predicted best loses",
        f"{np.median(scores.regrets):.1%} at the median and {max(scores.regrets):.1%} at most against the best.",
        "",
        "Signs, on 4 x RTX 4090 with 10 to 90 % of Qwen3-Next-80B's experts on the GPUs",
        f"([KTransformers]({SOURCE})):",
        fill(
            f"{signs}. How often its experts are used is not published; another model's rates are taken, so signs "
            "compare and sizes do not.",
            120,
        ),
        "",
        f"![Predicted against measured tokens/s](images/{plot.name})",
        "",
        "## Against simpler rules",
        "",
        *table(("rule", "what", "points", "median", "p90"), baselines, left=2),
        "",
        "## By computer, decode",
        "",
        *by_host(scores),
        "",
        "## Constants",
        "",
        *constants,
        "",
        "## Left out",
        "",
        *table(("reason", "runs"), [(reason, str(n)) for reason, n in sorted(left.items(), key=lambda i: -i[1])]),
        "",
        "## The worst",
        "",
        *worst(scores),
        "",
        MARK,
    ]
    page.write_text("\n".join(lines) + by_hand, encoding="utf-8")


def tiers(scores: Scores) -> list[str]:
    rows = []
    for tier in "012":
        for kind in ("decode", "prefill"):
            for who, which in (("all", None), ("desktop CPUs", True), ("server CPUs", False)):
                found = summary(scores.of(tier, kind, lambda p, w=which: w is None or p.desktop is w))  # type: ignore[misc]
                rows.append((tier, kind, who, *_cells(found)))
    return table(("tier", "what", "machines", "predictions", "median", "p90", "bias", "in the interval"), rows)


def any_settings(scores: Scores) -> str:
    """Decode of tiers 1 and 2 with runs of any settings, in words."""
    found = [(tier, summary(g for g in scores.any_settings if (g.tier, g.kind) == (tier, "decode"))) for tier in "12"]
    return " and ".join(
        f"{_percent(told['median'])} at the median and {_percent(told['p90'])} at the 90th percentile in tier {tier}"
        for tier, told in found
    )


def by_host(scores: Scores) -> list[str]:
    hosts = grouped((guess.point for guess in scores.of("0", "decode")), lambda p: p.host)
    rows = []
    for host in sorted(hosts, key=str):
        cells = [summary(scores.of(tier, "decode", lambda p, h=host: p.host == h)) for tier in "012"]  # type: ignore[misc]
        shown = [_percent(found["median"]) for found in cells]
        rows.append((str(host), str(cells[0]["points"]), *shown, _percent(cells[0]["bias"])))
    return table(("computer", "points", "tier 0", "tier 1", "tier 2", "bias of tier 0"), rows)


def constants_table(left_out: Sequence[Logs]) -> list[str]:
    """Each constant: prior, and the range of its fits without one computer."""
    values = np.exp(np.array(left_out)) if len(left_out) else np.empty((0, len(CONSTANTS)))
    rows = [
        (
            constant.name,
            f"{constant.prior:.3g}",
            f"{np.median(column):.3g}",
            f"{column.min():.3g} to {column.max():.3g}",
        )
        for constant, column in zip(CONSTANTS, values.T, strict=True)
        if len(column)
    ]
    return table(("constant", "before", "fitted, median", "range, one computer left out"), rows)


def worst(scores: Scores, most: int = 10) -> list[str]:
    """The runs that tier 0 is furthest from, one a setup and kind."""
    found: dict[object, Guess] = {}
    for guess in sorted((g for g in scores.guesses if g.tier == "0"), key=lambda g: -_off(g)):
        found.setdefault((*guess.point.setup, guess.kind), guess)
    rows = [
        (
            g.point.run.id,
            str(g.point.run.machine),
            str(g.point.run.model),
            str(g.point.run.quant),
            g.kind,
            _percent(g.error),
        )
        for g in list(found.values())[:most]
    ]
    return table(("run", "machine", "model", "quant", "what", "error"), rows)


def _off(guess: Guess) -> float:
    return abs(float(np.log(guess.predicted_s / guess.measured_s)))


def draw(scores: Scores, path: Path) -> None:
    """Predicted against measured tokens/s, tiers 0 and 1, decode and prefill side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for axis, kind in zip(axes, ("decode", "prefill"), strict=True):
        for tier, color in (("1", "tab:orange"), ("0", "tab:blue")):
            guesses = scores.of(tier, kind)
            measured = [_tokens(g.point, kind) / g.measured_s for g in guesses]
            predicted = [_tokens(g.point, kind) / g.predicted_s for g in guesses]
            axis.scatter(measured, predicted, s=9, alpha=0.5, color=color, label=f"tier {tier}", linewidths=0)
        low, high = axis.get_xlim()[0] or 1, max(axis.get_xlim()[1], axis.get_ylim()[1])
        line = np.geomspace(max(low, min(measured) / 2), high, 2)
        axis.plot(line, line, color="black", linewidth=0.8)
        axis.fill_between(line, line / 1.25, line * 1.25, color="black", alpha=0.08, label="within 25 %")
        axis.set(xscale="log", yscale="log", title=kind, xlabel="measured tokens/s", ylabel="predicted tokens/s")
        axis.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _tokens(point: Point, kind: str) -> int:
    return point.case.batch_size * (1 if kind == "decode" else sum(n for n, _ in point.case.prefill_chunks))


def _cells(found: Mapping[str, float | None]) -> tuple[str, ...]:
    return (str(found["points"]), *(_percent(found[key]) for key in ("median", "p90", "bias", "covered")))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
