"""A device_map of transformers 5 resolved without transformers: which module it puts on which device."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

from profiles.device_names import DEVICE_NAME, GPU_TYPES
from profiles.document import one_line, parse_document, short
from profiles.errors import TargetError
from runtime_adapter.targets.accelerate.modules import ROTARY, family_of, modules
from runtime_adapter.targets.target import Outline

MAX_CHARACTERS = 2**18
"""A map with eight keys for each of 500 layers is shorter."""


def keys_of(text: str, outline: Outline, where: str) -> dict[str, str]:
    """The map's keys with our names of devices. Raises TargetError for what `accelerate.simulate` names, except for
    modules without a key."""
    names = _names(outline)
    devices = _parse(text, where)
    _check_keys(devices, names, text, where)
    return devices


def resolve(devices: Mapping[str, str], outline: Outline, where: str) -> dict[str, str]:
    """The device of every module that holds weights. Raises TargetError for a module without a key."""
    return {name: _resolve(name, devices, where) for name in _names(outline)}


def key_over(name: str, devices: Mapping[str, str]) -> str | None:
    """The key that holds a module: its own, or that of one around it.

    >>> key_over("model.layers.10.mlp", {"model.layers.1": "cpu", "model.layers.10": "cuda:0"})
    'model.layers.10'
    """
    return next((prefix for prefix in _prefixes(name) if prefix in devices), None)


@lru_cache(2**14)
def _prefixes(name: str) -> tuple[str, ...]:
    """The model itself, each module around the named one, and that."""
    return ("", *accumulate(name.split("."), lambda outer, part: f"{outer}.{part}"))


def _names(outline: Outline) -> list[str]:
    return list(modules(family_of(outline.architecture), [count != 0 for count in outline.experts]))


def _parse(text: str, where: str) -> dict[str, str]:
    """The map with our names of devices."""
    if len(text) > MAX_CHARACTERS:
        size = f"{len(text)} characters, more than the {MAX_CHARACTERS} that a device_map may have"
        raise TargetError(f"{where}: {size}; shorten it")
    try:
        found = parse_document(text, "device_map.json", TargetError)
    except TargetError as problem:
        raise TargetError(one_line(str(problem).replace("device_map.json", where, 1))) from None
    if not isinstance(found, dict) or not found:
        example = 'write {"model.layers.0": 0, ...}'
        raise TargetError(one_line(f"{where}: expected a mapping of modules to devices, got {short(found)}; {example}"))
    return {key: _device(key, value, text, where) for key, value in found.items()}


def _device(key: str, value: Any, text: str, where: str) -> str:
    if type(value) is int and value >= 0:
        value = f"cuda:{value}"
    if value in GPU_TYPES:
        return f"{value}:0"
    if isinstance(value, str) and DEVICE_NAME.fullmatch(value):
        return value
    reason = "disk, which no plan uses" if value == "disk" else f"{short(value)}, which is no device"
    raise _wrong(key, f"is on {reason}; write the number of a GPU or cpu", text, where)


def _wrong(key: str, problem: str, text: str, where: str) -> TargetError:
    line = text.count("\n", 0, max(0, text.find(json.dumps(key)))) + 1
    return TargetError(one_line(f"{where}: line {line}: {short(key)} {problem}"))


def _check_keys(devices: Mapping[str, str], names: list[str], text: str, where: str) -> None:
    """Every key is a module or several whole ones, and no module has two."""
    holders = {prefix for name in names for prefix in _prefixes(name)}
    for key in devices:
        if key not in holders and key != ROTARY:
            raise _wrong(key, _unknown(key, names), text, where)
        if (over := key_over(key, devices)) not in (key, None):
            raise _wrong(key, f"is held by the key {short(over)} already; keep one of them", text, where)


def _unknown(key: str, names: list[str]) -> str:
    """What is wrong with a key that names no module, and what to write."""
    if (whole := next((name for name in names if key.startswith(f"{name}.")), None)) is not None:
        return f"is a part of {whole}, which has to be in one place; write {whole}"
    layer = re.match(r"model\.layers\.\d{1,6}\.", key)
    inside = [name.removeprefix(layer[0]) for name in names if name.startswith(layer[0])] if layer else []
    if inside:
        there = ", ".join(inside)
        return f"is no module in transformers 5, where this layer has {there}; write one of them, or the whole layer"
    layers = sum(name.endswith(".input_layernorm") for name in names)
    return f"is no module of this model, whose {layers} layers are model.layers.0 and on; mend it"


def _resolve(name: str, devices: Mapping[str, str], where: str) -> str:
    """The device of one module. Raises TargetError where no key holds it, with what transformers would take instead."""
    if (key := key_over(name, devices)) is not None:
        return devices[key]
    ordered = sorted(devices, key=lambda key: (key.count("."), len(key)), reverse=True)
    caught = next((key for key in ordered if re.match(key, name)), None)
    trap = f" (transformers would load it where {caught} is)" if caught else ""
    raise TargetError(f"{where}: no key holds {name}{trap}; add one")
