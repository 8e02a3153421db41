"""GPTQ (gptqmodel, AutoGPTQ): groups along the input, zero points and an order of inputs always in the file.

`dynamic` changes or skips modules by regex, the first that matches: facts from gptqmodel 7.7.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from profiles.formats.matching import compiled, may_tell_experts_apart
from profiles.formats.methods.method import Method, named
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme, gptq
from profiles.formats.settings import Settings

BITS = (2, 3, 4, 8)
KEYS = (
    *("quant_method", "bits", "group_size", "checkpoint_format", "dynamic", "lm_head", "pack_dtype"),
    *("modules_in_block_to_quantize", "is_marlin_format", "format"),
)
IDLE = (
    *("desc_act", "sym", "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "act_group_aware"),
    *("model_name_or_path", "model_file_base_name", "meta", "dataset", "tokenizer", "exllama_config", "use_exllama"),
    *("disable_exllama", "max_input_length", "use_cuda_fp16", "cache_block_outputs", "block_name_to_quantize"),
    *("module_name_preceding_first_block", "batch_size", "pad_token_id", "model_seqlen", "backend", "mse", "rotation"),
    *("provider", "autoround_version", "data_type", "amp", "enable_quanted_input"),
    *("quantizer", "offload_to_disk", "offload_to_disk_path", "hyb_act", "adapter", "is_mixed", "version", "mock"),
)
"""None changes a byte: zero points and `g_idx` are written for symmetric weights in their own order too."""
OVERRIDES, OVERRIDES_IDLE = ("bits", "group_size"), ("desc_act", "sym", "mse", "damp_percent", "static_groups")


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    settings.choice("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    settings.choice("format", ("gptq", "gptq_v2"), "gptq")
    settings.choice("pack_dtype", ("int32",), "int32")
    if settings.flag("is_marlin_format"):
        raise settings.bad("is_marlin_format", "is a layout that is not known here")
    plain, head = _scheme(settings, {}), settings.flag("lm_head")
    overrides = _overrides(settings)
    suffixes = _listed(settings)

    def scheme_of(module: Module) -> Scheme | None:
        if module.part in ("router", "embedding") or (module.part == "head" and not head):
            return None
        for regex, scheme in overrides:
            if any(regex.search(name) for name in module.names):
                return scheme
        return plain if not suffixes or module.part != "linear" or module.name.endswith(suffixes) else None

    return Rules(scheme_of, one_by_one=may_tell_experts_apart(settings.mappings("dynamic")), notes=_notes(suffixes))


def _overrides(settings: Settings) -> list[tuple[re.Pattern[str], Scheme | None]]:
    """Regex -> what it says, in the order of the file; None for what is skipped (`-:`)."""
    found: list[tuple[re.Pattern[str], Scheme | None]] = []
    for pattern, change in settings.mappings("dynamic").items():
        sign, regex = (pattern[0], pattern[2:]) if pattern[:2] in ("-:", "+:") else ("+", pattern)
        if sign == "+":
            change.only(OVERRIDES, OVERRIDES_IDLE)
        scheme = None if sign == "-" else _scheme(settings, change.values)
        found.append((compiled(regex, settings.place("dynamic")), scheme))
    return found


def _scheme(settings: Settings, change: Mapping[str, object]) -> Scheme:
    both = Settings({**settings.values, **change}, settings.where)
    bits = both.whole("bits", most=8)
    if bits not in BITS:
        raise both.bad("bits", f"is none of {', '.join(map(str, BITS))}")
    return gptq(bits, both.group("group_size", 128))


def _listed(settings: Settings) -> tuple[str, ...]:
    """Ends of the only names that are packed, where the file lists them (lists in a list); empty where it does not."""
    value = settings.get("modules_in_block_to_quantize")
    if value is None:
        return ()
    flat = (
        [n for part in value for n in (part if isinstance(part, list) else [part])] if isinstance(value, list) else []
    )
    if not flat or not all(isinstance(name, str) and name for name in flat):
        raise settings.bad("modules_in_block_to_quantize", "is not a list of lists of names")
    return tuple(f".{name}" for name in flat)


def _notes(listed: tuple[str, ...]) -> tuple[str, ...]:
    said = "packed are the modules that modules_in_block_to_quantize lists; files may pack more, their headers tell"
    return (said,) if listed else ()


METHOD = Method("gptq", named("gptq"), _rules)
