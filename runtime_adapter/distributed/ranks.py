"""The ranks of one model: their process groups, whether they mean the same, tokens for all, and who was waited for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from profiles.errors import ApplyError
from runtime_adapter.meta.errors import one_line

PATIENCE = timedelta(hours=2)
"""How long ranks wait for each other where no work of one is needed by another: loading, and between two prompts."""


@dataclass(eq=False)
class Ranks:
    """All ranks of the default process group, which has one rank for each entry of `hosts`.

    Two groups of their own: a `patient` one, and `swift`, in which no wait takes longer than `timeout_s`; both are gloo
    on the CPU. Hidden states travel on `link`: through `swift`, or NCCL where every rank computes on CUDA.
    Closing frees the groups' sockets, by which other ranks that wait for this one notice at once that it is gone.
    """

    rank: int
    size: int
    timeout_s: float
    patient: Any
    swift: Any
    hidden: Any
    link: torch.device
    waiting: tuple[int | None, str] = (None, "")
    open: bool = field(default=True)

    def wait_for(self, peer: int | None, what: str) -> None:
        """Note what comes next, for the message should it never end."""
        self.waiting = (peer, what)

    def agree(self, what: str, *things: object) -> None:
        """Wait for all ranks; ApplyError on each of them if one has other `things` than rank 0, or fails to come."""
        digest = hashlib.sha256()
        for thing in things:
            text = thing.tolist() if isinstance(thing, Tensor) else thing
            digest.update(repr(text).encode())
        answers = self._all(int.from_bytes(digest.digest()[:7], "big"), f"whether all have the same {what}")
        other = next((rank for rank, answer in enumerate(answers) if answer != answers[0]), None)
        if other is not None:
            raise ApplyError(f"{what}: rank {other} has another one than rank 0; give every rank the same")

    def _all(self, value: int, what: str) -> list[int]:
        self.wait_for(None, what)
        answers = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        try:
            dist.all_gather(answers, torch.tensor([value]), group=self.patient)
        except RuntimeError as problem:
            raise self.lost(problem) from None
        return [int(answer) for answer in answers]

    def from_last(self, tokens: Tensor | None, source: int, rows: int, what: str) -> Tensor:
        """The int64 `tokens` [B] of rank `source`, on every rank, on the CPU."""
        if tokens is None:
            given = torch.empty(rows, dtype=torch.int64)
            self.wait_for(source, what)
            dist.recv(given, src=source, group=self.swift)
            return given
        sent = tokens.to("cpu", torch.int64)
        others = [rank for rank in range(self.size) if rank != source]
        works = [dist.isend(sent, dst=rank, group=self.swift) for rank in others]
        for rank, work in zip(others, works, strict=True):
            self.wait_for(rank, what)
            if work is not None:
                work.wait()
        return sent

    def lost(self, problem: BaseException) -> ApplyError:
        """Close, and say which rank was waited for when torch.distributed raised `problem`."""
        self.close()
        peer, what = self.waiting
        if peer is None and self.size == 2:
            peer = 1 - self.rank
        who = "another rank" if peer is None else f"rank {peer}"
        reason = one_line(problem).rpartition("] ")[2].partition(". ")[0]
        here = f"rank {self.rank} of {self.size}"
        if "timed out" in reason.lower() or "timeout" in reason.lower():
            return ApplyError(
                f"{here}: {who} did not answer while waiting for {what} ({reason}); it hangs, its host is unreachable, "
                f"or it needs longer than timeout_s={self.timeout_s:g}"
            )
        return ApplyError(
            f"{here}: lost {who} while waiting for {what} ({reason}); if it was not killed, its own message says why; "
            "start all ranks again"
        )

    def close(self) -> None:
        """Leave the groups. Doing it twice does nothing."""
        if not self.open:
            return
        self.open = False
        groups: Iterable[Any] = {id(group): group for group in (self.hidden, self.swift, self.patient)}.values()
        for group in groups:
            dist.destroy_process_group(group)
        self.patient = self.swift = self.hidden = None


def join(size: int, timeout_s: float, accelerator_of: Callable[[int], torch.device | None]) -> Ranks:
    """Meet the other ranks, through the default process group, which is made as torchrun's environment says if need be.

    It stays when the model is closed: torch cannot make it a second time from what torchrun left in its store.
    `accelerator_of(rank)` is where a rank would send and receive hidden states; None if that is the CPU. Raises
    ApplyError when there are not `size` ranks.
    """
    if not dist.is_initialized() and "RANK" not in os.environ:
        raise ApplyError(
            f"hosts: {size} ranks, but this process was started as none; start it with torchrun --nproc-per-node {size}"
        )
    try:
        return _met(size, timeout_s, accelerator_of)
    except (RuntimeError, ValueError) as problem:  # ValueError is what an incomplete environment gets
        reason = one_line(problem)
    raise ApplyError(f"hosts: the {size} ranks cannot meet ({reason}); start all of them with torchrun")


def _met(size: int, timeout_s: float, accelerator_of: Callable[[int], torch.device | None]) -> Ranks:
    if not dist.is_initialized():
        dist.init_process_group()
    found = dist.get_world_size()
    if found != size:
        raise ApplyError(f"hosts: lists the devices of {size} ranks, but {found} were started; make them the same")
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    swift = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    ranks = Ranks(dist.get_rank(), size, timeout_s, patient, swift, swift, torch.device("cpu"))
    accelerator = accelerator_of(ranks.rank)
    usable = accelerator is not None and accelerator.type == "cuda" and dist.is_nccl_available()
    if all(ranks._all(int(usable), "all ranks' devices")) and accelerator is not None:
        ranks.hidden = dist.new_group(backend="nccl", timeout=timedelta(seconds=timeout_s))
        ranks.link = accelerator
    return ranks
