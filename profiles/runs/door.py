"""The door: a file of measured runs of any known form -> `Run`s."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from profiles.document import one_line, parse_document, read_text, require_mapping, short
from profiles.errors import ProfileError
from profiles.locate import name_or_path
from profiles.run import Run, Runs
from profiles.runs import ktransformers_log, llama_bench, llama_bench_table, measurements, sglang_log, sweep_bench
from profiles.runs.making import failure

TEXT_READERS: tuple[tuple[Callable[[str], bool], Callable[[str, str], tuple[Run, ...]]], ...] = (
    (sweep_bench.recognises, sweep_bench.read),
    (llama_bench_table.recognises, llama_bench_table.read),
    (sglang_log.recognises, sglang_log.read),
    (ktransformers_log.recognises, ktransformers_log.read),
)
Rows = list[dict[str, Any]]
ROW_READERS: tuple[tuple[Callable[[dict[str, Any]], bool], Callable[[Rows, str], tuple[Run, ...]]], ...] = (
    (llama_bench.is_row, llama_bench.from_rows),
    (sweep_bench.is_row, sweep_bench.from_rows),
    (measurements.is_row, measurements.from_rows),
)
FORMS = (
    "a YAML of runs or of measurements, llama-bench's or llama-sweep-bench's output (json, jsonl or table),"
    " or a log of SGLang or KTransformers"
)


def read_runs(path: str | Path, **known: Any) -> tuple[Run, ...]:
    """The runs in a file; its form is recognised by what stands in it.

    Forms: YAML or JSON with our own `runs` (`Runs`), a list of measurements (`profiles.runs.measurements`), the output
    of llama-bench (json, jsonl, Markdown) and of ik_llama.cpp's llama-sweep-bench (table, jsonl), SGLang's and
    KTransformers' logs. A test of llama-bench is a run of its own: one for reading, one for decoding. A row of
    llama-sweep-bench has both speeds.

    A log does not say everything; `known` fills it in, field by field of `Run`, and beats what the file says:
    `read_runs("bench.md", machine="mine", cpu="EPYC-9355", ram_peak_bytes_per_s="576 GB/s")`.

    Raises ProfileError, one line with the file, the field or line, the value and the remedy.
    """
    name = name_or_path(path, "runs", FORMS, ProfileError)
    runs = _runs(read_text(name), name)
    if not known:
        return runs
    try:
        return tuple(run.replace(**known) for run in runs)
    except ProfileError as problem:
        raise ProfileError(one_line(f"{name}: what is known of its runs: {problem}")) from None


def _runs(text: str, where: str) -> tuple[Run, ...]:
    start = text.lstrip()[:1]
    yaml_name = where.lower().endswith((".yaml", ".yml"))
    if not yaml_name and (start == "{" or re.match(r"\s*\[\s*[{\]]", text)):
        return _from_json(text, where)
    for recognises, read in TEXT_READERS if not yaml_name else ():
        if recognises(text):
            return read(text, where)
    if not yaml_name and not re.search(r"^(schema|runs|- [a-z_]+):", text, re.MULTILINE):
        raise failure(where, f"{short(text.strip()[:40])}… is no known form of runs; give {FORMS}")
    return _from_document(parse_document(text, where), where)


def _from_json(text: str, where: str) -> tuple[Run, ...]:
    """One JSON document, or one in each line."""
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for _, line in lines):
        return _from_rows([parse_document(line, f"{where} line {i}.json") for i, line in lines], where)
    data = parse_document(text, where if where.lower().endswith(".json") else f"{where} as .json")
    return _from_document(data, where)


def _from_document(data: object, where: str) -> tuple[Run, ...]:
    if isinstance(data, dict) and "runs" in data:
        return Runs.from_dict(data, where).runs
    return _from_rows(data if isinstance(data, list) else [data], where)


def _from_rows(rows: list[Any], where: str) -> tuple[Run, ...]:
    """A list whose entries say themselves what they are."""
    mappings = [require_mapping(row, f"{where}: [{i}]", ProfileError) for i, row in enumerate(rows)]
    for is_row, from_rows in ROW_READERS:
        if any(is_row(row) for row in mappings):
            return from_rows(mappings, where)
    what = f"a list of {len(rows)}" if len(rows) != 1 else short(rows[0])
    raise failure(where, f"{what} without runs, tests or measurements in it; give {FORMS}")
