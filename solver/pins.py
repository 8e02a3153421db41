"""What a user's pins mean: blocks that may only be on some devices, and devices that come first or last."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiles.device_names import DEVICE_NAME
from profiles.document import one_line, short
from profiles.errors import MoeplanError

Pins = Mapping[str, str | Sequence[str]]
KINDS = ("embedding", "attention", "experts", "head")
NOTHING = "nothing"
ORDER = {"first": -1, "last": 1}
_WORDS = (*KINDS, NOTHING, *ORDER)
_BLOCK = re.compile(r"(embedding|head|attention|experts|layers\.(\d{1,6})(?:-(\d{1,6}))?(?:\.(attention|experts))?)")


@dataclass(frozen=True)
class Restriction:
    """`kind` of each of `layers` (of layer 0 for embedding and head) may only be on `devices`, because of `why`."""

    why: str
    kind: str
    layers: Sequence[int]
    devices: frozenset[str]


def read_pins(
    pins: Pins | None, names: Sequence[str], dense: Sequence[bool]
) -> tuple[list[Restriction], dict[str, int]]:
    """The restrictions that `pins` mean on the devices `names`, and the place in line (`ORDER`) of some devices.

    `dense[i]` says whether layer i has no experts. `Allowed` says how pins are written. Raises MoeplanError, one line
    with the pin, the value and the remedy.
    """
    if pins is not None and not isinstance(pins, Mapping):
        raise MoeplanError(f"pins: {short(pins)} is no mapping; write e.g. {{'head': 'cuda:0'}}")
    restrictions: list[Restriction] = []
    order: dict[str, int] = {}
    for key, value in (pins or {}).items():
        block = _BLOCK.fullmatch(key) if isinstance(key, str) else None
        if block is not None:
            restrictions += _of_block(key, value, block, names, dense)
        elif isinstance(key, str) and DEVICE_NAME.fullmatch(key):
            found, place = _of_device(key, value, names, dense)
            restrictions += found
            order.update({key: place} if place else {})
        else:
            remedy = "write e.g. 'head', 'layers.3.experts', 'layers.0-9' or 'cuda:0'"
            raise MoeplanError(f"pins: {short(key)} is no block and no device; {remedy}")
    return restrictions, order


def _of_block(
    key: str, value: object, match: re.Match[str], names: Sequence[str], dense: Sequence[bool]
) -> list[Restriction]:
    """A block and the devices that it may choose from."""
    devices = _written(key, value, f"is no device; use {', '.join(names)}")
    stray = sorted(devices.difference(names))
    if stray or not devices:
        raise MoeplanError(one_line(f"pins: {key!r}: no device {', '.join(stray)}; use {', '.join(names)}"))
    n_layers = len(dense)
    first, last = int(match[2] or 0), int(match[3] or match[2] or n_layers - 1)
    if not first <= last < n_layers:
        raise MoeplanError(f"pins: {key!r}: the model has layers 0 to {n_layers - 1}; name one of them")
    if match[4] == "experts" and match[3] is None and dense[first]:
        raise MoeplanError(f"pins: {key!r}: layer {first} is dense and has no experts; pin its attention")
    layers = range(1) if key in ("embedding", "head") else range(first, last + 1)
    whole_layer = key.startswith("layers") and match[4] is None
    kinds = ("attention", "experts") if whole_layer else (match[4] or key,)
    return [Restriction(f"pins: {key!r}", kind, layers, devices) for kind in kinds]


def _of_device(key: str, value: object, names: Sequence[str], dense: Sequence[bool]) -> tuple[list[Restriction], int]:
    """A device, the kinds of blocks that may be there (all of them if none is named) and its place in line, or 0."""
    if key not in names:
        raise MoeplanError(f"pins: {key!r}: there is no such device; use {', '.join(names)}")
    words = _written(key, value, f"is no kind of block; use {', '.join(_WORDS)} or a list of them")
    stray = sorted(words.difference(_WORDS))
    if stray:
        problem = f"{short(stray[0])} is no kind of block; use {', '.join(_WORDS)}"
        raise MoeplanError(one_line(f"pins: {key!r}: {problem}"))
    kinds, order = words.intersection(KINDS), words.intersection(ORDER)
    if NOTHING in words and len(words) > 1:
        raise MoeplanError(f"pins: {key!r}: nothing and {', '.join(sorted(words - {NOTHING}))}; keep one")
    if len(order) > 1:
        raise MoeplanError(f"pins: {key!r}: first and last contradict each other; keep one")
    if order and kinds and "attention" not in kinds:
        problem = f"{min(order)} is about attention, which may not be there; add attention or leave it out"
        raise MoeplanError(f"pins: {key!r}: {problem}")
    if order and not kinds:
        return [], ORDER[min(order)]
    elsewhere = frozenset(names) - {key}
    with_experts = [i for i, is_dense in enumerate(dense) if not is_dense]
    layers = {"attention": range(len(dense)), "experts": with_experts}
    banned = [kind for kind in KINDS if kind not in kinds]
    found = [Restriction(f"pins: {key!r}", kind, layers.get(kind, range(1)), elsewhere) for kind in banned]
    return found, ORDER[min(order)] if order else 0


def _written(key: str, value: object, problem: str) -> frozenset[str]:
    """One name or a collection of names as a set; MoeplanError with `problem` for anything else."""
    written = [value] if isinstance(value, str) else value
    if not isinstance(written, (list, tuple, set, frozenset)) or not all(isinstance(name, str) for name in written):
        raise MoeplanError(f"pins: {key!r}: {short(value)} {problem}")
    return frozenset(written)
