"""Seconds of every block of a live model in one forward: marks between blocks, so that nothing of it is left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from runtime_adapter.anatomy import Anatomy


@dataclass(frozen=True)
class BlockSeconds:
    """What one forward spent on each block. `experts` has an entry a layer, None for a dense one."""

    embedding: float
    attention: tuple[float, ...]
    experts: tuple[float | None, ...]
    head: float

    @property
    def total(self) -> float:
        return self.embedding + sum(self.attention) + sum(s for s in self.experts if s is not None) + self.head


@dataclass
class Stopwatch:
    """The marks of the forward that runs now, by what begins there."""

    wait: Callable[[], None]
    marks: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        self.wait()
        self.marks[name] = time.perf_counter()

    def block_seconds(self, experts: list[bool]) -> BlockSeconds:
        """The last forward's seconds. What a model does before its first layer counts as embedding, between two layers
        as the first one's attention, and from the final norm on as head."""
        m, starts = self.marks, [self.marks[f"layer {i}"] for i in range(len(experts))]
        ends = [*starts[1:], m["norm"]]
        inner = [m[f"after experts {i}"] - m[f"experts {i}"] if moe else None for i, moe in enumerate(experts)]
        outer = tuple(end - start - (part or 0.0) for start, end, part in zip(starts, ends, inner, strict=True))
        return BlockSeconds(starts[0] - m["start"], outer, tuple(inner), m["end"] - m["norm"])


@contextmanager
def watched(anatomy: Anatomy, wait: Callable[[], None]) -> Iterator[Stopwatch]:
    """A stopwatch on the model while the block runs. `wait` returns when all devices have done what they were given.

    Waiting at every mark keeps what the host does for the next block from hiding behind what a GPU does for this one,
    so the sum is more than an unwatched forward takes: compare the two.
    """
    watch, handles = Stopwatch(wait), []

    def before(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda *_: watch.mark(name), prepend=True))

    def after(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda *_: watch.mark(name)))

    try:
        before(anatomy.model, "start")
        for i, (layer, experts) in enumerate(zip(anatomy.layers, anatomy.experts, strict=True)):
            before(layer, f"layer {i}")
            if experts is not None:
                before(experts, f"experts {i}")
                after(experts, f"after experts {i}")
        before(anatomy.norm, "norm")
        after(anatomy.model, "end")
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def waiter(devices: set[torch.device]) -> Callable[[], None]:
    """Waits for the devices that work on their own: those of a backend with a `synchronize`."""
    found: list[tuple[Any, torch.device]] = [
        (getattr(torch, device.type), device) for device in devices if device.type != "cpu"
    ]
    asynchronous = [(backend, device) for backend, device in found if hasattr(backend, "synchronize")]

    def wait() -> None:
        for backend, device in asynchronous:
            backend.synchronize(device)

    return wait
