"""Whether devices have room for what a plan moves to them, before the first byte moves."""

from __future__ import annotations

from collections import Counter

import torch

from profiles.errors import ApplyError
from profiles.units import gb
from runtime_adapter.local_machine.facts import read_facts
from runtime_adapter.placing.homes import Homes
from runtime_adapter.placing.weights import one_memory


def check_room(homes: Homes, keep_originals: bool) -> None:
    """Raise ApplyError naming the first device that has less free memory than comes to it beyond what leaves it.

    Ignored: that a tensor leaves only when its copy is there, which for the largest one may be short of room still.
    """
    coming, leaving = moves(homes)
    for device, n_bytes in coming.items():
        free = free_bytes(device)
        more = n_bytes - (0 if keep_originals else leaving[device])
        if free is not None and more > free:
            raise ApplyError(
                f"{device}: the plan puts {gb(more)} more of weights there, but {gb(free)} are free; free memory, or "
                "plan for what there is"
            )


def moves(homes: Homes) -> tuple[Counter[torch.device], Counter[torch.device]]:
    """Bytes of weights that come to each device, and those that leave it; tensors in one memory count once."""
    coming, leaving = Counter[torch.device](), Counter[torch.device]()
    split: set[int] = set()
    for experts, parts in zip(homes.anatomy.experts, homes.parts, strict=True):
        if experts is None or parts is None:
            continue
        split.add(id(experts))
        count = sum(len(ids) for ids in parts.values())
        for tensor in experts._parameters.values():
            size = 0 if tensor is None else tensor.numel() * tensor.element_size()
            for device, ids in parts.items():
                if tensor is not None and device != tensor.device:
                    coming[device] += size * len(ids) // count
                    leaving[tensor.device] += size * len(ids) // count
    for slots in one_memory(module for module in homes.modules if id(module[1]) not in split).values():
        home, size = slots[0].tensor.device, slots[0].tensor.numel() * slots[0].tensor.element_size()
        wanted = {slot.device for slot in slots}
        coming.update(dict.fromkeys(wanted - {home}, size))
        leaving.update({} if home in wanted else {home: size})
    return coming, leaving


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be allocated on `device`; None where it does not tell.

    On the CPU what the system can free within the limits of control groups, on a CUDA device what its driver and
    torch's cache have left.
    """
    if torch._guards.detect_fake_mode() is not None:
        return None
    if device.type == "cpu":
        return read_facts().available_bytes
    if device.type != "cuda":
        return None
    try:
        free, _ = torch.cuda.mem_get_info(device)
    except RuntimeError:  # a driver that does not say
        return None
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
