"""The CPU side of a phrase: its CPUs, its RAM, how fast that is, and what is on the way to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NoReturn

from profiles.catalogue import CpuPart, cpus_named, find_link, links, near_names, unknown_in_phrase
from profiles.phrase.text import KEYS, count, counts, fail, read_bytes, read_rate, uncounted

MAX_SOCKETS = 8
MAX_DIMMS = 64

_RAM = re.compile(
    r"(?:ram\s+)?(?:(?P<dimms>[0-9]{1,3})\s*[x×*]\s*)?(?P<size>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[kmgt](?:i?b)?)?"
    r"(?:\s*(?:of\s+)?(?P<type>(?:lp)?ddr[345]x?|mrdimm)(?:[-\s]?(?P<speed>[0-9]{4,5}))?(?:\s*(?:mt/s|mhz))?)?"
    r"(?:\s*(?:ecc|rdimm|udimm|reg))*\s*(?P<word>(?:of\s+)?(?:system\s+)?ram|system memory)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Ram:
    """RAM as written: in all, how many modules, their type and MT/s; `sure` says that it cannot be a GPU's memory."""

    ram_bytes: int
    dimms: int | None = None
    type: str | None = None
    mega_transfers_per_s: int | None = None
    sure: bool = True
    text: str = ""


@dataclass(frozen=True)
class Cpus:
    """The CPU and its sockets; `asked` is the name as written, `others` what else it could have meant."""

    part: CpuPart
    sockets: int
    asked: str
    others: tuple[CpuPart, ...] = ()


@dataclass(frozen=True)
class Options:
    """What stands after the GPUs, read; None where it is not said."""

    cpus: Cpus | None = None
    ram: Ram | None = None
    sockets: int | None = None
    bandwidth_bytes_per_s: float | None = None
    host_bytes_per_s: float | None = None
    nvlink: bool = False
    budget_bytes: int | None = None


def read_cpus(text: str, phrase: str) -> Cpus | None:
    """The CPUs that a part of a phrase names: `2x EPYC 9654`, `dual 9354`; None where it names none."""
    for digits, name in counts(text):
        parts = cpus_named(name)
        if parts:
            return Cpus(parts[0], count(digits, name, phrase, MAX_SOCKETS), name, parts[1:])
    return None


def read_ram(text: str, phrase: str, unit_needed: bool = False) -> Ram | None:
    """The RAM that `text` says: `128GB`, `8x64GB`, `128GB DDR5-6000`; None where it is no size.

    >>> read_ram("8x64GB DDR4-3200", "").ram_bytes
    512000000000
    """
    found = _RAM.fullmatch(text.strip())
    if found is None or (unit_needed and not found["unit"]):
        return None
    dimms = int(found["dimms"]) if found["dimms"] else None
    each = read_bytes(found["size"] + (found["unit"] or ""), "ram", phrase)
    if dimms is not None and not 1 <= dimms <= MAX_DIMMS:
        fail(phrase, f"ram {text[:30]!r}: {dimms} modules are not between 1 and {MAX_DIMMS}; write e.g. ram=512GB")
    speed = int(found["speed"]) if found["speed"] else None
    if speed is not None and not 800 <= speed <= 20000:
        fail(phrase, f"ram {text[:30]!r}: {speed} MT/s are not between 800 and 20000; write e.g. DDR5-4800")
    kind = found["type"].upper() if found["type"] else None
    sure = bool(kind or dimms or found["word"] or text.strip().lower().startswith("ram"))
    return Ram(each * (dimms or 1), dimms, kind, speed, sure, text.strip())


def read_option(options: Options, key: str, value: str, phrase: str, beside: str) -> Options:
    """`options` with one `key=value` more. `beside` is what an unknown CPU stands beside, as YAML."""
    if key == "cpu":
        cpus = read_cpus(value, phrase)
        if cpus is None:
            fail(phrase, unknown_in_phrase("CPU", uncounted(value), beside))
        return with_cpus(options, cpus, phrase)
    if key == "ram":
        ram = read_ram(value, phrase)
        if ram is None:
            _no_size(value, phrase)
        return replace(options, ram=replace(ram, sure=True))
    if key == "sockets":
        return replace(options, sockets=_sockets(value, phrase))
    if key == "link":
        return replace(options, nvlink=True) if value.lower() == "nvlink" else replace(
            options, host_bytes_per_s=_link(value, phrase))  # fmt: skip
    if key == "budget":
        return replace(options, budget_bytes=read_bytes(value, "budget", phrase))
    rate = read_rate(value)
    if rate is None:
        fail(phrase, f"bandwidth {value[:30]!r} is not a rate; write RAM's, of all sockets, e.g. bandwidth=75GB/s")
    return replace(options, bandwidth_bytes_per_s=rate)


