"""auto-round: `packing_format` says whose tensors it writes; `extra_config` changes single modules by name or regex.

Facts from auto-round 0.16.1 (export, `convert_model.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from profiles.formats.matching import may_tell_experts_apart, searched
from profiles.formats.methods.method import Method, named
from profiles.formats.module import Matches, Module, Rules
from profiles.formats.schemes import Scheme, awq, fp8_block, fp8_channel, fp8_tensor, gptq, mxfp4, mxfp8, nvfp4
from profiles.formats.settings import Settings

KEYS = (
    *("quant_method", "bits", "group_size", "packing_format", "data_type", "extra_config", "block_name_to_quantize"),
    *("modules_to_not_convert", "modules_in_block_to_quantize", "act_bits", "act_dynamic", "act_data_type"),
    *("act_group_size", "to_quant_block_names", "super_bits", "super_group_size", "quant_lm_head", "weight_format"),
)
IDLE = (
    *("sym", "autoround_version", "iters", "low_gpu_mem_usage", "nsamples", "seqlen", "batch_size", "lr", "minmax_lr"),
    *(
        "enable_minmax_tuning",
        "enable_quanted_input",
        "gradient_accumulate_steps",
        "amp",
        "act_sym",
        "backend",
        "provider",
    ),
    *(
        "enable_norm_bias_tuning",
        "scale_dtype",
        "not_use_best_mse",
        "dynamic_max_gap",
        "static_kv_dtype",
        "enable_alg_ext",
    ),
    *("damp_percent", "desc_act", "true_sequential", "zero_point", "version", "dataset", "static_attention_dtype"),
    *("ignore_layers", "modules_in_block_to_quantize_by_user", "super_sym", "supported_types", "regex_config"),
    *("inner_support_types", "layer_config", "transform_config", "rotation_config"),
)
OVERRIDES = ("bits", "group_size", "data_type", "act_bits", "act_data_type", "act_dynamic", "act_group_size")


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    plain = _scheme(settings, {})
    exact, regexes = _overrides(settings)
    kept = settings.names("modules_to_not_convert")
    kept_matches = searched(kept, settings.place("modules_to_not_convert"))
    inside, blocks = settings.names("modules_in_block_to_quantize"), _blocks(settings)
    within = searched(inside, settings.place("modules_in_block_to_quantize"))

    def scheme_of(module: Module) -> Scheme | None:
        if module.part in ("router", "embedding"):
            return None
        for name in module.names:
            if name in exact:
                return exact[name]
        found = next((scheme for matches, scheme in regexes if matches(module)), plain)
        if module.part == "head" or kept_matches(module) or (inside and not within(module)):
            return None
        return found if not blocks or any(name.startswith(blocks) for name in module.names) else None

    return Rules(scheme_of, one_by_one=may_tell_experts_apart([*settings.mappings("extra_config"), *kept]))


def _overrides(settings: Settings) -> tuple[dict[str, Scheme | None], list[tuple[Matches, Scheme | None]]]:
    """Names of whole modules, and regexes: those that have more than a name's characters."""
    exact: dict[str, Scheme | None] = {}
    regexes: list[tuple[Matches, Scheme | None]] = []
    for name, change in settings.mappings("extra_config").items():
        change.only(OVERRIDES, IDLE)
        scheme = _scheme(settings, change.values)
        exact[name] = scheme
        if set(name) & set("*^$()[]+?|\\"):
            regexes.append((searched([name], settings.place("extra_config")), scheme))
    return exact, regexes


def _blocks(settings: Settings) -> tuple[str, ...]:
    """Names that come before the modules that are packed: a text with commas, or a list."""
    key = "block_name_to_quantize" if settings.get("block_name_to_quantize") is not None else "to_quant_block_names"
    value = settings.get(key)
    names = value.split(",") if isinstance(value, str) else value
    if names is None:
        return ()
    flat = (
        [n for part in names for n in (part if isinstance(part, list) else [part])] if isinstance(names, list) else []
    )
    if not flat or not all(isinstance(name, str) and name.strip() for name in flat):
        raise settings.bad(key, "is not a list of names")
    return tuple(f"{name.strip()}." for name in flat)


def _scheme(settings: Settings, change: Mapping[str, object]) -> Scheme | None:
    both = Settings({**settings.values, **change}, settings.where)
    bits, group = both.whole("bits", most=32), both.group("group_size", 128)
    if bits >= 16:
        return None
    packing, data_type = str(both.get("packing_format") or "auto_round:auto_gptq"), str(both.get("data_type") or "int")
    static = 4 if both.get("act_dynamic") is False and both.whole("act_bits", 16) < 16 else 0
    if "mx" in data_type and "fp" in data_type and bits in (4, 8):
        return mxfp4() if bits == 4 else mxfp8()
    if "nv" in data_type and bits == 4:
        return nvfp4(8)
    if "fp" in data_type and bits == 8:
        return fp8_tensor(2, static and 2) if group == 0 else fp8_block(128, 128) if group == 128 else fp8_channel(2)
    if "fp" in data_type or not data_type.startswith("int"):
        raise both.bad("data_type", f"is not known here with {bits} bits")
    if "awq" in packing:
        return awq(bits, group)
    if "gptq" in packing or "exllama" in packing:
        if bits not in (2, 3, 4, 8):
            raise both.bad("bits", "is none of 2, 3, 4, 8")
        return gptq(bits, group, g_idx="gptqmodel" in packing or ":" not in packing)
    raise both.bad("packing_format", "is not known here")


METHOD = Method("auto-round", named("auto-round", "auto_round", "intel/auto-round"), _rules)
