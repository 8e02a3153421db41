"""What transformers assumes where a config.json is silent: the declared defaults of its config classes, as data.

`profiles/data/transformers_defaults.json` holds them for the families that are built in; tests/transformers_defaults.py
writes it anew and a test compares it with the installed transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _whole() -> dict[str, Any]:
    text = files("profiles").joinpath("data/transformers_defaults.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _data() -> dict[str, dict[str, Any]]:
    families: dict[str, dict[str, Any]] = _whole()["families"]
    return families


def defaults_of(model_type: str) -> Mapping[str, Any]:
    """Key -> the value that transformers' class declares for it; empty for a type that is not there.

    >>> defaults_of("qwen3_moe")["decoder_sparse_step"]
    1
    """
    values: Mapping[str, Any] = _data().get(model_type, {}).get("defaults", {})
    return values


def aliases_of(model_type: str) -> Mapping[str, str]:
    """Another name of a key -> the key, as transformers' `attribute_map` has them.

    >>> aliases_of("mixtral")
    {'num_experts': 'num_local_experts'}
    """
    names: Mapping[str, str] = _data().get(model_type, {}).get("aliases", {})
    return names


@cache
def known_to_transformers() -> frozenset[str]:
    """Every `model_type` that transformers of `transformers_version()` has a config class for."""
    return frozenset(_whole()["known"])


def transformers_version() -> str:
    version: str = _whole()["version"]
    return version
