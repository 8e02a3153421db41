"""One door for users: a name, a path, a phrase, a mapping or the object itself -> the noun."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from profiles.catalogue import nearest
from profiles.document import Document, one_line, parse_document, read_document, require_mapping, short
from profiles.errors import HardwareError, MoeplanError, ProfileError
from profiles.hardware import Hardware
from profiles.model import ModelProfile
from profiles.placement import Placement
from profiles.presets import model_config_preset, model_config_preset_name, model_config_presets
from profiles.read_hf_config import read_hf_config
from profiles.read_phrase import looks_like_phrase, read_phrase
from profiles.read_yaml import hardware_from_document, profile_from_document
from profiles.workload import Workload

DOCUMENT_SUFFIXES = (".yaml", ".yml", ".json")
WEIGHT_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth")
MAX_BASES = 4
"""Longest chain of profiles that are each the base of the next: longer ones are circles."""

_D = TypeVar("_D", bound=Document)


def load_profile(x: ModelProfile | dict[str, Any] | str | Path, quant: str | None = None) -> ModelProfile:
    """A model's profile from a profile, a parsed document, a file or a preset name.

    Files: a profile document (YAML or JSON), or a Hugging Face `config.json`. Names: `profile_presets()`, or the
    Hugging Face repository of one, in any case. `quant` ("bf16", "fp8", "int4", …) is the weight format where shapes
    are read; a profile document has fixed bytes and takes none, except through its `base`.

    Raises ProfileError, one line with the file or name, the field and the remedy.
    """
    return _load_profile(x, quant, Path(), 0)


def load_hardware(x: Hardware | dict[str, Any] | str | Path) -> Hardware:
    """A machine from a Hardware, a parsed document, a file, a preset name (`hardware_presets()`) or a phrase.

    Raises HardwareError, one line with the file or phrase, the field and the remedy.
    """
    if isinstance(x, Hardware):
        return x
    if isinstance(x, dict):
        return hardware_from_document(x, "hardware")
    name = _name_or_path(x, "hardware", "a phrase such as 8xL40-46GB, a preset name or a YAML file", HardwareError)
    path = _existing_file(name)
    if path is not None:
        return hardware_from_document(read_document(path, HardwareError), str(path))
    text = _texts("hardware/presets").get(name.strip().lower())
    if text is not None:
        where = f"{name.strip().lower()}.yaml"
        return hardware_from_document(parse_document(text, where, HardwareError), where)
    _refuse_folder(Path(name), HardwareError)
    if _looks_like_path(name) and not looks_like_phrase(name):
        raise HardwareError(one_line(f"{name}: no such file; check the path"))
    try:
        return read_phrase(name)
    except HardwareError as problem:
        if looks_like_phrase(name):
            raise
        raise HardwareError(one_line(f"{problem}; presets: {', '.join(hardware_presets())}")) from None


def load_workload(x: Workload | dict[str, Any] | str | Path | None = None) -> Workload:
    """A workload from a Workload, a parsed document or a file; None means the default one."""
    return Workload() if x is None else _load_document(x, Workload, "workload")


def load_placement(x: Placement | dict[str, Any] | str | Path) -> Placement:
    """A plan from a Placement, a parsed document or a file.

    The document is checked in itself; whether it fits a model and a machine is for an evaluator to say.
    """
    return _load_document(x, Placement, "placement")


@cache
def profile_presets() -> tuple[str, ...]:
    """Names that `load_profile` knows without a file, sorted."""
    return tuple(sorted({*model_config_presets(), *_texts("models")}))


@cache
def hardware_presets() -> tuple[str, ...]:
    """Names that `load_hardware` knows without a file, sorted."""
    return tuple(sorted(_texts("hardware/presets")))


@cache
def _texts(folder: str) -> dict[str, str]:
    """The YAML files of a data folder by name."""
    found = sorted(files("profiles").joinpath("data").joinpath(folder).iterdir(), key=lambda entry: entry.name)
    yamls = [entry for entry in found if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in yamls}


def _load_profile(x: object, quant: str | None, folder: Path, depth: int) -> ModelProfile:
    """As `load_profile`; relative paths start at `folder`, and `depth` counts the bases on the way here."""
    if quant is not None and not isinstance(quant, str):
        raise ProfileError(f"quant: {short(quant)} is not a name; write e.g. bf16, or leave it out")
    if depth > MAX_BASES:
        raise ProfileError(f"more than {MAX_BASES} bases on top of each other; name a base that has none")
    if isinstance(x, dict) and _is_config(x):
        return _from_config(x, str(x.get("_name_or_path") or x.get("model_type") or "model")[:100], quant, "config")
    if isinstance(x, (ModelProfile, dict)):
        return _fixed(x, "profile", quant, folder, depth)
    name = _name_or_path(x, "profile", "a preset name, a config.json or a profile YAML", ProfileError)
    path = _existing_file(str(folder / name))
    if path is not None:
        return _profile_from_file(path, quant, depth)
    preset = _profile_preset(name.strip(), quant, depth)
    if preset is not None:
        return preset
    _refuse_folder(folder / name, ProfileError)
    raise _unknown_model(name)


def _fixed(x: ModelProfile | dict[str, Any], where: str, quant: str | None, folder: Path, depth: int) -> ModelProfile:
    """A profile whose bytes are given: there is no `quant` to choose any more."""
    if quant is not None:
        what = f"{x.model}: " if isinstance(x, ModelProfile) else f"{where}: "
        problem = f"quant: {short(quant)} cannot be chosen, the bytes of a profile are fixed; leave quant out"
        raise ProfileError(one_line(what + problem))
    if isinstance(x, ModelProfile):
        return x

    def base(name: str, base_quant: str | None) -> ModelProfile:
        return _load_profile(name, base_quant, folder, depth + 1)

    return profile_from_document(x, where, base)


def _profile_from_file(path: Path, quant: str | None, depth: int) -> ModelProfile:
    if path.suffix.lower() in WEIGHT_SUFFIXES:
        remedy = "give the model's config.json with quant=…, or a profile YAML"
        raise ProfileError(one_line(f"{path}: weight files are not read in this version; {remedy}"))
    data = require_mapping(read_document(path, ProfileError), str(path), ProfileError)
    if path.suffix.lower() == ".json" and _is_config(data):
        return _from_config(data, _model_name(path), quant, str(path))
    return _fixed(data, str(path), quant, path.parent, depth)


def _from_config(config: dict[str, Any], name: str, quant: str | None, where: str) -> ModelProfile:
    try:
        return read_hf_config(config, name, quant)
    except MoeplanError as problem:
        raise type(problem)(one_line(f"{where}: {problem}")) from None


def _model_name(path: Path) -> str:
    """`config.json` is called after its folder, any other file after itself."""
    folder = path.absolute().parent.name
    return folder if path.stem == "config" and folder else path.stem


def _is_config(data: dict[str, Any]) -> bool:
    return ("model_type" in data or "architectures" in data) and "layers" not in data


def _profile_preset(name: str, quant: str | None, depth: int) -> ModelProfile | None:
    text = _texts("models").get(name.lower())
    if text is not None:
        where = f"{name.lower()}.yaml"
        data = require_mapping(parse_document(text, where), where, ProfileError)
        return _fixed(data, where, quant, Path(), depth)
    config, short_name = model_config_preset(name), model_config_preset_name(name)
    if config is None or short_name is None:
        return None
    return _from_config(config, short_name, quant, short_name)


def _unknown_model(name: str) -> ProfileError:
    if Path(name).suffix.lower() in (*DOCUMENT_SUFFIXES, *WEIGHT_SUFFIXES):
        return ProfileError(one_line(f"{name}: no such file; check the path"))
    known = profile_presets()
    near = nearest(name.split("/")[-1], known)
    hint = f", did you mean {' or '.join(near)}?" if near else ""
    problem = f"unknown model {short(name)} (no such file, preset or repository of a preset){hint}"
    return ProfileError(one_line(f"{problem}; presets: {', '.join(known)}"))


def _load_document(x: object, kind: type[_D], what: str) -> _D:
    if isinstance(x, kind):
        return x
    if isinstance(x, dict):
        return kind.from_dict(x, what)
    name = _name_or_path(x, what, "a YAML or JSON file", kind.error)
    path = _existing_file(name)
    if path is None:
        _refuse_folder(Path(name), kind.error)
        raise kind.error(one_line(f"{name}: no such file; check the path of the {what}"))
    return kind.from_dict(read_document(path, kind.error), str(path))


def _name_or_path(x: object, what: str, remedy: str, error: type[MoeplanError]) -> str:
    if not isinstance(x, (str, os.PathLike)):
        raise error(one_line(f"{what}: expected {remedy}, got {short(x)}"))
    name = os.fspath(x)
    if not isinstance(name, str) or not name.strip():
        raise error(f"{what}: the name is {short(name)}; give {remedy}")
    return name


def _existing_file(name: str) -> Path | None:
    """The path called `name` if something other than a folder is there; names that cannot be paths are none."""
    try:
        path = Path(name)
        return path if path.exists() and not path.is_dir() else None
    except (OSError, ValueError):  # too long, or with a zero byte
        return None


def _refuse_folder(path: Path, error: type[MoeplanError]) -> None:
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir():
            raise error(one_line(f"{path}: is a folder; name a file in it, such as its config.json"))


def _looks_like_path(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return "/" in name or os.sep in name or suffix in (*DOCUMENT_SUFFIXES, *WEIGHT_SUFFIXES)
