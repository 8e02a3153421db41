"""Rules files are judged by a resolver of their own: nothing here uses moeplan's simulator but its own tests."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from profiles import load_profile
from profiles.errors import TargetError
from profiles.placement import Placement
from runtime_adapter.export import export
from runtime_adapter.read_rules import read_rules
from runtime_adapter.targets import ktransformers
from runtime_adapter.targets.ktransformers.rules import parse_rules
from runtime_adapter.targets.ktransformers.writer import layer_regex
from runtime_adapter.targets.target import Outline

GOLDEN = Path(__file__).parent / "golden" / "ktransformers_deepseek_v2.yaml"
DEEPSEEK = ("deepseek_v2", "deepseek_v3", "kimi_k2")
ARCHITECTURES = (*DEEPSEEK, "qwen2_moe", "qwen3_moe", "mixtral")
BLOCK_NAMES = {"mixtral": "block_sparse_moe"}


def layer(attention: str, experts: str | None = None) -> dict[str, Any]:
    return {"attention": attention, "experts": {experts: "all"} if experts else {}}


def placement(architecture: str | None, layers: list[dict[str, Any]], head: str = "cuda:0", **more: Any) -> Placement:
    return Placement(**{"architecture": architecture, "embedding": "cpu", "head": head, "layers": layers, **more})


def write(plan: Placement) -> str:
    return ktransformers.write(plan, Outline.of_plan(plan))


def read(text: str, architecture: str | None, has_experts: list[bool], where: str = "rules") -> Placement:
    outline = Outline(None, architecture, tuple(8 if moe else 0 for moe in has_experts))
    return ktransformers.read(text, outline, where)


def random_plan(architecture: str, seed: int) -> Placement:
    """Any plan the target allows: devices in any order, GPUs revisited, guests, dense layers anywhere."""
    rng = random.Random(seed)
    gpus = [f"cuda:{i}" for i in range(rng.choice([1, 2, 3, 8, 12]))]
    homes = ["cuda:0"] if architecture == "mixtral" else gpus
    count = rng.choice([*range(1, 24), 94])
    dense = 0.0 if architecture == "mixtral" else rng.choice([0.0, 0.1, 1.0])
    layers, home = [], rng.choice(homes)
    for _ in range(count):
        home = rng.choice(homes) if rng.random() < 0.3 else home
        experts = rng.choice(["cpu", home, rng.choice(gpus)])
        layers.append(layer(home, None if rng.random() < dense else experts))
    return placement(architecture, layers, head=rng.choice([*gpus, "cpu"]))


def kt_modules(plan: Placement) -> Iterator[tuple[str, str]]:
    """(name, class) of the modules that hold tensors, parents first, as KTransformers' modeling files name them."""
    block_name = BLOCK_NAMES.get(str(plan.architecture), "mlp")
    deepseek = plan.architecture in DEEPSEEK
    yield from [("", "Top"), ("model", "Model"), ("model.embed_tokens", "Embedding"), ("model.layers", "ModuleList")]
    for i, home in enumerate(plan.layers):
        name = f"model.layers.{i}"
        yield from [(name, "DecoderLayer"), (f"{name}.self_attn", "Attention")]
        mla = ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
        for linear in mla if deepseek else ["q_proj", "k_proj", "v_proj", "o_proj"]:
            yield f"{name}.self_attn.{linear}", "Linear"
        yield f"{name}.self_attn.rotary_emb", "RotaryEmbedding"
        yield f"{name}.input_layernorm", "RMSNorm"
        if not home.experts:
            yield from [
                (f"{name}.mlp", "MLP"),
                (f"{name}.mlp.gate_proj", "Linear"),
                (f"{name}.mlp.down_proj", "Linear"),
            ]
            continue
        block = f"{name}.{block_name}"
        yield from [(block, "MoE"), (f"{block}.gate", "MoEGate" if deepseek else "Linear")]
        yield f"{block}.experts", "ModuleList"
        yield from [(f"{block}.experts.{e}.w", "Linear") for e in (0, 1, 10)]
        if plan.architecture not in ("mixtral", "qwen3_moe"):
            yield from [(f"{block}.shared_expert.up_proj", "Linear"), (f"{block}.shared_expert_gate", "Linear")]
    yield from [("model.norm", "RMSNorm"), ("lm_head", "Linear")]


