"""How llama.cpp loads a model, without llama.cpp: which device every tensor goes to.

Read in ggml-org/llama.cpp (src/llama-model.cpp, src/llama-model-loader.cpp, common/arg.cpp) and ikawrakow/ik_llama.cpp
(src/llama.cpp, src/llama-load-tensors.cpp):

- Layers, and after them the output, are slots. The last `-ngl` of them go to the GPUs, the others stay on the CPU with
  their cache. A slot's GPU is the first whose end, among the sums of `-ts` over their total, lies beyond the slot's
  place, (slot - first) / number, all in 32-bit floats. In ik_llama.cpp `-ngl` counts layers from the last one, and the
  output goes to a GPU only when -ngl is more than the layers.
- The token embedding stays on the CPU.
- The first of the overrides that is found in a tensor's name decides; -ot, --cpu-moe and --n-cpu-moe are one list in
  the command's order. ik_llama.cpp tries its --n-cpu-moe after every -ot, and counts from the last layers: with
  several GPUs each gives in proportion to its layers, with one the last layers that have experts do.
- An override moves weights. The cache stays with the slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from profiles.errors import TargetError
from runtime_adapter.targets.llama_cpp.patterns import MAX_WORK, TOO_MUCH_WORK
from runtime_adapter.targets.llama_cpp.settings import Override, Settings, n_cpu_moe_overrides
from runtime_adapter.targets.llama_cpp.tensors import NamedTensor, blocks_of, tensors_of
from runtime_adapter.targets.target import Outline


def slots_of(settings: Settings, blocks: int, ik: bool) -> list[str]:
    """The device of every layer, and last the output's.

    >>> slots_of(Settings(4, ("cuda:0", "cuda:1"), (3, 1), (), None, None, None, ()), blocks=4, ik=False)
    ['cpu', 'cuda:0', 'cuda:0', 'cuda:0', 'cuda:1']
    """
    asked = blocks + 1 if settings.layers is None else settings.layers
    count = min(asked, blocks + 1)
    placed = _spread(settings, count)
    if not ik or asked > blocks:
        return ["cpu"] * (blocks + 1 - count) + placed
    return ["cpu"] * (blocks - count) + placed + ["cpu"]


def _spread(settings: Settings, count: int) -> list[str]:
    """The devices of `count` slots, as std::upper_bound finds them."""
    ends = np.add.accumulate(np.array(settings.shares, dtype=np.float32), dtype=np.float32)
    places = np.arange(count, dtype=np.float32) / np.float32(max(1, count))
    found = np.searchsorted(ends / ends[-1], places, side="right")
    return [settings.devices[i] for i in found]


@dataclass(frozen=True)
class Loaded:
    """A loaded model. `slots` has the device of every layer and of the output, before overrides."""

    tensors: tuple[NamedTensor, ...]
    slots: tuple[str, ...]
    overrides: tuple[Override, ...]
    layers: int

    @cached_property
    def names(self) -> list[tuple[str, tuple[str, ...]]]:
        """What stands in front of each layer's names, and what follows it there."""
        by_layer = groupby(self.tensors, key=lambda tensor: tensor.layer)
        return [(layer, tuple(tensor.rest for tensor in group)) for layer, group in by_layer]

    @cached_property
    def moved(self) -> Mapping[str, Override]:
        """The override that decides about each tensor that one of them is found in. Raises TargetError where that would
        take too long."""
        found: dict[str, Override] = {}
        work = 0
        for override in self.overrides:
            for layer, rests in self.names:
                for rest in override.pattern.found_among(layer, rests):
                    found.setdefault(layer + rest, override)
            work += override.pattern.work
            if work > MAX_WORK:
                raise TargetError(TOO_MUCH_WORK)
        return found

    def home(self, tensor: NamedTensor) -> str:
        """Where the tensor would be without overrides."""
        if tensor.part == "embedding":
            return "cpu"
        return self.slots[tensor.index if tensor.index >= 0 else -1]

    def device_of(self, name: str) -> str:
        return next(self.device(tensor) for tensor in self.tensors if tensor.name == name)

    def device(self, tensor: NamedTensor) -> str:
        override = self.moved.get(tensor.name)
        return self.home(tensor) if override is None else override.device


def load(settings: Settings, outline: Outline, ik: bool) -> Loaded:
    """The model of this outline, loaded with these settings. Raises TargetError where ik_llama.cpp does."""
    blocks = blocks_of(outline)
    slots = slots_of(settings, blocks, ik)
    overrides = settings.overrides
    if settings.on_cpu:
        chosen = _last_layers(settings.on_cpu, slots[:-1], outline)
        overrides = (*overrides, *n_cpu_moe_overrides(chosen, 0))
    return Loaded(tensors_of(outline), tuple(slots), overrides, len(outline.experts))


def _last_layers(count: int, slots: Sequence[str], outline: Outline) -> list[int]:
    """The layers that ik_llama.cpp's --n-cpu-moe chooses."""
    if count >= len(slots):
        return list(range(len(slots)))
    gpus = list(dict.fromkeys(slot for slot in slots if slot != "cpu"))
    if len(gpus) > 1 and "cpu" in slots:
        raise TargetError("ik_llama.cpp refuses -ncmoe with several GPUs and layers on the CPU; use -ngl 99, or -ot")
    if len(gpus) < 2:
        with_experts = [i for i in range(len(slots)) if i >= len(outline.experts) or outline.experts[i] != 0]
        return with_experts[-count:]
    quota = _quotas(count, [slots.count(gpu) for gpu in gpus])
    chosen: list[int] = []
    for gpu, n in zip(gpus, quota, strict=True):
        mine = [i for i, slot in enumerate(slots) if slot == gpu]
        chosen += mine[len(mine) - n :]
    return chosen


def _quotas(count: int, layers: Sequence[int]) -> list[int]:
    """`count` divided in proportion to `layers`: rounded half up, then mended one by one where that errs least."""
    total = sum(layers)
    wanted = [n * count / total for n in layers]
    given = [int(want + 0.5) for want in wanted]
    while sum(given) > count:
        given[max((i for i, n in enumerate(given) if n), key=lambda i: given[i] - wanted[i])] -= 1
    while sum(given) < count:
        given[min((i for i, n in enumerate(given) if n < layers[i]), key=lambda i: given[i] - wanted[i])] += 1
    return given
