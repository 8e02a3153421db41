"""A plan in the words of a runtime: one writer a target."""

from __future__ import annotations

from typing import Protocol

from profiles.errors import TargetError
from profiles.placement import Placement
from runtime_adapter.targets import ktransformers


class Writer(Protocol):
    """Turns a plan into a runtime's own text. Raises TargetError for what the runtime cannot express."""

    def __call__(self, plan: Placement, /) -> str: ...


WRITERS: dict[str, Writer] = {"ktransformers": ktransformers.write, "moeplan": Placement.to_yaml}


def export(plan: Placement, to: str) -> str:
    """The plan as text for the runtime `to`; "moeplan" is the plan document itself.

    Raises TargetError when the runtime is unknown or cannot express the plan.

    >>> layer = {"attention": "cuda:0", "experts": {}}
    >>> export(Placement(embedding="cpu", head="cuda:0", layers=[layer]), to="moeplan").splitlines()[0]
    'schema: 1'
    """
    writer = WRITERS.get(to)
    if writer is None:
        raise TargetError(f"export: no writer for {to!r}; use one of {', '.join(WRITERS)}")
    return writer(plan)
