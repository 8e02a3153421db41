"""compressed-tensors (llm-compressor): groups of targets with a scheme each, and names that are ignored.

Facts from compressed-tensors 0.20.1 (compressors, `utils/match.py`) and vLLM's reader of these configs.
"""

from __future__ import annotations

from collections.abc import Callable

from profiles.formats.matching import compressed_tensors, may_tell_experts_apart
from profiles.formats.methods.method import Method, linear_before_5, named
from profiles.formats.module import Matches, Module, Rules
from profiles.formats.schemes import Scheme, fp8_block, fp8_channel, fp8_tensor, int8, mxfp4, mxfp6, mxfp8, nvfp4
from profiles.formats.schemes import packed_int as packed
from profiles.formats.settings import Settings

LINEAR = ("Linear", "LinearBase")
"""What a target may call a linear module; vLLM's own class stands for it too."""
OTHER_CLASSES = ("Embedding", "Attention", "Conv1d", "Conv2d", "LayerNorm")
FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized"),
    *("mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized", "mixed-precision", "dense"),
)
KEYS = (
    *("quant_method", "format", "config_groups", "ignore", "quantization_status", "sparsity_config"),
    *("transform_config", "kv_cache_scheme"),
)
IDLE = ("global_compression_ratio", "version", "run_compressed", "dequantize", "use_optimized_inference")
GROUP_KEYS, GROUP_IDLE = ("targets", "weights", "input_activations", "format"), ("output_activations",)
WEIGHT_KEYS = (
    *("num_bits", "type", "strategy", "group_size", "block_structure", "symmetric", "actorder"),
    *("scale_dtype", "zp_dtype", "dynamic"),
)
WEIGHT_IDLE = ("observer", "observer_kwargs")
SCALE_BYTES = 2
"""Scales are in the model's own type, also those of fp8."""


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    for key in ("sparsity_config", "transform_config"):
        inner = settings.inside(key)
        if inner is not None and inner.get("format") != "dense" and inner.values:
            raise settings.bad(key, "is not understood and may change the bytes of weights")
    whole = settings.choice("format", FORMATS, "dense")
    ignore = settings.names("ignore")
    ignored = compressed_tensors(ignore, settings.place("ignore"), LINEAR)
    groups = settings.mappings("config_groups")
    if not groups:
        raise settings.bad("config_groups", "names no group of modules")
    found = [_group(group, whole) for group in groups.values()]
    targets = [name for group in groups.values() for name in group.names("targets")]

    is_linear = linear_before_5(settings.config)

    def scheme_of(module: Module) -> Scheme | None:
        if not is_linear(module) or ignored(module):
            return None
        for exactly in (True, False):  # names and regexes come before classes
            for by_name, by_class, scheme in found:
                if by_name(module) if exactly else by_class:
                    return scheme
        return None

    return Rules(
        scheme_of=scheme_of,
        one_by_one=may_tell_experts_apart([*ignore, *targets]),
        notes=_notes(settings),
    )


def _group(group: Settings, whole: str) -> tuple[Matches, bool, Scheme | None]:
    """Which modules are meant by name, whether all linear ones are, and how they are stored."""
    group.only(GROUP_KEYS, GROUP_IDLE)
    targets = group.names("targets")
    classes = [name for name in targets if not name.startswith("re:") and "." not in name and name != "lm_head"]
    stray = next((name for name in classes if name not in (*LINEAR, *OTHER_CLASSES)), None)
    if not targets or stray is not None:
        raise group.bad("targets", f"names {stray or 'nothing'}, which is no class or module that is known here")
    weights = group.inside("weights")
    name = whole if group.get("format") is None else group.choice("format", FORMATS)
    scheme = None if weights is None or name == "dense" else _scheme(weights, group, name)
    return compressed_tensors(targets, group.place("targets")), not set(LINEAR).isdisjoint(classes), scheme


def _scheme(weights: Settings, group: Settings, name: str) -> Scheme:
    weights.only(WEIGHT_KEYS, WEIGHT_IDLE)
    activations = group.inside("input_activations")
    static = activations is not None and activations.get("dynamic") is False
    if name == "nvfp4-pack-quantized":
        return nvfp4(4 + 4 * (activations is not None))
    by_name: dict[str, Callable[[], Scheme]] = {
        "mxfp4-pack-quantized": mxfp4, "mxfp6-pack-quantized": mxfp6, "mxfp8-quantized": mxfp8,
    }  # fmt: skip
    if name in by_name:
        return by_name[name]()
    bits = weights.whole("num_bits", most=8)
    strategy, size = _strategy(weights), weights.group("group_size", None)
    zeros = not weights.flag("symmetric", True)
    static_bytes = (
        SCALE_BYTES * static if activations is not None and activations.flag("symmetric", True) else 3 * static
    )
    if name in ("float-quantized", "naive-quantized") and weights.choice("type", ("float", "int"), "int") == "float":
        if strategy == "block":
            rows, columns = _block(weights)
            return fp8_block(rows, columns, SCALE_BYTES, static_bytes)
        if strategy in ("tensor", "channel"):
            return (fp8_tensor if strategy == "tensor" else fp8_channel)(SCALE_BYTES, static_bytes)
        return fp8_block(1, weights.whole("group_size"), SCALE_BYTES, static_bytes)
    if name in ("int-quantized", "naive-quantized") and strategy in ("channel", "group"):
        return int8(SCALE_BYTES, size if strategy == "group" else None, static_bytes, zero_bytes=zeros)
    if name == "pack-quantized" and strategy in ("channel", "group"):
        g_idx = weights.get("actorder") in ("group", True)
        return packed(bits, size if strategy == "group" else None, zeros=zeros, g_idx=g_idx)
    raise weights.bad("strategy", f"is not known for format {name} with {bits} bits")


def _strategy(weights: Settings) -> str:
    """What is given, or as the library infers it from the group's size."""
    size = weights.get("group_size")
    inferred = "tensor" if size is None else "channel" if size == -1 else "group"
    known = ("tensor", "channel", "group", "tensor_group", "block")
    return weights.choice("strategy", known, inferred)


def _block(weights: Settings) -> tuple[int, int]:
    sizes = weights.get("block_structure")
    if isinstance(sizes, str) and sizes.count("x") == 1:
        sizes = [int(part) if part.isdecimal() else part for part in sizes.split("x")]
    if isinstance(sizes, list) and len(sizes) == 2 and all(type(n) is int and 1 <= n <= 2**20 for n in sizes):
        return sizes[0], sizes[1]
    raise weights.bad("block_structure", "is not two whole numbers")


def _notes(settings: Settings) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    status = settings.choice("quantization_status", ("compressed", "frozen"), "compressed")
    if status != "compressed":
        notes += (f"quantization_status {status}: counted as packed, as vLLM reads such files",)
    if settings.get("kv_cache_scheme") is not None:
        notes += ("the checkpoint names an 8-bit KV cache, which runtimes may take or not; kv_quant=fp8 counts it",)
    return notes


METHOD = Method("compressed-tensors", named("compressed-tensors", "compressed_tensors"), _rules)
