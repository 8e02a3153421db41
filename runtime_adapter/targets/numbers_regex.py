"""Whole numbers as a short regular expression that every engine reads alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from profiles.placement import ranges


def one_of(numbers: Iterable[int]) -> str:
    """Matches exactly these numbers; what stands around it in the pattern has to close it.

    >>> one_of([0, 1, 2, 10, 11, 12, 14, 20]), one_of([7, 8])
    ('(?:[0-2]|1[0-24]|20)', '[7-8]')
    """
    found = alternatives(numbers)
    return f"(?:{found})" if "|" in found else found


def alternatives(numbers: Iterable[int]) -> str:
    """As `one_of`, to be put into a group.

    >>> alternatives([9, 10, 11])
    '9|1[0-1]'
    """
    tens: dict[str, list[int]] = defaultdict(list)
    for number in sorted(numbers):
        tens[str(number // 10) if number >= 10 else ""].append(number % 10)
    return "|".join(prefix + _digits(last) for prefix, last in tens.items())


def _digits(digits: list[int]) -> str:
    """One digit, or a class of several: [0, 1, 2, 4] is `[0-24]`."""
    if len(digits) == 1:
        return str(digits[0])
    return f"[{ranges(digits).replace(',', '')}]"
