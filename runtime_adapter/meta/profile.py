"""Any architecture that transformers knows -> ModelTensors: build it on the meta device and read what it is.

Only a config is read: no remote code runs, nothing is downloaded, no weight is made. What cannot be told for certain
(which tensors are experts, what runs outside the layers, how the cache grows) is refused with ProfileError.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from profiles.document import short
from profiles.errors import MoeplanError, ProfileError
from profiles.hf_config.fields import MAX_EXPERTS, MAX_SIZE
from profiles.hf_config.reader import not_built_in
from profiles.tensors import ModelTensors
from runtime_adapter.meta.errors import BY_HAND, one_line

if TYPE_CHECKING:
    from torch import nn

MAX_LAYERS = 2_000
"""More modules than that take minutes to build; no known model comes near."""
PATTERN_KEYS = {"num_layers", "layers_block_type", "layer_types", "hybrid_override_pattern", "block_types"}
SIZE_ENDINGS = ("_size", "_dim", "_rank")
LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
DROPPED_KEYS = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "per_layer_quant")


def read_config(config: dict[str, Any]) -> ModelTensors:
    """The tensors of the text model that `config` (a parsed config.json) describes, as transformers would build it.

    Raises ProfileError with one line: transformers missing, an architecture unknown to it, a config it refuses, or a
    model whose blocks, active experts or cache are not certain.
    """
    family = config.get("model_type")
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise not_built_in(str(family)) from None
    from runtime_adapter.meta.model import model_tensors

    with offline_and_quiet():
        try:
            model, notes = build(config)
            tensors = model_tensors(model, str(family))
        except MoeplanError:
            raise
        except Exception as problem:  # a config object is foreign code: it may raise anything from any attribute
            raise ProfileError(
                f"config.json: transformers cannot tell its shapes: {one_line(problem)}; {BY_HAND}"
            ) from None
    note = f"shapes read from transformers' {type(model).__name__} on the meta device"
    return replace(tensors, notes=(note, *notes, *tensors.notes))


def build(config: dict[str, Any]) -> tuple[nn.Module, tuple[str, ...]]:
    """The causal LM of `config` on the meta device in bf16, and notes on what of the model it is.

    A model of text and more is built as its text model alone where transformers has a class for that, else whole.
    """
    import torch

    settings, notes = settings_of(config)
    kind, left_out = _class_of(settings)
    if left_out:
        notes += ("the text model only: other towers are left out",)
        inner = settings.get_text_config(decoder=True)
        tied = config.get("tie_word_embeddings")
        if isinstance(tied, bool) and "tie_word_embeddings" not in (config.get("text_config") or {}):
            inner.tie_word_embeddings = tied
        settings = inner
    try:
        with torch.device("meta"):
            model: nn.Module = kind._from_config(settings, dtype=torch.bfloat16)
    except Exception as problem:  # whatever a model's constructor raises means the same to the user
        raise ProfileError(
            f"config.json: {kind.__name__} refuses it: {one_line(problem)}; mend it or {BY_HAND}"
        ) from None
    return model.eval(), notes


def settings_of(config: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """transformers' own config object for a parsed config.json, whose sizes must all be given."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = config.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        from transformers import __version__

        raise ProfileError(
            f"model_type: {short(family)} is neither built in nor known to transformers {__version__}; "
            f"install a newer transformers or {BY_HAND}"
        )
    _check_sizes(config)
    clean = {key: value for key, value in config.items() if not str(key).startswith("_") and key not in DROPPED_KEYS}
    try:
        settings = CONFIG_MAPPING[family].from_dict(clean)
    except Exception as problem:  # pydantic-like validation of many kinds
        raise ProfileError(f"config.json: transformers refuses it: {one_line(problem)}; mend it") from None
    if getattr(settings, "is_encoder_decoder", False):
        raise ProfileError(f"model_type: {short(family)} has an encoder; only decoders are planned")
    return settings, _check_given(settings, config)


