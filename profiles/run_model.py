"""The profile of the model that was measured: a preset's shapes, with the bytes of the file that was run."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from profiles.catalogue import near_names
from profiles.document import one_line, short
from profiles.errors import ProfileError
from profiles.load_model import load_profile
from profiles.model import Experts, KindBytes, Layer, ModelProfile
from profiles.presets import model_config_preset_name, model_config_presets
from profiles.run import Run
from profiles.run_quant import Weights, weights_of

SAME_SHAPE = {
    "deepseek-v3.1": "deepseek-v3", "deepseek-v3.1-terminus": "deepseek-v3", "deepseek-v3-r1": "deepseek-v3",
    "deepseek-r1t": "deepseek-r1", "deepseek-r1t2": "deepseek-r1", "deepseek-r1t2-chimera": "deepseek-r1",
    "deepseek-coder-v2": "deepseek-v2", "deepseek-coder-v2-lite": "deepseek-v2-lite",
    "qwen3-coder-30b-a3b": "qwen3-30b-a3b", "glm-4.6": "glm-4.5", "llama-4-scout-17b-16e": "llama-4-scout",
    "qwen2moe-57b.a14b": "qwen2-57b-a14b", "phimoe-16x3.8b": "phi-3.5-moe-instruct",
    "deepseek2-16b": "deepseek-v2-lite", "deepseek2-236b": "deepseek-v2", "deepseek2-671b": "deepseek-v3",
    "qwen3moe-30b.a3b": "qwen3-30b-a3b", "qwen3moe-235b.a22b": "qwen3-235b-a22b",
    "qwen3next-80b.a3b": "qwen3-next-80b-a3b-thinking", "llama-8x7b": "mixtral-8x7b", "llama-8x22b": "mixtral-8x22b",
    "glm4moe-106b.a12b": "glm-4.5-air", "glm4moe-355b.a32b": "glm-4.5", "llama4-17bx16e-scout": "llama-4-scout",
}  # fmt: skip
"""Other models with the shapes of a preset, and llama.cpp's names for sizes of an architecture."""
HARMLESS = {
    "instruct", "chat", "base", "thinking", "it", "hf", "gguf", "preview", "tng", "0324", "0528", "2507", "2508",
    "128k", "256k", "1m", "671b", "1t", "a32b", "v0.1",
}  # fmt: skip
"""Words that say nothing of the shape."""
LEAST_SCALE, MOST_SCALE = 0.4, 2.5


def preset_of(name: str) -> str:
    """The preset whose shapes the model has; ProfileError where there is none.

    >>> preset_of("DeepSeek-V3-0324/R1 671B"), preset_of("Qwen3-30B-A3B-Instruct-2507"), preset_of("qwen3moe 30B.A3B")
    ('deepseek-v3', 'qwen3-30b-a3b', 'qwen3-30b-a3b')
    """
    direct = model_config_preset_name(name)
    for spelling in (name, name.rsplit("/", 1)[-1]):
        words = _words(spelling)
        whole, plain = "-".join(words), "-".join(word for word in words if word not in HARMLESS)
        found = direct or SAME_SHAPE.get(whole) or _plain_names().get(plain) or SAME_SHAPE.get(plain)
        if found is not None:
            return found
    known = [*model_config_presets(), *SAME_SHAPE]
    hint = near_names(name, known)
    raise ProfileError(one_line(f"model: {short(name)} has the shapes of no preset, {hint} (or add its config.json)"))


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_/\-()]+", name.lower()) if word]


@cache
def _plain_names() -> dict[str, str]:
    """Presets by their names without harmless words."""
    return {"-".join(word for word in _words(name) if word not in HARMLESS): name for name in model_config_presets()}


def profile_of(run: Run) -> ModelProfile:
    """The model of `run`: the preset's shapes and what its file, its loader or its format's name say of its bytes.

    The bytes of all experts follow, in this order, from `file_bytes` less the rest of the model, or from the bits that
    the format's name means. ProfileError where the model or the format is unknown, or these do not go together.
    """
    for name in ("model", "quant"):
        if getattr(run, name) is None:
            raise ProfileError(f"{name}: not known; say it, e.g. read_runs(path, {name}=…)")
    assert run.model is not None
    assert run.quant is not None
    preset, weights = preset_of(run.model), weights_of(run.quant, run.engine)
    profile = _loaded(preset, weights.quant, weights.rest, 1.0)
    found = sum(layer.experts is not None for layer in profile.layers)
    if run.moe_layers is not None and run.moe_layers != found:
        raise ProfileError(f"moe_layers: {run.moe_layers}, but {preset}, whose shapes {run.model} has, has {found}")
    as_stored = _loaded(preset, weights.quant, weights.rest, _factor(run, profile, weights))
    return as_stored if run.top_k is None else _with_active(as_stored, run.top_k)


