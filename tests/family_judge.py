"""What transformers makes of a config, to hold families against: parameters by block, bytes in its cache."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
import transformers

from profiles.tensors import Cache, ModelTensors, Tensor
from runtime_adapter.meta.profile import _class_of, offline_and_quiet

TOWERS = re.compile(
    r"visual|vision(?!_moe)|audio|image|multi_modal|connector|talker|code2wav|embed_vision|pixel|resampler|view_separator"
)
PLAIN = (
    (r"\b(?:language_model|text_model)\.", ""), (r"^model\.decoder\.", "model."),
    (r"^transformer\.blocks\.", "model.layers."), (r"^transformer\.wte\.", "model.embed_tokens."),
    (r"^transformer\.norm_f\.", "model.norm."),
)  # fmt: skip
"""Names of what surrounds the layers -> those of most models; layers are called by their own names."""
SAME_WEIGHTS = re.compile(r"^model\.encoder\.")
"""A second stack with the very same parameters (DiffusionGemma's encoder)."""
ROUTED = re.compile(
    r"(?<![a-z_])(?<!self_attention\.)experts\b(?!\.post_expert_norm)|\bmoe_experts\b|\.mlp\.(?:in|out)put_linear\b"
)
"""Parameters of routed experts. JetMoE calls attention's own so, and those of its FFN nothing."""
Shapes = dict[str, tuple[int, ...]]


@dataclass
class Blocks:
    """Shapes by name: outside the layers, and of each layer without and with its routed experts."""

    outside: Shapes = field(default_factory=dict)
    attention: dict[int, Shapes] = field(default_factory=dict)
    experts: dict[int, Shapes] = field(default_factory=dict)


def native(config: Mapping[str, Any]) -> Any:
    """transformers' own config object, of the type that `config` names."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = {key: value for key, value in config.items() if key != "model_type"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CONFIG_MAPPING[config["model_type"]](**values)


def as_file(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that transformers writes of `config`: every key that the class has."""
    with offline_and_quiet():
        written: dict[str, Any] = json.loads(native(config).to_json_string(use_diff=False))
    return {key: value for key, value in written.items() if key != "per_layer_config" or value}


def build(config: Mapping[str, Any], device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The causal model of `config`, of its text model where there is a class for that alone."""
    with offline_and_quiet():
        settings = native(config)
        kind, inner = _class_of(settings)
        settings = settings.get_text_config(decoder=True) if inner else settings
        with torch.device(device):
            return kind._from_config(settings, dtype=dtype).eval()


def blocks_of_transformers(config: Mapping[str, Any]) -> Blocks:
    """Every parameter of the text model on the meta device, by block; a tied head counts as one of its own."""
    found = Blocks()
    for name, parameter in build(config, "meta").named_parameters(remove_duplicate=False):
        if not TOWERS.search(name) and not SAME_WEIGHTS.search(name):
            plain = name
            for pattern, usual in PLAIN:
                plain = re.sub(pattern, usual, plain)
            _put(found, plain if plain.startswith(("model.", "lm_head.")) else f"model.{plain}", tuple(parameter.shape))
    return found


def blocks_of_ours(model: ModelTensors) -> Blocks:
    found = Blocks()
    for tensor in model.embedding + model.head:
        found.outside[tensor.name] = tensor.shape
    for index, layer in enumerate(model.layers):
        found.attention[index] = {tensor.name: tensor.shape for tensor in layer.attention}
        assert len(found.attention[index]) == len(layer.attention), f"a name twice in layer {index}"
        if layer.experts:
            found.experts[index] = {tensor.name: _as_stored(tensor) for tensor in layer.experts.tensors}
    found.attention = {index: shapes for index, shapes in found.attention.items() if shapes}
    return found


def _as_stored(tensor: Tensor) -> tuple[int, ...]:
    """The shape of the parameter itself: DBRX stacks a layer's experts along the rows of one matrix."""
    count, *shape = tensor.shape
    return (count * shape[0], *shape[1:]) if ".ffn.experts.mlp." in tensor.name else tensor.shape


def _put(found: Blocks, name: str, shape: tuple[int, ...]) -> None:
    match = re.match(r"model\.layers\.(\d+)\.", name)
    if match is None:
        found.outside[name] = shape
    elif ROUTED.search(name):
        found.experts.setdefault(int(match[1]), {})[name] = shape
    else:
        found.attention.setdefault(int(match[1]), {})[name] = shape


def cached_bytes(config: Mapping[str, Any], tokens: int) -> list[int]:
    """Bytes that transformers' own cache holds in each of its layers after a real prompt: one sequence, bf16, CPU."""
    torch.manual_seed(0)
    model = _with_fp32_parts(build(config, "cpu"))
    own = getattr(sys.modules[type(model).__module__], "MiniMaxCache", None)
    cache = own() if own else transformers.DynamicCache(config=model.config)
    key = "cache_params" if "cache_params" in model.forward.__code__.co_varnames else "past_key_values"
    with torch.no_grad():
        model(input_ids=torch.zeros((1, tokens), dtype=torch.long), use_cache=True, **{key: cache})
    layers, states = cache.layers, getattr(cache, "linear_cache", [])
    return [_bytes([vars(layer) if layer else (), state]) for layer, state in zip_longest(layers, states, fillvalue=())]


def _with_fp32_parts(model: Any) -> Any:
    """The model with the parameters in fp32 that loading a checkpoint would leave so, whatever type is asked."""
    kept = re.compile("|".join(map(re.escape, model._keep_in_fp32_modules_strict or ())) or r"(?!)")
    for name, parameter in model.named_parameters():
        if kept.search(name):
            parameter.data = parameter.data.float()
    return model


def _bytes(held: Any, seen: set[int] | None = None) -> int:
    """Bytes of all floating-point tensors in `held`, containers within it included, each once."""
    seen = set() if seen is None else seen
    if isinstance(held, torch.Tensor):
        counts = held.is_floating_point() and id(held) not in seen
        seen.add(id(held))
        return held.numel() * held.element_size() if counts else 0
    if isinstance(held, Mapping):
        return sum(_bytes(value, seen) for value in held.values())
    if isinstance(held, (list, tuple)):
        return sum(_bytes(value, seen) for value in held)
    return 0


def promised_bytes(cache: Cache, tokens: int) -> int:
    """Bytes that a layer caches by our reading; a window keeps one token less than it sees, the newest joins them."""
    kept = tokens if cache.window_tokens is None else min(tokens, cache.window_tokens - 1)
    per_token = -(-2 * cache.values_per_token // cache.tokens_per_entry)
    return per_token * kept + 2 * cache.state_values + 4 * cache.state_fp32_values


def without_unfilled(found: Blocks, pattern: str, rows: int) -> Blocks:
    """The same, where the experts' parameters that match `pattern` have `rows` rows only."""
    for shapes in found.experts.values():
        shapes.update({name: (rows, *shape[1:]) for name, shape in shapes.items() if re.search(pattern, name)})
    return found
