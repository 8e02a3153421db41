"""llama-sweep-bench: at growing depths, the speed of reading one micro-batch and of decoding a quarter as many tokens.

Format as printed by ikawrakow/ik_llama.cpp, examples/sweep-bench/sweep-bench.cpp at 1ce4bb97: a line with the settings,
a table (|PP|TG|N_KV|T_PP s|S_PP t/s|T_TG s|S_TG t/s|, with --sweep-memory two columns more), or one JSON object a row.
Both tests begin with N_KV tokens in the cache. PP is the micro-batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from profiles.document import short
from profiles.run import Run
from profiles.runs.making import failure, gpus_in_log, made, number, whole

COLUMNS = ("PP", "TG", "N_KV", "S_PP t/s", "S_TG t/s")
SETTINGS: tuple[str, ...] = ("n_ubatch", "n_gpu_layers", "n_threads", "n_threads_batch")
_HEAD = re.compile(r"^\s*\|\s*PP\s*\|\s*TG\s*\|\s*N_KV\s*\|.*$", re.MULTILINE)
_SETTING = re.compile(rf"\b({'|'.join(SETTINGS)}) = (-?\d{{1,9}})\b")


def recognises(text: str) -> bool:
    return _HEAD.search(text) is not None


def is_row(row: Mapping[str, Any]) -> bool:
    return "speed_pp" in row and "n_kv" in row


def read(text: str, where: str) -> tuple[Run, ...]:
    """The rows of the table; settings and GPUs are those printed before it."""
    runs: list[Run] = []
    settings: dict[str, int] = {}
    head: list[str] | None = None
    gpus = gpus_in_log(text)
    for line_number, line in enumerate(text.splitlines(), 1):
        settings |= {key: int(value) for key, value in _SETTING.findall(line[:2000])}
        if _HEAD.match(line):
            head = _cells(line)
        elif head is not None and re.match(r"^\s*\|\s*\d", line):
            at = f"{where}: line {line_number}"
            row = dict(zip(head, _cells(line), strict=False))
            missing = next((name for name in COLUMNS if name not in row), None)
            if missing is not None:
                raise failure(at, f"no column {missing}; keep the table as llama-sweep-bench prints it")
            fields = {name: whole(row[name], f"{at}, {name}") for name in COLUMNS[:3]}
            speeds = [number(row[name], f"{at}, {name}") for name in COLUMNS[3:]]
            runs.append(_run(fields, speeds, settings, f"{PurePath(where).stem}:{len(runs) + 1}", at, gpus=gpus))
    if not runs:
        raise failure(where, "a table of llama-sweep-bench without rows; give one with results")
    return tuple(runs)


def from_rows(rows: list[dict[str, Any]], where: str) -> tuple[Run, ...]:
    """The rows of --output-format jsonl."""
    runs = []
    for index, row in enumerate(rows):
        at = f"{where}: row {index + 1}"
        settings = {key: row[key] for key in SETTINGS if key in row}
        for key in ("pp", "tg", "n_kv", "speed_pp", "speed_tg", *settings):
            value = row.get(key)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise failure(
                    f"{at}.{key}", f"{short(value)} is not a number; keep the line as llama-sweep-bench prints it"
                )
        fields = {"PP": row["pp"], "TG": row["tg"], "N_KV": row["n_kv"]}
        name = f"{PurePath(where).stem}:{index + 1}"
        runs.append(_run(fields, [row["speed_pp"], row["speed_tg"]], settings, name, at))
    return tuple(runs)


def _run(
    row: Mapping[str, int], speeds: list[float], settings: Mapping[str, int], name: str, at: str, **more: Any
) -> Run:
    return made(
        {
            "id": name,
            "engine": "ik_llama.cpp",
            "prompt_tokens": row["PP"],
            "generated_tokens": row["TG"],
            "context_depth": row["N_KV"],
            "ubatch": settings.get("n_ubatch", row["PP"]),
            "gpu_layers": settings.get("n_gpu_layers"),
            "threads": settings.get("n_threads"),
            "prefill_threads": settings.get("n_threads_batch"),
            "batch_size": 1,
            "prefill_tokens_per_s": speeds[0],
            "decode_tokens_per_s": speeds[1],
            **more,
        },
        at,
    )


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
