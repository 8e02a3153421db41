"""8-bit floats with a scale for each block or tensor (DeepSeek, Qwen, MiniMax, GLM), and 4-bit experts beside them.

Facts from transformers 5.23 (FineGrainedFP8Config, `should_convert_module`) and headers of published checkpoints.
"""

from __future__ import annotations

from profiles.errors import ProfileError
from profiles.formats.matching import hugging_face, may_tell_experts_apart
from profiles.formats.methods.method import Method
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme, fp8_block, fp8_tensor, mxfp4, mxfp8
from profiles.formats.settings import REMEDY, Settings

KEYS = (
    *("quant_method", "weight_block_size", "activation_scheme", "scale_fmt", "modules_to_not_convert"),
    *("ignored_layers", "expert_dtype", "modules_to_convert"),
)
IDLE = ("fmt", "dequantize", "kv_cache_scheme", "kv_cache_quant_algo")
ALWAYS_KEPT = ("lm_head", "head", "eh_proj", "mtp.fc", "indexer.weights_proj", "indexers_proj")
"""In 16 bits in every such checkpoint, listed or not. GLM lists the indexer's as `indexers_proj`, which none has."""
E8M0_FAMILIES = ("deepseek_ref",)
"""The sgl-project's 8-bit copies of DeepSeek-V4: scales in a byte. Elsewhere `scale_fmt` does not say how they are
stored: DeepSeek-V3.2 says ue8m0 and has fp32."""
FOUR_BIT_FAMILY = "deepseek_v4"


def fp8_rules(settings: Settings) -> Rules:
    """As the settings say, whatever else stands beside them."""
    experts = _expert_scheme(settings)
    linear = _linear_scheme(
        settings, one_byte=experts is not None or settings.config.get("model_type") in E8M0_FAMILIES
    )
    listed = settings.names("modules_to_not_convert", "ignored_layers")
    kept = hugging_face([*listed, *ALWAYS_KEPT], settings.place("modules_to_not_convert"))

    def scheme_of(module: Module) -> Scheme | None:
        if module.part in ("router", "embedding", "head") or kept(module):
            return None
        return experts or linear if module.part == "experts" else linear

    return Rules(scheme_of, one_by_one=may_tell_experts_apart(listed))


def _rules(settings: Settings) -> Rules:
    settings.only(KEYS, IDLE)
    if settings.get("modules_to_convert"):
        raise settings.bad("modules_to_convert", "is not known here: it stores more than projections in 8 bits")
    return fp8_rules(settings)


def _linear_scheme(settings: Settings, *, one_byte: bool) -> Scheme:
    static = 4 if settings.choice("activation_scheme", ("dynamic", "static"), "dynamic") == "static" else 0
    if "weight_block_size" in settings.values and settings.get("weight_block_size") is None:
        return fp8_tensor(4, static)
    if settings.get("quant_method") == "mxfp8" and settings.get("weight_block_size") is None:
        return mxfp8()
    block = settings.values.get("weight_block_size", [128, 128])
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and 1 <= n <= 2**20 for n in block):
        raise settings.bad("weight_block_size", "is not two whole numbers")
    if block == [1, 32] and (settings.get("scale_fmt") == "ue8m0" or settings.get("quant_method") == "mxfp8"):
        return mxfp8()
    return fp8_block(block[0], block[1], 1 if one_byte else 4, static)


def _expert_scheme(settings: Settings) -> Scheme | None:
    """`expert_dtype` stands at the top of the config, or beside the method."""
    holders = [settings.values, settings.config, settings.config.get("text_config")]
    said = next((h["expert_dtype"] for h in holders if isinstance(h, dict) and h.get("expert_dtype") is not None), None)
    if said is None and settings.config.get("model_type") == FOUR_BIT_FAMILY:
        problem = "missing, and DeepSeek-V4's experts are in 4 bits in some checkpoints and in 8 in others"
        raise ProfileError(f'expert_dtype: {problem}; add "expert_dtype": "fp4" or "fp8", or {REMEDY}')
    if said not in (None, "fp4", "fp8"):
        raise ProfileError(f"expert_dtype: {str(said)[:40]!r} is not known here (fp4 and fp8 are); {REMEDY}")
    return mxfp4() if said == "fp4" else None


def _recognises(settings: Settings) -> bool:
    return settings.get("quant_method") in ("fp8", "mxfp8") and settings.get("quant_algo") is None


METHOD = Method("fp8", _recognises, _rules)
