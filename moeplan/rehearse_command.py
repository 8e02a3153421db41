"""`moeplan dry-run` and `moeplan rehearse`: a plan is tried before it is trusted. `moeplan.cli` imports this last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from moeplan import cli
from moeplan.cli import AsJson, BatchSize, GeneratedTokens, Hub, Model, Output, PrefillChunk, PromptTokens
from profiles import Hardware, MoeplanError, Placement, load_hardware, load_placement
from profiles.device_names import gpu_numbers
from profiles.document import read_document
from profiles.load_model import with_hub_config
from profiles.presets import model_config_preset
from profiles.units import gb
from runtime_adapter import DryRun, dry_run

LARGEST_RANDOM_SHARE = 0.5
"""Of the free RAM, what a model of random weights may take: while it is moved, part of it is there twice."""


@cli.app.command("dry-run")
def try_dry(
    plan: Annotated[Path, typer.Argument(help="a plan document")],
    model: Annotated[str, typer.Argument(help="a config.json, or a preset's name")],
    prompt_tokens: PromptTokens = 512,
    new_tokens: Annotated[int, typer.Option(help="tokens to decode after the prompt")] = 1,
    batch_size: BatchSize = 1,
    prefill_chunk: PrefillChunk = 512,
    hub: Hub = False,
    as_json: AsJson = False,
) -> None:
    """Run MODEL's own forward under PLAN on devices that hold no bytes, and count what would be where."""
    placement, config = load_placement(plan), _config(with_hub_config(model))
    with Console(stderr=True).status(f"a dry run of {model} …"):
        found = dry_run(
            placement, config, prompt_tokens, new_tokens, batch_size=batch_size, prefill_chunk=prefill_chunk
        )
    if as_json:
        print(json.dumps(_dry_document(found), indent=2))
        return
    out = cli.console()
    out.print(_dry_table(found, placement), highlight=False)
    moved = {pair: n for phase in found.phases[-1:] for pair, n in phase.moved_bytes.items()}
    said = ", ".join(f"{a} to {b} {n / 1e3:.1f} kB" for (a, b), n in sorted(moved.items()))
    out.print(f"moved in the last step: {said or 'nothing'}", highlight=False)


def _config(model: str) -> dict[str, Any]:
    """A model's config.json as plain values."""
    preset = model_config_preset(model)
    if preset is not None:
        return dict(preset)
    path = Path(model) / "config.json" if Path(model).is_dir() else Path(model)
    config = read_document(path)
    if not isinstance(config, dict):
        raise MoeplanError(f"{path}: is not a model's config; give a config.json or a preset's name")
    return config


def _dry_document(found: DryRun) -> dict[str, Any]:
    return {
        "phases": [
            {
                "name": phase.name,
                "tokens": phase.tokens,
                "context_tokens": phase.context_tokens,
                "devices": {device: vars(held) for device, held in phase.devices.items()},
                "moved_bytes": [{"from": a, "to": b, "bytes": n} for (a, b), n in sorted(phase.moved_bytes.items())],
            }
            for phase in found.phases
        ]
    }


def _dry_table(found: DryRun, plan: Placement) -> Table:
    """Bytes by device, the most of any phase, and whether the plan left room for them."""
    table = Table(title=f"dry run: {found.phases[0].name} to {found.phases[-1].name}")
    for column in ("device", "weights", "KV", "workspace", "peak", "usable in the plan"):
        table.add_column(column, justify="left" if column == "device" else "right")
    for device in found.weights_bytes:
        usable = plan.memory[device].usable_bytes if plan.memory and device in plan.memory else None
        peak = found.peak_bytes[device]
        over = usable is not None and peak > usable
        cells = (found.weights_bytes[device], found.kv_bytes[device], found.workspace_bytes[device], peak)
        room = "?" if usable is None else gb(usable) + (" EXCEEDED" if over else "")
        table.add_row(device, *map(gb, cells), room, style="red" if over else None)
    return table


@cli.app.command("rehearse")
def rehearse_plan(
    model: Model,
    hardware: Annotated[str, typer.Argument(help="the machine, as for solve; its CPU is this one")] = "local",
    virtual: Annotated[
        bool,
        typer.Option("--virtual", help="the GPUs are stand-ins on the CPU: bytes and moves are real, times are not"),
    ] = False,
    prompt_tokens: PromptTokens = 128,
    generated_tokens: GeneratedTokens = 32,
    batch_size: BatchSize = 1,
    prefill_chunk: PrefillChunk = 128,
    rivals: Annotated[int, typer.Option(help="other runtimes' rules to run beside the plan")] = 5,
    repeats: Annotated[int, typer.Option(help="runs of each step; medians are kept")] = 5,
    rounds: Annotated[int, typer.Option(help="times that all is measured in turn, on machines of changing speed")] = 1,
    time_limit: Annotated[float, typer.Option(help="seconds for solving")] = 10.0,
    seed: Annotated[int, typer.Option(help="of random weights, tokens and the search")] = 0,
    hub: Hub = False,
    output: Output = None,
) -> None:
    """Measure MODEL here, solve, apply, measure again: predicted beside measured. A config.json gets random weights."""
    from runtime_adapter.measuring.live_model import live_model
    from runtime_adapter.rehearse import rehearse

    machine, live = load_hardware(hardware), live_model(with_hub_config(model), LARGEST_RANDOM_SHARE, seed)
    request = cli.workload(prompt_tokens, generated_tokens, batch_size, None, prefill_chunk)
    with Console(stderr=True).status("measuring …") as status:
        found = rehearse(
            live,
            machine,
            request,
            devices=_virtual(machine) if virtual else None,
            most_rivals=rivals,
            repeats=repeats,
            rounds=rounds,
            seed=seed,
            told=lambda what: status.update(f"{what} …"),
            time_limit=time_limit,
        )
    out = cli.console()
    out.print(_rehearsed(found.table), highlight=False)
    for note in (note for note in found.profile.notes if note.startswith("measured")):
        out.print(note, highlight=False)
    cli._save(found.profile, output)


def _virtual(machine: Hardware) -> dict[str, str]:
    from runtime_adapter.virtual_gpus import NAME

    return {name: f"{NAME}:{number}" for name, number in gpu_numbers(gpu.name for gpu in machine.gpus).items()}


def _rehearsed(rows: Any) -> Table:
    table = Table(title="predicted and measured")
    table.add_column("placement")
    for column in ("layers with experts on the CPU", "prefill s", "measured", "ratio", "step ms", "measured", "ratio"):
        table.add_column(column, justify="right")
    for row in rows.to_dict("records"):
        table.add_row(
            row["plan"],
            str(row["experts_on_cpu"]),
            f"{row['predicted_prefill_s']:.3f}",
            f"{row['measured_prefill_s']:.3f}",
            f"{row['prefill_ratio']:.2f}",
            f"{row['predicted_decode_step_s'] * 1e3:.1f}",
            f"{row['measured_decode_step_s'] * 1e3:.1f}",
            f"{row['decode_ratio']:.2f}",
        )
    return table
