"""Finding what a name means: a file, a folder, or text that comes with moeplan."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from importlib.resources import files
from pathlib import Path

from profiles.document import one_line, short
from profiles.errors import MoeplanError

DOCUMENT_SUFFIXES = (".yaml", ".yml", ".json")
WEIGHT_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth")


@cache
def texts_in(folder: str) -> dict[str, str]:
    """The YAML files of a data folder by name."""
    found = sorted(files("profiles").joinpath("data").joinpath(folder).iterdir(), key=lambda entry: entry.name)
    yamls = [entry for entry in found if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in yamls}


def name_or_path(x: object, what: str, remedy: str, error: type[MoeplanError]) -> str:
    if not isinstance(x, (str, os.PathLike)):
        raise error(one_line(f"{what}: expected {remedy}, got {short(x)}"))
    name = os.fspath(x)
    if not isinstance(name, str) or not name.strip():
        raise error(f"{what}: the name is {short(name)}; give {remedy}")
    return name


def existing_path(name: str) -> Path | None:
    """The path called `name` if anything is there; names that cannot be paths are none."""
    try:
        path = Path(name)
        return path if path.exists() else None
    except (OSError, ValueError):  # too long, or with a zero byte
        return None


def existing_file(name: str) -> Path | None:
    """The path called `name` if something other than a folder is there."""
    path = existing_path(name)
    return None if path is None or path.is_dir() else path


def refuse_folder(path: Path, error: type[MoeplanError]) -> None:
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir():
            raise error(one_line(f"{path}: is a folder; name a file in it, such as its config.json"))


def looks_like_path(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return "/" in name or os.sep in name or suffix in (*DOCUMENT_SUFFIXES, *WEIGHT_SUFFIXES)
