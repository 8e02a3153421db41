"""`moeplan calibrate`: measured runs make a machine's description its own. `moeplan.cli` imports this file last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from cost_models import CostModel
from cost_models.calibrate import Calibrated, Measured, calibrate
from cost_models.factors import names, spread
from cost_models.targets import TARGETS
from cost_models.uncertainty import interval
from moeplan import cli
from moeplan.cli import Output, Quant
from profiles import (
    Case,
    Hardware,
    HardwareError,
    MoeplanError,
    Run,
    RunGpu,
    Workload,
    case_of,
    load_hardware,
    read_runs,
)


@cli.app.command("calibrate")
def calibrate_machine(
    runs: Annotated[
        list[Path],
        typer.Argument(help="llama-bench or llama-sweep-bench output, sglang or KTransformers logs, runs as YAML"),
    ],
    hardware: Annotated[
        str | None, typer.Option(help="the machine they ran on, as for solve [default: as the runs describe it]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="the model, where the runs do not say")] = None,
    quant: Quant = None,
    engine: Annotated[
        str | None,
        typer.Option(help="llama.cpp, ik_llama.cpp, ktransformers, sglang-kt or torch, where they do not say"),
    ] = None,
    n_cpu_moe: Annotated[
        int | None, typer.Option(help="layers whose experts were on the CPU, where they do not say")
    ] = None,
    output: Output = None,
) -> None:
    """Fit a machine's description to RUNS measured on it, for solve; says what changed, and how far to trust it."""
    said = {"model": model, "quant": quant, "engine": engine, "n_cpu_moe": n_cpu_moe}
    known: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    machine = None if hardware is None else load_hardware(hardware)
    if machine is not None:
        known |= _facts(machine)
    cases = [_case(run, machine) for path in runs for run in read_runs(path, **known)]
    measured = [what for case in cases for what in _measured(case, machine)]
    before = machine or cases[0].hardware
    found = calibrate(measured)
    after = _noted(found.hardware(before), measured, found)
    out = cli.console()
    out.print(_runs_table(measured, found))
    out.print(_factors_table(found))
    out.print(_trust(measured, found), markup=False, highlight=False)
    cli._save(after, output)


def _case(run: Run, machine: Hardware | None) -> Case:
    try:
        return case_of(run)
    except HardwareError as problem:
        raise problem if machine else HardwareError(f"{problem}; or name the machine with --hardware") from None


def _facts(machine: Hardware) -> dict[str, Any]:
    """The machine as a run would describe it, so that its case has the same devices."""
    gpus = [RunGpu(model=gpu.model or gpu.name, memory_bytes=gpu.memory_bytes) for gpu in machine.gpus]
    return {"gpus": gpus, "cpu": machine.cpu.model, "ram_peak_bytes_per_s": machine.cpu.bandwidth_bytes_per_s}


def _measured(case: Case, machine: Hardware | None) -> list[Measured]:
    """What a run measured, as the cost model sees it. Raises MoeplanError where its placement cannot be entered."""
    target = case.engine if case.engine in TARGETS else "llama.cpp"
    if case.engine == "other":
        raise MoeplanError(f"{case.run.id}: engine: not one that moeplan knows; name the nearest with --engine")
    workload = Workload(batch_size=case.batch_size)
    costs = CostModel(case.profile, machine or case.hardware, workload, target=target, engine=case.engine)
    run: Run = case.run
    found = []
    if run.decode_tokens_per_s is not None:
        seconds = case.batch_size / run.decode_tokens_per_s
        found.append(Measured.decode(f"{run.id} decode", costs, case.placement, case.decode_context, seconds))
    if run.prefill_tokens_per_s is not None and case.prefill_chunks:
        tokens = case.batch_size * sum(n for n, _ in case.prefill_chunks)
        seconds = tokens / run.prefill_tokens_per_s
        found.append(Measured.prefill(f"{run.id} prefill", costs, case.placement, case.prefill_chunks, seconds))
    return found


def _runs_table(measured: Sequence[Measured], found: Calibrated) -> Table:
    table = Table(title="Runs", title_justify="left")
    for heading in ("run", "measured", "predicted before", "off by", "now", "off by"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for what in measured:
        before, now = what.predicted_s(), what.predicted_s(found.logs)
        off = [f"{seconds / what.seconds - 1:+.1%}" for seconds in (before, now)]
        seconds = [f"{value * 1e3:,.2f} ms" for value in (what.seconds, before, now)]
        table.add_row(what.name, seconds[0], seconds[1], off[0], seconds[2], off[1])
    return table


def _factors_table(found: Calibrated) -> Table:
    """Factors with one standard deviation up and down, before and after."""
    table = Table(title="Against what is known of the engine", title_justify="left")
    for heading in ("figure", "times", "known within a factor of", "before"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    deviations = np.sqrt(np.diag(found.covariance))
    for name, log, now, before in zip(names(), found.logs, deviations, spread(), strict=True):
        table.add_row(name, f"{np.exp(log):.2f}", f"{np.exp(now):.2f}", f"{np.exp(before):.2f}")
    return table


def _trust(measured: Sequence[Measured], found: Calibrated) -> str:
    """How far predictions like the runs may be off, widest first said."""
    wide = [high / what.predicted_s(found.logs) - 1 for what in measured for _, high in [interval(what, found)]]
    return (
        f"Plans like these runs are predicted within {max(wide):.0%}, 8 times in 10. launch and sync are seconds, the "
        "others rates. What no run depended on stays as wide as before: measure one that does."
    )


def _noted(machine: Hardware, measured: Sequence[Measured], found: Calibrated) -> Hardware:
    off = [abs(what.predicted_s(found.logs) / what.seconds - 1) for what in measured]
    engines = ", ".join(dict.fromkeys(what.costs.engine.name for what in measured))
    note = f"calibrated to {len(measured)} measurements with {engines}, now off by {np.median(off):.1%} at the median"
    return machine.replace(notes=(*machine.notes, note))
