"""Models of the hub: what is read equals the files that a server has, and next to nothing of them is sent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import check, qwen3_moe, write_checkpoint, write_raw
from gguf_files import T, write_gguf, write_shards
from hub_server import COMMIT, Hub, Trick, breaking_off, redirecting, saying, serving, whole

from moeplan import evaluate, load_profile, solve
from profiles import ModelProfile, ProfileError
from profiles.hub.allow import allowed, is_allowed
from profiles.hub.choose import chosen_gguf, ggufs
from profiles.hub.name import HubName
from profiles.load_model import with_hub_config
from profiles.presets import model_config_preset

pytest.importorskip("huggingface_hub")
QWEN, GGUF = "Qwen/Qwen3-9B-A3B", "unsloth/Qwen3-9B-A3B-GGUF"
PUBLISHED = model_config_preset("qwen3-30b-a3b") or {}
MANY = {**PUBLISHED, "num_hidden_layers": 4}
CONFIG = {**PUBLISHED, "num_hidden_layers": 2, "num_experts": 16, "moe_intermediate_size": 24_576}
"""10 GB in few tensors, for tests that are quick; MANY has headers of a usual length."""
ITEMS, MANY_ITEMS = qwen3_moe(CONFIG), qwen3_moe(MANY)
SHARD = "Qwen3-9B-A3B-UD-Q2_K_XL-0000"
MiB = 2**20
FIELDS: dict[str, Any] = {
    ".block_count": 2, ".embedding_length": 2048, ".attention.head_count": 32, ".attention.head_count_kv": 4,
    ".expert_count": 128, ".expert_used_count": 8, "general.file_type": 15,
}  # fmt: skip


def gguf_tensors() -> list[tuple[str, tuple[int, ...], T]]:
    found = [("token_embd.weight", (2048, 4096), T.Q4_K)]
    for i in range(2):
        found += [(f"blk.{i}.attn_{p}.weight", (2048, n), T.Q4_K) for p, n in (("q", 4096), ("k", 512), ("v", 512))]
        found += [(f"blk.{i}.attn_output.weight", (4096, 2048), T.Q4_K)]
        found += [(f"blk.{i}.ffn_gate_inp.weight", (2048, 128), T.F32)]
        found += [(f"blk.{i}.ffn_{p}_exps.weight", (2048, 768, 128), T.Q4_K) for p in ("gate", "up")]
        found += [(f"blk.{i}.ffn_down_exps.weight", (768, 2048, 128), T.Q6_K)]
    return [*found, ("output_norm.weight", (2048,), T.F32), ("output.weight", (2048, 4096), T.Q6_K)]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of 10 GB in safetensors, and another in GGUF files whose tokenizer alone takes more than 4 MiB."""
    folder = tmp_path_factory.mktemp("repositories")
    checkpoint = write_checkpoint(folder / "Qwen3-9B-A3B", CONFIG, ITEMS, 4)
    (checkpoint / "README.md").write_text("a card")
    quantised = folder / "Qwen3-9B-A3B-GGUF"
    (quantised / "UD-Q2_K_XL").mkdir(parents=True)
    tokens = {"tokenizer.ggml.tokens": [f"token number {i:060}" for i in range(60_000)]}
    tensors = gguf_tensors()
    write_gguf(quantised / "Qwen3-9B-A3B-Q4_K_M.gguf", "qwen3moe", FIELDS | tokens, tensors)
    write_shards(quantised / "UD-Q2_K_XL", "Qwen3-9B-A3B-UD-Q2_K_XL", "qwen3moe", FIELDS, [tensors[:9], tensors[9:]])
    write_gguf(quantised / "mmproj-F16.gguf", "clip", {}, [("v.weight", (32, 32), T.F16)])
    return {QWEN: checkpoint, GGUF: quantised}


