"""Bytes of the KV cache: which type its values are kept in, and whether latent attention keeps the latent.

Block types quantise runs of 32 values (the block sizes of ggml's types): q8_0 takes 34 bytes a block, q4_0 18.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiles.document import short
from profiles.errors import ProfileError
from profiles.tensors import Cache

KV_TYPES: dict[str, tuple[int, int]] = {
    "fp32": (1, 4), "bf16": (1, 2), "fp16": (1, 2), "fp8": (1, 1),
    "q8_0": (32, 34), "q5_1": (32, 24), "q5_0": (32, 22), "q4_1": (32, 20), "q4_0": (32, 18), "iq4_nl": (32, 18),
}  # fmt: skip
"""Name -> (values in a block, bytes of a block)."""
ALIASES = {"f32": "fp32", "f16": "fp16", "half": "fp16", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
ALIASES |= {"fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}
MLA_KINDS = ("compressed", "expanded")


@dataclass(frozen=True)
class KvFormat:
    """How a runtime keeps the cache. None: the type of the activations; the way the reader of the file knows.

    `mla` matters to multi-head latent attention only: "compressed" keeps the latent and the rotary key (transformers,
    KTransformers, llama.cpp with split kv_b), "expanded" keeps keys and values of every head (older runtimes).
    """

    type: str | None = None
    mla: str | None = None


def kv_format(kv_quant: object = None, mla: object = None) -> KvFormat:
    """The format of these names; ProfileError listing the known ones.

    >>> kv_format("F16").type
    'fp16'
    """
    kind = ALIASES.get(kv_quant.lower(), kv_quant.lower()) if isinstance(kv_quant, str) else kv_quant
    if kind is not None and kind not in KV_TYPES:
        raise ProfileError(f"kv_quant: {short(kv_quant)} is not a known cache type; use one of {', '.join(KV_TYPES)}")
    if mla is not None and mla not in MLA_KINDS:
        raise ProfileError(f"mla: {short(mla)} is not known; use one of {', '.join(MLA_KINDS)}")
    return KvFormat(kind, mla)


def keeps_latent(cache: Cache, how: KvFormat) -> bool:
    """Whether a layer's cache holds the latent of latent attention.

    >>> keeps_latent(Cache(values_per_token=576, full_values_per_token=40_960), KvFormat())
    True
    """
    return cache.is_latent and how.mla != "expanded"


def kv_bytes_per_token(cache: Cache, how: KvFormat, value_bytes: int) -> int:
    """Bytes that one cached token takes in a layer; `value_bytes` is the size of an activation.

    Where an entry serves several tokens, each is counted with its share of it, rounded up.
    Raises ProfileError where the cached values do not fill blocks of the type, as runtimes refuse such a cache too.

    >>> kv_bytes_per_token(Cache(values_per_token=1024), KvFormat("q8_0"), 2)
    1088
    """
    values = cache.values_per_token
    if how.mla == "expanded" and cache.full_values_per_token:
        values = cache.full_values_per_token
    block, size = KV_TYPES[how.type] if how.type is not None else (1, value_bytes)
    if values % block:
        raise ProfileError(
            f"kv_quant: {how.type!r} stores blocks of {block} values, and a layer caches {values} a token; use fp16"
        )
    return -(-values // block * size // cache.tokens_per_entry)
