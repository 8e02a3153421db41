"""`moeplan check`: any runtime's file under our evaluator, beside our plan. `moeplan.cli` imports this file last."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moeplan import cli, tables
from moeplan.checked import Checked, Question, read_file
from moeplan.cli import INFEASIBLE, AsJson, Hub, KvQuant, Mla, Quant
from profiles import InfeasiblePlacement, MoeplanError
from profiles.device_names import on_machine
from profiles.document import read_text, write_text
from runtime_adapter.export import export
from runtime_adapter.read_rules import guess_format
from runtime_adapter.targets.known import TARGETS

Instead = Annotated[int | None, typer.Option(help="instead of the plan's own")]
_MODEL_PATH = re.compile(r"(?:^|\s)(?:-m|--model|--model-path)[\s=]+(\S+)")


@cli.app.command("check")
def check(
    rules: Annotated[Path, typer.Argument(help=f"a plan, or a file for one of {', '.join(TARGETS)}")],
    model: Annotated[str | None, typer.Option(help="instead of the model the plan names")] = None,
    hardware: Annotated[str | None, typer.Option(help="instead of the hardware the plan names")] = None,
    format: Annotated[str | None, typer.Option(help=f"{', '.join(TARGETS)} [default: as it looks]")] = None,
    fix: Annotated[Path | None, typer.Option(help="write our plan to this file, in the same format")] = None,
    quant: Quant = None,
    kv_quant: KvQuant = None,
    mla: Mla = None,
    hub: Hub = False,
    target: Annotated[
        str | None, typer.Option(help="the runtime whose buffers count, instead of the file's own: llama.cpp, …")
    ] = None,
    safety_margin: Annotated[float | None, typer.Option(help="instead of the plan's own")] = None,
    prompt_tokens: Instead = None,
    generated_tokens: Instead = None,
    batch_size: Instead = None,
    context_tokens: Instead = None,
    prefill_chunk: Instead = None,
    time_limit: Annotated[float, typer.Option(help="seconds for our own plan; 0 for none")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Say what RULES puts on each device, which devices overflow and by how many bytes, and what our plan would gain;
    exit 3 if any does."""
    tokens = {
        "prompt_tokens": prompt_tokens, "generated_tokens": generated_tokens, "batch_size": batch_size,
        "context_tokens": context_tokens, "prefill_chunk": prefill_chunk,
    }  # fmt: skip
    changes = {name: value for name, value in tokens.items() if value is not None}
    text = read_text(rules)
    known = format or guess_format(text)
    formats = {"quant": quant, "kv_quant": kv_quant, "mla": mla}
    plan, stored, planned = read_file(text, str(rules), known, model, formats)
    machine = hardware or plan.hardware
    if stored is None or planned is None or machine is None:
        field = "model" if stored is None else "hardware"
        raise MoeplanError(f"{rules}: {field}: missing; add it or pass --{field}")
    question = Question.about(plan, stored, cli._machine(machine), changes, safety_margin, target)
    if known != "moeplan":  # whose text has numbers of GPUs, or names of its own
        plan = plan.renamed(on_machine(plan.devices, [device.name for device in question.machine.devices]))
    ours = replace(question, profile=planned)
    counted = tuple(note for note in stored.notes if note.startswith("bytes by operator"))
    checked = Checked(known, plan, question.judge(plan), counted)
    # A plan that was solved says itself how far it is from the best, unless it is asked about something else.
    unchanged = not changes and (model, hardware, safety_margin, target, fix) == (None,) * 5
    if time_limit > 0 and not (unchanged and plan.bound_s is not None and checked.found.feasible):
        checked = _beside_ours(checked, ours, time_limit)
    if fix is not None:
        _write_fix(checked, ours, fix, text)
    _show(checked, question, f"{rules}: {plan.model or stored.model} on {question.machine.name}", as_json, fix)
    if not checked.found.feasible:
        raise typer.Exit(INFEASIBLE)


def _beside_ours(checked: Checked, question: Question, time_limit: float) -> Checked:
    """With our own plan, or why there is none."""
    try:
        with Console(stderr=True).status("placing it ourselves …"):
            ours = question.best(checked.plan, time_limit)
    except MoeplanError as problem:
        return replace(checked, why_not=f"no plan of ours: {problem}")
    return replace(checked, ours=ours, judged=question.judge(ours))


def _write_fix(checked: Checked, question: Question, path: Path, text: str) -> None:
    """Our plan in the file's own format, at the model's path that the file names."""
    if checked.ours is None:
        raise InfeasiblePlacement(f"{path}: not written: {checked.why_not or 'no plan of ours; raise --time-limit'}")
    named = _MODEL_PATH.search(text)
    model_path = named[1] if named else None
    write_text(path, export(checked.ours, checked.format, model=question.profile, model_path=model_path))


def _show(checked: Checked, question: Question, title: str, as_json: bool, fixed: Path | None) -> None:
    if as_json:
        document = {**checked.document(), "fixed": None if fixed is None else str(fixed)}
        print(json.dumps(document, indent=2))
        return
    out = cli.console()
    found = checked.found
    out.print(tables.plan_table(checked.plan, found.memory, title, found.pools))
    for line in tables.short_lines(found.short_bytes):
        out.print(line, style="red", highlight=False)
    if found.feasible:
        for line in tables.load_lines(found.memory, question.machine):
            out.print(line, style="yellow", highlight=False)
        out.print(f"fits; predicted: {tables.prediction_line(found.prediction)}", highlight=False)
    else:
        places = "devices and pools" if found.pools else "devices"
        there = len(found.memory) + len(found.pools)
        out.print(f"does not fit: {len(found.short_bytes)} of {there} {places} overflow", highlight=False)
    for note in checked.notes:
        out.print(f"note: {note}", highlight=False, markup=False, style="dim")
    if checked.ours is not None and checked.judged is not None:
        rows = {"this file": found, "moeplan": checked.judged}
        out.print(tables.comparison_table("Beside our plan", rows, [checked.plan, checked.ours]))
    if checked.verdict is not None:
        out.print(checked.verdict, highlight=False, markup=False)
    if checked.ours is not None:
        cli._print_notes(out, checked.ours)
    if fixed is not None:
        out.print(f"wrote {fixed}", highlight=False, markup=False)
