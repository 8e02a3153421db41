"""How one matrix of a projection is stored: the bytes of all tensors that a format makes of [out, in] weights.

Each function is a format, its formula the sum of that format's tensors (names as in files). Every one is compared with
headers that the format's own library wrote (tests/golden/formats). Biases are no part of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Scheme:
    """A format of one matrix. `name` is short, for people; `n_bytes(out, in)` are all of its tensors together.

    >>> fp8_block().n_bytes(256, 300)  # 2 x 3 blocks with a scale of 4 bytes
    76824
    """

    name: str
    n_bytes: Callable[[int, int], int]


def up(number: int, step: int) -> int:
    """How many steps it takes to reach `number`."""
    return -(-number // step)


def words(number: int, bits: int) -> int:
    """Bytes of `number` values of `bits`, packed without gaps into 32-bit words."""
    return 4 * up(number * bits, 32)


# ---- 8-bit floats ----


def fp8_block(rows: int = 128, columns: int = 128, scale_bytes: int = 4, extra_bytes: int = 0) -> Scheme:
    """`weight`, and a scale for every block (`weight_scale_inv`, V4's `scale`); static activations have extra bytes."""
    return Scheme("fp8", lambda o, i: o * i + scale_bytes * up(o, rows) * up(i, columns) + extra_bytes)


def fp8_tensor(scale_bytes: int = 4, extra_bytes: int = 0) -> Scheme:
    """`weight` and one scale."""
    return Scheme("fp8", lambda o, i: o * i + scale_bytes + extra_bytes)


def fp8_channel(scale_bytes: int = 4, extra_bytes: int = 0) -> Scheme:
    """`weight` and a scale for every output row."""
    return Scheme("fp8", lambda o, i: o * i + scale_bytes * o + extra_bytes)


def mxfp8() -> Scheme:
    """`weight` and a one-byte scale for every 32 values of a row."""
    return Scheme("mxfp8", lambda o, i: o * i + o * up(i, 32))


def mxfp6() -> Scheme:
    """Four values in three bytes, and a one-byte scale for every 32."""
    return Scheme("mxfp6", lambda o, i: o * up(3 * i, 4) + o * up(i, 32))


# ---- 4-bit floats ----


def mxfp4(extra_bytes: int = 0) -> Scheme:
    """Two values a byte, and a one-byte scale for every 32."""
    return Scheme("mxfp4", lambda o, i: o * up(i, 2) + o * up(i, 32) + extra_bytes)


def nvfp4(extra_bytes: int, group: int = 16) -> Scheme:
    """Two values a byte, an fp8 scale for every 16, and fp32 scales of the whole (`extra_bytes`: 4 each)."""
    return Scheme("nvfp4", lambda o, i: o * up(i, 2) + o * up(i, group) + extra_bytes)


# ---- whole numbers ----


def int8(scale_bytes: int, group: int | None = None, extra_bytes: int = 0, zero_bytes: int = 0) -> Scheme:
    """`weight` and a scale (perhaps a zero point) for every group of a row, or for every row."""
    each = scale_bytes + zero_bytes
    return Scheme("int8", lambda o, i: o * i + each * o * (up(i, group) if group else 1) + extra_bytes)


def packed_int(bits: int, group: int | None, *, zeros: bool = False, g_idx: bool = False) -> Scheme:
    """compressed-tensors' `weight_packed` along the input, `weight_scale` in 16 bits, `weight_shape`; zero points are
    packed along the output."""

    def n_bytes(o: int, i: int) -> int:
        groups = up(i, group) if group else 1
        return o * words(i, bits) + 2 * o * groups + 16 + (words(o, bits) * groups if zeros else 0) + 4 * i * g_idx

    return Scheme(f"int{bits}", n_bytes)


def gptq(bits: int, group: int | None, *, g_idx: bool = True) -> Scheme:
    """`qweight` packed along the input, `qzeros` along the output (always there), fp16 `scales`, `g_idx`."""

    def n_bytes(o: int, i: int) -> int:
        groups = up(i, group) if group else 1
        return o * words(i, bits) + groups * words(o, bits) + 2 * groups * o + 4 * i * g_idx

    return Scheme(f"gptq-{bits}bit", n_bytes)


def awq(bits: int, group: int | None) -> Scheme:
    """`qweight` and `qzeros` packed along the output, fp16 `scales`."""

    def n_bytes(o: int, i: int) -> int:
        groups = up(i, group) if group else 1
        return i * words(o, bits) + groups * (words(o, bits) + 2 * o)

    return Scheme(f"awq-{bits}bit", n_bytes)


def awq_of_modelopt(group: int, extra_bytes: int = 0) -> Scheme:
    """modelopt's int4: two output rows a byte, fp32 scales by group."""
    return Scheme("int4", lambda o, i: up(o, 2) * i + 4 * o * up(i, group) + extra_bytes)


# ---- libraries with a layout of their own ----


def bnb_4bit(kind: str, dtype: str, double: bool) -> Scheme:
    """bitsandbytes: two values a byte and an fp32 scale for every 64, over the flattened matrix; the 16 fp32 values of
    the code; a JSON text of the rest. Double: scales in one byte, themselves in blocks of 256 with a code of 256.

    The JSON then has a number whose digits differ by a few: 19 of them are counted.
    """

    def n_bytes(o: int, i: int) -> int:
        blocks = up(o * i, 64)
        said: dict[str, object] = {"quant_type": kind, "blocksize": 64, "dtype": dtype, "shape": [o, i]}
        nested = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.12345678901234567}
        fixed = up(o * i, 2) + 64 + len(json.dumps(said | nested if double else said))
        return fixed + (blocks + 4 * up(blocks, 256) + 1024 if double else 4 * blocks)

    return Scheme(kind, n_bytes)


def bnb_8bit() -> Scheme:
    """`weight`, an fp32 `SCB` for every row, `weight_format`."""
    return Scheme("int8", lambda o, i: o * i + 4 * o + 1)


HQQ_NUMBERS_BYTES = 69
"""Sizes, types and switches that hqq writes beside every matrix of bf16 values."""


def hqq(bits: int, group: int | None) -> Scheme:
    """`W_q` with rows of groups packed over each other (3 bits: ten in a word), `scale` and `zero` in 16 bits."""

    def n_bytes(o: int, i: int) -> int:
        size = group or i
        groups = up(o * i, size)
        packed = 4 * up(groups, 10) * size if bits == 3 else up(groups, 8 // bits) * size
        return packed + 4 * groups + HQQ_NUMBERS_BYTES

    return Scheme(f"hqq-{bits}bit", n_bytes)


def mlx(bits: int, group: int | None) -> Scheme:
    """mlx's affine: words along the input, `scales` and `biases` in 16 bits."""
    return Scheme(f"mlx-{bits}bit", lambda o, i: o * words(i, bits) + 4 * o * up(i, group or i))
