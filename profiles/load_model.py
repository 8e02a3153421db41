"""A name, a path, a mapping or the object itself -> the model's profile."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from profiles.catalogue import nearest
from profiles.document import one_line, parse_document, read_document, require_mapping, short
from profiles.errors import MoeplanError, ProfileError
from profiles.formats.beside import beside_in
from profiles.formats.kv_cache import KvFormat, kv_format
from profiles.formats.settings import Beside, nothing_beside
from profiles.gguf.reader import SHARD, read_gguf
from profiles.hf_config.reader import read_hf_config
from profiles.hub.allow import HubUnreachable, NeedsHub, allowed, is_allowed
from profiles.hub.name import HubName
from profiles.locate import DOCUMENT_SUFFIXES, WEIGHT_SUFFIXES, existing_path, name_or_path, texts_in
from profiles.model import ModelProfile
from profiles.presets import beside_preset, model_config_preset, model_config_preset_name, model_config_presets
from profiles.read_yaml import profile_from_document
from profiles.safetensors.reader import read_safetensors

INDEX_ENDING = ".safetensors.index.json"
MAX_BASES = 4
"""Longest chain of profiles that are each the base of the next: longer ones are circles."""


@dataclass(frozen=True)
class _Choice:
    """What the caller may choose where a file does not say it: the weight format, and how the cache is kept."""

    quant: str | None = None
    kv: KvFormat = field(default_factory=KvFormat)

    def refuse(self, where: str, why: str) -> None:
        """ProfileError where something was chosen although `where` leaves no choice."""
        for option, value in (("quant", self.quant), ("kv_quant", self.kv.type), ("mla", self.kv.mla)):
            if value is not None:
                problem = f"{option}: {short(value)} cannot be chosen, {why}; leave {option} out"
                raise ProfileError(one_line(f"{where}: {problem}"))


def load_profile(
    x: ModelProfile | dict[str, Any] | str | Path,
    quant: str | None = None,
    *,
    kv_quant: str | None = None,
    mla: str | None = None,
    hub: bool = False,
) -> ModelProfile:
    """A model's profile from a profile, a parsed document, a file or a preset name.

    Files: a `.gguf` (the first of its shards will do), a `.safetensors` or a folder of such beside their config.json,
    a Hugging Face `config.json`, or a profile document (YAML or JSON). Names: `profile_presets()`, or the Hugging Face
    repository of one, in any case. With `hub` also `owner/name[@revision][:FORMAT or file]` of the Hugging Face Hub, of
    which config files and headers are fetched and kept, never weights (docs/hub.md).

    `quant` ("bf16", "fp8", "q4_k_m", "gpu=marlin,cpu=q8_0", …: docs/quantisation.md) is the weight format where shapes
    are read; files of weights and profile documents have fixed bytes and take none. `kv_quant` ("fp16", "q8_0", …) is
    the type of the KV cache, `mla` whether latent attention keeps it "compressed" or "expanded"; by default as the
    reader knows.

    Raises ProfileError, one line with the file or name, the field and the remedy.
    """
    if quant is not None and not isinstance(quant, str):
        raise ProfileError(f"quant: {short(quant)} is not a name; write e.g. bf16, or leave it out")
    with allowed() if hub else nullcontext():
        return _load_profile(x, _Choice(quant, kv_format(kv_quant, mla)), Path(), 0)


@cache
def profile_presets() -> tuple[str, ...]:
    """Names that `load_profile` knows without a file, sorted."""
    return tuple(sorted({*model_config_presets(), *texts_in("models")}))


def _load_profile(x: object, choice: _Choice, folder: Path, depth: int) -> ModelProfile:
    """As `load_profile`; relative paths start at `folder`, and `depth` counts the bases on the way here."""
    if depth > MAX_BASES:
        raise ProfileError(f"more than {MAX_BASES} bases on top of each other; name a base that has none")
    if isinstance(x, dict) and _is_config(x):
        return _from_config(x, str(x.get("_name_or_path") or x.get("model_type") or "model")[:100], choice, "config")
    if isinstance(x, (ModelProfile, dict)):
        return _fixed(x, "profile", choice, folder, depth)
    name = name_or_path(x, "profile", "a preset name, a file of weights, a config.json or a profile YAML", ProfileError)
    path = existing_path(str(folder / name))
    if path is not None and not (path.is_dir() and _is_preset(name)):
        return _from_folder(path, choice) if path.is_dir() else _from_file(path, choice, depth)
    fetched = _from_hub(name, choice) if is_allowed() else None
    if fetched is not None:
        return fetched
    preset = _from_preset(name.strip(), choice, depth)
    if preset is not None:
        return preset
    raise _unknown_model(name)


def _fixed(x: ModelProfile | dict[str, Any], where: str, choice: _Choice, folder: Path, depth: int) -> ModelProfile:
    """A profile whose bytes are given: there is nothing to choose any more."""
    named = x.model if isinstance(x, ModelProfile) else where
    choice.refuse(named, "the bytes of a profile are fixed")
    if isinstance(x, ModelProfile):
        return x

    def base(name: str, base_quant: str | None) -> ModelProfile:
        return _load_profile(name, _Choice(base_quant), folder, depth + 1)

    return profile_from_document(x, where, base)


def _from_file(path: Path, choice: _Choice, depth: int) -> ModelProfile:
    suffix = path.suffix.lower()
    if suffix in WEIGHT_SUFFIXES or path.name.endswith(INDEX_ENDING):
        return _from_weights(path, choice)
    data = require_mapping(read_document(path, ProfileError), str(path), ProfileError)
    if suffix == ".json" and _is_config(data):
        return _from_config(data, _model_name(path), choice, str(path), beside_in(path.parent))
    return _fixed(data, str(path), choice, path.parent, depth)


def _from_weights(path: Path, choice: _Choice) -> ModelProfile:
    """A file of weights, or a folder of safetensors: bytes as stored, nothing but headers is read."""
    replace(choice, kv=KvFormat()).refuse(str(path), "the weights are as the file stores them")
    if path.suffix.lower() == ".gguf":
        return read_gguf(path, choice.kv)
    if path.is_dir() or path.suffix.lower() == ".safetensors" or path.name.endswith(INDEX_ENDING):
        return read_safetensors(path, _model_name(path), choice.kv)
    remedy = "give safetensors, a GGUF, or the model's config.json with quant=…"
    raise ProfileError(one_line(f"{path}: {path.suffix} files are pickles, which are never opened; {remedy}"))


def _from_folder(path: Path, choice: _Choice) -> ModelProfile:
    """A folder's weights, or its config.json alone where there are none or another format is asked for."""
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as problem:
        raise ProfileError(one_line(f"{path}: cannot be read: {problem.strerror or problem}; check it")) from None
    config = path / "config.json"
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if any(name.endswith((".safetensors", INDEX_ENDING)) for name in names):
        return _from_file(config, choice, 0) if choice.quant and config.is_file() else _from_weights(path, choice)
    if config.is_file():
        return _from_file(config, choice, 0)
    models = {SHARD.sub("", name) for name in ggufs}
    if len(models) == 1:
        return _from_weights(path / ggufs[0], choice)
    what = f"has {len(models)} models in GGUF files" if ggufs else "has neither safetensors, GGUF nor config.json"
    raise ProfileError(one_line(f"{path}: is a folder that {what}; name a file in it, or another folder"))


