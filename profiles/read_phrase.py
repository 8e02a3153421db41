"""Read a machine from a phrase: `8xL40-46GB`, `2xA100-80GB+4xRTX4090,cpu=EPYC-9654,ram=768GB`, `2x3090, 7950X, 128GB`.

    phrase = part {("," | "+" | "and" | "with") part}        part = GPUs | CPUs | RAM | key "=" value

GPUs and CPUs are catalogue names in any usual spelling (profiles/part_names.py), with a count before or behind. Keys:
`cpu`, `ram` (default 512 GB), `sockets` (default 1), `bandwidth` (of RAM, all sockets together), `budget` (what a plan
may use of every GPU, absolutely), `link` (a catalogue link such as `pcie4x16`, a rate such as `50GB/s`, both for every
GPU's way to the CPU and taken as stated, or `nvlink`: bridges between neighbours that can have them).

A size means exactly that many bytes (`46GB` is 46 * 10^9): the catalogue gives the speeds, and of parts that share a
name the one of that size. Without a size the catalogue's bytes are taken. A chip with one memory for GPU and CPU is a
machine with a pool of its size, or of `ram`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from profiles.catalogue import CpuPart, GpuPart, cpus_named, gpus_named, unknown_in_phrase
from profiles.hardware import Hardware
from profiles.part_names import looks_like_cpu
from profiles.phrase.devices import (
    GENERIC_CPU_BYTES_PER_S,
    GENERIC_CPU_FLOPS_PER_S,
    cpu_device,
    cpu_notes,
    gpu_device,
    gpu_names,
)
from profiles.phrase.gpus import Gpus, may_be_its_memory, read_gpus, with_memory
from profiles.phrase.host import Options, Ram, read_cpus, read_option, read_ram, split_option, with_cpus
from profiles.phrase.machine import DEFAULT_RAM_BYTES, machine
from profiles.phrase.text import MAX_GPUS, MAX_PHRASE, counts, fail, parts, pieces, sized, uncounted

__all__ = [
    "DEFAULT_RAM_BYTES",
    "GENERIC_CPU_BYTES_PER_S",
    "GENERIC_CPU_FLOPS_PER_S",
    "MAX_GPUS",
    "cpu_device",
    "cpu_notes",
    "gpu_device",
    "gpu_names",
    "looks_like_phrase",
    "read_phrase",
]


def looks_like_phrase(text: str) -> bool:
    """Whether an unknown name was meant as a phrase: it has a count, a key or several parts."""
    return len(counts(text.strip())) > 1 or bool(re.search(r"[=+,&]|\sw/\s", text))


def read_phrase(text: str) -> Hardware:
    """The machine that `text` describes; its `name` is `text`, so that a plan that stores it can be loaded again.

    Raises HardwareError, one line with the phrase, the part that is wrong and the remedy.

    >>> machine = read_phrase("2xL40-46GB,ram=256GB")
    >>> [device.name for device in machine.devices], machine.cpu.memory_bytes
    (['cuda:0', 'cuda:1', 'cpu'], 256000000000)
    """
    phrase = text.strip()
    if not phrase or len(phrase) > MAX_PHRASE or not phrase.isprintable():
        fail(phrase, "is empty, too long or not one line; write e.g. 8xL40-46GB,ram=512GB")
    reader = _Reader(phrase)
    for piece in pieces(phrase):
        reader.read(piece)
    return machine(phrase, reader.groups, reader.options)


@dataclass
class _Reader:
    """A phrase while it is read; `last` are the GPUs named directly before, whose memory a bare size could be."""

    phrase: str
    groups: list[Gpus] = field(default_factory=list)
    options: Options = field(default_factory=Options)
    given: set[str] = field(default_factory=set)
    last: Gpus | None = None

    def read(self, piece: str) -> None:
        """One piece between commas."""
        if not piece:
            fail(self.phrase, "has an empty part; take the extra comma away")
        if "=" in piece:
            key, value = split_option(piece, self.given, self.phrase)
            self.given.add(key)
            self.options = read_option(self.options, key, value, self.phrase, self._beside())
            self.last = None
            return
        for part in parts(piece, _has_a_sign):
            if not part:
                fail(self.phrase, "has an empty part beside a '+'; take the '+' away or name a GPU")
            self._read_part(part)

    def _read_part(self, part: str) -> None:
        last, self.last = self.last, None
        ram = read_ram(part, self.phrase, unit_needed=True)
        if ram is not None:
            self._ram(ram, last)
        elif part.lower() == "nvlink":
            self.options = replace(self.options, nvlink=True)
        elif (gpus := read_gpus(part, self.phrase)) is not None:
            self.groups.append(gpus)
            self.last = gpus if gpus.memory_bytes is None else None
        elif (cpus := read_cpus(part, self.phrase)) is not None:
            self.options = with_cpus(self.options, cpus, self.phrase)
        elif looks_like_cpu(part):
            fail(self.phrase, unknown_in_phrase("CPU", uncounted(part), self._beside()))
        else:
            model = sized(uncounted(part), self.phrase).model or part
            fail(self.phrase, unknown_in_phrase("GPU", model))

    def _ram(self, ram: Ram, last: Gpus | None) -> None:
        """RAM, or the memory of the GPUs before it: as nvidia-smi prints it, or of a chip that has one memory."""
        if last is not None and not ram.sure:
            if last.part.unified is not None or re.search(r"mi?b", ram.text, re.IGNORECASE):
                self.groups[-1] = with_memory(last, ram.ram_bytes)
                return
            if may_be_its_memory(last, ram.ram_bytes):
                ask = f"write {last.asked[:30]} {ram.text} without the comma, or ram={ram.text}"
                fail(self.phrase, f"{ram.text} may be the memory of {last.asked[:30]} or RAM; {ask}")
        if self.options.ram is not None:
            fail(self.phrase, f"RAM is given twice, {self.options.ram.text} and {ram.text}; keep one")
        self.given.add("ram")
        self.options = replace(self.options, ram=ram)

    def _beside(self) -> str:
        """The GPUs read so far as a document lists them, to stand beside a CPU that nobody knows."""
        listed = [f"{{use: {group.part.name}, repeat: {group.count}}}, " for group in self.groups[:2]]
        return "".join(listed)


def _has_a_sign(name: str) -> bool:
    """Whether it names a part with a `+` or `w/` in its name, so that these join nothing."""
    for _, text in counts(name):
        model = sized(text, "").model
        found: tuple[GpuPart | CpuPart, ...] = (*gpus_named(text), *gpus_named(model), *cpus_named(text))
        if any("+" in known or "w/" in known for part in found for known in (part.name, *part.aliases)):
            return True
    return False
