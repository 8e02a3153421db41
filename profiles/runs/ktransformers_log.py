"""What KTransformers' old engine says after an answer: local_chat's lines, or its server's "Performance(T/s)".

Lines as printed by kvcache-ai/ktransformers, ktransformers/util/utils.py at 038bc308 (prefill_and_generate), which are
those of `ollama run --verbose`; Ollama's have "load duration" as well, and then the engine is "other". The server's
line is that of ktransformers/server/backend/base.py (report_last_time_performance).
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from profiles.run import Run
from profiles.runs.making import failure, made, number

_LINE = re.compile(r"^\W*(prompt eval count|prompt eval rate|eval count|eval rate|load duration):\s+([0-9.eE+-]{1,30})")
_SERVER = re.compile(
    r"Performance\(T/s\): prefill ([0-9.]+), decode ([0-9.]+)\."
    r"(?: Time\(s\): tokenize [0-9.]+, prefill ([0-9.]+), decode ([0-9.]+))?"
)


def recognises(text: str) -> bool:
    return _SERVER.search(text) is not None or re.search(r"^\W*eval rate:\s", text, re.MULTILINE) is not None


def read(text: str, where: str) -> tuple[Run, ...]:
    """One run an answer: a prompt from nothing and what was generated after it."""
    answers: list[dict[str, Any]] = []
    said: dict[str, float] = {}
    for line_number, line in enumerate(text.splitlines(), 1):
        at = f"{where}: line {line_number}"
        server = _SERVER.search(line[:2000])
        if server is not None:
            answers.append(_served([number(part, at) if part else None for part in server.groups()]))
        chat = _LINE.match(line[:300])
        if chat is not None:
            said[chat[1]] = number(chat[2], at)
            if chat[1] == "eval rate":
                answers.append(_chatted(said))
                said = {}
    if not answers:
        raise failure(where, "no answer in it was finished; give a log with 'eval rate' or 'Performance(T/s)' lines")
    stem = PurePath(where).stem
    return tuple(made({"id": f"{stem}:{i}", **answer}, where) for i, answer in enumerate(answers, 1))


def _chatted(said: dict[str, float]) -> dict[str, Any]:
    prompt, generated = said.get("prompt eval count"), said.get("eval count")
    return {
        "engine": "other" if "load duration" in said else "ktransformers",
        "batch_size": 1,
        "prompt_tokens": None if prompt is None else int(prompt),
        "generated_tokens": None if generated is None else int(generated),
        "prefill_tokens_per_s": said.get("prompt eval rate"),
        "decode_tokens_per_s": said["eval rate"],
    }


def _served(parts: list[float | None]) -> dict[str, Any]:
    """Speeds, and the counts that they and the seconds give."""
    prefill, decode, prefill_s, decode_s = parts
    assert prefill is not None
    assert decode is not None
    return {
        "engine": "ktransformers",
        "batch_size": 1,
        "prompt_tokens": None if prefill_s is None else round(prefill * prefill_s),
        "generated_tokens": None if decode_s is None else round(decode * decode_s),
        "prefill_tokens_per_s": prefill or None,
        "decode_tokens_per_s": decode or None,
    }
