"""The token's walk alone: where attention is, before anything is said of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Walk:
    """Device of the embedding, of each layer's attention and of the head."""

    embedding: int
    attention: tuple[int, ...]
    head: int

    def renamed(self, new: Mapping[int, int]) -> Walk:
        return Walk(new[self.embedding], tuple(new[a] for a in self.attention), new[self.head])
