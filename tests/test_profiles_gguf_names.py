"""Files predicted from a config.json: in names and shapes that llama.cpp's converter writes and its loader accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from family_configs import CONFIGS
from gguf_files import Shape, T
from llama_cpp_files import accepted, architectures, known, tensors
from real_gguf import REAL

from profiles.formats.gguf_layout import WHOLE_KV_B, predicted_file
from profiles.formats.gguf_names import ARCHITECTURES, LIKE, file_architecture, layer_name
from profiles.hf_config.families import FAMILIES
from profiles.hf_config.reader import model_tensors
from profiles.presets import model_config_preset, model_config_presets
from profiles.tensors import ModelTensors

CONVERTED = yaml.load(Path(__file__).with_name("llama_cpp_converted.yaml").read_text(), yaml.CSafeLoader)["families"]
NO_DENSE = ("mellum", "qwen2moe", "qwen3moe", "qwen3vlmoe")
"""Architectures that have no layer without experts, whatever a config may ask for."""


FOLDED = ("ssm_a", "ssm_d", "ssm_norm.weight")
"""Vectors that files of some architectures fold by heads or groups; F32 in any shape."""


def plain(name: str, shape: Shape) -> Shape:
    """Without trailing ones, which mean nothing to ggml; folded vectors flat."""
    if name.endswith(FOLDED):
        return (prod(shape),)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def names_of(model: ModelTensors) -> set[str]:
    return {re.sub(r"blk\.[0-9]+\.", "", tensor.name) for tensor, _ in predicted_file(model, "f32")}


def is_accepted(name: str, architecture: str) -> bool:
    """Scales may be beside any weight (see the table's head)."""
    plain_name = re.sub(r"\.(input_)?scale$", ".weight", name)
    return bool({name, plain_name} & accepted(architecture))


@pytest.mark.parametrize("family", sorted(set(CONVERTED) & set(FAMILIES)))
def test_the_predicted_file_is_the_converters(family: str) -> None:
    case = CONVERTED[family]
    model = model_tensors({"model_type": family, **case["config"]})
    found = {tensor.name: plain(tensor.name, tensor.shape) for tensor, _ in predicted_file(model, "f32")}
    wanted = {name: plain(name, shape) for name, shape, _ in tensors(case)}
    if family in WHOLE_KV_B:  # published files are older than the split
        halves = {name for name in wanted if ".attn_k_b." in name or ".attn_v_b." in name}
        wanted = {name: shape for name, shape in wanted.items() if name not in halves}
        found = {name: shape for name, shape in found.items() if ".attn_kv_b." not in name}
        assert halves
    assert found == wanted
    assert file_architecture(family) == case["architecture"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_name_is_one_that_llama_cpp_accepts(family: str) -> None:
    architecture = file_architecture(family)
    if architecture not in architectures():
        return  # dense, or not known to llama.cpp
    for config in CONFIGS.get(family, []):
        model = model_tensors({"model_type": family, **config})
        unknown = {name for name in names_of(model) if not is_accepted(name, architecture)}
        assert unknown == {name for name in unknown if is_optional(name, architecture, config)}, (family, architecture)


def is_optional(name: str, architecture: str, config: dict[str, Any]) -> bool:
    """Whether the name comes of an option of a config that no model of llama.cpp's architecture has."""
    asks_for_biases = any("bias" in key and value is True for key, value in flat(config))
    is_dense = name in ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
    return (asks_for_biases and name.endswith(".bias")) or (is_dense and architecture in NO_DENSE)


def flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from flat(value)


@pytest.mark.parametrize("preset", model_config_presets())
def test_presets_are_predicted_in_accepted_names(preset: str) -> None:
    config: Any = model_config_preset(preset)
    if not isinstance(config, dict):
        return
    model = model_tensors(config)
    architecture = file_architecture(model.architecture)
    if architecture in architectures():
        assert {name for name in names_of(model) if not is_accepted(name, architecture)} == set()


@pytest.mark.parametrize("name", REAL)
def test_published_files_of_these_tests_have_accepted_names(name: str) -> None:
    architecture, _, found = REAL[name]()
    names = {re.sub(r"blk\.[0-9]+\.", "", tensor) for tensor, _, _ in found}
    assert {each for each in names if not is_accepted(each, architecture)} == set()


def test_names_once_wrong() -> None:
    """The four that made llama.cpp refuse a predicted file."""
    assert layer_name("post_attention_layernorm.weight", "qwen3moe") == "ffn_norm.weight"
    assert layer_name("post_attention_layernorm.weight", "glm4moe") == "post_attention_norm.weight"
    assert layer_name("self_attn.sinks", "gpt-oss") == "attn_sinks.weight"
    assert layer_name("linear_attn.dt_bias", "qwen3next") == "ssm_dt.bias"
    assert layer_name("mlp.gate.e_score_correction_bias", "deepseek2") == "exp_probs_b.bias"
    config = {"model_type": "deepseek_v3", **CONFIGS["deepseek_v3"][0]}
    corrections = [t for t, _ in predicted_file(model_tensors(config), "f32") if "exp_probs_b" in t.name]
    assert [(t.name, t.shape) for t in corrections][:1] == [("blk.1.exp_probs_b.bias", (8,))]


def test_a_correction_of_the_router_stays_in_32_bits() -> None:
    config = {"model_type": "glm4_moe", **CONFIGS["glm4_moe"][0]}
    kinds = {kind for tensor, kind in predicted_file(model_tensors(config), "q4_k_m") if "exp_probs_b" in tensor.name}
    assert kinds == {T.F32}


def test_what_llama_cpp_leaves_as_the_converter_wrote_it() -> None:
    """Small matrices of GLM-5-Next; the quantiser of llama.cpp build 11434 passes over them."""
    sizes = {"hidden_size": 256, "kv_lora_rank": 256, "q_lora_rank": 256, "qk_nope_head_dim": 256, "v_head_dim": 256}
    config = {"model_type": "glm5_next_text", **CONFIGS["glm5_next_text"][0], **sizes}
    kinds = {t.name.split(".", 2)[2]: kind for t, kind in predicted_file(model_tensors(config), "q4_k_s") if t.layer}
    assert {kinds[f"{name}.weight"] for name in ("attn_kv_a_mqa", "attn_k_b", "indexer.attn_k", "ssm_f_a")} == {T.F16}
    assert kinds["attn_q_a.weight"] not in (T.F16, T.F32)
    assert kinds["ssm_conv1d_q.weight"] == T.F32


def test_architectures_are_llama_cpps() -> None:
    mixtures = set(architectures())
    dense = {"llama", "qwen2", "qwen3", "qwen35", "qwen3vl", "seed_oss"}
    assert set(ARCHITECTURES.values()) <= mixtures | dense
    assert set(LIKE) <= mixtures
    assert known()["source"] == "llama.cpp build 11434"
