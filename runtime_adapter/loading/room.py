"""Whether the devices can hold what they are to be given, as far as they tell."""

from __future__ import annotations

from collections import Counter

import torch

from profiles.errors import ApplyError
from profiles.units import gb
from runtime_adapter.loading.pieces import Recipe
from runtime_adapter.loading.places import Destination
from runtime_adapter.machine_facts import read_facts

CPU = torch.device("cpu")


def check_room(destinations: list[Destination], recipe: Recipe) -> None:
    """Raise ApplyError naming the first device that has less free memory than its weights take.

    The CPU needs what is being converted, too. Free there is what the system can free within the limits of control
    groups, on a CUDA device what its driver and torch's cache have left; other devices do not tell.
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
    """Most bytes that one conversion makes on the way: what it stacks, and what it makes of that."""
    entries = recipe.entries
    return max(
        (2 * sum(entries[n].n_bytes for n in p.names) for p in recipe.pieces if p.converter is not None), default=0
    )


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be allocated on `device`; None where it does not tell."""
    if device.type == "cpu":
        return read_facts().available_bytes
    if device.type != "cuda" or torch._guards.detect_fake_mode() is not None:
        return None
    try:
        free, _ = torch.cuda.mem_get_info(device)
    except RuntimeError:  # a driver that does not say
        return None
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
