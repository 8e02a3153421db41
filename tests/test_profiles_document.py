"""Documents: units, round trips of every noun, safe parsing, atomic saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from profiles import Device, Hardware, ModelProfile, MoeplanError, Placement, ProfileError, Workload, load_hardware
from profiles.document import MAX_DOCUMENT_BYTES, MAX_MESSAGE, Document, one_line, parse_document, read_text, short
from profiles.units import BYTE_UNITS, TIME_UNITS, parse_bytes, parse_quantity

sizes = st.integers(0, 10**15)
seconds = st.floats(0, 1e6, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5.2 GB", 5_200_000_000), ("46GiB", 46 * 2**30), (" 1 kB ", 1000), (7, 7), ("8e9", 8 * 10**9), (3e9, 3 * 10**9)],
)
def test_bytes(text: object, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("5 us", 5e-6), ("5 µs", 5e-6), ("0.3ms", 0.3e-3), ("2", 2.0), ("7 ns", 7e-9)]
)
def test_seconds(text: str, value: float) -> None:
    assert parse_quantity(text, TIME_UNITS, "1 s") == value


BAD_QUANTITIES: list[Any] = [
    True,
    None,
    "",
    "5 apples",
    "-1",
    -1,
    "1e400",
    float("nan"),
    float("inf"),
    10**5000,
    [],
    "GB",
]


@pytest.mark.parametrize("value", BAD_QUANTITIES, ids=range(len(BAD_QUANTITIES)))
def test_bad_quantities(value: object) -> None:
    with pytest.raises(ValueError, match=r"5\.2 GB"):
        parse_quantity(value, BYTE_UNITS, "5.2 GB")


@given(sizes, st.sampled_from(sorted(BYTE_UNITS)))
def test_whole_bytes_survive_any_unit(count: int, unit: str) -> None:
    if count * BYTE_UNITS[unit] < 2**53:
        assert parse_bytes(f"{count} {unit}") == count * BYTE_UNITS[unit]


def blocks() -> st.SearchStrategy[dict[str, Any]]:
    times = st.dictionaries(st.integers(1, 10**6), st.floats(1e-9, 1e6, allow_nan=False), min_size=1, max_size=3)
    return st.fixed_dictionaries(
        {"weight_bytes": sizes | st.fixed_dictionaries({"gpu": sizes, "cpu": sizes})},
        optional={
            "params": sizes,
            "workspace_bytes": sizes | st.fixed_dictionaries({"per_token": sizes, "per_sequence": sizes}),
            "measured_seconds": st.dictionaries(st.sampled_from(["gpu", "cpu", "L40", "cuda:0"]), times, max_size=2),
        },
    )


@st.composite
def experts(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 6))
    shares = st.none() | st.lists(st.floats(0, 1), min_size=count, max_size=count)
    block = {**draw(blocks()), "count": count, "active": draw(st.integers(1, count)), "frequencies": draw(shares)}
    if draw(st.booleans()):
        block["expert_weight_bytes"] = draw(st.lists(sizes, min_size=count, max_size=count))
        block["weight_bytes"] = sum(block["expert_weight_bytes"])
    return block


@st.composite
def profiles(draw: st.DrawFn) -> ModelProfile:
    attention = st.builds(lambda block, kv: {**block, "kv_bytes_per_token": kv}, blocks(), sizes)
    layers = st.fixed_dictionaries({"attention": attention, "experts": st.none() | experts()})
    return ModelProfile(
        model=draw(st.text(min_size=1, max_size=9)),
        source=draw(st.text(min_size=1, max_size=9)),
        notes=draw(st.lists(st.text(max_size=9), max_size=2)),
        hidden_size=draw(st.integers(1, 10**5)),
        embedding=draw(blocks()),
        head=draw(blocks()),
        layers=draw(st.lists(layers, min_size=1, max_size=4)),
    )


@st.composite
def machines(draw: st.DrawFn) -> Hardware:
    rates = st.floats(1, 1e15)
    device = st.fixed_dictionaries(
        {
            "memory_bytes": st.integers(1, 10**13),
            "bandwidth_bytes_per_s": rates,
            "flops_per_s": st.dictionaries(st.sampled_from(["bf16", "fp8"]), rates, min_size=1),
        },
        optional={"safety_margin": st.floats(0, 0.99), "launch_s": seconds, "reserved_bytes": sizes},
    )
    gpus = [{"name": f"cuda:{i}", "kind": "gpu", **d} for i, d in enumerate(draw(st.lists(device, max_size=4)))]
    links = [{"between": ["cpu", g["name"]], "bandwidth_bytes_per_s": 1e9, "latency_s": draw(seconds)} for g in gpus]
    return Hardware(name="m", devices=[*gpus, {"name": "cpu", "kind": "cpu", **draw(device)}], links=links)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    device = st.sampled_from(["cpu", "cuda:0", "cuda:1", "cuda:10"])

    def split(ids: list[int]) -> dict[str, Any]:
        return {} if not ids else {"cuda:0": ids[:1], **({"cpu": ids[1:]} if ids[1:] else {})}

    parts = st.lists(st.integers(0, 500), unique=True, max_size=6).map(split)
    layer = st.fixed_dictionaries({"attention": device, "experts": parts | st.just({"cuda:1": "all"})})
    return Placement(
        embedding=draw(device),
        head=draw(device),
        layers=draw(st.lists(layer, min_size=1, max_size=4)),
        objective_s=draw(st.none() | seconds),
        gap=draw(st.none() | st.floats(0, 1)),
        workload=draw(st.none() | st.builds(Workload, batch_size=st.integers(1, 10**6))),
    )


@settings(max_examples=60, deadline=None)
@given(profiles() | machines() | placements() | st.builds(Workload, prompt_tokens=st.integers(1, 5_000_000)))
def test_every_noun_round_trips(noun: Document) -> None:
    kind = type(noun)
    assert kind.from_dict(noun.to_dict()) == noun
    assert kind.from_dict(parse_document(noun.to_json(), "x.json")) == noun
    assert kind.from_dict(parse_document(noun.to_yaml(), "x.yaml")) == noun
    assert noun.replace() == noun


def test_replace_checks_again() -> None:
    machine = load_hardware("2xL40-46GB")
    assert machine.gpus[0].replace(memory_bytes="1 GB").memory_bytes == 10**9
    with pytest.raises(MoeplanError, match=r"^Device: memory_bytes"):
        machine.gpus[0].replace(memory_bytes=0)
    with pytest.raises(MoeplanError, match=r"^Hardware: links: nothing connects cuda:0"):
        machine.replace(links=())
    with pytest.raises(MoeplanError, match="did you mean 'name'"):
        machine.replace(nmae="x")


def test_a_workload_keeps_just_holding_its_request() -> None:
    assert Workload().replace(prompt_tokens=5000).context_tokens == 5128
    assert Workload(context_tokens=9000).replace(prompt_tokens=5000).context_tokens == 9000
    assert Workload().replace(context_tokens=4096).context_tokens == 4096


def test_nouns_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Workload().batch_size = 3
    with pytest.raises(ValidationError):
        load_hardware("L40").devices[0].memory_bytes = 3
    assert Device.model_config.get("frozen")


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "w.yaml"
    Workload(batch_size=2).save(target)
    before = target.read_text()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(MoeplanError, match=r"w\.yaml: cannot be written: No space left on device"):
            Workload(batch_size=3).save(target)
    assert target.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w.yaml"]
    Workload(batch_size=3).save(target)
    assert Workload.from_dict(yaml.safe_load(target.read_text())).batch_size == 3


@pytest.mark.parametrize("name", ["missing/w.yaml", "\0.yaml", "x" * 300])
def test_where_nothing_can_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(MoeplanError, match="cannot be written"):
        Workload().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_json_by_its_name(tmp_path: Path) -> None:
    Workload().save(tmp_path / "w.json")
    assert json.loads((tmp_path / "w.json").read_text())["batch_size"] == 1


def test_config_json_may_hold_infinity() -> None:
    assert parse_document('{"time_step_limit": [0.0, Infinity]}', "config.json")["time_step_limit"][1] > 1e308


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_bytes(b'\xef\xbb\xbf{"batch_size": 2}')
    assert read_text(tmp_path / "w.json").startswith("{")


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=60) | st.text("{}[]:,-?!&*<>|'\"#%@ \n\t0123456789.eE_x~", max_size=60),
    st.sampled_from(["x.yaml", "x.json"]),
)
def test_any_text_is_plain_values_or_one_line(text: str, where: str) -> None:
    message = where
    try:
        parse_document(text, where)
    except ProfileError as problem:
        message = str(problem)
    assert message.startswith(where)
    assert message.isprintable()


@given(st.text(max_size=2000))
def test_one_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= MAX_MESSAGE


@pytest.mark.parametrize("value", [10**9999, "x" * 10**6, b"x" * 10**6, [[]] * 10**5, {}, None, object()], ids=range(7))
def test_short_is_short(value: object) -> None:
    assert len(short(value)) <= 60


def test_the_limit_is_about_the_largest_honest_document() -> None:
    layer = {"attention": "cuda:0", "experts": {"cuda:0": list(range(0, 256, 2)), "cpu": list(range(1, 256, 2))}}
    plan = Placement(embedding="cpu", head="cpu", layers=[layer] * 94)
    assert 2 * len(plan.to_yaml()) < MAX_DOCUMENT_BYTES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[ {a: " * 500, "nested too deep"),
        ("- x\n" * 300_000, "characters are more"),
    ],
)
def test_what_yaml_would_chew_on_is_refused(text: str, words: str) -> None:
    """PyYAML alone takes seconds for the first two and most of a minute for the last."""
    with pytest.raises(ProfileError, match=words):
        parse_document(text, "hostile")


def test_brackets_side_by_side_are_fine() -> None:
    text = "- [[[1]], {a: [2]}]\n" * 200
    assert parse_document(text, "wide")[199] == [[[1]], {"a": [2]}]
