"""kt-kernel under SGLang: a mask over all (layer, expert) pairs says which are on the GPU, the others are on the CPU.

All but the experts is on one GPU, the first. Over several GPUs sglang-kt cuts every tensor into equal parts, which a
placement cannot say, so on such machines this is less than it could do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from cost_models import CostModel
from cost_models.experts import use_probabilities
from profiles.model import Experts
from profiles.placement import LayerPlacement, Placement
from solver.baselines.layout import CPU, Ledger

Counts = Sequence[int]


def uniform_mask(costs: CostModel) -> Placement | None:
    """Strategy `uniform` (kt_ep_wrapper.py): of K experts every layer has K // layers on the GPU, the first K % layers
    one more, ids from 0 on. K is the largest that fits. Without GPUs there is no plan.
    """
    mask = _Mask.of(costs, [list(range(experts.count)) for experts in _all_experts(costs)])
    if mask is None:
        return None
    n_layers = max(1, len(mask.rankings))

    def counts(k: int) -> list[int]:
        each, more = divmod(k, n_layers)
        return [min(each + (i < more), len(ids)) for i, ids in enumerate(mask.rankings)]

    return mask.largest(counts)


def frequency_mask(costs: CostModel) -> Placement | None:
    """Strategy `frequency`: the K most used of all experts of all layers, by the profile's frequencies, where equals
    are taken in order. Without frequencies every choice is as good, and it is `uniform_mask`.
    """
    layers = _all_experts(costs)
    if all(experts.frequencies is None for experts in layers):
        return uniform_mask(costs)
    pairs = [(-f, i, j) for i, experts in enumerate(layers) for j, f in enumerate(use_probabilities(experts))]
    rankings: list[list[int]] = [[] for _ in layers]
    ranks: list[list[int]] = [[] for _ in layers]
    for rank, (_, i, j) in enumerate(sorted(pairs)):
        rankings[i].append(j)
        ranks[i].append(rank)
    mask = _Mask.of(costs, rankings)
    return None if mask is None else mask.largest(lambda k: [bisect_left(mine, k) for mine in ranks])


def _all_experts(costs: CostModel) -> list[Experts]:
    return [layer.experts for layer in costs.profile.layers if layer.experts is not None]


@dataclass(frozen=True)
class _Mask:
    """The experts of every layer in the order in which they come to the GPU, and `sizes[i][n]`, the bytes of the first
    n of them there."""

    ledger: Ledger
    gpu: str
    rankings: list[list[int]]
    sizes: list[list[int]]

    @staticmethod
    def of(costs: CostModel, rankings: list[list[int]]) -> _Mask | None:
        ledger = Ledger(costs)
        if not ledger.gpus:
            return None
        pairs = zip(_all_experts(costs), rankings, strict=True)
        return _Mask(ledger, ledger.gpus[0], rankings, [_sizes(experts, ids) for experts, ids in pairs])

    def largest(self, counts: Callable[[int], Counts]) -> Placement:
        """The plan with `counts(K)` experts of each layer on the GPU for the largest K that fits, or for none."""
        room = self.ledger.caps[self.gpu] - self._beside_experts(everything=False)
        total = sum(len(ids) for ids in self.rankings)
        k = bisect_left(range(1, total + 1), True, key=lambda k: self._bytes(counts(k)) > room)
        everything = self.ledger.caps[self.gpu] - self._beside_experts(everything=True)
        if self._bytes(counts(total)) <= everything:
            k = total
        return self._placement(counts(k))

    def _bytes(self, counts: Counts) -> int:
        return sum(sizes[n] for sizes, n in zip(self.sizes, counts, strict=True))

    def _beside_experts(self, everything: bool) -> int:
        """What the GPU holds beside experts' weights: all other blocks, the largest workspace of all blocks, and unless
        `everything` is on it the buffers that a target needs for what is not."""
        ledger, costs = self.ledger, self.ledger.costs
        experts = [layer.experts for layer in ledger.layers if layer.experts is not None]
        rest = [ledger.embedding, ledger.head, *(layer.attention for layer in ledger.layers)]
        held = sum(block.stays["gpu"] for block in rest) - costs.profile.tied_bytes
        held += max(block.workspace for block in [*rest, *experts])
        if not everything:
            held += max((block.staging for block in experts), default=0)
            held += max((block.weights[CPU] for block in experts), default=0) * costs.target_memory.streams_blocks
        return held

    def _placement(self, counts: Counts) -> Placement:
        placed: dict[tuple[int, ...], LayerPlacement] = {}
        layers = []
        chosen = iter(zip(self.rankings, counts, strict=True))
        for layer in self.ledger.layers:
            if layer.experts is None:
                layers.append(LayerPlacement(attention=self.gpu, experts={}))
                continue
            ids, n = next(chosen)
            key = (len(ids), *sorted(ids[:n]))
            if key not in placed:
                placed[key] = LayerPlacement(attention=self.gpu, experts=_split(self.gpu, ids, n))
            layers.append(placed[key])
        return Placement(embedding=self.gpu, head=self.gpu, layers=layers)


def _sizes(experts: Experts, ids: Sequence[int]) -> list[int]:
    """Bytes on a GPU of the first 0, 1, … of `ids`, rounded as the cost model rounds them."""
    if experts.expert_weight_bytes is None:
        return [-(-experts.weight_bytes.gpu * n // experts.count) for n in range(len(ids) + 1)]
    return list(accumulate((experts.expert_weight_bytes[i] for i in ids), initial=0))


def _split(gpu: str, ids: Sequence[int], n: int) -> dict[str, Any]:
    if n in (0, len(ids)):
        return {gpu if n else CPU: "all"}
    return {gpu: sorted(ids[:n]), CPU: sorted(ids[n:])}
