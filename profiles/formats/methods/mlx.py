"""MLX: every module whose rows divide into groups, embedding, head and routers too; single ones by name.

A layer's experts are one module (`switch_mlp`) for each projection. Facts from mlx 0.32.4 and mlx-lm 0.32.2.
"""

from __future__ import annotations

import re

from profiles.formats.methods.method import Method
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme, mlx, mxfp4, mxfp8, nvfp4
from profiles.formats.settings import Settings

KEYS = ("group_size", "bits", "mode", "quant_method")
DEFAULTS = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
BITS = (2, 3, 4, 5, 6, 8)
BARE_ROUTERS = re.compile(
    r"deepseek|kimi|glm4_moe|glm_moe|dots1|exaone_moe|bailing_moe_v3|longcat|mimo_v2|minimax_m3|step3p5|nemotron_h|laguna"
)
"""Families whose router is a parameter in mlx-lm, which is never packed."""
_EXPERT = re.compile(r"\.experts\.(?:[0-9]+\.)?")


def _recognises(settings: Settings) -> bool:
    return settings.get("quant_method") is None and "group_size" in settings.values and "bits" in settings.values


def _rules(settings: Settings) -> Rules:
    scheme_at = {path: _named(settings, path) for path in settings.values if path not in KEYS}
    plain, group = _scheme(settings)
    bare = BARE_ROUTERS.search(str(settings.config.get("model_type", ""))) is not None

    def scheme_of(module: Module) -> Scheme | None:
        for name in module.names:
            path = _EXPERT.sub(".switch_mlp.", name) if module.part == "experts" else name
            if path in scheme_at:
                return scheme_at[path]
        return None if module.part == "router" and bare else plain

    return Rules(scheme_of, divides=group)


def _named(settings: Settings, path: str) -> Scheme | None:
    """What a path's own entry says: false, or other numbers."""
    value = settings.get(path)
    if value is False:
        return None
    if value is True:
        return _scheme(settings)[0]
    inner = settings.inside(path)
    if inner is None:
        raise settings.bad(path, "is neither true, false nor a mapping")
    inner.only((*KEYS, "global_scale"))
    return _scheme(inner)[0]


def _scheme(settings: Settings) -> tuple[Scheme, int]:
    """The scheme and its group; without a mode affine, for single modules too."""
    mode = settings.choice("mode", DEFAULTS, "affine")
    group, bits = DEFAULTS[mode]
    group, bits = settings.whole("group_size", group), settings.whole("bits", bits, most=8)
    if (mode != "affine" and (group, bits) != DEFAULTS[mode]) or bits not in BITS:
        raise settings.bad("bits", f"with groups of {group} is no format of mode {mode}")
    if mode == "affine":
        return mlx(bits, group), group
    if mode == "nvfp4":
        return nvfp4(4 if settings.flag("global_scale") else 0), group
    return (mxfp4() if mode == "mxfp4" else mxfp8()), group


METHOD = Method("mlx", _recognises, _rules)
