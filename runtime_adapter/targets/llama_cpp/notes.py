"""What is odd about a llama.cpp command that runs all the same: patterns that do other than they seem to mean."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from profiles.placement import ranges
from runtime_adapter.targets.llama_cpp.loader import Loaded
from runtime_adapter.targets.llama_cpp.settings import Override
from runtime_adapter.targets.llama_cpp.tensors import NamedTensor


def notes_on(loaded: Loaded) -> Iterator[str]:
    """A line for each pattern that finds nothing or comes too late, or catches a layer by a part of its number; and for
    a norm away from its head."""
    decided: dict[Override, list[NamedTensor]] = {override: [] for override in loaded.overrides}
    for tensor in loaded.tensors:
        if tensor.name in loaded.moved:
            decided[loaded.moved[tensor.name]].append(tensor)
    for override, tensors in decided.items():
        if not override.from_n_cpu_moe:
            yield from _on_pattern(override, tensors, loaded)
    norm, output = (loaded.device(tensor) for tensor in loaded.tensors[-2:])
    if norm != output:
        yield f"output_norm.weight is on {norm}, output.weight on {output}: the head is read as being on {output}"


def _on_pattern(override: Override, tensors: list[NamedTensor], loaded: Loaded) -> Iterator[str]:
    said = f"line {override.line}: {override.said}"
    if not tensors:
        late = any(override.pattern.found_among(layer, rests) for layer, rests in loaded.names)
        why = "finds only what earlier patterns have taken" if late else "finds no tensor of this model"
        yield f"{said}: {why}; take it out or mend it"
        return
    by_layer = [next(group) for _, group in groupby(tensors, key=lambda tensor: tensor.index)]
    partly = [t.index for t in by_layer if t.index >= 0 and not override.pattern.names_number(t.layer, t.rest)]
    if partly:
        layers = "layers" if len(partly) > 1 else "layer"
        why = f"also catches {layers} {ranges(partly)}, of whose number it has only a part"
        yield f"{said}: {why}; write \\. on both sides of numbers"
