"""AWQ (autoawq's GEMM layout): packed along the output, zero points always in the file, no order of inputs.

Facts from autoawq 0.2.9. A module is left out when a listed text stands anywhere in its name (autoawq, vLLM), or by
transformers' rule, whichever comes first.
"""

from __future__ import annotations

from profiles.formats.matching import anywhere, hugging_face, may_tell_experts_apart
from profiles.formats.methods.method import Method, named
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme, awq
from profiles.formats.settings import Settings

KEYS = ("quant_method", "bits", "w_bit", "group_size", "q_group_size", "version", "modules_to_not_convert", "format")
IDLE = (
    *("zero_point", "backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "desc_act", "sym"),
    *("provider", "autoround_version", "data_type", "amp", "enable_quanted_input", "to_quant_block_names"),
)


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    settings.choice("version", ("gemm",), "gemm")
    settings.choice("format", ("gemm",), "gemm")
    bits = "w_bit" if settings.get("w_bit") is not None else "bits"
    group = "q_group_size" if settings.get("q_group_size") is not None else "group_size"
    if settings.whole(bits) not in (4, 8):
        raise settings.bad(bits, "is neither 4 nor 8")
    scheme, listed = awq(settings.whole(bits), settings.group(group, 128)), settings.names("modules_to_not_convert")
    by_text, by_name = anywhere(listed), hugging_face(listed, settings.place("modules_to_not_convert"))

    def scheme_of(module: Module) -> Scheme | None:
        if module.part not in ("linear", "experts") or by_text(module) or by_name(module):
            return None
        return scheme

    return Rules(scheme_of, one_by_one=may_tell_experts_apart(listed))


METHOD = Method("awq", named("awq"), _rules)
