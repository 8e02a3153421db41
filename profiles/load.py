"""One door for users: a name, a path, a phrase, a mapping or the object itself -> the noun."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from profiles.catalogue import nearest
from profiles.document import Document, one_line, parse_document, read_document
from profiles.errors import HardwareError
from profiles.hardware import Hardware
from profiles.hub.name import HubName
from profiles.load_model import load_profile, profile_presets
from profiles.locate import existing_file, looks_like_path, name_or_path, refuse_folder, texts_in
from profiles.placement import Placement
from profiles.presets import model_config_preset_name
from profiles.read_phrase import looks_like_phrase, read_phrase
from profiles.read_yaml import hardware_from_document
from profiles.workload import Workload

LOCAL = "local"
MACHINE_READERS_GROUP = "moeplan.machine_readers"
"""Entry points of `() -> Hardware`, by name; `local` reads the machine this runs on (docs/decisions/0001)."""

_D = TypeVar("_D", bound=Document)

__all__ = [
    "hardware_presets",
    "load_hardware",
    "load_placement",
    "load_profile",
    "load_workload",
    "profile_presets",
]


def load_hardware(x: Hardware | dict[str, Any] | str | Path) -> Hardware:
    """A machine from a Hardware, a parsed document, a file, a preset name (`hardware_presets()`), a phrase or "local".

    "local" is the machine this runs on, read and measured once a process (docs/local_machine.md); a file of that name
    is `./local`. Raises HardwareError, one line with the file or phrase, the field and the remedy.
    """
    if isinstance(x, Hardware):
        return x
    if isinstance(x, dict):
        return hardware_from_document(x, "hardware")
    name = name_or_path(x, "hardware", "a phrase such as 8xL40-46GB, a preset name or a YAML file", HardwareError)
    if name.strip().lower() == LOCAL:
        return _machine_reader()()
    path = existing_file(name)
    if path is not None:
        return hardware_from_document(read_document(path, HardwareError), str(path))
    text = texts_in("hardware/presets").get(name.strip().lower())
    if text is not None:
        where = f"{name.strip().lower()}.yaml"
        return hardware_from_document(parse_document(text, where, HardwareError), where)
    refuse_folder(Path(name), HardwareError)
    if looks_like_path(name) and not looks_like_phrase(name):
        raise HardwareError(one_line(f"{name}: no such file; check the path"))
    try:
        return read_phrase(name)
    except HardwareError as problem:
        if looks_like_phrase(name):
            raise
        presets = nearest(name, hardware_presets(), 1) or hardware_presets()[:1]
        raise HardwareError(f"{problem}; presets: {presets[0]}, …") from None


def _machine_reader() -> Callable[[], Hardware]:
    """The installed reader of this machine; HardwareError saying what to install when there is none."""
    for entry in entry_points(group=MACHINE_READERS_GROUP, name=LOCAL):
        with contextlib.suppress(ImportError):
            reader: Callable[[], Hardware] = entry.load()
            return reader
    raise HardwareError(
        f"{LOCAL}: nothing that reads this machine is installed; install moeplan with pip (in a checkout:"
        " pip install -e .), or describe the machine with a phrase or a YAML"
    )


def load_workload(x: Workload | dict[str, Any] | str | Path | None = None) -> Workload:
    """A workload from a Workload, a parsed document or a file; None means the default one."""
    return Workload() if x is None else _load_document(x, Workload, "workload")


def load_placement(x: Placement | dict[str, Any] | str | Path) -> Placement:
    """A plan from a Placement, a parsed document or a file.

    The document is checked in itself; whether it fits a model and a machine is for an evaluator to say.
    """
    return _load_document(x, Placement, "placement")


def formats_of(plan: Placement) -> dict[str, Any]:
    """What `load_profile(plan.model)` takes beside the name to give the plan's own bytes.

    The formats where bytes are made from shapes; of files on the hub only how the cache is kept. A profile document
    has its bytes and takes none.
    """
    model = plan.model or ""
    name = None if model_config_preset_name(model) is not None else HubName.parse(model)
    if name is not None and not name.reads_shapes:
        return {"kv_quant": plan.kv_quant, "mla": plan.mla}
    if name is None and model_config_preset_name(model) is None:
        return {}
    return {"quant": plan.quant, "kv_quant": plan.kv_quant, "mla": plan.mla}


@cache
def hardware_presets() -> tuple[str, ...]:
    """Names that `load_hardware` knows without a file, sorted."""
    return tuple(sorted(texts_in("hardware/presets")))


def _load_document(x: object, kind: type[_D], what: str) -> _D:
    if isinstance(x, kind):
        return x
    if isinstance(x, dict):
        return kind.from_dict(x, what)
    name = name_or_path(x, what, "a YAML or JSON file", kind.error)
    path = existing_file(name)
    if path is None:
        refuse_folder(Path(name), kind.error)
        raise kind.error(one_line(f"{name}: no such file; check the path of the {what}"))
    return kind.from_dict(read_document(path, kind.error), str(path))
