"""One weight of all experts, repacked into narrow panels that a CPU reads once, in order, at the speed of memory.

A weight [N, K] becomes N / D panels [K, D]: D output columns side by side, one row of them for each of the K inputs.
The product with one token is then, for each panel, the sum of its K rows, each times one input value: what an
embedding bag with weights computes, and torch's kernel for that (FBGEMM's) keeps the D sums in registers, reads ahead
by itself and takes bf16 and int8 rows. torch's matrix-vector product does as many operations a byte but is bound by
them on CPUs without bf16 arithmetic (docs/cpu_experts.md).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

WIDEST = 104
"""Columns of a panel at most: with 16 vector registers of 8 floats, FBGEMM holds 13 of them as sums."""
STREAMS = 4
"""Places of a panel that are read in turn."""
FEW = 6
"""Up to this many tokens of one expert are summed row by row; more are worth a product of matrices."""
ALIGNMENT = 64
"""Bytes of a cache line."""

_own = threading.local()


def width_of(columns: int) -> int:
    """D: the widest divisor of `columns` that fits, in whole vectors of 8 where there is one."""
    fitting = [d for d in range(1, min(columns, WIDEST) + 1) if columns % d == 0]
    return max(fitting, key=lambda d: (d % 8 == 0, d))


class Panels:
    """The weights [E, N, K] of E experts as panels [E, N / D, K, D]: the same bytes in another order."""

    def __init__(self, weight: Tensor) -> None:
        """`weight` may be any view [E, N, K]; it is copied, expert by expert, and not kept."""
        self.experts, self.columns, self.inputs = weight.shape
        self.width = width_of(self.columns)
        self.count = self.columns // self.width
        self.dtype = weight.dtype
        self._stored = self._take(weight)
        self.held_bytes = self._stored.numel() * self._stored.element_size()

    def _take(self, weight: Tensor) -> Tensor:
        stored = room(self.experts, self.count, self.inputs, self.width, dtype=weight.dtype)
        for expert, of_one in enumerate(weight):
            stored[expert].copy_(self._split(of_one))
        return stored

    def _split(self, of_one: Tensor) -> Tensor:
        """One expert's [N, K] as [N / D, K, D]: a view, since a dimension is cut in two and no order changed."""
        return of_one.reshape(self.count, self.width, self.inputs).transpose(1, 2)

    def weight(self) -> Tensor:
        """The weights [E, N, K] again, bit for bit, in memory of their own."""
        weight = torch.empty(self.experts, self.columns, self.inputs, dtype=self.dtype)
        for expert, of_one in enumerate(weight):
            self._split(of_one).copy_(self._stored[expert])
        return weight

    def product(self, expert: int, first: int, last: int, inputs: Tensor, out: Tensor) -> None:
        """inputs [n, K] through panels `first` .. `last` - 1 of one expert, into their columns of out [n, N].

        Both are of the weights' dtype; summed in fp32 and rounded once.
        """
        columns = slice(first * self.width, last * self.width)
        if len(inputs) <= FEW:
            sums = self._bags(expert, first, last, inputs.contiguous()).view(last - first, len(inputs), self.width)
            out[:, columns].view(len(inputs), last - first, self.width).copy_(sums.transpose(0, 1))
            return
        factor = inputs if multiplies_well(self.dtype) else inputs.float()
        for panel in range(first, last):
            columns = slice(panel * self.width, (panel + 1) * self.width)
            out[:, columns] = factor @ self._panel(expert, panel, factor.dtype)

    def _bags(self, expert: int, first: int, last: int, inputs: Tensor) -> Tensor:
        """n tokens [n, K] through some panels, each panel for all tokens before the next -> [(last - first) * n, D]."""
        bags = _bags_of(last - first, len(inputs), self.inputs)
        flat, scales = self._stored[expert, first:last].view(-1, self.width), bags.scales(inputs)
        sums: Tensor = torch._embedding_bag_forward_only(flat, bags.rows, bags.starts, False, 0, False, scales)[0]
        return sums

    def _panel(self, expert: int, panel: int, dtype: torch.dtype) -> Tensor:
        """One panel [K, D] in `dtype`, if that is another one in memory of this thread until it asks again."""
        stored = self._stored[expert, panel]
        if dtype == self.dtype:
            return stored
        if getattr(_own, "size", 0) < stored.numel():
            _own.size, _own.room = stored.numel(), torch.empty(stored.numel())
        own: Tensor = _own.room[: stored.numel()].view_as(stored)
        return own.copy_(stored)


class Int8Panels(Panels):
    """The same panels with 8 bits a value: each row of D values has its own fp32 scale and offset, 8 bytes."""

    def _take(self, weight: Tensor) -> Tensor:
        stored = room(self.experts, self.count, self.inputs, self.width + 8, dtype=torch.uint8)
        for expert, of_one in enumerate(weight):
            rows = self._split(of_one).reshape(-1, self.width).float()
            stored[expert] = torch.ops.quantized.embedding_bag_byte_prepack(rows).view(stored.shape[1:])
        return stored

    def weight(self) -> Tensor:
        """What the 8 bits say: close to the weights, and not them."""
        weight = torch.empty(self.experts, self.columns, self.inputs, dtype=self.dtype)
        for expert, of_one in enumerate(weight):
            for panel in range(self.count):
                self._split(of_one)[panel] = self._panel(expert, panel, self.dtype)
        return weight

    def _bags(self, expert: int, first: int, last: int, inputs: Tensor) -> Tensor:
        bags = _bags_of(last - first, len(inputs), self.inputs)
        flat, scales = self._stored[expert, first:last].view(-1, self.width + 8), bags.scales(inputs.float())
        sums: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            flat, bags.rows, bags.starts, per_sample_weights=scales
        )
        return sums

    def _panel(self, expert: int, panel: int, dtype: torch.dtype) -> Tensor:
        values: Tensor = torch.ops.quantized.embedding_bag_byte_unpack(self._stored[expert, panel])
        return values.to(dtype)


def room(*shape: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory that starts on a cache line, from numpy: that asks Linux for pages of 2 MiB, torch does not.

    Streaming through pages of 4 KiB was slower by a fifth.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return torch.from_numpy(memory[first : first + size]).view(dtype).view(shape)


@dataclass(frozen=True)
class _Bags:
    """Which rows of some panels make up each token's sums: one bag a panel and token, each with all rows of its panel.

    A bag reads its rows from `streams` places of the panel in turn. The sum is the same, and a core has more of them
    under way at once: read from one place on, its bandwidth was a third less.
    """

    rows: Tensor
    starts: Tensor
    count: int
    streams: int

    def scales(self, inputs: Tensor) -> Tensor:
        """What each row of each bag is multiplied by, for tokens [n, K]."""
        n, k = inputs.shape
        in_turn = inputs.view(n, self.streams, -1).transpose(1, 2).reshape(n, k)
        return in_turn.expand(self.count, n, k).reshape(-1)


@lru_cache(maxsize=64)
def _bags_of(count: int, tokens: int, inputs: int) -> _Bags:
    """The bags of `count` panels with `inputs` rows each; one object a shape, so that it stays in a cache."""
    streams = STREAMS if inputs % STREAMS == 0 else 1
    in_turn = torch.arange(inputs).view(streams, -1).t().reshape(-1)
    panels = torch.arange(count).repeat_interleave(tokens)
    rows = (panels[:, None] * inputs + in_turn).view(-1).to(torch.int32)
    return _Bags(rows, torch.arange(0, len(rows), inputs, dtype=torch.int32), count, streams)


def multiplies_well(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of `dtype` as such at least as fast as after conversion to fp32."""
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32
