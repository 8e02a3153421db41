"""HQQ: packed values with a scale and a zero point in 16 bits for every group, and a few numbers about each matrix.

Modules are named by their place in a layer (`self_attn.q_proj`). Facts from hqq 0.2.8.post1 and transformers 5.23,
which knows linear modules only: routed experts stay in 16 bits.
"""

from __future__ import annotations

from profiles.formats.methods.method import Method, named
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme, hqq
from profiles.formats.settings import Settings

KEYS, IDLE = ("quant_method", "quant_config", "skip_modules"), ("version",)
PLAIN_KEYS = ("weight_quant_params",)
PLAIN_IDLE = ("offload_meta",)
WEIGHT_KEYS = ("nbits", "group_size", "axis", "view_as_float", "channel_wise")
WEIGHT_IDLE = ("optimize", "round_zero")


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    skipped, quant = settings.names("skip_modules") or ["lm_head"], settings.inside("quant_config")
    if quant is None:
        raise settings.bad("quant_config", "is missing")
    by_tag = None if "weight_quant_params" in quant.values else settings.mappings("quant_config")
    schemes = {tag: _scheme(inner) for tag, inner in by_tag.items()} if by_tag is not None else {"": _scheme(quant)}

    def scheme_of(module: Module) -> Scheme | None:
        if module.part not in ("linear", "head") or any(_is(module, tag) for tag in skipped):
            return None
        return next((scheme for tag, scheme in schemes.items() if not tag or _is(module, tag)), None)

    return Rules(scheme_of, notes=("routed experts are in 16 bits: hqq passes over those of transformers 5",))


def _is(module: Module, tag: str) -> bool:
    return any(name == tag or name.endswith(f".{tag}") for name in module.names)


def _scheme(settings: Settings) -> Scheme:
    settings.only(PLAIN_KEYS, PLAIN_IDLE)
    weights = settings.inside("weight_quant_params")
    if weights is None:
        raise settings.bad("weight_quant_params", "is missing")
    weights.only(WEIGHT_KEYS, WEIGHT_IDLE)
    if not weights.flag("channel_wise", True) or weights.flag("view_as_float"):
        raise weights.bad("view_as_float", "is a layout that is not known here, or weights are not channel_wise")
    bits = weights.whole("nbits", most=8)
    if bits not in (8, 4, 3, 2, 1):
        raise weights.bad("nbits", "is none of 8, 4, 3, 2, 1")
    return hqq(bits, weights.group("group_size", None))


METHOD = Method("hqq", named("hqq"), _rules)
