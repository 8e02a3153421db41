"""How many bytes every block of a model has, as a file or a weight format stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from profiles.model import KindBytes


def same(n_bytes: int) -> KindBytes:
    """The same bytes on every kind of device."""
    return KindBytes(gpu=n_bytes, cpu=n_bytes)


@dataclass(frozen=True)
class StoredExperts:
    """One layer's routed experts. `each` is given where experts differ, `projections` (gate, up, down) where known."""

    total: KindBytes
    each: tuple[int, ...] | None = None
    projections: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Stored:
    """Bytes of every block of a model under the name `quant`.

    A tied head counts the embedding's tensor, `tied_bytes`, once more. `mtp_bytes` are those of multi-token-prediction
    layers, which a file may hold though plain decoding does not load them; `mtp_layers` is how many of them a GGUF file
    counts with its layers, None where there is no such file. `packed_by` is the method, in transformers' words, where
    weights are packed in a way that runtimes may undo; `value_bytes` are those of an activation.
    """

    quant: str
    embedding: KindBytes
    attention: tuple[KindBytes, ...]
    experts: tuple[StoredExperts | None, ...]
    head: KindBytes
    tied_bytes: int = 0
    mtp_bytes: int = 0
    mtp_layers: int | None = None
    notes: tuple[str, ...] = ()
    packed_by: str | None = None
    value_bytes: int = 2


def by_kind(quant: str, gpu: Stored, cpu: Stored) -> Stored:
    """What `gpu` stores on GPUs and `cpu` on the CPU; no file is like that, so there is nothing beside the blocks."""

    def both(on_gpu: KindBytes, on_cpu: KindBytes) -> KindBytes:
        return KindBytes(gpu=on_gpu.gpu, cpu=on_cpu.cpu)

    def experts(on_gpu: StoredExperts | None, on_cpu: StoredExperts | None) -> StoredExperts | None:
        if on_gpu is None or on_cpu is None:
            return None
        return replace(on_gpu, total=both(on_gpu.total, on_cpu.total))

    return Stored(
        quant=quant,
        embedding=both(gpu.embedding, cpu.embedding),
        attention=tuple(both(a, b) for a, b in zip(gpu.attention, cpu.attention, strict=True)),
        experts=tuple(experts(a, b) for a, b in zip(gpu.experts, cpu.experts, strict=True)),
        head=both(gpu.head, cpu.head),
        tied_bytes=min(gpu.tied_bytes, cpu.tied_bytes),
        notes=tuple(dict.fromkeys(gpu.notes + cpu.notes)),
    )
