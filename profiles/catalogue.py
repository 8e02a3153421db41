"""The catalogue: GPUs, CPUs and links by name, and the links that parts of it imply.

The data are three files of `data/hardware`, read when first asked for; an entry becomes a noun when it is looked up.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import combinations
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from profiles.document import Document
from profiles.errors import HardwareError, MoeplanError
from profiles.hardware import Link
from profiles.part_names import Kind, keys, maker_said, plain, singular
from profiles.parts import MEMORY_LINK, CpuPart, GpuPart, LinkPart

LINK_LATENCY_S = 10e-6
"""Latency of any link. An assumption: a small copy over PCIe takes about this long; no source gives it by part."""

GPU_CONTEXT_BYTES = 750 * 2**20
"""What a process holds on a GPU beside its tensors: CUDA context, kernels, cuBLAS workspace. llama.cpp prints 749 MiB
as "unaccounted" on an RTX PRO 6000 (ggml-org/llama.cpp issue 27953); older cards were seen with 250 to 600 MiB."""

PAGE = "docs/profiles.md"
"""Where parts that nobody knows yet are described, as messages name it."""

_Part = TypeVar("_Part", GpuPart, CpuPart)

__all__ = [
    "GPU_CONTEXT_BYTES",
    "LINK_LATENCY_S",
    "PAGE",
    "Catalogue",
    "CpuPart",
    "GpuPart",
    "LinkPart",
    "catalogue",
    "cpus_named",
    "find_cpu",
    "find_gpu",
    "find_link",
    "gpus_named",
    "host_bandwidth",
    "links",
    "machine_links",
    "near_names",
    "near_parts",
    "nearest",
    "nvlinks",
    "plain",
    "sources",
    "unknown_in_phrase",
    "unknown_part",
]


class Catalogue(Document):
    """All parts known by name. Look one up with `find_gpu`, `find_cpu`, `find_link`."""

    error: ClassVar[type[MoeplanError]] = HardwareError

    links: tuple[LinkPart, ...]
    gpus: tuple[GpuPart, ...]
    cpus: tuple[CpuPart, ...]


@cache
def catalogue() -> Catalogue:
    """The whole catalogue that moeplan ships, read once."""
    return Catalogue(
        links=links(),
        gpus=tuple(_gpu(n) for n in range(len(_entries("gpus")))),
        cpus=tuple(_cpu(n) for n in range(len(_entries("cpus")))),
    )


@cache
def _entries(kind: Literal["gpus", "cpus", "links"]) -> list[dict[str, Any]]:
    """A file's entries as they are written."""
    entries: list[dict[str, Any]] = _file(kind)[kind]
    return entries


