"""`moeplan check` on other runtimes' files, and `moeplan export`: what a person sees, and what is left on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ktransformers_files import EXPERTS, by_gpu, on, rule, text_of

from moeplan import cli as command
from moeplan.export_command import plan_schema
from profiles import Placement, load_profile
from runtime_adapter import read_rules

MODEL, MACHINE = "deepseek-v2", "8xL40-46GB"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def moeplan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command; gives exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["moeplan", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            command.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


def issue_76() -> str:
    """The layout of kvcache-ai/ktransformers issue 76, in our own words: DeepSeek-V2 on eight 46 GB cards.

    Layers 0 to 3 on the first, eight on each of the others, all experts in 16 bits beside their layers, tokens on the
    first card.
    """
    regexes = ["([0-3])", "([4-9]|[1][0-1])", "([1][2-9])", "([2][0-7])", "([2][8-9]|[3][0-5])", "([3][6-9]|[4][0-3])"]
    regexes += ["([4][4-9]|[5][0-1])", "([5][2-9])"]
    layers = {f"cuda:{i}": regex for i, regex in enumerate(regexes)}
    experts = [
        rule(
            EXPERTS,
            name=rf"^model\.layers\.{regex}\.mlp\.experts$",
            recursive=False,
            **on(device),
            prefill_op="KExpertsTorch",
            generate_op="KExpertsTorch",
            out_device=device,
        )
        for device, regex in layers.items()
    ]
    text = by_gpu(
        layers,
        {8 * i - 4: f"cuda:{i}" for i in range(1, 8)},
        modeling="modeling_deepseek",
        prefix="DeepseekV2",
        experts=experts,
        head="cuda:7",
        embedding="cuda:0",
    )
    return text.replace("DeepseekV2Rotary", "DeepseekV2YarnRotary")


def bf16_experts_bytes() -> int:
    """One layer of DeepSeek-V2: 160 experts of three matrices of 5120 x 1536, two bytes each."""
    return 160 * 3 * 5120 * 1536 * 2


def test_the_layout_of_issue_76_is_diagnosed_and_mended_in_one_command(moeplan: Any, tmp_path: Path) -> None:
    path, fixed = tmp_path / "issue76.yaml", tmp_path / "fixed.yaml"
    path.write_text(issue_76(), encoding="utf-8")
    status, out, _ = moeplan("check", path, "--model", MODEL, "--hardware", MACHINE, "--fix", fixed, "--json")
    found = json.loads(out)
    assert (status, found["status"], found["format"]) == (3, "infeasible", "ktransformers")
    assert list(found["short"]) == [f"cuda:{i}" for i in range(1, 8)]
    for device in ("cuda:0", "cuda:3"):
        held = found["memory"][device]["weights_bytes"]
        experts = 3 if device == "cuda:0" else 8  # layer 0 is dense
        rest = held - experts * bf16_experts_bytes() - (102400 * 5120 * 2 if device == "cuda:0" else 0)
        assert 0 < rest < 8 * 0.2e9, "attention, shared experts and the dense layer, in 4 bits"
    assert found["short"]["cuda:3"] == -(
        found["memory"]["cuda:3"]["usable_bytes"]
        - sum(found["memory"]["cuda:3"][part] for part in ("weights_bytes", "kv_bytes", "workspace_bytes"))
    )
    assert found["short"]["cuda:3"] > 20e9
    assert "embed_tokens" in found["notes"][0]
    assert found["ours"]["short"] == {}
    plan = read_rules(fixed.read_text(encoding="utf-8"), "ktransformers", load_profile(MODEL))
    assert plan.notes is None
    status, out, _ = moeplan("check", fixed, "--model", MODEL, "--hardware", MACHINE, "--json")
    again = json.loads(out)
    assert (status, again["status"], again["objective_s"]) == (0, "fits", found["ours"]["objective_s"])


def test_what_a_person_sees_of_it(moeplan: Any, tmp_path: Path) -> None:
    path = tmp_path / "issue76.yaml"
    path.write_text(issue_76(), encoding="utf-8")
    status, out, _ = moeplan("check", path, "--model", MODEL, "--hardware", MACHINE)
    assert status == 3
    assert out.count("overflows by") == 7
    assert "does not fit: 7 of 9 devices overflow" in out
    for words in ("this file", "and fits", "--quant gpu=marlin,cpu=bf16", "experts bf16"):
        assert words in " ".join(out.split())


def test_a_fix_that_cannot_be_is_not_written(moeplan: Any, tmp_path: Path) -> None:
    path, fixed = tmp_path / "issue76.yaml", tmp_path / "fixed.yaml"
    path.write_text(issue_76(), encoding="utf-8")
    status, out, err = moeplan("check", path, "--model", MODEL, "--hardware", "8xL40-46GB,ram=8GB", "--fix", fixed)
    assert (status, out, fixed.exists()) == (3, "", False)
    assert err.count("\n") == 1


def test_operators_decide_about_bytes(moeplan: Any, tmp_path: Path) -> None:
    """4 bits and a 16-bit scale for every 64 weights, instead of 16 bits."""
    path = tmp_path / "marlin.yaml"
    path.write_text(issue_76().replace("generate_op: KExpertsTorch", "generate_op: KExpertsMarlin"), encoding="utf-8")
    status, out, _ = moeplan("check", path, "--model", MODEL, "--hardware", MACHINE, "--json", "--time-limit", 0)
    found = json.loads(out)
    assert (status, found["ours"], found["verdict"]) == (0, None, None)
    sixteenth = bf16_experts_bytes() / 16
    assert found["memory"]["cuda:3"]["weights_bytes"] == pytest.approx(8 * sixteenth * 4.25, rel=0.09)


def test_measured_bytes_stay_as_they_are(moeplan: Any, tmp_path: Path) -> None:
    """5.2 GB a layer, whatever the operators: eight layers are 0.4 GB too many for a card (profiles/data)."""
    path = tmp_path / "issue76.yaml"
    path.write_text(issue_76(), encoding="utf-8")
    asked = ("--model", "deepseek-v2-measured", "--hardware", MACHINE, "--time-limit", 0, "--json")
    status, out, _ = moeplan("check", path, *asked)
    found = json.loads(out)
    assert (status, found["memory"]["cuda:3"]["weights_bytes"]) == (3, 8 * 5_200_000_000)
    assert found["notes"][-1].startswith("bytes by operator are not counted")


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^" + "x*" * 30 + "$"])
def test_hostile_patterns_are_one_line(moeplan: Any, tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text_of([rule(name=pattern, **on("cuda:0"))]), encoding="utf-8")
    status, out, err = moeplan("check", path, "--model", MODEL, "--hardware", MACHINE)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "hostile.yaml: rule 1 (line 1)" in err


def test_ten_megabytes_are_not_read(moeplan: Any, tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    path.write_text("- match: {name: x}\n" * 550_000, encoding="utf-8")
    status, _, err = moeplan("check", path, "--model", MODEL, "--hardware", MACHINE)
    assert (status, err.count("\n")) == (1, 1)
    assert "bytes, more than" in err


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = [{"attention": "cuda:0", "experts": {}}, *[{"attention": "cuda:0", "experts": {"cpu": "all"}}] * 59]
    plan = Placement(model=MODEL, architecture="deepseek_v2", embedding="cpu", head="cuda:0", layers=layers)
    path = tmp_path_factory.mktemp("plans") / "plan.yaml"
    plan.save(path)
    return path


def test_export_prints_the_text_and_nothing_else(moeplan: Any, plan_file: Path) -> None:
    status, out, err = moeplan("export", plan_file, "--to", "ktransformers")
    assert (status, err) == (0, "")
    assert out.endswith("\n")
    assert not out.endswith("\n\n")
    assert isinstance(yaml.safe_load(out), list)


def test_export_all_writes_what_can_be_said(moeplan: Any, plan_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    status, out, err = moeplan("export", plan_file, "--all", folder)
    assert (status, out) == (0, "")
    written = {path.name for path in folder.iterdir()}
    assert {"ktransformers.yaml", "plan.yaml"} <= written
    assert len(err.splitlines()) >= len(written)
    assert Placement.from_dict(yaml.safe_load((folder / "plan.yaml").read_text())).model == MODEL


def test_export_says_why_not(moeplan: Any, tmp_path: Path) -> None:
    split = [{"attention": "cuda:0", "experts": {"cuda:0": [0], "cpu": [1]}}]
    path = tmp_path / "split.yaml"
    Placement(architecture="mixtral", embedding="cpu", head="cuda:0", layers=split).save(path)
    status, _, err = moeplan("export", path, "--all", tmp_path / "all")
    assert status == 0
    assert "not written: ktransformers: layers 0 split their experts" in err
    assert not (tmp_path / "all" / "ktransformers.yaml").exists()


@pytest.mark.parametrize("options", [(), ("--to", "moeplan", "--all", "x")])
def test_export_wants_one_of_two(moeplan: Any, plan_file: Path, options: tuple[str, ...]) -> None:
    status, out, err = moeplan("export", plan_file, *options)
    assert (status, out) == (2, "")
    assert "--all" in err


def test_another_model_is_refused(moeplan: Any, plan_file: Path) -> None:
    status, _, err = moeplan("export", plan_file, "--to", "ktransformers", "--model", "deepseek-v3")
    assert status == 1
    assert "the plan has 60 layers" in err


def test_the_published_schema_is_the_code_s(moeplan: Any) -> None:
    """To write it anew: moeplan schema > docs/plan.schema.json."""
    assert (ROOT / "docs" / "plan.schema.json").read_text(encoding="utf-8") == plan_schema()
    assert moeplan("schema")[1] == plan_schema()


def test_plans_follow_the_schema(plan_file: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(plan_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    plan = Placement.from_dict(yaml.safe_load(plan_file.read_text()))
    split = {"attention": "cuda:0", "experts": {"cuda:0": [0], "cpu": [1, 2]}}
    for good in (plan.to_dict(), {"embedding": "cpu", "head": "cpu", "layers": [split]}):
        validator.validate(good)
    for bad in (
        {"embedding": "cpu", "head": "cpu"},
        {"embedding": "cpu", "head": "cpu", "layers": []},
        {"embedding": "cpu", "head": "cpu", "layers": [{"attention": "cpu", "expert": {}}]},
        {"embedding": "cpu", "head": "cpu", "layers": [{"attention": "cpu", "experts": {"cpu": "some"}}]},
        {"embedding": 5, "head": "cpu", "layers": [split]},
        {"embedding": "gpu0", "head": "cpu", "layers": [split]},
        {"embedding": "cpu", "head": "cpu", "layers": [{"attention": "cpu", "experts": {"cuda": "all"}}]},
        {**plan.to_dict(), "schema": 2},
        {**plan.to_dict(), "speed": 1},
    ):
        assert not validator.is_valid(bad), bad


SMALL, CARD = "qwen3-30b-a3b", "1xRTX4090,ram=96GB"
MOE_LAYERS = 48
FOREIGN = {
    "llama.cpp": "LLAMA_ARG_X=1 ./llama-server -m /models/q.gguf \\\n  -fit off -ngl 99 -c 2048 --n-cpu-moe 30\n",
    "ik_llama.cpp": "./llama-server -m /models/q.gguf -ngl 99 -c 2048 -ot exps=CPU -fmoe\n",
    "sglang-kt": (
        "python -m sglang.launch_server --model-path /models/q --kt-weight-path /models/q --kt-method BF16 "
        "--kt-num-gpu-experts 20 --kt-expert-placement-strategy uniform --max-total-tokens 2048\n"
    ),
    "accelerate": json.dumps(
        {
            "model.embed_tokens": 0,
            "model.rotary_emb": 0,
            **{f"model.layers.{i}": 0 if i < 12 else "cpu" for i in range(MOE_LAYERS)},
            "model.norm": 0,
            "lm_head": 0,
        },
        indent=0,
    ),
}
ON_CPU = {"llama.cpp": 30, "ik_llama.cpp": 48, "sglang-kt": 48, "accelerate": 36}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_every_runtime_are_checked_and_mended(moeplan: Any, tmp_path: Path, name: str) -> None:
    path, fixed = tmp_path / "theirs.txt", tmp_path / "ours.txt"
    path.write_text(FOREIGN[name], encoding="utf-8")
    profile = load_profile(SMALL)
    theirs = read_rules(FOREIGN[name], name, profile)
    assert sum("cpu" in layer.experts for layer in theirs.layers) == ON_CPU[name]
    asked = ("--model", SMALL, "--hardware", CARD, "--time-limit", 2)
    status, out, err = moeplan("check", path, *asked, "--fix", fixed, "--json")
    found = json.loads(out)
    assert (status in (0, 3), found["format"], found["fixed"]) == (True, name, str(fixed)), err
    assert found["ours"]["short"] == {}
    assert found["status"] == "infeasible" or found["ours"]["objective_s"] <= found["objective_s"] * 1.001
    ours = read_rules(fixed.read_text(encoding="utf-8"), name, profile)
    assert len(ours.layers) == MOE_LAYERS
    status, out, _ = moeplan("check", fixed, *asked[:4], "--time-limit", 0, "--format", name, "--json")
    assert (status, json.loads(out)["objective_s"]) == (0, pytest.approx(found["ours"]["objective_s"]))


def test_the_model_s_path_stays(moeplan: Any, tmp_path: Path) -> None:
    path, fixed = tmp_path / "start.sh", tmp_path / "better.sh"
    path.write_text(FOREIGN["llama.cpp"], encoding="utf-8")
    assert moeplan("check", path, "--model", SMALL, "--hardware", CARD, "--fix", fixed)[0] in (0, 3)
    assert "-m /models/q.gguf" in fixed.read_text(encoding="utf-8")
