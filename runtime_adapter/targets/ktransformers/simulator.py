"""KTransformers' rule resolution without KTransformers: which rule, operator and device every module gets.

How KT resolves rules (kvcache-ai/ktransformers, `optimize/optimize.py`): modules are visited depth first; the first
rule whose name (`re.search`) and class (`isinstance`) both match wins; `recursive: false` hides the module's children
from every rule; a module that no rule matches stays as it is, on cuda:0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime_adapter.targets.ktransformers.modules import Module
from runtime_adapter.targets.ktransformers.rules import Rule

FALLBACK = "cuda:0"


@dataclass(frozen=True)
class Resolved:
    """What the rules make of one module; `rule` is None where none matches.

    `device` is None where a rule keeps the module's class but names no `generate_device`: KT stops at its tensors.
    """

    module: Module
    rule: Rule | None
    device: str | None

    @property
    def injected(self) -> bool:
        """Whether an operator replaces the module. Operators move their inputs to their own device."""
        return self.rule is not None and self.rule.operator != "default"

    @property
    def kwargs(self) -> Mapping[str, Any]:
        return self.rule.kwargs if self.rule else {}

    @property
    def where(self) -> str:
        """The rule in words."""
        return self.rule.where if self.rule else "no rule"


def resolve(rules: Sequence[Rule], modules: Sequence[Module]) -> dict[str, Resolved]:
    """Each module's rule and device, by module name; modules hidden by `recursive: false` are left out.

    `modules` must list parents before children.
    """
    resolved: dict[str, Resolved] = {}
    hidden: tuple[str, ...] = ()
    for module in modules:
        if module.name.startswith(hidden) and hidden:
            continue
        rule = next((rule for rule in rules if rule.matches(module)), None)
        resolved[module.name] = Resolved(module, rule, rule.device() if rule else FALLBACK)
        if rule is not None and not rule.recursive:
            hidden = (*hidden, f"{module.name}.")
    return resolved
