"""What llama.cpp calls a model's tensors, layer by layer: the names that -ot's patterns are searched for in.

Names by architecture are the `gguf` package's own tables, which llama.cpp's converters write files by. A table lists
every tensor that some model of the architecture has, so a file may lack a few of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

from profiles.gguf.shapes import ARCHITECTURES
from runtime_adapter.targets.target import Outline

Part = Literal["embedding", "attention", "experts", "head"]
FILES_OF = {hf: gguf for gguf, hf in ARCHITECTURES.items()} | {
    "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "kimi_k2": "deepseek2", "mixtral": "llama",
}  # fmt: skip
"""Hugging Face's `model_type` -> llama.cpp's architecture, where dashes for underscores do not give it."""
MTP_BLOCKS = {"glm4_moe": 1}
"""Blocks for multi-token prediction after the layers, which llama.cpp counts as layers though it does not run them.
GLM-4.5-Air's 46 layers are "offloaded 48/48" with the output. For files nobody has read: what published ones have."""
WITH_BIASES = ("gpt-oss",)
_ANY = ("deepseek2", "qwen2moe", "qwen3moe", "glm4moe", "gpt-oss", "llama4", "qwen3next", "phimoe")
_PREFIX = "blk.{bid}."
_UNUSED = ("attn_rot_embd", "nextn.", "ffn_norm_exps")
_DENSE = ("ffn_gate", "ffn_up", "ffn_down")
_SUFFIXES = {"exp_probs_b": ".bias", "ssm_dt": ".bias", "ssm_a": ""}


@dataclass(frozen=True)
class NamedTensor:
    """One tensor. `layer` is "blk.7." or empty, `rest` what follows; `index` the layer's number, -1 where in none."""

    layer: str
    rest: str
    part: Part
    index: int = -1

    @property
    def name(self) -> str:
        return self.layer + self.rest

    @property
    def is_matrix(self) -> bool:
        """Whether it is one of the experts' projections rather than a bias beside one."""
        return self.rest.endswith(".weight")


def blocks_of(outline: Outline) -> int:
    """The layers as llama.cpp counts them, without the output: those for multi-token prediction are the file's."""
    extra = outline.mtp_layers
    return len(outline.experts) + (MTP_BLOCKS.get(outline.architecture or "", 0) if extra is None else extra)


@lru_cache(maxsize=16)
def tensors_of(outline: Outline) -> tuple[NamedTensor, ...]:
    """Every tensor of the model, in the order of its layers; of an unknown architecture all that usual ones have.

    >>> tensors = tensors_of(Outline(None, "mixtral", (8,)))
    >>> [tensor.name for tensor in tensors if tensor.part == "experts"]
    ['blk.0.ffn_gate_exps.weight', 'blk.0.ffn_down_exps.weight', 'blk.0.ffn_up_exps.weight']
    """
    kinds = {moe: tuple(_of_layer(outline.architecture, moe)) for moe in (False, True)}
    layers = [
        NamedTensor(f"blk.{index}.", rest, part, index)
        for index, count in enumerate(outline.experts)
        for rest, part in kinds[count != 0]
    ]
    ends = (NamedTensor("", "output_norm.weight", "head"), NamedTensor("", "output.weight", "head"))
    return (NamedTensor("", "token_embd.weight", "embedding"), *layers, *ends)


def _of_layer(architecture: str | None, moe: bool) -> Iterator[tuple[str, Part]]:
    """What follows "blk.N." in the names of a layer, and the block that it belongs to."""
    arch = _file_architecture(architecture)
    stems = _stems(arch)
    for stem in stems:
        routed = stem.endswith("exps")
        only_moe = routed or "_shexp" in stem or stem in ("ffn_gate_inp", "exp_probs_b")
        fused = stem == "ffn_gate_up_exps" and "ffn_gate_exps" in stems  # a file has one or the other
        if fused or (only_moe and not moe) or (stem in _DENSE and moe):
            continue
        part: Part = "experts" if routed else "attention"
        yield stem + _SUFFIXES.get(stem, ".weight"), part
        if arch in (None, *WITH_BIASES) and stem not in _SUFFIXES and "norm" not in stem:
            yield f"{stem}.bias", part


def _file_architecture(architecture: str | None) -> str | None:
    """llama.cpp's name of an architecture; None for one that is not known."""
    known = set(MODEL_ARCH_NAMES.values())
    name = architecture or ""
    guesses = (FILES_OF.get(name, name), name.replace("_", "-"), name.replace("_", ""))
    return next((guess for guess in guesses if guess in known), None)


def _stems(arch: str | None) -> tuple[str, ...]:
    """The names without "blk.N." and ".weight", each once."""
    archs = [kind for kind, name in MODEL_ARCH_NAMES.items() if name == arch or (arch is None and name in _ANY)]
    found = [TENSOR_NAMES[tensor] for kind in archs for tensor in MODEL_TENSORS[MODEL_ARCH(kind)]]
    stems = [name.removeprefix(_PREFIX) for name in found if name.startswith(_PREFIX)]
    return tuple(dict.fromkeys(stem for stem in stems if not stem.startswith(_UNUSED)))
