"""A phrase as text: its pieces, the counts and sizes in them, and the one way to refuse it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from profiles.errors import HardwareError
from profiles.units import BYTE_UNITS, RATE_UNITS, parse_bytes, parse_quantity

MAX_GPUS = 64
MAX_PHRASE = 300
LARGEST_BYTES = 10**15
KEYS = ("cpu", "ram", "sockets", "link", "budget", "bandwidth")

NUMBERS = {
    "single": 1, "one": 1, "dual": 2, "two": 2, "triple": 3, "three": 3, "quad": 4, "four": 4, "six": 6, "eight": 8,
}  # fmt: skip

_BEFORE = re.compile(r"([+-]?[0-9]+)\s*[xX×*]\s*(?=\S)(.*)")
_WORD_BEFORE = re.compile(rf"({'|'.join(NUMBERS)})\s+(\S.*)", re.IGNORECASE)
_ALONE_BEFORE = re.compile(r"([1-9][0-9]?)\s+([A-Za-z(].*|[0-9]{4}.*)")
_AFTER = re.compile(r"(.*[^\sxX×*])\s*[xX×*]\s*([0-9]{1,2})")
_PCIE = re.compile(r"pci-?e?\s*(?:gen\s*)?(?:[1-6](?:\.0)?)?$", re.IGNORECASE)
_SIZE = re.compile(r"[-\s_(]*(?<![0-9.])([0-9]+(?:\.[0-9]+)?)\s*([kKmMgGtT][iI]?[bB]|[gGtT])(?![a-zA-Z0-9])\)?")
_BYTE_UNITS = {unit.lower(): unit for unit in BYTE_UNITS} | {letter: f"{letter.upper()}B" for letter in "mgt"}
_RATE_UNITS = {unit.lower(): unit for unit in RATE_UNITS}
_VENDOR_WITH_COMMA = re.compile(r"advanced micro devices,? inc\.?|\[amd/ati\]", re.IGNORECASE)
_COMMA = re.compile(rf"[,;]\s*|\s+(?=(?:{'|'.join(KEYS)})\s*=)", re.IGNORECASE)
_PLUS = re.compile(r"(\s*\+\s*|\s*&\s*|\s+(?:and|with|plus|w/)\s+)", re.IGNORECASE)


def fail(phrase: str, problem: str) -> NoReturn:
    """Refuse the phrase: one line that shows it, what is wrong and the remedy."""
    shown = phrase if len(phrase) <= 48 else phrase[:47] + "…"
    raise HardwareError(f"hardware phrase {shown!r}: {problem}")


def pieces(phrase: str) -> list[str]:
    """What stands between commas, and before keys.

    >>> pieces("2x3090 ram=64GB, cpu=7950X")
    ['2x3090', 'ram=64GB', 'cpu=7950X']
    """
    return [piece.strip() for piece in _COMMA.split(_VENDOR_WITH_COMMA.sub("AMD ", phrase))]


def parts(piece: str, is_name: Callable[[str], bool]) -> list[str]:
    """What `+`, `and`, `with` join in a piece, but for names that have such a sign in them (`Max+ 395`, `8480+`).

    >>> parts("2x3090 + Xeon 8480+", lambda name: name == "Xeon 8480+")
    ['2x3090', 'Xeon 8480+']
    """
    tokens = _PLUS.split(piece)
    found, start = [], 0
    while start < len(tokens):
        ends = range(len(tokens), start + 1, -2)
        end = next((end for end in ends if is_name("".join(tokens[start:end]).strip())), start + 1)
        name = "".join(tokens[start:end]).strip()
        found.append(name)
        start = end + 1
    return found


def counts(text: str) -> list[tuple[str, str]]:
    """What `text` may mean as (digits, name), the likeliest first: `2x3090`, `3090 x2`, `dual 3090`, `2 RTX 3090`.

    >>> counts("7950X3D")
    [('1', '7950X3D'), ('7950', '3D')]
    """
    found = [("1", text)]
    if (match := _BEFORE.fullmatch(text)) is not None:
        found.append((match[1], match[2].strip()))
    if (match := _WORD_BEFORE.fullmatch(text)) is not None:
        found.append((str(NUMBERS[match[1].lower()]), match[2].strip()))
    if (match := _AFTER.fullmatch(text)) is not None and re.search("[0-9]", match[1]) and not _PCIE.search(match[1]):
        found.append((match[2], match[1].strip()))
    if (match := _ALONE_BEFORE.fullmatch(text)) is not None:
        found.append((match[1], match[2].strip()))
    return found


def count(digits: str, name: str, phrase: str, most: int) -> int:
    """The number that `digits` say, if a machine may have so many."""
    if len(digits) > 9 or not 1 <= int(digits) <= most:
        fail(phrase, f"count {digits[:12]} of {name[:30]!r} is not between 1 and {most}; write e.g. {most}x{name[:30]}")
    return int(digits)


def uncounted(text: str) -> str:
    """The name in `text` when nobody knows it: without what looks like a count."""
    return next((name for digits, name in counts(text)[1:] if len(digits) <= 2), text)


@dataclass(frozen=True)
class Sized:
    """A name and the size in it: `model` is the name without it; `driver` tells that it is as a driver prints sizes."""

    name: str
    model: str
    size_bytes: int | None
    driver: bool = False


def sized(name: str, phrase: str) -> Sized:
    """`name` taken apart; `model` keeps what stands on both sides of the size.

    >>> sized("A100-SXM4-80GB", "").model, sized("RTX 5090 32G", "").size_bytes
    ('A100-SXM4', 32000000000)
    """
    found = _SIZE.search(name)
    if found is None:
        return Sized(name, name, None)
    model = f"{name[: found.start()]} {name[found.end() :]}".strip("- ")
    size = read_bytes(found[1] + found[2], "memory", phrase)
    return Sized(name, model, size, found[2].lower() in ("mib", "mb"))


def read_bytes(text: str, what: str, phrase: str) -> int:
    """The bytes that `text` says, with a unit (`128GB`, `128G`, `1.5 TiB`) or, up to 16384, in GB."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = match[2].lower() if match else ""
    if match is not None and not unit and float(match[1]) <= 16384:
        unit = "gb"
    if match is None or unit not in _BYTE_UNITS:
        fail(phrase, f"{what} {text[:30]!r} is not a size; write e.g. 512GB or 512GiB")
    try:
        size = parse_bytes(f"{match[1]} {_BYTE_UNITS[unit]}")
    except ValueError as problem:
        fail(phrase, f"{what} {text[:30]!r}: {problem}")
    if not 0 < size <= LARGEST_BYTES:
        fail(phrase, f"{what} {text[:30]!r} is not between 1 byte and 1000 TB; write e.g. 512GB")
    return size


def read_rate(text: str) -> float | None:
    """The bytes/s that `text` says; None where it is no rate of anything that lies between memories."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*([A-Za-z]+/s)", text.strip(), re.IGNORECASE)
    if found is None or found[2].lower() not in _RATE_UNITS:
        return None
    speed = parse_quantity(f"{found[1]} {_RATE_UNITS[found[2].lower()]}", RATE_UNITS, "50 GB/s")
    return speed if 1e6 <= speed <= 1e14 else None
