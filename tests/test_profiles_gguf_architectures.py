"""Every architecture with experts of llama.cpp build 11434: blocks, experts and caches against its own loader."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf_files import Tensors, n_bytes, write_gguf
from llama_cpp_files import accepted, architectures, kept_bytes, known, metadata, tensors

from profiles import ModelProfile, ProfileError, load_profile

ALL = known()["architectures"]
LONG, SHORT = 131_072, 4_096
ROW_PADDING = 2_048
"""llama.cpp pads the end of a quantised tensor on a GPU, by less than this; no layer here has more than three."""


def read(tmp_path: Path, name: str, found: Tensors, changes: dict[str, Any] | None = None, **how: Any) -> ModelProfile:
    write_gguf(tmp_path / "x.gguf", name, metadata(name, changes), found)
    return load_profile(tmp_path / "x.gguf", **how)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelProfile]:
    """The profile of an architecture's file as the table has it; read once."""
    return cache(lambda name: read(tmp_path_factory.mktemp("plain"), name, tensors(ALL[name])))


def test_all_architectures_are_here() -> None:
    assert len(ALL) == 63
    assert {"deepseek4", "qwen4exp", "glm5-next", "hy_v4", "kimi-k3", "minimax-m3", "dots3note", "maple"} <= set(ALL)


@pytest.mark.parametrize("name", architectures())
def test_blocks_and_experts_are_the_sums_of_their_tensors(name: str, plain: Callable[[str], ModelProfile]) -> None:
    found, profile = tensors(ALL[name]), plain(name)
    routed = [
        sum(n_bytes(s, k) for t, s, k in found if t.startswith(f"blk.{i}.ffn_") and "exps." in t) for i in range(4)
    ]
    normed = [sum(n_bytes(s, k) for t, s, k in found if t == f"blk.{i}.ffn_norm_exps.weight") for i in range(4)]
    assert len(profile.layers) == 4
    for i, layer in enumerate(profile.layers):
        whole = sum(n_bytes(s, k) for t, s, k in found if t.startswith(f"blk.{i}."))
        experts = layer.experts.weight_bytes.gpu if layer.experts else 0
        assert experts == routed[i] - normed[i]
        assert layer.attention.weight_bytes.gpu == whole - experts
        if layer.experts:
            used = metadata(name)[".expert_used_count"]
            assert (layer.experts.count, layer.experts.active) == (8, used)
    assert profile.weight_bytes == sum(n_bytes(s, k) for _, s, k in found)
    assert any(layer.experts for layer in profile.layers)


@pytest.mark.parametrize("name", architectures())
def test_caches_are_what_llama_cpp_keeps(name: str, plain: Callable[[str], ModelProfile], tmp_path: Path) -> None:
    case, profile = ALL[name], plain(name)
    assert kept_bytes(profile, LONG) == case["context_bytes"]
    if name != "deepseek4":  # its compressed caches are padded to 256 entries, of which 4096 tokens need 32
        assert kept_bytes(profile, SHORT) == case["context_bytes_of_4096"]
    quantised = case["q8_0_context_bytes"]
    if quantised is None:  # grok attends without flash attention, which a quantised cache needs
        assert name == "grok"
        return
    found = kept_bytes(read(tmp_path, name, tensors(case), kv_quant="q8_0"), LONG)
    if name == "deepseek4":  # its window counts as state, in 16 bits
        assert found == pytest.approx(quantised, rel=0.02)
    else:
        assert 0 <= quantised - found <= 3 * 4 * ROW_PADDING


@pytest.mark.parametrize("name", [name for name, case in ALL.items() if "mtp" in case])
def test_blocks_for_multi_token_prediction_come_after_the_layers(
    name: str, plain: Callable[[str], ModelProfile], tmp_path: Path
) -> None:
    case, mtp = ALL[name], ALL[name]["mtp"]
    extra = tensors(mtp)
    profile = read(tmp_path, name, [*tensors(case), *extra], mtp["metadata"])
    assert [layer.experts for layer in profile.layers] == [layer.experts for layer in plain(name).layers]
    assert profile.weight_bytes == plain(name).weight_bytes
    assert profile.mtp is not None
    assert profile.mtp.weight_bytes.gpu == sum(n_bytes(s, k) for _, s, k in extra)
    assert kept_bytes(profile, LONG) == mtp["context_bytes"]
    kept = mtp["context_bytes"] != case["context_bytes"]
    assert kept == any("multi-token-prediction block's cache" in note for note in profile.notes)


@pytest.mark.parametrize(("name", "loaded"), [("hy_v3", 4_154_496), ("step35", 4_159_104), ("cohere2moe", 263_168)])
def test_a_note_says_what_llama_cpp_loads_of_such_a_block(name: str, loaded: int, tmp_path: Path) -> None:
    """Its loader counts so many bytes more; a tensor of 32 bytes is padded to 128."""
    found = [*tensors(ALL[name]), *tensors(ALL[name]["mtp"])]
    notes = read(tmp_path, name, found, ALL[name]["mtp"]["metadata"]).notes
    (n_bytes_said,) = [int(word) for note in notes if "also loads" in note for word in note.split() if word.isdigit()]
    assert loaded - n_bytes_said in (0, 96)


