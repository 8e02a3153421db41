"""Whether the devices can hold what they are to be given, as far as they tell."""

from __future__ import annotations

from collections import Counter

import torch

from profiles.errors import ApplyError
from profiles.units import gb
from runtime_adapter.loading.pieces import Recipe
from runtime_adapter.loading.places import Destination
from runtime_adapter.placing.free_memory import free_bytes

CPU = torch.device("cpu")


def check_room(destinations: list[Destination], recipe: Recipe) -> None:
    """Raise ApplyError naming the first device that has less free memory than its weights take.

    The CPU needs what is being converted, too.
    """
    needed = needed_bytes(destinations)
    if CPU in needed:
        needed[CPU] += _converting_bytes(recipe)
    for device, n_bytes in needed.items():
        free = free_bytes(device)
        if free is not None and n_bytes > free:
            raise ApplyError(
                f"{device}: the plan puts {gb(n_bytes)} of weights there, but {gb(free)} are free; free memory, or "
                "plan for what there is"
            )


def needed_bytes(destinations: list[Destination]) -> Counter[torch.device]:
    """Bytes of weights by device. What is tied is once on every device where it hangs."""
    needed: Counter[torch.device] = Counter()
    for destination in destinations:
        sizes = {place.device: destination.n_bytes(place) for place in destination.places}
        if len(sizes) == 1:
            sizes = {device: max(sizes.values()) for _, _, device in destination.slots}
        needed.update(sizes)
    return needed


def _converting_bytes(recipe: Recipe) -> int:
    """Most bytes that one conversion makes on the way: its result, and as much again where that is cast."""
    entries = recipe.entries
    return max(
        (2 * sum(entries[n].n_bytes for n in p.names) for p in recipe.pieces if p.converter is not None), default=0
    )
