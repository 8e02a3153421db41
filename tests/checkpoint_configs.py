"""Configs of published checkpoints (tests/checkpoint_configs.json), with their long lists written out again.

Facts of the vendors' own files of 2025 and 2026, without keys that are about images, sound or text. "{0-3,5}" in a name
stands for each of these numbers.
"""

from __future__ import annotations

import itertools
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

_SPAN = re.compile(r"\{([0-9,-]+)\}")


@cache
def _all() -> dict[str, Any]:
    text = (Path(__file__).parent / "checkpoint_configs.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def names() -> list[str]:
    return sorted(_all())


def config_of(name: str) -> dict[str, Any]:
    written: dict[str, Any] = _written(_all()[name]["config"])
    return written


def beside_of(name: str) -> dict[str, Any]:
    """File name -> content, of the files of methods beside config.json that matter."""
    written: dict[str, Any] = _written(_all()[name].get("beside", {}))
    return written


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"list"}:
            return [name for pattern in value["list"] for name in _names(pattern)]
        if value.keys() == {"by value"}:
            return {name: same for names, same in value["by value"] for pattern in names for name in _names(pattern)}
        return {key: _written(inner) for key, inner in value.items()}
    return value


def _names(pattern: str) -> list[str]:
    """
    >>> _names("layers.{0-1,7}.w{1,3}")
    ['layers.0.w1', 'layers.0.w3', 'layers.1.w1', 'layers.1.w3', 'layers.7.w1', 'layers.7.w3']
    """
    parts = _SPAN.split(pattern)
    choices = [[part] if i % 2 == 0 else _numbers(part) for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _numbers(spans: str) -> list[str]:
    found: list[str] = []
    for span in spans.split(","):
        first, _, last = span.partition("-")
        found += [str(number) for number in range(int(first), int(last or first) + 1)]
    return found
