"""What binds a plan: GPU memory, if more of it would help, and the resource that takes most of the time.

Every block's predicted time is divided as its roofline is (`cost_models/roofline.py`): a launch, then reading weights,
computing, or unpacking, whichever is slowest, then reading the cache.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from cost_models import CostModel, Step
from cost_models.roofline import UNTUNED, Work, cache_s, flops_per_s, launch_s, read_bytes_per_s, unpacked_per_s
from profiles.hardware import Device
from profiles.placement import LayerPlacement, Objective, Placement
from solver.evaluate import Evaluation
from solver.problem import objective_steps

LINKS, HAND_OVER = "links", "hand-over"


def most_time(plan: Placement, costs: CostModel, objective: Objective) -> str:
    """The resource that takes most of the objective's time (for `throughput`, of a decode step's), and its share."""
    seconds = resources(plan, costs, objective)
    resource = max(seconds, key=seconds.__getitem__)
    return f"{resource} {seconds[resource] / sum(seconds.values()):.0%}"


def resources(plan: Placement, costs: CostModel, objective: Objective) -> dict[str, float]:
    """Seconds by resource, in all what `judge` predicts: `GPU bandwidth`, `CPU launches`, …, `links` for hops and
    copies, `hand-over` for the fixed price of experts on another device."""
    seconds: dict[str, float] = defaultdict(float)
    visits = Counter(_visits(plan, costs))
    for step in objective_steps(costs, objective):
        for visit, number in visits.items():
            for resource, taken in _taken(visit, step, costs).items():
                seconds[resource] += number * step.times * taken
    return dict(seconds)


Visit = tuple[str, int, str, str | tuple[tuple[str, int], ...]]
"""A block's kind, a layer like its own, where the token comes from, and the device that holds it: for experts that are
divided, devices and how many each holds."""


def _visits(plan: Placement, costs: CostModel) -> Iterator[Visit]:
    here = plan.embedding
    yield "embedding", 0, here, here
    for layer, placed in zip(costs.layer_class, plan.layers, strict=True):
        yield "attention", layer, here, placed.attention
        here = placed.attention
        if placed.experts:
            yield "experts", layer, here, _where(placed)
    yield "head", 0, here, plan.head


def _where(placed: LayerPlacement) -> str | tuple[tuple[str, int], ...]:
    if len(placed.experts) == 1:
        return next(iter(placed.experts))
    return tuple((device, len(ids)) for device, ids in placed.experts.items())


def _taken(visit: Visit, step: Step, costs: CostModel) -> Mapping[str, float]:
    part, layer, origin, where = visit
    if not isinstance(where, str):
        return _divided(layer, origin, where, step, costs)
    if part == "experts":
        return _experts(layer, origin, where, step, costs)
    return {LINKS: costs.hop_s(origin, where, step.tokens), **_block(part, layer, where, step, costs)}


def _experts(layer: int, attention: str, device: str, step: Step, costs: CostModel) -> Mapping[str, float]:
    """Computed where they are, or copied to their attention."""
    total = costs.experts_from_s(layer, attention, device, step)
    copied = costs.copies_experts(layer, attention, device, step)
    taken = _block("experts", layer, attention if copied else device, step, costs)
    away = total - sum(taken.values())
    sync = 0.0 if copied or costs.runs_on(device) == costs.runs_on(attention) else costs.sync_s(costs.runs_on(device))
    return {**taken, HAND_OVER: sync, LINKS: taken.get(LINKS, 0.0) + max(0.0, away - sync)}


def _divided(
    layer: int, attention: str, parts: tuple[tuple[str, int], ...], step: Step, costs: CostModel
) -> Mapping[str, float]:
    """A layer waits for the slowest of its parts: all its time is put down to the one that takes longest by itself."""
    starts = [sum(n for _, n in parts[:k]) for k in range(len(parts))]
    ids = {device: range(start, start + n) for (device, n), start in zip(parts, starts, strict=True)}
    total = costs.split_experts_s(layer, attention, ids, step)
    slowest = max(ids, key=lambda d: costs.split_experts_s(layer, attention, {d: ids[d]}, step))
    whole = _experts(layer, attention, slowest, step, costs)
    scale = total / (sum(whole.values()) or 1.0)
    return {resource: seconds * scale for resource, seconds in whole.items()}


def _block(part: str, layer: int, device: str, step: Step, costs: CostModel) -> dict[str, float]:
    """A block's time by resource; a measured time as the formula divides its own."""
    place = costs.device[costs.runs_on(device)]
    block = costs.block(part, layer)
    context = step.context if part == "attention" else 0.0
    work = costs.work(block, part, place, step.tokens * costs.workload.batch_size, context)
    copy = costs.copied_s(device, place.name, costs.weight_bytes(block, device))
    parts = _roofs(place, work, costs)
    known = costs.block_s(part, layer, device, step) - copy
    scale = known / (sum(parts.values()) or 1.0)
    return {LINKS: copy, **{f"{_kind(place)} {name}": seconds * scale for name, seconds in parts.items()}}


def _roofs(place: Device, work: Work, costs: CostModel) -> dict[str, float]:
    habits, tuned = costs.habits(place), place.calibration or UNTUNED
    roofs = {
        "bandwidth": work.weight_bytes / (read_bytes_per_s(place, habits) * tuned.bandwidth),
        "compute": work.flops / (flops_per_s(place, habits) * tuned.flops),
        "unpacking": work.params / (unpacked_per_s(place, habits, work.bits) * tuned.bandwidth),
    }
    slowest = max(roofs, key=roofs.__getitem__)
    return {
        "launches": launch_s(place, habits, work) * tuned.launch,
        slowest: roofs[slowest],
        "KV cache": cache_s(place, habits, work) / tuned.cache,
    }


def _kind(place: Device) -> str:
    return "CPU" if place.kind == "cpu" else "GPU"


def memory_binds(plan: Placement, found: Evaluation, costs: CostModel) -> bool:
    """Whether something is on the CPU that a GPU would do sooner, and no GPU has room for any of it."""
    step = costs.decode_step()
    on_cpu = {
        (part, layer)
        for part, layer, _, where in _visits(plan, costs)
        if part in ("attention", "experts") and _is_on_cpu(where)
    }
    wanted = []
    for part, layer in on_cpu:
        cache = costs.kv_bytes(layer) if part == "attention" else 0
        for gpu in (gpu.name for gpu in costs.hardware.gpus):
            if costs.block_s(part, layer, gpu, step) < costs.block_s(part, layer, "cpu", step):
                wanted.append((cache + costs.weight_bytes(costs.block(part, layer), gpu), gpu))
    return bool(wanted) and all(n_bytes > _free_bytes(found, costs, gpu) for n_bytes, gpu in wanted)


def _free_bytes(found: Evaluation, costs: CostModel, gpu: str) -> int:
    """What is free on a GPU. What a GPU shares with the CPU is freed there by what moves, so it does not bind; what it
    shares with other devices does."""
    pool, free = costs.device[gpu].pool, found.memory[gpu].free_bytes
    return free if pool in (None, costs.hardware.cpu.pool) else min(free, found.pools[pool].free_bytes)


def _is_on_cpu(where: str | tuple[tuple[str, int], ...]) -> bool:
    return where == "cpu" if isinstance(where, str) else any(device == "cpu" for device, _ in where)
