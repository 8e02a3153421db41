"""Read a machine from a phrase: `8xL40-46GB`, `2xA100-80GB+4xRTX4090,cpu=EPYC-9654,ram=768GB`.

    phrase = [gpus] {"," key "=" value}        gpus = [count "x"] model ["-" size] {"+" …}

Keys: `cpu` (a catalogue name), `ram` (default 512 GB), `sockets` (default 1), `budget` (what a plan may use of every
GPU, absolutely), `link` (a catalogue link such as
`pcie4x16`, a rate such as `50GB/s`, both for every GPU's way to the CPU and taken as stated, or `nvlink`: bridges
between neighbours that can have them). Case, dashes and spaces do not matter.

A size means exactly that many bytes (`46GB` is 46 * 10^9): the catalogue gives the speeds, and its variant where the
size is part of a name (`A100-80GB`). Without a size the catalogue's bytes are taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from profiles.catalogue import (
    GPU_CONTEXT_BYTES,
    CpuPart,
    GpuPart,
    catalogue,
    find_cpu,
    find_gpu,
    find_link,
    machine_links,
    near_names,
    unknown_part,
)
from profiles.errors import HardwareError
from profiles.hardware import Device, Hardware
from profiles.units import BYTE_UNITS, RATE_UNITS, gb, parse_bytes, parse_quantity

MAX_GPUS = 64
MAX_SOCKETS = 8
MAX_PHRASE = 300
DEFAULT_RAM_BYTES = 512 * 10**9
GENERIC_CPU_BYTES_PER_S = 200e9
GENERIC_CPU_FLOPS_PER_S = 4e12
KEYS = ("cpu", "ram", "sockets", "link", "budget")

_COUNT = re.compile(r"([+-]?[0-9]+)\s*[xX×*]\s*(.*)")
_SIZE = re.compile(r"[-\s_]*(?<![0-9.])([0-9]+(?:\.[0-9]+)?)\s*([kKmMgGtT][iI]?[bB])(?![a-zA-Z])")
_UNITS = {unit.lower(): unit for unit in BYTE_UNITS}
_RATES = {unit.lower(): unit for unit in RATE_UNITS}


@dataclass(frozen=True)
class _Options:
    """What stands after the GPUs, read."""

    cpu: CpuPart | None = None
    ram_bytes: int = DEFAULT_RAM_BYTES
    sockets: int = 1
    host_bytes_per_s: float | None = None
    nvlink: bool = False
    budget_bytes: int | None = None


@dataclass(frozen=True)
class _Gpus:
    """One part of the phrase: `count` equal GPUs; `asked` is the name as written."""

    count: int
    part: GpuPart
    memory_bytes: int
    asked: str


def looks_like_phrase(text: str) -> bool:
    """Whether an unknown name was meant as a phrase: it has a count, a key or several parts."""
    return bool(_COUNT.match(text.strip()) or "=" in text or "+" in text)


def read_phrase(text: str) -> Hardware:
    """The machine that `text` describes; its `name` is `text`, so that a plan that stores it can be loaded again.

    Raises HardwareError, one line with the phrase, the part that is wrong and the remedy.

    >>> machine = read_phrase("2xL40-46GB,ram=256GB")
    >>> [device.name for device in machine.devices], machine.cpu.memory_bytes
    (['cuda:0', 'cuda:1', 'cpu'], 256000000000)
    """
    phrase = text.strip()
    if not phrase or len(phrase) > MAX_PHRASE or not phrase.isprintable():
        _fail(phrase, "is empty, too long or not one line; write e.g. 8xL40-46GB,ram=512GB")
    first, *rest = [piece.strip() for piece in phrase.split(",")]
    if "=" in first:
        first, rest = "", [first, *rest]
    elif not first:
        _fail(phrase, "starts with an empty part; name GPUs, or only cpu=…, first")
    groups = [_read_gpus(piece.strip(), phrase) for piece in first.split("+")] if first else []
    if sum(group.count for group in groups) > MAX_GPUS:
        _fail(phrase, f"has {sum(group.count for group in groups)} GPUs; use at most {MAX_GPUS} in one machine")
    return _machine(phrase, groups, _read_options(rest, phrase))


def _fail(phrase: str, problem: str) -> NoReturn:
    shown = phrase if len(phrase) <= 60 else phrase[:59] + "…"
    raise HardwareError(f"hardware phrase {shown!r}: {problem}")


def _read_gpus(piece: str, phrase: str) -> _Gpus:
    if not piece:
        _fail(phrase, "has an empty part beside a '+'; take the '+' away or name a GPU")
    counted = _COUNT.fullmatch(piece)
    digits, name = (counted[1], counted[2].strip()) if counted else ("1", piece)
    if len(digits) > 9 or not 1 <= int(digits) <= MAX_GPUS:
        _fail(phrase, f"count {digits[:12]} of {name[:30]!r} is not between 1 and {MAX_GPUS}; write e.g. 8x{name[:30]}")
    size = _SIZE.search(name)
    model = name[: size.start()] + "-" + name[size.end() :] if size else name
    part = find_gpu(name) or find_gpu(model)
    if part is None:
        _fail(phrase, unknown_part("GPU", model.strip("- ") if size else name))
    memory_bytes = _bytes(size[1] + size[2], "memory", phrase) if size else part.memory_bytes
    return _Gpus(int(digits), part, memory_bytes, name)


def _bytes(text: str, what: str, phrase: str) -> int:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        _fail(phrase, f"{what} {text[:30]!r} is not a size; write e.g. 512GB or 512GiB")
    try:
        size = parse_bytes(f"{match[1]} {_UNITS[match[2].lower()]}")
    except ValueError as problem:
        _fail(phrase, f"{what} {text[:30]!r}: {problem}")
    if not 0 < size <= 10**15:
        _fail(phrase, f"{what} {text[:30]!r} is not between 1 byte and 1000 TB; write e.g. 512GB")
    return size


def _read_options(pieces: list[str], phrase: str) -> _Options:
    values: dict[str, str] = {}
    for piece in pieces:
        key, equals, value = (word.strip() for word in piece.partition("="))
        if not equals:
            remedy = "join GPUs with '+'" if piece else "take the extra comma away"
            _fail(phrase, f"part {piece[:30]!r} is not key=value; {remedy}")
        if key.lower() not in KEYS:
            _fail(phrase, f"unknown key {key[:30]!r}, {near_names(key, KEYS)}")
        if key.lower() in values:
            _fail(phrase, f"key {key.lower()!r} is given twice; keep one")
        if not value:
            _fail(phrase, f"key {key.lower()!r} has no value; write e.g. {key.lower()}=…, or leave it out")
        values[key.lower()] = value
    return _Options(
        cpu=_read_cpu(values["cpu"], phrase) if "cpu" in values else None,
        ram_bytes=_bytes(values["ram"], "ram", phrase) if "ram" in values else DEFAULT_RAM_BYTES,
        sockets=_read_sockets(values["sockets"], phrase) if "sockets" in values else 1,
        host_bytes_per_s=_read_link(values["link"], phrase) if "link" in values else None,
        nvlink=values.get("link", "").lower() == "nvlink",
        budget_bytes=_bytes(values["budget"], "budget", phrase) if "budget" in values else None,
    )


def _read_cpu(name: str, phrase: str) -> CpuPart:
    part = find_cpu(name)
    if part is None:
        _fail(phrase, unknown_part("CPU", name))
    return part


def _read_sockets(text: str, phrase: str) -> int:
    if not re.fullmatch(r"[1-9]", text) or int(text) > MAX_SOCKETS:
        _fail(phrase, f"sockets {text[:20]!r} is not a number between 1 and {MAX_SOCKETS}; write e.g. sockets=2")
    return int(text)


def _read_link(text: str, phrase: str) -> float | None:
    """Bytes/s of the host links; None for `nvlink`, which leaves them as they are."""
    if text.lower() == "nvlink":
        return None
    part = find_link(text)
    if part is not None:
        return part.bandwidth_bytes_per_s
    rate = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*([A-Za-z]+/s)", text, re.IGNORECASE)
    if rate is not None and rate[2].lower() in _RATES:
        speed = parse_quantity(f"{rate[1]} {_RATES[rate[2].lower()]}", RATE_UNITS, "50 GB/s")
        if 1e6 <= speed <= 1e13:
            return speed
    known = ", ".join(part.name for part in catalogue().links)
    _fail(phrase, f"link {text[:30]!r} is not known; use nvlink, a rate such as 50GB/s, or one of {known}")


def _machine(phrase: str, groups: list[_Gpus], options: _Options) -> Hardware:
    named = [(group, f"cuda:{index}") for index, group in enumerate(g for g in groups for _ in range(g.count))]
    _check_budget(options.budget_bytes, groups, phrase)
    gpus = [
        gpu_device(name, group.part, group.memory_bytes).replace(budget_bytes=options.budget_bytes)
        for group, name in named
    ]
    if options.nvlink and not any(group.part.nvlink for group in groups):
        joined = ", ".join([part.name for part in catalogue().gpus if part.nvlink][:8])
        _fail(phrase, f"link=nvlink, but none of its GPUs has NVLink; leave it out or use e.g. {joined}")
    cpu = cpu_device(options.cpu, options.ram_bytes, options.sockets)
    parts = [(name, group.part) for group, name in named]
    links = machine_links(parts, options.cpu, options.host_bytes_per_s, options.nvlink)
    notes = [note for group in groups for note in _gpu_notes(group)] + cpu_notes(options.cpu, options.sockets)
    if options.budget_bytes is not None:
        notes.append(f"budget: {gb(options.budget_bytes)} of each GPU may be used, driver and libraries included")
    return Hardware(
        name=phrase,
        source="hardware phrase; speeds from moeplan's catalogue",
        notes=tuple(dict.fromkeys(notes)),
        devices=(*gpus, cpu),
        links=tuple(links),
    )


def _check_budget(budget_bytes: int | None, groups: list[_Gpus], phrase: str) -> None:
    if budget_bytes is None:
        return
    if not groups:
        _fail(phrase, "budget is for GPUs and there are none; leave it out, or set ram")
    least = min(groups, key=lambda group: group.memory_bytes)
    if budget_bytes > least.memory_bytes:
        has = f"{least.asked[:30]} has {least.memory_bytes}"
        _fail(phrase, f"budget of {budget_bytes} bytes is too much, {has}; lower it")


def _gpu_notes(group: _Gpus) -> list[str]:
    """What a reader should know about a GPU's figures, and which other part its bare name could have meant."""
    part, notes = group.part, []
    if part.also and not re.search("sxm|pci", group.asked, re.IGNORECASE):
        notes.append(f"{group.asked}: taken for {part.name}, not for {' or '.join(part.also)}")
    if not part.verified:
        notes.append(f"{part.name}: some figures are not verified ({part.source})")
    return notes