def _from_config(
    config: dict[str, Any], name: str, choice: _Choice, where: str, beside: Beside = nothing_beside
) -> ModelProfile:
    try:
        return read_hf_config(config, name, choice.quant, choice.kv, beside)
    except MoeplanError as problem:
        raise type(problem)(one_line(f"{where}: {problem}")) from None


def _model_name(path: Path) -> str:
    """A folder is called after itself and `config.json` after its folder, any other file after itself."""
    if path.is_dir():
        return path.absolute().name or "model"
    folder = path.absolute().parent.name
    return folder if path.stem == "config" and folder else path.stem


def _is_config(data: dict[str, Any]) -> bool:
    return ("model_type" in data or "architectures" in data) and "layers" not in data


def _is_preset(name: str) -> bool:
    return name.strip().lower() in texts_in("models") or model_config_preset_name(name.strip()) is not None


def _from_preset(name: str, choice: _Choice, depth: int) -> ModelProfile | None:
    text = texts_in("models").get(name.lower())
    if text is not None:
        where = f"{name.lower()}.yaml"
        data = require_mapping(parse_document(text, where), where, ProfileError)
        return _fixed(data, where, choice, Path(), depth)
    config, short_name = model_config_preset(name), model_config_preset_name(name)
    if config is None or short_name is None:
        return None
    return _from_config(config, short_name, choice, short_name, beside_preset(config))


