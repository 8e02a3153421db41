"""Rules files as KTransformers ships them, and with the mistakes that people make, read as placements."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ktransformers_files import (
    LINEAR,
    MODELS,
    OPERATORS,
    by_gpu,
    cpu_experts,
    gpu_experts,
    on,
    on_one_gpu,
    rule,
    text_of,
)

from profiles import load_profile
from profiles.errors import TargetError
from profiles.placement import Placement
from profiles.safe_regex import compile_safely
from runtime_adapter.targets.ktransformers.rules import parse_rules
from runtime_adapter.targets.ktransformers.writer import read
from runtime_adapter.targets.target import Outline


def outline(architecture: str, layers: int, dense: int = 0) -> Outline:
    return Outline("a model", architecture, tuple(0 if i < dense else 8 for i in range(layers)))


V3 = outline("deepseek_v3", 61, 3)
V2 = outline("deepseek_v2", 60, 1)


def attention(plan: Placement) -> list[str]:
    return [layer.attention for layer in plan.layers]


def experts(plan: Placement) -> list[str | None]:
    return [layer.experts_device for layer in plan.layers]


def runs(*parts: tuple[str | None, int]) -> list[Any]:
    """The device of each layer, from (device, how many layers)."""
    return [device for device, count in parts for _ in range(count)]


def test_four_gpus_with_all_experts_on_the_cpu() -> None:
    """As DeepSeek-V2-Chat-multi-gpu-4.yaml."""
    layers = {"cuda:0": "([0-9]|[1][0-4])", "cuda:1": "([2][0-9]|[1][5-9])", "cuda:2": "([3][0-9]|[4][0-4])"}
    layers["cuda:3"] = "([5][0-9]|[4][5-9])"
    transfers = {15: "cuda:1", 30: "cuda:2", 45: "cuda:3"}
    text = by_gpu(layers, transfers, modeling="modeling_deepseek", prefix="DeepseekV2", head="cuda:3")
    plan = read(text.replace("DeepseekV2Rotary", "DeepseekV2YarnRotary"), V2)
    assert attention(plan) == runs(("cuda:0", 15), ("cuda:1", 15), ("cuda:2", 15), ("cuda:3", 15))
    assert experts(plan) == runs((None, 1), ("cpu", 59))
    assert (plan.embedding, plan.head, plan.notes) == ("cpu", "cuda:3", None)


def test_eight_gpus_and_a_default_rule_that_comes_too_late() -> None:
    """As DeepSeek-V3-Chat-multi-gpu-8.yaml, whose last rule claims layers 45 to 60, most of which are elsewhere."""
    regexes = ["([0-7])", "(8|9|1[0-5])", "(1[6-9]|2[0-3])", "(2[4-9]|3[0-1])", "([3][2-9])", "(4[0-7])"]
    regexes += ["(4[8-9]|5[0-5])", "(5[6-9]|60)"]
    layers = {f"cuda:{i}": regex for i, regex in enumerate(regexes)}
    text = by_gpu(layers, {8 * i: f"cuda:{i}" for i in range(1, 8)}, head="cuda:7")
    plan = read(text.replace("5[6-9]|60)\\.)|", "4[5-9]|5[0-9]|60)\\.)|"), V3)
    assert attention(plan) == runs(*((f"cuda:{i}", 8) for i in range(7)), ("cuda:7", 5))
    assert experts(plan) == runs((None, 3), ("cpu", 58))
    assert (plan.head, plan.notes) == ("cuda:7", None)


def test_two_gpus_with_some_experts_on_them() -> None:
    """As DeepSeek-V3-Chat-multi-gpu-marlin.yaml: the first rule that matches wins; the head goes back to the start."""
    first, second = r"^model\.layers\.(0|[1-9]|[12][0-9])\.", r"^model\.layers\.([3456][0-9])\."
    rules = [
        gpu_experts(r"^model\.layers\.(0|[1-4])\.mlp\.experts$", "cuda:0"),
        gpu_experts(r"^model\.layers\.([3][0])\.mlp\.experts$", "cuda:1"),
        cpu_experts(rf"{first}mlp\.experts$", "cuda:0"),
        cpu_experts(rf"{second}mlp\.experts$", "cuda:1"),
    ]
    layers = {"cuda:0": "(0|[1-9]|[12][0-9])", "cuda:1": "([3456][0-9])"}
    plan = read(by_gpu(layers, {30: "cuda:1"}, experts=rules, head="cuda:0"), V3)
    assert attention(plan) == runs(("cuda:0", 30), ("cuda:1", 31))
    assert experts(plan) == runs((None, 3), ("cuda:0", 2), ("cpu", 25), ("cuda:1", 1), ("cpu", 30))
    assert (plan.head, plan.notes) == ("cuda:0", None)


ONE_GPU: dict[str, tuple[str, Outline]] = {
    "mixtral": (
        on_one_gpu("modeling_mixtral", "Mixtral", block="SparseMoeBlock", block_name="block_sparse_moe"),
        outline("mixtral", 32),
    ),
    "deepseek_v3": (on_one_gpu("modeling_deepseek_v3", "DeepseekV3"), V3),
    "qwen3_moe": (
        on_one_gpu("modeling_qwen3_moe", "Qwen3Moe", block="SparseMoeBlock").replace(
            "modeling_qwen3_moe.Qwen3MoeRotary", "modeling_qwen2_moe.Qwen2MoeRotary"
        ),
        outline("qwen3_moe", 94),
    ),
    "glm4_moe": (
        on_one_gpu("modeling_glm4_moe", "Glm4Moe", experts=f"{OPERATORS}.experts.KGlm4Experts"),
        outline("glm4_moe", 46, 1),
    ),
    "llama4": (
        on_one_gpu("modeling_llama4", "Llama4Text", block="Moe", block_name="feed_forward"),
        outline("llama4", 48),
    ),
    "smallthinker": (
        on_one_gpu("modeling_smallthinker", "Smallthinker", block="MoeBlock", block_name="block_sparse_moe"),
        outline("smallthinker", 52),
    ),
    "hunyuan": (
        on_one_gpu("modeling_hunyuan", "HunYuan", rotary="DynamicNTKAlphaRotaryEmbedding"),
        outline("hunyuan_v1_moe", 32),
    ),
    "qwen3_next": (
        on_one_gpu(
            "modeling_qwen3_next",
            "Qwen3Next",
            block="SparseMoeBlock",
            more=[
                rule(
                    f"{OPERATORS}.GatedDeltaNet",
                    of=f"{MODELS}.modeling_qwen3_next.Qwen3NextGatedDeltaNet",
                    **on("cuda"),
                )
            ],
        ),
        outline("qwen3_next", 48),
    ),
}


@pytest.mark.parametrize("family", ONE_GPU)
def test_files_for_one_gpu(family: str) -> None:
    """As Mixtral.yaml and the files for the server: by class, `cuda` without an index, operators of their own."""
    text, model = ONE_GPU[family]
    plan = read(text, model)
    assert attention(plan) == ["cuda:0"] * len(model.experts)
    assert experts(plan) == [None if count == 0 else "cpu" for count in model.experts]
    assert (plan.embedding, plan.head, plan.notes) == ("cpu", "cuda:0", None)


@pytest.mark.parametrize("name", ["xpu", "npu", "musa"])
def test_other_makers_devices(name: str) -> None:
    plan = read(on_one_gpu("modeling_deepseek_v3", "DeepseekV3", gpu=name), V3)
    assert attention(plan) == ["cuda:0"] * 61
    assert plan.notes == (f"{name} is counted as cuda:0, first in rule 1 (line 1)",)


def test_the_oldest_files_say_little() -> None:
    """As the first DeepSeek-V2-Chat.yaml: no device for some operators, other names for them, no embedding, no head."""
    text = text_of(
        [
            rule(f"{OPERATORS}.RoPE.Yarn", of=f"{MODELS}.modeling_deepseek.DeepseekV2YarnRotaryEmbedding"),
            rule(
                f"{OPERATORS}.linear.KTransformerLinear",
                name=r"^model\.layers\.(?!.*self_attn).*$",
                of="torch.nn.Linear",
            ),
            cpu_experts(r"^model\.layers\..*\.mlp\.experts$", "cuda", f"{OPERATORS}.experts.KTransformersMLPExpert"),
            rule(f"{OPERATORS}.attention.Injected", name=r"^model\.layers\..*\.self_attn$"),
            rule(f"{OPERATORS}.layer_wise_prefill.Model", name="^model$", per_layer_prefill_intput_threshold=0),
        ]
    )
    plan = read(text, V2)
    assert attention(plan) == ["cuda:0"] * 60
    assert experts(plan) == runs((None, 1), ("cpu", 59))
    assert (plan.embedding, plan.head) == ("cuda:0", "cuda:0")
    assert plan.notes == ("no rule: model.embed_tokens is on cuda:0, but tokens are looked up on cpu",)


def test_linear_rules_that_end_too_early() -> None:
    """As Qwen2-57B-A14B-Instruct-multi-gpu.yaml: the linears' names end at the layer's number, so they match none, and
    the blocks have no devices, which they need not; norm and head share a default rule."""
    parts = {"cuda:0": "([012])", "cuda:1": "([12][0-9]|[3-9])"}
    rules = []
    for device, layers in parts.items():
        start, own = rf"^model\.layers\.{layers}", f"{MODELS}.modeling_qwen2_moe.Qwen2Moe"
        rules += [
            rule(f"{OPERATORS}.RoPE.RotaryEmbedding", name=rf"{start}\.", of=f"{own}RotaryEmbedding", **on(device)),
            rule(LINEAR, name=f"{start}$", of="torch.nn.Linear", **on(device), generate_op="KLinearMarlin"),
            rule(f"{OPERATORS}.experts.KBlock", name=rf"{start}\.mlp$", of=f"{own}SparseMoeBlock"),
            cpu_experts(rf"{start}\.mlp\.experts$", device),
        ]
    rules += [rule(name="^model.embed_tokens", **on("cpu")), rule(name="(^model.norm)|(^lm_head)", **on("cuda:1"))]
    rules += [rule(f"{OPERATORS}.layer_wise_prefill.KQwen2MoeModel", name="^model$", transfer_map={3: "cuda:1"})]
    rules += [rule(name=rf"^model\.layers\.{layers}\.", **on(device)) for device, layers in parts.items()]
    plan = read(text_of(rules), outline("qwen2_moe", 28))
    assert attention(plan) == runs(("cuda:0", 3), ("cuda:1", 25))
    assert experts(plan) == ["cpu"] * 28
    assert (plan.embedding, plan.head) == ("cpu", "cuda:1")
    notes = plan.notes or ()
    assert [note.split(" (")[0] for note in notes] == ["rule 2", "rule 6"]
    assert all("matches nothing of this model" in note for note in notes)


def test_two_gpus_for_qwen3() -> None:
    """As KT's rules for tuning Qwen3-235B on two GPUs: no class asked of the block, the head back on the first GPU."""
    parts = {"cuda:0": r"^model\.layers\.(0|[1-9]|[1234][0-9])\.", "cuda:1": r"^model\.layers\.([56789][0-9])\."}
    rules = [rule(LINEAR, name=start, of="torch.nn.Linear", **on(device)) for device, start in parts.items()]
    rules += [rule(f"{OPERATORS}.experts.KBlock", name=f"{start}mlp$", **on(device)) for device, start in parts.items()]
    rules += [
        cpu_experts(rf"{start}mlp\.experts$", device, generate_op="KSFTExpertsCPU", backend="AMXInt8")
        for device, start in parts.items()
    ]
    rules += [
        rule(f"{OPERATORS}.x.Attention", name=f"{start}self_attn$", **on(device)) for device, start in parts.items()
    ]
    rules += [
        rule(name="^model.embed_tokens", **on("cpu")),
        rule(f"{OPERATORS}.models.M", name="^model$", transfer_map={50: "cuda:1"}),
    ]
    rules += [rule(LINEAR, name="^lm_head", of="torch.nn.Linear", **on("cuda:0"))]
    rules += [
        rule(name=f"({parts['cuda:0']})", **on("cuda:0")),
        rule(name=f"({parts['cuda:1']})|(model.norm)", **on("cuda:1")),
    ]
    text = text_of(rules).replace("transfer_map:", "per_layer_prefill_intput_threshold: 0\n      transfer_map:")
    plan = read(text, outline("qwen3_moe", 94))
    assert attention(plan) == runs(("cuda:0", 50), ("cuda:1", 44))
    assert experts(plan) == ["cpu"] * 94
    assert (plan.head, plan.notes) == ("cuda:0", None)


