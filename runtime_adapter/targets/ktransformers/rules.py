"""The rules of a KTransformers rules file, checked one by one, with the lines they stand in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiles.document import one_line, parse_document, short
from profiles.errors import TargetError
from profiles.safe_regex import compile_safely
from runtime_adapter.targets.ktransformers.modules import Module

MAX_CHARACTERS = 80_000
"""Longer files are refused: the longest of KTransformers' own has a quarter of this."""
MAX_TRIES = 2 * 10**7
"""Ways of all patterns times names to search; a file that needs more is refused. KT's own files need a fortieth."""
_DEVICE = re.compile(r"(cpu|cuda|xpu|npu|musa)(?::(0|[1-9][0-9]{0,3}))?")
_ITEM = re.compile(r"-(?:\s|$)")


@dataclass(frozen=True)
class Rule:
    """One rule. `name` and `module_class` are what it asks of a module, `operator` is an import path or "default".

    `where` says in words which rule it is: its number, and its line where that is known.
    """

    where: str
    name: re.Pattern[str] | None
    module_class: str | None
    operator: str
    kwargs: Mapping[str, Any]
    recursive: bool

    def matches(self, module: Module) -> bool:
        """Whether the module is of the class, where one is asked for, and the name is found in its name."""
        return (self.module_class is None or self.module_class in module.classes) and (
            self.name is None or self.name.search(module.name) is not None
        )

    def device(self, key: str = "generate_device") -> str | None:
        """The device under that key, as a plan calls it; an operator without one runs on KT's "cuda"."""
        device = self.kwargs.get(key, "cuda" if self.operator != "default" else None)
        if device is None:
            return None
        found = _DEVICE.fullmatch(device) if isinstance(device, str) else None
        if found is None:
            raise TargetError(f"{self.where}: {key} {short(device)} is no device; use cpu or cuda:<index>")
        return "cpu" if found[1] == "cpu" else f"cuda:{found[2] or 0}"


def parse_rules(text: str, where: str = "rules") -> tuple[Rule, ...]:
    """The rules of a file, in order. Raises TargetError, naming the rule, for what KT or Python could not read.

    >>> [rule.where for rule in parse_rules("- match: {name: ^model$}\\n  replace: {class: default}")]
    ['rule 1 (line 1)']
    """
    if len(text) > MAX_CHARACTERS:
        raise TargetError(f"{where}: {len(text)} characters, more than {MAX_CHARACTERS}; no rules file needs that")
    items = parse_document(text, where, TargetError)
    if not isinstance(items, list):
        raise TargetError(f"{where}: expected a list of rules, got {short(items)}; start each with '- match:'")
    try:
        return tuple(_rule(item, said) for item, said in zip(items, _places(text, len(items)), strict=True))
    except TargetError as problem:
        raise TargetError(one_line(f"{where}: {problem}")) from None


def check_effort(rules: Sequence[Rule], modules: Sequence[Module], where: str) -> None:
    """Raise TargetError where all patterns on all names could take longer than a moment."""
    tries = sum(compile_safely(rule.name.pattern)[1] for rule in rules if rule.name) * len(modules)
    if tries > MAX_TRIES:
        most = max(rules, key=lambda rule: compile_safely(rule.name.pattern)[1] if rule.name else 0)
        problem = f"{most.where}: its pattern may be tried in too many ways on {len(modules)} names"
        raise TargetError(f"{where}: {problem}; anchor it with ^ and write fewer .* in a row")


def _places(text: str, count: int) -> list[str]:
    """What each rule is called. Lines are known where every rule begins with a dash at the start of its line."""
    lines = [number for number, line in enumerate(text.split("\n"), 1) if _ITEM.match(line)]
    if len(lines) != count:
        return [f"rule {number}" for number in range(1, count + 1)]
    return [f"rule {number} (line {line})" for number, line in enumerate(lines, 1)]


def _rule(item: object, where: str) -> Rule:
    parts = [item.get(key) for key in ("match", "replace")] if isinstance(item, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise TargetError(f"{where}: needs the mappings `match` and `replace`; add them")
    assert isinstance(item, dict)
    match, replace = item["match"], item["replace"]
    asked = {key: match[key] for key in ("name", "class") if key in match}
    if not asked or not all(isinstance(value, str) for value in asked.values()):
        raise TargetError(f"{where}: `match` needs a `name` or a `class`, as text; add one")
    kwargs = replace.get("kwargs", {})
    if not isinstance(kwargs, dict):
        raise TargetError(f"{where}: `kwargs` is not a mapping; write `key: value` lines")
    return Rule(
        where=where,
        name=_pattern(asked["name"], where) if "name" in asked else None,
        module_class=asked.get("class"),
        operator=str(replace.get("class", "default")),
        kwargs=kwargs,
        recursive=bool(item.get("recursive", True)),
    )


def _pattern(name: str, where: str) -> re.Pattern[str]:
    try:
        return compile_safely(name)[0]
    except ValueError as problem:
        raise TargetError(f"{where}: `name` {problem}") from None
