r"""Regular expressions out of other people's files: compiled only where matching is sure to end soon.

Python's `re` tries, one after the other, all ways to match, and has no time limit. Here the ways are counted before a
pattern runs: `.*` can end at any character of a name, so two in a row make some thousands of ways, which is fine, and
a repeat within a repeat, such as `(a+)+`, more than the age of the universe has room for. That one is refused.

>>> pattern, ways = compile_safely(r"^model\.layers\.([0-9]|1[0-4])\..*experts$")
>>> ways
130
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MAX_PATTERN = 2_000
"""Longest pattern that is looked at: two hundred layers written out one by one are under this."""
MAX_NAME = 64
"""Characters of a name that an open repeat is counted to run over: modules' and tensors' names have fewer."""
# `re`'s own parser has no public name (sre_parse is a deprecated one); a parser of ours could read a pattern otherwise.
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)
_ANYTHING = ".*"


def compile_safely(pattern: str) -> tuple[re.Pattern[str], int]:
    """The pattern for `search` in names without line breaks, and a bound on the ways that a search tries.

    Raises ValueError, with the remedy, for what is no regular expression, too long, or repeats within a repeat.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"is {len(pattern)} characters long, more than {MAX_PATTERN}; shorten it")
    while pattern.startswith(_ANYTHING) and pattern[2:3] not in ("?", "+", "*", "{"):
        pattern = pattern.removeprefix(_ANYTHING)  # a search starts anywhere as it is
    try:
        items = list(_parser.parse(pattern))
        ways = _ways(_without_open_end(items)) * (MAX_NAME if _tries_every_start(items) else 1)
        return re.compile(pattern), ways
    except (re.error, OverflowError, RecursionError) as problem:
        raise ValueError(f"is not a regular expression: {problem}; mend it") from None


def _without_open_end(items: Sequence[Any]) -> Sequence[Any]:
    """Without a last `.*` or `.*$`: it always matches, so nothing is tried again because of it."""
    end = len(items)
    if end and items[end - 1] == (sre.AT, sre.AT_END):
        end -= 1
    if end and items[end - 1][0] in _REPEATS:
        low, high, body = items[end - 1][1]
        if low == 0 and high == sre.MAXREPEAT and list(body) == [(sre.ANY, None)]:
            return items[: end - 1]
    return items


def _tries_every_start(items: Sequence[Any]) -> bool:
    """Whether a search may get far from any character of a name: not after `^` or a letter that is written out."""
    if not items:
        return False
    operator, argument = items[0]
    if operator == sre.SUBPATTERN:
        return _tries_every_start(argument[-1])
    if operator == sre.BRANCH:
        return any(_tries_every_start(branch) for branch in argument[1])
    return operator not in (sre.AT, sre.LITERAL)


def _ways(items: Sequence[Any]) -> int:
    """In how many ways a sequence can match at one place, at most. Lookarounds are tried once each time they come."""
    ways, looks = 1, 0
    for operator, argument in items:
        if operator in (sre.ASSERT, sre.ASSERT_NOT):
            looks += ways * _ways(argument[1])
        elif operator in _REPEATS:
            ways *= _repeat_ways(*argument)
        elif operator == sre.BRANCH:
            ways *= sum(_ways(branch) for branch in argument[1])
        elif operator == sre.GROUPREF_EXISTS:
            ways *= sum(_ways(branch or ()) for branch in argument[1:])
        elif operator == sre.SUBPATTERN:
            ways *= _ways(argument[-1])
        elif operator == sre.ATOMIC_GROUP:
            ways *= _ways(argument)
    return ways + looks


def _repeat_ways(low: int, high: int, body: Sequence[Any]) -> int:
    within = _ways(body)
    if within > 1 and high > 1:
        raise ValueError("repeats what can match in several ways, such as (a+)+, which may take for ever; write it out")
    return within * (min(high, MAX_NAME) - min(low, MAX_NAME) + 1)
