"""A live model's own figures: bytes and seconds of every block, on every kind of device, as a profile for `solve`.

Importing this file does not import torch; calling `measure` does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from profiles import load_profile
from profiles.device_names import DEVICE_NAME
from profiles.errors import ApplyError
from profiles.load import load_workload
from profiles.model import Block, ModelProfile
from profiles.placement import Placement

if TYPE_CHECKING:
    import torch

    from runtime_adapter.measuring.steps import Times

SMALL_STEPS = (8, 64)
"""Token counts that are measured between one token and a chunk of the prompt."""


def measure(
    model: torch.nn.Module,
    workload: Any = None,
    *,
    devices: Mapping[str, torch.device | str] | None = None,
    repeats: int = 5,
    seed: int = 0,
) -> ModelProfile:
    """Run `model` on each device in turn and return its profile with measured bytes and seconds a block.

    Measured are steps of one token with the workload's mean context, and of 8, 64 and `prefill_chunk` tokens with an
    empty cache, for its whole batch, on random tokens drawn with `seed`: warm, `repeats` times each, medians. Marks
    between blocks wait for the device; so that blocks add up to a step, each is scaled by an unwatched step over a
    watched one, and the profile's notes say what watching costs. Layers of one shape get the median over them all: what
    they differ by is noise. Times do not follow the context: measure with the workload that is meant.

    `devices` maps a plan's device names to torch devices, one of each kind that is to be measured; by default the CPU,
    and the first GPU where there is one (cuda:0, xpu:0, mps:0 …). The whole model is moved to each and back. Times are
    kept by kind of device, or by name where several GPUs are measured. Raises ApplyError where a device does not take
    the model, or `repeats` is not a positive whole number.
    """
    if importlib.util.find_spec("torch") is None:
        raise ApplyError("measure: torch is not installed; install moeplan[torch]")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ApplyError(f"repeats: {repeats!r} is not a number of runs; use a whole number of at least 1")
    from runtime_adapter.anatomy import anatomy_of
    from runtime_adapter.apply import apply
    from runtime_adapter.measuring.steps import times_of

    anatomy, request, found = anatomy_of(model), load_workload(workload), _profile_of(model)
    times: dict[str, Times] = {}
    wanted = _default_devices() if devices is None else dict(devices)
    for name in wanted:
        with apply(_all_on(name, found), model, devices=wanted, keep_host=True):
            times[name] = times_of(anatomy, request, (*SMALL_STEPS, request.prefill_chunk), repeats, seed)
    return _measured(found, anatomy, _by_kind(times))


def together(profiles: Sequence[ModelProfile]) -> ModelProfile:
    """Several measurements of one model on the same devices as one: of each time the median."""
    first = profiles[0]

    def median_of(blocks: Sequence[Block | None]) -> Any:
        times = [block.measured_seconds or {} for block in blocks if block is not None]
        points = {
            key: {tokens: median(one[key][tokens] for one in times) for tokens in found}
            for key, found in (times[0] if times else {}).items()
        }
        return None if blocks[0] is None else blocks[0].replace(measured_seconds=points or None)

    layers = [
        layer.replace(
            attention=median_of([profile.layers[i].attention for profile in profiles]),
            experts=median_of([profile.layers[i].experts for profile in profiles]),
        )
        for i, layer in enumerate(first.layers)
    ]
    return first.replace(
        embedding=median_of([profile.embedding for profile in profiles]),
        head=median_of([profile.head for profile in profiles]),
        layers=layers,
    )


def _default_devices() -> dict[str, str]:
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    name = "" if found is None else f"{found.type}:0"
    return {"cpu": "cpu", **({name: name} if DEVICE_NAME.fullmatch(name) else {})}


def _by_kind(times: Mapping[str, Times]) -> dict[str, Times]:
    """Under the name of their kind where one GPU was measured: then it stands for all."""
    several = sum(name != "cpu" for name in times) > 1
    return {name if name == "cpu" or several else "gpu": found for name, found in times.items()}


def _profile_of(model: Any) -> ModelProfile:
    """What the model's config says, in the type that its weights have."""
    config = model.config.to_dict()
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.ndim > 1}
    config |= {"architectures": [type(model).__name__]} | ({"dtype": kinds.pop()} if len(kinds) == 1 else {})
    return load_profile(config)


def _all_on(device: str, profile: ModelProfile) -> Placement:
    layers = [{"attention": device, "experts": {device: "all"} if layer.experts else {}} for layer in profile.layers]
    return Placement(embedding=device, head=device, layers=layers)


def _measured(profile: ModelProfile, anatomy: Any, times: Mapping[str, Times]) -> ModelProfile:
    """The profile with live bytes, and the seconds of `times` by the key under which a device is looked up."""
    from runtime_adapter.measuring.steps import live_bytes

    held, kinds = live_bytes(anatomy), profile.layer_class

    def known(block: Block, place: tuple[str, int]) -> Any:
        part, layer = place
        alike = [(part, i) for i, kind in enumerate(kinds) if kind == kinds[layer]]
        points = {key: found.of(alike if part in ("attention", "experts") else [place]) for key, found in times.items()}
        return block.replace(weight_bytes=held[place], measured_seconds=points)

    layers = [
        layer.replace(
            attention=known(layer.attention, ("attention", i)),
            experts=None if layer.experts is None else known(layer.experts, ("experts", i)),
        )
        for i, layer in enumerate(profile.layers)
    ]
    said = [f"measured on {key}: {found.note}" for key, found in times.items()]
    return profile.replace(
        source=f"{profile.source}; bytes and seconds measured on the live model",
        notes=(*profile.notes, *said),
        embedding=known(profile.embedding, ("embedding", 0)),
        head=known(profile.head, ("head", 0)),
        layers=layers,
    )
