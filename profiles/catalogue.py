"""The catalogue: GPUs, CPUs and links by name, and the links that parts of it imply."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import combinations
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from profiles.document import Document, Noun, SchemaOne, parse_document
from profiles.errors import HardwareError, MoeplanError
from profiles.hardware import Link
from profiles.units import ByteCount, BytesPerSecond, FlopPerSecond

LINK_LATENCY_S = 10e-6
"""Latency of any link. An assumption: a small copy over PCIe takes about this long; no source gives it by part."""

GPU_CONTEXT_BYTES = 750 * 2**20
"""What a process holds on a GPU beside its tensors: CUDA context, kernels, cuBLAS workspace. llama.cpp prints 749 MiB
as "unaccounted" on an RTX PRO 6000 (ggml-org/llama.cpp issue 27953); older cards were seen with 250 to 600 MiB."""

Flops = Annotated[dict[str, FlopPerSecond], Field(min_length=1)]


class LinkPart(Noun):
    """A host link, by its effective host-to-device rate (pinned memory), which is below what its name promises."""

    name: str
    bandwidth_bytes_per_s: BytesPerSecond
    source: str


class NvLink(Noun):
    """GPU to GPU, each direction of one pair. `always`: the part is only sold so joined."""

    bandwidth_bytes_per_s: BytesPerSecond
    joins: Literal["all", "pairs"]
    always: bool
    total_bytes_per_s: BytesPerSecond


class GpuPart(Noun):
    """One kind of GPU; `verified` is False where a figure was remembered and not looked up.

    `also` names the parts that a bare name (A100-80GB, H100) could have meant as well.
    """

    name: str
    aliases: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    memory_bytes: ByteCount
    memory_source: str
    bandwidth_bytes_per_s: BytesPerSecond
    flops_per_s: Flops
    host_link: str
    nvlink: NvLink | None = None
    measured: dict[str, str] | None = None
    source: str
    verified: bool
    notes: str | None = None


class CpuPart(Noun):
    """One kind of CPU, figures of one socket; `bandwidth_source` says whether that figure is measured or the peak.

    `chiplets` is on how many dies the cores are, where that is known. No formula uses it.
    """

    name: str
    aliases: tuple[str, ...] = ()
    cores: int
    clock_hz: float | None = None
    chiplets: int | None = None
    isa: tuple[str, ...]
    memory: str
    peak_bytes_per_s: BytesPerSecond
    bandwidth_bytes_per_s: BytesPerSecond
    bandwidth_source: str
    flops_per_s: Flops
    flops_source: str
    host_link: str
    source: str
    verified: bool
    notes: str | None = None


class Catalogue(Document):
    """All parts known by name. Look one up with `find_gpu`, `find_cpu`, `find_link`."""

    error: ClassVar[type[MoeplanError]] = HardwareError

    schema_: Annotated[SchemaOne, Field(alias="schema")] = 1
    links: tuple[LinkPart, ...]
    gpus: tuple[GpuPart, ...]
    cpus: tuple[CpuPart, ...]


@cache
def catalogue() -> Catalogue:
    """The catalogue that moeplan ships, read once."""
    where = "catalogue.yaml"
    text = files("profiles").joinpath("data/hardware/catalogue.yaml").read_text(encoding="utf-8")
    return Catalogue.from_dict(parse_document(text, where, HardwareError), where)


def plain(name: str) -> str:
    """A part's name without case, vendor, dashes or spaces: how names are compared.

    >>> plain("NVIDIA GeForce RTX 4090"), plain("rtx-4090")
    ('rtx4090', 'rtx4090')
    """
    return re.sub(r"nvidia|geforce|amd|intel|[^a-z0-9]", "", name.lower())


def find_gpu(name: str) -> GpuPart | None:
    """The GPU of that name or alias, whatever its case and dashes; None when there is none."""
    return next((part for part in catalogue().gpus if plain(name) in _names(part)), None)


def find_cpu(name: str) -> CpuPart | None:
    """The CPU of that name or alias, whatever its case and dashes; None when there is none."""
    return next((part for part in catalogue().cpus if plain(name) in _names(part)), None)


def find_link(name: str) -> LinkPart | None:
    """The host link of that name (`pcie4x16`, also written `PCIe 4.0 x16`); None when there is none."""
    wanted = plain(name.replace(".0", ""))
    return next((part for part in catalogue().links if plain(part.name) == wanted), None)


def _names(part: GpuPart | CpuPart) -> set[str]:
    return {plain(name) for name in (part.name, *part.aliases)}


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


def unknown_part(kind: Literal["GPU", "CPU"], name: str) -> str:
    """What to tell a user who named a part that is not in the catalogue."""
    parts: Sequence[GpuPart | CpuPart] = catalogue().gpus if kind == "GPU" else catalogue().cpus
    hint = near_names(name, [part.name for part in parts])
    return f"unknown {kind} {name[:40]!r}, {hint} (a hardware YAML can describe any other)"


def host_bandwidth(gpu: GpuPart | None, cpu: CpuPart | None) -> float:
    """Effective bytes/s between a GPU and RAM: the slower of the two parts' links.

    A part that is not known does not limit; where neither is known, PCIe 4.0 x16 is assumed. A GPU that is not on
    PCIe (GH200) keeps its own link, since its CPU is soldered beside it.
    """
    if gpu is not None and not gpu.host_link.startswith("pcie"):
        names = [gpu.host_link]
    else:
        names = [part.host_link for part in (gpu, cpu) if part is not None] or ["pcie4x16"]
    return min(link.bandwidth_bytes_per_s for link in catalogue().links if link.name in names)


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
    links = []
    for part in dict.fromkeys(part.name for _, part in gpus):
        names = [name for name, other in gpus if other.name == part]
        nvlink = next(other.nvlink for _, other in gpus if other.name == part)
        if nvlink is None or not (nvlink.always or bridged):
            continue
        pairs = combinations(names, 2) if nvlink.joins == "all" else zip(names[::2], names[1::2], strict=False)
        links += [
            Link(between=pair, bandwidth_bytes_per_s=nvlink.bandwidth_bytes_per_s, latency_s=LINK_LATENCY_S)
            for pair in pairs
        ]
    return links
