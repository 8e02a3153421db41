"""The config.json presets that come with moeplan, by short name or by Hugging Face repository."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from profiles.formats.settings import Beside
from profiles.hf_config.reader import SOURCE_KEY

HF_QUANT_KEY = "_hf_quant_config"
"""Where a preset keeps the hf_quant_config.json that its checkpoint has beside config.json."""


@cache
def _texts() -> dict[str, str]:
    folder = files("profiles") / "data" / "models"
    return {
        entry.name.removesuffix(".json"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".json")
    }


@cache
def _names_by_repository() -> dict[str, str]:
    return {json.loads(text)[SOURCE_KEY].lower(): name for name, text in _texts().items()}


def model_config_presets() -> tuple[str, ...]:
    """Short names of all config.json presets, sorted."""
    return tuple(_texts())


def model_config_preset_name(name: str) -> str | None:
    """The short name of a preset given by short name or repository, in any case; None where there is none.

    >>> model_config_preset_name("deepseek-ai/DeepSeek-V2")
    'deepseek-v2'
    """
    lower = name.lower()
    return lower if lower in _texts() else _names_by_repository().get(lower)


def model_config_preset(name: str) -> dict[str, Any] | None:
    """A fresh copy of the preset's config.json, its repository under `_source`; None where there is none."""
    found = model_config_preset_name(name)
    return None if found is None else json.loads(_texts()[found])


def beside_preset(config: dict[str, Any]) -> Beside:
    """What lies beside the config.json of a preset: its hf_quant_config.json, where it came with one."""

    def read(name: str) -> dict[str, Any] | None:
        return config.get(HF_QUANT_KEY) if name == "hf_quant_config.json" else None

    return read
