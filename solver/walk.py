"""The token's walk alone: where attention is, before anything is said of experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Walk:
    """Device of the embedding, of each layer's attention and of the head."""

    embedding: int
    attention: tuple[int, ...]
    head: int
