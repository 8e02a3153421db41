"""What may go where: the target's own limits and the user's pins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cost_models import CostModel
from profiles.document import short
from profiles.errors import MoeplanError, TargetError
from profiles.placement import Placement

Pins = Mapping[str, str | Sequence[str]]
TARGETS = {
    "torch": "any block anywhere",
    "ktransformers": "embedding on the CPU, attention on GPUs, experts of a layer whole",
}
_PIN = re.compile(r"(embedding|head|attention|experts|layers\.(\d{1,6})(?:-(\d{1,6}))?(?:\.(attention|experts))?)")


def check_target(target: str) -> None:
    """TargetError for a runtime that plans are not made for here."""
    if target not in tuple(TARGETS):
        raise TargetError(f"target: {target!r} is not known to this version; use {' or '.join(TARGETS)}")


class Allowed:
    """Which devices may hold which block: `allowed(kind, layer)` is one boolean a device.

    `pins` maps a block to its device, or to several that it may choose from. Blocks are written "embedding", "head",
    "attention" or "experts" (of every layer), "layers.3", "layers.3.experts", "layers.0-9.attention". A block named
    by several pins must satisfy all of them. Raises MoeplanError for a pin that names no block or device, or that
    leaves a block no device. `target` is one that `check_target` lets pass.
    """

    def __init__(self, costs: CostModel, target: str, pins: Pins | None) -> None:
        self._names = tuple(costs.device)
        self._layers = len(costs.profile.layers)
        self._dense = [layer.experts is None for layer in costs.profile.layers]
        self._where: dict[tuple[str, int], frozenset[str]] = {}
        if target == "ktransformers":
            self._ktransformers(costs)
        if pins is not None and not isinstance(pins, Mapping):
            raise MoeplanError(f"pins: {short(pins)} is no mapping; write e.g. {{'head': 'cuda:0'}}")
        for key, value in (pins or {}).items():
            self._pin(key, value)

    def __call__(self, kind: str, layer: int) -> tuple[bool, ...]:
        where = self._where.get((kind, layer))
        return tuple(where is None or name in where for name in self._names)

    def _ktransformers(self, costs: CostModel) -> None:
        """Its model code looks tokens up on the CPU, runs attention on GPUs only, and its Mixtral has no transfer map,
        so all of that attention stays on the first GPU (docs/ktransformers.md)."""
        gpus = [device.name for device in costs.hardware.gpus]
        homes = gpus[:1] if costs.profile.architecture == "mixtral" else gpus
        self._restrict("target ktransformers", "embedding", range(1), frozenset(["cpu"]))
        self._restrict("target ktransformers", "attention", range(self._layers), frozenset(homes))

    def _pin(self, key: str, value: str | Sequence[str]) -> None:
        match = _PIN.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            raise MoeplanError(f"pins: {short(key)} is no block; write e.g. 'head', 'layers.3.experts' or 'layers.0-9'")
        written = [value] if isinstance(value, str) else value
        if not isinstance(written, (list, tuple, set, frozenset)) or not all(isinstance(name, str) for name in written):
            raise MoeplanError(f"pins: {key!r}: {short(value)} is no device; use {', '.join(self._names)}")
        devices = frozenset(written)
        stray = sorted(devices.difference(self._names))
        if stray or not devices:
            raise MoeplanError(f"pins: {key!r}: no device {', '.join(stray)}; use {', '.join(self._names)}")
        first, last = int(match[2] or 0), int(match[3] or match[2] or self._layers - 1)
        if not first <= last < self._layers:
            raise MoeplanError(f"pins: {key!r}: the model has layers 0 to {self._layers - 1}; name one of them")
        if match[4] == "experts" and match[3] is None and self._dense[first]:
            raise MoeplanError(f"pins: {key!r}: layer {first} is dense and has no experts; pin its attention")
        layers = range(1) if key in ("embedding", "head") else range(first, last + 1)
        whole_layer = key.startswith("layers") and match[4] is None
        for kind in ("attention", "experts") if whole_layer else (match[4] or key,):
            self._restrict(f"pins: {key!r}", kind, layers, devices)

    def _restrict(self, why: str, kind: str, layers: range, devices: frozenset[str]) -> None:
        for layer in layers:
            left = self._where.get((kind, layer), frozenset(self._names)) & devices
            if not left:
                name = kind if kind in ("embedding", "head") else f"layers.{layer}.{kind}"
                raise MoeplanError(f"{why}: leaves {name} no device; loosen it")
            self._where[kind, layer] = left


def breaks(placement: Placement, allowed: Allowed, devices: Sequence[str]) -> str | None:
    """The first block of `placement` that `allowed` forbids where it is, in words; None when all is well."""
    index = {name: i for i, name in enumerate(devices)}
    blocks = [("embedding", 0, placement.embedding), ("head", 0, placement.head)]
    for i, layer in enumerate(placement.layers):
        blocks.append(("attention", i, layer.attention))
        blocks += [("experts", i, device) for device in layer.experts]
    for kind, i, device in blocks:
        if not allowed(kind, i)[index[device]]:
            return f"{kind} of layer {i} on {device}" if kind in ("attention", "experts") else f"{kind} on {device}"
    return None