def follow(text: str, modules: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """The rule that each module gets: first match wins, the last word of a rule's class must end or be the class."""
    rules = yaml.safe_load(text)
    hidden: tuple[str, ...] = ()
    found: dict[str, dict[str, Any]] = {}
    for name, kind in modules:
        if hidden and name.startswith(hidden):
            continue
        found[name] = {"replace": {"class": "default", "kwargs": {"generate_device": "cuda:0"}}}
        for rule in rules:
            wanted = rule["match"].get("class", kind).rsplit(".", 1)[-1]
            same = wanted == kind or (kind in ("RotaryEmbedding", "MoE") and kind in wanted.replace("MoeBlock", "MoE"))
            if same and re.search(rule["match"].get("name", ""), name):
                found[name] = rule
                if rule.get("recursive") is False:
                    hidden = (*hidden, f"{name}.")
                break
    return found


def device(rule: dict[str, Any]) -> str:
    return str(rule["replace"]["kwargs"]["generate_device"])


def assert_follows(plan: Placement, found: dict[str, dict[str, Any]]) -> None:
    """Every module that holds tensors is where the plan says, and the hidden states get there."""
    for name, rule in found.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
        if match:
            home = plan.layers[int(match[1])]
            wanted = next(iter(home.experts)) if match[2].endswith(".experts") else home.attention
            assert device(rule) == wanted, name
            assert ".experts." not in match[2], "an expert was injected by itself"
    assert device(found["model.embed_tokens"]) == "cpu"
    assert device(found["lm_head"]) == plan.head
    assert device(found["model.norm"]) == plan.layers[-1].attention
    transfers = found["model"]["replace"].get("kwargs", {}).get("transfer_map", {})
    here = "cuda:0"
    for i, home in enumerate(plan.layers):
        here = transfers.get(i, here)
        assert here == home.attention, f"hidden states are on {here} before layer {i}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_module_is_where_the_plan_says(architecture: str) -> None:
    for seed in range(25):
        plan = random_plan(architecture, seed)
        assert_follows(plan, follow(write(plan), list(kt_modules(plan))))


@pytest.mark.parametrize("architecture", ["deepseek_v2", "deepseek_v3"])
def test_the_names_of_a_transformers_model_agree(architecture: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2, "topk_group": 1}
    config = transformers.AutoConfig.for_model(
        architecture, num_hidden_layers=23, first_k_dense_replace=2, **sizes, **heads, **experts
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    layers = [layer(f"cuda:{i // 9}", None if i < 2 else "cpu" if i % 5 else f"cuda:{i % 3}") for i in range(23)]
    plan = placement(architecture, layers, head="cuda:2")
    modules = [(n, "Linear" if isinstance(m, torch.nn.Linear) else type(m).__name__) for n, m in model.named_modules()]
    found = follow(write(plan), [(name, kind) for name, kind in modules if not name.endswith("rotary_emb")])
    assert_follows(plan, found)


@pytest.mark.parametrize("seed", range(30))
def test_reading_back_gives_the_plan(seed: int) -> None:
    plan = random_plan(random.Random(seed).choice(ARCHITECTURES), seed)
    back = read(write(plan), plan.architecture, [bool(layer.experts) for layer in plan.layers])
    assert back.layers == plan.layers
    assert (back.head, back.embedding, back.notes) == (plan.head, "cpu", None)


@pytest.mark.parametrize("model", ["deepseek-v2", "deepseek-r1", "qwen3-235b-a22b", "mixtral-8x7b"])
def test_random_plans_of_real_models_come_back(model: str) -> None:
    """MOEPLAN_PLANS=300 tries as many as a release should."""
    profile = load_profile(model)
    outline = Outline.of_profile(profile)
    for seed in range(int(os.environ.get("MOEPLAN_PLANS", "3"))):
        rng = random.Random(seed)
        gpus = [f"cuda:{i}" for i in range(rng.choice([1, 2, 4, 8]))]
        homes = gpus[:1] if model.startswith("mixtral") else gpus
        layers = [layer(rng.choice(homes), rng.choice(["cpu", *gpus]) if count else None) for count in outline.experts]
        plan = placement(profile.architecture, layers, head=rng.choice(gpus), model=model)
        back = read_rules(export(plan, "ktransformers"), "ktransformers", profile)
        assert (back.layers, back.embedding, back.head, back.notes) == (plan.layers, "cpu", plan.head, None)
        assert (back.model, back.architecture, back.target) == (profile.model, profile.architecture, "ktransformers")


def test_layer_regex_is_exact() -> None:
    rng = random.Random(7)
    for _ in range(200):
        chosen = set(rng.sample(range(131), rng.randint(1, 60)))
        pattern = re.compile(layer_regex(chosen) + r"(?:\.|$)")
        named = {i for i in range(131) if pattern.search(f"model.layers.{i}.self_attn")}
        assert named == chosen == {i for i in range(131) if pattern.search(f"model.layers.{i}")}
        assert not pattern.search("draft.model.layers.1.self_attn")


def test_layer_one_is_not_layer_ten() -> None:
    plan = placement("deepseek_v3", [layer(f"cuda:{int(i == 1)}", "cpu" if i == 1 else "cuda:0") for i in range(20)])
    found = follow(write(plan), list(kt_modules(plan)))
    assert [i for i in range(20) if device(found[f"model.layers.{i}.mlp.experts"]) == "cpu"] == [1]
    assert found["model"]["replace"]["kwargs"]["transfer_map"] == {1: "cuda:1", 2: "cuda:0"}


def test_rules_stay_few_for_many_layers() -> None:
    rules = yaml.safe_load(write(placement("deepseek_v3", [layer(f"cuda:{i // 12}", "cpu") for i in range(94)])))
    assert len(rules) <= 4 + 7 * 8


def small_plan() -> Placement:
    layers = [layer("cuda:0"), layer("cuda:0", "cuda:0"), layer("cuda:0", "cpu"), layer("cuda:1", "cuda:0")]
    figures = {"prefill_s": 1.25, "decode_step_s": 0.05, "tokens_per_s": 20.0}
    named = {"model": "deepseek-v2", "hardware": "2x\nL40", "prediction": figures}
    return placement("deepseek_v2", layers, head="cuda:1", **named)


def test_golden_file() -> None:
    """To refresh it: cd tests && python -c "import test_runtime_adapter_ktransformers as t; t.refresh()"."""
    assert export(small_plan(), to="ktransformers") == GOLDEN.read_text(encoding="utf-8")


def refresh() -> None:
    GOLDEN.write_text(write(small_plan()), encoding="utf-8")


def test_operators_fit_their_devices() -> None:
    plan = small_plan()
    found = follow(write(plan), list(kt_modules(plan)))
    cpu, guest = (found[f"model.layers.{i}.mlp.experts"]["replace"]["kwargs"] for i in (2, 3))
    assert (cpu["generate_op"], cpu["generate_device"], cpu["out_device"]) == ("KExpertsCPU", "cpu", "cuda:0")
    assert (guest["generate_op"], guest["generate_device"]) == ("KExpertsMarlin", "cuda:0")
    assert cpu["prefill_op"] == guest["prefill_op"] == "KExpertsTorch"
    assert found["model"]["replace"]["kwargs"]["per_layer_prefill_intput_threshold"] == 0
    assert found["model.layers.1.self_attn.kv_b_proj"]["replace"]["class"] == "default"
    assert found["model.layers.1.self_attn.o_proj"]["replace"]["class"].endswith("KTransformersLinear")


@pytest.mark.parametrize(
    ("quant", "operator", "warned"),
    [
        (None, "KExpertsMarlin", False),
        ("gpu=marlin,cpu=q8_0", "KExpertsMarlin", False),
        ("bf16", "KExpertsTorch", False),
        ("gpu=bf16,cpu=amx_int8", "KExpertsTorch", False),
        ("q2_k", "KExpertsMarlin", True),
    ],
)
def test_operators_hold_the_bytes_that_the_plan_counts(quant: str | None, operator: str, warned: bool) -> None:
    text = write(small_plan().replace(quant=quant))
    kwargs = follow(text, list(kt_modules(small_plan())))["model.layers.1.mlp.experts"]["replace"]["kwargs"]
    assert kwargs["generate_op"] == operator
    assert ("# the plan counts" in text) == warned


def test_head_on_the_cpu_is_not_marlin() -> None:
    plan = placement("mixtral", [layer("cuda:0", "cpu")], head="cpu")
    kwargs = follow(write(plan), list(kt_modules(plan)))["lm_head"]["replace"]["kwargs"]
    assert (kwargs["generate_device"], kwargs["generate_op"]) == ("cpu", "KLinearTorch")


def test_one_device_with_all_ids_is_whole() -> None:
    plan = placement("mixtral", [{"attention": "cuda:0", "experts": {"cpu": list(range(8))}}])
    assert "KExpertsCPU" in write(plan)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (placement(None, [layer("cuda:0")]), "architecture"),
        (placement("gpt_oss", [layer("cuda:0")]), "'gpt_oss'.*known: deepseek_v2"),
        (placement("glm4_moe", [layer("cuda:0")]), "'glm4_moe' is read, not written.*for writing: deepseek_v2"),
        (placement("deepseek_v3", [layer("cpu")]), "layers 0 .*attention on cpu"),
        (placement("deepseek_v3", [layer("cuda:0")], embedding="cuda:0"), "embedding is on cuda:0.*pin"),
        (placement("mixtral", [layer("cuda:0", "cpu"), layer("cuda:1", "cpu")]), "layers 1 .*cuda:0"),
        (placement("mixtral", [layer("cuda:1", "cpu")]), "layers 0 .*cuda:0"),
        (
            placement("deepseek_v2", [{"attention": "cuda:0", "experts": {"cuda:0": [0], "cpu": [1]}}]),
            "layers 0 split.*granularity 'module'",
        ),
    ],
)
def test_refusals_are_one_line_with_a_remedy(plan: Placement, words: str) -> None:
    with pytest.raises(TargetError, match=words) as caught:
        write(plan)
    assert "\n" not in str(caught.value)


