"""What the name of a file's weight format means: the mix whose shapes it has, and the bits that its experts take.

ik_llama.cpp's own types have blocks of the sizes in its gguf-py/gguf/constants.py (GGML_QUANT_SIZES); forms that are
interleaved for CPUs (_R4, _R8) have the same, but for IQ1_S_R4 and IQ1_M_R4. Files named after such a type are made by
recipes (ubergarm's, mostly) that give the experts' down projection the next better type, and attention something
between IQ5_KS and Q8_0, for which Q6_K stands here. Recipes that give experts fewer than four bits leave attention at
four to six, be they unsloth's (UD) or for ik_llama.cpp; llama.cpp's own mixes do not. The published sizes that the
tests list agree within 2 %.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from profiles.document import short
from profiles.errors import MoeplanError, ProfileError
from profiles.formats.door import check_quant
from profiles.formats.llama_cpp_mix import ALIASES, MIXES, SMALLEST

IK_BITS = {
    "iq1_s_r4": 1.5, "iq1_m_r4": 1.75, "iq1_kt": 1.75, "iq2_kt": 2.125, "iq2_ks": 2.1875, "iq2_k": 2.375,
    "iq2_kl": 2.6875, "iq3_kt": 3.125, "iq3_ks": 3.1875, "iq3_k": 3.4375, "iq4_kt": 4.0, "iq4_kss": 4.0, "iq4_ks": 4.25,
    "iq4_k": 4.5, "iq5_ks": 5.25, "iq5_k": 5.5, "iq6_k": 6.625,
}  # fmt: skip
"""Bits a weight of ik_llama.cpp's types: bytes of a block over its 256 (IQ1_S_R4, IQ1_M_R4: 32) weights."""
BETTER = {
    "iq2_ks": 3.1875, "iq2_k": 3.4375, "iq2_kl": 3.1875, "iq3_ks": 4.25, "iq3_k": 4.5, "iq3_kt": 4.0, "iq4_ks": 5.25,
    "iq4_k": 5.5, "iq4_kss": 4.25, "iq5_ks": 6.625, "iq5_k": 6.625, "iq6_k": 8.5,
}  # fmt: skip
"""Bits of the down projection in a recipe of that name; the same type where it is not listed."""
IK_SHAPES = "q6_k"
PHRASES = {
    "int8 cpu experts amx": "gpu=marlin,cpu=amx_int8", "int4 marlin gpu / gguf cpu": "gpu=marlin,cpu=q4_k_m",
    "fp8 native": "fp8", "qat q4": "q4_0", "q4": "q4_0", "q8": "q8_0", "f16": "f16", "bf16": "bf16",
}  # fmt: skip
NATIVE_INT4_BITS = 4.5
"""Kimi-K2-Thinking's experts: 4 bits and a 16-bit scale for every 32 weights; everything else in bf16."""
BELOW_FOUR_BITS = (*SMALLEST, "q2_k", "q2_k_s", "iq3_xxs", "iq3_xs", "q3_k_m", "q3_k_s")
REST_OF_THOSE = "q4_k_m"
NEAREST = {"q2_k_xl": "q2_k", "q3_k_xl": "q3_k_m", "q4_k_xl": "q4_k_m", "q5_k_xl": "q5_k_m", "q6_k_xl": "q6_k"}
NEAREST |= {"q2_k_l": "q2_k", "q2_k_m": "q2_k"}
"""unsloth's dynamic mixes by the plain mix that is nearest, and what llama.cpp calls "Q2_K - Medium"."""


@dataclass(frozen=True)
class Weights:
    """`quant` as `load_profile` takes it; `rest` is the format of all but routed experts, where it is another one.

    `expert_bits` are what an expert's weight takes where `quant` does not say it itself, `model_bits` what a weight of
    the whole model takes on average.
    """

    quant: str
    rest: str | None = None
    expert_bits: float | None = None
    model_bits: float | None = None


def weights_of(name: str, engine: str | None = None) -> Weights:
    """What a source means by this format. KTransformers' old engine keeps GGUF weights of GPUs as Marlin.

    Raises ProfileError where the name means no format that is known.

    >>> weights_of("UD-Q4_K_XL").quant, weights_of("Q4_K_M", "ktransformers").quant
    ('q4_k_m', 'gpu=marlin,cpu=q4_k_m')
    >>> weights_of("IQ4_KS_R4").expert_bits  # gate and up 4.25, down 5.25
    4.583333333333333
    """
    plain = re.sub(r"\s+", " ", re.sub(r"[()~]", " ", name.lower())).strip()
    bits = re.search(r"(?:thireus-)([0-9]\.[0-9]{1,5})|([0-9]{1,2}\.[0-9]{1,5}) ?bpw", plain)
    if bits is not None:
        return Weights(IK_SHAPES, model_bits=float(bits[1] or bits[2]))
    if plain == "int4 native":
        return Weights("bf16", expert_bits=NATIVE_INT4_BITS)
    if plain in PHRASES:
        return Weights(PHRASES[plain])
    plain = plain.removeprefix("ud-").replace("-", "_").replace(" ", "_")
    for spelling in (plain, re.sub(r"_r(4|8|16)$", "", plain)):
        if spelling in IK_BITS:
            gate_and_up = IK_BITS[spelling]
            return Weights(IK_SHAPES, expert_bits=(2 * gate_and_up + BETTER.get(spelling, gate_and_up)) / 3)
    by_recipe = name.lower().lstrip("~ ").startswith("ud-") or engine == "ik_llama.cpp"
    quant = _known(re.sub(r"_r(4|8|16)$", "", plain), name, engine)
    return Weights(quant, rest=REST_OF_THOSE if by_recipe and quant in BELOW_FOUR_BITS else None)


def _known(plain: str, name: str, engine: str | None) -> str:
    """The name of a format of `profiles.formats`."""
    plain = NEAREST.get(plain, re.sub(r"^dq([2-8])_k$", r"q\1_k", plain))
    try:
        quant = check_quant(plain)
    except MoeplanError:
        remedy = "write a format of docs/quantisation.md, a type of ik_llama.cpp, or bits such as 4.25 bpw"
        raise ProfileError(f"quant: {short(name)} is no weight format that is known; {remedy}") from None
    if engine == "ktransformers" and ALIASES.get(quant, quant) in MIXES:
        return f"gpu=marlin,cpu={quant}"
    return quant
