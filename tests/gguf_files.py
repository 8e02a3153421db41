"""GGUF files for tests: real headers written by the `gguf` package, the data a hole that takes no disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

T = GGMLQuantizationType
Shape = tuple[int, ...]
Tensors = Sequence[tuple[str, Shape, T]]
"""(name, shape in ggml's order, type)."""


def n_bytes(shape: Shape, kind: T) -> int:
    elements, size = GGML_QUANT_SIZES[kind]
    return int(np.prod([int(n) for n in shape], dtype=object)) // elements * size


def write_gguf(path: Path, architecture: str, fields: Mapping[str, Any], tensors: Tensors) -> None:
    """One file. Keys of `fields` that start with a dot are the architecture's own."""
    writer = GGUFWriter(path, architecture)
    for key, value in fields.items():
        _add(writer, architecture + key if key.startswith(".") else key, value)
    for name, shape, kind in tensors:
        writer.add_tensor_info(name, list(reversed(shape)), np.dtype(np.float32), n_bytes(shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    whole = -(-path.stat().st_size // 32) * 32 + sum(-(-n_bytes(s, k) // 32) * 32 for _, s, k in tensors)
    os.truncate(path, whole)


def write_shards(
    folder: Path, name: str, architecture: str, fields: Mapping[str, Any], parts: Sequence[Tensors]
) -> list[Path]:
    """One model in several files, as llama.cpp's gguf-split leaves it: metadata in the first, tensors in all."""
    paths = []
    for number, tensors in enumerate(parts):
        split = {"split.no": np.uint16(number), "split.count": np.uint16(len(parts))}
        split["split.tensors.count"] = np.int32(sum(map(len, parts)))
        path = folder / f"{name}-{number + 1:05}-of-{len(parts):05}.gguf"
        write_gguf(path, architecture, {**(fields if number == 0 else {}), **split}, tensors)
        paths.append(path)
    return paths


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, np.uint16):
        writer.add_uint16(key, int(value))
    elif isinstance(value, np.int32):
        writer.add_int32(key, int(value))
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
