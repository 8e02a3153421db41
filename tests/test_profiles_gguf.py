"""GGUF files: to the byte what their headers say, block by block; shards, old and new names; bad files are refused."""

from __future__ import annotations

import os
import random
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import T, n_bytes, write_gguf, write_shards
from real_gguf import REAL

from profiles import Layer, ModelProfile, ProfileError, load_profile
from profiles.formats.gguf_layout import predicted_file
from profiles.gguf.header import MAX_TENSORS
from profiles.hf_config.reader import model_tensors
from profiles.presets import model_config_preset, model_config_presets

SMALL_FIELDS: dict[str, Any] = {
    ".block_count": 2, ".embedding_length": 64, ".attention.head_count": 4, ".attention.head_count_kv": 2,
    ".expert_count": 4, ".expert_used_count": 2, "general.file_type": 7,
}  # fmt: skip


def small_tensors(layers: int = 2) -> list[tuple[str, tuple[int, ...], T]]:
    found = [("token_embd.weight", (64, 96), T.Q8_0)]
    for i in range(layers):
        found += [(f"blk.{i}.attn_{p}.weight", (64, n), T.Q8_0) for p, n in (("q", 64), ("k", 32), ("v", 32))]
        found += [(f"blk.{i}.attn_output.weight", (64, 64), T.Q8_0), (f"blk.{i}.ffn_gate_inp.weight", (64, 4), T.F32)]
        found += [(f"blk.{i}.ffn_{p}_exps.weight", (64, 32, 4), T.Q8_0) for p in ("gate", "up")]
        found += [(f"blk.{i}.ffn_down_exps.weight", (32, 64, 4), T.Q4_0)]
    return [*found, ("output_norm.weight", (64,), T.F32), ("output.weight", (64, 96), T.Q8_0)]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "small.gguf", "qwen3moe", SMALL_FIELDS, small_tensors())
    return tmp_path / "small.gguf"


# --- to the byte ------------------------------------------------------------------------------------------------------


