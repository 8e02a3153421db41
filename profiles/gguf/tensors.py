"""One tensor of a GGUF file: its name, its shape in ggml's order, and its bytes in any of ggml's types."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

GgmlType = GGMLQuantizationType
_LAYER = re.compile(r"blk\.([0-9]{1,5})\.")


@dataclass(frozen=True)
class GgufTensor:
    """`shape` is ggml's `ne`: the dimension that a matrix sums over comes first, the expert last."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def layer(self) -> int | None:
        """The layer in the name (`blk.7.attn_q.weight`); None for tensors of the whole model."""
        match = _LAYER.match(self.name)
        return int(match[1]) if match else None


def tensor_bytes(tensor: GgufTensor, kind: GgmlType) -> int:
    """Bytes of the tensor in this type; its rows must be whole blocks (`fits` says so).

    >>> tensor_bytes(GgufTensor("output.weight", (2048, 1000)), GgmlType.Q6_K)
    1680000
    """
    elements, size = GGML_QUANT_SIZES[kind]
    return tensor.numel // elements * size


def fits(tensor: GgufTensor, kind: GgmlType) -> bool:
    """Whether a row of the tensor is a whole number of blocks of this type."""
    return not tensor.shape or tensor.shape[0] % GGML_QUANT_SIZES[kind][0] == 0
