"""Bad safetensors files, indices and folders: one line that names the file and the remedy, and nothing is returned."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from checkpoint_files import TINY, TINY_ITEMS, Item, Items, check, write_checkpoint, write_file, write_raw

from profiles import ProfileError
from profiles.safetensors.header import MAX_TENSORS
from profiles.safetensors.reader import read_safetensors

# ---- bad input: one line, nothing returned ----


def refused(path: Path, *said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        read_safetensors(path, "m")
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 400
    for part in said:
        assert part in message, message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint in three files with an index."""
    return write_checkpoint(tmp_path / "good", TINY, TINY_ITEMS, 3)


SHARD = "model-00002-of-00003.safetensors"
Edit = Callable[[dict[str, Any]], object]
A = "a"


def entry(dtype: Any = "BF16", shape: Any = (2,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, tuple[Any, int, str]] = {
    "no object": ([1], 0, "no JSON header"),
    "an entry is text": ({A: "x"}, 0, "instead of dtype"),
    "an entry lacks a key": ({A: {"dtype": "U8", "shape": [1]}}, 1, "instead of dtype"),
    "an entry has one more": ({A: {**entry(), "x": 1}}, 4, "instead of dtype"),
    "three offsets": ({A: entry(offsets=(0, 4, 5))}, 4, "instead of dtype"),
    "metadata is text": ({"__metadata__": "x"}, 0, "__metadata__"),
    "unknown dtype": ({A: entry("F12")}, 4, "'F12' is none of F64"),
    "dtype is a number": ({A: entry(3)}, 4, "instead of dtype"),
    "dimension below 0": ({A: entry(shape=(-2,))}, 4, "-2 is no possible dimension"),
    "dimension is true": ({A: entry(shape=(True, 2))}, 4, "True is no possible dimension"),
    "dimension is a fraction": ({A: entry(shape=(2.0,))}, 4, "2.0 is no possible dimension"),
    "dimension is huge": ({A: entry(shape=(2**64,))}, 4, "no possible dimension"),
    "product is huge": ({A: entry(shape=[2**40] * 16)}, 4, "does not take the 4 bytes"),
    "a thousand dimensions": ({A: entry(shape=[1] * 1000)}, 4, "1000 dimensions"),
    "shape and bytes disagree": ({A: entry(shape=(3,))}, 4, "shape of 3 BF16 values does not take the 4 bytes"),
    "half a byte": ({A: entry("F4", (3,), (0, 1))}, 1, "does not take"),
    "offsets below 0": ({A: entry(offsets=(-4, 0))}, 4, "no range of bytes"),
    "offsets the wrong way": ({A: entry(offsets=(4, 0))}, 4, "no range of bytes"),
    "offsets are text": ({A: entry(offsets=("0", "4"))}, 4, "no range of bytes"),
    "overlap": ({A: entry(), "b": entry(offsets=(2, 6))}, 6, "overlaps"),
    "the same place": ({A: entry(), "b": entry()}, 4, "overlaps"),
    "a gap": ({A: entry(offsets=(2, 6))}, 6, "gap"),
    "data cut short": ({A: entry()}, 3, "cut short"),
    "data too long": ({A: entry()}, 9, "5 bytes follow"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_bad_headers(case: str, folder: Path) -> None:
    header, data_bytes, said = HEADERS[case]
    write_raw(folder / SHARD, json.dumps(header).encode(), data_bytes)
    refused(folder, str(folder / SHARD), said, "convert it" if "unknown" in case else "again")
    if case != "an entry has one more":  # what a runtime would refuse is what we refuse
        with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(folder / SHARD, "numpy"):
            pass


RAW: dict[str, tuple[bytes, int | None, str]] = {
    "empty": (b"", None, "too few"),
    "text": (b"hello, I am not a safetensors file", 0x6F77206F6C6C6568, "no JSON header"),
    "absurd length": (b"{}", 2**60, "header of 1152921504606846976 bytes"),
    "length beyond the file": (b"{}", 99_999_999, "cut short"),
    "bad JSON": (b'{"a":', None, "not valid JSON"),
    "not UTF-8": (b'{"\xff":1}', None, "not UTF-8"),
    "nested": (b'{"a":' + b"[" * 200_000, None, "nested too deep"),
    "name twice": (b'{"a":1,"a":1}', None, "'a' is given twice"),
    "key twice": (
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        None,
        "'dtype' is given twice",
    ),
    "digits": (b'{"a":' + b"9" * 5000 + b"}", None, "header: "),
    "millions of lists": (b'{"a":[' + b"[]," * (3 * MAX_TENSORS + 2000) + b"[]]}", None, f"more than {MAX_TENSORS}"),
    "millions of numbers": (b'{"a":[' + b"1," * (8 * MAX_TENSORS + 1001) + b"1]}", None, f"more than {MAX_TENSORS}"),
}


@pytest.mark.parametrize("case", RAW)
def test_bad_bytes(case: str, folder: Path) -> None:
    header, length, said = RAW[case]
    write_raw(folder / SHARD, header, 0, length=length)
    refused(folder, str(folder / SHARD), said, "again")


def test_names_of_half_characters_are_printed_all_the_same(folder: Path) -> None:
    write_raw(folder / SHARD, b'{"\\ud800\\n":1}', 0)
    refused(folder, str(folder / SHARD), "not UTF-8")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 20])
def test_files_cut_in_the_header(size: int, folder: Path) -> None:
    os.truncate(folder / SHARD, size)
    refused(folder, str(folder / SHARD), "download the file again")


def test_a_gguf_under_a_wrong_name(folder: Path) -> None:
    (folder / SHARD).write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    refused(folder, SHARD, "GGUF", ".gguf")


def test_ten_million_tensors_end_early(folder: Path, tmp_path: Path) -> None:
    path = folder / SHARD
    with path.open("wb") as file:  # a hole where the header of 500 MB would be
        file.write((500_000_000).to_bytes(8, "little") + b'{"t0":')
    os.truncate(path, 600_000_000)
    refused(folder, str(path), "500000000 bytes", "100000000")
    text = b'{"":' + b",".join([b"{}"] * (MAX_TENSORS * 3 + 1001)) + b"}"
    write_raw(path, text, 0)
    refused(folder, str(path), f"more than {MAX_TENSORS} tensors")


def test_too_many_tensors_in_many_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiles.safetensors.header.MAX_TENSORS", 20)
    refused(folder, "more than 20 tensors so far")
    monkeypatch.setattr("profiles.safetensors.header.MAX_TENSORS", 10**6)
    monkeypatch.setattr("profiles.safetensors.header.MAX_ALL_HEADERS_BYTES", 2000)
    refused(folder, "headers of more than 2000 bytes so far")


def test_not_a_file(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()
    refused(folder, str(folder / SHARD), "not a regular file")
    (folder / SHARD).rmdir()
    os.mkfifo(folder / SHARD)
    refused(folder, str(folder / SHARD), "not a regular file")


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / SHARD).unlink()
    refused(folder, "index.json", SHARD, "no file", "download it")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, str(folder / SHARD), "missing", "download it too")
    refused(folder / "model-00001-of-00003.safetensors", str(folder / SHARD), "missing")
    refused(tmp_path / "nothing", "no such file or folder")
    refused(tmp_path / "nothing.safetensors", "no such file or folder")
    refused(Path("a\0b"), "no such file")
    refused(Path("x" * 5000), "cannot be read")