def direct_sums(tensors: Any) -> dict[tuple[str, str], int]:
    """Bytes by (layer or end, block), straight from the list that the file was written from."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for name, shape, kind in tensors:
        words = name.split(".")
        if words[0] == "blk":
            key = (words[1], "experts" if words[2].endswith("_exps") else "attention")
        else:
            key = ("head" if words[0].startswith("output") else "embedding", "")
        sums[key] += n_bytes(shape, kind)
    return sums


@pytest.mark.parametrize("name", REAL)
def test_every_block_of_every_layer_is_the_sum_of_its_tensors(name: str, tmp_path: Path) -> None:
    architecture, fields, tensors = REAL[name]()
    write_gguf(tmp_path / f"{name}.gguf", architecture, fields, tensors)
    profile, sums = load_profile(tmp_path / f"{name}.gguf"), direct_sums(tensors)
    assert profile.model == name
    assert profile.embedding.weight_bytes.gpu == sums["embedding", ""]
    assert profile.head.weight_bytes.gpu == sums["head", ""]
    assert len(profile.layers) == fields[".block_count"]
    for i, layer in enumerate(profile.layers):
        assert layer.attention.weight_bytes.gpu == layer.attention.weight_bytes.cpu == sums[str(i), "attention"]
        assert (layer.experts.weight_bytes.gpu if layer.experts else 0) == sums[str(i), "experts"]
        for part in ("gate", "up", "down") if layer.experts else ():
            own = sum(n_bytes(s, k) for n, s, k in tensors if n.startswith(f"blk.{i}.ffn_{part}_exps."))
            assert layer.experts.projection_bytes[part] == own
    assert profile.weight_bytes == sum(n_bytes(s, k) for _, s, k in tensors)


def test_shapes_tell_what_the_metadata_leaves_out(tmp_path: Path) -> None:
    architecture, fields, tensors = REAL["deepseek-v2-lite"]()
    few = {key: value for key, value in fields.items() if key.startswith((".block", ".expert"))}
    for name, given in (("whole", fields), ("few", few)):
        write_gguf(tmp_path / f"{name}.gguf", architecture, given, tensors)
    whole, least = load_profile(tmp_path / "whole.gguf"), load_profile(tmp_path / "few.gguf")
    assert least.layers == whole.layers
    assert least.quant == "mixed"


def test_what_a_published_file_holds_is_what_its_maker_says() -> None:
    """Tensor bytes of gpt-oss-20b in MXFP4 and of one expert, as harshithkantamneni/moe-speed-of-light has them."""
    _, _, tensors = REAL["gpt-oss-20b"]()
    assert sum(n_bytes(s, k) for _, s, k in tensors) == 12_096_558_336
    assert sum(n_bytes(s, k) for n, s, k in tensors if n.startswith("blk.0.") and "_exps" in n) // 32 == 13_253_760


METADATA: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-v2-lite": ("deepseek2", {".attention.key_length": 192, ".attention.value_length": 128}),
    "deepseek-v3": ("deepseek2", {".attention.key_length_mla": 192, ".attention.value_length_mla": 128}),
    "kimi-k2-instruct": ("deepseek2", {".attention.key_length_mla": 192, ".attention.value_length_mla": 128}),
    "glm-4.5-air": ("glm4moe", {".nextn_predict_layers": 1}),
    "gpt-oss-120b": ("gpt-oss", {".attention.sliding_window": 128}),
    "llama-3.1-8b": ("llama", {}),
    "llama-4-scout": ("llama4", {}),
    "mixtral-8x22b": ("llama", {}),
    "olmoe-1b-7b": ("olmoe", {}),
    "qwen1.5-moe-a2.7b": ("qwen2moe", {}),
    "qwen3-30b-a3b": ("qwen3moe", {}),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("mix", ["q4_k_m", "q8_0"])
def test_a_file_and_its_prediction_are_the_same_profile(name: str, mix: str, tmp_path: Path) -> None:
    """The reader of files and the prediction from config.json share no shapes but the list of tensors written here."""
    config = model_config_preset(name) or {}
    text = config.get("text_config", config)
    architecture, own = METADATA[name]
    model = model_tensors(config)
    heads, experts = text["num_attention_heads"], max(x.experts.count if x.experts else 0 for x in model.layers)
    fields = {
        ".block_count": len(model.layers) + own.get(".nextn_predict_layers", 0),
        ".attention.head_count": heads,
        ".attention.head_count_kv": text["num_key_value_heads"],
        ".attention.key_length": text.get("head_dim") or text["hidden_size"] // heads,
        ".attention.value_length": text.get("head_dim") or text["hidden_size"] // heads,
        **own,
    }
    if experts:
        fields |= {
            ".expert_count": experts,
            ".expert_used_count": max(x.experts.active for x in model.layers if x.experts),
        }
    if "kv_lora_rank" in text:
        fields |= {".attention.kv_lora_rank": text["kv_lora_rank"], ".rope.dimension_count": text["qk_rope_head_dim"]}
    tensors = [(tensor.name, tensor.shape, kind) for tensor, kind in predicted_file(model, mix)]
    write_gguf(tmp_path / "m.gguf", architecture, fields, tensors)
    file = load_profile(tmp_path / "m.gguf", mla="compressed")
    predicted = load_profile(name, mix)
    assert file.file_bytes == predicted.file_bytes
    corrections = {
        tensor.layer: tensor.numel for tensor, _ in predicted_file(model, mix) if "exp_probs_b" in tensor.name
    }
    for i, (side, other) in enumerate(zip(file.layers, predicted.layers, strict=True)):
        if i in corrections:  # the router's bias is no parameter of the model, but one more tensor of the file
            params = (side.attention.params or 0) - corrections[i]
            side = side.replace(attention=side.attention.replace(params=params))
        if name == "gpt-oss-120b":  # its router's and experts' biases have other shapes in a file: bytes of workspace
            side, other = _without_workspace(side), _without_workspace(other)
        assert side == other
    assert file.embedding.weight_bytes == predicted.embedding.weight_bytes
    assert file.head.weight_bytes == predicted.head.weight_bytes
    assert file.tied_bytes == predicted.tied_bytes
    assert (file.mtp is None) == (".nextn_predict_layers" not in own)


def _without_workspace(layer: Layer) -> Layer:
    experts = layer.experts and layer.experts.replace(workspace_bytes=None)
    return layer.replace(attention=layer.attention.replace(workspace_bytes=None), experts=experts)


def test_the_presets_above_are_all_that_have_an_architecture_here() -> None:
    assert set(METADATA) <= set(model_config_presets())


# --- shards, old and new names ----------------------------------------------------------------------------------------


def test_any_shard_stands_for_all(tmp_path: Path) -> None:
    tensors = small_tensors()
    write_gguf(tmp_path / "whole.gguf", "qwen3moe", SMALL_FIELDS, tensors)
    shards = write_shards(tmp_path, "m", "qwen3moe", SMALL_FIELDS, [tensors[:5], tensors[5:11], tensors[11:]])
    whole = load_profile(tmp_path / "whole.gguf")
    for shard in shards:
        found = load_profile(shard)
        assert found.model == "m"
        assert (found.layers, found.embedding, found.head) == (whole.layers, whole.embedding, whole.head)
    for path in (tmp_path / "whole.gguf", shards[1]):
        path.unlink()
    with pytest.raises(ProfileError, match=r"m-00002-of-00003\.gguf: no such file, one of 3"):
        load_profile(tmp_path)
    shards[0].rename(tmp_path / "other.gguf")
    with pytest.raises(ProfileError, match=r"one of 3 files of a model; call them"):
        load_profile(tmp_path / "other.gguf")


def test_shards_must_fit_together(tmp_path: Path) -> None:
    tensors = small_tensors()
    one, two = write_shards(tmp_path, "m", "qwen3moe", SMALL_FIELDS, [tensors[:6], tensors[5:]])
    with pytest.raises(ProfileError, match=r"attn_k\.weight is in|attn_output\.weight is in|is in m-00001"):
        load_profile(one)
    one, two = write_shards(tmp_path, "n", "qwen3moe", SMALL_FIELDS, [tensors[:6], tensors[6:]])
    two.write_bytes(one.read_bytes())
    with pytest.raises(ProfileError, match=r"n-00002-of-00002\.gguf: says it is another part"):
        load_profile(one)
    write_shards(tmp_path, "n", "qwen3moe", SMALL_FIELDS, [tensors[:6], tensors[6:]])
    short = [tensors[:6], tensors[7:]]
    moved = write_shards(tmp_path, "o", "qwen3moe", SMALL_FIELDS, short)
    two.write_bytes(moved[1].read_bytes())
    with pytest.raises(ProfileError, match=r"tensors in all files, but it says"):
        load_profile(one)


def test_shards_together_may_not_hold_more_than_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = small_tensors()
    one, _ = write_shards(tmp_path, "m", "qwen3moe", SMALL_FIELDS, [tensors[:10], tensors[10:]])
    monkeypatch.setattr("profiles.gguf.reader.MAX_TENSORS", 15)
    with pytest.raises(ProfileError, match=r"m-00002-of-00002\.gguf: more than 15 tensors"):
        load_profile(one)


def test_an_index_stands_for_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ProfileError, match=r"model\.safetensors\.index\.json"):
        load_profile(tmp_path / "model.safetensors.index.json")


def read(tmp_path: Path, architecture: str, tensors: Any, **fields: Any) -> ModelProfile:
    given = {f".{key.replace('__', '.')}": value for key, value in fields.items()}
    write_gguf(tmp_path / "x.gguf", architecture, {**SMALL_FIELDS, **given}, tensors)
    return load_profile(tmp_path / "x.gguf")


def test_an_expert_a_tensor_as_in_early_files(tmp_path: Path) -> None:
    tensors = [t for t in small_tensors() if "_exps" not in t[0]]
    sizes = (32, 32, 64, 32)
    for i in range(2):
        for e, width in enumerate(sizes):
            tensors += [(f"blk.{i}.ffn_{p}.{e}.weight", (64, width), T.Q8_0) for p in ("gate", "up")]
            tensors += [(f"blk.{i}.ffn_down.{e}.weight", (width, 64), T.Q4_0)]
    experts = read(tmp_path, "llama", tensors).layers[1].experts
    assert experts is not None
    one = [2 * n_bytes((64, w), T.Q8_0) + n_bytes((w, 64), T.Q4_0) for w in sizes]
    assert experts.expert_weight_bytes == tuple(one)
    assert experts.weight_bytes.gpu == sum(one)


def test_fused_and_chunk_experts_are_experts_and_shared_ones_are_not(tmp_path: Path) -> None:
    tensors = [t for t in small_tensors() if "gate_exps" not in t[0] and "up_exps" not in t[0]]
    for i in range(2):
        tensors += [(f"blk.{i}.ffn_gate_up_exps.weight", (64, 64, 4), T.Q8_0)]
        tensors += [(f"blk.{i}.ffn_down_chexps.weight", (32, 64, 2), T.Q8_0)]
        tensors += [(f"blk.{i}.ffn_down_shexp.weight", (32, 64), T.Q8_0), (f"blk.{i}.exp_probs_b.bias", (4,), T.F32)]
    layer = read(tmp_path, "qwen3moe", tensors).layers[0]
    assert layer.experts is not None
    assert layer.experts.projection_bytes == {
        "gate_up": n_bytes((64, 64, 4), T.Q8_0),
        "down": n_bytes((32, 64, 4), T.Q4_0),
        "down_ch": n_bytes((32, 64, 2), T.Q8_0),
    }
    plain = read(tmp_path, "qwen3moe", small_tensors()).layers[0].attention.weight_bytes.gpu
    assert layer.attention.weight_bytes.gpu == plain + n_bytes((32, 64), T.Q8_0) + 16


def test_a_tied_head_counts_the_embedding_and_says_so(tmp_path: Path) -> None:
    tied = read(tmp_path, "qwen3moe", [t for t in small_tensors() if t[0] != "output.weight"])
    assert tied.tied_bytes == tied.embedding.weight_bytes.gpu == n_bytes((64, 96), T.Q8_0)
    assert tied.head.weight_bytes.gpu == tied.tied_bytes + 256
    assert tied.weight_bytes == sum(n_bytes(s, k) for n, s, k in small_tensors() if n != "output.weight")


def test_next_token_layers_are_in_the_file_and_not_in_the_layers(tmp_path: Path) -> None:
    tensors = [*small_tensors(3), ("blk.2.nextn.eh_proj.weight", (128, 64), T.Q8_0)]
    profile = read(tmp_path, "glm4moe", tensors, block_count=3, nextn_predict_layers=1)
    assert len(profile.layers) == 2
    assert profile.mtp is not None
    assert profile.mtp.weight_bytes.gpu == sum(n_bytes(s, k) for n, s, k in tensors if n.startswith("blk.2."))
    assert profile.file_bytes == sum(n_bytes(s, k) for _, s, k in tensors)
    assert read(tmp_path, "glm4moe", tensors, block_count=3) == profile, "seen by its tensors without the metadata"


# --- caches -----------------------------------------------------------------------------------------------------------


def latent(extra: list[tuple[str, tuple[int, ...], T]]) -> list[tuple[str, tuple[int, ...], T]]:
    tensors = [t for t in small_tensors(1) if ".attn_" not in t[0]]
    tensors += [("blk.0.attn_q.weight", (64, 4 * 48), T.F16), ("blk.0.attn_output.weight", (4 * 32, 64), T.F16)]
    return [*tensors, ("blk.0.attn_kv_a_mqa.weight", (64, 48), T.F16), *extra]


LATENT = {"block_count": 1, "attention__kv_lora_rank": 32, "rope__dimension_count": 16}
LATENT |= {"attention__key_length_mla": 48, "attention__value_length_mla": 32}
WHOLE = [("blk.0.attn_kv_b.weight", (32, 4 * 64), T.F16)]
SPLIT = [("blk.0.attn_k_b.weight", (32, 32, 4), T.F16), ("blk.0.attn_v_b.weight", (32, 32, 4), T.F16)]


def test_latent_attention_caches_the_latent_where_the_file_is_split_for_it(tmp_path: Path) -> None:
    assert read(tmp_path, "deepseek2", latent(SPLIT), **LATENT).layers[0].attention.kv_bytes_per_token == 2 * 48
    both = read(tmp_path, "deepseek2", latent(SPLIT + WHOLE), **LATENT)
    assert both.layers[0].attention.kv_bytes_per_token == 2 * 48
    split = read(tmp_path, "deepseek2", latent(SPLIT), **LATENT)
    assert both.layers[0].attention.params == split.layers[0].attention.params, "kv_b is one projection"
    old = read(tmp_path, "deepseek2", latent(WHOLE), **LATENT)
    assert old.layers[0].attention.kv_bytes_per_token == 2 * 4 * 80
    assert [each.layers[0].attention.latent for each in (split, both, old)] == [True, True, False]
    assert any("mla" in note for note in old.notes)
    compressed = load_profile(tmp_path / "x.gguf", mla="compressed").layers[0].attention
    assert (compressed.kv_bytes_per_token, compressed.latent) == (2 * 48, True)
    assert (
        load_profile(tmp_path / "x.gguf", kv_quant="q8_0").layers[0].attention.kv_bytes_per_token == 4 * 80 * 34 // 32
    )


def test_latent_attention_whose_parts_do_not_fit_is_refused(tmp_path: Path) -> None:
    def refuses(tensors: Any, *words: str) -> None:
        write_gguf(tmp_path / "x.gguf", "deepseek2", {**SMALL_FIELDS, ".block_count": 1}, tensors)
        refused(tmp_path / "x.gguf", *words)

    refuses(latent(SPLIT[:1]), "attn_kv_b.weight: missing, whole and in its two parts")
    refuses(latent([]), "attn_kv_b.weight: missing, whole and in its two parts")
    refuses(
        latent([("blk.0.attn_kv_b.weight", (32, 4 * 640), T.F16)]),
        "attn_kv_b: 2560 values a token do not fit queries of 192",
    )
    refuses([t for t in latent(SPLIT) if ".attn_q." not in t[0]], "attn_q.weight: missing in a layer")


def test_windows_by_architecture_by_list_and_unknown(tmp_path: Path) -> None:
    def windows(architecture: str, **fields: Any) -> list[int | None]:
        profile = read(tmp_path, architecture, small_tensors(6), block_count=6, attention__sliding_window=8, **fields)
        return [layer.attention.kv_window_tokens for layer in profile.layers]

    assert windows("gpt-oss") == [8, None] * 3
    assert windows("gemma3") == [8] * 5 + [None]
    assert windows("new", attention__sliding_window_pattern=[True, True, False] * 2) == [8, 8, None] * 2
    assert windows("new") == [None] * 6
    assert any("window" in note for note in load_profile(tmp_path / "x.gguf").notes)


def test_layers_that_recur_or_mix_nothing(tmp_path: Path) -> None:
    tensors = [t for t in small_tensors(3) if not t[0].startswith(("blk.1.attn", "blk.2.attn"))]
    tensors += [("blk.1.ssm_in.weight", (64, 128), T.F16), ("blk.1.ssm_conv1d.weight", (4, 128), T.F32)]
    ssm = {"ssm__inner_size": 64, "ssm__state_size": 16, "ssm__group_count": 2, "ssm__conv_kernel": 4}
    full, recurrent, nothing = read(tmp_path, "qwen3next", tensors, block_count=3, **ssm).layers
    assert full.attention.kv_bytes_per_token == 2 * 2 * 32
    assert recurrent.attention.state_bytes == 4 * (3 * (64 + 2 * 2 * 16) + 16 * 64)
    assert recurrent.attention.kv_bytes_per_token == 0
    assert (nothing.attention.kv_bytes_per_token, nothing.attention.state_bytes) == (0, 0)


def test_heads_that_differ_by_layer_are_seen_in_the_shapes(tmp_path: Path) -> None:
    tensors = [
        (n, (64, 16) if n in ("blk.1.attn_k.weight", "blk.1.attn_v.weight") else s, k) for n, s, k in small_tensors()
    ]
    fields = {key: value for key, value in SMALL_FIELDS.items() if ".attention." not in key}
    write_gguf(tmp_path / "x.gguf", "deci", fields, tensors)
    assert [x.attention.kv_bytes_per_token for x in load_profile(tmp_path / "x.gguf").layers] == [128, 64]


def test_fused_projections_need_the_metadata(tmp_path: Path) -> None:
    tensors = [
        t for t in small_tensors() if ".attn_k." not in t[0] and ".attn_v." not in t[0] and ".attn_q." not in t[0]
    ]
    tensors += [(f"blk.{i}.attn_qkv.weight", (64, 128), T.Q8_0) for i in range(2)]
    profile = read(tmp_path, "dbrx", tensors, attention__head_count=4, attention__head_count_kv=[2, 1])
    assert [layer.attention.kv_bytes_per_token for layer in profile.layers] == [128, 64]
    for fields, words in (
        ({"head_count": 0}, ("head_count", "layer 0 has 0")),
        ({"head_count_kv": [2]}, ("one a layer",)),
    ):
        given = {**SMALL_FIELDS, **{f".attention.{key}": value for key, value in fields.items()}}
        write_gguf(tmp_path / "x.gguf", "dbrx", given, tensors)
        refused(tmp_path / "x.gguf", *words)


# --- what is not a whole GGUF file ------------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in (path.name, *words):
        assert word in message


@pytest.mark.parametrize("length", [0, 3, 4, 8, 23, 24, 60, 300, 700])
def test_cut_short_in_the_header(small: Path, length: int) -> None:
    small.write_bytes(small.read_bytes()[:length])
    refused(small)


def test_cut_short_in_the_data(small: Path) -> None:
    small.write_bytes(small.read_bytes()[:-2000])
    refused(small, "cut short", "ends at byte", "download it again")


def test_wrong_magic_and_version(small: Path) -> None:
    data = small.read_bytes()
    for start in (b"PK\x03\x04", b"\x80\x02\x8a\n", b'{"a"'):
        small.write_bytes(start + data[4:])
        refused(small, "not with GGUF")
    small.write_bytes(data[:4] + struct.pack("<I", 77) + data[8:])
    refused(small, "version 77")


def test_tensor_twice(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", "qwen3moe", SMALL_FIELDS, small_tensors())
    data = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(data.replace(b"blk.0.attn_k.weight", b"blk.0.attn_v.weight"))
    refused(tmp_path / "x.gguf", "blk.0.attn_v.weight is there twice")


@pytest.mark.parametrize("count", [10_000_000, 2**40, 2**63, MAX_TENSORS + 1])
def test_ten_million_tensors(small: Path, count: int) -> None:
    data = small.read_bytes()
    small.write_bytes(data[:8] + struct.pack("<Q", count) + data[16:])
    refused(small, f"{count} tensors")


def test_ten_million_fields_and_endless_texts(small: Path) -> None:
    data = small.read_bytes()
    small.write_bytes(data[:16] + struct.pack("<Q", 10**7) + data[24:])
    refused(small, "10000000 metadata fields")
    small.write_bytes(data[:24] + struct.pack("<Q", 2**62) + data[32:])
    refused(small, "a text of")


def test_an_endless_array_in_a_hole(small: Path) -> None:
    """Ten million empty texts would be there to read in a sparse file of zeros."""
    data = small.read_bytes()
    key = b"tokens"
    field = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 8, 10**12)
    small.write_bytes(data[:16] + struct.pack("<Q", 1) + field)
    with small.open("r+b") as file:
        file.truncate(10**11)
    refused(small, "an array of 1000000000000 elements")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({".block_count": 0}, ("block_count", "0 is no size")),
        ({".block_count": None}, ("block_count", "missing")),
        ({".block_count": 3}, ("layer 2 of 3 has no tensors",)),
        ({".block_count": 1}, ("no such layer",)),
        ({".block_count": "two"}, ("block_count", "'two'")),
        ({".expert_count": None}, ("expert_count",)),
        ({".expert_used_count": 9}, ("expert_used_count", "9 of 4")),
        ({".nextn_predict_layers": 5}, ("nextn_predict_layers",)),
    ],
)
def test_metadata_that_makes_no_sense(tmp_path: Path, fields: dict[str, Any], words: tuple[str, ...]) -> None:
    given = {key: value for key, value in {**SMALL_FIELDS, **fields}.items() if value is not None}
    write_gguf(tmp_path / "x.gguf", "qwen3moe", given, small_tensors())
    refused(tmp_path / "x.gguf", *words)


def test_not_a_file_and_not_a_language_model(tmp_path: Path) -> None:
    (tmp_path / "d.gguf").mkdir()
    refused(tmp_path / "d.gguf", "folder")
    write_gguf(tmp_path / "v.gguf", "clip", SMALL_FIELDS, [t for t in small_tensors() if t[0] != "token_embd.weight"])
    refused(tmp_path / "v.gguf", "token_embd.weight: missing")


def outcome(path: Path) -> str:
    try:
        load_profile(path)
        return "read"
    except ProfileError as problem:
        return "refused" if "\n" not in str(problem) else str(problem)


def mutant(data: bytes, first: int, last: int, rng: random.Random) -> bytearray:
    """`data` damaged at one or several places between two bytes."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(first, last)
        match rng.randrange(5):
            case 0:
                damaged[place] = rng.randrange(256)
            case 1:
                damaged[place] ^= 1 << rng.randrange(8)
            case 2:
                damaged[place : place + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, 2**64 - 1)))
            case 3:
                damaged[place : place + 4] = struct.pack("<I", rng.choice((0, 1, 2, 5, 8, 9, 12, 255)))
            case 4:
                del damaged[place : place + rng.choice((1, 4, 8))]
    return damaged


