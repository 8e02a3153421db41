"""Every built-in family against transformers' class of its type: parameters by name, shape, block; and caches."""

from __future__ import annotations

from typing import Any

import pytest

from profiles.hf_config.defaults import known_to_transformers
from profiles.hf_config.families import FAMILIES
from profiles.hf_config.reader import model_tensors
from profiles.hf_config.text_model import text_model

pytest.importorskip("torch")

from family_configs import CONFIGS, NOT_RUN, STEPPED, UNFILLED
from family_judge import (
    as_file,
    blocks_of_ours,
    blocks_of_transformers,
    cached_bytes,
    promised_bytes,
    without_unfilled,
)
from transformers_defaults import DATA, read, text

CASES = [pytest.param({"model_type": t, **c}, id=f"{t}-{i}") for t, some in CONFIGS.items() for i, c in enumerate(some)]
PROMPTS = (21, 40)


@pytest.mark.parametrize("config", CASES)
def test_every_parameter_has_its_name_shape_and_block(config: dict[str, Any]) -> None:
    expected = blocks_of_transformers(config)
    if config["model_type"] in UNFILLED:
        pattern, key = UNFILLED[config["model_type"]]
        expected = without_unfilled(expected, pattern, config[key])
    for written in (config, as_file(config)):
        assert blocks_of_ours(model_tensors(written)) == expected


@pytest.mark.parametrize("family", sorted(CONFIGS.keys() - NOT_RUN.keys() - STEPPED.keys()))
def test_the_cache_holds_what_a_running_model_does(family: str) -> None:
    config = {"model_type": family, **CONFIGS[family][0]}
    caches = [layer.cache for layer in model_tensors(config).layers]
    for tokens in PROMPTS:
        held = cached_bytes(config, tokens)
        promised = [promised_bytes(cache, tokens) for cache in caches]
        assert promised == held if len(held) == len(promised) else sum(promised) == sum(held), tokens


@pytest.mark.parametrize("family", sorted(STEPPED))
def test_a_cache_that_grows_by_steps_is_never_larger_than_promised(family: str) -> None:
    config = {"model_type": family, **CONFIGS[family][0]}
    caches = [layer.cache for layer in model_tensors(config).layers]
    for tokens in (*PROMPTS, *STEPPED[family]):
        held = cached_bytes(config, tokens)
        promised = [promised_bytes(cache, tokens) for cache in caches]
        assert all(ours >= theirs for ours, theirs in zip(promised, held, strict=True)), tokens
        if tokens in STEPPED[family]:
            assert all(ours <= 1.05 * theirs for ours, theirs in zip(promised, held, strict=True)), tokens


def test_every_family_is_tried() -> None:
    alike = {name for name, family in FAMILIES.items() if family.defaults or name not in known_to_transformers()}
    tried = {text_model({"model_type": name, **config}).family for name, some in CONFIGS.items() for config in some}
    assert set(FAMILIES) - alike <= tried


def test_defaults_are_those_that_transformers_declares() -> None:
    assert DATA.read_text(encoding="utf-8") == text(read()), "run python tests/transformers_defaults.py"
