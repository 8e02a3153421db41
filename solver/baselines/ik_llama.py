"""ik_llama.cpp: --fit, and --n-cpu-moe N, which counts from the last layers instead of the first.

The embedding is always on the CPU, attention and its cache go through the GPUs in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cost_models import CostModel
from profiles.placement import Placement
from solver.baselines.layout import CPU, Layout, Ledger, with_lower_limits
from solver.baselines.shares import even_runs


def ik_llama_n_cpu_moe(costs: CostModel) -> Placement | None:
    """`-ncmoe N`: experts of the last N layers on the CPU (pull request 2262), with the smallest N that fits.

    With several GPUs every GPU gives up its last layers' experts, in proportion to how many layers it has (pull request
    1464). Layers are divided so that every GPU would be equally full with all of them. Without GPUs there is nothing to
    set.
    """
    ledger = Ledger(costs)
    if not ledger.gpus:
        return None
    n_layers = len(ledger.layers)
    whole = even_runs(ledger, [False] * n_layers)
    layout = whole
    for n in range(n_layers + 1):
        away = _last_of_each(n, whole.attention, ledger.gpus)
        layout = Layout(CPU, whole.head, whole.attention, _experts(ledger, whole.attention, away))
        if not ledger.short(layout):
            break
    return layout.placement()


def _last_of_each(n: int, homes: Sequence[str], gpus: Sequence[str]) -> set[int]:
    """n of the layers, the last ones of each GPU's run, dealt out in proportion to the runs."""
    away: set[int] = set()
    end, n_layers = 0, len(homes)
    for gpu in gpus:
        start, end = end, end + homes.count(gpu)
        share = n * end // n_layers - n * start // n_layers
        away.update(range(end - share, end))
    return away


def ik_llama_fit(costs: CostModel) -> Placement | None:
    """`--fit` (pull request 1501, llm_load_tensors): layers in proportion to memory, rounded to the nearest layer; if
    the sum is too much, experts of each GPU's last layers go to the CPU until that GPU fits, whole layers at a time.

    Where that is not enough it gives up ("Unable to auto-fit model"). Where the sum fits but rounding makes a GPU
    overflow, its users raise that GPU's margin (-gfm), and so does this. A model without experts gets as many layers on
    the GPUs, the last ones, as fit. Without GPUs there is nothing to fit.
    """
    ledger = Ledger(costs)
    if not ledger.gpus:
        return None
    found = with_lower_limits(lambda limits: _fit(ledger, limits), ledger)
    return None if found is None else found.placement()


def _fit(ledger: Ledger, limits: Mapping[str, int]) -> Layout | None:
    """`compute`, which every GPU keeps free, is the largest workspace of any layer; the head's, beyond that, counts as
    part of the head."""
    compute = max(max(x.attention.workspace, x.experts.workspace if x.experts else 0) for x in ledger.layers)
    head = ledger.head.stays["gpu"] + max(0, ledger.head.workspace - compute)
    sizes = [*(layer.gpu_bytes for layer in ledger.layers), head]
    rooms = [max(0, limits[gpu] - compute) for gpu in ledger.gpus]
    too_much = sum(sizes) > sum(rooms)
    if too_much and not ledger.with_experts:
        return _from_the_back(ledger, sizes, rooms)
    parts = rooms if too_much else [limits[gpu] for gpu in ledger.gpus]
    homes = _in_proportion(ledger.gpus, sizes, parts, compute)
    away = _suffixes(ledger, homes, sizes, rooms) if too_much else set()
    if away is None:
        return None
    return Layout(CPU, homes[-1], homes[:-1], _experts(ledger, homes, away))


def _in_proportion(gpus: Sequence[str], sizes: Sequence[int], parts: Sequence[int], compute: int) -> list[str]:
    """Slots in order; at each GPU's end the next one is taken if that is nearer to its part of the sum than not."""
    homes: list[str] = []
    total, all_parts, loaded, end = compute * len(gpus) + sum(sizes), max(1, sum(parts)), 0, 0
    for gpu, part in zip(gpus, parts, strict=True):
        loaded, end = loaded + compute, end + part
        target = total * end // all_parts
        while len(homes) < len(sizes):
            size = sizes[len(homes)]
            if loaded + size > target and loaded + size - target >= target - loaded:
                break
            loaded += size
            homes.append(gpu)
            if loaded > target:
                break
    return homes + [gpus[-1]] * (len(sizes) - len(homes))


def _suffixes(ledger: Ledger, homes: Sequence[str], sizes: Sequence[int], rooms: Sequence[int]) -> set[int] | None:
    """Of each GPU's layers the last, as few as possible, whose experts must go for the rest to fit; None if too few."""
    away: set[int] = set()
    for gpu, room in zip(ledger.gpus, rooms, strict=True):
        mine = [i for i, home in enumerate(homes) if home == gpu]
        over = sum(sizes[i] for i in mine) - room
        for i in reversed(mine):
            experts = ledger.layers[i].experts if i < len(ledger.layers) else None
            if over > 0 and experts is not None:
                over -= experts.stays["gpu"]
                away.add(i)
        if over > 0:
            return None
    return away


def _from_the_back(ledger: Ledger, sizes: Sequence[int], rooms: Sequence[int]) -> Layout:
    """Without experts: slots from the last, on the last GPU first, as many as fit; the rest is on the CPU."""
    homes = [CPU] * len(sizes)
    i = len(sizes) - 1
    for gpu, room in reversed(list(zip(ledger.gpus, rooms, strict=True))):
        while i >= 0 and sizes[i] <= room:
            homes[i], room, i = gpu, room - sizes[i], i - 1
    return Layout(CPU, homes[-1], homes[:-1], [None] * len(ledger.layers))


def _experts(ledger: Ledger, homes: Sequence[str], away: set[int]) -> list[str | None]:
    return ledger.homes_of_experts(lambda i: CPU if i in away else homes[i])