@lru_cache(maxsize=128)
def _loaded(preset: str, quant: str, rest: str | None, factor: float) -> ModelProfile:
    """The preset in these formats, its experts `factor` times as heavy. Runs of one file share it."""
    if factor == 1.0 and rest is None:
        return load_profile(preset, quant=quant)
    profile = _loaded(preset, quant, None, 1.0)
    if rest is not None:
        profile = _with_experts_of(_loaded(preset, rest, None, 1.0), profile)
    return profile.replace(
        layers=tuple(layer if layer.experts is None else scaled(layer, factor) for layer in profile.layers),
        notes=(*profile.notes, f"bytes of the experts times {factor:.4f}, so that they are those of the measured file"),
    )


def _factor(run: Run, profile: ModelProfile, weights: Weights) -> float:
    """By how much the experts' bytes differ from those of the mix whose shapes were loaded."""
    experts = [layer.experts for layer in profile.layers if layer.experts is not None]
    stored, params = sum(e.weight_bytes.gpu for e in experts), sum(e.params or 0 for e in experts)
    if not stored:
        return 1.0
    if "=" in weights.quant:  # two formats: no one file has these bytes
        return 1.0
    rest = profile.file_bytes - stored
    if run.file_bytes is not None:
        wanted = float(run.file_bytes - rest)
    elif weights.model_bits is not None:
        wanted = weights.model_bits / 8 * sum(b.params or 0 for b in profile.blocks) - rest
    elif weights.expert_bits is not None:
        wanted = weights.expert_bits / 8 * params
    else:
        return 1.0
    said = "file_bytes" if run.file_bytes is not None else "quant"
    expected = stored if weights.expert_bits is None else weights.expert_bits / 8 * params
    if weights.model_bits is None and not LEAST_SCALE <= wanted / expected <= MOST_SCALE:
        value = f"{run.file_bytes} bytes" if said == "file_bytes" else run.quant
        about = f"whose file has about {rest + expected:.0f}"
        raise ProfileError(f"{said}: {value} cannot be {run.model} as {run.quant}, {about}; mend one of them")
    return max(wanted, 1.0) / stored


def _with_experts_of(rest: ModelProfile, profile: ModelProfile) -> ModelProfile:
    pairs = zip(rest.layers, profile.layers, strict=True)
    layers = tuple(layer.replace(experts=other.experts) for layer, other in pairs)
    return rest.replace(layers=layers, quant=f"{profile.quant} experts, {rest.quant} else")


def scaled(layer: Layer, factor: float) -> Layer:
    """`layer` with `factor` times the bytes of its experts; their projections keep their proportions."""
    experts = layer.experts
    assert experts is not None
    stored = KindBytes(gpu=round(experts.weight_bytes.gpu * factor), cpu=round(experts.weight_bytes.cpu * factor))
    return layer.replace(
        experts=experts.replace(
            weight_bytes=stored, projection_bytes=_projections(experts, stored.gpu), expert_weight_bytes=None
        )
    )


def _projections(experts: Experts, total: int) -> dict[str, int] | None:
    if not experts.projection_bytes:
        return None
    parts = {name: n * total // experts.weight_bytes.gpu for name, n in experts.projection_bytes.items()}
    last = next(reversed(parts))
    return {**parts, last: parts[last] + total - sum(parts.values())}


def _with_active(profile: ModelProfile, top_k: int) -> ModelProfile:
    """The model as it was run with another number of experts a token."""
    try:
        layers = tuple(
            layer if layer.experts is None else layer.replace(experts=layer.experts.replace(active=top_k))
            for layer in profile.layers
        )
    except ProfileError as problem:
        raise ProfileError(f"top_k: {problem}") from None
    return profile.replace(layers=layers)
