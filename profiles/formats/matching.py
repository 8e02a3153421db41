"""Lists of module names in configs, matched as the library that wrote or reads them matches them.

Lists are long (a name for every layer and more) and so are models, so plain names are looked up in sets, prefixes go
to `str.startswith`, and only what is left is compiled, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate

from profiles.document import short
from profiles.errors import ProfileError
from profiles.formats.module import Matches, Module
from profiles.safe_regex import compile_safely

_PLAIN = re.compile(r"[\w.-]*")
_LAYER_NUMBER = re.compile(r"(?:layers|h|blocks)(?:\\?\.|/)[0-9]+")
_APART = re.compile(r"(?<![A-Za-z_])[0-9]|\\d|\[0-9")
MAX_WAYS = 100_000
"""Most ways in which one pattern may be tried on one name: two `.*` around a choice of layers have some thousands."""


def may_tell_experts_apart(patterns: Iterable[str]) -> bool:
    """Whether a pattern could say something of one expert and not of another.

    >>> may_tell_experts_apart(["model.layers.3.mlp.gate", "re:.*w1"]), may_tell_experts_apart(["*.experts.7.*"])
    (False, True)
    """
    return any(_APART.search(_LAYER_NUMBER.sub("", pattern)) for pattern in patterns)


def compiled(pattern: str, where: str, *, anywhere: bool = False, whole: bool = False) -> re.Pattern[str]:
    """A regex whose `search` matches from the start of a name, or `anywhere` in it, or all of it (`whole`).

    ProfileError naming `where` it stands when it is none, or could take for ever.
    """
    try:
        regex, ways = compile_safely(pattern if anywhere else f"^(?:{pattern})" + (r"\Z" if whole else ""))
    except ValueError as problem:
        raise ProfileError(f"{where}: {short(pattern)} {problem}") from None
    if ways > MAX_WAYS:
        raise ProfileError(f"{where}: {short(pattern)} may be tried in {ways} ways on one name; write it out")
    return regex


def hugging_face(patterns: Sequence[str], where: str) -> Matches:
    """transformers' `should_convert_module`: a regex from the start that ends at a dot of the name (so a parent
    excludes what is in it), or the end of the name, literally. Ignored: that a dot matches any character."""
    plain = {p.rstrip(".") for p in patterns if _PLAIN.fullmatch(p)}
    others = [p for p in patterns if not _PLAIN.fullmatch(p)]
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    regexes = [compiled(f"(?:{pattern}){boundary}", where) for pattern in others]
    ends = tuple(patterns)

    def matches(module: Module) -> bool:
        if not plain.isdisjoint(module.parents) or any(name.endswith(ends) for name in module.names):
            return True
        return any(regex.search(name) for regex in regexes for name in module.names)

    return matches


def compressed_tensors(patterns: Sequence[str], where: str, classes: Sequence[str] = ()) -> Matches:
    """compressed-tensors' `match_targets`: a whole name, `re:` and a regex from the start, or a class of the module.

    `classes` are what a linear module may be called. There is no matching of parts: a parent excludes nothing.
    """
    regexes = [compiled(p[3:], where) for p in patterns if p.startswith("re:")]
    plain = {p for p in patterns if not p.startswith("re:")}
    every = not plain.isdisjoint(classes)

    def matches(module: Module) -> bool:
        if every or not plain.isdisjoint(module.names):
            return True
        return any(regex.search(name) for regex in regexes for name in module.names)

    return matches


def wildcards(patterns: Sequence[str], *, parents: bool = True) -> Matches:
    """Shell wildcards over whole names, where `*` crosses dots (modelopt, quark); a name without any stands for what
    is in it as well (`parents`), as such lists name towers and whole layers."""
    plain = {p for p in patterns if not set("*?[") & set(p)}
    starts = tuple(p[:-1] for p in patterns if p.endswith("*") and not set("*?[") & set(p[:-1]))
    others = [p for p in patterns if p not in plain and not (p.endswith("*") and p[:-1] in starts)]
    regexes = [re.compile(translate(p)) for p in others]  # runs in one way each: `*` gives nothing back

    def matches(module: Module) -> bool:
        if not plain.isdisjoint(module.parents if parents else module.names):
            return True
        if any(name.startswith(starts) for name in module.names):
            return True
        return any(regex.match(name) for regex in regexes for name in module.names)

    return matches


def anywhere(patterns: Sequence[str]) -> Matches:
    """Text that stands anywhere in the name (autoawq, vLLM's awq)."""
    return lambda module: any(pattern in name for pattern in patterns for name in module.names)


def searched(patterns: Sequence[str], where: str) -> Matches:
    """A regex that matches anywhere in the name, or its text (auto-round)."""
    regexes = [compiled(pattern, where, anywhere=True) for pattern in patterns]
    return lambda module: any(regex.search(name) for regex in regexes for name in module.names)
