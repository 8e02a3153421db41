"""A plan as one HTML page: where everything is, how full devices are, where time goes, and what other rules do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cost_models import CostModel
from cost_models.uncertainty import plan_interval
from moeplan import palette
from moeplan.html_page import html_table, html_text, plan_data, write_page
from moeplan.tables import proof_line, short_lines
from profiles.layer_map import device_colours, device_order
from profiles.placement import Placement
from profiles.units import gb
from solver import Evaluation
from solver.breakdown import Breakdown, breakdown
from solver.compare import Comparison, beside_rules
from solver.evaluate import judge
from solver.solve import costs_of


def write_report(
    plan: Placement, path: str | Path, *, profile: Any = None, hardware: Any = None, workload: Any = None
) -> None:
    """Write the page to `path`, atomically. The plan is evaluated anew, whether it fits or not.

    What is left out is taken from the plan document, as `evaluate` does. Raises MoeplanError where that does not
    describe the model or the machine, where plotly is missing, or where the file cannot be written.

    >>> from moeplan import solve
    >>> write_report(solve("qwen3-30b-a3b", "1xRTX4090,ram=96GB"), "report.html")  # doctest: +SKIP
    """
    costs = costs_of(plan, profile, hardware, workload)
    found = judge(plan, costs, plan.objective or "request")
    shown, times, beside = (
        _evaluated(plan, costs, found),
        breakdown(plan, costs),
        beside_rules(plan, costs, name="this plan"),
    )
    title = f"{shown.model} on {shown.hardware}"
    write_page(path, "report", title, _texts(title, shown, found, times, beside), _data(shown, times, beside))


def _evaluated(plan: Placement, costs: CostModel, found: Evaluation) -> Placement:
    """The plan with what holds under these costs."""
    told = found.prediction
    interval = plan_interval(plan, costs, told.prefill_s, told.decode_step_s)
    return plan.replace(
        model=costs.profile.model,
        hardware=costs.hardware.name,
        workload=costs.workload,
        memory=found.memory,
        pools=found.pools or None,
        prediction=told.replace(interval=interval),
        objective=found.objective,
        objective_s=found.objective_s,
    )


def _data(plan: Placement, times: Breakdown, beside: Comparison) -> dict[str, Any]:
    return {
        "plan": plan_data(plan),
        "colours": device_colours(plan.memory or plan.devices),
        "parts": list(palette.MEMORY.items()),
        "what": list(palette.TIME.items()),
        "places": times.places(),
        "prefill": [[*key, seconds] for key, seconds in times.prefill.items()],
        "decode": [[*key, seconds] for key, seconds in times.decode.items()],
        "objective": plan.objective,
        "peers": [
            [texts[0], row.objective_s]
            for texts, row in zip(beside.text_rows(), (beside.ours, *beside.rows), strict=True)
        ],
    }


def _texts(title: str, plan: Placement, found: Evaluation, times: Breakdown, beside: Comparison) -> dict[str, str]:
    """What stands in the page's places, as HTML."""
    notes = "".join(f"<li>{html_text(note)}</li>" for note in plan.notes or ())
    return {
        "heading": html_text(title),
        "proof": html_text(_proof(plan, found)),
        "mood": "lead" if found.feasible else "bad",
        "figures": "".join(f"<div><dt>{html_text(a)}</dt><dd>{html_text(b)}</dd></div>" for a, b in _figures(plan)),
        "devices": html_table(["device", "holds"], [row[:2] for row in plan.device_rows()], (0, 1)),
        "memory": html_table(
            ["device", "weights", "KV cache", "workspace", "used", "usable", "free"], _memory_rows(plan)
        ),
        "prefill": _duration(sum(times.prefill.values())),
        "decode": _duration(sum(times.decode.values())),
        "times": html_table(["what", "where", "prompt", "one token"], _time_rows(times), (0, 1)),
        "peers": html_table(beside.text_columns(), beside.text_rows()),
        "remarks": "".join(f'<p class="soft">{html_text(note)}</p>' for note in beside.notes()),
        "notes": f"<section><h2>Notes</h2><ul>{notes}</ul></section>" if notes else "",
        "plan": html_text(plan.to_yaml()),
    }


def _proof(plan: Placement, found: Evaluation) -> str:
    if not found.feasible:
        return "does not fit: " + "; ".join(short_lines(found.short_bytes))
    proved = None not in (plan.bound_s, plan.gap, plan.solve_s)
    return proof_line(plan) if proved else "fits; how good it is, nobody has proved"


def _figures(plan: Placement) -> Iterator[tuple[str, str]]:
    """The headline: what is predicted for which request."""
    told, work = plan.prediction, plan.workload
    assert told is not None
    assert work is not None
    yield "tokens/s", f"{told.tokens_per_s:.1f}"
    if told.interval is not None:
        batch = told.tokens_per_s * told.decode_step_s
        low, high = (batch / seconds for seconds in reversed(told.interval.decode_step_s))
        yield f"{told.interval.level:.0%} sure", f"{low:.1f} to {high:.1f}"
    yield "prompt", _duration(told.prefill_s)
    yield "one token", _duration(told.decode_step_s)
    yield "tokens in + out", f"{work.prompt_tokens:,} + {work.generated_tokens:,}"
    yield "context tokens", f"{work.context_tokens:,}"
    if work.batch_size > 1:
        yield "batch", f"{work.batch_size:,}"
    on_cpu = sum("cpu" in layer.experts for layer in plan.layers)
    yield "experts on CPU", f"{on_cpu} of {sum(bool(layer.experts) for layer in plan.layers)}"


def _memory_rows(plan: Placement) -> Iterator[list[str]]:
    memory = plan.memory or {}
    for device in device_order(memory):
        held = memory[device]
        parts = (held.weights_bytes, held.kv_bytes, held.workspace_bytes)
        yield [device, *map(gb, (*parts, held.used_bytes, held.usable_bytes, held.free_bytes))]
    for name, shared in (plan.pools or {}).items():
        yield [name, *[""] * 3, *map(gb, (shared.used_bytes, shared.usable_bytes, shared.free_bytes))]


def _time_rows(times: Breakdown) -> Iterator[list[str]]:
    for key in dict.fromkeys([*times.decode, *times.prefill]):
        yield [*key, *(_duration(step[key]) if key in step else "" for step in (times.prefill, times.decode))]


def _duration(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"
