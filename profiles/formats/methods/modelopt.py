"""NVIDIA's modelopt: one algorithm for all that is not excluded, or one for each layer that is named.

Its settings stand in config.json or in hf_quant_config.json. Facts from modelopt 0.47.0 (tensors, wildcards) and vLLM's
readers of such files. Layers that predict further tokens have a projection that is never packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import NoneType

from profiles.document import short
from profiles.errors import ProfileError
from profiles.formats.matching import may_tell_experts_apart, wildcards
from profiles.formats.methods.fp8 import fp8_rules
from profiles.formats.methods.method import Method, linear_before_5
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import (
    Scheme,
    awq_of_modelopt,
    fp8_block,
    fp8_channel,
    fp8_tensor,
    int8,
    mxfp4,
    mxfp8,
    nvfp4,
)
from profiles.formats.settings import REMEDY, Settings

ALGORITHMS: Mapping[str, Callable[[int | None], Scheme]] = {
    "FP8": lambda _: fp8_tensor(extra_bytes=4),
    "FP8_PER_CHANNEL_PER_TOKEN": lambda _: fp8_channel(),
    "FP8_PB_WO": lambda _: fp8_block(),
    "MXFP8": lambda _: mxfp8(),
    "NVFP4": lambda group: nvfp4(8, group or 16),
    "W4A16_NVFP4": lambda group: nvfp4(4, group or 16),
    "W4A8_NVFP4_FP8": lambda group: nvfp4(8, group or 32),
    "W4A8_MXFP4_FP8": lambda _: mxfp4(),
    "W4A16_AWQ": lambda group: awq_of_modelopt(group or 128),
    "W4A8_AWQ": lambda group: awq_of_modelopt(group or 128, 8),
    "W8A8_SQ_PER_CHANNEL": lambda _: int8(4, extra_bytes=4),
    "W8A16": lambda _: int8(4),
}
"""`quant_algo` -> the scheme for a group size. Ignored: `pre_quant_scale` of AWQ where it is not folded into a norm."""
MIXED = "MIXED_PRECISION"
KEYS = (
    *("quant_method", "quant_algo", "moe_quant_algo", "group_size", "exclude_modules", "ignore", "quantized_layers"),
    *("producer", "kv_cache_quant_algo", "kv_cache_scheme"),
)
IDLE = ("config_groups", "version", "has_zero_point", "pre_quant_scale", "smoothquant_val")
"""`config_groups` are derived from the algorithms, and what vLLM reads are those."""
FP8_KEYS = ("activation_scheme", "fmt", "scale_fmt", "weight_block_size", "modules_to_not_convert", "expert_dtype")
KEPT = ("eh_proj", "mtp.fc", "mtp.fc.weight")


def _recognises(settings: Settings) -> bool:
    producer = settings.get("producer")
    by_modelopt = isinstance(producer, dict) and producer.get("name") == "modelopt"
    method = settings.get("quant_method")
    named = isinstance(method, str) and method.startswith("modelopt")
    return named or by_modelopt or settings.get("quant_algo") is not None


def _rules(settings: Settings) -> Rules:
    over_fp8 = settings.get("moe_quant_algo") is not None
    settings.only(KEYS, (*IDLE, *FP8_KEYS) if over_fp8 else IDLE)
    notes = _notes(settings)
    if over_fp8:
        return _experts_over_fp8(settings, notes)
    excluded = settings.names("exclude_modules", "ignore")
    matches = wildcards(excluded)
    if str(settings.get("quant_algo")).upper() == MIXED:
        return _by_layer(settings, notes)
    whole = _scheme(settings)
    if "exclude_modules" not in settings.values and "ignore" not in settings.values:
        problem = "says neither which modules are excluded nor that none is, so which are in 16 bits is unknown"
        raise ProfileError(f"{settings.where} {problem}; {REMEDY}")

    is_linear = linear_before_5(settings.config)

    def scheme_of(module: Module) -> Scheme | None:
        if not is_linear(module) or module.name.endswith(KEPT) or matches(module):
            return None
        return whole

    return Rules(scheme_of, one_by_one=may_tell_experts_apart(excluded), notes=notes)


def _by_layer(settings: Settings, notes: tuple[str, ...]) -> Rules:
    """A layer that is not named is in 16 bits. Experts are named one by one, or all of a layer together."""
    schemes = _named_layers(settings)
    found = _lookup(schemes)
    one_by_one = any(name.rpartition(".experts.")[2][:1].isdigit() for name in schemes)
    return Rules(found, one_by_one=one_by_one, notes=notes)


def _named_layers(settings: Settings) -> dict[str, Scheme]:
    """Name -> scheme. Real files name every expert, tens of thousands, in a few settings."""
    layers = settings.get("quantized_layers")
    if not isinstance(layers, dict) or not layers:
        raise settings.bad("quantized_layers", "is no mapping of modules to algorithms")
    known: dict[tuple[object, object], Scheme] = {}
    found: dict[str, Scheme] = {}
    for name, said in layers.items():
        key = (said.get("quant_algo"), said.get("group_size")) if type(said) is dict else (said, None)
        if type(key[0]) is not str or type(key[1]) not in (int, NoneType):
            raise settings.bad("quantized_layers", f"has {short(name)} without an algorithm")
        if key not in known:
            inner = dict(zip(("quant_algo", "group_size"), key, strict=True))
            known[key] = _scheme(Settings(inner, settings.place("quantized_layers")))
        found[name] = known[key]
    return found


def _lookup(schemes: Mapping[str, Scheme]) -> Callable[[Module], Scheme | None]:
    def scheme_of(module: Module) -> Scheme | None:
        for name in module.names:
            scheme = schemes.get(name)
            if scheme is not None:
                return scheme
        if module.part == "experts":
            return next((schemes[outer] for outer in module.parents if outer in schemes), None)
        return None

    return scheme_of


def _experts_over_fp8(settings: Settings, notes: tuple[str, ...]) -> Rules:
    """DeepSeek-V4's: routed experts that are named (or all) in `moe_quant_algo`, everything else as in its fp8 files.

    `ignore` there means not in this format, not in 16 bits.
    """
    native = fp8_rules(settings)
    algorithm = Settings({"quant_algo": settings.get("moe_quant_algo")}, settings.where)
    scheme, matches = _scheme(algorithm), wildcards(settings.names("ignore", "exclude_modules"))
    named = _lookup(_named_layers(settings)) if settings.get("quantized_layers") else lambda _: scheme

    def scheme_of(module: Module) -> Scheme | None:
        if module.part == "experts" and not matches(module):
            found = named(module)
            if found is not None:
                return found
        return native.scheme_of(module)

    return Rules(scheme_of, notes=notes)


def _scheme(settings: Settings) -> Scheme:
    algorithm = settings.choice("quant_algo", ALGORITHMS)
    return ALGORITHMS[algorithm](settings.whole("group_size", None, most=2**16))


def _notes(settings: Settings) -> tuple[str, ...]:
    said = settings.get("kv_cache_quant_algo") or settings.get("kv_cache_scheme")
    if said is None:
        return ()
    name = said if isinstance(said, str) else "8-bit"
    return (f"the checkpoint names an {name} KV cache, which runtimes may take or not; kv_quant=fp8 counts it",)


METHOD = Method("modelopt", _recognises, _rules)
