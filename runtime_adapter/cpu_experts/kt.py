"""The engines "kt-kernel-…": KTransformers' CPU kernels on weights in memory, where kt-kernel is installed.

kt-kernel's own Python classes read checkpoints from disk, so this calls its extension. The extension checks little:
what it would overrun is checked or cut to size here. It prints on standard output as it starts and ends.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import ApplyError
from runtime_adapter.cpu_experts.engine import active_of, projections_of
from runtime_adapter.local_machine.facts import read_facts

CHUNK_TOKENS = 512
"""Tokens of one call of the extension: its buffers are made for as many, and more would run over their end."""


@dataclass(frozen=True)
class Backend:
    """A class of the extension, `multiples` of which it needs hidden and intermediate size, and how it takes weights.

    `ggml` is the type that the weights are given in, for the one class that packs nothing itself.
    """

    cls: str
    multiples: tuple[int, int]
    ggml: str | None = None


BITS = {"bf16": 16, "int8": 8, "int4": 4}
BACKENDS = {
    "bf16": (Backend("AMXBF16_MOE", (32, 32)), Backend("AVX2BF16_MOE", (32, 32))),
    "int8": (Backend("AMXInt8_MOE", (64, 64)), Backend("MOE", (32, 256), "Q8_0")),
    "int4": (Backend("AMXInt4_MOE", (128, 128)), Backend("MOE", (32, 256), "Q4_0")),
}
"""For each precision the extension's classes, fastest first. Which there are depends on the CPU: without AVX-512
kt-kernel has neither int8 nor int4 of its own, and llama.cpp's blocks take their place."""


def missing(precision: str) -> str | None:
    """Why there is no kt-kernel engine of this precision here, None if there is."""
    if importlib.util.find_spec("kt_kernel") is None:
        return "kt-kernel is not installed; pip install --no-deps kt-kernel==0.7.2"
    try:
        backend_of(precision)
    except (ImportError, OSError, RuntimeError) as problem:
        return f"kt-kernel does not load here: {str(problem).splitlines()[0][:200]}"
    except ApplyError as problem:
        return str(problem)
    return None


def backend_of(precision: str) -> Backend:
    """The first class of this precision that kt-kernel has for this CPU; ApplyError when it has none."""
    for backend in BACKENDS[precision]:
        if hasattr(_extension().moe, backend.cls):
            return backend
    raise ApplyError(f"kt-kernel has no {precision} kernel for this CPU; use another engine")


