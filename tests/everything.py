"""Every placement of a tiny instance, with what each device holds and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from oracle import OBJECTIVES, BruteForce, Oracle, Spots
from strategies import Instance

Blocks = list[tuple[str, int]]
"""Part and layer of each block on one device."""


def options_of(seed: int) -> dict[str, Any]:
    """Objective and granularity take turns."""
    return {"objective": OBJECTIVES[seed % 4], "granularity": ("module", "layer")[seed // 4 % 2]}


@dataclass(frozen=True)
class One:
    """A placement that fits: its objective, and bytes left on the fullest device that could hold something."""

    seconds: float
    free: int


class Everything:
    """All placements that fit; `spare` says how many bytes a device with such blocks has to keep free."""

    def __init__(
        self, instance: Instance, options: dict[str, Any], spare: Callable[[str, Blocks], int] | None = None
    ) -> None:
        self.oracle = Oracle(instance.profile, instance.hardware, instance.workload)
        self.options, self.instance = options, instance
        self.spare = spare or (lambda name, blocks: 0)
        self.tables = BruteForce(self.oracle, options["objective"])
        self.all = list(self._all())

    def _all(self) -> Iterator[One]:
        dense = [layer.experts is None for layer in self.instance.profile.layers]
        devices = range(len(self.oracle.names))
        apart = self.options["granularity"] == "module"
        where = [(None,) if d or not apart else devices for d in dense]
        for embedding, head, *homes in product(devices, repeat=2 + len(dense)):
            for chosen in product(*where):
                experts = [None if d else a if x is None else x for d, a, x in zip(dense, homes, chosen, strict=True)]
                spots = Spots(embedding, head, tuple(homes), tuple(experts))
                free = [n - used for n, used in zip(self.tables.usable, self.used(spots), strict=True)]
                if min(free) >= 0:
                    yield One(self._seconds(spots), min((free[d] for d in self.counted), default=0))

    def _blocks(self, spots: Spots) -> list[tuple[str, int, int]]:
        found = [("embedding", 0, spots.embedding), ("head", 0, spots.head)]
        for i, (a, d) in enumerate(zip(spots.attention, spots.experts, strict=True)):
            found += [("attention", i, a), *([("experts", i, d)] if d is not None else [])]
        return found

    def used(self, spots: Spots) -> list[int]:
        """Bytes on each device, what it keeps free included."""
        held: list[Blocks] = [[] for _ in self.oracle.names]
        for part, layer, d in self._blocks(spots):
            held[d].append((part, layer))
        used = []
        for d, blocks in enumerate(held):
            stays = sum(self.tables.stays[part, layer, d] for part, layer in blocks)
            tied = self.instance.profile.tied_bytes if spots.embedding == spots.head == d else 0
            largest = max((self.oracle.workspace(part, layer) for part, layer in blocks), default=0)
            used.append(stays - tied + largest + self.spare(self.oracle.names[d], blocks))
        return used

    @property
    def counted(self) -> list[int]:
        """Devices that could hold something."""
        usable, tables = self.tables.usable, self.tables
        return [
            d
            for d in tables.devices
            if any(tables.stays[part, i, d] + self.oracle.workspace(part, i) <= usable[d] for part, i in tables.blocks)
        ]

    def _seconds(self, spots: Spots) -> float:
        tables = self.tables
        if self.options["objective"] == "throughput":
            busy = [0.0] * len(self.oracle.names)
            for part, layer, d in self._blocks(spots):
                busy[d] += tables.time[part, layer, d]
            return max(busy)
        total = math.fsum(tables.time[block] for block in self._blocks(spots))
        total += sum(tables.hop[a][b] for a, b in pairwise((spots.embedding, *spots.attention, spots.head)))
        apart = zip(spots.attention, spots.experts, strict=True)
        return total + sum(tables.outside[a][d] for a, d in apart if d is not None)