@cache
def _file(kind: str) -> dict[str, Any]:
    """The files are ours, so libyaml's quick loader will do where there is one."""
    text = files("profiles").joinpath(f"data/hardware/{kind}.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        return dict(loader.get_single_data())
    finally:
        loader.dispose()


def sources(kind: Literal["gpus", "cpus"]) -> dict[str, str]:
    """What the short names stand for that figures give as their source."""
    return dict(_file(kind)["sources"])


@cache
def _gpu(number: int) -> GpuPart:
    return GpuPart(**_entries("gpus")[number])


@cache
def _cpu(number: int) -> CpuPart:
    return CpuPart(**_entries("cpus")[number])


@cache
def links() -> tuple[LinkPart, ...]:
    """All host links known by name."""
    return tuple(LinkPart(**entry) for entry in _entries("links"))


@cache
def _index(kind: Kind) -> dict[str, tuple[int, ...]]:
    """The numbers of the entries that a key may mean: those it is the name of, those drivers call so, then others."""
    found: dict[str, dict[int, None]] = {}
    entries = _entries("gpus" if kind == "GPU" else "cpus")
    for field in ("name", "driver_names", "aliases"):
        for number, entry in enumerate(entries):
            names = entry.get(field, ())
            for name in [names] if isinstance(names, str) else names:
                for key in keys(name, kind):
                    found.setdefault(key, {})[number] = None
    return {key: tuple(numbers) for key, numbers in found.items()}


def _numbers(name: str, kind: Kind) -> tuple[int, ...]:
    once = singular(name)
    spellings = [*keys(name, kind), *(keys(once, kind) if once else ())]
    return next((numbers for key in spellings if (numbers := _index(kind).get(key))), ())


def gpus_named(name: str, memory_bytes: int | None = None) -> tuple[GpuPart, ...]:
    """The GPUs that `name` may mean, in any usual spelling, the commonest first; of that memory where any has it.

    A name that says another maker than the part's means none of its parts.

    >>> [part.name for part in gpus_named("NVIDIA GeForce RTX 5060 Ti")]
    ['RTX5060Ti-16GB', 'RTX5060Ti-8GB']
    >>> [part.name for part in gpus_named("NVIDIA GeForce RTX 5060 Ti", 8151 * 2**20)]
    ['RTX5060Ti-8GB']
    """
    parts = _of_maker(tuple(_gpu(number) for number in _numbers(name, "GPU")), name, "GPU")
    if memory_bytes is None:
        return parts
    return tuple(part for part in parts if part.has_total(memory_bytes)) or parts


def cpus_named(name: str) -> tuple[CpuPart, ...]:
    """The CPUs that `name` may mean, in any usual spelling, the commonest first."""
    return _of_maker(tuple(_cpu(number) for number in _numbers(name, "CPU")), name, "CPU")


def _of_maker(parts: tuple[_Part, ...], name: str, kind: Kind) -> tuple[_Part, ...]:
    maker = maker_said(name, kind)
    return tuple(part for part in parts if maker is None or part.maker == maker)


def find_gpu(name: str, memory_bytes: int | None = None) -> GpuPart | None:
    """The first of `gpus_named`; None when there is none."""
    return next(iter(gpus_named(name, memory_bytes)), None)


def find_cpu(name: str) -> CpuPart | None:
    """The first of `cpus_named`; None when there is none."""
    return next(iter(cpus_named(name)), None)


def find_link(name: str) -> LinkPart | None:
    """The host link of that name (`pcie4x16`, also written `PCIe 4.0 x16`); None when there is none."""
    wanted = plain(name.replace(".0", ""))
    return next((part for part in links() if plain(part.name) == wanted), None)


def nearest(name: str, known: Sequence[str], limit: int = 3) -> list[str]:
    """Those of `known` that `name` may have meant: what starts with it, then what is spelt much like it."""
    by_plain = {plain(candidate): candidate for candidate in known}
    wanted = plain(name[:100])
    near = [by_plain[key] for key in by_plain if wanted and key.startswith(wanted)]
    near += [by_plain[key] for key in difflib.get_close_matches(wanted, by_plain, n=limit, cutoff=0.5)]
    return list(dict.fromkeys(near))[:limit]


def near_names(name: str, known: Sequence[str]) -> str:
    """`did you mean …?` with the nearest of `known`, or the first few of them when none is near."""
    near = nearest(name, known)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(known[:8])}{', …' if len(known) > 8 else ''}"


GPU_FIGURES = "{kind: gpu, memory_bytes: 24 GB, bandwidth_bytes_per_s: 900 GB/s, flops_per_s: {bf16: 100 TFLOP/s}}"
CPU_FIGURES = "{kind: cpu, memory_bytes: 128 GB, bandwidth_bytes_per_s: 80 GB/s, flops_per_s: {bf16: 2 TFLOP/s}}"
"""Devices as a document gives them, for messages to show; the figures are anybody's."""


def unknown_part(kind: Kind, name: str) -> str:
    """What to tell a user whose document names a part that is not in the catalogue."""
    figures = GPU_FIGURES if kind == "GPU" else CPU_FIGURES
    return f"unknown {kind} {name[:40]!r}{near_parts(kind, name)}; for any other give its figures: {figures} ({PAGE})"