def test_a_dense_model_of_which_little_is_replaced() -> None:
    """As Internlm2_5-7b-Chat-1m.yaml: everything but attention and the lookup stays as it is."""
    rules = [
        rule(f"{OPERATORS}.RoPE.RotaryEmbeddingV2", of=f"{MODELS}.modeling_llama.LlamaRotaryEmbedding"),
        rule(name="^model.embed_tokens", **on("cpu")),
        rule(f"{OPERATORS}.models.KLlamaModel", of=f"{MODELS}.modeling_llama.LlamaModel", **on("cuda")),
        rule(f"{OPERATORS}.attention.KLlamaAttention", name=r"^model\.layers\..*\.self_attn$", **on("cuda")),
    ]
    plan = read(text_of(rules), outline("internlm2", 32, 32))
    assert (attention(plan), experts(plan)) == (["cuda:0"] * 32, [None] * 32)
    assert (plan.embedding, plan.head, plan.notes) == ("cpu", "cuda:0", None)


def test_attention_on_the_cpu_and_a_class_of_another_model() -> None:
    """As DeepSeek-V2-Lite-Chat-gpu-cpu.yaml, whose rules for routers ask for a class of DeepSeek-V3."""
    layers = {"cuda:0": "(0|[1-9])", "cpu": "([12][0-9])"}
    made = by_gpu(layers, {10: "cpu"}, modeling="modeling_deepseek", prefix="DeepseekV2", head="cuda:0")
    text = made.replace("DeepseekV2Rotary", "DeepseekV2YarnRotary").replace("KLinearMarlin", "KLinearCPUInfer")
    text += text_of([rule(f"{OPERATORS}.gate.KMoEGate", of=f"{MODELS}.modeling_deepseek_v3.MoEGate", **on("cuda:0"))])
    plan = read(text, outline("deepseek_v2", 27, 1))
    assert attention(plan) == runs(("cuda:0", 10), ("cpu", 17))
    assert experts(plan) == runs((None, 1), ("cpu", 26))
    (note,) = plan.notes or ()
    assert "matches nothing of this model: 'ktransformers.models.modeling_deepseek_v3.MoEGate'" in note


