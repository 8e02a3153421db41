"""bitsandbytes: linear modules in 4 or 8 bits. Routed experts are those only in files of transformers before 5.

Facts from bitsandbytes 0.50.2 and transformers 5.23, whose experts of a layer are parameters, not linear modules, which
bitsandbytes passes over. config.json says which transformers wrote it.
"""

from __future__ import annotations

from profiles.errors import ProfileError
from profiles.formats.matching import hugging_face, may_tell_experts_apart
from profiles.formats.methods.method import Method, linear_before_5
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme, bnb_4bit, bnb_8bit
from profiles.formats.settings import REMEDY, Settings

KEYS = (
    *("quant_method", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "bnb_4bit_quant_type"),
    *("bnb_4bit_use_double_quant", "bnb_4bit_quant_storage", "llm_int8_skip_modules"),
)
IDLE = (
    *("bnb_4bit_compute_dtype", "llm_int8_threshold", "llm_int8_enable_fp32_cpu_offload"),
    *("llm_int8_has_fp16_weight", "version"),
)


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    settings.choice("bnb_4bit_quant_storage", ("uint8",), "uint8")
    scheme, packs_experts = _scheme(settings), _packs_experts(settings)
    listed = settings.names("llm_int8_skip_modules")
    kept = hugging_face(listed or ["lm_head"], settings.place("llm_int8_skip_modules"))

    is_linear = linear_before_5(settings.config)

    def scheme_of(module: Module) -> Scheme | None:
        if not is_linear(module) or (module.part == "experts" and not packs_experts):
            return None
        return None if kept(module) else scheme

    notes = (
        () if packs_experts else ("routed experts are in 16 bits: bitsandbytes passes over those of transformers 5",)
    )
    return Rules(scheme_of, one_by_one=may_tell_experts_apart(listed), notes=notes)


def _scheme(settings: Settings) -> Scheme:
    if settings.flag("load_in_8bit") or settings.flag("_load_in_8bit"):
        return bnb_8bit()
    if not settings.flag("load_in_4bit") and not settings.flag("_load_in_4bit"):
        raise settings.bad("load_in_4bit", "is not true, nor is load_in_8bit")
    kind = settings.choice("bnb_4bit_quant_type", ("nf4", "fp4"), "fp4")
    dtype = settings.config.get("dtype") or settings.config.get("torch_dtype") or "bfloat16"
    return bnb_4bit(kind, str(dtype).removeprefix("torch."), settings.flag("bnb_4bit_use_double_quant"))


def _packs_experts(settings: Settings) -> bool:
    version = settings.config.get("transformers_version")
    major = version.partition(".")[0] if isinstance(version, str) else ""
    if not major.isdecimal() and settings.config.get("num_experts", settings.config.get("num_local_experts")):
        problem = "missing, and by it one knows whether bitsandbytes packed the routed experts (4) or not (5)"
        raise ProfileError(f"transformers_version: {problem}; {REMEDY}")
    return major.isdecimal() and int(major) < 5


def _recognises(settings: Settings) -> bool:
    loads = any(settings.get(f"{under}load_in_{bits}bit") is True for under in ("", "_") for bits in (4, 8))
    return loads or settings.get("quant_method") == "bitsandbytes"


METHOD = Method("bitsandbytes", _recognises, _rules)
