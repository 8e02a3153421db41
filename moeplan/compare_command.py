"""`moeplan compare`: the plan beside other runtimes' rules. `moeplan.cli` imports this file last, to register it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from moeplan import cli
from moeplan.cli import (
    Activations,
    AsJson,
    BatchSize,
    ContextTokens,
    GeneratedTokens,
    Hub,
    KvQuant,
    Machine,
    Mla,
    Model,
    PrefillChunk,
    PromptTokens,
    Quant,
    SafetyMargin,
)
from moeplan.compare_table import comparison
from moeplan.tables import proof_line
from profiles import InfeasiblePlacement, load_profile
from solver.compare import compare as compare_rules


@cli.app.command("compare")
def compare(
    model: Model,
    hardware: Machine,
    quant: Quant = None,
    kv_quant: KvQuant = None,
    mla: Mla = None,
    hub: Hub = False,
    activations: Activations = None,
    prompt_tokens: PromptTokens = 512,
    generated_tokens: GeneratedTokens = 128,
    batch_size: BatchSize = 1,
    context_tokens: ContextTokens = None,
    prefill_chunk: PrefillChunk = 512,
    safety_margin: SafetyMargin = 0.10,
    granularity: Annotated[str, typer.Option(help="of the plan: layer, module or finer, as for solve")] = "module",
    objective: Annotated[str, typer.Option(help="request, decode, prefill or throughput")] = "request",
    target: Annotated[str, typer.Option(help="the runtime to follow the plan, as for solve")] = "torch",
    pin: Annotated[list[str] | None, typer.Option(help="for the plan, as for solve")] = None,
    time_limit: Annotated[float, typer.Option(help="seconds")] = 10.0,
    relative_gap: Annotated[float, typer.Option(help="stop when proved this close to the best")] = 0.0,
    workers: Annotated[int | None, typer.Option(help="threads [default: 1]")] = None,
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    as_json: AsJson = False,
) -> None:
    """Place MODEL on HARDWARE, and show the plan beside what other runtimes' rules do with the same bytes."""
    options: dict[str, Any] = {
        "safety_margin": safety_margin, "granularity": granularity, "objective": objective, "target": target,
        "pins": cli._pins(pin or []), "time_limit": time_limit, "relative_gap": relative_gap, "workers": workers,
        "seed": seed,
    }  # fmt: skip
    request = cli.workload(prompt_tokens, generated_tokens, batch_size, context_tokens, prefill_chunk)
    profile = cli._used_as(load_profile(model, quant, kv_quant=kv_quant, mla=mla), activations)
    machine = cli._machine(hardware)
    try:
        with Console(stderr=True).status(f"placing {profile.model} on {machine.name} …"):
            found = compare_rules(profile, machine, request, **options)
    except InfeasiblePlacement as problem:
        cli._stop_infeasible(problem, as_json)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    out = cli.console()
    for part in comparison(found, out.width):
        out.print(part, highlight=False)
    out.print(f"the plan is {proof_line(found.plan)}", highlight=False)
