"""Bad input of every kind, through every loader: one line that names the place and the remedy, never a traceback."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from profiles import MoeplanError, load_hardware, load_placement, load_profile, load_workload
from profiles.document import dump_yaml

Loader = Callable[[Any], object]
LOADERS: dict[str, Loader] = {
    "profile": load_profile,
    "hardware": load_hardware,
    "placement": load_placement,
    "workload": load_workload,
}
PROFILE: dict[str, Any] = {
    "model": "m",
    "source": "s",
    "hidden_size": 64,
    "embedding": {"weight_bytes": 1},
    "head": {"weight_bytes": 1},
    "layers": [{"attention": {"weight_bytes": 1}, "experts": {"weight_bytes": 6, "count": 3, "active": 2}}],
}
GPU = {"name": "cuda:0", "kind": "gpu", "memory_bytes": 9, "bandwidth_bytes_per_s": 1, "flops_per_s": {"bf16": 1}}
CPU = {**GPU, "name": "cpu", "kind": "cpu"}
LINK = {"between": ["cpu", "cuda:0"], "bandwidth_bytes_per_s": 1, "latency_s": 0}
HARDWARE: dict[str, Any] = {"name": "h", "devices": [GPU, CPU], "links": [LINK]}
PLACEMENT: dict[str, Any] = {"embedding": "cpu", "head": "cpu", "layers": [{"attention": "cuda:0", "experts": {}}]}
GOOD = {"profile": PROFILE, "hardware": HARDWARE, "placement": PLACEMENT, "workload": {"batch_size": 1}}


def deep(levels: int) -> Any:
    nest: Any = 1
    for _ in range(levels):
        nest = [nest]
    return nest


def changed(document: Any, path: tuple[str | int, ...], value: object) -> Any:
    """A copy of `document` with the value at `path` replaced (or added)."""
    copy = list(document) if isinstance(document, list) else dict(document)
    if len(path) == 1:
        copy[path[0]] = value
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return copy


def refused(loader: str, x: object, *said: str) -> None:
    with pytest.raises(MoeplanError) as caught:
        LOADERS[loader](x)
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 400
    for part in said:
        assert part in message


@pytest.mark.parametrize("loader", LOADERS)
def test_the_good_documents_are_good(loader: str, tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(dump_yaml(GOOD[loader]))
    assert LOADERS[loader](path) == LOADERS[loader](GOOD[loader])


# ---- values: (loader, path of the field, bad value, what the message must name) ----

ATTENTION, EXPERTS = ("layers", 0, "attention"), ("layers", 0, "experts")
DEVICE, FIRST_LINK = ("devices", 0), ("links", 0)
VALUES: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("profile", ("model",), 5, "model"),
    ("profile", ("model",), "", "model"),
    ("profile", ("source",), None, "source"),
    ("profile", ("schema",), 2, "schema"),
    ("profile", ("schema",), True, "schema"),
    ("profile", ("schema",), 1.0, "schema"),
    ("profile", ("hidden_size",), 0, "hidden_size"),
    ("profile", ("hidden_size",), True, "hidden_size"),
    ("profile", ("hidden_size",), "64", "hidden_size"),
    ("profile", ("hidden_size",), 64.5, "hidden_size"),
    ("profile", ("hidden_size",), 10**5000, "hidden_size"),
    ("profile", ("activation_bytes",), 9, "activation_bytes"),
    ("profile", ("tied_bytes",), 2, "tied_bytes"),
    ("profile", ("notes",), "one", "notes"),
    ("profile", ("hiden_size",), 3, "did you mean 'hidden_size'"),
    ("profile", ("k" * 10**5,), 3, "unknown key"),
    ("profile", ("line\nbreak",), 3, "unknown key"),
    ("profile", ("self",), 3, "unknown key"),
    ("profile", ("embedding",), None, "embedding"),
    ("profile", ("embedding",), [], "embedding"),
    ("profile", ("embedding", "weight_bytes"), "5 apples", "embedding.weight_bytes"),
    ("profile", ("embedding", "weight_bytes"), {"gpu": 1}, "cpu: missing"),
    ("profile", ("head", "weight_bytes"), 1.5, "head.weight_bytes"),
    ("profile", ("layers",), [], "layers"),
    ("profile", ("layers",), {}, "layers"),
    ("profile", ("layers",), "1", "layers"),
    ("profile", ("layers", 0), None, "layers[0]"),
    ("profile", ("layers", 0, "repeat"), 10**9, "layers[0].repeat"),
    ("profile", ("layers", 0, "repeat"), -1, "layers[0].repeat"),
    ("profile", ("layers", 0, "repeat"), True, "layers[0].repeat"),
    ("profile", ("layers", 0, "repeat"), "3", "layers[0].repeat"),
    ("profile", (*ATTENTION, "weight_bytes"), -1, "layers[0].attention.weight_bytes"),
    ("profile", (*ATTENTION, "weight_bytes"), True, "layers[0].attention.weight_bytes"),
    ("profile", (*ATTENTION, "weight_bytes"), float("nan"), "layers[0].attention.weight_bytes"),
    ("profile", (*ATTENTION, "weight_bytes"), float("inf"), "layers[0].attention.weight_bytes"),
    ("profile", (*ATTENTION, "weight_bytes"), 10**400, "layers[0].attention.weight_bytes"),
    ("profile", (*ATTENTION, "weight_bytes"), "1e400 GB", "layers[0].attention.weight_bytes"),
    ("profile", (*ATTENTION, "weight_bytes"), date(2024, 1, 1), "layers[0].attention.weight_bytes"),
    ("profile", (*ATTENTION, "kv_bytes_per_token"), "5 s", "kv_bytes_per_token"),
    ("profile", (*ATTENTION, "kv_window_tokens"), 0, "kv_window_tokens"),
    ("profile", (*ATTENTION, "flops_per_token_pair"), True, "flops_per_token_pair"),
    ("profile", (*ATTENTION, "measured_seconds"), {"gpu": {}}, "measured_seconds"),
    ("profile", (*ATTENTION, "measured_seconds"), {"gpu": {0: 1}}, "measured_seconds"),
    ("profile", (*ATTENTION, "measured_seconds"), {"gpu": {1: "1 GB"}}, "measured_seconds"),
    ("profile", (*ATTENTION, "measured_seconds"), {"gpu": 5}, "measured_seconds"),
    ("profile", (*ATTENTION, "workspace_bytes"), {"per_tokn": 5}, "per_token"),
    ("profile", (*ATTENTION, "params"), 1e9, "params"),
    ("profile", (*EXPERTS, "active"), 4, "active 4"),
    ("profile", (*EXPERTS, "count"), 10**9, "count"),
    ("profile", (*EXPERTS, "count"), 0, "count"),
    ("profile", (*EXPERTS, "frequencies"), [0.5], "frequencies"),
    ("profile", (*EXPERTS, "frequencies"), [0.5, 2, 0.1], "frequencies[1]"),
    ("profile", (*EXPERTS, "frequencies"), [0.5, float("nan"), 0.1], "frequencies[1]"),
    ("profile", (*EXPERTS, "frequencies"), [0.5, True, 0.1], "frequencies[1]"),
    ("profile", (*EXPERTS, "expert_weight_bytes"), [1, 1, 1], "expert_weight_bytes"),
    ("profile", ("measured",), [], "needs a base"),
    ("profile", ("base",), "no-such-model", "base"),
    ("hardware", ("name",), "", "name"),
    ("hardware", ("devices",), [CPU, CPU], "cpu is given twice"),
    ("hardware", ("devices",), [GPU], "there is no cpu"),
    ("hardware", ("devices",), [], "devices"),
    ("hardware", ("devices",), deep(500), "devices[0]"),
    ("hardware", ("devices", 0), "L40", "devices[0]"),
    ("hardware", (*DEVICE, "name"), "gpu0", "devices[0].name"),
    ("hardware", (*DEVICE, "name"), 0, "devices[0].name"),
    ("hardware", (*DEVICE, "name"), "cuda:-1", "devices[0].name"),
    ("hardware", (*DEVICE, "kind"), "tpu", "devices[0].kind"),
    ("hardware", (*DEVICE, "kind"), "cpu", "devices[0]"),
    ("hardware", (*DEVICE, "memory_bytes"), 0, "devices[0].memory_bytes"),
    ("hardware", (*DEVICE, "memory_bytes"), "-46 GB", "devices[0].memory_bytes"),
    ("hardware", (*DEVICE, "bandwidth_bytes_per_s"), 0, "bandwidth_bytes_per_s"),
    ("hardware", (*DEVICE, "bandwidth_bytes_per_s"), "864 GB", "bandwidth_bytes_per_s"),
    ("hardware", (*DEVICE, "bandwidth_efficiency"), 1.5, "bandwidth_efficiency"),
    ("hardware", (*DEVICE, "flops_per_s"), {}, "flops_per_s"),
    ("hardware", (*DEVICE, "flops_per_s"), 181e12, "flops_per_s"),
    ("hardware", (*DEVICE, "flops_per_s"), {"bf16": "many"}, "flops_per_s.bf16"),
    ("hardware", (*DEVICE, "safety_margin"), 1, "safety_margin"),
    ("hardware", (*DEVICE, "safety_margin"), True, "safety_margin"),
    ("hardware", (*DEVICE, "memory"), 46, "did you mean 'memory_bytes'"),
    ("hardware", (*DEVICE, "repeat"), 10**6, "devices[0].repeat"),
    ("hardware", (*DEVICE, "use"), "L400", "devices[0].use"),
    ("hardware", (*DEVICE, "use"), ["L40"], "devices[0].use"),
    ("hardware", ("links",), [], "nothing connects cuda:0"),
    ("hardware", ("links",), "pcie", "links"),
    ("hardware", (*FIRST_LINK, "between"), ["cpu"], "links[0].between"),
    ("hardware", (*FIRST_LINK, "between"), ["cpu", "cpu"], "links[0].between"),
    ("hardware", (*FIRST_LINK, "between"), ["cpu", "cuda:7"], "cuda:7 is not a device"),
    ("hardware", (*FIRST_LINK, "latency_s"), "-1 us", "links[0].latency_s"),
    ("hardware", (*FIRST_LINK, "bandwidth_bytes_per_s"), float("inf"), "links[0].bandwidth_bytes_per_s"),
    ("placement", ("embedding",), "disk", "embedding"),
    ("placement", ("layers",), [], "layers"),
    ("placement", ("layers", 0, "attention"), None, "layers[0].attention"),
    ("placement", ("layers", 0, "attention"), "cuda:99999", "layers[0].attention"),
    ("placement", ("layers", 0, "experts"), {"cpu": "some"}, "layers[0].experts.cpu"),
    ("placement", ("layers", 0, "experts"), {"cpu": []}, "layers[0].experts.cpu"),
    ("placement", ("layers", 0, "experts"), {"cpu": [-1]}, "expert id -1"),
    ("placement", ("layers", 0, "experts"), {"cpu": [True]}, "expert id True"),
    ("placement", ("layers", 0, "experts"), {"cpu": [1.0]}, "expert id 1.0"),
    ("placement", ("layers", 0, "experts"), {"cpu": [10**9]}, "expert id 1000000000"),
    ("placement", ("layers", 0, "experts"), {"cpu": [3, 3]}, "expert 3 is placed twice"),
    ("placement", ("layers", 0, "experts"), {"cpu": [3], "cuda:0": [1, 3]}, "expert 3 is placed twice"),
    ("placement", ("layers", 0, "experts"), {"cpu": "all", "cuda:0": [1]}, "'all' on one device"),
    ("placement", ("layers", 0, "experts"), {"gpu": "all"}, "layers[0].experts.gpu"),
    ("placement", ("layers", 0, "experts"), {5: "all"}, "layers[0].experts"),
    ("placement", ("layers", 0, "experts"), "cpu", "layers[0].experts"),
    ("placement", ("layers", 0, "exprts"), {}, "did you mean 'experts'"),
    ("placement", ("status",), "great", "status"),
    ("placement", ("objective_s",), float("inf"), "objective_s"),
    ("placement", ("gap",), float("nan"), "gap"),
    ("placement", ("gap",), -0.1, "gap"),
    ("placement", ("safety_margin",), 1.5, "safety_margin"),
    ("placement", ("workload",), {"batch_size": 0}, "batch_size"),
    ("placement", ("workload",), {1: 2}, "workload"),
    ("placement", ("workload",), {"prompt_tokens": 9, "context_tokens": 3}, "context_tokens"),
    ("placement", ("memory",), {"cpu": {"weights_bytes": True}}, "memory.cpu.weights_bytes"),
    ("placement", ("prediction",), {"prefill_s": "soon"}, "prediction.prefill_s"),
    ("workload", ("prompt_tokens",), 0, "prompt_tokens"),
    ("workload", ("prompt_tokens",), 1.5, "prompt_tokens"),
    ("workload", ("prompt_tokens",), "many", "prompt_tokens"),
    ("workload", ("generated_tokens",), -1, "generated_tokens"),
    ("workload", ("batch_size",), True, "batch_size"),
    ("workload", ("batch_size",), 10**5000, "batch_size"),
    ("workload", ("context_tokens",), 3, "context_tokens"),
    ("workload", ("prefill_chunk",), None, "prefill_chunk"),
]


@pytest.mark.parametrize(
    ("loader", "path", "value", "said"), VALUES, ids=[f"{i}-{case[0]}" for i, case in enumerate(VALUES)]
)
def test_bad_values(loader: str, path: tuple[str | int, ...], value: Any, said: str, tmp_path: Path) -> None:
    document = changed(GOOD[loader], path, value)
    refused(loader, document, said)
    try:
        text = dump_yaml(document)
    except (yaml.YAMLError, RecursionError, ValueError):
        return  # some values exist in Python only
    (tmp_path / "bad.yaml").write_text(text)
    long_number = re.search(r"[0-9]{61}", text)
    refused(loader, tmp_path / "bad.yaml", "bad.yaml", "a number of" if long_number else said)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("key", sorted({key for good in GOOD.values() for key in good}))
def test_missing_keys(loader: str, key: str) -> None:
    if key in GOOD[loader] and loader != "workload" and key != "links":
        refused(loader, {k: v for k, v in GOOD[loader].items() if k != key}, f"{key}: missing, add it")


# ---- files: what is written, and what the message must say beside the file's name ----

FILES: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("x.yaml", "", "expected a mapping"),
    "only a comment": ("x.yaml", "# nothing", "expected a mapping"),
    "empty JSON": ("x.json", "", "not valid JSON"),
    "a list": ("x.yaml", "- 1\n- 2", "a list of 2"),
    "a JSON list": ("x.json", "[1]", "a list of 1"),
    "a word": ("x.yaml", "hello", "'hello'"),
    "a number": ("x.json", "5", "got 5"),
    "two documents": ("x.yaml", "a: 1\n---\nb: 2", "not valid YAML"),
    "broken YAML": ("x.yaml", "a: [1, 2", "not valid YAML"),
    "a tab": ("x.yaml", "a:\n\t- 1", "not valid YAML"),
    "truncated JSON": ("x.json", '{"schema": 1, "layers": [{"atten', "not valid JSON"),
    "a doubled key": ("x.yaml", "model: a\nmodel: b", "given twice"),
    "a doubled JSON key": ("x.json", '{"model": 1, "model": 2}', "given twice"),
    "equal keys": ("x.yaml", "{1: a, 0x1: b}", "equal"),
    "a doubled inner key": ("x.yaml", "a:\n  b: 1\n  b: 2", "given twice"),
    "a key that is a number": ("x.yaml", "1: 2", "key 1 is not text"),
    "a key that is null": ("x.yaml", "~: 2", "key None is not text"),
    "a key that is a date": ("x.yaml", "2024-01-01: 2", "is not text"),
    "a key that is a list": ("x.yaml", "? [a]\n: 1", "unhashable"),
    "a key that is a mapping": ("x.yaml", "{{a: 1}: 2}", "unhashable"),
    "an unknown key": ("x.yaml", "modle: 1", "modle"),
    "a Python tag": ("x.yaml", "a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    "a tag": ("x.yaml", "a: !secret b", "not valid YAML"),
    "a merge": ("x.yaml", "a: {<<: {b: 1}}", "merge keys"),
    "an alias": ("x.yaml", "a: &x 1\nb: *x", "aliases"),
    "an alias bomb": ("x.yaml", "a: &a [1]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50)), "aliases"),
    "an alias of itself": ("x.yaml", "&a [*a]", "aliases"),
    "an impossible date": ("x.yaml", "a: 2024-13-45", "not valid YAML"),
    "a long number": ("x.yaml", "a: " + "9" * 5000, "5000 characters"),
    "a long JSON number": ("x.json", '{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    "a long hexadecimal": ("x.yaml", "a: 0x" + "f" * 5000, "characters"),
    "a long number in base 60": ("x.yaml", "a: 1" + ":59" * 100_000, "characters"),
    "deep YAML": ("x.yaml", "[" * 5000, "nested too deep"),
    "deep JSON": ("x.json", "[" * 100_000, "nested too deep"),
    "deep block YAML": ("x.yaml", "- " * 3000 + "1", "nested too deep"),
    "half a character": ("x.json", '{"model": "\\ud800"}', "not valid JSON"),
    "half a character in YAML": ("x.yaml", 'model: "\\ud800"', "not valid YAML"),
    "control characters": ("x.yaml", "a: \x07", "not valid YAML"),
    "binary": ("x.yaml", b"\x80\x81\xff\xfe\x00", "is not UTF-8 text"),
    "UTF-16": ("x.json", "{}".encode("utf-16"), "is not UTF-8 text"),
    "ten megabytes": ("x.yaml", "a: " + "x" * 10_000_000, "10000003 bytes"),
    "many keys": ("x.yaml", "{" + ", ".join(f"k{i}" for i in range(9999)) + "}", "unknown key"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("case", FILES)
def test_bad_files(loader: str, case: str, tmp_path: Path) -> None:
    name, content, said = FILES[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(loader, path, name, said)


@pytest.mark.parametrize("loader", LOADERS)
def test_no_file(loader: str, tmp_path: Path) -> None:
    refused(loader, tmp_path / "missing.yaml", "missing.yaml", "no such file")
    refused(loader, tmp_path / "missing.yaml" / "deeper.yaml", "deeper.yaml", "no such file")
    refused(loader, tmp_path, tmp_path.name, "is a folder")
    refused(loader, "\0.yaml")
    refused(loader, "x" * 5000 + ".yaml", ".yaml", "no such file")
    refused(loader, tmp_path / "line\nbreak.yaml", "line break.yaml", "no such file")
    refused(loader, "\udcff.yaml", "no such file")


@pytest.mark.parametrize("loader", LOADERS)
def test_odd_files(loader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    refused(loader, tmp_path / "pipe.yaml", "pipe.yaml", "not a regular file")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    refused(loader, tmp_path / "loop.yaml", "loop.yaml")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "x",
    [5, 5.5, True, b"deepseek-v2", [], [1], (), object(), str, "", "  ", {1: 2}, {None: 1}],
    ids=lambda x: repr(x).partition(" at ")[0],
)
def test_wrong_types(loader: str, x: object) -> None:
    refused(loader, x, loader)


@pytest.mark.parametrize("loader", ["profile", "hardware", "placement"])
def test_none_is_nothing_to_load(loader: str) -> None:
    refused(loader, None, loader, "None")


PHRASES = [
    *("8x", "0xL40", "65xL40", "-1xL40", "40xL40+40xL4", "8xL40-0GB", "8xL40-46", "8xL40-46QB", "9" * 300 + "xL40"),
    *("8xL40+", "+8xL40", "8xL40++L4", ",8xL40", "8xL40,", "8xL40,,ram=1GB", "8xL40,2xLL4", "8xL40,foo=1", "="),
    *("8xL40,ram", "8xL40,ram=", "8xL40,ram=5x", "8xL40,ram=-5GB", "8xL40,ram=0GB", "8xL40,ram=1e9GB", "cpu="),
    *("8xL40,ram=1GB,RAM=2GB", "8xL40,cpu=EPYC", "8xL40,cpu=L40", "8xL40,sockets=0", "8xL40,sockets=two"),
    *("8xL40,sockets=99", "8xL40,link=nvlink", "8xL40,link=fast", "8xL40,link=0GB/s", "8xL40,link=50GB", "xL40"),
    *(
        "8xL40\n",
        "8xL40\x00",
        "8xA100",
        "L40;rm -rf",
        "8xL40-1e9GB",
        "x" * 10_000,
        "٣xL40",
        "8xL40-99999999999999999999GB",
    ),
]


@pytest.mark.parametrize(
    "phrase", [phrase for phrase in PHRASES if phrase.strip() != "8xL40"], ids=range(len(PHRASES) - 1)
)
def test_bad_phrases(phrase: str) -> None:
    refused("hardware", phrase, repr(phrase)[1:9])


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": 5},
        {"model_type": "deepseek_v2"},
        {"model_type": "deepseek_v2", "hidden_size": -1},
        {"model_type": "mixtral", "num_hidden_layers": 10**9, "hidden_size": True},
        {"architectures": []},
        {"model_type": "no\nsuch\nmodel" * 99},
    ],
    ids=range(6),
)
def test_bad_configs(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused("profile", tmp_path / "config.json", "config.json")


@pytest.mark.parametrize("quant", [5, "", "bf17", "bf16\n", ["bf16"], True])
def test_bad_quants(quant: Any) -> None:
    with pytest.raises(MoeplanError, match=r"^[^\n]*quant[^\n]*$"):
        load_profile("deepseek-v2", quant=quant)
