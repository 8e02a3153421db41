"""Hand-written documents -> the nouns: `repeat`, catalogue entries, profiles that correct another profile.

What these add to the canonical documents of the nouns, which are accepted as well:

    layers:                                # profile: a layer written once
    - {repeat: 59, attention: {…}, experts: {…}}

    base: {model: deepseek-v2, quant: bf16}    # profile: start from another one and override what was measured
    measured:
    - {layers: 1-59, attention: {measured_seconds: {gpu: {1: 60 us}}}, experts: {weight_bytes: 4 GB}}

    devices:                               # hardware: the catalogue fills in what is not given
    - {use: L40, repeat: 8, memory_bytes: 46 GB}
    - {use: EPYC-9654, sockets: 2, memory_bytes: 768 GB}
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from pydantic import Field, StrictInt, ValidationError

from profiles.catalogue import CpuPart, GpuPart, find_cpu, find_gpu, machine_links, unknown_part
from profiles.device_names import gpu_type
from profiles.document import Document, Noun, SchemaOne, first_problem, one_line, require_mapping, short
from profiles.errors import HardwareError, MoeplanError, ProfileError
from profiles.hardware import Device, Hardware
from profiles.model import Block, Experts, KindBytes, Layer, ModelProfile, TimePoints, Workspace
from profiles.parts import TORCH_TYPES
from profiles.read_phrase import cpu_device, gpu_device, gpu_names
from profiles.units import ByteCount, Share

MAX_LAYERS = 10_000
MAX_DEVICES = 1024

LoadBase = Callable[[str, str | None], ModelProfile]
"""Loads the profile that a document names as its `base`: (name or path, quant)."""


class _Base(Noun):
    model: Annotated[str, Field(min_length=1)]
    quant: str | None = None


class _MeasuredBlock(Noun):
    """What a measurement can say about any block."""

    weight_bytes: KindBytes | None = None
    workspace_bytes: Workspace | None = None
    measured_seconds: TimePoints | None = None


class _MeasuredAttention(_MeasuredBlock):
    kv_bytes_per_token: ByteCount | None = None
    state_bytes: ByteCount | None = None


class _MeasuredExperts(_MeasuredBlock):
    expert_weight_bytes: tuple[ByteCount, ...] | None = None
    frequencies: tuple[Annotated[Share, Field(ge=0, le=1)], ...] | None = None


class _Measured(Noun):
    layers: str | StrictInt | tuple[StrictInt, ...]
    attention: _MeasuredAttention | None = None
    experts: _MeasuredExperts | None = None


class _Correction(Document):
    """A profile document with a `base`."""

    schema_: Annotated[SchemaOne, Field(alias="schema")] = 1
    base: _Base
    model: Annotated[str, Field(min_length=1)]
    quant: str | None = None
    source: Annotated[str, Field(min_length=1)]
    notes: tuple[str, ...] = ()
    measured: tuple[_Measured, ...] = ()
    embedding: _MeasuredBlock | None = None
    head: _MeasuredBlock | None = None


def profile_from_document(data: object, where: str, load_base: LoadBase) -> ModelProfile:
    """The profile that a parsed document describes, hand-written or canonical.

    `where` (a file name) starts every error; `load_base` is called when the document has a `base`. Raises
    ProfileError with one line.
    """
    document = require_mapping(data, where, ProfileError)
    if "base" in document:
        return _corrected(document, where, load_base)
    for key in ("measured",):
        if key in document:
            raise ProfileError(one_line(f"{where}: {key}: needs a base to correct; add base: {{model: NAME}}"))
    layers = document.get("layers")
    if not isinstance(layers, list):
        return ModelProfile.from_dict(document, where)
    repeats = _repeats(layers, MAX_LAYERS, where, "layers", ProfileError)
    written = [_without(item, "repeat") for item in layers]
    profile = ModelProfile.from_dict({**document, "layers": written}, where)
    expanded = [layer for layer, repeat in zip(profile.layers, repeats, strict=True) for _ in range(repeat)]
    return profile.replace(layers=tuple(expanded))


def _repeats(items: list[Any], most: int, where: str, field: str, error: type[MoeplanError]) -> list[int]:
    """How often each item stands for itself; the total is checked here, before anything is expanded."""
    repeats = []
    for index, item in enumerate(items):
        repeat = item.get("repeat", 1) if isinstance(item, dict) else 1
        if isinstance(repeat, bool) or not isinstance(repeat, int) or not 1 <= repeat <= most:
            problem = f"{field}[{index}].repeat: {short(repeat)} is not a whole number from 1 to {most}; mend it"
            raise error(one_line(f"{where}: {problem}"))
        repeats.append(repeat)
    if sum(repeats) > most:
        raise error(one_line(f"{where}: {field}: {sum(repeats)} in all, more than {most}; lower a repeat"))
    return repeats


def _without(item: Any, key: str) -> Any:
    return {k: v for k, v in item.items() if k != key} if isinstance(item, dict) else item


def _corrected(document: dict[str, Any], where: str, load_base: LoadBase) -> ModelProfile:
    if isinstance(document["base"], str):
        document = {**document, "base": {"model": document["base"]}}
    correction = _Correction.from_dict(document, where)
    try:
        base = load_base(correction.base.model, correction.base.quant)
    except MoeplanError as problem:
        raise ProfileError(one_line(f"{where}: base: {problem}")) from None
    try:
        layers = list(base.layers)
        for index, measured in enumerate(correction.measured):
            for number in _layer_numbers(measured.layers, len(layers), f"measured[{index}].layers"):
                layers[number] = _measured_layer(layers[number], measured, f"measured[{index}]", number)
        return base.replace(
            model=correction.model,
            quant=correction.quant or base.quant,
            source=correction.source,
            notes=(*correction.notes, f"built on {base.model}: {base.source}", *base.notes),
            embedding=_overridden(base.embedding, correction.embedding),
            head=_overridden(base.head, correction.head),
            layers=tuple(layers),
        )
    except MoeplanError as problem:
        raise ProfileError(one_line(f"{where}: {problem}")) from None


def _layer_numbers(chosen: str | int | tuple[int, ...], count: int, field: str) -> list[int]:
    """The layers that `chosen` names: "all", a number, "1-59", "0,4-7" or a list; each must exist."""
    if chosen == "all":
        return list(range(count))
    if isinstance(chosen, str):
        spans = [re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", part) for part in chosen.split(",")]
        found = [(int(span[1]), int(span[2] or span[1])) for span in spans if span is not None]
        if len(found) < len(spans) or any(first > last for first, last in found):
            raise ProfileError(f"{field}: {short(chosen)} names no layers; write all, 3, 1-59 or [0, 4]")
    else:
        numbers = (chosen,) if isinstance(chosen, int) else chosen
        found = [(number, number) for number in numbers]
    stray = next((n for span in found for n in span if not 0 <= n < count), None)
    if stray is not None:
        raise ProfileError(f"{field}: there is no layer {short(stray)}; the base has layers 0-{count - 1}")
    return sorted({number for first, last in found for number in range(first, last + 1)})


def _measured_layer(layer: Layer, measured: _Measured, field: str, number: int) -> Layer:
    if measured.experts is not None and layer.experts is None:
        raise ProfileError(f"{field}.experts: layer {number} is dense and has none; leave it out of `layers`")
    try:
        return layer.replace(
            attention=_overridden(layer.attention, measured.attention),
            experts=_overridden(layer.experts, measured.experts) if layer.experts is not None else None,
        )
    except ProfileError as problem:
        raise ProfileError(f"{field}: layer {number}: {problem}") from None


_B = TypeVar("_B", bound=Block)


def _overridden(block: _B, measured: _MeasuredBlock | None) -> _B:
    """`block` with what was measured. Times join the base's by device; bytes replace it.

    Where only the sum of the experts' bytes is given, the bytes of the single experts are scaled to it.
    """
    if measured is None:
        return block
    changes = {name: getattr(measured, name) for name in measured.model_fields_set}
    changes = {name: value for name, value in changes.items() if value is not None}
    if "measured_seconds" in changes:
        changes["measured_seconds"] = {**(block.measured_seconds or {}), **changes["measured_seconds"]}
    if isinstance(block, Experts) and block.expert_weight_bytes is not None and "expert_weight_bytes" not in changes:
        total = changes.get("weight_bytes", block.weight_bytes).gpu
        changes["expert_weight_bytes"] = _scaled(block.expert_weight_bytes, total)
    return block.replace(**changes)


def _scaled(parts: tuple[int, ...], total: int) -> tuple[int, ...] | None:
    """Whole numbers in the proportions of `parts` that sum to `total`; None where the parts have no proportions."""
    whole = sum(parts)
    if whole == 0:
        return None
    edges, so_far = [0], 0
    for part in parts:
        so_far += part
        edges.append(so_far * total // whole)
    return tuple(after - before for before, after in pairwise(edges))


def hardware_from_document(data: object, where: str) -> Hardware:
    """The machine that a parsed document describes, hand-written or canonical.

    Raises HardwareError with one line that starts with `where`.
    """
    document = require_mapping(data, where, HardwareError)
    items = document.get("devices")
    if not isinstance(items, list):
        return Hardware.from_dict(document, where)
    repeats = _repeats(items, MAX_DEVICES, where, "devices", HardwareError)
    devices: list[Device] = []
    for index, (item, repeat) in enumerate(zip(items, repeats, strict=True)):
        field = f"{where}: devices[{index}]"
        written = _filled_in(_without(require_mapping(item, field, HardwareError), "repeat"), field)
        for copy in range(repeat):
            name = _name(written, copy, devices, _torch_type(item))
            devices.append(_device({**written, "name": name}, field))
    links = document.get("links")
    if links is None:
        links = _catalogue_links(devices)
    return Hardware.from_dict({**document, "devices": devices, "links": links}, where)


def _filled_in(item: dict[str, Any], field: str) -> dict[str, Any]:
    """`item` with what the catalogue knows about the part it says to `use`; what it gives itself wins."""
    if "use" not in item:
        return item
    used, sockets = item["use"], item.get("sockets", 1)
    part = _part(used, item.get("kind"), field)
    if isinstance(sockets, bool) or not isinstance(sockets, int) or not 1 <= sockets <= 8:
        raise HardwareError(one_line(f"{field}.sockets: {short(sockets)} is not a whole number from 1 to 8; mend it"))
    given = {key: value for key, value in item.items() if key not in ("use", "sockets")}
    kind = "gpu" if isinstance(part, GpuPart) else "cpu"
    if given.get("kind", kind) != kind:
        problem = f"kind: {short(given['kind'])} is wrong, {part.name} is a {kind.upper()}; leave kind out"
        raise HardwareError(one_line(f"{field}.{problem}"))
    if isinstance(part, GpuPart):
        if sockets != 1:
            raise HardwareError(one_line(f"{field}.sockets: {part.name} is a GPU; write repeat: {sockets}"))
        if part.unified is not None and "pool" not in given:
            raise HardwareError(one_line(f"{field}.use: {_shares_memory(part)}"))
        known = gpu_device(gpu_names([part])[0], part, part.memory_bytes)
    else:
        if "memory_bytes" not in given:
            raise HardwareError(one_line(f"{field}.memory_bytes: missing, add the RAM of the machine, e.g. 512 GB"))
        known = cpu_device(part, 1, sockets)
    return {**_without(known.model_dump(exclude_none=True), "name"), **given}


def _shares_memory(part: GpuPart) -> str:
    """What to tell a user whose document names a chip with one memory, but no pool."""
    size = f"{part.memory_bytes / 1e9:g}GB"
    name = part.name if part.name.endswith("GB") else f"{part.name}-{size}"
    return f"{part.name} shares its memory with the CPU; name the machine {name} instead, or add pool: and pools:"


def _part(used: object, kind: object, field: str) -> GpuPart | CpuPart:
    """The part of that name: chips have a GPU and a CPU of one name, so `kind: cpu` means that."""
    if not isinstance(used, str):
        raise HardwareError(one_line(f"{field}.use: {short(used)} is not a name; write e.g. use: L40"))
    part = (find_cpu(used) if kind == "cpu" else None) or find_gpu(used) or find_cpu(used)
    if part is None:
        raise HardwareError(one_line(f"{field}.use: {unknown_part('GPU', used)}"))
    return part


def _torch_type(item: dict[str, Any]) -> str:
    """What torch calls the GPU that an entry says to `use`; `cuda` where it does not say."""
    part = find_gpu(item["use"]) if isinstance(item.get("use"), str) else None
    return "cuda" if part is None else TORCH_TYPES[part.backend]


def _name(written: dict[str, Any], copy: int, devices: list[Device], kind: str) -> object:
    """The name of the `copy`-th device of an entry: counted on from the given one, or the next of its `kind`."""
    given = written.get("name")
    counted = re.fullmatch(r"([a-z]+):([0-9]{1,4})", given) if isinstance(given, str) else None
    if copy == 0 and given is not None:
        return given
    if counted is not None:
        return f"{counted[1]}:{int(counted[2]) + copy}"
    if written.get("kind") == "cpu" or given is not None:
        return "cpu" if given is None else given
    return f"{kind}:{sum(gpu_type(device.name) == kind for device in devices)}"


def _device(written: dict[str, Any], field: str) -> Device:
    try:
        return Device(**written)
    except ValidationError as problem:
        raise HardwareError(one_line(f"{field}.{first_problem(problem, Device)}")) from None


def _catalogue_links(devices: list[Device]) -> list[Any]:
    """The links of a machine whose document leaves them out, from what its devices are."""
    gpus = [(device.name, find_gpu(device.model or "")) for device in devices if device.kind == "gpu"]
    cpu = next((device for device in devices if device.kind == "cpu"), None)
    return list(machine_links(gpus, find_cpu(cpu.model or "") if cpu else None)) if cpu else []