def test_linears_on_the_cpu_beside_attention_on_the_gpu() -> None:
    """As rocm/DeepSeek-V3-Chat.yaml: the linears generate on the CPU and read prompts on the GPU."""
    text = on_one_gpu("modeling_deepseek_v3", "DeepseekV3")
    before = r"(?!.*self_attn\.kv_b_proj).*$"
    assert before in text
    rules = text.split("- match:")
    linears = next(i for i, part in enumerate(rules) if "kv_b_proj" in part)
    rules[linears] = rules[linears].replace("generate_device: cuda", "generate_device: cpu")
    plan = read("- match:".join(rules), V3)
    assert attention(plan) == ["cuda:0"] * 61
    found = plan.notes or ()
    assert any("linears of layers 0-60 are on cpu, the layers on cuda:0: counted with their layer" in n for n in found)
    assert any("prefill_device cuda:0 is not generate_device cpu" in n for n in found)


def with_gap(transfers: dict[int, str]) -> str:
    """Layers 0 to 9 and 11 to 60; nobody thought of 10."""
    return by_gpu({"cuda:0": "([0-9])", "cuda:1": "(1[1-9]|[23456][0-9])"}, transfers, head="cuda:1")


@pytest.mark.parametrize("start", [10, 11])
def test_a_gap_falls_to_the_first_gpu_and_is_reported(start: int) -> None:
    """Whether or not the hidden states would get there."""
    plan = read(with_gap({start: "cuda:1"}), V3)
    assert attention(plan) == runs(("cuda:0", 11), ("cuda:1", 50))
    assert experts(plan)[9:12] == ["cpu", "cuda:0", "cpu"]
    assert (plan.notes or ())[0] == ("layers 10 fall to cuda:0: no rule matches their self_attn and 5 more modules")