def test_a_block_that_was_left_out_is_not_counted(tmp_path: Path) -> None:
    """`nextn_predict_layers` stays in files whose block is gone; what comes first is what counts."""
    found = tensors(ALL["glm4moe"])
    profile = read(tmp_path, "glm4moe", found, {".block_count": 5, ".nextn_predict_layers": 1})
    assert (len(profile.layers), profile.mtp) == (4, None)
    deepseek4 = read(tmp_path, "deepseek4", tensors(ALL["deepseek4"]), {".nextn_predict_layers": 1})
    assert (len(deepseek4.layers), deepseek4.mtp) == (4, None)


@pytest.mark.parametrize(("name", "changes", "wanted"), known()["variants"])
def test_metadata_that_changes_caches(name: str, changes: dict[str, Any], wanted: int, tmp_path: Path) -> None:
    assert kept_bytes(read(tmp_path, name, tensors(ALL[name]), changes), LONG) == wanted


@pytest.mark.parametrize(
    "name", ["mimo2", "minimax-01", "step35", "llama4", "qwen4exp", "jamba", "kimi-linear", "maple"]
)
def test_queries_keys_and_values_in_one_tensor_are_cached_alike(name: str, tmp_path: Path) -> None:
    """llama.cpp takes attn_qkv.weight where these architectures usually have three tensors."""
    assert "attn_qkv.weight" in accepted(name)
    separate = {t: s for t, s, _ in tensors(ALL[name]) if t.split(".")[2:3] in (["attn_q"], ["attn_k"], ["attn_v"])}
    found = [(t, s, k) for t, s, k in tensors(ALL[name]) if t not in separate]
    kinds = {t: k for t, s, k in tensors(ALL[name])}
    for i in range(4):
        parts = [separate[t] for t in (f"blk.{i}.attn_{p}.weight" for p in "qkv") if t in separate]
        recurs = f"blk.{i}.ssm_conv1d_q.weight" in kinds
        if len(parts) == 3 and not recurs:
            whole = (parts[0][0], sum(shape[1] for shape in parts))
            found.append((f"blk.{i}.attn_qkv.weight", whole, kinds[f"blk.{i}.attn_q.weight"]))
        else:
            found += [(t, s, kinds[t]) for t, s in separate.items() if t.startswith(f"blk.{i}.")]
    assert kept_bytes(read(tmp_path, name, found), LONG) == ALL[name]["context_bytes"]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("deepseek4", {".attention.compress_ratios": [0, 4, 7, 4]}, ("compress_ratios", "layer 2 has 7", "YAML")),
        ("deepseek4", {".attention.compress_ratios": [0, 4]}, ("compress_ratios", "3 whole numbers are needed")),
        ("deepseek4", {".attention.sliding_window": None}, ("attention.sliding_window", "missing")),
        ("glm-dsa", {".attention.indexer.types": "full"}, ("attention.indexer.types", "'full'")),
        ("minimax-m3", {".attention.indexer.key_length": "64"}, ("attention.indexer.key_length", "'64'")),
        ("jamba", {".ssm.state_size": None}, ("ssm.state_size", "missing")),
        ("kimi-linear", {".kda.head_dim": 0}, ("kda.head_dim", "0 is no size")),
        ("qwen4exp", {".ple.layers": [-1]}, ("ple.layers", "list of whole numbers")),
        ("minimax-01", {".attention.recurrent_layers": [1, 1]}, ("recurrent_layers", "one a layer")),
        ("nemotron_h_moe", {".expert_used_count": [2, 2, 9, 2]}, ("expert_used_count", "9 of 8")),
        ("maple", {".attention.sliding_window_pattern": "0101"}, ("sliding_window_pattern", "'0101'")),
        ("gemma4", {".attention.shared_kv_layers": 10**6}, ("shared_kv_layers", "not a whole number")),
    ],
)
def test_metadata_that_makes_no_sense_is_one_line(
    name: str, changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ProfileError) as caught:
        read(tmp_path, name, tensors(ALL[name]), changes)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ("x.gguf", *words)), message


def outcome(tmp_path: Path, name: str, changes: dict[str, Any]) -> str:
    try:
        read(tmp_path, name, tensors(ALL[name]), changes)
        return "read"
    except ProfileError as problem:
        return "refused" if "\n" not in str(problem) else str(problem)


def test_metadata_at_random_never_crashes(tmp_path: Path) -> None:
    """Any value under any key: read, or refused in one line."""
    rng, outcomes = random.Random(20261201), {"read": 0, "refused": 0}
    values = (0, 1, 7, 2**31 - 1, "x", [1], [0, 0, 0, 0], [1, 2, 3, 4], [2**30] * 4, True, 1.5, [1.5] * 4)
    for name in rng.sample(architectures(), 24):
        for _ in range(3):
            changes = {rng.choice(list(metadata(name))): rng.choice(values) for _ in range(rng.choice((1, 2)))}
            outcomes[outcome(tmp_path, name, changes)] += 1
    assert min(outcomes.values()) > 10, outcomes
