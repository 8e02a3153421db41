"""Hand-written YAML: repeats, catalogue entries, profiles that correct another one."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from profiles import HardwareError, ModelProfile, ProfileError, load_hardware, load_profile
from profiles.read_phrase import read_phrase
from profiles.read_yaml import hardware_from_document, profile_from_document

BASE = """
schema: 1
model: tiny
source: a test
hidden_size: 64
embedding: {weight_bytes: 1 MB}
head: {weight_bytes: 1 MB}
layers:
- {attention: {weight_bytes: 2 MB}}
- repeat: 3
  attention: {weight_bytes: {gpu: 1 MB, cpu: 2 MB}, kv_bytes_per_token: 128, measured_seconds: {gpu: {1: 10 us}}}
  experts: {count: 3, active: 2, weight_bytes: 300, expert_weight_bytes: [50, 100, 150]}
"""


def no_base(name: str, quant: str | None) -> ModelProfile:
    raise ProfileError(f"unknown model {name!r}")


def tiny(name: str = "tiny", quant: str | None = None) -> ModelProfile:
    return profile_from_document(yaml.safe_load(BASE), "tiny.yaml", no_base)


def corrected(text: str) -> ModelProfile:
    head = "{model: better, source: a stopwatch, base: {model: tiny, quant: bf16}}"
    return profile_from_document({**yaml.safe_load(head), **yaml.safe_load(text)}, "better.yaml", tiny)


def test_repeat_and_units() -> None:
    profile = tiny()
    assert len(profile.layers) == 4
    assert profile.layers[0].experts is None
    assert profile.layers[1] == profile.layers[3]
    assert profile.layers[3].attention.weight_bytes.cpu == 2_000_000
    assert profile.layers[2].attention.measured_seconds == {"gpu": {1: 1e-5}}


def test_canonical_form_loads_again() -> None:
    profile = tiny()
    assert profile_from_document(profile.to_dict(), "x.yaml", no_base) == profile


@pytest.mark.parametrize("layers", ["1-3", "1,2-3", [1, 2, 3]])
def test_measured_values_replace_the_base(layers: Any) -> None:
    attention = "attention: {weight_bytes: 5 MB, measured_seconds: {cpu: {1: 20 us}}}"
    profile = corrected(f"measured: [{{layers: {layers!r}, {attention}}}]")
    assert [layer.attention.weight_bytes.gpu for layer in profile.layers] == [2_000_000] + [5_000_000] * 3
    assert profile.layers[1].attention.measured_seconds == {"gpu": {1: 1e-5}, "cpu": {1: 2e-5}}
    assert profile.layers[1].attention.kv_bytes_per_token == 128
    assert profile.source == "a stopwatch"
    assert "built on tiny: a test" in profile.notes


def test_one_layer_all_layers_and_the_ends() -> None:
    profile = corrected(
        "{measured: [{layers: all, attention: {weight_bytes: 7}}, {layers: 0, attention: "
        "{weight_bytes: 8}}], head: {weight_bytes: 9}, embedding: {measured_seconds: {cpu: {1: 1e-6}}}}"
    )
    assert [layer.attention.weight_bytes.gpu for layer in profile.layers] == [8, 7, 7, 7]
    assert profile.head.weight_bytes.gpu == 9
    assert profile.embedding.weight_bytes.gpu == 1_000_000
    assert profile.embedding.measured_seconds == {"cpu": {1: 1e-6}}


def test_bytes_of_single_experts_are_scaled() -> None:
    profile = corrected("measured: [{layers: 1-3, experts: {weight_bytes: 601}}]")
    experts = profile.layers[1].experts
    assert experts is not None
    assert experts.expert_weight_bytes == (100, 200, 301)
    given = corrected("measured: [{layers: 1, experts: {weight_bytes: 6, expert_weight_bytes: [1, 2, 3]}}]")
    assert given.layers[1].experts is not None
    assert given.layers[1].experts.expert_weight_bytes == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("measured: [{layers: 0, experts: {weight_bytes: 1}}]", "layer 0 is dense"),
        ("measured: [{layers: 4, attention: {weight_bytes: 1}}]", "there is no layer 4"),
        ("measured: [{layers: -1, attention: {weight_bytes: 1}}]", "there is no layer -1"),
        ("measured: [{layers: 1-9, attention: {weight_bytes: 1}}]", "there is no layer 9"),
        ("measured: [{layers: 3-1, attention: {weight_bytes: 1}}]", "names no layers"),
        ("measured: [{layers: some, attention: {weight_bytes: 1}}]", "names no layers"),
        ("measured: [{layers: 1, attention: {count: 1}}]", "unknown key"),
        ("measured: [{attention: {weight_bytes: 1}}]", "layers: missing"),
        ("measured: [{layers: true, attention: {weight_bytes: 1}}]", "measured[0].layers"),
        ("measured: [{layers: 1, experts: {frequencies: [0.1]}}]", "frequencies has 1 entries"),
        ("measured: [{layers: 1, experts: {weight_bytes: 1, expert_weight_bytes: [1, 1, 1]}}]", "sum to 3"),
        ("layers: []", "unknown key"),
        ("source: ''", "source"),
        ("base: {quant: bf16}", "base.model: missing"),
        ("base: 5", "base"),
        ("hidden_size: 3", "unknown key"),
    ],
)
def test_corrections_that_make_no_sense(text: str, said: str) -> None:
    with pytest.raises(ProfileError, match=r"^better\.yaml: ") as caught:
        corrected(text)
    assert said in str(caught.value)


def test_a_correction_needs_a_source_and_a_base() -> None:
    with pytest.raises(ProfileError, match="source: missing"):
        profile_from_document({"model": "x", "base": "tiny"}, "x.yaml", tiny)
    with pytest.raises(ProfileError, match="needs a base"):
        profile_from_document({**tiny().to_dict(), "measured": []}, "x.yaml", tiny)
    with pytest.raises(ProfileError, match=r"x\.yaml: base: unknown model"):
        profile_from_document({"model": "x", "source": "s", "base": "y"}, "x.yaml", no_base)


def test_errors_count_entries_as_written() -> None:
    document = yaml.safe_load(BASE)
    document["layers"].append({"attention": {"weight_bytes": -1}})
    with pytest.raises(ProfileError, match=r"layers\[2\]\.attention\.weight_bytes"):
        profile_from_document(document, "x.yaml", no_base)


def test_hardware_from_the_catalogue_equals_the_phrase() -> None:
    text = "{name: x, devices: [{use: L40, repeat: 8, memory_bytes: 46 GB}, {use: epyc 9654, memory_bytes: 768 GB}]}"
    machine = hardware_from_document(yaml.safe_load(text), "x.yaml")
    phrase = read_phrase("8xL40-46GB,cpu=EPYC-9654,ram=768GB")
    assert machine.devices == phrase.devices
    assert machine.links == phrase.links


def test_what_is_given_wins_over_the_catalogue() -> None:
    text = """
    name: x
    devices:
    - {use: H100-SXM, name: "cuda:3", repeat: 2, safety_margin: 0.2, bandwidth_bytes_per_s: 3 TB/s}
    - {use: RTX4090, name: "cuda:0"}
    - {use: EPYC-9654, sockets: 2, memory_bytes: 1 TB, flops_per_s: {bf16: 1 TFLOP/s}}
    """
    machine = hardware_from_document(yaml.safe_load(text), "x.yaml")
    assert [device.name for device in machine.devices] == ["cuda:3", "cuda:4", "cuda:0", "cpu"]
    assert machine.devices[1].safety_margin == 0.2
    assert machine.devices[1].bandwidth_bytes_per_s == 3e12
    assert machine.cpu.bandwidth_bytes_per_s == 2 * 460.8e9
    assert machine.cpu.flops_per_s == {"bf16": 1e12}
    assert ("cuda:3", "cuda:4") in [link.between for link in machine.links]


def test_sockets_multiply_the_catalogue_and_nothing_that_is_written() -> None:
    bare = "{name: cpu, kind: cpu, memory_bytes: 1 TB, bandwidth_bytes_per_s: 400 GB/s, flops_per_s: {bf16: 1 TFLOP/s}"
    listed = "{use: EPYC-9654, memory_bytes: 1 TB"
    for cpu, one, two in ((bare, 400e9, 400e9), (listed, 460.8e9, 921.6e9)):
        for sockets, expected in ((1, one), (2, two)):
            text = f"{{name: x, devices: [{cpu}, cores: 64, sockets: {sockets}}}]}}"
            found = hardware_from_document(yaml.safe_load(text), "x.yaml").cpu
            assert (found.bandwidth_bytes_per_s, found.cores, found.sockets) == (expected, 64, sockets)
            assert found.memory_bytes == 10**12


def test_links_in_full_are_taken_as_given() -> None:
    links = [{"between": ["cuda:0", "cpu"], "bandwidth_bytes_per_s": "1 GB/s", "latency_s": "5 us"}]
    devices = [{"use": "L40"}, {"use": "EPYC-9654", "memory_bytes": "1 TB"}]
    machine = hardware_from_document({"name": "x", "devices": devices, "links": links}, "x.yaml")
    assert [(link.bandwidth_bytes_per_s, link.latency_s) for link in machine.links] == [(1e9, 5e-6)]
    assert load_hardware(machine.to_dict()) == machine


PLAIN_GPU = '"name": "cuda:0", kind: gpu, memory_bytes: 9, bandwidth_bytes_per_s: 1, flops_per_s: {bf16: 1}'


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ("[{use: L40}]", "there is no cpu"),
        ("[{use: L400, repeat: 2}]", "devices[0].use: unknown GPU 'L400', did you mean L40"),
        ("[{use: 5}]", "devices[0].use"),
        ("[{use: EPYC-9654}]", "devices[0].memory_bytes: missing"),
        ("[{use: L40, sockets: 2}]", "repeat: 2"),
        (f"[{{{PLAIN_GPU}, sockets: 2}}]", "sockets 2: cuda:0 is a GPU; leave it out, or write repeat"),
        ("[{use: EPYC-9654, memory_bytes: 1 TB, sockets: true}]", "sockets"),
        ("[{use: EPYC-9654, memory_bytes: 1 TB, repeat: 2}]", "cpu is given twice"),
        ("[{use: L40, repeat: 0}]", "repeat"),
        ("[{use: L40, repeat: 1000000000}]", "repeat"),
        ("[{use: L40, repeat: 1000}, {use: L40, repeat: 1000}]", "2000 in all"),
        ("[{use: L40, memory: 3 GB}]", "did you mean 'memory_bytes'"),
        ("[{use: L40, kind: cpu}]", "L40 is a GPU"),
        ("[{kind: gpu}]", "devices[0].memory_bytes: missing"),
        ("[5]", "devices[0]"),
        ("{cpu: 1}", "devices"),
        ("[]", "devices"),
    ],
)
def test_bad_devices(devices: str, said: str) -> None:
    with pytest.raises(HardwareError, match=r"^x\.yaml: ") as caught:
        hardware_from_document({"name": "x", "devices": yaml.safe_load(devices)}, "x.yaml")
    assert said in str(caught.value)


def test_deepseek_v2_as_the_article_measured_it() -> None:
    measured, shapes = load_profile("deepseek-v2-measured"), load_profile("deepseek-v2", quant="bf16")
    assert measured.architecture == "deepseek_v2"
    assert [layer.experts is None for layer in measured.layers] == [True] + [False] * 59
    for layer, by_shape in zip(measured.layers[1:], shapes.layers[1:], strict=True):
        assert layer.experts is not None
        assert by_shape.experts is not None
        assert layer.attention.weight_bytes.gpu + layer.experts.weight_bytes.gpu == 5_200_000_000
        ratio = layer.attention.weight_bytes.gpu / layer.experts.weight_bytes.gpu
        assert ratio == pytest.approx(by_shape.attention.weight_bytes.gpu / by_shape.experts.weight_bytes.gpu, rel=1e-6)
        assert layer.experts.weight_bytes.gpu % 160 == 0
    per_byte = measured.layers[0].attention.weight_bytes.gpu / shapes.layers[0].attention.weight_bytes.gpu
    assert per_byte == pytest.approx(5.2e9 / (394485760 + 7549747200), rel=1e-6)
    assert (measured.embedding, measured.head) == (shapes.embedding, shapes.head)
