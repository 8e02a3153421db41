"""What a dry run reports: bytes alive on every device in every phase, by kind. Plain data; torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceBytes:
    """What one device held in one phase.

    `weights_bytes` are parameters; `buffers_bytes` what a model keeps beside them (rotary tables, router biases);
    `kv_bytes` the storages that the cache holds at the end of the phase; `peak_bytes` the most bytes alive at once.

    `workspace_bytes` is the most bytes alive at one moment beyond parameters and KV, where each tensor of the cache
    counts once: the copy that will outlive the phase from its birth on, until then its predecessor. While a cache
    grows, old and new copy live together, and the old one is workspace. So peak <= weights + KV + workspace.
    """

    weights_bytes: int
    buffers_bytes: int
    kv_bytes: int
    peak_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class Phase:
    """One forward pass: `tokens` new tokens a sequence, `context_tokens` in the cache after it.

    `devices` has an entry for every device of the plan, and for the CPU, where prompt and logits are;
    `moved_bytes` is by (from, to).
    """

    name: str
    tokens: int
    context_tokens: int
    devices: Mapping[str, DeviceBytes]
    moved_bytes: Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class DryRun:
    """The phases of a dry run in order: the prompt's chunks, then one decode step a new token."""

    phases: tuple[Phase, ...]

    def _most(self, field: str) -> dict[str, int]:
        return {d: max(getattr(phase.devices[d], field) for phase in self.phases) for d in self.phases[0].devices}

    @property
    def weights_bytes(self) -> dict[str, int]:
        """Parameters by device."""
        return self._most("weights_bytes")

    @property
    def kv_bytes(self) -> dict[str, int]:
        """The most KV at the end of a phase, by device."""
        return self._most("kv_bytes")

    @property
    def peak_bytes(self) -> dict[str, int]:
        """The most bytes alive at once, by device."""
        return self._most("peak_bytes")

    @property
    def workspace_bytes(self) -> dict[str, int]:
        """The most workspace of any phase, by device."""
        return self._most("workspace_bytes")
