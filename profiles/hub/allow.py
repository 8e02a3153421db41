"""Whether names may be looked up on the hub: nothing goes over a network that was not asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from profiles.errors import ProfileError

Told = Callable[[str], None]
"""Takes a line on what is being done, and an empty one when it is done."""


class NeedsHub(ProfileError):
    """A name that may be a repository of the hub, where the hub may not be asked."""


class HubUnreachable(ProfileError):
    """The hub does not answer, or its answer breaks off: what was fetched before may do."""


@dataclass(frozen=True)
class _Leave:
    given: bool = False
    told: Told = lambda _: None


_NOT_GIVEN = _Leave()
_leave: ContextVar[_Leave] = ContextVar("_leave", default=_NOT_GIVEN)


@contextmanager
def allowed(told: Told | None = None) -> Iterator[None]:
    """Inside, every name of a model may be one of the hub, also where `solve` or `evaluate` load it.

    `told` hears what is fetched; from several threads, one at a time.

    >>> with allowed():
    ...     is_allowed()
    True
    >>> is_allowed()
    False
    """
    token = _leave.set(_Leave(True, told or _leave.get().told))
    try:
        yield
    finally:
        _leave.reset(token)


def is_allowed() -> bool:
    return _leave.get().given


def told() -> Told:
    """Who hears what is being fetched."""
    return _leave.get().told
