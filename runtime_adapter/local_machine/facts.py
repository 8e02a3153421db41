"""What the operating system says about this machine: cores, NUMA nodes, RAM and instruction sets, and the limits set.

Linux's /proc, /sys and control groups (v1 and v2) are read where they are; elsewhere psutil and Python fill in.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ISA = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "sve", "i8mm", "bf16"),
)
"""Instruction sets that decide how fast CPU experts are, by Linux's own names: x86, then ARM."""


@dataclass(frozen=True)
class NumaNode:
    """One node of /sys/devices/system/node; one without CPUs is memory only."""

    number: int
    cpus: tuple[int, ...]
    memory_bytes: int


@dataclass(frozen=True)
class Facts:
    """This machine as its operating system describes it, and what of it this process may use.

    `usable` are the CPUs of its affinity, `quota` the CPUs' worth of time its control group may spend (None: no limit).
    `memory_bytes` is RAM or the control group's limit (`memory_limited`), `available_bytes` what is free or can be
    freed of it, `own_bytes` what this process itself holds. `cache_bytes` sums the last-level caches those CPUs fill.
    """

    cpu_name: str | None
    sockets: int
    cores: int
    logical: int
    usable: tuple[int, ...]
    quota: float | None
    numa: tuple[NumaNode, ...]
    isa: tuple[str, ...]
    cache_bytes: int
    memory_bytes: int
    memory_limited: bool
    available_bytes: int
    own_bytes: int

    @property
    def threads(self) -> int:
        """CPUs that can run all the time: those usable, or the whole ones of the quota."""
        return len(self.usable) if self.quota is None else max(1, min(len(self.usable), int(self.quota)))

    @property
    def in_use_bytes(self) -> int:
        """What everything but this process holds."""
        return max(0, self.memory_bytes - self.available_bytes - self.own_bytes)


def read_facts(
    proc: Path = Path("/proc"),
    sys: Path = Path("/sys"),
    affinity: set[int] | None = None,
    ram: tuple[int, int] | None = None,
    own_bytes: int | None = None,
) -> Facts:
    """The facts under `proc` and `sys`; `affinity`, `ram` (total, available) and `own_bytes` are this process's own.

    A file that is missing or unreadable never raises: its fact is filled in from psutil or left out.
    """
    total, available = ram or _ram()
    name, isa = _cpuinfo(proc)
    usable = tuple(sorted(affinity or _affinity()))
    groups = list(_groups(proc, sys))
    memory, available, limited = _memory_within(groups, total, available)
    online = _cpu_list(_text(sys / "devices/system/cpu/online")) or usable
    cores, sockets = _topology(sys, online)
    return Facts(
        cpu_name=name or platform.processor() or None,
        sockets=sockets or 1,
        cores=cores or psutil.cpu_count(logical=False) or len(online),
        logical=len(online),
        usable=usable,
        quota=_quota(groups),
        numa=_numa(sys),
        isa=isa,
        cache_bytes=_cache_bytes(sys, usable),
        memory_bytes=memory,
        memory_limited=limited,
        available_bytes=available,
        own_bytes=_own_bytes() if own_bytes is None else own_bytes,
    )