def gpu_device(name: str, part: GpuPart, memory_bytes: int) -> Device:
    """The device for one catalogue GPU."""
    return Device(
        name=name,
        kind="gpu",
        model=part.name,
        memory_bytes=memory_bytes,
        context_bytes=GPU_CONTEXT_BYTES,
        bandwidth_bytes_per_s=part.bandwidth_bytes_per_s,
        flops_per_s=part.flops_per_s,
    )


def cpu_device(part: CpuPart | None, ram_bytes: int, sockets: int = 1) -> Device:
    """The device for `sockets` catalogue CPUs, or for a generic CPU when `part` is None.

    The bandwidth is the peak: what an engine reaches of it is known of engines (`cost_models/engines.py`), and is less
    than what a benchmark of memory reaches.
    """
    bandwidth = part.peak_bytes_per_s if part else GENERIC_CPU_BYTES_PER_S
    flops = part.flops_per_s if part else {"bf16": GENERIC_CPU_FLOPS_PER_S}
    return Device(
        name="cpu",
        kind="cpu",
        model=part.name if part else None,
        memory_bytes=ram_bytes,
        bandwidth_bytes_per_s=bandwidth * sockets,
        flops_per_s={dtype: rate * sockets for dtype, rate in flops.items()},
        cores=part.cores * sockets if part else None,
        clock_hz=part.clock_hz if part else None,
        sockets=sockets,
    )


def cpu_notes(part: CpuPart | None, sockets: int = 1) -> list[str]:
    """What a reader of the machine should know about where its CPU's figures come from."""
    if part is None:
        speeds = f"{GENERIC_CPU_BYTES_PER_S / 1e9:g} GB/s and {GENERIC_CPU_FLOPS_PER_S / 1e12:g} TFLOP/s (bf16)"
        notes = [f"no CPU is named: {speeds} a socket are assumed; name one with cpu=…"]
    else:
        notes = [f"{part.name}: memory bandwidth is the peak ({part.memory}); FLOP/s {part.flops_source}"]
        if not part.verified:
            notes.append(f"{part.name}: some figures are not verified ({part.source})")
    if sockets > 1:
        notes.append(f"{sockets} sockets: figures multiplied by {sockets}, which software rarely reaches (NUMA)")
    return notes
