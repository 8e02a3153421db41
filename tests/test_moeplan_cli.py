"""The command as its users meet it: one line for every mistake, one document for --json, the right exit status."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from moeplan import Placement, load_hardware, load_profile, solve
from moeplan import cli as command

MODEL, MACHINE = "deepseek-v2-measured", "8xL40-46GB"


@pytest.fixture(scope="module")
def plan() -> Placement:
    return solve(MODEL, MACHINE)


def eight_a_card(plan: Placement) -> Placement:
    layers = [
        layer.replace(attention=f"cuda:{i // 8}", experts={f"cuda:{i // 8}": "all"} if layer.experts else {})
        for i, layer in enumerate(plan.layers)
    ]
    return plan.replace(layers=tuple(layers), embedding="cuda:0", head="cuda:7")


def test_solve_prints_one_document(moeplan: Any) -> None:
    status, out, _ = moeplan("solve", MODEL, MACHINE, "--json")
    document = json.loads(out)
    assert status == 0
    assert (document["status"], document["gap"]) == ("optimal", 0.0)
    usable = 41_400_000_000
    for device, held in document["memory"].items():
        used = held["weights_bytes"] + held["kv_bytes"] + held["workspace_bytes"]
        assert used <= held["usable_bytes"]
        assert device == "cpu" or held["usable_bytes"] == usable
    assert Placement.from_dict(document).layers


def test_solve_shows_a_bar_per_device_and_the_proof(moeplan: Any) -> None:
    status, out, _ = moeplan("solve", MODEL, MACHINE)
    assert status == 0
    assert all(any(line.split()[:1] == [f"cuda:{i}"] and "█" in line for line in out.splitlines()) for i in range(8))
    assert "optimal: request" in out
    assert "gap 0.00%" in out


def test_granularity_layer_and_seven_cards(moeplan: Any) -> None:
    status, out, _ = moeplan("solve", MODEL, MACHINE, "--granularity", "layer", "--json")
    assert status == 0
    assert all(set(layer["experts"]) <= {layer["attention"]} for layer in json.loads(out)["layers"])
    status, out, _ = moeplan("solve", MODEL, "7xL40-46GB", "--json")
    assert status == 0
    assert any("cpu" in layer["experts"] for layer in json.loads(out)["layers"])


def test_an_infeasible_answer_is_a_document(moeplan: Any) -> None:
    status, out, err = moeplan("solve", MODEL, "1xL40-46GB,ram=8GB", "--json")
    document = json.loads(out)
    assert (status, document["status"]) == (3, "infeasible")
    assert sum(document["short"].values()) > 250e9
    assert document["suggestions"] == ["add 7 GPUs like cuda:0 (L40)", "add 275 GB of RAM", "add 290 GB to each GPU"]
    status, out, err = moeplan("solve", MODEL, "1xL40-46GB,ram=8GB")
    assert (status, out) == (3, "")
    assert err.startswith(f"moeplan: {MODEL} does not fit 1xL40-46GB,ram=8GB: short of ")
    assert err.count("\n") == 1


def test_nothing_found_in_time_is_status_four(moeplan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiles import InfeasiblePlacement

    def too_slow(*_: object, **__: object) -> Placement:
        raise InfeasiblePlacement("no plan found within 1 s; raise time_limit", proven=False)

    monkeypatch.setattr(command, "solve_plan", too_slow)
    status, out, _ = moeplan("solve", MODEL, MACHINE, "--json")
    assert (status, json.loads(out)["status"]) == (4, "unknown")


def test_plans_are_saved_checked_and_exported(moeplan: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    assert moeplan("solve", MODEL, MACHINE, "--target", "ktransformers", "-o", path)[0] == 0
    status, out, _ = moeplan("check", path)
    assert status == 0
    assert "fits; predicted" in out
    status, rules, _ = moeplan("export", path, "--to", "ktransformers")
    assert status == 0
    assert isinstance(yaml.safe_load(rules), list)
    (tmp_path / "rules.yaml").write_text(rules, encoding="utf-8")
    status, out, _ = moeplan("check", tmp_path / "rules.yaml", "--model", MODEL, "--hardware", MACHINE, "--json")
    assert (status, json.loads(out)["status"]) == (0, "fits")
    assert moeplan("export", path, "--to", "moeplan", "-o", tmp_path / "copy.yaml")[0] == 0
    assert (tmp_path / "copy.yaml").read_text() == path.read_text()


@pytest.mark.parametrize("bare", [False, True])
def test_eight_layers_a_card_overflow_by_the_byte(moeplan: Any, tmp_path: Path, plan: Placement, bare: bool) -> None:
    profile, path = load_profile(MODEL), tmp_path / "eight.json"
    document = eight_a_card(plan).to_dict()
    if bare:
        document = {key: document[key] for key in ("embedding", "head", "layers")}
    path.write_text(json.dumps(document), encoding="utf-8")
    named = ("--model", MODEL, "--hardware", MACHINE) if bare else ()
    status, out, _ = moeplan("check", path, *named, "--json")
    short = json.loads(out)["short"]
    assert status == 3
    assert set(short) == {f"cuda:{i}" for i in range(1, 7)}
    layer = profile.layers[1]
    assert layer.experts is not None
    weights = 8 * (layer.attention.weight_bytes.gpu + layer.experts.weight_bytes.gpu)
    held = json.loads(out)["memory"]["cuda:1"]
    assert held["weights_bytes"] == weights
    assert short["cuda:1"] == weights + held["kv_bytes"] + held["workspace_bytes"] - 41_400_000_000
    status, out, _ = moeplan("check", path, *named)
    assert status == 3
    assert f"cuda:1 overflows by {short['cuda:1']} bytes" in out


def test_profiles_and_machines_are_shown_and_saved(moeplan: Any, tmp_path: Path) -> None:
    status, out, _ = moeplan("profile", MODEL)
    assert status == 0
    assert "attention 1-59" in out
    assert "source:" in out
    assert json.loads(moeplan("profile", "deepseek-v2", "--quant", "fp8", "--json")[1])["quant"] == "fp8"
    assert moeplan("profile", MODEL, "-o", tmp_path / "p.yaml")[0] == 0
    assert load_profile(tmp_path / "p.yaml") == load_profile(MODEL)
    assert "cuda:7" in moeplan("hardware", MACHINE)[1]
    assert moeplan("hardware", MACHINE, "-o", tmp_path / "h.yaml")[0] == 0
    assert load_hardware(tmp_path / "h.yaml") == load_hardware(MACHINE)


def test_the_story_ends_well(moeplan: Any) -> None:
    status, out, _ = moeplan("demo")
    assert status == 0
    assert out.count("overflows by") == 6
    assert "optimal: request" in out


def test_version_help_and_usage(moeplan: Any) -> None:
    assert moeplan("--version")[1].strip().count(".") == 2
    assert "solve" in moeplan("--help")[1]
    assert moeplan("solve", MODEL)[0] == 2
    assert moeplan("fly")[0] == 2
    assert moeplan("solve", MODEL, MACHINE, "--seed", "x")[0] == 2


BAD_OPTIONS = [
    ("--safety-margin", "-0.1"), ("--safety-margin", "1"), ("--safety-margin", "nan"), ("--granularity", "brick"),
    ("--granularity", "atom"), ("--objective", "joy"), ("--target", "vllm"), ("--time-limit", "0"),
    ("--time-limit", "-3"), ("--time-limit", "nan"), ("--relative-gap", "-1"), ("--workers", "0"), ("--seed", "-1"),
    ("--quant", "q17"), ("--prompt-tokens", "0"), ("--prompt-tokens", "-5"), ("--generated-tokens", "-1"),
    ("--batch-size", "0"), ("--context-tokens", "10"), ("--prefill-chunk", "0"), ("--pin", "nonsense"),
    ("--pin", "head="), ("--pin", "head=cuda:99"), ("--pin", "layers.60.experts=cuda:0"), ("--pin", "tail=cpu"),
    ("--pin", "layers.9-3=cpu"), ("--prompt-tokens", "99999999999999999999"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value"), BAD_OPTIONS)
def test_bad_options_are_one_line(moeplan: Any, option: str, value: str) -> None:
    one_line(moeplan("solve", MODEL, MACHINE, f"{option}={value}"))


def one_line(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert status == 1, (out, err)
    assert out == ""
    assert err.startswith("moeplan: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert len(err) < 450
    return err


BAD_MODELS = ["no-such-model", "no/such.json", "", ".", "config.gguf", "\x00", "a" * 5000, "deepseek-v2-measurd"]
BAD_MACHINES = [
    "", "8x", "0xL40", "xL40", "8xL40-46XB", "8xL40-0GB", "8xL41", "8xL40,ram=", "8xL40,ram=-1GB", "8xL40,rum=1GB",
    "8xL40,cpu=486", "99999xL40", "8xL40,,ram=1GB", "8xL40++2xL40", "no/such.yaml", "8xL40,ram=1GB,ram=2GB",
    "\x00", ".",
]  # fmt: skip


@pytest.mark.parametrize("model", BAD_MODELS)
def test_bad_models_are_one_line(moeplan: Any, model: str) -> None:
    one_line(moeplan("solve", model, MACHINE))


@pytest.mark.parametrize("machine", BAD_MACHINES)
def test_bad_machines_are_one_line(moeplan: Any, machine: str) -> None:
    one_line(moeplan("hardware", machine))


BAD_FILES: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)),
    "list": b"[1, 2, 3]",
    "scalar": b"42",
    "truncated": b'{"schema": 1, "embedding": "cuda:0", "layers": [{"attent',
    "tag": b"!!python/object/apply:os.system ['true']",
    "bomb": b"a: &a [1,1]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n",
    "doubled": b"head: cpu\nhead: cuda:0\nembedding: cpu\nlayers: [{attention: cpu}]\n",
    "deep": b"[" * 3000,
    "huge": b"a: " + b"x" * 10_000_000,
    "unknown key": b"head: cpu\nembedding: cpu\nlayers: [{attention: cpu}]\nhed: cpu\n",
    "bad device": b"head: gpu0\nembedding: cpu\nlayers: [{attention: cpu}]\n",
    "negative id": b"head: cpu\nembedding: cpu\nlayers: [{attention: cpu, experts: {cpu: [-1]}}]\n",
    "twice": b"head: cpu\nembedding: cpu\nlayers: [{attention: cpu, experts: {cpu: [1], 'cuda:0': [1]}}]\n",
    "no layers": b"head: cpu\nembedding: cpu\nlayers: []\n",
    "number keys": b"1: 2\n",
    "schema": b"schema: 9\nhead: cpu\nembedding: cpu\nlayers: [{attention: cpu}]\n",
    "too few layers": b"head: cpu\nembedding: cpu\nlayers: [{attention: cpu}]\n",
    "not utf-8": "head: café".encode("latin-1"),
    "nan": b"head: cpu\nembedding: cpu\nlayers: [{attention: cpu}]\nobjective_s: .nan\n",
}


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_line_that_names_them(moeplan: Any, tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(BAD_FILES[name])
    for arguments in (
        ("check", path, "--model", MODEL, "--hardware", MACHINE),
        ("solve", path, MACHINE),
        ("hardware", path),
    ):
        assert path.name in one_line(moeplan(*arguments)) or name == "too few layers"
    one_line(moeplan("export", path, "--to", "ktransformers"))
    assert sorted(tmp_path.iterdir()) == [path]


def test_rules_without_a_model_are_refused(moeplan: Any, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("- match: {name: x}\n  replace: {class: default}\n", encoding="utf-8")
    assert "--model" in one_line(moeplan("check", path))
    one_line(moeplan("check", path, "--model", MODEL, "--hardware", MACHINE))


def test_a_file_that_cannot_be_written_leaves_nothing(moeplan: Any, tmp_path: Path) -> None:
    one_line(moeplan("profile", MODEL, "-o", tmp_path / "no" / "such" / "folder.yaml"))
    (tmp_path / "taken").mkdir()
    one_line(moeplan("profile", MODEL, "-o", tmp_path / "taken"))
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


def test_a_damaged_plan_never_ends_in_a_traceback(moeplan: Any, tmp_path: Path, plan: Placement) -> None:
    """Random damage to a real document: fits, does not fit, or one line; nothing else."""
    rng, text = random.Random(5), plan.to_json()
    for number in range(60):
        path = tmp_path / f"damaged{number}.json"
        at = rng.randrange(len(text))
        path.write_text(text[:at] + rng.choice(['"', "}", "9", "null", "", "-"]) + text[at + rng.randint(0, 9) :])
        status, _, err = moeplan("check", path)
        assert status in (0, 1, 3)
        assert err.count("\n") == (status == 1)


def test_a_plan_shows_itself_in_a_notebook(plan: Placement) -> None:
    html = plan._repr_html_()
    assert html.count("<tr>") == 10
    assert "optimal" in html
    assert "&lt;" in plan.replace(model="<b>")._repr_html_()
