"""Where in a config.json the text model is, and of which family it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families import FAMILIES
from profiles.hf_config.fields import Fields

NESTED = ("thinker_config", "text_config", "llm_config", "language_config")
"""Keys under which a model of text and more keeps the config of its text model, from the outside in."""
DISK_PREFIXES = {
    "aria": "language_model.model.", "diffusion_gemma": "model.decoder.", "ernie4_5_vl_moe": "model.",
    "kimi_k25": "language_model.model.", "kimi_k3": "language_model.model.", "llama4": "language_model.model.",
    "inkling_mm_model": "model.", "inkling2": "model.", "minimax_m3_vl": "language_model.model.", "step3p7": "model.",
    "qwen3_omni_moe": "thinker.model.",
}  # fmt: skip
"""`model_type` of the whole -> what its checkpoints write before the text model's `layers`."""
USUAL_PREFIX = "model.language_model."
TEXT_TYPES = {"inkling_mm_model": "inkling_text"}
"""`model_type` of the whole -> that of a text model that does not say it, where it is not the same and `_text`."""
FLAT = ("dots3_note", "glm5_next")
"""Types whose files may have the text model's keys at the top, without a `text_config`, as transformers reads them."""


@dataclass(frozen=True)
class TextModel:
    """The text model of a config.json: its family, and the `model_type` of the whole.

    `prefix` is what checkpoints write for its `model.`, "" where it is the whole.
    """

    family: str
    whole: str
    fields: Fields
    prefix: str


def text_model(config: Mapping[str, Any]) -> TextModel:
    """The family and the fields of the text model that `config` describes, or the outer family where none is built in.

    Raises ProfileError where nothing names the family.
    """
    outer, prefix, path = _family_of(config), "", ""
    family, found = outer, config
    while family not in FAMILIES:
        inner = next((key for key in NESTED if isinstance(found.get(key), dict)), None)
        if inner is None and family in FLAT and "text_config" not in found:
            family = f"{family}_text"
            break
        if inner is None and f"{family}_text" in FAMILIES:
            raise ProfileError("text_config: missing; add it, as in the model's own config.json")
        if inner is None:
            break
        whole, found = found, found[inner]
        path += f"{inner}."
        prefix = DISK_PREFIXES.get(outer, USUAL_PREFIX)
        candidates: tuple[str, ...] = (
            _family_of(found),
            TEXT_TYPES.get(family, f"{family}_text"),
            family,
            f"{outer}_text",
        )
        if any(isinstance(found.get(key), dict) for key in NESTED):
            candidates = candidates[:1]  # a wrapper itself: its text model is further in
        family = next((name for name in candidates if name in FAMILIES), candidates[0] or family)
        tied = whole.get("tie_word_embeddings")
        if isinstance(tied, bool) and "tie_word_embeddings" not in found:
            found = {**found, "tie_word_embeddings": tied}
    if not family:
        raise ProfileError("model_type: missing; add it, as in the model's own config.json")
    if family not in FAMILIES:
        return TextModel(outer or family, outer or family, Fields(config), "")
    own = {**found, "model_type": family}
    return TextModel(family, outer or family, Fields(own, path, FAMILIES[family].defaults or family), prefix)


def nested_text(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configs of text models inside `config`, from the outside in."""
    for key in NESTED:
        inner = config.get(key)
        if isinstance(inner, dict):
            yield inner
            yield from nested_text(inner)


def _family_of(config: Mapping[str, Any]) -> str:
    """The `model_type`, or the family that `architectures` stands for where that is missing or not a known one."""
    given = config.get("model_type")
    if given is not None and (not isinstance(given, str) or not given):
        raise ProfileError(f"model_type: {short(given)} is not text; write it as in the model's own file")
    if given in FAMILIES:
        return str(given)
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    return (_by_architecture().get(first) if isinstance(first, str) else None) or given or ""


@cache
def _by_architecture() -> dict[str, str]:
    return {kind: name for name, family in FAMILIES.items() for kind in family.architectures}
