"""The GPUs of a phrase: `8xL40-46GB`, `RTX 4090 24GB x 2`, `NVIDIA Corporation AD102 [GeForce RTX 4090] (rev a1)`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from profiles.catalogue import GpuPart, gpus_named
from profiles.phrase.text import MAX_GPUS, Sized, count, counts, fail, sized
from profiles.units import gb


@dataclass(frozen=True)
class Gpus:
    """One part of the phrase: `count` equal GPUs; `asked` is the name as written.

    `memory_bytes` is what each has, or for a chip with unified memory the pool; None where no size is said. `others`
    are parts that the name could have meant as well. `host_bytes` is the CPU's memory where a driver's name says that.
    """

    count: int
    part: GpuPart
    memory_bytes: int | None
    asked: str
    others: tuple[GpuPart, ...] = ()
    host_bytes: int | None = None

    def notes(self) -> list[str]:
        """Which other part the name could have meant, and whether the size is one that is known."""
        notes, asked = [], self.asked[:60]
        if self.others:
            notes.append(f"{asked}: taken for {self.part.name}, not for {' or '.join(p.name for p in self.others)}")
        if self.part.per_card > 1:
            many = f"{self.count} of the {self.part.per_card} GPUs that a card shows"
            notes.append(f"{asked}: {many}, {gb(self.part.memory_bytes)} each; write a multiple for whole cards")
        if self.memory_bytes is not None and not self.part.has_total(self.memory_bytes):
            notes.append(f"{asked}: no such size is known; speeds are those of {self.part.name}")
        return notes


def read_gpus(text: str, phrase: str) -> Gpus | None:
    """The GPUs that a part of a phrase names; None where it names none.

    Raises HardwareError where it could be one of several chips that differ, or there are too many.
    """
    for digits, name in counts(text):
        found = _find(name, phrase)
        if found is not None:
            return replace(found, count=count(digits, name, phrase, MAX_GPUS))
    return None


def with_memory(gpus: Gpus, memory_bytes: int) -> Gpus:
    """The GPUs with a size that stands apart from their name: that tells parts apart which share the name."""
    parts = _that_name(gpus, memory_bytes)
    return replace(gpus, part=parts[0], others=parts[1:], memory_bytes=memory_bytes)


def may_be_its_memory(gpus: Gpus, size_bytes: int) -> bool:
    """Whether a size after the GPUs could be what each of them has."""
    return any(part.has_total(size_bytes) for part in _that_name(gpus, size_bytes))


def _that_name(gpus: Gpus, memory_bytes: int) -> tuple[GpuPart, ...]:
    parts = (gpus.part, *gpus.others)
    return tuple(part for part in parts if part.has_total(memory_bytes)) or parts


def _find(name: str, phrase: str) -> Gpus | None:
    """The GPU of that name: lspci has it in brackets, and where it cannot tell, a list of them."""
    inside = re.findall(r"\[([^\][]+)\]", name)
    for text in [*inside[::-1], re.sub(r"[\][]", " ", name)]:
        found = _look_up(sized(text, phrase), phrase)
        if found is not None:
            return found
    listed = [part.name for text in (inside[-1].split("/") if inside else ()) for part in gpus_named(text)]
    if listed:
        fail(phrase, f"{inside[-1][:60]!r} is what several cards are called; write e.g. {' or '.join(listed)}")
    return None


def _look_up(name: Sized, phrase: str) -> Gpus | None:
    literal, size = gpus_named(name.name), name.size_bytes
    if not literal:
        parts = gpus_named(name.model, size) if size is not None else ()
        return _one_of(parts, name, size, phrase) if parts else None
    if size is not None and literal[0].beside is not None and not literal[0].has_total(size):
        # NVIDIA GH200 480GB: the size in the driver's name is the CPU's
        return replace(_one_of(literal, name, None, phrase), host_bytes=size)
    return _one_of(literal, name, size, phrase)


def _one_of(parts: tuple[GpuPart, ...], name: Sized, memory_bytes: int | None, phrase: str) -> Gpus:
    """The first of `parts`, which all have the name, if they are forms of one chip."""
    if len({part.arch for part in parts}) > 1:
        several = " or ".join(f"{part.name} ({gb(part.memory_bytes)})" for part in parts)
        fail(phrase, f"{name.name[:40]!r} may be {several}; write which")
    return Gpus(1, parts[0], memory_bytes, name.name, parts[1:])
