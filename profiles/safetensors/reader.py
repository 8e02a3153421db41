"""A checkpoint in safetensors files beside its config.json -> ModelProfile, to the byte.

Only headers are read (profiles/safetensors/header.py), never tensor data, and never a pickle. Which files belong to
the checkpoint: those that its index names, else all of the folder. Links are followed, as the caches of Hugging Face
consist of them; but the index itself can only name files in its own folder.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from profiles.block_bytes import profile_of
from profiles.document import one_line, read_document, require_mapping, short
from profiles.errors import ProfileError
from profiles.formats.beside import beside_in
from profiles.formats.kv_cache import KvFormat
from profiles.formats.methods import method_of
from profiles.formats.settings import Settings, settings_of
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS
from profiles.hf_config.reader import model_tensors
from profiles.model import ModelProfile
from profiles.safetensors.blocks import stored_in_checkpoint
from profiles.safetensors.header import AGAIN, Headers, bad, parse_json, read_headers

SUFFIX, INDEX_SUFFIX, INDEX = ".safetensors", ".safetensors.index.json", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MAX_FILES = 10_000
MAX_INDEX_BYTES = 100_000_000
"""As a header: an index names the same tensors (DeepSeek-R1's has 8.9 MB)."""
MTP_COUNT_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules")
_SHARD = re.compile(r"(.+)-([0-9]{5,6})-of-([0-9]{5,6})\.safetensors", re.DOTALL)
_PLAIN = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
ONE_TYPE_SHARE = 0.98
"""With this share of its bytes in one type a checkpoint is called after it: norms and routers are often in another."""


def read_safetensors(path: Path, name: str, kv: KvFormat | None = None) -> ModelProfile:
    """The profile, called `name`, of the checkpoint at `path`: a folder, its index, or a `.safetensors` file in it.

    A file called NAME-00001-of-00003.safetensors stands for all three; any other stands for itself. config.json must
    lie beside them: shapes, active experts and the cache come from it, bytes from the files. `kv` is how the cache is
    kept. Raises ProfileError, one line with the file, the field or tensor, and the remedy.
    """
    folder, files, headers = checkpoint_headers(path)
    config_path = folder / "config.json"
    if not config_path.exists():
        raise bad(config_path, "missing: active experts and the cache come from it; copy the model's own to there")
    config = require_mapping(read_document(config_path), str(config_path), ProfileError)
    try:
        model = model_tensors(config)
    except ProfileError as problem:
        raise _about(config_path, problem) from None
    model = replace(model, notes=tuple(note for note in model.notes if note != UNCOUNTED_BUFFERS))
    settings = settings_of(config, beside_in(folder))
    quant = quant_label(settings, headers)
    stored = stored_in_checkpoint(model, headers, quant, folder, _extra_layers(config))
    method = method_of(settings) if settings is not None and quant not in _PLAIN.values() else None
    stored = replace(stored, packed_by=method.name if method else None, value_bytes=4 if quant == "fp32" else 2)
    source = f"{len(files)} safetensors file{'s' if len(files) > 1 else ''}, bytes as stored; config.json"
    try:
        return profile_of(model, stored, name, source, _left_out(folder, files), kv)
    except ProfileError as problem:
        raise _about(config_path, problem) from None


def _about(path: Path, problem: ProfileError) -> ProfileError:
    return ProfileError(one_line(f"{path}: {str(problem).removeprefix('config.json: ')}"))


def checkpoint_headers(path: Path) -> tuple[Path, list[Path], Headers]:
    """The folder of a checkpoint, its files and their headers, checked against each other and the index.

    `path` and errors are as in `read_safetensors`.
    """
    try:
        folder, files, index = _files(path)
        headers = read_headers(files)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise bad(path, f"cannot be read: {reason}; check the path") from None
    if index is not None:
        _check_index(folder, headers, index)
    return folder, files, headers


def _files(path: Path) -> tuple[Path, list[Path], dict[str, set[str]] | None]:
    """The folder, the files of the checkpoint, and which tensors the index says are in each, if there is one."""
    if path.name.endswith(INDEX_SUFFIX):
        index = _read_index(path)
        return path.parent, [path.parent / file for file in index], index
    if not path.is_dir():
        return path.parent, _with_siblings(path), None
    names = sorted(entry.name for entry in path.iterdir())
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if INDEX in indices or len(indices) == 1:
        return _files(path / (INDEX if INDEX in indices else indices[0]))
    if indices:
        raise bad(path, f"has {len(indices)} indices: {', '.join(indices[:3])}; give one of them")
    found = [name for name in names if name.endswith(SUFFIX)]
    if not found:
        raise bad(path, _nothing(names))
    if len(found) > MAX_FILES:
        raise bad(path, f"has {len(found)} safetensors files, more than {MAX_FILES}; give one checkpoint's folder")
    return path, _whole([path / name for name in found]), None


def _nothing(names: list[str]) -> str:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if any(name.endswith(".gguf") for name in names):
        return "is a folder of GGUF; give the .gguf file itself"
    if pickles:
        return f"has pickles only ({pickles[0]}), which are never opened; get the safetensors or a GGUF of this model"
    return f"has no {SUFFIX} file; give the folder of a checkpoint, a GGUF, or a config.json with quant=…"


def _with_siblings(path: Path) -> list[Path]:
    """The file itself, or all files of the set of which its name says that it is a part."""
    if path.suffix.lower() in PICKLES:
        raise bad(path, "is a pickle, which is never opened; get the safetensors or a GGUF of this model")
    if not path.exists():
        raise bad(path, "no such file or folder; check the path")
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    found = ((entry, _SHARD.fullmatch(entry.name)) for entry in path.parent.iterdir())
    return _whole(sorted(entry for entry, other in found if other and other.group(1, 3) == match.group(1, 3)))


def _whole(files: list[Path]) -> list[Path]:
    """`files`, of which none of those that belong together is missing; ProfileError naming the first that is."""
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            numbers[match[1], match[3]].add(int(match[2]))
    for (stem, count), there in numbers.items():
        first = 0 if 0 in there else 1
        lacks = next((i for i in range(first, min(int(count), MAX_FILES) + first) if i not in there), None)
        if lacks is not None:
            name = f"{stem}-{lacks:0{len(count)}}-of-{count}{SUFFIX}"
            raise bad(files[0].parent / name, f"missing: its name says {int(count)} files; download it too")
    return files


def _read_index(path: Path) -> dict[str, set[str]]:
    """File name -> the tensors that the index says it holds."""
    if not path.is_file():
        raise bad(path, "is not a regular file; give the index of a checkpoint")
    with path.open("rb") as file:
        raw = file.read(MAX_INDEX_BYTES + 1)
    if len(raw) > MAX_INDEX_BYTES:
        raise bad(path, f"more than the {MAX_INDEX_BYTES} bytes that an index may have; {AGAIN}")
    index = parse_json(raw, path, "index", commas_each=1)
    placed = index.get("weight_map") if type(index) is dict else None
    if type(placed) is not dict or not placed:
        raise bad(path, f"weight_map: {short(placed)} instead of a mapping of tensors to files; {AGAIN}")
    files: dict[str, set[str]] = defaultdict(set)
    for tensor, file in placed.items():
        if type(file) is not str or file not in files:
            _check_name(path, tensor, file)
        files[file].add(tensor)
    if len(files) > MAX_FILES:
        raise bad(path, f"weight_map: {len(files)} files, more than {MAX_FILES}; {AGAIN}")
    return dict(files)


def _check_name(index: Path, tensor: str, file: Any) -> None:
    """An index may name files beside it only: a path that leads away would have other files opened."""
    plain = type(file) is str and file.endswith(SUFFIX) and file.isprintable() and not re.search(r"[/\\:]", file)
    if not plain:
        problem = f"weight_map of {short(tensor)}: {short(file)} is not the plain name of a {SUFFIX} file beside it"
        raise bad(index, f"{problem}; {AGAIN}")
    try:
        there = (index.parent / file).exists()
    except OSError:  # a name too long to be one
        there = False
    if not there:
        raise bad(index, f"weight_map of {short(tensor)}: no file {short(file)} beside it; download it too")


def _check_index(folder: Path, headers: Headers, index: dict[str, set[str]]) -> None:
    """Index and files name the same tensors in the same places."""
    for path, tensors in headers.items():
        listed = index[path.name]
        lost = next((name for name in listed if name not in tensors), None)
        if lost is not None:
            raise bad(path, f"tensor {short(lost)} is not in it, though the index says so; {AGAIN}")
        stray = next((name for name in tensors if name not in listed), None)
        if stray is not None:
            raise bad(path, f"tensor {short(stray)} is in it, but the index does not say so; {AGAIN}, or the index")


def _left_out(folder: Path, files: Iterable[Path]) -> tuple[str, ...]:
    """A note on safetensors of the folder that the index, or a name given, leaves out."""
    used = {file.name for file in files}
    others = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(SUFFIX) and entry.name not in used)
    if not others:
        return ()
    return (one_line(f"not read, as not of this checkpoint's index or set: {', '.join(others[:3])}"),)