def _check_sizes(config: dict[str, Any], prefix: str = "", depth: int = 0) -> None:
    """Refuse impossible counts and sizes before anything is built: some would build for hours."""
    for name, value in config.items():
        key = str(name)
        if isinstance(value, dict) and depth < 3:
            _check_sizes(value, f"{prefix}{key}.", depth + 1)
        if type(value) is int and (most := _most(key)) and not 0 <= value <= most:
            raise ProfileError(f"{prefix}{key}: {short(value)} is not from 0 to {most}; mend it")


def _most(key: str) -> int | None:
    """The largest value that a key of this name may have; None where the name says nothing of a size or count."""
    if key in LAYER_COUNT_KEYS:
        return MAX_LAYERS
    is_size = key.endswith(SIZE_ENDINGS)
    if not is_size and not key.startswith(("num_", "n_")) and "num_experts" not in key:
        return None
    return MAX_EXPERTS if "expert" in key and not is_size else MAX_SIZE


def _check_given(settings: Any, config: dict[str, Any]) -> tuple[str, ...]:
    """Notes on sizes that the file leaves to transformers' class; ProfileError where it leaves out width or depth.

    Without those it would silently become another model. Official files do leave out sizes that a family shares
    (Gemma 3's vocabulary), so those are not refused.
    """
    text, given, prefix = settings.get_text_config(decoder=True), config, ""
    if text is not settings:
        prefix = next((f"{key}." for key in settings.sub_configs if getattr(settings, key, None) is text), "")
        given = config.get(prefix[:-1], config) if prefix else config
    blocks = [key for key in ("ffn_config",) if hasattr(text, key) and not isinstance(config.get(key), dict)]
    if blocks or not isinstance(given, dict):
        raise ProfileError(f"{(blocks or [prefix[:-1]])[0]}: missing; add it, as in the model's own config.json")
    by_class = []
    for size in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
        names = {size, *(k for k, v in text.attribute_map.items() if v == size), text.attribute_map.get(size, size)}
        value = number(text, size)
        if names & given.keys() or value is None or (size == "num_hidden_layers" and PATTERN_KEYS & given.keys()):
            continue
        if size in ("hidden_size", "num_hidden_layers"):
            raise ProfileError(f"{prefix}{size}: missing; add it, as in the model's own config.json")
        by_class.append(f"{size} {value}")
    heads, kv_heads = number(text, "num_attention_heads"), number(text, "num_key_value_heads")
    if heads is not None and kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        raise ProfileError(
            f"{prefix}num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}; mend one"
        )
    return (f"not in the file, so transformers' default: {', '.join(by_class)}",) if by_class else ()


def _class_of(settings: Any) -> tuple[Any, bool]:
    """The class to build, and whether it is for the text config inside `settings` alone."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    causal = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    inner = settings.get_text_config(decoder=True)
    if inner is not settings and isinstance(inner.model_type, str) and inner.model_type in causal:
        return getattr(transformers, causal[inner.model_type]), True
    for names in (causal, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES):
        if settings.model_type in names:
            return getattr(transformers, names[settings.model_type]), False
    raise ProfileError(f"model_type: {short(settings.model_type)} is not a causal language model; {BY_HAND}")


def number(settings: Any, key: str) -> int | None:
    """A whole number of a transformers config; None where it has none for the whole model (or one for each layer)."""
    try:
        value = getattr(settings, key, None)
    except Exception:  # a config that differs by layer raises an error of its own
        return None
    return value if type(value) is int else None


@contextmanager
def offline_and_quiet() -> Iterator[None]:
    """No look at the network (some vision towers would fetch weights), and no warnings about a model nobody runs."""
    from huggingface_hub import constants

    logger = logging.getLogger("transformers")
    online, level = constants.HF_HUB_OFFLINE, logger.level
    constants.HF_HUB_OFFLINE = True
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = online
        logger.setLevel(level)
