"""Safetensors checkpoints: bytes of every block equal a direct sum over the files, whatever the names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
from checkpoint_files import (
    TINY,
    TINY_ITEMS,
    Item,
    Items,
    awq,
    check,
    compressed,
    deepseek,
    fp8,
    gpt_oss,
    gptq,
    mixtral,
    quantised,
    qwen3_moe,
    renamed,
    write_checkpoint,
    write_file,
    write_raw,
)

from profiles.formats.kv_cache import KvFormat
from profiles.presets import model_config_preset
from profiles.safetensors.header import DTYPE_BITS, read_headers
from profiles.safetensors.names import home_of
from profiles.safetensors.reader import read_safetensors


def preset(name: str, **changes: Any) -> dict[str, Any]:
    config = model_config_preset(name)
    assert config is not None
    return {**config, **changes}


def gpt_oss_20b() -> dict[str, Any]:
    config = preset("gpt-oss-120b", num_hidden_layers=24, num_local_experts=32)
    return {**config, "layer_types": config["layer_types"][:24]}


REAL: dict[str, tuple[dict[str, Any], Callable[[Any], Items], int, str]] = {
    "deepseek-v2-lite": (preset("deepseek-v2-lite"), deepseek, 4, "bf16"),
    "qwen3-30b-a3b": (preset("qwen3-30b-a3b"), qwen3_moe, 16, "bf16"),
    "mixtral-8x7b": (preset("mixtral-8x7b"), mixtral, 19, "bf16"),
    "gpt-oss-20b": (gpt_oss_20b(), gpt_oss, 3, "hf_mxfp4"),
}
PUBLISHED_BYTES = {
    "deepseek-v2-lite": 31_412_968_448,
    "qwen3-30b-a3b": 61_064_245_248,
    "mixtral-8x7b": 93_405_585_408,
    "gpt-oss-20b": 13_761_264_768,
}
"""`metadata.total_size` of the index that lies beside the published files."""


@pytest.mark.parametrize("name", REAL)
def test_every_block_is_the_sum_of_its_tensors(name: str, tmp_path: Path) -> None:
    config, tensors, shards, quant = REAL[name]
    items = tensors(config)
    profile = read_safetensors(write_checkpoint(tmp_path / name, config, items, shards), name)
    check(profile, items)
    assert (profile.model, profile.quant, profile.mtp) == (name, quant, None)
    assert str(shards) in profile.source
    assert profile.file_bytes == PUBLISHED_BYTES[name]


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "mixtral-8x7b"])
def test_without_an_index_all_files_count_and_any_name_of_a_set_will_do(name: str, tmp_path: Path) -> None:
    config, tensors, shards, _ = REAL[name]
    items = tensors(config)
    folder = write_checkpoint(tmp_path, config, items, shards, index=False)
    whole = read_safetensors(folder, name)
    check(whole, items)
    assert read_safetensors(folder / f"model-00002-of-{shards:05}.safetensors", name) == whole


def test_bytes_of_plain_files_equal_those_by_shape(tmp_path: Path) -> None:
    from profiles.hf_config.reader import read_hf_config

    config, tensors, _, _ = REAL["qwen3-30b-a3b"]
    stored = read_safetensors(write_checkpoint(tmp_path, config, tensors(config), 16), "m")
    predicted = read_hf_config(config, "m", "bf16")
    assert [b.weight_bytes for b in stored.blocks] == [b.weight_bytes for b in predicted.blocks]
    assert [layer.attention.kv_bytes_per_token for layer in stored.layers] == [2048] * 48


def test_a_file_its_folder_and_its_index_are_the_same(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, TINY, TINY_ITEMS)
    assert read_safetensors(folder / "model.safetensors", "m") == read_safetensors(folder, "m")
    sharded = write_checkpoint(tmp_path / "sharded", TINY, TINY_ITEMS, 3)
    index = sharded / "model.safetensors.index.json"
    assert read_safetensors(index, "m") == read_safetensors(sharded, "m")
    index.rename(sharded / "other.safetensors.index.json")
    check(read_safetensors(sharded, "m"), TINY_ITEMS)


def test_links_are_followed_as_in_a_cache_of_hugging_face(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "snapshot", TINY, TINY_ITEMS)
    (tmp_path / "blobs").mkdir()
    for file in list(folder.iterdir()):
        (tmp_path / "blobs" / file.name).write_bytes(file.read_bytes())
        file.unlink()
        file.symlink_to(Path("..") / "blobs" / file.name)
    check(read_safetensors(folder, "m"), TINY_ITEMS)


def test_files_that_the_index_leaves_out_are_noted_and_pickles_never_opened(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, TINY, TINY_ITEMS, 2)
    write_file(folder / "consolidated.safetensors", TINY_ITEMS)
    os.mkfifo(folder / "pytorch_model.bin")  # opening it would never return
    profile = read_safetensors(folder, "m")
    check(profile, TINY_ITEMS)
    assert any("consolidated.safetensors" in note for note in profile.notes)


def test_the_cache_may_be_chosen(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, TINY, TINY_ITEMS)
    layer = read_safetensors(folder, "m", KvFormat("q8_0")).layers[0]
    assert layer.attention.kv_bytes_per_token == 34


# ---- quantised ----

DEEPSEEK_V3 = preset("deepseek-v3", num_hidden_layers=5)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128, "type": "int"}}},
}
QWEN = preset("qwen3-30b-a3b", num_hidden_layers=2)
ODD = {"quant_method": "of tomorrow", "bits": "few"}
QUANTISED = {
    "fp8": (DEEPSEEK_V3, quantised(deepseek(DEEPSEEK_V3), fp8)),
    "gptq-4bit": ({**QWEN, "quantization_config": GPTQ}, quantised(qwen3_moe(QWEN), gptq)),
    "awq-4bit": ({**QWEN, "quantization_config": AWQ}, quantised(qwen3_moe(QWEN), awq)),
    "compressed-tensors-4bit": (
        {**DEEPSEEK_V3, "quantization_config": COMPRESSED},
        quantised(deepseek(DEEPSEEK_V3), compressed, ".mlp.experts."),
    ),
    "mixed": ({**QWEN, "quantization_config": ODD}, quantised(qwen3_moe(QWEN), awq)),
    "bf16": ({**QWEN, "quantization_config": GPTQ}, qwen3_moe(QWEN)),
    "fp32": (QWEN, [replace(item, dtype="F32") for item in qwen3_moe(QWEN)]),
}


@pytest.mark.parametrize("quant", QUANTISED)
def test_quantised_checkpoints_count_as_stored(quant: str, tmp_path: Path) -> None:
    config, items = QUANTISED[quant]
    profile = read_safetensors(write_checkpoint(tmp_path, config, items, 5), "m")
    check(profile, items)
    assert profile.quant == quant
    assert profile.activation_bytes == (4 if quant == "fp32" else 2)
    assert all(layer.experts is None or layer.experts.expert_weight_bytes is None for layer in profile.layers)


def test_experts_that_differ_are_listed(tmp_path: Path) -> None:
    items = quantised(TINY_ITEMS, fp8, "layers.1.block_sparse_moe.experts.1.")
    profile = read_safetensors(write_checkpoint(tmp_path, TINY, items), "m")
    check(profile, items)
    each = [sum(i.n_bytes for i in items if (i.layer, i.expert) == (1, expert)) for expert in (0, 1)]
    found = [layer.experts.expert_weight_bytes for layer in profile.layers if layer.experts]
    assert found == [None, tuple(each)]
    assert each[0] > each[1]


def test_bytes_shared_by_all_experts_are_divided_among_those_that_differ(tmp_path: Path) -> None:
    items = quantised(TINY_ITEMS, fp8, "layers.1.block_sparse_moe.experts.1.")
    scale = Item("experts", "model.layers.1.block_sparse_moe.experts.w1_input_scale", (3,), "U8", 1, None, "gate")
    profile = read_safetensors(write_checkpoint(tmp_path, TINY, [*items, scale]), "m")
    check(profile, [*items, scale])
    experts = profile.layers[1].experts
    assert experts is not None
    one, other = experts.expert_weight_bytes or ()
    own = [sum(i.n_bytes for i in items if (i.layer, i.expert) == (1, expert)) for expert in (0, 1)]
    assert [one, other] == [own[0] + 2, own[1] + 1]


# ---- names ----


def test_a_tied_head_counts_the_embedding_once_more(tmp_path: Path) -> None:
    items = [item for item in TINY_ITEMS if not item.name.startswith("lm_head")]
    config = {**TINY, "tie_word_embeddings": True}
    profile = read_safetensors(write_checkpoint(tmp_path / "tied", config, items), "m")
    check(profile, items, tied=96 * 32 * 2)
    both = read_safetensors(write_checkpoint(tmp_path / "both", config, TINY_ITEMS), "m")
    check(both, TINY_ITEMS)
    assert any("holds both" in note or "hold both" in note for note in both.notes)


def multimodal(head: str, layers: str) -> Items:
    text = [
        replace(i, name=("" if i.name.startswith("lm_head") else layers) + i.name.removeprefix("model."))
        for i in TINY_ITEMS
    ]
    towers = ("vision_tower.vision_model.encoder.layers.0.fc1.weight", "multi_modal_projector.linear_1.weight")
    towers += ("model.visual.blocks.3.attn.qkv.weight", "vision_model.model.layers.0.mlp.fc1.weight", "talker.x.weight")
    return renamed(text, "lm_head", head) + [Item("tower", name, (100, 7)) for name in towers]


@pytest.mark.parametrize(
    ("head", "layers"),
    [("language_model.lm_head", "language_model.model."), ("lm_head", "model.language_model."), ("lm_head", "model.")],
)
def test_of_a_multimodal_file_the_text_model_counts(head: str, layers: str, tmp_path: Path) -> None:
    items = multimodal(head, layers)
    profile = read_safetensors(write_checkpoint(tmp_path, TINY, items), "m")
    check(profile, items)
    assert any(f"{5 * 1400} bytes of towers" in note for note in profile.notes)


def test_llama_4_has_fused_experts_beside_shared_ones(tmp_path: Path) -> None:
    config = preset("llama-4-scout")
    text = config["text_config"]
    text["num_hidden_layers"] = 2
    for key in ("no_rope_layers", "moe_layers", "layer_types"):
        text.pop(key, None)
    items: Items = []
    hidden, width, count, vocab = text["hidden_size"], text["intermediate_size"], 16, text["vocab_size"]
    size, root = text["head_dim"], "language_model.model."
    for layer in range(2):
        at = f"{root}layers.{layer}."
        shapes = {f"feed_forward.shared_expert.{n}_proj": (width, hidden) for n in ("gate", "up")}
        shapes |= {"feed_forward.shared_expert.down_proj": (hidden, width), "feed_forward.router": (count, hidden)}
        shapes |= {"self_attn.q_proj": (text["num_attention_heads"] * size, hidden)}
        shapes |= {f"self_attn.{n}_proj": (text["num_key_value_heads"] * size, hidden) for n in ("k", "v")}
        shapes |= {"self_attn.o_proj": (hidden, text["num_attention_heads"] * size)}
        items += [Item("attention", f"{at}{name}.weight", shape, layer=layer) for name, shape in shapes.items()]
        for name in ("input_layernorm", "post_attention_layernorm"):
            items.append(Item("attention", f"{at}{name}.weight", (hidden,), layer=layer))
        fused = at + "feed_forward.experts."
        gate_up = Item("experts", fused + "gate_up_proj", (count, hidden, 2 * width), layer=layer)
        items.append(replace(gate_up, projection="gate_up"))
        down = Item("experts", fused + "down_proj", (count, width, hidden), layer=layer, projection="down")
        items.append(down)
    items.append(Item("embedding", f"{root}embed_tokens.weight", (vocab, hidden)))
    items.append(Item("head", "language_model.lm_head.weight", (vocab, hidden)))
    items += [Item("head", f"{root}norm.weight", (hidden,)), Item("tower", "vision_model.class_embedding", (1408,))]
    check(read_safetensors(write_checkpoint(tmp_path, config, items, 3), "m"), items)


def test_layers_of_further_tokens_count_apart(tmp_path: Path) -> None:
    items = deepseek(DEEPSEEK_V3)
    profile = read_safetensors(write_checkpoint(tmp_path / "v3", DEEPSEEK_V3, items), "m")
    check(profile, items)
    assert profile.mtp is not None
    assert any("multi-token" in note for note in profile.notes)
    extra = [replace(i, block="mtp", layer=-1, name="mtp." + i.name[6:]) for i in TINY_ITEMS if ".layers.1." in i.name]
    extra += [Item("mtp", "mtp.fc.weight", (32, 64)), Item("mtp", "mtp.norm.weight", (32,))]
    check(read_safetensors(write_checkpoint(tmp_path / "mtp", TINY, TINY_ITEMS + extra), "m"), TINY_ITEMS + extra)
    eagle = renamed(renamed(extra[:-1], "mtp.layers.1", "model.layers.2"), "mtp.fc", "model.layers.2.eh_proj")
    check(read_safetensors(write_checkpoint(tmp_path / "eh", TINY, TINY_ITEMS + eagle), "m"), TINY_ITEMS + eagle)


def test_buffers_and_names_of_first_releases(tmp_path: Path) -> None:
    items = [replace(item, name=item.name.replace("model.", "", 1)) for item in TINY_ITEMS]
    items = renamed(renamed(items, "embed_tokens", "tok_embeddings"), "lm_head", "output")
    items = renamed(items, "block_sparse_moe", "feed_forward")
    items.append(Item("embedding", "rotary_emb.inv_freq", (4,), "F32"))
    items.append(Item("attention", "layers.0.self_attn.rotary_emb.inv_freq", (4,), "F32", 0))
    profile = read_safetensors(write_checkpoint(tmp_path, TINY, items), "m")
    check(profile, items)
    assert any("16 bytes outside the layers" in note for note in profile.notes)


@pytest.mark.parametrize(
    ("name", "part", "projection"),
    [
        ("model.layers.3.mlp.experts.17.gate_proj.weight", "experts", "gate"),
        ("model.layers.3.block_sparse_moe.experts.3.w2.weight_scale", "experts", "down"),
        ("model.layers.3.mlp.experts.down_proj_scales", "experts", "down"),
        ("model.layers.3.mlp.switch_mlp.up_proj.biases", "experts", "up"),
        ("model.layers.3.mixer.experts.5.up_proj.weight", "experts", "up"),
        ("model.layers.3.block_sparse_moe.input_linear.weight", "experts", "gate_up"),
        ("model.layers.3.block_sparse_moe.router.layer.weight", "layer", ""),
        ("model.layers.3.mlp.shared_experts.gate_proj.weight", "layer", ""),
        ("model.layers.3.mlp.gate.e_score_correction_bias", "layer", ""),
        ("transformer.h.3.attn.c_attn.weight", "layer", ""),
        ("transformer.blocks.3.ffn.experts.mlp.v1", "experts", "up"),
        ("transformer.wte.weight", "embedding", ""),
        ("lm_head.qweight", "lm_head", ""),
        ("model.norm.weight", "head", ""),
        ("model.mtp_layers.0.mlp.up_proj.weight", "mtp", ""),
        ("audio_tower.layers.0.fc1.weight", "tower", ""),
        ("score.weight", "", ""),
    ],
)
def test_names(name: str, part: str, projection: str) -> None:
    home = home_of(name)
    assert (home.part, home.projection) == (part, projection)


# ---- types, size ----


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_type_has_the_bits_that_the_library_gives_it(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = {"a": {"dtype": dtype, "shape": [4, 2], "data_offsets": [0, DTYPE_BITS[dtype]]}}
    write_raw(path, json.dumps(header).encode(), DTYPE_BITS[dtype])
    with safetensors.safe_open(path, "numpy") as file:  # checks bytes against shape and type
        assert file.get_slice("a").get_dtype() == dtype
    found = read_headers([path])[path]["a"]
    assert (found.n_bytes, found.shape, found.values) == (DTYPE_BITS[dtype], (4, 2), 8)


MEASURE = """
import json, sys
from pathlib import Path
from profiles.safetensors.reader import read_safetensors
profile = read_safetensors(Path(sys.argv[1]), "m")
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps([profile.file_bytes, int(peak)]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_all_of_deepseek_r1_takes_little_memory(tmp_path: Path) -> None:
    """91,991 tensors in 163 files of 689 GB, as published."""
    config = preset("deepseek-r1")
    items = quantised(deepseek(config), fp8)
    assert len(items) == 91_991
    folder = write_checkpoint(tmp_path, config, items, 163)
    out = subprocess.run([sys.executable, "-c", MEASURE, folder], capture_output=True, text=True, check=True).stdout
    file_bytes, peak_kib = json.loads(out)
    assert file_bytes == sum(item.n_bytes for item in items) > 400e9
    assert peak_kib * 1024 < 300e6
    check(read_safetensors(folder, "m"), items)
