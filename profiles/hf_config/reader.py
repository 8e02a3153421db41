"""A Hugging Face config.json -> ModelProfile, from the shapes of the architecture's own tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from profiles.block_bytes import profile_of
from profiles.document import short
from profiles.errors import ProfileError
from profiles.formats.door import stored_for
from profiles.formats.kv_cache import KvFormat
from profiles.formats.settings import Beside, nothing_beside
from profiles.hf_config.defaults import known_to_transformers, transformers_version
from profiles.hf_config.families import FAMILIES
from profiles.hf_config.text_model import text_model
from profiles.model import ModelProfile
from profiles.tensors import ModelTensors

SOURCE_KEY = "_source"
"""Where a preset config names its Hugging Face repository."""
READERS_GROUP = "moeplan.config_readers"
"""Entry points of `config -> ModelTensors` for architectures that are not built in."""
UNHANDLED_KEYS = ("per_layer_config",)
"""Keys that change shapes of single layers in a way no built-in family follows."""

ConfigReader = Callable[[dict[str, Any]], ModelTensors]


def read_hf_config(
    config: dict[str, Any],
    name: str,
    quant: str | None = None,
    kv: KvFormat | None = None,
    beside: Beside = nothing_beside,
) -> ModelProfile:
    """The profile of the model that `config` (a parsed config.json) describes, called `name`.

    `quant` is the weight format, as `profiles.formats.door.check_quant` knows them; by default what the config, or a
    file of its quantisation `beside` it, says. `kv` is how the cache is kept.
    Raises ProfileError with one line (field, value, remedy); the caller puts the file's name before it.
    """
    model = model_tensors(config)
    stored = stored_for(model, config, quant, beside)
    return profile_of(model, stored, name, source_of(config, stored.quant), kv=kv)


def model_tensors(config: dict[str, Any]) -> ModelTensors:
    """The tensors of the text model that `config` describes.

    A model of text and more (`text_config` and the like) is read as its text model. A family that is not built in goes
    to an installed reader (transformers on torch's meta device).
    """
    if not isinstance(config, dict):
        raise ProfileError(f"config.json: {short(config)} is not a mapping; download the file again")
    text = text_model(config)
    family = FAMILIES.get(text.family)
    if family is None or any(text.fields.config.get(k) is not None and k not in family.handles for k in UNHANDLED_KEYS):
        return _other_reader(text.family)(config)
    model = family.read(text.fields)
    notes: tuple[str, ...] = ("the text model only: towers for vision or sound are left out",) if text.prefix else ()
    if text.fields.assumed:
        sizes = ", ".join(f"{key} {value}" for key, value in text.fields.assumed.items())
        notes += (f"not in the file, so transformers' default: {sizes}",)
    names = family.disk_names
    if text.prefix:
        outer = text.prefix.removesuffix("model.") if text.prefix.endswith(".model.") else ""
        names = replace(names, renames=(*names.renames, (r"^model\.", text.prefix), (r"^lm_head\b", f"{outer}lm_head")))
    return replace(model, architecture=text.whole, notes=notes + model.notes, disk_names=names)


def source_of(config: dict[str, Any], quant: str) -> str:
    """Where the figures come from, in words."""
    repository = config.get(SOURCE_KEY)
    return f"config.json{f' of {repository}' if isinstance(repository, str) else ''}, {quant} by shape"


def _other_reader(family: str) -> ConfigReader:
    """The installed reader for other architectures; ProfileError saying what to install when there is none."""
    if family in known_to_transformers():
        for entry in entry_points(group=READERS_GROUP):
            try:
                reader: ConfigReader = entry.load()
            except ImportError:
                continue
            return reader
    raise not_built_in(family)


def not_built_in(family: str) -> ProfileError:
    """The error for an architecture that is not built in, where transformers is missing or does not know it either."""
    if family not in known_to_transformers():
        return ProfileError(
            f"model_type: {short(family)} is not built in, and transformers {transformers_version()} does not know it "
            "either; write a profile YAML (docs/profiles.md), or give a GGUF of this model"
        )
    return ProfileError(
        f"model_type: {short(family)} is not built in; install moeplan[torch] so that transformers can read its shapes"
    )
