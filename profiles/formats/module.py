"""Modules of a model as formats see them: what a checkpoint calls a matrix, and which part of the model it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from profiles.formats.schemes import Scheme

Part = Literal["linear", "experts", "router", "embedding", "head"]


class Module(NamedTuple):
    """A module with a matrix. `names` are those that a list may know it by, the checkpoint's own first; `part` is
    "linear" for a projection that is none of the others.

    >>> Module("linear", ("language_model.lm_head",)).parents
    ('language_model.lm_head', 'language_model')
    """

    part: Part
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def parents(self) -> tuple[str, ...]:
        """Each name and the modules it is in, from the inside out."""
        return tuple(outer for name in self.names for outer in outwards(name))


def outwards(name: str) -> tuple[str, ...]:
    """A module's name and those of the modules it is in.

    >>> outwards("layers.0.mlp")
    ('layers.0.mlp', 'layers.0', 'layers')
    """
    found, end = [name], name.rfind(".")
    while end > 0:
        name = name[:end]
        found.append(name)
        end = name.rfind(".")
    return tuple(found)


Matches = Callable[[Module], bool]


@dataclass(frozen=True)
class Rules:
    """How a checkpoint stores every module, as its config says it.

    `scheme_of` answers None where a module stays as it was. `one_by_one`: single experts may differ, so each is asked
    about. `fused`: routed experts are stored together, one matrix of gate and up after the other. A row that is not a
    whole number of `divides` stays as it was. `label` is a name for all of it where there is a usual one. `method` is
    the method's name, by which runtimes know it.
    """

    scheme_of: Callable[[Module], Scheme | None]
    one_by_one: bool = False
    fused: bool = False
    divides: int = 1
    label: str | None = None
    notes: tuple[str, ...] = ()
    method: str = ""
