"""`moeplan export` and `moeplan schema`. `moeplan.cli` imports this file last, to register them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moeplan import cli
from moeplan.cli import Hub, Output
from profiles import MoeplanError, Placement, load_placement
from profiles.document import write_text
from runtime_adapter.export import export, expressible
from runtime_adapter.targets.known import FILE_NAMES, TARGETS


@cli.app.command("export")
def export_plan(
    plan: Annotated[Path, typer.Argument(help="a plan document")],
    to: Annotated[str | None, typer.Option(help=f"the runtime: {', '.join(TARGETS)}")] = None,
    model: Annotated[
        str | None, typer.Option(help="the model, as for solve [default: the one that the plan names]")
    ] = None,
    model_path: Annotated[str | None, typer.Option(help="where the model's files are, for the text")] = None,
    all_in: Annotated[
        Path | None, typer.Option("--all", help="write every format that can say the plan into this folder")
    ] = None,
    hub: Hub = False,
    output: Output = None,
) -> None:
    """Write PLAN as the runtime's own text, checked by simulating how the runtime will read it."""
    placement = load_placement(plan)
    if (to is None) == (all_in is None):
        raise typer.BadParameter("give --to RUNTIME or --all FOLDER, and not both")
    if all_in is not None:
        _write_all(placement, model, model_path, all_in)
        return
    assert to is not None
    text = export(placement, to, model=model, model_path=model_path)
    if output is not None:
        write_text(output, text)
    else:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")


def _write_all(plan: Placement, model: str | None, model_path: str | None, folder: Path) -> None:
    """One file a format; what cannot say the plan is named on standard error, with the reason."""
    texts = {}
    for name, reason in expressible(plan, model=model).items():
        if reason is None:
            texts[name] = export(plan, name, model=model, model_path=model_path)
        else:
            print(f"moeplan: not written: {reason}", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise MoeplanError(f"{folder}: cannot be made: {problem.strerror}; check the path") from None
    for name, text in texts.items():
        write_text(folder / FILE_NAMES[name], text)
        print(f"moeplan: wrote {folder / FILE_NAMES[name]}", file=sys.stderr)


@cli.app.command("schema")
def schema() -> None:
    """Print the JSON schema of plan documents."""
    print(plan_schema(), end="")


def plan_schema() -> str:
    """The JSON schema that plan documents follow, as text; docs/plan.schema.json is this."""
    found = _tidy(Placement.model_json_schema(by_alias=True))
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=2) + "\n"


def _tidy(node: Any) -> Any:
    """Without examples for readers of the code; keys that follow a pattern are the only ones."""
    if isinstance(node, list):
        return [_tidy(part) for part in node]
    if not isinstance(node, dict):
        return node.partition("\n\n>>>")[0] if isinstance(node, str) else node
    closed = {"additionalProperties": False} if "patternProperties" in node else {}
    return {key: _tidy(part) for key, part in node.items()} | closed
