"""The log of an SGLang server (also with kt-kernel): what its scheduler says of each batch.

Lines as written by sgl-project/sglang, python/sglang/srt/observability/scheduler_metrics_mixin.py at 00eef542
(report_prefill_stats, report_decode_stats); older ones say "Decode batch." and "#token" for "#full token". The speeds
are over the time since the *last line of the same kind*, so

- a decode line that follows a prefill line, or stands first, has the prompt's time in it and is left out;
- a prefill line tells how fast the chunk *before* it was read, so only lines right after another one count.

What is left is put together by the number of requests (decode) or by the chunk's size (prefill): medians, which the
few lines after a pause do not move.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median
from typing import Any

from profiles.run import Run
from profiles.runs.making import failure, made, number, whole

_LINE = re.compile(r"\b(Decode|Prefill) batch\b[ .,\[]")
_DECODE_SPEED = re.compile(r"gen throughput \(token/s\): ([0-9.]{1,20})")
_PREFILL_SPEED = re.compile(r"input throughput \(token/s\): ([0-9.]{1,20})")
_RUNNING = re.compile(r"#running-req: (\d{1,9})")
_CACHED = re.compile(r"#(?:full )?token: (\d{1,12})")
_NEW, _HIT = re.compile(r"#new-token: (\d{1,9})"), re.compile(r"#cached-token: (\d{1,9})")
_ARGUMENT = re.compile(r"\b(model_path|kt_cpuinfer)='?([^',)\s]{1,300})'?")


@dataclass(frozen=True)
class _Batch:
    """One line. `tokens` are a prefill's new ones, or those in the cache while decoding; `speed` may be unsaid."""

    kind: str
    requests: int
    tokens: int
    cached: int
    speed: float | None


def recognises(text: str) -> bool:
    return _DECODE_SPEED.search(text) is not None or _PREFILL_SPEED.search(text) is not None


def read(text: str, where: str) -> tuple[Run, ...]:
    """A run for each number of requests that decoded together, and for each size of chunks that were read."""
    batches = list(_batches(text, where))
    said = {key: value for key, value in _ARGUMENT.findall(text) if value != "None"}
    shared = {
        "engine": "sglang-kt",
        "model": PurePath(said["model_path"]).name if "model_path" in said else None,
        "threads": whole(said["kt_cpuinfer"], f"{where}, kt_cpuinfer") if "kt_cpuinfer" in said else None,
    }
    decoded: dict[int, list[_Batch]] = {}
    chunks: dict[int, list[tuple[_Batch, float]]] = {}
    for before, now in zip([None, *batches], batches, strict=False):
        if before is None or before.kind != now.kind or not now.speed:
            continue
        if now.kind == "Decode" and before.requests == now.requests > 0:
            decoded.setdefault(now.requests, []).append(now)
        elif now.kind == "Prefill" and before.tokens > 0:
            chunks.setdefault(before.tokens, []).append((before, now.speed))
    stem = PurePath(where).stem
    runs = [made({**shared, "id": f"{stem}:decode-{n}", **_decoded(n, found)}, where) for n, found in decoded.items()]
    runs += [made({**shared, "id": f"{stem}:prefill-{n}", **_read(n, found)}, where) for n, found in chunks.items()]
    if not runs:
        raise failure(
            where, "no line of the log follows another of its kind, so no speed is free of waiting; log a longer run"
        )
    return tuple(runs)


def _decoded(requests: int, batches: list[_Batch]) -> dict[str, Any]:
    return {
        "batch_size": requests,
        "context_depth": round(median(batch.tokens for batch in batches) / requests),
        "generated_tokens": 0,  # the depth is the mean one already
        "decode_tokens_per_s": median(batch.speed or 0.0 for batch in batches),
        "notes": f"median of {len(batches)} decode lines",
    }


def _read(tokens: int, chunks: list[tuple[_Batch, float]]) -> dict[str, Any]:
    return {
        "prompt_tokens": tokens,
        "ubatch": tokens,
        "prefill_depth": round(median(batch.cached for batch, _ in chunks)),
        "prefill_tokens_per_s": median(speed for _, speed in chunks),
        "notes": f"median of {len(chunks)} prefill lines; depth of earlier chunks not counted where the log is silent",
    }


def _batches(text: str, where: str) -> Iterator[_Batch]:
    for line_number, line in enumerate(text.splitlines(), 1):
        kind = _LINE.search(line[:4000])
        if kind is None:
            continue
        at = f"{where}: line {line_number}"
        speed = (_DECODE_SPEED if kind[1] == "Decode" else _PREFILL_SPEED).search(line)
        tokens = (_CACHED if kind[1] == "Decode" else _NEW).search(line)
        requests, cached = _RUNNING.search(line), _HIT.search(line)
        yield _Batch(
            kind[1],
            requests=int(requests[1]) if requests else 0,
            tokens=int(tokens[1]) if tokens else 0,
            cached=int(cached[1]) if cached else 0,
            speed=number(speed[1], at) if speed else None,
        )
