"""Which type each tensor of a GGUF file gets under llama.cpp's named mixes (Q4_K_M and the like).

Facts from llama.cpp's src/llama-quant.cpp (default type of a mix, the exceptions by tensor, the fallback for rows that
are no whole number of blocks). Published sizes of files agree: docs/quantisation.md. Ignored: types chosen by hand or
by measuring (unsloth's UD mixes), `--pure`, `--output-tensor-type` and the like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from profiles.gguf.tensors import GgmlType as T
from profiles.gguf.tensors import GgufTensor, fits

MIXES: dict[str, T] = {
    "q2_k": T.Q2_K, "q2_k_s": T.Q2_K, "q3_k_s": T.Q3_K, "q3_k_m": T.Q3_K, "q3_k_l": T.Q3_K,
    "q4_0": T.Q4_0, "q4_1": T.Q4_1, "q4_k_s": T.Q4_K, "q4_k_m": T.Q4_K,
    "q5_0": T.Q5_0, "q5_1": T.Q5_1, "q5_k_s": T.Q5_K, "q5_k_m": T.Q5_K, "q6_k": T.Q6_K, "q8_0": T.Q8_0,
    "iq1_s": T.IQ1_S, "iq1_m": T.IQ1_M, "iq2_xxs": T.IQ2_XXS, "iq2_xs": T.IQ2_XS, "iq2_s": T.IQ2_XS, "iq2_m": T.IQ2_S,
    "iq3_xxs": T.IQ3_XXS, "iq3_xs": T.IQ3_S, "iq3_s": T.IQ3_S, "iq3_m": T.IQ3_S, "iq4_nl": T.IQ4_NL, "iq4_xs": T.IQ4_XS,
    "tq1_0": T.TQ1_0, "tq2_0": T.TQ2_0, "mxfp4_moe": T.MXFP4, "f16": T.F16, "f32": T.F32,
}  # fmt: skip
"""Name of a mix -> the type of every tensor that no exception is made for."""
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "mxfp4": "mxfp4_moe"}
SMALLEST = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m")
PLAIN = (T.F32, T.F16)
FALLBACK: dict[T, T] = {
    **dict.fromkeys((T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_XS), T.IQ4_NL),
    **dict.fromkeys((T.Q2_K, T.Q3_K, T.TQ1_0, T.TQ2_0), T.Q4_0),
    T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0,
}  # fmt: skip
"""What replaces a type of 256-value blocks where a row is not made of such; F16 where 32 do not divide it either."""
NEVER = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "ssm_conv1d", "shortconv.conv", "altup", "laurel",
    "position_embd",
)  # fmt: skip
IN_16_BITS = ("per_layer_model_proj.weight", "indexer.k_proj.weight", "indexer.q_proj.weight")
"""Matrices that stay as the converter wrote them, which is in 16 bits."""
IN_16_BITS_OF = {
    "glm5-next": (
        "hc_", "indexer.", "indexer_compressor_", "ssm_f_", "ssm_g_", "ssm_beta", "attn_kv_a_mqa", "attn_k_b",
        "attn_v_b",
    ),
}  # fmt: skip
"""The same for the matrices of one architecture (llama.cpp build 11434)."""
CATEGORIES = (
    ("attn_qkv.weight", "qkv"), ("attn_v.weight", "v"), ("attn_k.weight", "k"), ("attn_q.weight", "q"),
    ("attn_output.weight", "output"), ("ffn_up", "up"), ("ffn_gate", "gate"), ("ffn_down", "down"),
)  # fmt: skip
"""Part of a tensor's name -> the kind of tensor that exceptions speak of; the first that is found counts.

