"""The `moeplan` command. Exit status: 0 fine, 1 bad input, 2 usage, 3 proven infeasible, 4 no plan found in time."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from moeplan import demo as story
from moeplan import tables
from profiles import (
    Hardware,
    InfeasiblePlacement,
    ModelProfile,
    MoeplanError,
    Placement,
    Workload,
    load_hardware,
    load_profile,
)
from profiles.document import Document, one_line, short
from profiles.hub.allow import NeedsHub, allowed
from profiles.units import parse_count
from runtime_adapter import read_activations
from solver import solve as solve_plan
from solver.rules import FINEST

BAD_INPUT, INFEASIBLE, OUT_OF_TIME = 1, 3, 4

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Plans where the layers and experts of a Mixture-of-Experts model live on several GPUs and a CPU.",
)

Model = Annotated[
    str,
    typer.Argument(
        help="a preset, a .gguf, safetensors or their folder, a config.json, a profile YAML; with --hub owner/name"
    ),
]


def _allow_hub(context: typer.Context, hub: bool) -> bool:
    """Until the command ends, models may be looked up on the hub; a sign of life while something is fetched."""
    if hub:
        status = Console(stderr=True).status("")

        def told(what: str) -> None:
            if not what:
                status.stop()
                return
            status.update(f"{what} …")
            status.start()

        context.with_resource(allowed(told))
    return hub


Hub = Annotated[
    bool,
    typer.Option(
        "--hub",
        callback=_allow_hub,
        help="MODEL may be owner/name[@revision][:Q4_K_M or file] of Hugging Face: config and headers are fetched",
    ),
]
Machine = Annotated[str, typer.Argument(help="a preset, a YAML or a phrase such as 8xL40-46GB,ram=512GB")]
Quant = Annotated[
    str | None,
    typer.Option(help="weight format where the file does not say: bf16, fp8, q4_k_m, gpu=marlin,cpu=q8_0, …"),
]
KvQuant = Annotated[
    str | None, typer.Option(help="type of the KV cache: fp16, fp8, q8_0, q4_0, … [default: the model's]")
]
Activations = Annotated[
    Path | None, typer.Option(help="how often each expert was used: a .pt file that sglang's recorder wrote")
]
Mla = Annotated[str | None, typer.Option(help="cache of latent attention: compressed or expanded")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="write to this file")]


def _count(text: str | int) -> int:
    """4096, or 4k which is the same. Whole numbers pass as they are: the workload says which of them may be."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,30}", str(text)) else parse_count(text)


_tokens: dict[str, Any] = {"parser": _count, "metavar": "TOKENS"}
PromptTokens = Annotated[int, typer.Option(help="prompt tokens of a request", **_tokens)]
GeneratedTokens = Annotated[int, typer.Option(help="generated tokens of a request", **_tokens)]
BatchSize = Annotated[int, typer.Option(help="sequences at a time")]
ContextTokens = Annotated[
    int | None,
    typer.Option(help="tokens a sequence to reserve KV for, 32768 or 32k [default: prompt + generated]", **_tokens),
]
PrefillChunk = Annotated[int, typer.Option(help="tokens of the prompt read at a time", **_tokens)]
SafetyMargin = Annotated[float, typer.Option(help="share of each GPU's memory never planned for")]


def console() -> Console:
    """Standard output for people; wide enough for the tables when it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else max(120, int(os.environ.get("COLUMNS", "0") or 0)))


def workload(
    prompt_tokens: int, generated_tokens: int, batch_size: int, context_tokens: int | None, prefill_chunk: int
) -> Workload:
    return Workload(
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        batch_size=batch_size,
        prefill_chunk=prefill_chunk,
        **({} if context_tokens is None else {"context_tokens": context_tokens}),
    )


@app.command()
def solve(
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
    granularity: Annotated[str, typer.Option(help="layer (a layer is one unit) or module")] = "module",
    objective: Annotated[str, typer.Option(help="request, decode, prefill or throughput")] = "request",
    target: Annotated[str, typer.Option(help=f"the runtime to follow the plan: {', '.join(FINEST)}")] = "torch",
    pin: Annotated[
        list[str] | None,
        typer.Option(
            help="BLOCK=DEVICE[|DEVICE…], e.g. layers.3.experts=cuda:1, or DEVICE=WHAT[|WHAT…]: the kinds of blocks "
            "that may be there, nothing, first or last, e.g. cuda:0=attention|last"
        ),
    ] = None,
    time_limit: Annotated[float, typer.Option(help="seconds")] = 10.0,
    relative_gap: Annotated[float, typer.Option(help="stop when proved this close to the best")] = 0.0,
    tie_tolerance: Annotated[
        float, typer.Option(help="of plans this close to the best, as a share, take the one with most memory left")
    ] = 0.001,
    robust: Annotated[
        float, typer.Option(help="share by which some blocks on each device may turn out larger in weights")
    ] = 0.0,
    robust_blocks: Annotated[int, typer.Option(help="how many blocks on each device may, all at once")] = 3,
    prefer: Annotated[
        str, typer.Option(help="fastest, or simplest: less on the CPU and fewer hops where times cannot tell")
    ] = "fastest",
    workers: Annotated[int | None, typer.Option(help="threads [default: 1]")] = None,
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Place MODEL on HARDWARE: the best plan, and the proof of how good it is."""
    options: dict[str, Any] = {
        "safety_margin": safety_margin, "granularity": granularity, "objective": objective, "target": target,
        "pins": _pins(pin or []), "time_limit": time_limit, "relative_gap": relative_gap,
        "tie_tolerance": tie_tolerance, "robust": robust, "robust_blocks": robust_blocks, "prefer": prefer,
        "workers": workers, "seed": seed,
    }  # fmt: skip
    request = workload(prompt_tokens, generated_tokens, batch_size, context_tokens, prefill_chunk)
    profile = _used_as(load_profile(model, quant, kv_quant=kv_quant, mla=mla), activations)
    machine = _machine(hardware)
    try:
        with Console(stderr=True).status(f"placing {profile.model} on {machine.name} …"):
            plan = solve_plan(profile, machine, request, **options)
    except InfeasiblePlacement as problem:
        _stop_infeasible(problem, as_json)
    _save(plan, output)
    if as_json:
        print(plan.to_json())
        return
    out = console()
    out.print(tables.plan_table(plan, plan.memory or {}, f"{plan.model} on {plan.hardware}"))
    out.print(tables.proof_line(plan), highlight=False)
    if (gain := tables.whole_line(plan)) is not None:
        out.print(gain, highlight=False)
    if plan.prediction is not None:
        out.print(f"predicted: {tables.prediction_line(plan.prediction)}", highlight=False)
    for line in tables.load_lines(plan.memory or {}, machine):
        out.print(line, style="yellow", highlight=False)
    _print_notes(out, plan)
    _print_notes(out, machine)


