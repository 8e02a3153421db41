"""Every error a moeplan user can meet. A message names the file, the field, the value and the remedy, on one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class MoeplanError(Exception):
    """Base of all errors that moeplan raises on purpose."""


class ProfileError(MoeplanError):
    """A model profile, workload or plan document cannot be read or is inconsistent."""


class HardwareError(MoeplanError):
    """A hardware description cannot be read or is inconsistent."""


class TargetError(MoeplanError):
    """A runtime cannot express what is asked of it."""


class ApplyError(MoeplanError):
    """A plan cannot be carried out on a live model; the model is left as it was."""


class InfeasiblePlacement(MoeplanError):
    """No placement fits (`proven=True`), or none was found within the time limit (`proven=False`).

    `short_bytes` says by how many bytes each named device (or "all devices" together) falls short;
    `suggestions` are the smallest changes that would help, in words.
    """

    def __init__(
        self,
        message: str,
        *,
        short_bytes: Mapping[str, int] | None = None,
        suggestions: Sequence[str] = (),
        proven: bool = True,
    ) -> None:
        super().__init__(message)
        self.short_bytes = dict(short_bytes or {})
        self.suggestions = tuple(suggestions)
        self.proven = proven
