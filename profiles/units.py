"""Quantities with units, parsed once, at the edge: "5.2 GB" -> bytes, "864 GB/s" -> bytes/s, "15 us" -> seconds.

GB = 10^9 and GiB = 2^30 bytes, as everywhere in moeplan. Plain numbers pass through; YAML reads `864e9` as text, so
text without a unit is a number too.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµμ/]*)\s*")
_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
LARGEST = 1e24
BYTE_UNITS = {f"{p}B": f for p, f in {**_DECIMAL, **_BINARY}.items()}
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
RATE_UNITS = {f"{unit}/s": factor for unit, factor in BYTE_UNITS.items()}
FLOP_UNITS = {f"{p}{u}": f for p, f in _DECIMAL.items() for u in ("FLOP/s", "FLOPS", "FLOPs")}


def parse_quantity(value: object, units: dict[str, float] | dict[str, int], example: str) -> float:
    """`value` as a finite number >= 0 in base units.

    Raises ValueError naming the value and an example of what is accepted.

    >>> parse_quantity("5.2 GB", BYTE_UNITS, "5.2 GB")
    5200000000.0
    """
    number, factor = value, 1.0
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match is None or (match[2] and match[2] not in units):
            raise ValueError(f"{value[:40]!r} is not a quantity; write a number or e.g. {example!r}")
        number, factor = float(match[1]), float(units[match[2]]) if match[2] else 1.0
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:
        raise ValueError(f"expected a number or e.g. {example!r}")
    if number < 0:
        raise ValueError(f"must not be negative; write e.g. {example!r}")
    if number == math.inf:
        raise ValueError(f"must be finite; write e.g. {example!r}")
    if number > LARGEST:  # before any product: a huge whole number does not fit a float
        raise ValueError(f"is larger than any machine; write e.g. {example!r}")
    scaled = number * factor if factor >= 1 else number / round(1 / factor)  # 5 / 1e6 is 5e-6, 5 * 1e-6 is not
    if scaled > LARGEST:
        raise ValueError(f"is larger than any machine; write e.g. {example!r}")
    return float(scaled)


def parse_bytes(value: object) -> int:
    """Whole bytes; a fraction of a byte is refused.

    >>> parse_bytes("46 GB"), parse_bytes("1 GiB"), parse_bytes(512)
    (46000000000, 1073741824, 512)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        parse_quantity(value, BYTE_UNITS, "5.2 GB")
        return value
    number = parse_quantity(value, BYTE_UNITS, "5.2 GB")
    whole = round(number)
    if abs(number - whole) > 1e-6 * max(1.0, number) or (number < 1e6 and number != whole):
        raise ValueError("bytes must be whole; write e.g. '5.2 GB'")
    return whole


_COUNT_UNITS = {"": 1, "k": 2**10, "m": 2**20}


def parse_count(text: str | int) -> int:
    """A whole number of tokens; `k` is 1024 and `M` 1024 * 1024, as context lengths are named.

    >>> parse_count("32k"), parse_count("1M"), parse_count("5000")
    (32768, 1048576, 5000)
    """
    found = re.fullmatch(r"([0-9]{1,10}(?:\.[0-9]{1,3})?)\s*([kKmM]?)", str(text).strip())
    number = float(found[1]) * _COUNT_UNITS[found[2].lower()] if found else 0.5
    if number != int(number):
        raise ValueError(f"{str(text)[:40]!r} is not a whole number; write e.g. 32768 or 32k, which is the same")
    return int(number)


def parse_share(value: object) -> float:
    """A plain number without a unit, for shares of one; YAML reads `1e-1` as text, so numeric text is read too."""
    return parse_quantity(value, {}, "0.1")


def _seconds(value: object) -> float:
    return parse_quantity(value, TIME_UNITS, "15 us")


def _rate(value: object) -> float:
    return parse_quantity(value, RATE_UNITS, "864 GB/s")


def _flops(value: object) -> float:
    return parse_quantity(value, FLOP_UNITS, "181 TFLOP/s")


Share = Annotated[float, BeforeValidator(parse_share)]
ByteCount = Annotated[int, BeforeValidator(parse_bytes)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
BytesPerSecond = Annotated[float, BeforeValidator(_rate), Field(gt=0)]
FlopPerSecond = Annotated[float, BeforeValidator(_flops), Field(gt=0)]


def gb(n_bytes: float) -> str:
    """Bytes for people, in GB of 10^9.

    >>> gb(5_200_000_000)
    '5.20 GB'
    """
    return f"{n_bytes / 1e9:,.2f} GB"
