"""Memory that several devices share: what they hold counts once against it, beside each one's own limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cost_models import memory
from profiles.hardware import Hardware


@dataclass(frozen=True)
class Shared:
    """A pool: what `devices` hold in all is at most `usable` bytes. One that holds anything also has its part of
    `contexts` there, which its own usable bytes are without."""

    name: str
    devices: tuple[int, ...]
    usable: int
    contexts: tuple[int, ...]


@dataclass(frozen=True)
class Room:
    """Usable bytes of each device, less what it needs once it holds anything, and of what devices share."""

    usable: tuple[int, ...]
    shared: tuple[Shared, ...] = ()

    @staticmethod
    def of(machine: Hardware, safety_margin: float) -> Room:
        """Devices in the machine's order."""
        contexts = {device.name: memory.context_beyond_margin(device, safety_margin) for device in machine.devices}
        usable = (memory.usable_bytes(device, safety_margin) - contexts[device.name] for device in machine.devices)
        order, shared = list(contexts), []
        for pool in machine.pools:
            members = machine.in_pool(pool.name)
            names = [device.name for device in members]
            in_all = memory.pool_usable_bytes(pool, members, safety_margin)
            beside = tuple(contexts[name] for name in names)
            shared.append(Shared(pool.name, tuple(map(order.index, names)), in_all, beside))
        return Room(tuple(max(0, n) for n in usable), tuple(shared))

    @property
    def all(self) -> list[int]:
        """Usable bytes of each device, then of each pool."""
        return [*self.usable, *(pool.usable for pool in self.shared)]

    @property
    def each(self) -> list[tuple[int, ...]]:
        """What the room of each device is like: usable bytes, its pool and what it has there once it holds anything."""
        return list(zip(self.usable, self.pool_of, self.contexts, strict=True))

    @property
    def pool_of(self) -> list[int]:
        """The number of each device's pool; -1 where it shares nothing."""
        found = [-1] * len(self.usable)
        for k, pool in enumerate(self.shared):
            for d in pool.devices:
                found[d] = k
        return found

    @property
    def contexts(self) -> list[int]:
        """What each device has in its pool once it holds anything, beside that."""
        known = {d: n for pool in self.shared for d, n in zip(pool.devices, pool.contexts, strict=True)}
        return [known.get(d, 0) for d in range(len(self.usable))]

    def divided(self) -> Iterator[Room]:
        """Rooms without pools; what fits in one of them fits here. What devices share is given out in their order, the
        other way round, and in proportion to what each may have of it."""
        if all(sum(self.usable[d] for d in pool.devices) <= pool.usable for pool in self.shared):
            return
        for rule in (_first_come, _last_come, _in_proportion):
            usable = list(self.usable)
            for pool in self.shared:
                left = max(0, pool.usable - sum(pool.contexts))
                for d, n_bytes in zip(pool.devices, rule(left, [usable[d] for d in pool.devices]), strict=True):
                    usable[d] = n_bytes
            yield Room(tuple(usable))

    def less(self, kept: Sequence[int]) -> Room:
        """With so many bytes of each device kept free, in its pool too."""
        usable = tuple(max(0, n - k) for n, k in zip(self.usable, kept, strict=True))
        shared = (
            replace(pool, usable=max(0, pool.usable - sum(kept[d] for d in pool.devices))) for pool in self.shared
        )
        return Room(usable, tuple(shared))


def _first_come(left: int, most: Sequence[int]) -> list[int]:
    """To each as much as it may have, as long as there is any."""
    given = []
    for n_bytes in most:
        given.append(min(n_bytes, left))
        left -= given[-1]
    return given


def _last_come(left: int, most: Sequence[int]) -> list[int]:
    return _first_come(left, most[::-1])[::-1]


def _in_proportion(left: int, most: Sequence[int]) -> list[int]:
    return [min(n_bytes, left * n_bytes // max(1, sum(most))) for n_bytes in most]