def test_folders_without_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    refused(tmp_path, "no .safetensors file")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "pytorch_model.bin", "never opened", "safetensors or a GGUF")
    refused(tmp_path / "pytorch_model.bin", "never opened")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    refused(tmp_path, "give the .gguf file")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"model_type": "mixtral"})])
def test_configs_that_do_not_do(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, str(folder / "config.json"))
    (folder / "config.json").unlink()
    refused(folder, str(folder / "config.json"), "missing", "copy")


def edit_index(folder: Path, edit: Edit) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


ROUTER = "model.layers.0.block_sparse_moe.gate.weight"
TRAVERSALS = ["../good/x.safetensors", "/etc/passwd", "../../etc/passwd", "a/b.safetensors", "..\\x.safetensors",
              "C:x.safetensors", "..", "", ".", "x.bin", "x.safetensors\0", "x\n.safetensors",
              None, 3, ["x"], {"x": 1}, "x" * 5000 + ".safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", TRAVERSALS)
def test_an_index_names_files_beside_it_only(name: Any, folder: Path) -> None:
    edit_index(folder, lambda index: index["weight_map"].update({ROUTER: name}))
    refused(folder, "index.json", "weight_map", ROUTER, "beside it")


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"a":1,"a":2}'])
def test_indices_that_do_not_do(text: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, "index.json", "again")


def test_an_index_too_large_or_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiles.safetensors.reader.MAX_INDEX_BYTES", 1000)
    refused(folder, "index.json", "1000 bytes")
    monkeypatch.setattr("profiles.safetensors.reader.MAX_FILES", 2)
    monkeypatch.setattr("profiles.safetensors.reader.MAX_INDEX_BYTES", 10**6)
    refused(folder, "3 files, more than 2")
    index = folder / "model.safetensors.index.json"
    index.unlink()
    refused(folder, "3 safetensors files, more than 2")
    os.mkfifo(index)
    refused(folder, "index.json", "not a regular file")