class KtExperts:
    """The module's weights packed by kt-kernel, in `precision`: bf16, int8 or int4.

    Gives out what fp32 sums of these weights give, rounded to bf16. The parameters stay and are not read after
    packing: whoever can read them again from the checkpoint may empty them. kt-kernel cannot give them back.
    """

    keeps_parameters = True

    def __init__(self, experts: nn.Module, precision: str = "bf16") -> None:
        self.name = "kt-kernel" if precision == "bf16" else f"kt-kernel-{precision}"
        if reason := missing(precision):
            raise ApplyError(f'engine "{self.name}": {reason}')
        backend = backend_of(precision)
        gate, up, down = _three(experts, self.name)
        count, intermediate, hidden = gate.shape
        self._count = count
        for size, multiple in zip((hidden, intermediate), backend.multiples, strict=True):
            if size % multiple:
                raise ApplyError(f'engine "{self.name}": a size of {size} is no multiple of {multiple}; use "torch"')
        self._pool, self._slots = _pool(threads()), active_of(experts, count)
        on_gpu = torch.zeros(count, dtype=torch.bool)
        config = _extension().moe.MOEConfig(count, self._slots, hidden, intermediate, on_gpu.data_ptr())
        config.max_len, config.pool = CHUNK_TOKENS, self._pool.backend_
        given = _give(config, backend, gate, up, down)
        self._moe: Any = getattr(_extension().moe, backend.cls)(config)
        order = torch.arange(count, dtype=torch.int64)
        self._pool.submit(self._moe.load_weights_task(order.data_ptr()))
        self._pool.sync()  # until here it reads `order`, and `given` too where it packs that into memory of its own
        self._read: object = on_gpu, given if backend.ggml else None  # read at every call
        self.held_bytes = (
            (gate.numel() + up.numel() + down.numel()) * BITS[precision] // 8
        )  # and a scale a row or block

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if self._moe is None:
            raise ApplyError(f'engine "{self.name}" is closed; make another')
        if top_k_index.numel() and not 0 <= int(top_k_index.min()) <= int(top_k_index.max()) < self._count:
            raise IndexError(f'engine "{self.name}": an expert id is not in 0 .. {self._count - 1}')
        rows = hidden_states.detach().to(torch.bfloat16).contiguous()
        result: Tensor | None = None
        for first in range(0, top_k_index.shape[1], self._slots):  # one turn, unless more slots than it has buffers for
            slots = slice(first, first + self._slots)
            ids = top_k_index[:, slots].to(torch.int64).contiguous()
            part = self._forward(rows, ids, top_k_weights[:, slots].detach().float().contiguous())
            result = part if result is None else result + part
        return (torch.zeros_like(rows) if result is None else result).to(hidden_states.dtype)

    def _forward(self, rows: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        result = torch.empty_like(rows)
        for first in range(0, len(rows), CHUNK_TOKENS):
            here = [tensor[first : first + CHUNK_TOKENS] for tensor in (ids, weights, rows, result)]
            length = torch.tensor([len(here[0])], dtype=torch.int32)
            pointers = [tensor.data_ptr() for tensor in here]
            task = self._moe.forward_task(length.data_ptr(), ids.shape[1], *pointers, False)
            self._pool.submit(task)
            self._pool.sync()  # until here the extension reads and writes all of `here`, and `length`
        return result

    def close(self) -> None:
        self._moe, self._read, self.held_bytes = None, None, 0


def threads() -> int:
    """One less than the cores this process may use: kt-kernel's workers spin, also the one that hands out the work."""
    facts = read_facts()
    return max(1, min(facts.threads, facts.cores or facts.threads) - 1)


@lru_cache(maxsize=1)
def _extension() -> Any:
    """Loaded in a thread of its own: it was built with -ffast-math, so that the thread which loads it takes subnormal
    numbers for zero ever after."""
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(importlib.import_module, "kt_kernel").result().kt_kernel_ext


@lru_cache(maxsize=1)
def _pool(count: int) -> Any:
    """The process's one pool: its threads are bound to cores."""
    return _extension().CPUInfer(count)


def _three(experts: nn.Module, engine: str) -> tuple[Tensor, Tensor, Tensor]:
    """Gate [E, I, H], up [E, I, H] and down [E, H, I] as views; ApplyError where the experts are of another kind."""
    of, kind = projections_of(experts, engine), type(experts).__name__
    inward, outward = of.weight(experts, of.inward), of.weight(experts, of.outward)
    probe = torch.linspace(-9, 9, 4 * inward.shape[1]).view(2, -1)
    plain = nn.functional.silu(probe[:, : probe.shape[1] // 2]) * probe[:, probe.shape[1] // 2 :]
    if of.biased or not of.gated or getattr(experts, "has_post_expert_norm", False):
        raise ApplyError(f'{kind}: engine "{engine}" has no biases, norms or plain activations; use engine "torch"')
    if not torch.allclose(of.activate(experts, probe), plain, atol=1e-5):
        raise ApplyError(f'{kind}: engine "{engine}" computes silu(gate) * up and this is another; use engine "torch"')
    half = inward.shape[1] // 2
    return inward[:, :half], inward[:, half:], outward


def _give(config: Any, backend: Backend, *weights: Tensor) -> object:
    """Point `config` at gate, up and down in the form `backend` reads; what is returned must outlive the reading."""
    if backend.ggml is not None:
        blocks = [_blocks(weight, backend.ggml) for weight in weights]
        config.gate_proj, config.up_proj, config.down_proj = (array.ctypes.data for array in blocks)
        kinds = _extension().kvcache.ggml_type
        config.gate_type = config.up_type = config.down_type = getattr(kinds, backend.ggml)
        config.hidden_type = kinds.BF16
        config.m_block, config.group_min_len, config.group_max_len = 32, 10, CHUNK_TOKENS  # kt-kernel's own choice
        return blocks
    if backend.cls.endswith("BF16_MOE"):  # one address an expert: gate and up may lie in one tensor
        rows = [_rows_in_bf16(weight) for weight in weights]
        config.gate_projs, config.up_projs, config.down_projs = ([[one.data_ptr() for one in w]] for w in rows)
        config.gate_scale = config.up_scale = config.down_scale = 0
        return rows
    arrays = [weight.to(torch.bfloat16).contiguous() for weight in weights]
    config.gate_proj, config.up_proj, config.down_proj = (array.data_ptr() for array in arrays)
    config.save = config.load = False
    return arrays


def _rows_in_bf16(weight: Tensor) -> Sequence[Tensor]:
    """The experts of `weight` [E, N, K], each contiguous and in bf16, copied only where they are not."""
    return [one.to(torch.bfloat16).contiguous() for one in weight]


def _blocks(weight: Tensor, ggml: str) -> Any:
    """`weight` [E, N, K] in llama.cpp's blocks of 32, expert by expert."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[ggml]
    return np.stack([quantize(one.float().numpy(), kind) for one in weight])
