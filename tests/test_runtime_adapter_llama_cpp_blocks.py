"""Which layer llama.cpp puts where, in files with and without blocks for multi-token prediction: they count by file."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_files import write_gguf
from llama_cpp_files import known, metadata, tensors

from moeplan import load_profile, read_rules

PLACES = {
    (False, 3): ["cpu", "cpu", "cuda:0", "cuda:0"],
    (False, 4): ["cpu", "cuda:0", "cuda:0", "cuda:1"],
    (False, 5): ["cuda:0", "cuda:0", "cuda:0", "cuda:1"],
    (True, 3): ["cpu", "cpu", "cpu", "cuda:0"],
    (True, 4): ["cpu", "cpu", "cuda:0", "cuda:0"],
    (True, 5): ["cpu", "cuda:0", "cuda:0", "cuda:0"],
}
"""(with a block after four layers, -ngl) -> device of each layer under -ts 1,1, as llama.cpp build 11434 loads it."""


@pytest.mark.parametrize("name", ["glm4moe", "deepseek2", "deepseek32", "qwen3next", "qwen35moe"])
@pytest.mark.parametrize("with_block", [False, True])
def test_layers_are_counted_by_the_file(name: str, with_block: bool, tmp_path: Path) -> None:
    case = known()["architectures"][name]
    fields, found = metadata(name), tensors(case)
    if with_block:
        fields, found = metadata(name, case["mtp"]["metadata"]), [*found, *tensors(case["mtp"])]
    write_gguf(tmp_path / "m.gguf", name, fields, found)
    profile = load_profile(tmp_path / "m.gguf")
    assert profile.mtp_layers == int(with_block)
    for layers in (3, 4, 5):
        line = f"llama-server -m m.gguf -fit off -ngl {layers} -ts 1,1"
        plan = read_rules(line, "llama.cpp", profile)
        assert [layer.attention for layer in plan.layers] == PLACES[with_block, layers]
        assert plan.head == "cuda:1"


def test_a_block_that_the_metadata_promises_counts_though_it_is_gone(tmp_path: Path) -> None:
    """llama.cpp takes the number of layers from the metadata, and a file whose block was left out may keep it there."""
    fields = metadata("glm4moe", {".block_count": 5, ".nextn_predict_layers": 1})
    write_gguf(tmp_path / "m.gguf", "glm4moe", fields, tensors(known()["architectures"]["glm4moe"]))
    plan = read_rules("llama-server -m m.gguf -fit off -ngl 5 -ts 1,1", "llama.cpp", load_profile(tmp_path / "m.gguf"))
    assert [layer.attention for layer in plan.layers] == PLACES[True, 5]
