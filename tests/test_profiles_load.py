"""The loaders: presets, paths, mappings, objects, and what they say when there is nothing to load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import profiles
from profiles import (
    Hardware,
    HardwareError,
    Placement,
    ProfileError,
    Workload,
    hardware_presets,
    load_hardware,
    load_placement,
    load_profile,
    load_workload,
    profile_presets,
)
from profiles.presets import model_config_preset

PLAN = {"embedding": "cpu", "head": "cpu", "layers": [{"attention": "cpu"}]}


def test_every_public_name_exists() -> None:
    assert all(hasattr(profiles, name) for name in profiles.__all__)


@pytest.mark.parametrize("name", profile_presets())
def test_profile_presets_load_and_round_trip(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    assert profile.model == name
    assert load_profile(profile.to_dict()) == profile
    profile.save(tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == profile


@pytest.mark.parametrize("name", hardware_presets())
def test_hardware_presets_load_and_have_a_source(name: str) -> None:
    machine = load_hardware(name)
    assert machine.name == name
    assert machine.source
    assert load_hardware(name.upper()) == machine
    assert load_hardware(machine.to_dict()) == machine


def test_names_in_any_case_and_repositories() -> None:
    profile = load_profile("deepseek-v2")
    assert load_profile("DeepSeek-V2") == load_profile("deepseek-ai/DeepSeek-V2") == load_profile(" deepseek-v2 ")
    assert load_profile(profile) is profile


def test_a_config_json_is_named_after_its_folder(tmp_path: Path) -> None:
    config = model_config_preset("mixtral-8x7b")
    folder = tmp_path / "my-mixtral"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "other.json").write_text(json.dumps(config))
    by_path = load_profile(folder / "config.json")
    assert by_path.model == "my-mixtral"
    assert by_path.layers == load_profile("mixtral-8x7b").layers
    assert load_profile(str(folder / "other.json")).model == "other"
    assert load_profile(folder / "config.json", quant="int4").weight_bytes < by_path.weight_bytes
    assert load_profile(dict(config or {})).layers == by_path.layers


def test_a_file_wins_over_a_preset_but_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    preset = load_profile("deepseek-v2")
    Path("deepseek-v2").mkdir()
    assert load_profile("deepseek-v2") == preset
    Path("deepseek-v2").rmdir()
    Path("deepseek-v2").write_text(preset.replace(model="mine").to_yaml())
    assert load_profile("deepseek-v2").model == "mine"


def test_a_base_is_found_beside_the_file(tmp_path: Path) -> None:
    load_profile("mixtral-8x7b").save(tmp_path / "base.yaml")
    text = "{model: x, source: s, base: base.yaml, measured: [{layers: 0, attention: {weight_bytes: 1 GB}}]}"
    (tmp_path / "x.yaml").write_text(text)
    assert load_profile(tmp_path / "x.yaml").layers[0].attention.weight_bytes.gpu == 10**9


def test_bases_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{model: a, source: s, base: b.yaml}")
    (tmp_path / "b.yaml").write_text("{model: b, source: s, base: a.yaml}")
    with pytest.raises(ProfileError, match="bases on top of each other"):
        load_profile(tmp_path / "a.yaml")


def test_quant_where_bytes_are_fixed(tmp_path: Path) -> None:
    profile = load_profile("deepseek-v2")
    profile.save(tmp_path / "p.yaml")
    for x in (profile, profile.to_dict(), tmp_path / "p.yaml", "deepseek-v2-measured"):
        with pytest.raises(ProfileError, match="leave quant out"):
            load_profile(x, quant="bf16")
    with pytest.raises(ProfileError, match="deepseek-v2: quant"):
        load_profile("deepseek-v2", quant="nonsense")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deepseek-v5", "did you mean deepseek-v"),
        ("nothing-like-it", "`moeplan models` lists the"),
        ("someone/deepseek-v3", "did you mean deepseek-v3"),
        ("missing.yaml", "no such file"),
        ("missing.gguf", "no such file"),
        ("../missing/config.json", "no such file"),
    ],
)
def test_unknown_models(name: str, said: str) -> None:
    with pytest.raises(ProfileError, match=r"^[^\n]*$") as caught:
        load_profile(name)
    assert name in str(caught.value)
    assert said in str(caught.value)


def test_folders_and_weight_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"is a folder.*config\.json"):
        load_profile(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\x00")
    with pytest.raises(ProfileError, match=r"m\.gguf: not a whole GGUF file.*download it again"):
        load_profile(tmp_path / "m.gguf")
    (tmp_path / "m.bin").write_bytes(b"PK")
    with pytest.raises(ProfileError, match=r"m\.bin: \.bin files are pickles.*config\.json"):
        load_profile(tmp_path / "m.bin")
    with pytest.raises(ProfileError, match=r"quant: 'bf16' cannot be chosen.*leave quant out"):
        load_profile(tmp_path / "m.gguf", quant="bf16")


def test_a_folder_is_read_by_what_is_in_it(tmp_path: Path) -> None:
    config = model_config_preset("qwen3-30b-a3b")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_profile(tmp_path) == load_profile(tmp_path / "config.json")
    assert load_profile(tmp_path, "q4_k_m").quant == "q4_k_m"
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ProfileError, match=r"2 models in GGUF files; name a file"):
        load_profile(tmp_path)


def test_hardware_from_phrase_file_and_object(tmp_path: Path) -> None:
    machine = load_hardware("8xL40-46GB")
    assert load_hardware(machine) is machine
    for name in ("m.yaml", "m.json"):
        machine.save(tmp_path / name)
        assert load_hardware(str(tmp_path / name)) == machine
    with pytest.raises(HardwareError, match="presets: desktop-4090"):
        load_hardware("no-such-machine")
    with pytest.raises(HardwareError, match="no such file"):
        load_hardware("no-such-machine.yaml")


def test_workload_and_placement(tmp_path: Path) -> None:
    assert load_workload() == Workload()
    assert load_workload({"batch_size": 2}).batch_size == 2
    plan = load_placement(PLAN)
    assert load_placement(plan) is plan
    plan.save(tmp_path / "plan.yaml")
    assert load_placement(tmp_path / "plan.yaml") == plan
    assert isinstance(plan, Placement)
    (tmp_path / "plan.yaml").write_text("embedding: cpu")
    with pytest.raises(ProfileError, match=r"plan\.yaml: Placement: head: missing"):
        load_placement(tmp_path / "plan.yaml")


def test_the_hardware_of_a_plan_can_be_loaded_again() -> None:
    phrase = "2xA100-80GB + 4xRTX4090, cpu=EPYC-9654"
    machine = load_hardware(f" {phrase} ")
    assert isinstance(machine, Hardware)
    assert machine.name == phrase
    assert load_hardware(machine.name) == machine
