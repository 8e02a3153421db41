"""AMD's quark: a scheme for all, others by layer type or by wildcard, and names that are left out.

Facts from amd-quark 0.13 (`quant_config_parser`: the first matching wildcard, else the layer's type, else the whole's;
what is excluded stays as it was).
"""

from __future__ import annotations

from profiles.formats.matching import may_tell_experts_apart, wildcards
from profiles.formats.methods.method import Method, before_5, linear_before_5, named
from profiles.formats.module import Matches, Module, Rules
from profiles.formats.schemes import Scheme, fp8_channel, fp8_tensor, int8, mxfp4, mxfp6, mxfp8
from profiles.formats.settings import Settings

KEYS = (
    *("quant_method", "global_quant_config", "layer_quant_config", "layer_type_quant_config", "exclude", "export"),
    *("kv_cache_quant_config", "quant_mode"),
)
IDLE = (
    *("algo_config", "version", "softmax_quant_spec", "kv_cache_post_rope", "kv_cache_group", "log_severity_level"),
    *("min_kv_scale", "pre_quant_opt_config", "export_kv_cache"),
)
PART_KEYS = ("weight", "input_tensors", "output_tensors", "bias", "target_device")
MX_TYPES = ("fp4", "mx", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3")
SCALE_BYTES = 2
"""Scales are in the model's own type."""
SPEC_KEYS = ("dtype", "qscheme", "group_size", "ch_axis", "is_dynamic", "scale_format", "mx_element_dtype", "symmetric")
SPEC_IDLE = (
    *("observer_cls", "round_method", "scale_calculation_mode", "scale_type", "is_scale_quant", "qat_spec"),
    *("zero_point_type", "enable_buffer_reuse", "max_input_numel"),
)


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    excluded, whole = settings.names("exclude"), settings.inside("global_quant_config")
    if whole is None:
        raise settings.bad("global_quant_config", "is missing")
    plain, by_name = _scheme(whole), settings.mappings("layer_quant_config")
    layers: list[tuple[Matches, Scheme | None]] = [
        (wildcards([name], parents=False), _scheme(part)) for name, part in by_name.items()
    ]
    types = {name: _scheme(part) for name, part in settings.mappings("layer_type_quant_config").items()}
    out = wildcards(excluded, parents=False)

    is_linear, packs_experts = linear_before_5(settings.config), before_5(settings.config)

    def scheme_of(module: Module) -> Scheme | None:
        if not is_linear(module) or out(module):
            return None
        if module.part == "experts" and not packs_experts:
            return None
        default = types.get("nn.Linear", types.get("Linear", plain))
        return next((scheme for matches, scheme in layers if matches(module)), default)

    return Rules(scheme_of, one_by_one=may_tell_experts_apart([*excluded, *by_name]))


def _scheme(part: Settings) -> Scheme | None:
    part.only(PART_KEYS)
    spec = part.inside("weight")
    if spec is None:
        return None
    spec.only(SPEC_KEYS, SPEC_IDLE)
    kind = str(spec.get("dtype")).lower()
    element = str(spec.get("mx_element_dtype") or "").lower()
    inputs = part.get("input_tensors")
    static = isinstance(inputs, dict) and inputs.get("is_dynamic") is False
    by_32 = spec.get("qscheme") == "per_group" and spec.whole("group_size", 32) == 32
    if by_32 and kind in MX_TYPES and "e8m0" in str(spec.get("scale_format") or "e8m0").lower():
        wide = element or kind
        return mxfp4() if "fp4" in wide else mxfp6() if "fp6" in wide else mxfp8()
    if kind == "fp8_e4m3":
        scheme = spec.choice("qscheme", ("per_tensor", "per_channel", "per_block"))
        extra = SCALE_BYTES if static else 0
        if scheme == "per_block":
            raise spec.bad("qscheme", "has sizes that are not known here")
        return fp8_tensor(SCALE_BYTES, extra) if scheme == "per_tensor" else fp8_channel(SCALE_BYTES, extra)
    if kind == "int8" and spec.get("qscheme") == "per_channel" and spec.flag("symmetric", True):
        return int8(SCALE_BYTES, extra_bytes=SCALE_BYTES if static else 0)
    raise spec.bad("dtype", f"is not known here with qscheme {spec.get('qscheme')}")


METHOD = Method("quark", named("quark"), _rules)