def test_mutated_headers_never_crash(small: Path, tmp_path: Path) -> None:
    """2500 files, each damaged at random places of its header: read, or refused in one line. Nothing else."""
    data, rng = small.read_bytes(), random.Random(20261124)
    header = data.index(b"output.weight") + 60
    broken = tmp_path / "broken.gguf"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2500):
        broken.write_bytes(mutant(data, 4, header, rng))
        outcomes[outcome(broken)] += 1
    assert min(outcomes.values()) > 50, outcomes


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "gpt-oss-20b"])
def test_mutated_headers_of_real_models_never_crash(name: str, tmp_path: Path) -> None:
    """Latent attention, biases, windows: 400 files each, damaged where metadata and the first layers are."""
    write_gguf(tmp_path / "x.gguf", *REAL[name]())
    with (tmp_path / "x.gguf").open("rb") as file:
        data = file.read(200_000)
    size, rng = (tmp_path / "x.gguf").stat().st_size, random.Random(name)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        (tmp_path / "broken.gguf").write_bytes(mutant(data, 4, rng.choice((1_000, 6_000)), rng))
        os.truncate(tmp_path / "broken.gguf", size)
        outcomes[outcome(tmp_path / "broken.gguf")] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_numpy_keeps_quiet() -> None:
    """The header reader works on raw integers; an overflow warning would be a sign of a wrong size."""
    with np.errstate(all="raise"):
        assert n_bytes((2**16, 2**16), T.Q4_0) == 2**32 // 32 * 18