def test_export_names_its_targets() -> None:
    with pytest.raises(TargetError, match=r"'vllm'.*ktransformers, .*moeplan"):
        export(small_plan(), to="vllm")
    assert yaml.safe_load(export(small_plan(), to="moeplan"))["model"] == "deepseek-v2"


# Miniatures of how rules files in use are written, and of their classic mistakes.
HAND_WRITTEN = r"""
- match: {name: "^model.embed_tokens"}
  replace: {class: default, kwargs: {generate_device: cpu, prefill_device: cpu}}
- match: {name: '^model\.layers\.([0-9]|[1][0-1])\.mlp\.experts$'}
  replace:
    class: ktransformers.operators.experts.KTransformersExperts
    kwargs: {generate_device: cpu, generate_op: KExpertsCPU, out_device: "cuda:0"}
  recursive: False
- match: {name: '^model\.layers\.(12|13)\.mlp\.experts$'}
  replace:
    class: ktransformers.operators.experts.KTransformersExperts
    kwargs: {generate_device: "cuda:1", generate_op: KExpertsMarlin}
  recursive: False
- match: {name: "^model$"}
  replace: {class: ktransformers.operators.models.KDeepseekV2Model, kwargs: {transfer_map: {12: "cuda:1"}}}
- match: {name: '^model\.layers\.([0-9]|[1][0-1])\.'}
  replace: {class: default, kwargs: {generate_device: "cuda"}}
- match: {name: '(^model\.layers\.(1[2-3])\.)|(^model\.norm)|(^lm_head)'}
  replace: {class: default, kwargs: {generate_device: "cuda:1"}}
"""


