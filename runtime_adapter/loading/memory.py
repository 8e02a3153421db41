"""What to say when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from profiles.errors import ApplyError
from runtime_adapter.meta.errors import one_line


@contextmanager
def placing(what: str, where: str) -> Iterator[None]:
    """Turn torch's errors about memory inside into an ApplyError that names what should be where."""
    try:
        yield
    except (RuntimeError, MemoryError) as problem:  # torch.OutOfMemoryError is the former
        raise ApplyError(
            f"{what}: cannot be put on {where} ({one_line(problem)}); free memory there, or plan with a larger "
            "safety_margin"
        ) from None
