"""Formats of checkpoints by the names that people give them, for a model whose config says nothing of them.

They pack projections, those of routed experts too, and leave embedding, head, norms and routers in bf16; MLX's pack
embedding and head as well. Experts may have another format than the rest: "nvfp4 experts, bf16 attention".

- `nvfp4`, `mxfp8`, `fp8_tensor`, `fp8_channel`: modelopt's and compressed-tensors' files; 4-bit values come with scales
  for every 16, 8-bit ones with one for every 32 values, the matrix, or an output row.
- `w4a16`, `w4a16_g32`, `int4_g64`, `int3`, `w8a16`, …: compressed-tensors, symmetric, groups of 128 where none is named
  (`w8a16`: a scale an output row); `w8a8` one byte a weight and a scale an output row.
- `gptq`, `gptq_4bit`, `gptq_3bit_g32`, `gptq_int8`, …; `awq`, `awq_4bit`, `awq_g64`, …: with zero points, as files are.
- `nf4`, `nf4_double`, `bnb_int8`: bitsandbytes, experts packed as by transformers 4 and unsloth.
- `hqq_4bit`, `hqq_3bit_g32`, …; `mlx_4bit`, `mlx_8bit_g32`, …: groups of 64 where none is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from profiles.formats.by_shape import PLAIN_BYTES
from profiles.formats.checkpoint import stored_by_rules
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import (
    Scheme,
    awq,
    bnb_4bit,
    bnb_8bit,
    fp8_block,
    fp8_channel,
    fp8_tensor,
    gptq,
    hqq,
    int8,
    mlx,
    mxfp4,
    mxfp8,
    nvfp4,
    packed_int,
)
from profiles.formats.stored import Stored
from profiles.tensors import ModelTensors

NAMES: Mapping[str, tuple[str, Scheme]] = {
    "nvfp4": ("modelopt", nvfp4(8)),
    "mxfp8": ("mxfp8", mxfp8()),
    "fp8_tensor": ("modelopt", fp8_tensor(extra_bytes=4)),
    "fp8_channel": ("compressed-tensors", fp8_channel(2)),
    "w4a16": ("compressed-tensors", packed_int(4, 128)),
    "w8a16": ("compressed-tensors", packed_int(8, None)),
    "w8a8": ("compressed-tensors", int8(2)),
    "gptq": ("gptq", gptq(4, 128)),
    "awq": ("awq", awq(4, 128)),
    "nf4": ("bitsandbytes", bnb_4bit("nf4", "bfloat16", double=False)),
    "nf4_double": ("bitsandbytes", bnb_4bit("nf4", "bfloat16", double=True)),
    "bnb_int8": ("bitsandbytes", bnb_8bit()),
    "hqq_4bit": ("hqq", hqq(4, 64)),
    "mlx_4bit": ("mlx", mlx(4, 64)),
}
"""Name -> the method that packs so, and the scheme."""
ALIASES = {
    **{"fp4": "nvfp4", "fp8_per_tensor": "fp8_tensor", "fp8_per_channel": "fp8_channel", "w8a8_fp8": "fp8_channel"},
    **{"w8a8_int8": "w8a8", "bnb_nf4": "nf4", "bnb_4bit": "nf4", "bitsandbytes": "nf4", "bnb_8bit": "bnb_int8"},
    **{"fp8_block": "fp8", "fp8_dynamic": "fp8_channel", "mlx": "mlx_4bit", "hqq": "hqq_4bit"},
}
_Maker = Callable[[int, "int | None"], Scheme]
_FAMILIES: tuple[tuple[re.Pattern[str], str, int, tuple[int, ...], _Maker], ...] = (
    (re.compile(r"(?:w|int)([0-9])(?:a16)?(?:_g([0-9]{1,5}))?"), "compressed-tensors", 128, (2, 3, 4, 8), packed_int),
    (re.compile(r"gptq(?:_(?:int)?([0-9])(?:bit)?)?(?:_g([0-9]{1,5}))?"), "gptq", 128, (2, 3, 4, 8), gptq),
    (re.compile(r"awq(?:_(?:int)?([0-9])(?:bit)?)?(?:_g([0-9]{1,5}))?"), "awq", 128, (4, 8), awq),
    (re.compile(r"hqq(?:_(?:int)?([0-9])(?:bit)?)?(?:_g([0-9]{1,5}))?"), "hqq", 64, (1, 2, 3, 4, 8), hqq),
    (re.compile(r"mlx(?:_(?:int)?([0-9])(?:bit)?)?(?:_g([0-9]{1,5}))?"), "mlx", 64, (2, 3, 4, 5, 6, 8), mlx),
)
"""Pattern of bits and group, method, group where none is named, bits that there are, and how to make the scheme."""
_MIXTURE = re.compile(r"([a-z0-9_]+?)experts,([a-z0-9_]+?)attention")
PARTS: Mapping[str, tuple[str, Scheme]] = {**NAMES, "fp8": ("fp8", fp8_block()), "mxfp4": ("mxfp4", mxfp4())}
"""What experts or the rest may be in, beside plain types: `mxfp4` alone is llama.cpp's name."""


@lru_cache(maxsize=256)
def canonical(name: str) -> str | None:
    """The spelling of a format of this file, from one in lower case without dashes and spaces; None for another name.

    >>> canonical("gptq_int4_g32"), canonical("nvfp4experts,bf16attention"), canonical("q4_k_m")
    ('gptq_int4_g32', 'nvfp4 experts, bf16 attention', None)
    """
    name = ALIASES.get(name, name)
    mixture = _MIXTURE.fullmatch(name)
    if mixture is not None:
        experts, rest = (ALIASES.get(part.strip("_"), part.strip("_")) for part in mixture.groups())
        known = all(part in PLAIN_BYTES or _packed(part) for part in (experts, rest))
        return f"{experts} experts, {rest} attention" if known else None
    return name if name in NAMES or _of_family(name) else None


def stored_by_name(model: ModelTensors, name: str) -> Stored:
    """Bytes of every block of `model` in the format `name`, as `canonical` spells it."""
    experts, rest = _parts(name)
    methods = {found[0] for found in (experts, rest) if found is not None}
    packs_all = methods == {"mlx"}

    def scheme_of(module: Module) -> Scheme | None:
        if module.part == "experts":
            return experts[1] if experts else None
        return rest[1] if rest and (module.part == "linear" or packs_all) else None

    method = methods.pop() if len(methods) == 1 else "compressed-tensors"
    return stored_by_rules(model, Rules(scheme_of, method=method), _plain(name), quant=name)


def needs_experts(name: str) -> bool:
    """Whether the format says something of experts alone."""
    return " experts, " in name


def _plain(name: str) -> str:
    return next((part for part in ("fp32", "fp16") if f"{part} " in name), "bf16")


def _parts(name: str) -> tuple[tuple[str, Scheme] | None, tuple[str, Scheme] | None]:
    if needs_experts(name):
        experts, rest = name.removesuffix(" attention").split(" experts, ")
        return _packed(experts), _packed(rest)
    both = _packed(name)
    return both, both


def _packed(name: str) -> tuple[str, Scheme] | None:
    """The method and scheme of a name; None for a plain type, and for a name that is none."""
    return PARTS.get(name) or _of_family(name)


def _of_family(name: str) -> tuple[str, Scheme] | None:
    for pattern, method, usual, may, make in _FAMILIES:
        match = pattern.fullmatch(name)
        if match is not None:
            bits, group = int(match[1] or 4), int(match[2] or usual)
            return (method, make(bits, group)) if bits in may and group else None
    return None