def unknown_in_phrase(kind: Kind, name: str, beside: str = "") -> str:
    """What to tell a user whose phrase names a part that is not in the catalogue: a document that would do instead.

    `beside` is what else is in the document's list of devices, each with a comma after it.
    """
    devices = GPU_FIGURES + ", {use: EPYC-9654, memory_bytes: 256 GB}" if kind == "GPU" else beside + CPU_FIGURES
    return (
        f"unknown {kind} {name[:30]!r}{near_parts(kind, name)}; any other: save its figures as a YAML, name that file: "
        f"{{name: box, devices: [{devices}]}} ({PAGE})"
    )


@cache
def _short_names(kind: Kind) -> dict[str, str]:
    """Every part's name by its shortest key."""
    entries = _entries("gpus" if kind == "GPU" else "cpus")
    return {keys(entry["name"], kind)[-1]: entry["name"] for entry in entries}


def near_parts(kind: Kind, name: str, limit: int = 3, most_letters: int = 64) -> str:
    """`, did you mean …?` with the parts that are called most like `name`; nothing where none is."""
    known, entries = _short_names(kind), _entries("gpus" if kind == "GPU" else "cpus")
    wanted = next(iter(keys(name[:40], kind)[::-1]), "")
    longer = [numbers for key, numbers in _index(kind).items() if wanted and key.startswith(wanted)]
    near = [entries[number]["name"] for numbers in longer for number in numbers]
    if len(near) < limit:
        near += [known[key] for key in difflib.get_close_matches(wanted, known, n=limit, cutoff=0.5)]
    near = list(dict.fromkeys(near))[:limit]
    while len(" or ".join(near)) > most_letters:
        near.pop()
    return f", did you mean {' or '.join(near)}?" if near else ""


def host_bandwidth(gpu: GpuPart | None, cpu: CpuPart | None) -> float:
    """Effective bytes/s between a GPU and RAM: the slower of the two parts' links.

    A part that is not known does not limit; where neither is known, PCIe 4.0 x16 is assumed. A GPU that is not on
    PCIe (GH200) keeps its own link, since its CPU is soldered beside it, and one that reads the CPU's own memory is
    limited by that alone.
    """
    if gpu is not None and gpu.host_link == MEMORY_LINK:
        return gpu.bandwidth_bytes_per_s
    if gpu is not None and not gpu.host_link.startswith("pcie"):
        names = [gpu.host_link]
    else:
        names = [part.host_link for part in (gpu, cpu) if part is not None and part.host_link != MEMORY_LINK]
    return min(link.bandwidth_bytes_per_s for link in links() if link.name in (names or ["pcie4x16"]))


def machine_links(
    gpus: Sequence[tuple[str, GpuPart | None]],
    cpu: CpuPart | None,
    host_bytes_per_s: float | None = None,
    bridged: bool = False,
) -> list[Link]:
    """The links of a machine of these (device name, part): each GPU to the CPU, and NVLink where there is any.

    `host_bytes_per_s` is taken as stated; without it `host_bandwidth` decides. Other GPU-to-GPU traffic goes over
    the host, so no link is made for it.
    """
    host = [
        Link(
            between=("cpu", name),
            bandwidth_bytes_per_s=host_bytes_per_s or host_bandwidth(part, cpu),
            latency_s=LINK_LATENCY_S,
        )
        for name, part in gpus
    ]
    return host + nvlinks([(name, part) for name, part in gpus if part is not None], bridged)


def nvlinks(gpus: Sequence[tuple[str, GpuPart]], bridged: bool = False) -> list[Link]:
    """Direct links among (device name, part): always for parts sold joined, for the others only when `bridged`.

    Only equal parts are joined. Bridges join neighbours in the order given (0-1, 2-3, …).
    """
    found = []
    for part in dict.fromkeys(part.name for _, part in gpus):
        names = [name for name, other in gpus if other.name == part]
        nvlink = next(other.nvlink for _, other in gpus if other.name == part)
        if nvlink is None or not (nvlink.always or bridged):
            continue
        pairs = combinations(names, 2) if nvlink.joins == "all" else zip(names[::2], names[1::2], strict=False)
        found += [
            Link(between=pair, bandwidth_bytes_per_s=nvlink.bandwidth_bytes_per_s, latency_s=LINK_LATENCY_S)
            for pair in pairs
        ]
    return found