def read_hand_written(old: str = "", new: str = "") -> Placement:
    assert old in HAND_WRITTEN
    return read(HAND_WRITTEN.replace(old, new) if old else HAND_WRITTEN, "deepseek_v3", [False] + [True] * 13, "mine")


def test_a_hand_written_file_is_understood() -> None:
    plan = read_hand_written()
    assert [x.attention for x in plan.layers] == ["cuda:0"] * 12 + ["cuda:1"] * 2
    assert [x.experts_device for x in plan.layers] == [None] + ["cpu"] * 11 + ["cuda:1"] * 2
    assert (plan.embedding, plan.head) == ("cpu", "cuda:1")


def test_the_first_matching_rule_wins() -> None:
    earlier = HAND_WRITTEN.replace("(12|13)", "(11|12|13)")
    assert read(earlier, "deepseek_v3", [True] * 14).layers[11].experts_device == "cpu"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("12: ", "13: ", "layer 12 is on cuda:1.*leaves the hidden states on cuda:0"),
        ("12: ", '"12": ', "layer 12 is on cuda:1"),
        ("[1][0-1])\\.'", "[1][0-1])\\.|^model.norm'", "model.norm is on cuda:0.*end on cuda:1"),
        ('{generate_device: "cuda"}', '{prefill_device: "cuda"}', "generate_device"),
        ("[1][0-1])\\.'", "[1][0-1])'", "layer 12 is on cuda:0"),
        ('kwargs: {transfer_map: {12: "cuda:1"}}}', "kwargs: {transfer_map: [1]}}", "transfer_map is a list"),
        ('transfer_map: {12: "cuda:1"}}}', "}}\n  recursive: false", "no rule reaches model.layers.0.self_attn"),
        ("generate_device: cpu, generate_op", 'generate_device: "cuda:0", generate_op', "KExpertsCPU cannot run"),
        ('"cuda:1", generate_op: KExpertsMarlin', '"cpu", generate_op: KExpertsMarlin', "Marlin cannot run on cpu"),
        ("[1][0-1]", "[1][0-1", "regular expression"),
        ('generate_device: "cuda"', "generate_device: tpu", "'tpu' is no device"),
    ],
)
def test_classic_mistakes_are_named(old: str, new: str, words: str) -> None:
    with pytest.raises(TargetError, match=words) as caught:
        read_hand_written(old, new)
    assert str(caught.value).startswith("mine: ")


def test_experts_that_no_operator_takes_are_reported() -> None:
    plan = read_hand_written("'^model\\.layers\\.([0-9]|[1][0-1])\\.mlp", "'layers.(1|11).mlp")
    assert [x.experts_device for x in plan.layers] == [None, "cpu"] + ["cuda:0"] * 9 + ["cpu"] + ["cuda:1"] * 2
    assert plan.notes == ("no operator for the experts of layers 2-10: they are plain 16-bit modules, on cuda:0",)


def test_one_expert_at_a_time_is_refused() -> None:
    linears = '\n- match: {class: torch.nn.Linear}\n  replace: {class: x.K, kwargs: {generate_device: "cuda:0"}}\n'
    with pytest.raises(TargetError, match=r"rule 1 \(line 2\): model.layers.1.mlp.experts.0.gate_proj is injected by"):
        read(
            linears + HAND_WRITTEN.replace("recursive: False", "recursive: True"), "deepseek_v3", [False] + [True] * 13
        )


@pytest.mark.parametrize(
    "text", ["{}", "- 1", "- match: {name: x}", "- {match: {}, replace: {}}", "- {match: {name: 1}, replace: {}}", "&a"]
)
def test_what_is_no_rules_file_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="mine"):
        parse_rules(text, "mine")
