"""Tiny files of every architecture with experts that llama.cpp (build 11434) has, in the names that its loader wants.

The files and what llama.cpp keeps for them are in `llama_cpp_architectures.yaml`; its head says how they were found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from gguf_files import T, Tensors

from profiles import ModelProfile

UBATCH, CELLS = 512, 256
_BLOCK = re.compile(r"blk\.[0-9]+\.")


@cache
def known() -> dict[str, Any]:
    loaded = yaml.load(Path(__file__).with_name("llama_cpp_architectures.yaml").read_text(), yaml.CSafeLoader)
    assert isinstance(loaded, dict)
    return loaded


def architectures() -> list[str]:
    return list(known()["architectures"])


def metadata(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The metadata of one architecture's file; `changes` of None leave a key out."""
    found = {**known()["common"], **known()["architectures"][name]["metadata"], **(changes or {})}
    return {
        key: value["u64"] if isinstance(value, dict) else value for key, value in found.items() if value is not None
    }


def tensors(case: Mapping[str, Any]) -> Tensors:
    """Every tensor of `case`, which is an architecture of the table or what it has beside it."""
    return [
        (name if at is None else f"blk.{at}.{name}", shape, T.I32 if "tid2eid" in name else T.F32)
        for layers, groups in case["tensors"].items()
        for dimensions, names in groups.items()
        for shape in [tuple(int(n) for n in str(dimensions).split())]
        for name in names.split()
        for at in _layers(layers)
    ]


def _layers(text: str | int) -> Iterator[int | None]:
    if text == "top":
        yield None
        return
    for part in str(text).split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def accepted(name: str) -> set[str]:
    """Names after `blk.N.` (or of the whole model) that the loader looks for in files of this architecture."""
    case = known()["architectures"][name]
    return {_BLOCK.sub("", tensor) for tensor, _, _ in tensors(case)} | set((case["also"] or "").split())


def kept_bytes(profile: ModelProfile, context: int) -> int:
    """KV cache and state as llama.cpp sizes them for one slot: windows keep a step beside themselves, in 256 cells."""
    total = 0
    for layer in profile.layers:
        attention, cells = layer.attention, context
        if attention.kv_window_tokens is not None:
            cells = -(-min(context, attention.kv_window_tokens + UBATCH) // CELLS) * CELLS
        total += cells * attention.kv_bytes_per_token + attention.state_bytes
    return total
