"""What the readers share: runs from fields with one-line errors, names in files' names, GPUs from lists of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from profiles.document import first_problem, one_line, short
from profiles.errors import ProfileError
from profiles.gguf.reader import SHARD
from profiles.run import Run, RunGpu

LARGEST = 1e12
_QUANT = re.compile(
    r"(?<![a-z0-9])((?:ud-)?(?:i?q[1-9]_[a-z0-9]+(?:_[a-z0-9]+)*|tq[12]_0|mxfp4|bf16|f16|f32|fp8)(?:_moe)?)(?![a-z0-9])",
    re.IGNORECASE,
)
_SIZES = {"small": "_S", "medium": "_M", "large": "_L"}
_DEVICE_LINE = re.compile(r"\s*Device \d+: (?P<name>.+?), compute capability")


def failure(where: str, problem: str) -> ProfileError:
    """One line: `where` (file and line or field), then what is wrong and the remedy."""
    return ProfileError(one_line(f"{where}: {problem}"))


def made(fields: Mapping[str, Any], where: str) -> Run:
    """The run of these fields, None left out; an error of any field starts with `where`."""
    try:
        return Run(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as problem:
        raise failure(where, first_problem(problem, Run)) from None


def number(text: str, where: str) -> float:
    """The number that stands in a log or a table; ProfileError where it is none, negative, or larger than any there."""
    try:
        found = float(text) if len(text) <= 60 else -1.0
    except ValueError:
        found = -1.0
    if not 0 <= found < LARGEST:
        raise failure(where, f"{short(text)} is not a number; mend it or take the line out")
    return found


def whole(text: str, where: str) -> int:
    """As `number`, for counts."""
    if not re.fullmatch(r"\s*[0-9]{1,12}\s*", text):
        raise failure(where, f"{short(text)} is not a whole number; mend it or take the line out")
    return int(text)


def quant_in(text: str) -> str | None:
    """The weight format that stands in a file's name or in llama.cpp's description of a model.

    >>> [quant_in(text) for text in ("qwen3moe 30B.A3B Q4_K - Medium", "Qwen3-235B-UD-Q4_K_XL", "deepseek2 16B F16")]
    ['Q4_K_M', 'UD-Q4_K_XL', 'F16']
    """
    found = _QUANT.search(text)
    if found is None:
        return None
    size = re.match(r"\s*-\s*(small|medium|large)\b", text[found.end() :], re.IGNORECASE)
    return found[1] + (_SIZES[size[1].lower()] if size else "")


def names_in(filename: str, description: str) -> tuple[str | None, str | None]:
    """(model, quant) of a GGUF file's name, and where that does not say them of llama.cpp's description.

    >>> names_in("/models/DeepSeek-R1-UD-Q2_K_XL-00001-of-00005.gguf", "deepseek2 671B Q2_K - Medium")
    ('DeepSeek-R1', 'UD-Q2_K_XL')
    >>> names_in("", "gpt-oss 20B MXFP4 MoE")
    ('gpt-oss 20B', 'MXFP4')
    """
    plain = description.strip()
    stem = SHARD.sub("", PurePosixPath(filename.replace("\\", "/")).name)
    stem = stem.removesuffix(".gguf")
    quant, described = quant_in(stem), quant_in(plain)
    model = stem if quant is None else re.sub(r"[-._ ]+$", "", stem[: stem.lower().index(quant.lower())])
    if not model and plain:
        found = _QUANT.search(plain)
        model = plain[: found.start()].strip() if found else plain
    return model or None, quant or described


def gpus_of(names: Iterable[str]) -> tuple[RunGpu, ...]:
    """GPUs by name, equal ones that follow each other counted.

    >>> [(gpu.model, gpu.count) for gpu in gpus_of(["RTX 3090", "RTX 3090", "RTX 5090"])]
    [('RTX 3090', 2), ('RTX 5090', 1)]
    """
    groups: list[tuple[str, int]] = []
    for name in names:
        if groups and groups[-1][0] == name:
            groups[-1] = (name, groups[-1][1] + 1)
        else:
            groups.append((name, 1))
    return tuple(RunGpu(model=name, count=count) for name, count in groups)


def gpus_in_log(text: str) -> tuple[RunGpu, ...] | None:
    """The GPUs that ggml's CUDA backend lists when it starts ("Device 0: NVIDIA …, compute capability …")."""
    found = [match["name"] for line in text.splitlines() if (match := _DEVICE_LINE.match(line[:300]))]
    return gpus_of(found[:64]) or None
