"""Layers in one run per GPU, every GPU filled to the same share: what a user reaches by tuning -ts by hand.

`on_cpu` says whose experts are on the CPU; all others are with their attention. The embedding is on the CPU, the head
on the last GPU that has layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from solver.baselines.layout import CPU, Layout, Ledger

STEPS = 24
"""Halvings of the share that GPUs are filled to: finer than any layer."""
_Slot = tuple[int, int, int]


def have_room(ledger: Ledger, on_cpu: Sequence[bool]) -> bool:
    """Whether such runs fit the GPUs at all. There must be a GPU."""
    return _homes(ledger, _slots(ledger, on_cpu), 1.0) is not None


def even_runs(ledger: Ledger, on_cpu: Sequence[bool]) -> Layout:
    """The runs that fill the fullest GPU least, measured against its own cap; if none fit, they overflow evenly."""
    slots = _slots(ledger, on_cpu)
    least, most = 0.0, 1.0
    homes = _homes(ledger, slots, most)
    while homes is None and most < 2**40:
        most *= 2
        homes = _homes(ledger, slots, most)
    for _ in range(STEPS):
        share = (least + most) / 2
        found = _homes(ledger, slots, share)
        if found is None:
            least = share
        else:
            most, homes = share, found
    attention = homes or [ledger.gpus[0]] * len(slots)
    experts = ledger.homes_of_experts(lambda i: CPU if on_cpu[i] else attention[i])
    return Layout(CPU, attention[-1], attention[:-1], experts)


def _homes(ledger: Ledger, slots: Sequence[_Slot], share: float) -> list[str] | None:
    """The GPU of each slot, every GPU filled up to `share` of its cap before the next; None if they are too small."""
    homes: list[str] = []
    gpus = iter(ledger.gpus)
    gpu, stays, workspace, staging, room = "", 0, 0, 0, -1
    for more, runs, copied in slots:
        while stays + more + max(workspace, runs) + max(staging, copied) > room:
            following = next(gpus, None)
            if following is None:
                return None
            gpu, room = following, int(share * ledger.caps[following])
            stays, workspace, staging = 0, 0, 0
        stays, workspace, staging = stays + more, max(workspace, runs), max(staging, copied)
        homes.append(gpu)
    return homes


def _slots(ledger: Ledger, on_cpu: Sequence[bool]) -> list[_Slot]:
    """What every layer, and after them the head, needs on its GPU: for good, to run, and to copy experts through."""
    slots = []
    for layer, away in zip(ledger.layers, on_cpu, strict=True):
        attention, experts = layer.attention, layer.experts
        if experts is None:
            slots.append((attention.stays["gpu"], attention.workspace, 0))
        elif away:
            slots.append((attention.stays["gpu"], attention.workspace, experts.staging))
        else:
            slots.append((layer.gpu_bytes, max(attention.workspace, experts.workspace), 0))
    return [*slots, (ledger.head.stays["gpu"], ledger.head.workspace, 0)]
