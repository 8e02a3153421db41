"""One door to all targets: export, expressible, read_rules and guess_format."""

from __future__ import annotations

from typing import Any

import pytest

from profiles import load_profile
from profiles.errors import TargetError
from profiles.placement import Placement
from runtime_adapter.export import export, expressible, outline_of
from runtime_adapter.read_rules import guess_format, read_rules
from runtime_adapter.targets.known import FILE_NAMES, TARGETS


def layers(count: int, dense: int = 0, attention: str = "cuda:0") -> list[dict[str, Any]]:
    return [{"attention": attention, "experts": {} if i < dense else {"cpu": "all"}} for i in range(count)]


def placement(count: int, dense: int = 0, **more: Any) -> Placement:
    return Placement(**{"embedding": "cpu", "head": "cuda:0", "layers": layers(count, dense), **more})


def test_the_model_is_the_one_named_then_the_plan_s_own() -> None:
    plan = placement(60, dense=1, model="deepseek-v2")
    assert outline_of(plan).experts == (0, *[160] * 59)
    assert outline_of(plan).architecture == "deepseek_v2"
    assert outline_of(plan, "deepseek-v2.5").model == "deepseek-v2.5"
    alone = outline_of(placement(3, dense=1, model="deepseek-v2", architecture="mixtral"))
    assert (alone.experts, alone.architecture) == ((0, None, None), "mixtral")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (placement(59, dense=1), "the plan has 59 layers, deepseek-v2 has 60"),
        (placement(60, dense=2), "layer 1 has experts, but the plan places none"),
        (placement(60), "layer 0 has no experts, but the plan places some"),
    ],
)
def test_a_plan_of_another_model_is_refused(plan: Placement, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        export(plan, "ktransformers", model="deepseek-v2")


def test_every_target_says_whether_it_can() -> None:
    found = expressible(placement(60, dense=1, model="deepseek-v2"))
    assert list(found) == list(TARGETS)
    assert found["ktransformers"] is None
    assert found["moeplan"] is None
    on_cpu = placement(60, model="x", architecture="deepseek_v2", layers=layers(60, 1, attention="cpu"))
    reason = expressible(on_cpu)["ktransformers"]
    assert reason is not None
    assert "attention on cpu" in reason
    assert all("\n" not in text for text in expressible(on_cpu).values() if text)


def test_what_is_said_to_be_possible_is() -> None:
    plan = placement(60, dense=1, model="deepseek-v2")
    for name, reason in expressible(plan).items():
        if reason is None:
            assert export(plan, name)
        else:
            with pytest.raises(TargetError):
                export(plan, name)


def test_every_target_has_a_file_name() -> None:
    assert set(TARGETS) <= set(FILE_NAMES)
    assert len(set(FILE_NAMES.values())) == len(FILE_NAMES)


def test_unknown_formats_are_named() -> None:
    with pytest.raises(TargetError, match=r"'vllm'.*ktransformers, .*moeplan"):
        export(placement(1), "vllm")
    with pytest.raises(TargetError, match="'vllm'"):
        read_rules("", "vllm", load_profile("mixtral-8x7b"))


GUESSES = {
    "ktransformers": [
        "# rules\n\n- match:\n    name: ^model$\n  replace: {class: default}\n",
        '[{"match": {"name": "x"}, "replace": {}}]',
        "- match: {name: '-ngl'}\n",
    ],
    "moeplan": [
        "schema: 1\nembedding: cpu\nlayers:\n- {attention: cpu}\nnotes: ['run with -ngl 99']\n",
        '{"schema": 1, "layers": []}',
        "nothing that anybody knows",
        "",
    ],
    "llama.cpp": [
        "llama-server -m model.gguf -ngl 99",
        'LLAMA=1 ./llama-cli -ot "blk\\.1\\.=CPU"',
        "--n-cpu-moe 20",
        "-ncmoe=20\n",
        "llama-fit-params printed: -c 4096 -ngl 30 -ts 1,2",
    ],
    "ik_llama.cpp": ["./llama-server -m m.gguf -ngl 99 -fmoe -rtr -ot exps=CPU"],
    "sglang-kt": ["python -m sglang.launch_server --model M --kt-num-gpu-experts 4"],
    "accelerate": ['{"model.embed_tokens": 0, "model.layers.0": "cpu"}', 'model = load(device_map={"": 0})'],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in GUESSES.items() for text in texts])
def test_formats_are_guessed(name: str, text: str) -> None:
    assert guess_format(text) == name


def test_a_plan_document_keeps_what_it_says() -> None:
    plan = placement(32, model="mixtral-8x7b", target="torch", notes=("by hand",))
    assert read_rules(export(plan, "moeplan"), "moeplan", load_profile("mixtral-8x7b")) == plan
    with pytest.raises(TargetError, match="32 layers"):
        read_rules(export(plan, "moeplan"), "moeplan", load_profile("deepseek-v2"))
