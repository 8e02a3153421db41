"""torchao: one config for every linear module, or one for each name.

Facts from torchao 0.18.0 and transformers 5.23, which knows linear modules only: routed experts stay in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from profiles.formats.matching import compiled, hugging_face
from profiles.formats.methods.method import Method, named
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme, fp8_channel, int8
from profiles.formats.settings import Settings

KEYS = ("quant_method", "quant_type", "modules_to_not_convert", "include_input_output_embeddings")
IDLE = ("untie_embedding_weights", "quant_type_kwargs")


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    if settings.flag("include_input_output_embeddings"):
        raise settings.bad("include_input_output_embeddings", "is not known here: it packs the embedding too")
    quant = settings.inside("quant_type")
    default = quant.inside("default") if quant is not None else None
    if default is None:
        raise settings.bad("quant_type", "says no config under default")
    by_name = _by_name(default)
    listed = settings.names("modules_to_not_convert")
    kept = hugging_face([*listed, "lm_head"], settings.place("modules_to_not_convert"))

    def scheme_of(module: Module) -> Scheme | None:
        return None if module.part != "linear" or kept(module) else by_name(module)

    return Rules(scheme_of, notes=("routed experts are in 16 bits: they are parameters in transformers 5",))


def _by_name(default: Settings) -> Callable[[Module], Scheme | None]:
    """A name, a regex of the whole name (`re:`), or `_default`, of the module or its weight."""
    if default.get("_type") not in ("FqnToConfig", "ModuleFqnToConfig"):
        scheme = _scheme(default)
        return lambda _: scheme
    data = default.inside("_data")
    key = "fqn_to_config" if data is not None and "fqn_to_config" in data.values else "module_fqn_to_config"
    parts = data.mappings(key) if data is not None else {}
    schemes = {name: _scheme(part) for name, part in parts.items()}
    patterns = [name for name in schemes if name.startswith("re:")]
    regexes = [(compiled(name[3:], default.where, whole=True), schemes[name]) for name in patterns]

    def found(module: Module) -> Scheme | None:
        names = [full for name in module.names for full in (f"{name}.weight", name)]
        exact = next((schemes[name] for name in names if name in schemes), None)
        by_regex = next((s for regex, s in regexes for name in names if regex.search(name)), schemes.get("_default"))
        return exact or by_regex

    return found


def _scheme(part: Settings) -> Scheme:
    kind, data = part.get("_type"), part.inside("_data")
    values: Mapping[str, Any] = data.values if data is not None else {}
    if kind in ("Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig"):
        return fp8_channel()
    if kind in ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"):
        group = values.get("group_size")
        return int8(4, group if isinstance(group, int) and group > 0 else None, zero_bytes=1)
    if kind in ("IntxWeightOnlyConfig", "Int8DynamicActivationIntxWeightConfig"):
        packing, inner = (
            values.get("intx_packing_format"),
            (values.get("granularity") or values.get("weight_granularity")),
        )
        group = inner.get("_data", {}).get("group_size") if isinstance(inner, dict) else None
        unpacked = isinstance(packing, dict) and packing.get("_data") == "UNPACKED_TO_INT8"
        if unpacked and (group is None or (isinstance(group, int) and group > 0)):
            return int8(2, group, zero_bytes=1)  # a value a byte, whatever its bits
    raise part.bad("_type", "is not known here")


METHOD = Method("torchao", named("torchao"), _rules)