def with_cpus(options: Options, cpus: Cpus, phrase: str) -> Options:
    if options.cpus is not None and options.cpus.part != cpus.part:
        fail(phrase, f"has two kinds of CPU, {options.cpus.part.name} and {cpus.part.name}; keep one")
    sockets = cpus.sockets + (options.cpus.sockets if options.cpus else 0)
    return replace(options, cpus=replace(cpus, sockets=sockets))


def split_option(piece: str, given: set[str], phrase: str) -> tuple[str, str]:
    """`key=value` apart; HardwareError where the key is unknown or given twice, or there is no value."""
    key, _, value = (word.strip() for word in piece.partition("="))
    if key.lower() not in KEYS:
        fail(phrase, f"unknown key {key[:30]!r}, {near_names(key, KEYS)}")
    if key.lower() in given:
        fail(phrase, f"key {key.lower()!r} is given twice; keep one")
    if not value:
        fail(phrase, f"key {key.lower()!r} has no value; write e.g. {key.lower()}=…, or leave it out")
    return key.lower(), value


def sockets_of(options: Options, phrase: str) -> int:
    """How many sockets: said by `sockets=`, by `2x` before the CPU, or both alike; else one."""
    counted = options.cpus.sockets if options.cpus else 1
    if options.sockets is not None and counted not in (1, options.sockets):
        fail(phrase, f"sockets={options.sockets}, but it names {counted} CPUs; leave sockets out")
    return options.sockets or counted


def ram_bandwidth(options: Options, sockets: int, phrase: str) -> tuple[float | None, list[str]]:
    """Bytes/s of RAM where the phrase says more than the CPU's name does, and notes on it; None where it does not.

    Modules and their speed give it only where the CPU's channels are known: filled channels x MT/s x 8 bytes.
    """
    ram, part = options.ram, options.cpus.part if options.cpus else None
    if options.bandwidth_bytes_per_s is not None:
        rate = options.bandwidth_bytes_per_s
        return rate, [f"RAM bandwidth: {rate / 1e9:g} GB/s as stated, taken as the peak of all sockets together"]
    if ram is None or not (ram.type or ram.dimms):
        return None, []
    speed = ram.mega_transfers_per_s
    if part is None or part.channels is None or part.mega_transfers_per_s is None:
        if speed is not None:
            what = "without a CPU" if part is None else f"beside {part.name}, whose channels are not known"
            remedy = "add bandwidth=…GB/s" if part else "add cpu=…, or bandwidth=…GB/s, or leave the speed out"
            fail(phrase, f"ram {ram.text[:30]!r}: a speed says nothing {what}; {remedy}")
        return None, []
    if ram.type and speed is None and ram.type != part.memory_type:
        remedy = f"write its speed, e.g. {ram.type}-3200, or bandwidth=…GB/s"
        fail(phrase, f"ram {ram.text[:30]!r}: {part.name} is known with {part.memory}; {remedy}")
    filled = min(part.channels, max(1, ram.dimms // sockets)) if ram.dimms else part.channels
    share = filled / part.channels * (speed or part.mega_transfers_per_s) / part.mega_transfers_per_s
    if share == 1:
        return None, []
    rate = part.peak_bytes_per_s * share * sockets
    memory = f"{ram.type or part.memory_type}-{speed or part.mega_transfers_per_s}"
    channels = f"{filled} of {part.channels} channels a socket filled"
    return rate, [f"RAM: {channels}, {memory}: {rate / 1e9:,.4g} GB/s at most"]


def _no_size(value: str, phrase: str) -> NoReturn:
    fail(phrase, f"ram {value[:30]!r} is not a size; write e.g. ram=512GB, ram=8x64GB or ram=128GB DDR5-5600")


def _sockets(text: str, phrase: str) -> int:
    if not re.fullmatch(r"[1-9]", text) or int(text) > MAX_SOCKETS:
        fail(phrase, f"sockets {text[:20]!r} is not a number between 1 and {MAX_SOCKETS}; write e.g. sockets=2")
    return int(text)


def _link(text: str, phrase: str) -> float:
    """Bytes/s of the host links."""
    part = find_link(text)
    if part is not None:
        return part.bandwidth_bytes_per_s
    rate = read_rate(text)
    if rate is None:
        known = ", ".join(part.name for part in links())
        fail(phrase, f"link {text[:30]!r} is not known; use nvlink, a rate such as 50GB/s, or one of {known}")
    return rate