@app.command()
def profile(
    model: Model,
    quant: Quant = None,
    kv_quant: KvQuant = None,
    mla: Mla = None,
    hub: Hub = False,
    activations: Activations = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Show MODEL's blocks and bytes, and what was assumed."""
    found: ModelProfile = _used_as(load_profile(model, quant, kv_quant=kv_quant, mla=mla), activations)
    _save(found, output)
    if as_json:
        print(found.to_json())
        return
    out = console()
    out.print(tables.profile_table(found))
    _print_sources(out, found)


@app.command()
def hardware(hardware: Machine, as_json: AsJson = False, output: Output = None) -> None:
    """Show HARDWARE's devices and links, and what was assumed; `local` reads and measures this machine."""
    found = _machine(hardware)
    _save(found, output)
    if as_json:
        print(found.to_json())
        return
    out = console()
    for table in tables.hardware_tables(found):
        out.print(table)
    _print_sources(out, found)


@app.command()
def demo() -> None:
    """Tell the story: eight layers a card, why that dies, the cure by hand, and the proven plan."""
    story.tell(console())


@app.callback(invoke_without_command=True)
def _root(show_version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if show_version:
        print(version("moeplan"))
        raise typer.Exit


def _machine(name: str) -> Hardware:
    """The machine called `name`, with a sign of life on standard error: probing this one takes some seconds."""
    with Console(stderr=True).status("reading the machine …"):
        return load_hardware(name)


def _used_as(profile: ModelProfile, activations: Path | None) -> ModelProfile:
    return profile if activations is None else read_activations(activations, profile)


def _pins(pins: list[str]) -> dict[str, list[str]]:
    parsed: dict[str, list[str]] = {}
    for pin in pins:
        name, equals, words = (part.strip() for part in pin.partition("="))
        if not name or not equals or not words or name in parsed:
            remedy = "each name once; e.g. layers.3.experts=cuda:1 or cuda:0=attention"
            raise MoeplanError(one_line(f"--pin: {short(pin)} is not BLOCK=DEVICE or DEVICE=KIND, {remedy}"))
        parsed[name] = [word.strip() for word in words.split("|")]
    return parsed


def _print_sources(out: Console, found: ModelProfile | Hardware) -> None:
    if found.source:
        out.print(f"source: {found.source}", highlight=False, markup=False)
    _print_notes(out, found)


def _print_notes(out: Console, found: ModelProfile | Hardware | Placement) -> None:
    for note in found.notes or ():
        out.print(f"note: {note}", highlight=False, markup=False, style="dim")


def _save(found: Document, output: Path | None) -> None:
    if output is not None:
        found.save(output)


def _stop_infeasible(problem: InfeasiblePlacement, as_json: bool) -> NoReturn:
    """An infeasible answer is an answer: a document with --json, one line otherwise; exit 3, or 4 when out of time."""
    if as_json:
        status = "infeasible" if problem.proven else "unknown"
        document = {
            "schema": 1, "status": status, "short": problem.short_bytes, "suggestions": list(problem.suggestions),
            "message": str(problem),
        }  # fmt: skip
        print(json.dumps(document, indent=2))
    else:
        print(f"moeplan: {problem}", file=sys.stderr)
    raise typer.Exit(INFEASIBLE if problem.proven else OUT_OF_TIME)


def main() -> None:
    """Run the command; every failure is one line on standard error."""
    try:
        app()
    except InfeasiblePlacement as problem:
        print(f"moeplan: {problem}", file=sys.stderr)
        sys.exit(INFEASIBLE if problem.proven else OUT_OF_TIME)
    except NeedsHub as problem:
        print(f"moeplan: {problem}: {shlex.join(['moeplan', *sys.argv[1:], '--hub'])}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except MoeplanError as problem:
        print(f"moeplan: {problem}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except BrokenPipeError:
        # The reader (head, less) has gone: keep Python from complaining again while it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BAD_INPUT)


import moeplan.calibrate_command  # noqa: E402
import moeplan.check_command  # noqa: E402
import moeplan.compare_command  # noqa: E402
import moeplan.export_command  # noqa: E402
import moeplan.known_command  # noqa: E402
import moeplan.rehearse_command  # noqa: E402
import moeplan.report_command  # noqa: E402
import moeplan.what_if_command  # noqa: E402, F401 - they register their commands, and need all of the above

if __name__ == "__main__":
    from moeplan import cli  # this very file once more: the one where that command is

    cli.main()