@pytest.fixture
def hub(repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that HF_ENDPOINT names, and an empty cache."""
    from profiles.hub import fetch

    with serving() as server:
        server.repositories = dict(repositories)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield server


def kept(tmp_path: Path) -> list[str]:
    """Names of all files in the cache but for those that say what there is."""
    files = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    return sorted(path.name for path in files if path.name != "listing.json" and path.parent.name != "refs")


def same(one: ModelProfile, other: ModelProfile) -> bool:
    """Equal but for where they come from."""
    plain: dict[str, Any] = {"model": "m", "source": "s", "notes": ()}
    return one.replace(**plain) == other.replace(**plain)


# ---- names ----


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Qwen/Qwen3-30B-A3B", ("Qwen/Qwen3-30B-A3B", "main", None)),
        (" a/b.c_d@refs/pr/1 ", ("a/b.c_d", "refs/pr/1", None)),
        ("a/b@v1:Q4_K_M", ("a/b", "v1", "Q4_K_M")),
        ("hf.co/a/b:UD-Q4_K_XL", ("a/b", "main", "UD-Q4_K_XL")),
        ("a/b:BF16/x-00001-of-00002.gguf", ("a/b", "main", "BF16/x-00001-of-00002.gguf")),
        ("https://huggingface.co/a/b", ("a/b", "main", None)),
        ("https://huggingface.co/a/b/blob/main/q/x.gguf?download=true", ("a/b", "main", "q/x.gguf")),
    ],
)
def test_names(text: str, found: tuple[str, str, str | None]) -> None:
    name = HubName.parse(text)
    assert name is not None
    assert (name.repository, name.at, name.pick) == found
    assert HubName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text", ["", "qwen3", "a/b/c", "./a/b", "/a/b", "../b", "a/..", "a/b:", "a/b@", "a/b:x:y", "ä/b"]
)
def test_what_is_no_name(text: str) -> None:
    assert HubName.parse(text) is None


# ---- what is read, and what it costs ----


def test_a_checkpoint_of_10_gb_costs_its_headers(hub: Hub, repositories: dict[str, Path], tmp_path: Path) -> None:
    profile = load_profile(QWEN, hub=True)
    check(profile, ITEMS)
    assert same(profile, load_profile(repositories[QWEN]))
    assert profile.weight_bytes > 10e9
    assert hub.sent < 2 * MiB
    assert profile.model == QWEN
    assert profile.source.endswith(f"{QWEN}, commit {COMMIT[:7]}")
    assert "README.md" not in kept(tmp_path)
    disk = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*"))
    assert disk < 4 * MiB


def test_a_gguf_by_its_format_costs_its_header(hub: Hub, repositories: dict[str, Path], tmp_path: Path) -> None:
    profile = load_profile(f"{GGUF}:q4_k_m", hub=True)
    assert same(profile, load_profile(repositories[GGUF] / "Qwen3-9B-A3B-Q4_K_M.gguf"))
    assert profile.weight_bytes > 700e6
    assert 4 * MiB < hub.sent < 9 * MiB  # the tokenizer, found by reading 1, 4 and 8 MiB
    assert kept(tmp_path) == ["Qwen3-9B-A3B-Q4_K_M.gguf"]


@pytest.mark.parametrize("pick", ["UD-Q2_K_XL", f"{SHARD}2-of-00002.gguf", f"UD-Q2_K_XL/{SHARD}1-of-00002.gguf"])
def test_any_shard_stands_for_all(pick: str, hub: Hub, repositories: dict[str, Path]) -> None:
    first = repositories[GGUF] / "UD-Q2_K_XL" / f"{SHARD}1-of-00002.gguf"
    assert same(load_profile(f"{GGUF}:{pick}", hub=True), load_profile(first))
    assert hub.sent < 3 * MiB


def test_formats_are_told_apart() -> None:
    paths = ["a-Q4_K_M.gguf", "a-UD-Q4_K_M.gguf", "b.imatrix.gguf", "a-iq4_xs.gguf", "Q8_0/a-00001-of-00001.gguf"]
    sets = ggufs(paths)
    picks = {"q4_k_m": 0, "UD-Q4_K_M": 1, "IQ4_XS": 3, "Q8_0": 4, "a-iq4_xs": 3}
    for pick, place in picks.items():
        assert chosen_gguf(HubName("o", "n", None, pick), sets) == [paths[place]]


def test_a_format_of_our_own_needs_the_config_only(hub: Hub, repositories: dict[str, Path], tmp_path: Path) -> None:
    profile = load_profile(QWEN, "q4_k_m", hub=True)
    assert same(profile, load_profile(repositories[QWEN] / "config.json", "q4_k_m"))
    assert kept(tmp_path) == ["config.json"]
    assert profile.model == f"{QWEN}:config.json"
    assert len(hub.asked) == 2


def test_small_files_that_say_formats_lie_beside_the_config(
    hub: Hub, repositories: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    quantisation = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    said = {"config.json": CONFIG, "hf_quant_config.json": {"producer": {}, "quantization": quantisation}}
    for name in ("config.json", "hf_quant_config.json", "quantize_config.json", "tokenizer.json"):
        (folder / name).write_text(json.dumps(said.get(name, {})))
    hub.repositories["a/b"] = folder
    assert load_profile("a/b", hub=True).quant == "fp8"
    assert kept(tmp_path) == ["config.json", "hf_quant_config.json", "quantize_config.json"]


def test_an_index_chooses_among_the_safetensors(hub: Hub, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "repository", CONFIG, ITEMS, 2)
    (folder / "consolidated.safetensors").write_bytes(b"another layout of the same weights")
    hub.repositories["a/b"] = folder
    assert load_profile("a/b", hub=True).weight_bytes > 10e9
    assert not any("consolidated" in path for path in hub.asked)


def test_headers_of_any_length(hub: Hub, tmp_path: Path) -> None:
    """One file whose header is beyond what is read at first."""
    hub.repositories["a/b"] = write_checkpoint(tmp_path / "repository", MANY, MANY_ITEMS)
    check(load_profile("a/b", hub=True), MANY_ITEMS)
    assert sum(path.endswith("model.safetensors") for path in hub.asked) == 2


def test_a_server_without_ranges_is_hung_up_on(hub: Hub, repositories: dict[str, Path], tmp_path: Path) -> None:
    hub.tricks = {".safetensors": whole, ".gguf": whole}
    assert same(load_profile(QWEN, hub=True), load_profile(repositories[QWEN]))
    hub.repositories["a/b"] = write_checkpoint(tmp_path / "repository", MANY, MANY_ITEMS)
    check(load_profile("a/b", hub=True), MANY_ITEMS)
    load_profile(f"{GGUF}:Q4_K_M", hub=True)
    # Beside the 13 MiB of the GGUF's three answers, what the sockets between two processes hold of each of 9 answers.
    assert hub.sent < 100 * MiB


# ---- once fetched ----


def test_a_second_call_asks_for_the_revision_only(hub: Hub) -> None:
    first = load_profile(QWEN, hub=True)
    hub.asked.clear()
    assert load_profile(QWEN, hub=True) == first
    assert hub.asked == [f"/api/models/{QWEN}/revision/main"]
    hub.asked.clear()
    assert same(load_profile(f"{QWEN}@{COMMIT}", hub=True), first)  # a commit does not change
    assert hub.asked == []


def test_a_new_commit_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["a/b"] = write_checkpoint(tmp_path / "one", CONFIG, ITEMS)
    before = load_profile("a/b", hub=True)
    hub.repositories["a/b"] = write_checkpoint(tmp_path / "two", CONFIG, ITEMS[:-1], 2)
    hub.commit = COMMIT[::-1]
    (tmp_path / "two" / "config.json").write_text(json.dumps({**CONFIG, "num_experts_per_tok": 4}))
    hub.repositories["a/b"] = write_checkpoint(tmp_path / "two", {**CONFIG, "num_experts_per_tok": 4}, ITEMS, 2)
    after = load_profile("a/b", hub=True)
    assert [p.layers[0].experts.active for p in (before, after) if p.layers[0].experts] == [8, 4]
    assert load_profile(f"a/b@{COMMIT}", hub=True).layers == before.layers


def test_offline_what_was_fetched_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_profile(f"{QWEN}@v1", hub=True)
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_profile(f"{QWEN}@v1", hub=True) == first
    refused(f"{GGUF}:Q4_K_M", "HF_HUB_OFFLINE is set; unset it")
    assert hub.asked == []


def test_where_nothing_answers_the_last_answer_holds_and_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_profile(QWEN, hub=True)
    hub.tricks = {"/main": saying(503)}
    again = load_profile(QWEN, hub=True)
    assert same(again, first)
    assert "does not answer: read as last fetched" in again.notes[-1]


def test_a_call_that_broke_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.tricks = {"00003-of-00004.safetensors": saying(500)}
    refused(QWEN, "status 500; run it again, what was fetched is kept")
    there = kept(tmp_path)
    assert not [name for name in there if name.startswith(".") or "00003" in name]
    hub.tricks, hub.asked[:] = {}, []
    check(load_profile(QWEN, hub=True), ITEMS)
    assert len(hub.asked) == 1 + len(kept(tmp_path)) - len(there)


# ---- refused ----


def refused(name: str, *words: str, quant: str | None = None) -> None:
    with pytest.raises(ProfileError) as found:
        load_profile(name, quant, hub=True)
    said = str(found.value)
    assert len(said.splitlines()) == 1
    assert said.startswith(name.split(":")[0])
    for word in words:
        assert word in said


GOOD_RANGE = {"Content_Range": "bytes 0-9/10"}
BAD: dict[str, tuple[str, Trick, str]] = {
    "gated": (".safetensors", saying(403, X_Error_Code="GatedRepo"), "hf auth login"),
    "gated, no token": (".safetensors", saying(401, X_Error_Code="GatedRepo"), "ask at https://127.0.0.1/Qwen"),
    "too many": ("/main", saying(429), "too many requests; wait"),
    "a teapot": ("/main", saying(418), "status 418; check"),
    "no hub": ("/main", saying(200, b"<html>"), "is not JSON; check HF_ENDPOINT"),
    "no list": ("/main", saying(200, b"[]"), "names commit None"),
    "an odd commit": ("/main", saying(200, b'{"sha": "../../x", "siblings": []}'), "names commit '../../x'"),
    "no files": ("/main", saying(200, b'{"sha": "%s", "siblings": []}' % COMMIT.encode()), "neither config.json nor"),
    "a page to log in": ("config.json", saying(200, b"<html>"), "config.json: 6 bytes, not those that the hub lists"),
    "file gone": ("config.json", saying(404, X_Error_Code="EntryNotFound"), "config.json: not in this revision"),
    "compressed": (".safetensors", saying(206, Content_Encoding="gzip", **GOOD_RANGE), "sends it compressed"),
    "another part": (".safetensors", saying(206, b"x" * 9, Content_Range="bytes 5-9/10"), "sends another part"),
    "no part": (".safetensors", saying(206, b"x" * 9, Content_Range="nonsense"), "sends another part"),
    "another size": (".safetensors", saying(206, b"x" * 10, **GOOD_RANGE), "10 bytes as the server says"),
    "broken off": (".safetensors", breaking_off, "run it again, what was fetched is kept"),
    "unavailable": (".safetensors", saying(503), "status 503; run it again"),
    "a loop": (".safetensors", saying(302, Location="/Qwen/Qwen3-9B-A3B/resolve/main/x.safetensors"), "check"),
}


@pytest.mark.parametrize(("end", "trick", "said"), BAD.values(), ids=BAD)
def test_bad_answers(end: str, trick: Trick, said: str, hub: Hub, tmp_path: Path) -> None:
    hub.tricks = {end: trick}
    refused(QWEN, said)
    good = {"model.safetensors.index.json"} | ({"config.json"} if end != "config.json" else set())
    assert set(kept(tmp_path)) <= good
    hub.tricks = {}
    check(load_profile(QWEN, hub=True), ITEMS)


def header(text: bytes, data: int = 64, length: int | None = None) -> Callable[[Path], None]:
    return lambda path: write_raw(path, text, data, length=length)


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no header": (lambda path: path.write_bytes(b"x" * 100) and None, "no JSON header"),
    "empty": (lambda path: path.write_bytes(b"") and None, "0 bytes are too few"),
    "a header beyond the file": (header(b"{}", length=2**40), "more than the 100000000 that one may have"),
    "a header to the end": (header(b"{}", 10**6, 10**6 + 100), "cut short"),
    "too much data": (header(b"{}"), "64 bytes follow its last tensor"),
}


@pytest.mark.parametrize(("write", "said"), FILES.values(), ids=FILES)
def test_bad_files(write: Callable[[Path], None], said: str, hub: Hub, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "repository", CONFIG, ITEMS)
    write(folder / "model.safetensors")
    hub.repositories["a/b"] = folder
    refused("a/b", "model.safetensors: ", said)
    assert kept(tmp_path) == ["config.json"]


def test_bad_ggufs(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    write_gguf(folder / "x.gguf", "qwen3moe", FIELDS, gguf_tensors())
    hub.repositories["a/b"] = folder
    with (folder / "x.gguf").open("rb") as file:
        good = file.read(4000)
    for data, said in ((b"GGML" + good[4:], "not with GGUF"), (good[:300], "cut short"), (good, "cut short, tensor")):
        (folder / "x.gguf").write_bytes(data)
        hub.commit = f"{len(said):040x}"
        refused("a/b", "x.gguf: ", said)
        assert kept(tmp_path) == []


def test_a_server_that_says_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    done = threading.Event()
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.tricks = {".safetensors": lambda handler, path: done.wait(60)}
    refused(QWEN, "timed out; run it again, what was fetched is kept")
    done.set()


def test_what_a_reader_refuses_is_named_as_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["a/b"] = write_checkpoint(tmp_path / "repository", {**CONFIG, "num_experts": -1}, ITEMS)
    refused("a/b", "a/b: config.json: num_experts")
    refused(f"{GGUF}:Q4_K_M", "the weights are as the file stores them", quant="bf16")


def test_names_that_mean_nothing_or_too_much(hub: Hub, tmp_path: Path) -> None:
    refused("no/body", "no such repository", "hf auth login")
    refused(f"{QWEN}@v7", "has no revision v7")
    refused(GGUF, "has 2 models in GGUF files; name one: ", f"{GGUF}:Q4_K_M, {GGUF}:UD-Q2_K_XL")
    refused(f"{GGUF}:Q8_0", "'Q8_0' is none of its GGUF files; it has", f"{GGUF}:Q4_K_M")
    refused(f"{QWEN}:Q4_K_M", "has no GGUF files of which Q4_K_M could be one; leave it out")
    assert kept(tmp_path) == []


def test_indices_that_lie(hub: Hub, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "repository", CONFIG, ITEMS, 2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    hub.repositories["a/b"] = folder
    refused("a/b", "names 'model-00002-of-00002.safetensors', which is not there")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    hub.commit = COMMIT[::-1]
    refused("a/b", "has no weight_map")


def test_paths_that_lead_elsewhere_are_not_written(hub: Hub, tmp_path: Path) -> None:
    files = [{"rfilename": name, "size": 5} for name in ("../../x.gguf", "/x.gguf", "a/../../x.gguf", "c:x.gguf", "..")]
    hub.tricks = {"/main": saying(200, json.dumps({"sha": COMMIT, "siblings": files}).encode())}
    refused(QWEN, "neither config.json nor GGUF files")
    assert kept(tmp_path) == []


def test_more_headers_than_any_model_has(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiles.hub import remote

    monkeypatch.setattr(remote, "MAX_ALL_BYTES", 10_000)
    refused(QWEN, "more than 10000 bytes of headers")
    assert hub.sent < 2 * MiB


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    refused(QWEN, "cannot be kept in", "HF_ASSETS_CACHE")


# ---- tokens ----


def test_the_token_goes_to_the_hub_and_to_no_other_host(
    hub: Hub, repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving() as other:
        other.repositories = dict(repositories)
        hub.tricks = {".safetensors": redirecting(other)}
        profile = load_profile(QWEN, hub=True)
        assert set(hub.tokens) == {"Bearer hf_secret"}
        assert len(other.tokens) == 4
        assert set(other.tokens) == {None}
    assert "hf_secret" not in profile.to_json()


def test_a_token_that_cannot_be_sent_is_not_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretä")
    with pytest.raises(ProfileError, match="HF_TOKEN") as found:
        load_profile(QWEN, hub=True)
    assert "hf_sec" not in str(found.value)


# ---- presets, permission, and what comes after ----


def test_nothing_is_asked_without_leave(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_profile("Qwen/Qwen3-30B-A3B").model == "qwen3-30b-a3b"
    with pytest.raises(ProfileError, match=r"unknown model 'Qwen/Qwen3-9B-A3B'.*; add --hub \(hub=True\)"):
        load_profile(QWEN)
    with allowed():
        assert load_profile("qwen3-30b-a3b").model == "qwen3-30b-a3b"
    assert not is_allowed()
    assert hub.asked == []


def test_a_preset_where_nothing_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from profiles.hub import fetch

    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    with serving() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    found = load_profile("Qwen/Qwen3-30B-A3B", hub=True)
    assert same(found, load_profile("qwen3-30b-a3b"))
    assert "shapes are those of the preset, as the hub cannot be asked" in found.notes[-1]
    refused(QWEN, "cannot be had from 127.0.0.1", "check the network and HF_ENDPOINT")


def test_plans_of_the_hubs_models_are_judged_by_their_name(hub: Hub) -> None:
    for name, quant in ((QWEN, None), (QWEN, "q4_k_m"), (f"{GGUF}:Q4_K_M", None)):
        profile = load_profile(name, quant, hub=True, kv_quant="q8_0")
        plan = solve(profile, "2xRTX4090,ram=64GB")
        with allowed():
            assert evaluate(plan).memory == evaluate(plan, profile).memory


def test_a_config_for_what_needs_one(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="add --hub"):
        with_hub_config(QWEN)
    with allowed():
        assert json.loads(Path(with_hub_config(QWEN)).read_text()) == CONFIG
        assert with_hub_config("Qwen/Qwen3-30B-A3B") == "Qwen/Qwen3-30B-A3B"
        assert with_hub_config(str(tmp_path)) == str(tmp_path)


def test_the_command(hub: Hub, moeplan: Any, tmp_path: Path) -> None:
    status, _, said = moeplan("solve", f"{GGUF}:Q4_K_M", "2xRTX4090, ram=64GB")
    assert (status, said.count("\n")) == (1, 1)
    assert said.endswith(f": moeplan solve {GGUF}:Q4_K_M '2xRTX4090, ram=64GB' --hub\n")
    plan = tmp_path / "plan.yaml"
    status, out, said = moeplan("solve", f"{GGUF}:Q4_K_M", "2xRTX4090,ram=64GB", "--hub", "--json", "-o", plan)
    assert (status, said) == (0, "")
    assert json.loads(out)["model"] == f"{GGUF}:Q4_K_M"
    assert not is_allowed()
    assert moeplan("check", plan)[0] == 1
    assert moeplan("check", plan, "--hub")[0] == 0
    status, out, _ = moeplan("what-if", QWEN, "1xRTX4090,ram=128GB", "--gpus", "1,2", "--hub", "--json")
    assert (status, len(json.loads(out)["rows"])) == (0, 2)


def test_environment_variables_reach_a_fresh_process(hub: Hub, tmp_path: Path) -> None:
    """As a user sets them, and with the cache where they say."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"}
    command = [sys.executable, "-m", "moeplan.cli", "profile", QWEN, "--hub", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    check(ModelProfile.from_dict(json.loads(done.stdout)), ITEMS)
    assert set(hub.tokens) == {"Bearer hf_secret"}
    (config,) = (tmp_path / "home" / "assets" / "moeplan").rglob("config.json")
    assert "hf_secret" not in "".join(path.read_text() for path in config.parent.parent.glob("*.json"))


def test_without_the_library_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if re.match(r"profiles\.hub\.(fetch|remote)$", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ProfileError, match=r'pip install "moeplan\[hub\]"'):
        load_profile(QWEN, hub=True)
