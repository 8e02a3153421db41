"""The door to all weight formats: one name for every device, or one for each kind ("gpu=marlin,cpu=q4_k_m")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from profiles.catalogue import nearest
from profiles.document import short
from profiles.errors import ProfileError
from profiles.formats import by_name
from profiles.formats.by_shape import CPU_QUANTS, GPU_QUANTS, QUANTS, stored_by_shape
from profiles.formats.checkpoint import stored_by_config
from profiles.formats.gguf_layout import stored_in_mix
from profiles.formats.llama_cpp_mix import ALIASES as MIX_ALIASES
from profiles.formats.llama_cpp_mix import MIXES
from profiles.formats.settings import Beside, nothing_beside, settings_of
from profiles.formats.stored import Stored, by_kind
from profiles.tensors import ModelTensors

ALIASES = {**MIX_ALIASES, "amxint8": "amx_int8", "amxint4": "amx_int4"}
EXPERTS_ONLY = ("hf_mxfp4", "mxfp4_moe", *CPU_QUANTS)
"""Formats that leave a model without routed experts as it was, or nearly."""
_BY_KIND = re.compile(r"gpu=([a-z0-9_]+),cpu=([a-z0-9_]+)")


def known_quants() -> tuple[str, ...]:
    """Every name that `quant` may be, or may be on one kind of device; those with bits and group in them by example."""
    return (*QUANTS, *by_name.NAMES, *GPU_QUANTS, *CPU_QUANTS, *MIXES)


def check_quant(quant: object) -> str:
    """The format's own spelling of `quant`; ProfileError listing the known ones.

    >>> check_quant("Q4_K_M"), check_quant("gpu=marlin, cpu=q8_0"), check_quant("NVFP4 experts, BF16 attention")
    ('q4_k_m', 'gpu=marlin,cpu=q8_0', 'nvfp4 experts, bf16 attention')
    """
    if not isinstance(quant, str):
        raise _unknown(quant)
    plain = _plain(quant)
    parts = _BY_KIND.fullmatch(plain)
    if parts is None:
        return _one(plain, quant, "one")
    return f"gpu={_one(parts[1], quant, 'gpu')},cpu={_one(parts[2], quant, 'cpu')}"


def _plain(quant: str) -> str:
    return quant.lower().replace("-", "_").replace(" ", "")


def _one(name: str, given: object, kind: str) -> str:
    name = ALIASES.get(name, name)
    if name not in known_quants():
        name = by_name.canonical(name) or ""
    if not name:
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
    if (quant in EXPERTS_ONLY or by_name.needs_experts(quant)) and not any(layer.experts for layer in model.layers):
        raise ProfileError(
            f"quant: {quant!r} stores routed experts only and this model has none; use bf16, fp8, int8, q4_k_m"
        )
    if quant in MIXES:
        return stored_in_mix(model, quant)
    named = quant not in (*QUANTS, *GPU_QUANTS, *CPU_QUANTS)
    return by_name.stored_by_name(model, quant) if named else stored_by_shape(model, quant)


def stored_for(
    model: ModelTensors, config: Mapping[str, Any], quant: str | None = None, beside: Beside = nothing_beside
) -> Stored:
    """Bytes of every block of `model`: as `config` (or a file of its method, `beside` it) says that it is stored, or in
    the format `quant`. What the config's own format is called means that format.
    """
    if quant is None:
        return stored_by_config(model, config, beside)
    try:
        own = stored_by_config(model, config, beside) if settings_of(config, beside) is not None else None
    except ProfileError:
        own = None
    if own is not None and isinstance(quant, str) and _plain(quant) == _plain(own.quant):
        return own
    return stored_as(model, check_quant(quant))