def test_a_gap_in_the_experts_alone() -> None:
    text = (
        with_gap({11: "cuda:1"})
        .replace("([0-9])", "([0-9]|10)")
        .replace(r"([0-9]|10)\.mlp\.experts", r"([0-9])\.mlp\.experts")
    )
    plan = read(text, V3)
    assert experts(plan)[9:12] == ["cpu", "cuda:0", "cpu"]
    (note,) = plan.notes or ()
    assert note == "no operator for the experts of layers 10: they are one by one, by rule 4 (line 24), on cuda:0"


def test_experts_under_a_default_rule_that_hides_them() -> None:
    hidden = text_of([rule(name=r"\.experts$", recursive=False, **on("cuda:0"))])
    plan = read(hidden + on_one_gpu("modeling_deepseek_v3", "DeepseekV3"), V3)
    assert experts(plan) == runs((None, 3), ("cuda:0", 58))
    assert (plan.notes or ())[0] == (
        "no operator for the experts of layers 3-60: they are plain 16-bit modules, on cuda:0"
    )


def test_rules_that_do_nothing_are_named_with_their_lines() -> None:
    text = on_one_gpu("modeling_deepseek_v3", "DeepseekV3")
    first = len(text.splitlines()) + 1
    more = text_of([rule(LINEAR, name=r"^model\.layer\.", **on("cuda:0")), rule(name=r"^lm_head", **on("cuda:1"))])
    plan = read(text + more, V3)
    second = first + more.splitlines().index("- match:", 1)
    assert plan.notes == (
        f"rule 9 (line {first}) matches nothing of this model: '^model\\\\.layer\\\\.'",
        f"rule 10 (line {second}) decides nothing: earlier rules, or `recursive: false`, take all that it matches",
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "(^model.norm)",
            "(^x)",
            "no rule: model.norm is on cuda:0, the last layer on cuda:1; the first prompt would stop",
        ),
        ("name: ^lm_head", "name: ^x", "no rule: lm_head is a plain module on cuda:0"),
        (
            "per_layer_prefill_intput_threshold: 0",
            "per_layer_prefill_intput_threshold: 4000",
            "longer prompts than 4000",
        ),
        ("out_device: cuda:1", "out_device: cuda:0", "out_device is cuda:0, but layers 30-60 are on cuda:1"),
    ],
)
def test_oddities_become_notes(old: str, new: str, words: str) -> None:
    text = by_gpu({"cuda:0": "([0-9]|[12][0-9])", "cuda:1": "([3456][0-9])"}, {30: "cuda:1"}, head="cuda:1")
    assert old in text
    plan = read(text.replace(old, new), V3)
    assert attention(plan) == runs(("cuda:0", 30), ("cuda:1", 31))
    assert any(words in note for note in plan.notes or ())


