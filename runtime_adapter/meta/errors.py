"""Words that the meta-device readers share; needs no torch."""

from __future__ import annotations

BY_HAND = "write a profile YAML by hand"


def one_line(problem: BaseException) -> str:
    """The first and, where different, the last line of an exception's text."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    text = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return text if len(text) <= 200 else text[:199] + "…"
