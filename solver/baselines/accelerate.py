"""transformers with device_map="auto", which is "balanced": whole layers, an equal part of the weights on each GPU.

Written after transformers 5.23 integrations/accelerate.py (get_balanced_memory, infer_auto_device_map), which replaces
accelerate's utils/modeling.py for its models. The tests hold it against that code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cost_models import CostModel
from profiles.placement import Placement
from solver.baselines.layout import CPU, Layout, Ledger, with_lower_limits


def accelerate_balanced(costs: CostModel) -> Placement | None:
    """`max_memory` is what may be used of each device, and less where the plan would overflow: the rule counts weights
    only, and its users leave room for cache and activations by hand.

    What it would send on to disk is left on the CPU. Those layers count as computed there; accelerate streams them
    through a GPU, which is slower for single tokens and may be faster for long prompts.
    """
    ledger = Ledger(costs)
    found = with_lower_limits(lambda limits: device_map(ledger, limits), ledger)
    return None if found is None else found.placement()


def device_map(ledger: Ledger, max_memory: Mapping[str, int]) -> Layout:
    """The map for `max_memory` in bytes by device, as transformers makes it; what would go to disk is on the CPU."""
    return _infer_map(ledger, _balanced(ledger, max_memory))


@dataclass(frozen=True)
class _Module:
    """A module of the tree `model(embed_tokens, layers(0, 1, …)), lm_head`, as the run of unsplittable ones in it."""

    leaves: range
    children: tuple[_Module, ...] = ()


def _tree(n_layers: int) -> list[_Module]:
    """Leaf 0 is the embedding, n_layers + 1 the head; the final norm is counted there."""
    leaf = [_Module(range(i, i + 1)) for i in range(n_layers + 2)]
    layers = _Module(range(1, n_layers + 1), tuple(leaf[1:-1]))
    return [_Module(range(n_layers + 1), (leaf[0], layers)), leaf[-1]]


def _sizes(ledger: Ledger) -> list[int]:
    """Weights of every leaf on a GPU; tensors that the head shares with the embedding are the embedding's."""
    layers = [
        layer.attention.weights["gpu"] + (layer.experts.weights["gpu"] if layer.experts else 0)
        for layer in ledger.layers
    ]
    head = ledger.head.weights["gpu"] - ledger.costs.profile.tied_bytes
    return [ledger.embedding.weights["gpu"], *layers, head]


def _balanced(ledger: Ledger, limits: Mapping[str, int]) -> dict[str, int]:
    """Every GPU but the last may take its equal part and 1.25 of the largest module more."""
    gpus = [gpu for gpu in ledger.gpus if limits[gpu] > 0]
    sizes = _sizes(ledger)
    part = sum(sizes) // max(1, len(gpus)) + int(1.25 * max(sizes))
    return {**limits, **{gpu: min(part, limits[gpu]) for gpu in gpus[:-1]}}


def _infer_map(ledger: Ledger, limits: Mapping[str, int]) -> Layout:
    """Modules in order, each on the GPU at hand if it fits, else split, else on the next GPU; never back to one.

    On the first GPU room is kept for the largest module that is still to come, so that it could be streamed in.
    """
    sizes, gpus = _sizes(ledger), iter(ledger.gpus)
    gpu, used = next(gpus, CPU), 0
    queue = _tree(len(ledger.layers))
    homes: dict[int, str] = {}
    largest = _Largest(sizes, queue)
    while queue:
        module = queue.pop(0)
        largest.take(module, queue)
        size = sum(sizes[i] for i in module.leaves)
        room = limits[gpu] - used - (largest.size if gpu == ledger.gpus[0] else 0) if gpu != CPU else size
        if size <= room:
            homes |= dict.fromkeys(module.leaves, gpu)
            used += size
        elif module.children:
            queue[:0] = module.children
            largest = _Largest(sizes, queue)
        else:
            gpu, used = next(gpus, CPU), 0
            queue.insert(0, module)
    return _layout(ledger, homes)


class _Largest:
    """The largest unsplittable module still to come, followed as the rule does: anew only once all of that size are
    taken from the queue, in which the module at hand is not."""

    def __init__(self, sizes: list[int], queue: list[_Module]) -> None:
        self._sizes = sizes
        self._measure(queue)

    def take(self, module: _Module, queue: list[_Module]) -> None:
        self._which.difference_update(module.leaves)
        if not self._which:
            self._measure(queue)

    def _measure(self, queue: list[_Module]) -> None:
        left = [i for module in queue for i in module.leaves]
        self.size = max((self._sizes[i] for i in left), default=0)
        self._which = {i for i in left if self._sizes[i] == self.size}


def _layout(ledger: Ledger, homes: Mapping[int, str]) -> Layout:
    """A head that shares its tensor follows the embedding."""
    n_layers = len(ledger.layers)
    attention = [homes[i + 1] for i in range(n_layers)]
    head = homes[0 if ledger.costs.profile.tied_bytes else n_layers + 1]
    return Layout(homes[0], head, attention, ledger.homes_of_experts(lambda i: attention[i]))