def test_errors_name_the_rule_and_its_line() -> None:
    text = "- match: {name: ^x}\n  replace: {class: default}\n- match: {name: '('}\n  replace: {class: default}\n"
    with pytest.raises(TargetError, match=r"mine: rule 2 \(line 3\): `name` is not a regular expression"):
        parse_rules(text, "mine")
    flow = "[{match: {name: ^x}, replace: {}}, {match: {name: ^x}}]"
    with pytest.raises(TargetError, match=r"mine: rule 2: needs the mappings"):
        parse_rules(flow, "mine")


HOSTILE = {
    "repeats of repeats": r"^model\.(a+)+$",
    "alternatives that are equal": r"(a|a)*b",
    "anything of anything": r"(.*)*x",
    "bounded repeats of repeats": r"([a-z]{1,30}){1,30}!",
    "many open repeats": ".*a" * 8 + "!",
    "many optional letters": "^" + "[a-z]?" * 40 + "!",
    "many equal alternatives": "^" + "(?:[a-z]|[a-z][a-z])" * 40 + "!",
    "a lookahead full of them": r"^(?=(?:[a-z]+)+!)",
    "very long": "a|" * 5000 + "b",
    "very deep": "(" * 900 + ")" * 900,
    "absurd counts": "a{99999999999}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_patterns_that_take_for_ever_are_refused(name: str) -> None:
    """Before they are tried: a test that fails here does so by not ending."""
    text = text_of([rule(name=HOSTILE[name], **on("cuda:0"))])
    with pytest.raises(TargetError, match="mine: rule 1"):
        read(text, V3, "mine")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- match: {name: x}\n" * 10_000, "characters"),
        ("- !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("- &a [x]\n- *a", "aliases"),
        ("[" * 5000, "nested too deep"),
    ],
)
def test_hostile_documents_are_refused(text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        read(text, V3, "mine")


@pytest.mark.parametrize(
    "pattern",
    [
        r"^model\.layers\.(?!.*mlp\.shared_expert_gate)(?!.*mlp\.gate)(?!.*mlp\.experts).*$",
        r"(^model\.layers\.(4[5-9]|5[0-9]|60)\.)|(^model\.norm)",
        r".*\.layers\..*\.mlp\..*",
        r"^model..*norm",
        r"layers\.\d{1,2}\.mlp",
    ],
)
def test_honest_patterns_pass(pattern: str) -> None:
    """As in the shipped files, and a little worse."""
    assert compile_safely(pattern)[1] < 20_000


def test_a_leading_anything_changes_nothing() -> None:
    pattern, _ = compile_safely(r".*\.experts$")
    assert pattern.search("model.layers.0.mlp.experts")
    assert not pattern.search("model.layers.0.mlp.experts.0")
    assert compile_safely(r".*?x")[0].pattern == r".*?x"


FOLDER = os.environ.get("MOEPLAN_KTRANSFORMERS_RULES")


@pytest.mark.skipif(FOLDER is None, reason="MOEPLAN_KTRANSFORMERS_RULES names no folder of KTransformers' own files")
def test_the_shipped_files() -> None:
    """The four files themselves, where a folder with them is named."""

    def read_file(name: str, model: str) -> Placement:
        text = (Path(str(FOLDER)) / f"{name}.yaml").read_text(encoding="utf-8")
        return read(text, Outline.of_profile(load_profile(model)), name)

    plan = read_file("DeepSeek-V2-Chat-multi-gpu-4", "deepseek-v2")
    assert attention(plan) == runs(*((f"cuda:{i}", 15) for i in range(4)))
    assert experts(plan) == runs((None, 1), ("cpu", 59))
    assert (plan.embedding, plan.head, plan.notes) == ("cpu", "cuda:3", None)
    plan = read_file("DeepSeek-V3-Chat-multi-gpu-8", "deepseek-v3")
    assert attention(plan) == runs(*((f"cuda:{i}", 8) for i in range(7)), ("cuda:7", 5))
    assert experts(plan) == runs((None, 3), ("cpu", 58))
    assert (plan.embedding, plan.head, plan.notes) == ("cpu", "cuda:7", None)
    plan = read_file("DeepSeek-V3-Chat-multi-gpu-marlin", "deepseek-v3")
    assert attention(plan) == runs(("cuda:0", 30), ("cuda:1", 31))
    assert experts(plan) == runs((None, 3), ("cuda:0", 2), ("cpu", 25), ("cuda:1", 1), ("cpu", 30))
    assert (plan.embedding, plan.head, plan.notes) == ("cpu", "cuda:0", None)
    plan = read_file("Mixtral", "mixtral-8x7b")
    assert attention(plan) == ["cuda:0"] * 32
    assert experts(plan) == ["cpu"] * 32
    assert (plan.embedding, plan.head, plan.notes) == ("cpu", "cuda:0", None)
