"""gpt-oss's own files: routed experts in blocks of 32 values with a scale each, everything else in 16 bits.

`modules_to_not_convert` lists modules that are no experts anyway (transformers 5.23, `replace_with_mxfp4_linear`).
"""

from __future__ import annotations

from profiles.formats.matching import hugging_face
from profiles.formats.methods.method import Method, named
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme, mxfp4
from profiles.formats.settings import Settings

KEYS, IDLE = ("quant_method", "modules_to_not_convert"), ("dequantize",)


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    kept = hugging_face(settings.names("modules_to_not_convert"), settings.place("modules_to_not_convert"))
    scheme = mxfp4()

    def scheme_of(module: Module) -> Scheme | None:
        return scheme if module.part == "experts" and not kept(module) else None

    return Rules(scheme_of, fused=True, label="hf_mxfp4")


METHOD = Method("mxfp4", named("mxfp4"), _rules)
