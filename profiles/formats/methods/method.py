"""A way in which checkpoints are quantised: how its config is recognised, and what it says of every module."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from profiles.formats.module import Module, Rules
from profiles.formats.settings import Settings


@dataclass(frozen=True)
class Method:
    """`name` is what transformers calls it, or its library; `recognises` whether settings are its; `rules` reads them.

    `rules` raises ProfileError where a setting is not known that could change bytes, never guessing.
    """

    name: str
    recognises: Callable[[Settings], bool]
    rules: Callable[[Settings], Rules]


def named(*methods: str) -> Callable[[Settings], bool]:
    """Settings whose `quant_method` is one of these."""
    return lambda settings: str(settings.get("quant_method")).lower() in methods


_LINEAR_ROUTERS = re.compile(
    r"mixtral|qwen[23](?!_5)|olmo|phimoe|minimax|jamba|aria|ernie4_5|hunyuan|granitemoe|longcat"
)
"""Families whose router was a linear module before transformers 5, which made all of them parameters."""


def before_5(config: Mapping[str, Any]) -> bool:
    """Whether transformers before 5 wrote the config, or it does not say: then single experts were linear modules."""
    version = config.get("transformers_version")
    return not isinstance(version, str) or version.partition(".")[0] in ("3", "4")


def linear_before_5(config: Mapping[str, Any]) -> Callable[[Module], bool]:
    """Whether a module is one that libraries find by its class: no embedding, and a router only where it was one.

    Lists name routers that are linear; where they are parameters nobody has to.
    """
    routers = before_5(config) and _LINEAR_ROUTERS.search(str(config.get("model_type", ""))) is not None

    def is_linear(module: Module) -> bool:
        shared_gate = module.part == "router" and module.name.endswith("shared_expert_gate")
        return module.part in ("linear", "experts", "head") or (module.part == "router" and routers) or shared_gate

    return is_linear
