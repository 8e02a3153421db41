"""The door to all weight formats: one name for every device, or one for each kind ("gpu=marlin,cpu=q4_k_m")."""

from __future__ import annotations

import re

from profiles.catalogue import nearest
from profiles.document import short
from profiles.errors import ProfileError
from profiles.formats.by_shape import CPU_QUANTS, GPU_QUANTS, QUANTS, stored_by_shape
from profiles.formats.gguf_layout import stored_in_mix
from profiles.formats.llama_cpp_mix import ALIASES as MIX_ALIASES
from profiles.formats.llama_cpp_mix import MIXES
from profiles.formats.stored import Stored, by_kind
from profiles.tensors import ModelTensors

ALIASES = {**MIX_ALIASES, "amxint8": "amx_int8", "amxint4": "amx_int4"}
EXPERTS_ONLY = ("hf_mxfp4", "mxfp4_moe", *CPU_QUANTS)
"""Formats that leave a model without routed experts as it was, or nearly."""
_BY_KIND = re.compile(r"gpu=([a-z0-9_]+),cpu=([a-z0-9_]+)")


def known_quants() -> tuple[str, ...]:
    """Every name that `quant` may be, or may be on one kind of device."""
    return (*QUANTS, *GPU_QUANTS, *CPU_QUANTS, *MIXES)


def check_quant(quant: object) -> str:
    """The format's own spelling of `quant`; ProfileError listing the known ones.

    >>> check_quant("Q4_K_M"), check_quant("gpu=marlin, cpu=q8_0")
    ('q4_k_m', 'gpu=marlin,cpu=q8_0')
    """
    if not isinstance(quant, str):
        raise _unknown(quant)
    plain = quant.lower().replace("-", "_").replace(" ", "")
    parts = _BY_KIND.fullmatch(plain)
    if parts is None:
        return _one(plain, quant, "one")
    return f"gpu={_one(parts[1], quant, 'gpu')},cpu={_one(parts[2], quant, 'cpu')}"


def _one(name: str, given: object, kind: str) -> str:
    name = ALIASES.get(name, name)
    if name not in known_quants():
        raise _unknown(given)
    for quants, only, example in (
        (GPU_QUANTS, "gpu", f"gpu={name},cpu=q4_k_m"),
        (CPU_QUANTS, "cpu", f"gpu=bf16,cpu={name}"),
    ):
        if name in quants and kind != only:
            raise ProfileError(f"quant: {name!r} exists on {only.upper()}s only; write e.g. {example}")
    return name


def _unknown(quant: object) -> ProfileError:
    near = nearest(quant, known_quants()) if isinstance(quant, str) else []
    hint = f"did you mean {' or '.join(near)}?" if near else "use one of them"
    known = ", ".join(known_quants())
    return ProfileError(f"quant: {short(quant)} is not known for a config.json, {hint} ({known}, or gpu=…,cpu=…)")


def stored_as(model: ModelTensors, quant: str) -> Stored:
    """Bytes of every block of `model` in `quant`, as `check_quant` spells it.

    Raises ProfileError where the format would leave this model as it was, so that nobody takes bf16 for it.
    """
    parts = _BY_KIND.fullmatch(quant)
    if parts is not None:
        return by_kind(quant, stored_as(model, parts[1]), stored_as(model, parts[2]))
    if quant in EXPERTS_ONLY and not any(layer.experts for layer in model.layers):
        raise ProfileError(
            f"quant: {quant!r} stores routed experts only and this model has none; use bf16, fp8, int8, q4_k_m"
        )
    return stored_in_mix(model, quant) if quant in MIXES else stored_by_shape(model, quant)
