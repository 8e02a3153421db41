"""What the tests of several ranks share: prompts of different lengths, and plans by owner. Importing it needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tiny_models import VOCABULARY

from runtime_adapter.anatomy import anatomy_of

LAYERS = 6


def prompts() -> tuple[Any, Any]:
    """Three prompts of different lengths, padded on the left: ids and mask."""
    ids = torch.randint(1, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    mask[2, :7] = 0
    return ids * mask, mask


def moe(model: Any) -> list[bool]:
    return [experts is not None for experts in anatomy_of(model).experts]


def plan_on(model: Any, owners: Sequence[int]) -> dict[str, Any]:
    """The embedding, each layer and the head on GPU number `owners`, each layer's experts with it."""
    names = [f"cuda:{owner}" for owner in owners]
    layers = [
        {"attention": name, "experts": {name: "all"} if has else {}}
        for name, has in zip(names[1:-1], moe(model), strict=True)
    ]
    return {"embedding": names[0], "head": names[-1], "layers": layers}
