"""`moeplan models`, `moeplan gpus`, `moeplan cpus`: what is known by name. `moeplan.cli` imports this file last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from moeplan import cli
from moeplan.cli import AsJson
from profiles import load_profile
from profiles.catalogue import catalogue, gpus_named, near_names, near_parts, sources
from profiles.document import one_line, short
from profiles.errors import HardwareError, ProfileError
from profiles.load_model import profile_presets
from profiles.part_names import plain
from profiles.parts import MEMORY_LINK, CpuPart, GpuPart
from profiles.presets import model_config_preset

Part = TypeVar("Part", GpuPart, CpuPart)
Filter = Annotated[
    str | None, typer.Argument(help="only those with this in their name: 4090, epyc, qwen3", metavar="NAME")
]


@cli.app.command("models")
def models(name: Filter = None, as_json: AsJson = False) -> None:
    """List the models that are known by name, with their parameters and what they weigh as published."""
    wanted = [
        preset for preset in profile_presets() if name is None or plain(name) in plain(preset + _repository(preset))
    ]
    if not wanted:
        raise ProfileError(one_line(f"no model is called {short(name)}, {near_names(str(name), profile_presets())}"))
    with Console(stderr=True).status("reading models …"):
        rows = [_model(preset) for preset in wanted]
    if as_json:
        _print_json("models", rows)
        return
    table = _table(
        _name("model"), "Hugging Face", _number("parameters"), _number("active"), "format", _number("weights")
    )
    for row in rows:
        numbers = (_billions(row["params"]), _billions(row["active_params"]))
        weights = f"{row['weight_bytes'] / 1e9:,.1f} GB"
        table.add_row(row["name"], row["repository"], *numbers, row["quant"] or "measured", weights)
    cli.console().print(table)


@cli.app.command("gpus")
def gpus(name: Filter = None, as_json: AsJson = False) -> None:
    """List the GPUs, and chips with one memory for GPU and CPU, that are known by name."""
    parts = _named(catalogue().gpus, name, "GPU")
    if as_json:
        _print_json("gpus", [_facts(part) for part in parts], sources("gpus"))
        return
    rates = (_number("GB/s"), _number("TFLOP/s"))
    table = _table(_name("GPU"), _number("memory"), *rates, "chip", "to the CPU", "in doubt, remembered")
    for part in parts:
        table.add_row(
            part.name,
            _memory(part),
            f"{part.bandwidth_bytes_per_s / 1e9:,.0f}",
            f"{_products(part) / 1e12:,.0f}",
            " ".join(filter(None, (part.arch, part.compute_capability or part.llvm_target))),
            "the same memory" if part.host_link == MEMORY_LINK else part.host_link,
            _open(part),
        )
    cli.console().print(table)


@cli.app.command("cpus")
def cpus(name: Filter = None, as_json: AsJson = False) -> None:
    """List the CPUs that are known by name, figures of one socket."""
    parts = _named(catalogue().cpus, name, "CPU")
    if as_json:
        _print_json("cpus", [_facts(part) for part in parts], sources("cpus"))
        return
    table = _table(
        _name("CPU"), _number("cores"), "memory", _number("GB/s"), "widest instructions", "in doubt, remembered"
    )
    for part in parts:
        rate = f"{part.peak_bytes_per_s / 1e9:,.1f}"
        table.add_row(part.name, str(part.cores), part.memory_text, rate, part.isa[-1], _open(part))
    cli.console().print(table)


def _repository(preset: str) -> str:
    config = model_config_preset(preset)
    return "" if config is None else str(config["_source"])


def _model(preset: str) -> dict[str, Any]:
    found = load_profile(preset)
    return {
        "name": preset,
        "repository": _repository(preset) or None,
        "params": found.params,
        "active_params": found.active_params,
        "quant": found.quant,
        "weight_bytes": found.weight_bytes,
    }


def _named(parts: Sequence[Part], name: str | None, kind: Any) -> list[Part]:
    """Those whose name, aliases or driver's names have `name` in them, or that it means in full."""
    if name is None:
        return list(parts)
    meant = gpus_named(name) if kind == "GPU" else ()
    found = [part for part in parts if part in meant or any(plain(name) in plain(known) for known in _names(part))]
    if not plain(name) or not found:
        raise HardwareError(
            one_line(f"no {kind} is called {short(name)}{near_parts(kind, name)}; leave the name out for all")
        )
    return found


def _names(part: GpuPart | CpuPart) -> tuple[str, ...]:
    return (part.name, *part.aliases, *(part.driver_names if isinstance(part, GpuPart) else ()))


def _facts(part: GpuPart | CpuPart) -> dict[str, Any]:
    """An entry of the catalogue as a document, with what follows from it."""
    facts = part.model_dump(mode="json", exclude_none=True, by_alias=True)
    if isinstance(part, GpuPart):
        return {**facts, "maker": part.maker}
    computed = {"peak_bytes_per_s": part.peak_bytes_per_s, "clock_hz": part.clock_hz, "flops_per_s": part.flops_per_s}
    return {**facts, **computed, "flops_source": part.flops_source, "maker": part.maker}


def _memory(part: GpuPart) -> str:
    if part.unified is None:
        return f"{part.memory_bytes / 1e9:,.1f} GB"
    return ", ".join(f"{size / 1e9:g}" for size in part.unified.sizes) + " GB"


def _products(part: GpuPart) -> float:
    rates = part.flops_per_s
    return next((rates[kind] for kind in ("bf16", "fp16", "fp32") if kind in rates), max(rates.values()))


def _open(part: GpuPart | CpuPart) -> str:
    """What of a part is not sure, in few words."""
    return ", ".join([*(["doubts"] if part.doubts else []), *(field.split("_")[0] for field in part.unverified)])


def _billions(number: int | None) -> str:
    return "" if number is None else f"{number / 1e9:,.1f} B"


def _print_json(kind: str, rows: list[dict[str, Any]], where_from: dict[str, str] | None = None) -> None:
    document = {"schema": 1, **({"sources": where_from} if where_from else {}), kind: rows}
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _table(*columns: str | Column) -> Table:
    table = Table(*columns, box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    return table


def _name(kind: str) -> Column:
    return Column(kind, no_wrap=True)


def _number(name: str) -> Column:
    return Column(name, justify="right", no_wrap=True)
