"""Which files of a repository tell what a model is: its small JSON files, and the weights whose headers are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from profiles.document import short
from profiles.errors import ProfileError
from profiles.gguf.reader import SHARD
from profiles.hub.name import CONFIG, HubName

SMALL = (
    CONFIG,
    *("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json", "params.json"),
)
"""What says shapes and formats, and is small."""
INDEX_ENDING = ".safetensors.index.json"
MAX_WEIGHTS = 2000
"""Files of weights of one model: DeepSeek-R1 has 163."""
_FORMAT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q[1-9]|TQ[12]|MXFP[468]|NVFP4|BF16|FP?16|FP?32)(?:_[A-Z0-9]+)*)$", re.IGNORECASE
)
_NO_MODEL = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix)(?:[-._]|$)", re.IGNORECASE)
"""Projectors of images and statistics of quantisers come as GGUF too."""
Sets = dict[str, list[str]]
"""The GGUF files of a repository by the name that they share: shards stand together."""


def small_files(paths: Iterable[str]) -> list[str]:
    """The JSON files to fetch whole, indices of safetensors among them."""
    return sorted(path for path in paths if path in SMALL or ("/" not in path and path.endswith(INDEX_ENDING)))


def safetensors(paths: Iterable[str], indices: Mapping[str, Iterable[str]]) -> list[str]:
    """The safetensors whose headers make the checkpoint; `indices` are those of the repository, with what they name.

    As where a folder is read: what `model.safetensors.index.json`, or the only index, names, else all.
    """
    here = sorted(path for path in paths if "/" not in path and path.endswith(".safetensors"))
    index = "model" + INDEX_ENDING if "model" + INDEX_ENDING in indices else next(iter(indices), None)
    named = set(here if index is None else indices[index])
    lost = sorted(named.difference(here))
    if lost:
        raise ProfileError(f"{index}: names {short(lost[0])}, which is not there; tell its owners, or name another one")
    return _bounded(sorted(named))


def ggufs(paths: Iterable[str]) -> Sets:
    """All models in GGUF files."""
    found: Sets = {}
    for path in sorted(paths):
        if path.lower().endswith(".gguf") and not _NO_MODEL.search(path.removesuffix(".gguf")):
            found.setdefault(SHARD.sub("", path)[: -len(".gguf")], []).append(path)
    return found


def chosen_gguf(name: HubName, sets: Sets) -> list[str]:
    """The files of the one model that `name` means. ProfileError listing what there is where it is none, or several."""
    pick = name.pick
    if pick is None:
        found = list(sets)
    elif pick.lower().endswith(".gguf"):
        found = [key for key, files in sets.items() if pick in files or pick in (f.split("/")[-1] for f in files)]
    else:
        found = [key for key in sets if _format_of(key).lower() == pick.lower()] or _with_word(sets, pick)
    if len(found) == 1:
        return _bounded(sets[found[0]])
    known = ", ".join(_choices(found or list(sets), name)[:8])
    if pick is not None and not found:
        raise ProfileError(f"{short(pick)} is none of its GGUF files; it has {known}")
    raise ProfileError(f"has {len(found)} models in GGUF files; name one: {known}")


def _choices(keys: list[str], name: HubName) -> list[str]:
    """How to call each: by its format where that is enough, else by its first file's name."""
    formats = [_format_of(key) for key in keys]
    return [
        f"{name.repository}:{form if form and formats.count(form) == 1 else key + '.gguf'}"
        for key, form in zip(keys, formats, strict=True)
    ]


def _format_of(key: str) -> str:
    """The format with which a file's name, or its folder's, ends; empty where it is none that is known.

    >>> _format_of("Qwen3-30B-A3B-UD-Q4_K_XL"), _format_of("Q8_0/Qwen3-Coder")
    ('UD-Q4_K_XL', 'Q8_0')
    """
    found = next((match for part in reversed(key.split("/")) if (match := _FORMAT.search(part))), None)
    return found[1] if found else ""


def _with_word(sets: Sets, pick: str) -> list[str]:
    """Names that hold `pick` as a word."""
    word = re.compile(rf"(?<![a-z0-9_]){re.escape(pick)}(?![a-z0-9_])", re.IGNORECASE)
    return [key for key in sets if word.search(key)]


def _bounded(files: list[str]) -> list[str]:
    if len(files) > MAX_WEIGHTS:
        raise ProfileError(f"its model has {len(files)} files, more than {MAX_WEIGHTS}; name another repository")
    return files