def _extra_layers(config: dict[str, Any]) -> int:
    """How many layers after its own the config says are there to predict further tokens."""
    inner = config.get("text_config")
    holders = [config, inner] if isinstance(inner, dict) else [config]
    counts: list[int] = [holder[key] for holder in holders for key in MTP_COUNT_KEYS if type(holder.get(key)) is int]
    return max([0, *counts])


def quant_label(settings: Settings | None, headers: Headers) -> str:
    """What to call the weights' format: of their types, and of the method that `settings` name where they are packed.

    Only a name: bytes come from the files. A checkpoint of one plain type is called that whatever the config says.
    """
    sizes: Counter[str] = Counter()
    for tensors in headers.values():
        for entry in tensors.values():
            sizes[entry.dtype] += entry.n_bytes
    total = sum(sizes.values()) or 1
    for dtype, name in _PLAIN.items():
        if sizes[dtype] >= ONE_TYPE_SHARE * total:
            return name
    packed = sum(n for dtype, n in sizes.items() if dtype not in _PLAIN and not dtype.startswith("F8"))
    if packed < 0.02 * total:
        return "fp8" if sum(n for dtype, n in sizes.items() if dtype.startswith("F8")) >= total / 2 else "mixed"
    return _method(settings.values) if settings is not None else "mixed"


def _method(settings: Mapping[str, Any]) -> str:
    """A short name for a `quantization_config`, such as gptq-4bit."""
    method, bits = settings.get("quant_method", "mlx" if "group_size" in settings else None), settings.get("bits")
    groups = settings.get("config_groups")
    if bits is None and isinstance(groups, dict):
        weights = [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        bits = next((w.get("num_bits") for w in weights if isinstance(w, dict)), None)
    if method == "mxfp4":
        return "hf_mxfp4"
    if not isinstance(method, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,20}", method):
        return "mixed"
    return f"{method.lower()}-{bits}bit" if type(bits) is int and 0 < bits < 33 else method.lower()
