"""fbgemm: 8-bit floats with a scale for each output row, as Meta's Llama 3.1 and 4 in 8 bits.

Facts from transformers 5.23 (FbgemmFp8Linear, FbgemmFp8Llama4TextExperts).
"""

from __future__ import annotations

from profiles.formats.matching import hugging_face
from profiles.formats.methods.method import Method, named
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme, fp8_channel
from profiles.formats.settings import Settings

KEYS, IDLE = ("quant_method", "modules_to_not_convert"), ("activation_scale_ub",)


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    listed = settings.names("modules_to_not_convert")
    kept, scheme = hugging_face(listed or ["lm_head"], settings.place("modules_to_not_convert")), fp8_channel()

    def scheme_of(module: Module) -> Scheme | None:
        return None if module.part in ("router", "embedding", "head") or kept(module) else scheme

    return Rules(scheme_of, fused=True)


METHOD = Method("fbgemm_fp8", named("fbgemm_fp8"), _rules)