def test_an_index_of_millions_of_tensors_ends_early(folder: Path) -> None:
    text = b'{"weight_map":{' + b'"":"",' * (MAX_TENSORS + 1001) + b'"":""}}'
    (folder / "model.safetensors.index.json").write_bytes(text)
    refused(folder, "index.json", f"more than {MAX_TENSORS} tensors")


def test_several_indices_must_be_chosen_from(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    (folder / "a.safetensors.index.json").write_text(index.read_text())
    check(read_safetensors(folder, "m"), TINY_ITEMS)
    index.rename(folder / "b.safetensors.index.json")
    refused(folder, "2 indices", "a.safetensors.index.json")


def test_index_and_files_must_agree(folder: Path) -> None:
    stray = "model.layers.0.x.weight"
    edit_index(folder, lambda index: index["weight_map"].update({stray: SHARD}))
    refused(folder, SHARD, stray, "not in it")
    edit_index(folder, lambda index: [index["weight_map"].pop(n) for n in (stray, ROUTER)])
    refused(folder, ROUTER, "the index does not say so")


def test_a_tensor_in_two_files(folder: Path) -> None:
    write_file(folder / "again.safetensors", TINY_ITEMS[:1])
    check(read_safetensors(folder, "m"), TINY_ITEMS)  # the index leaves it out
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "model.embed_tokens.weight", "again.safetensors")


def one_file(tmp_path: Path, items: Items, config: dict[str, Any] | None = None) -> Path:
    return write_checkpoint(tmp_path, config or TINY, items)


def without(text: str) -> Items:
    return [item for item in TINY_ITEMS if text not in item.name]


EXPERT = "block_sparse_moe.experts"
LACKS = {
    ".layers.1.": "layer 1: the files hold no tensor",
    f"layers.1.{EXPERT}": "layer 1: the files hold none of its 2 experts",
    f"layers.1.{EXPERT}.1.": "layer 1: expert 1 has no",
    f"layers.1.{EXPERT}.0.w2": "layer 1: expert 0 has no down projection",
    "w3": "layer 0: its experts have no up projection",
    "layers.1.self_attn.q_proj": "layer 1: attention: the files hold",
    "embed_tokens": "embedding: the files hold no",
    "lm_head": "head: the files hold no lm_head",
    "model.norm": "head: the files hold 3072 of its 3104 parameters",
}


@pytest.mark.parametrize("text", LACKS)
def test_what_the_config_promises_must_be_there(text: str, tmp_path: Path) -> None:
    refused(one_file(tmp_path, without(text)), str(tmp_path), LACKS[text], "a file is missing, or config.json")


def test_no_layers_at_all(tmp_path: Path) -> None:
    refused(one_file(tmp_path, without(".layers.")), "layer 0: the files hold no tensor")
    refused(one_file(tmp_path, []), "layer 0")
    refused(one_file(tmp_path, TINY_ITEMS, {**TINY, "num_hidden_layers": 0}), "config.json", "num_hidden_layers")


EXTRA = {
    "score.weight": "belongs to no block",
    "base_model.model.model.layers.0.x.lora_A.weight": "belongs to no block",
    "model.layers.2.input_layernorm.weight": "there is no layer 2, config.json says num_hidden_layers 2",
    "model.layers.999999.eh.weight": "there is no layer 999999",
    f"model.layers.0.{EXPERT}.2.w1.weight": "there is no expert 2",
    "language_model.model.layers.0.input_layernorm.weight": "layers of two models",
}


@pytest.mark.parametrize("name", EXTRA)
def test_what_has_no_place_is_named(name: str, tmp_path: Path) -> None:
    refused(one_file(tmp_path, [*TINY_ITEMS, Item("", name, (2, 2))]), "model.safetensors", name, EXTRA[name])


def test_experts_where_the_config_has_other_ones(tmp_path: Path) -> None:
    fused = Item("experts", f"model.layers.0.{EXPERT}.gate_up_proj", (3, 32, 96))
    refused(one_file(tmp_path, [*TINY_ITEMS, fused]), "shape of 3 experts, config.json says 2")
    dense = {**TINY, "model_type": "mistral", "sliding_window": None}
    refused(one_file(tmp_path, TINY_ITEMS, dense), "config.json says that layer 0 is dense")