def _from_hub(name: str, choice: _Choice) -> ModelProfile | None:
    """The model of the hub called `name`; None where that is no name of the hub, or of a preset and nothing answers."""
    hub_name = _hub_name(name)
    if hub_name is None:
        return None
    from profiles.hub.fetch import fetch  # it needs a library that not all have

    if choice.quant is not None and hub_name.pick is None:
        hub_name = hub_name.of_config()
    try:
        found = fetch(hub_name)
    except HubUnreachable as problem:
        preset = _from_preset(hub_name.repository, choice, 0) if hub_name.revision is None else None
        if preset is None or (hub_name.pick is not None and not hub_name.reads_shapes):
            raise
        note = f"shapes are those of the preset, as the hub cannot be asked ({problem})"
        return preset.replace(notes=(*preset.notes, one_line(note)))
    try:
        read = _from_folder(found.path, choice) if found.path.is_dir() else _from_file(found.path, choice, 0)
    except ProfileError as problem:
        said = str(problem).replace(f"{found.folder}/", f"{hub_name}: ").replace(str(found.folder), str(hub_name))
        raise ProfileError(one_line(said)) from None
    source = f"{read.source}; {hub_name.repository}, commit {found.commit[:7]}"
    return read.replace(model=str(hub_name), source=source, notes=(*read.notes, *found.notes))


def with_hub_config(name: str) -> str:
    """`name`, or the path of its config.json where it is a model of the hub, no preset and no path: fetched then.

    For what needs a config instead of a profile. Raises ProfileError, one line.
    """
    hub_name = _hub_name(name)
    if hub_name is None or existing_path(name) is not None or _is_preset(name):
        return name
    if not is_allowed():
        raise _unknown_model(name)
    from profiles.hub.fetch import fetch

    return str(fetch(hub_name.of_config()).path)


def _hub_name(name: str) -> HubName | None:
    """What `name` means on the hub, where that can be and it is not the path of a file that is not there."""
    is_file = ":" not in name and name.lower().endswith((*DOCUMENT_SUFFIXES, *WEIGHT_SUFFIXES))
    return None if is_file else HubName.parse(name)


def _unknown_model(name: str) -> ProfileError:
    if Path(name).suffix.lower() in (*DOCUMENT_SUFFIXES, *WEIGHT_SUFFIXES):
        return ProfileError(one_line(f"{name}: no such file; check the path"))
    known = profile_presets()
    near = nearest(name.split("/")[-1], known)
    hint = f", did you mean {' or '.join(near)}?" if near else ""
    problem = f"unknown model {short(name, 120)} (no such file, preset or repository of a preset){hint}"
    if _hub_name(name) is not None:
        return NeedsHub(one_line(f"{problem}; add --hub (hub=True) to have its config and headers fetched"))
    return ProfileError(one_line(f"{problem}; `moeplan models` lists the {len(known)} presets"))
