"""`moeplan models`, `gpus` and `cpus`, and token counts as people write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from profiles import load_hardware, load_profile
from profiles.catalogue import catalogue
from profiles.load_model import profile_presets
from profiles.units import parse_count


def test_gpus_and_cpus_are_listed_and_documents(moeplan: Any) -> None:
    for kind, parts in (("gpus", catalogue().gpus), ("cpus", catalogue().cpus)):
        status, out, _ = moeplan(kind, "--json")
        document = json.loads(out)
        assert status == 0
        assert [entry["name"] for entry in document[kind]] == [part.name for part in parts]
        assert all(entry["maker"] and entry["flops_per_s"] for entry in document[kind])
        assert document["sources"]["mem"].startswith("remembered")
        status, out, _ = moeplan(kind)
        assert status == 0
        assert all(part.name in out for part in parts)


def test_some_of_them_by_a_part_of_any_name(moeplan: Any) -> None:
    for words, names in {
        "4090": ["RTX4090", "RTX4090D"],
        "NVIDIA GeForce RTX 5060 Ti": ["RTX5060Ti-16GB", "RTX5060Ti-8GB"],
        "dgx spark": ["GB10"],
    }.items():
        status, out, _ = moeplan("gpus", words, "--json")
        assert (status, [entry["name"] for entry in json.loads(out)["gpus"]]) == (0, names)
    status, out, _ = moeplan("cpus", "9654", "--json")
    (epyc,) = json.loads(out)["cpus"]
    assert (epyc["name"], epyc["peak_bytes_per_s"], epyc["clock_hz"]) == ("EPYC-9654", 460.8e9, 2.98e9)


def test_what_is_listed_can_be_used(moeplan: Any) -> None:
    _, out, _ = moeplan("gpus", "ascend", "--json")
    for entry in json.loads(out)["gpus"]:
        assert load_hardware(f"2x{entry['name']}").gpus[0].memory_bytes == entry["memory_bytes"]


def test_models_with_parameters_and_bytes(moeplan: Any) -> None:
    status, out, _ = moeplan("models", "qwen3-30b", "--json")
    (row,) = json.loads(out)["models"]
    found = load_profile("qwen3-30b-a3b")
    assert status == 0
    assert (row["name"], row["repository"]) == ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B")
    assert (row["params"], row["active_params"]) == (found.params, found.active_params)
    assert row["weight_bytes"] == found.weight_bytes
    status, out, _ = moeplan("models", "mixtral")
    assert status == 0
    assert all(name in out for name in profile_presets() if name.startswith("mixtral"))


@pytest.mark.parametrize("kind", ["models", "gpus", "cpus"])
def test_none_of_that_name_is_one_line(moeplan: Any, kind: str) -> None:
    status, out, err = moeplan(kind, "qwen3-31b" if kind == "models" else "nothing like it")
    assert (status, out) == (1, "")
    assert err.startswith("moeplan: no ")
    assert err.count("\n") == 1


def test_tokens_may_be_counted_in_k(moeplan: Any) -> None:
    assert (parse_count("32k"), parse_count("1M"), parse_count("0.5k")) == (32768, 2**20, 512)
    for text in ("32kk", "-1", "1.5", "", "k"):
        with pytest.raises(ValueError, match=r"write e\.g\. 32768 or 32k"):
            parse_count(text)
    status, out, _ = moeplan("solve", "olmoe-1b-7b", "1xRTX4090", "--context-tokens", "4k", "--json")
    assert status == 0
    assert json.loads(out)["workload"]["context_tokens"] == 4096
    status, _, err = moeplan("solve", "olmoe-1b-7b", "1xRTX4090", "--context-tokens", "much")
    assert status == 2
    assert "32k" in err
