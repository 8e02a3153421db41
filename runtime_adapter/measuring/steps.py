"""Steps of a live model: how long one takes, and how long each of its blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache

from profiles.workload import Workload
from runtime_adapter.anatomy import Anatomy, anatomy_of
from runtime_adapter.measuring.stopwatch import BlockSeconds, waiter, watched

Place = tuple[str, int]
"""A kind of block and, of attention and experts, the layer."""
WARM_UP = 2
OFTEN = 4
"""A step of one token is so short that it is run so many times for each run of a longer one."""


@dataclass(frozen=True)
class StepTime:
    """Medians of one step: its seconds unwatched and watched, and those of its blocks, scaled to the unwatched."""

    seconds: float
    watched_s: float
    blocks: Mapping[Place, float]


@dataclass(frozen=True)
class Times:
    """Steps by the number of all their tokens."""

    steps: Mapping[int, StepTime]
    context: int

    def of(self, places: Sequence[Place]) -> dict[int, float]:
        """Seconds of blocks that are alike, by tokens: the median over them."""
        return {tokens: median(step.blocks[place] for place in places) for tokens, step in self.steps.items()}

    @property
    def note(self) -> str:
        """What was measured, in words."""
        cost = ", ".join(f"{step.watched_s / step.seconds - 1:+.0%} at {n}" for n, step in self.steps.items())
        return (
            f"one token with {self.context} in the cache, and chunks of a prompt; watching costs {cost} tokens a step"
        )


def times_of(anatomy: Anatomy, workload: Workload, chunks: Sequence[int], repeats: int, seed: int) -> Times:
    """One token at the workload's mean context, and chunks of a prompt, where the model is now."""
    batch = workload.batch_size
    context = workload.prompt_tokens + workload.generated_tokens // 2
    steps = {batch: _timed(anatomy, Decode(anatomy, batch, context, seed), OFTEN * repeats)}
    for tokens in sorted({chunk for chunk in chunks if chunk > 1}):
        steps[batch * tokens] = _timed(anatomy, Prefill(anatomy, batch, tokens, seed), repeats)
    return Times(steps, context)


def random_ids(anatomy: Anatomy, batch: int, tokens: int, seed: int) -> torch.Tensor:
    """Tokens drawn evenly: experts are then chosen as the router likes, as by no real text."""
    vocabulary = int(anatomy.embedding.weight.shape[0])  # type: ignore[index]
    return torch.randint(0, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(seed))


class Prefill:
    """Reads a prompt of `tokens` tokens into a new cache, each time it is called."""

    def __init__(self, anatomy: Anatomy, batch: int, tokens: int, seed: int, chunk: int | None = None) -> None:
        self.model: Any = anatomy.model
        self.parts = torch.split(random_ids(anatomy, batch, tokens, seed), chunk or tokens, dim=1)
        self.cache: Any = None

    def __call__(self) -> None:
        self.cache = DynamicCache(config=self.model.config)
        for part in self.parts:
            self.model(input_ids=part, past_key_values=self.cache, use_cache=True, logits_to_keep=1)


class Decode:
    """Goes on by one token each time it is called, from a prompt of `context` tokens on."""

    def __init__(self, anatomy: Anatomy, batch: int, context: int, seed: int, chunk: int = 512) -> None:
        prompt = Prefill(anatomy, batch, max(1, context), seed, chunk)
        with torch.no_grad():
            prompt()
        self.model, self.cache = prompt.model, prompt.cache
        self.ids = random_ids(anatomy, batch, 64, seed + 1)
        self.done = 0

    def __call__(self) -> None:
        ids = self.ids[:, self.done % self.ids.shape[1], None]
        self.done += 1
        self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)


def speed(model: Any, workload: Workload, repeats: int, seed: int) -> tuple[float, float]:
    """Seconds of a whole prompt, read in the workload's chunks, and of a step at its mean context: medians, warm."""
    anatomy = anatomy_of(model)
    wait = waiter({p.device for p in model.parameters()})
    batch, context = workload.batch_size, workload.prompt_tokens + workload.generated_tokens // 2
    prompt = Prefill(anatomy, batch, workload.prompt_tokens, seed, workload.prefill_chunk)
    medians = []
    for step, times in ((prompt, repeats), (Decode(anatomy, batch, context, seed), OFTEN * repeats)):
        with torch.no_grad():
            for _ in range(WARM_UP):
                step()
            medians.append(median(seconds_of(step, wait) for _ in range(times)))
    return medians[0], medians[1]


def _timed(anatomy: Anatomy, step: Callable[[], None], repeats: int) -> StepTime:
    """The step, unwatched and watched in turn, so that a machine that slows down slows both."""
    wait = waiter({p.device for p in anatomy.model.parameters()})
    moe = [experts is not None for experts in anatomy.experts]
    plain: list[float] = []
    seen: list[BlockSeconds] = []
    with torch.no_grad():
        for _ in range(WARM_UP):
            step()
        for _ in range(repeats):
            plain.append(seconds_of(step, wait))
            with watched(anatomy, wait) as watch:
                step()
            seen.append(watch.block_seconds(moe))
    seconds, watched_s = median(plain), median(found.total for found in seen)
    blocks = _medians(seen)
    scale = seconds / sum(blocks.values())
    return StepTime(seconds, watched_s, {place: max(1e-9, spent * scale) for place, spent in blocks.items()})


def seconds_of(step: Callable[[], None], wait: Callable[[], None]) -> float:
    """Seconds of one call, until all devices are done."""
    wait()
    begin = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - begin


def _medians(seen: Sequence[BlockSeconds]) -> dict[Place, float]:
    found: dict[Place, float] = {
        ("embedding", 0): median(one.embedding for one in seen),
        ("head", 0): median(one.head for one in seen),
    }
    for i in range(len(seen[0].attention)):
        found["attention", i] = median(one.attention[i] for one in seen)
        inner = [one.experts[i] for one in seen]
        if inner[0] is not None:
            found["experts", i] = median(s for s in inner if s is not None)
    return found


def live_bytes(anatomy: Anatomy) -> dict[Place, int]:
    """Bytes of the parameters of each block; a tensor that embedding and head share counts for both."""

    def size(module: Any) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters())

    found: dict[Place, int] = {
        ("embedding", 0): size(anatomy.embedding),
        ("head", 0): size(anatomy.norm) + size(anatomy.head),
    }
    for i, (layer, experts) in enumerate(zip(anatomy.layers, anatomy.experts, strict=True)):
        inner = 0 if experts is None else size(experts)
        found["attention", i] = size(layer) - inner
        if experts is not None:
            found["experts", i] = inner
    return found