Since early 2026 llama.cpp treats attn_qkv and attn_kv_b as attn_v. The published files that have them are older, so
they follow the rule of their time: attn_qkv has its own exceptions, attn_kv_b none.
"""


@dataclass(frozen=True)
class Facts:
    """What the exceptions ask of a model. `layers` counts multi-token-prediction layers that the file holds too;
    `architecture` is llama.cpp's name.
    """

    layers: int
    experts: int
    heads_per_kv_head: int
    is_70b: bool = False
    tied: bool = False
    mxfp4_experts: bool = False
    architecture: str | None = None


def mix_types(mix: str, tensors: Sequence[GgufTensor], facts: Facts) -> tuple[T, ...]:
    """The type of each of `tensors`, all of one file in its order, under `mix`, a key of MIXES."""
    in_order = sorted(tensors, key=lambda tensor: (tensor.layer or 0, tensor.name))
    index: dict[str, int] = {}
    count: dict[str, int] = {}
    for tensor in in_order:
        category = _category(tensor)
        index[tensor.name] = count.get(category, 0)
        count[category] = index[tensor.name] + 1
    return tuple(_type(mix, tensor, facts, index[tensor.name], count[_category(tensor)]) for tensor in tensors)


def _type(mix: str, tensor: GgufTensor, facts: Facts, index: int, count: int) -> T:
    """The type of one tensor, the `index`-th of `count` in its category in the order of layers."""
    if not _is_quantised(tensor):
        return T.F32
    if facts.mxfp4_experts and "_exps." in tensor.name:
        return T.MXFP4  # stored so by their makers; no mix makes them anew
    base = MIXES[mix]
    if base in PLAIN:
        return base
    if any(part in tensor.name for part in IN_16_BITS + IN_16_BITS_OF.get(facts.architecture or "", ())):
        return T.F16
    kind = _wanted(mix, tensor, facts, index, count)
    if not fits(tensor, kind):
        kind = FALLBACK.get(kind, T.F16)
    return kind if fits(tensor, kind) else T.F16


def _is_quantised(tensor: GgufTensor) -> bool:
    """Matrices are, apart from routers and a few small ones; anything else stays in F32."""
    return len(tensor.shape) > 1 and tensor.name.endswith("weight") and not any(part in tensor.name for part in NEVER)


def _category(tensor: GgufTensor) -> str:
    return next((kind for part, kind in CATEGORIES if part in tensor.name), "other")


def _wanted(mix: str, tensor: GgufTensor, facts: Facts, index: int, count: int) -> T:
    """The type before any fallback."""
    base, category = MIXES[mix], _category(tensor)
    if tensor.name == "output.weight" or (facts.tied and tensor.name == "token_embd.weight"):
        return _output(mix, tensor)
    if mix == "mxfp4_moe":
        return T.MXFP4 if len(tensor.shape) > 2 and tensor.shape[2] > 1 else T.Q8_0
    if tensor.name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return _embedding(mix)
    if mix in SMALLEST:
        return _smallest(mix, category, facts, index)
    if category == "v":
        return _values(mix, facts, index, count)
    if category == "qkv":
        kinds = dict.fromkeys(("q3_k_m", "q3_k_l", "iq3_m"), T.Q4_K) | {"q4_k_m": T.Q5_K, "q5_k_m": T.Q6_K}
        return kinds.get(mix, base)
    if category in ("k", "q"):
        if category == "k" and facts.experts == 8:
            return T.Q8_0
        return {"iq3_xs": T.IQ3_XXS, "iq3_xxs": T.IQ2_S}.get(mix, base)
    if category == "down":
        return _down(mix, tensor.layer or 0, facts)
    if category == "output":
        return _attention_output(mix, facts)
    if mix == "iq3_xs" and category in ("up", "gate"):
        n, layer = facts.layers, tensor.layer or 0
        return T.IQ3_XXS if n // 8 <= layer < 7 * n // 8 else base
    return base


def _output(mix: str, tensor: GgufTensor) -> T:
    base = MIXES[mix]
    if mix == "mxfp4_moe" or not fits(tensor, base) or base == T.Q8_0:
        return T.Q8_0
    return T.Q5_K if mix in SMALLEST or mix == "iq3_xxs" else T.Q6_K


def _embedding(mix: str) -> T:
    if mix in ("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"):
        return T.Q2_K
    if mix in ("iq2_s", "iq2_m", "iq3_xxs"):
        return T.IQ3_S
    return T.Q4_K if mix in ("tq1_0", "tq2_0") else MIXES[mix]


def _smallest(mix: str, category: str, facts: Facts, index: int) -> T:
    """The mixes below three bits; here the first down projections are counted by tensor, shared experts' among them."""
    better = T.IQ3_S if mix in ("iq2_s", "iq2_m") else T.Q2_K
    if category == "v":
        return T.Q4_K if facts.heads_per_kv_head >= 4 or facts.experts >= 4 else better
    if category == "k" and facts.experts == 8:
        return T.Q4_K
    if category == "down" and index < facts.layers // 8:
        return better
    if category == "output":
        if facts.experts == 8:
            return T.Q5_K
        return {"iq1_s": T.IQ2_XXS, "iq1_m": T.IQ2_XXS, "iq2_s": T.IQ3_S, "iq2_m": T.IQ3_S}.get(mix, MIXES[mix])
    return MIXES[mix]


def _more_bits(index: int, count: int) -> bool:
    """An eighth of the layers at either end, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _values(mix: str, facts: Facts, index: int, count: int) -> T:
    """Attention's value projection."""
    kind, grouped = MIXES[mix], facts.heads_per_kv_head >= 4
    if mix == "q2_k":
        kind = T.Q4_K if grouped else T.Q3_K
    elif (grouped and mix in ("q2_k_s", "iq3_xxs", "iq3_xs", "iq3_s")) or mix == "iq3_m":
        kind = T.Q4_K
    elif mix == "q3_k_m":
        kind = T.Q5_K if index < 2 else T.Q4_K
    elif mix == "q3_k_l" or (mix in ("iq4_nl", "iq4_xs") and grouped) or (mix == "q4_k_s" and index < 4):
        kind = T.Q5_K
    elif mix in ("q4_k_m", "q5_k_m") and _more_bits(index, count):
        kind = T.Q6_K
    if facts.is_70b and kind in (T.Q3_K, T.Q4_K):
        kind = T.Q5_K
    return T.Q8_0 if facts.experts == 8 else kind


def _down(mix: str, layer: int, facts: Facts) -> T:
    """Down projections, of experts too. Importance matrices are taken for granted, as published files have them."""
    base, n = MIXES[mix], facts.layers
    if mix in ("q4_k_m", "q5_k_m"):
        return T.Q6_K if _more_bits(layer, n) else base
    if mix == "q3_k_m":
        return T.Q5_K if layer < n // 16 else T.Q4_K
    if mix == "iq3_m":
        return T.Q4_K if layer < n // 8 or (facts.experts == 8 and _more_bits(layer, n)) else base
    if layer < n // 8 and mix in ("q2_k_s", "q4_k_s"):
        return T.Q4_K if mix == "q2_k_s" else T.Q5_K
    return {"q2_k": T.Q3_K, "q3_k_l": T.Q5_K}.get(mix, base)


def _attention_output(mix: str, facts: Facts) -> T:
    if facts.experts == 8:
        five = ("q2_k", "iq3_xs", "iq3_xxs", "q3_k_s", "q3_k_m", "iq4_nl", "q4_k_s", "q4_k_m", "iq3_s", "iq3_m")
        return T.Q5_K if mix in (*five, "iq4_xs") else MIXES[mix]
    return {"q2_k": T.Q3_K, "iq3_xxs": T.IQ3_S, "q3_k_m": T.Q4_K, "q3_k_l": T.Q5_K, "iq3_m": T.Q4_K}.get(
        mix, MIXES[mix]
    )
