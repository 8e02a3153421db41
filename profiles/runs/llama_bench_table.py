"""The Markdown table of llama-bench (`-o md`, its default), as people paste it.

Columns as printed by the sources named in `llama_bench`: model, size, params, backend, then only settings that differ
from the defaults (ngl, n_cpu_moe, threads, n_ubatch, fa, ot, …), test and t/s. ggml's list of GPUs stands before it.
ik_llama.cpp hides -ot unless told otherwise, so a table of its does not say where experts are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from profiles.document import short
from profiles.run import Run
from profiles.runs.llama_bench import IK_FIELDS, run_of
from profiles.runs.making import failure, gpus_in_log, number, whole
from profiles.units import parse_bytes

COUNTS = {"ngl": "n_gpu_layers", "threads": "n_threads", "n_ubatch": "n_ubatch", "n_cpu_moe": "n_cpu_moe"}
TEXTS = {"backend": "backends", "model": "model_type", "test": "test"}
TEXTS |= {"type_k": "type_k", "type_v": "type_v", "fa": "flash_attn", "sm": "split_mode", "ts": "tensor_split"}
IK_COLUMNS = {"mla": "mla_attn", "amb": "attn_max_batch", "fmoe": "fused_moe", "ger": "grouped_er", "rtr": "repack"}
_HEAD = re.compile(r"^\s*\|.*\|\s*test\s*\|\s*t/s\s*\|\s*$", re.MULTILINE)
_SPEED = re.compile(r"\s*([0-9.]{1,20})\s*(?:±.*)?")


def recognises(text: str) -> bool:
    return _HEAD.search(text) is not None


def read(text: str, where: str) -> tuple[Run, ...]:
    """One run a row, of all tables in the text."""
    runs: list[Run] = []
    head: list[str] | None = None
    for line_number, line in enumerate(text.splitlines(), 1):
        if _HEAD.match(line):
            head = _cells(line)
        elif head is not None and line.lstrip().startswith("|"):
            if set(line) <= set("|-: \t\r"):
                continue
            at = f"{where}: line {line_number}"
            row = _row(head, _cells(line), at)
            runs.append(run_of(row, f"{PurePath(where).stem}:{len(runs) + 1}", at))
        else:
            head = None if line.strip() else head
    if not runs:
        raise failure(where, "a table of llama-bench without rows; give one with results")
    gpus = gpus_in_log(text)
    return tuple(run.replace(gpus=gpus) if gpus and run.gpus is None else run for run in runs)


def _row(head: Sequence[str], cells: Sequence[str], at: str) -> dict[str, Any]:
    """The cells by the names that the JSON output has for them."""
    named = dict(zip(head, _joined(head, cells, at), strict=True))
    row: dict[str, Any] = {key: named[column] for column, key in TEXTS.items() if column in named}
    row |= {key: named[column] for column, key in IK_COLUMNS.items() if column in named}
    if "ot" in named:
        row["override_tensor" if any(key in row for key in IK_FIELDS) else "tensor_buft_overrides"] = named["ot"]
    for column, key in COUNTS.items():
        if column in named:
            row[key] = -1 if named[column] == "-1" else whole(named[column], f"{at}, {column}")
    if "size" in named:
        row["model_size"] = _size(named["size"], f"{at}, size")
    speed = _SPEED.fullmatch(named["t/s"])
    if speed is None:
        raise failure(f"{at}, t/s", f"{short(named['t/s'])} is not a speed; write e.g. 132.19 ± 0.55")
    return {**row, "avg_ts": number(speed[1], f"{at}, t/s")}


def _joined(head: Sequence[str], cells: Sequence[str], at: str) -> list[str]:
    """The cells, one a column: patterns of -ot have bars of their own, which are put together again."""
    surplus = len(cells) - len(head)
    if surplus > 0 and "ot" in head:
        i = head.index("ot")
        cells = [*cells[:i], "|".join(cells[i : i + surplus + 1]), *cells[i + surplus + 1 :]]
    if len(cells) != len(head):
        raise failure(at, f"{len(cells)} cells under {len(head)} columns; keep the table as llama-bench prints it")
    return list(cells)


def _size(text: str, at: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError:
        raise failure(at, f"{short(text)} is not a size; write e.g. 17.28 GiB") from None


def _cells(line: str) -> list[str]:
    stripped = line.strip()
    return [cell.strip() for cell in stripped.removeprefix("|").removesuffix("|").split("|")]