def _text(path: Path) -> str:
    """The file's text; empty when it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _number(path: Path) -> int | None:
    """The whole number in a file; None for `max`, -1 (both: no limit) and anything else that is no count."""
    text = _text(path)
    return int(text) if text.isascii() and text.isdigit() else None


def _cpu_list(text: str) -> tuple[int, ...]:
    """Linux's list format.

    >>> _cpu_list("0-2,8")
    (0, 1, 2, 8)
    """
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        with contextlib.suppress(ValueError):
            cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)


def _ram() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _own_bytes() -> int:
    """What would come back if this process ended: resident pages that are not shared with files or others."""
    held = psutil.Process().memory_info()
    return max(0, int(held.rss - getattr(held, "shared", 0)))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS and Windows


def _cpuinfo(proc: Path) -> tuple[str | None, tuple[str, ...]]:
    """(model name, instruction sets) of the first CPU."""
    fields: dict[str, str] = {}
    for line in _text(proc / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return fields.get("model name") or None, tuple(name for name in ISA if name in flags)


def _topology(sys: Path, online: tuple[int, ...]) -> tuple[int, int]:
    """(physical cores, sockets), 0 where the kernel does not say."""
    cores, sockets = set(), set()
    for cpu in online:
        folder = sys / f"devices/system/cpu/cpu{cpu}/topology"
        cores.add(_text(folder / "core_cpus_list") or _text(folder / "thread_siblings_list"))
        sockets.add(_text(folder / "physical_package_id"))
    return len(cores - {""}), len(sockets - {"", "-1"})


def _numa(sys: Path) -> tuple[NumaNode, ...]:
    nodes = []
    for folder in (sys / "devices/system/node").glob("node[0-9]*"):
        if not folder.name.removeprefix("node").isdigit():
            continue
        total = next((line for line in _text(folder / "meminfo").splitlines() if "MemTotal:" in line), "")
        kib = next((word for word in total.partition("MemTotal:")[2].split() if word.isdigit()), "0")
        cpus = _cpu_list(_text(folder / "cpulist"))
        nodes.append(NumaNode(int(folder.name.removeprefix("node")), cpus, int(kib) * 1024))
    return tuple(sorted(nodes, key=lambda node: node.number))


def _cache_bytes(sys: Path, usable: tuple[int, ...]) -> int:
    """Bytes of the last-level caches that the usable CPUs can fill, each counted once; 0 where the kernel is silent."""
    shared: dict[str, int] = {}
    for cpu in usable:
        levels = [(_number(folder / "level") or 0, folder) for folder in _caches(sys, cpu)]
        if levels:
            level, folder = max(levels, key=lambda pair: pair[0])
            size = _text(folder / "size")  # such as 32768K
            sharers = _text(folder / "shared_cpu_list") or str(cpu)
            scale = {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1:], 1)
            digits = size.rstrip("KMG")
            shared[f"{level}:{sharers}"] = int(digits) * scale if digits.isdigit() else 0
    return sum(shared.values())


def _caches(sys: Path, cpu: int) -> Iterator[Path]:
    for folder in (sys / f"devices/system/cpu/cpu{cpu}/cache").glob("index[0-9]*"):
        if _text(folder / "type") != "Instruction":
            yield folder


def _groups(proc: Path, sys: Path) -> Iterator[Path]:
    """The folders of the control groups this process is in, with all above them, since every level may set a limit.

    A container often sees its own group as the root while /proc still names the host's path: what is not there is
    passed over, and the root always counts.
    """
    root = sys / "fs/cgroup"
    for line in _text(proc / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = [controllers, *controllers.split(",")] if controllers else ["", "unified"]  # v1, v2
        inner = [] if ".." in path else [part for part in path.split("/") if part]
        for mount in dict.fromkeys(root / name for name in names):
            for depth in range(len(inner), -1, -1):
                folder = mount.joinpath(*inner[:depth])
                if folder.is_dir():
                    yield folder


def _quota(groups: list[Path]) -> float | None:
    """The tightest CPU limit of all groups, in CPUs; None when there is none."""
    limits = []
    for folder in groups:
        words = _text(folder / "cpu.max").split()  # v2: "200000 100000", or "max 100000"
        quota = int(words[0]) if words and words[0].isdigit() else _number(folder / "cpu.cfs_quota_us")
        period = int(words[1]) if len(words) > 1 and words[1].isdigit() else _number(folder / "cpu.cfs_period_us")
        if quota and period:
            limits.append(quota / period)
    return min(limits, default=None)


def _memory_within(groups: list[Path], total: int, available: int) -> tuple[int, int, bool]:
    """(memory, available, whether a group limits it): RAM, cut to every group's limit and what is left of it."""
    memory = total
    for folder in groups:
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is None or limit >= total:  # v1 writes a huge number where there is no limit
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        memory = min(memory, limit)
        available = min(available, max(0, limit - max(0, used - _reclaimable(folder))))
    return memory, available, memory < total


def _reclaimable(folder: Path) -> int:
    """File pages that a group gives back when pressed; v1's `total_` counts the groups below too."""
    stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    value = stat.get("total_inactive_file") or stat.get("inactive_file") or "0"
    return int(value) if value.isdigit() else 0
