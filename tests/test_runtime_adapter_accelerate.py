"""device_maps are judged by transformers and accelerate themselves: on the meta device, and by forward passes."""

from __future__ import annotations

import functools
import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import strategies

from profiles import load_profile
from profiles.errors import TargetError
from profiles.placement import Placement
from runtime_adapter.targets.accelerate.device_map import obstacles, read, simulate, write
from runtime_adapter.targets.accelerate.modules import FAMILIES, family_of
from runtime_adapter.targets.target import Outline
from solver import solve

GOLDEN = Path(__file__).parent / "golden" / "accelerate_mixtral_8x7b.json"
MODELS = ("deepseek-v2", "deepseek-r1", "qwen3-235b-a22b", "mixtral-8x7b", "gpt-oss-120b")
LAYERS = 12
MIXTRAL = Outline("mixtral", "mixtral", (8,) * LAYERS)


def outline_of(model: str) -> Outline:
    return Outline.of_profile(load_profile(model))


def layer(attention: str, experts: str | None) -> dict[str, Any]:
    return {"attention": attention, "experts": {experts: "all"} if experts else {}}


def plan_of(outline: Outline, layers: list[dict[str, Any]], embedding: str, head: str) -> Placement:
    return Placement(
        model=outline.model, architecture=outline.architecture, embedding=embedding, head=head, layers=layers
    )


def random_plan(outline: Outline, seed: int) -> Placement:
    """Whole layers anywhere; layers in pieces, some on the CPU, where the pass is on the first GPU already."""
    rng = random.Random(seed)
    gpus = [f"cuda:{i}" for i in rng.sample(range(8), rng.randint(1, 8))]
    main = min(gpus)
    layers, on_main, home = [], True, rng.choice([*gpus, "cpu"])
    for count in outline.experts:
        home = rng.choice([*gpus, "cpu"]) if rng.random() < 0.3 else home
        if count and on_main and rng.random() < 0.5:
            layers.append(layer(*rng.choice([(main, "cpu"), ("cpu", main)])))
        else:
            layers.append(layer(home, home if count else None))
            on_main = home in (main, "cpu")
    return plan_of(outline, layers, rng.choice([main, "cpu"]), main)


@pytest.mark.parametrize("model", MODELS)
def test_reading_back_gives_the_plan(model: str) -> None:
    outline = outline_of(model)
    for seed in range(300):
        plan = random_plan(outline, seed)
        found = read(write(plan, outline), outline)
        assert (found.embedding, found.head, found.layers) == (plan.embedding, plan.head, plan.layers)
        assert found.architecture == outline.architecture


@functools.cache
def meta_model(architecture: str) -> Any:
    """A small model of the architecture, of 12 layers, so that names of layer 1 begin those of 10 and 11."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "vocab_size": 64, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16}
    heads |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "pad_token_id": 0}
    counts = {"n_routed_experts": 8, "num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    others = {"n_group": 2, "topk_group": 1, "n_shared_experts": 1, "shared_expert_intermediate_size": 16}
    name = {"kimi_k2": "deepseek_v3", "llama4": "llama4_text"}.get(architecture, architecture)
    config = transformers.AutoConfig.for_model(
        name, num_hidden_layers=LAYERS, first_k_dense_replace=2, **sizes, **heads, **counts, **others
    )
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def outline_of_model(architecture: str, model: Any) -> Outline:
    names = {name for name, _ in model.named_modules()}
    ffn = "feed_forward" if "model.layers.0.feed_forward" in names else "mlp"
    counts = tuple(8 if f"model.layers.{i}.{ffn}.experts" in names else 0 for i in range(LAYERS))
    return Outline(None, architecture, counts)


def where_the_plan_says(plan: Placement, name: str) -> str:
    """The device of a parameter, by the words in its name."""
    words = name.split(".")
    if words[1] == "layers":
        home = plan.layers[int(words[2])]
        return next(iter(home.experts)) if "experts" in words else home.attention
    return plan.embedding if "embed_tokens" in words else plan.head


@pytest.mark.parametrize("architecture", FAMILIES)
def test_transformers_puts_every_tensor_where_the_plan_says(architecture: str) -> None:
    model = meta_model(architecture)
    from accelerate.utils import check_device_map
    from transformers.integrations.accelerate import expand_device_map

    outline = outline_of_model(architecture, model)
    tensors = list(model.state_dict())
    for seed in range(20):
        plan = random_plan(outline, seed)
        device_map = json.loads(write(plan, outline))
        with warnings.catch_warnings():  # it warns of keys that are no module, which a single buffer is not
            warnings.simplefilter("default" if architecture == "minimax_m2" else "error")
            check_device_map(model, device_map)
        for tensor, device in expand_device_map(device_map, tensors).items():
            assert (device if device == "cpu" else f"cuda:{device}") == where_the_plan_says(plan, tensor), tensor


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_names_are_those_of_transformers(architecture: str) -> None:
    model = meta_model(architecture)
    outline = outline_of_model(architecture, model)
    whole = [layer("cuda:0", "cuda:0" if count else None) for count in outline.experts]
    known = simulate(write(plan_of(outline, whole, "cuda:0", "cuda:0"), outline), outline)
    for tensor in model.state_dict():
        assert sum(tensor == name or tensor.startswith(f"{name}.") for name in known) == 1, tensor
    assert set(known) <= {name for name, _ in [*model.named_modules(), *model.named_buffers()]}
    assert "model.rotary_emb" in dict(model.named_modules())


def text_of(plan: Placement, outline: Outline) -> str:
    """One key for a whole layer, else one for each part: also for plans that moeplan refuses to write."""
    keys = {"model.embed_tokens": plan.embedding, "model.norm": plan.head, "lm_head": plan.head}
    for index, place in enumerate(plan.layers):
        if set(place.experts) <= {place.attention}:
            keys[f"model.layers.{index}"] = place.attention
            continue
        for part in family_of(outline.architecture).layer(index, moe=True):
            keys[part] = next(iter(place.experts)) if part.endswith(".experts") else place.attention
    return json.dumps({key: "cpu" if d == "cpu" else int(d.removeprefix("cuda:")) for key, d in keys.items()})


def passes(model: Any, device_map: dict[str, int | str]) -> bool:
    """Whether a pass succeeds under accelerate's own hooks, on virtual GPUs; its logits must be those of the CPU."""
    import torch
    from accelerate import dispatch_model
    from tiny_models import VOCABULARY

    ids = torch.arange(1, 8)[None] % VOCABULARY
    with torch.no_grad():
        expected = model(ids).logits
    gpus = [device for device in device_map.values() if device != "cpu"]
    main = f"vgpu:{next(iter(set(gpus)))}" if gpus else "cpu"
    virtual = {key: "cpu" if device == "cpu" else f"vgpu:{device}" for key, device in device_map.items()}
    dispatched = dispatch_model(model, virtual, main_device=main, skip_keys=model._skip_keys_device_placement)
    try:
        with torch.no_grad():
            logits = dispatched(ids.to(main)).logits
    except RuntimeError as problem:
        if "device" not in str(problem):
            raise
        return False
    assert torch.equal(logits.cpu(), expected)
    return True


@pytest.fixture
def virtual_parameters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """accelerate makes a new parameter by the class of the old one, which on a virtual GPU is no nn.Parameter."""
    torch = pytest.importorskip("torch")
    import vgpu

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make = vgpu.VTensor.__new__

    def make_or_wrap(cls: Any, elem: Any, device: Any = None, *, requires_grad: bool = False) -> Any:
        return make(cls, elem, device) if device is not None else torch.nn.Parameter(elem, requires_grad=False)

    monkeypatch.setattr(vgpu.VTensor, "__new__", staticmethod(make_or_wrap))
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("virtual_parameters")
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_plans_are_refused_exactly_where_a_pass_fails(family: str) -> None:
    from tiny_models import tiny_model

    outcomes = set()
    for seed in range(12):
        rng, model = random.Random(seed), tiny_model(family)
        moe = [hasattr(layer.mlp, "experts") for layer in model.model.layers]
        outline = Outline(None, family, tuple(8 if has else 0 for has in moe))
        devices = rng.choice((["cuda:0", "cpu"], ["cuda:0", "cuda:1"], ["cuda:0", "cuda:1", "cpu"]))
        layers = []
        for has in moe:
            home = rng.choice(devices)
            layers.append(layer(home, rng.choice([home, *devices]) if has else None))
        plan = plan_of(outline, layers, rng.choice(devices), rng.choice(devices))
        fine = obstacles(plan, outline) == []
        text = write(plan, outline) if fine else text_of(plan, outline)
        assert passes(model, json.loads(text)) == fine, text
        outcomes.add(fine)
    assert outcomes == {True, False}


@pytest.mark.usefixtures("virtual_parameters")
def test_cpu_streams_and_a_torch_device_computes() -> None:
    """What the page says: at each pass "cpu" copies the layer's weights to the GPU, torch.device("cpu") none."""
    import torch
    import vgpu
    from accelerate import dispatch_model
    from tiny_models import tiny_model

    ids, gpu = torch.arange(1, 8)[None], "vgpu:0"
    whole = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.layers.2", "model.norm", "lm_head"), gpu)
    for place, streams in (("cpu", True), (torch.device("cpu"), False)):
        model = tiny_model("mixtral")
        weights = sum(p.numel() * p.element_size() for p in model.model.layers[1].parameters())
        kept = {"main_device": gpu, "skip_keys": model._skip_keys_device_placement}
        with vgpu.ledger() as counted, torch.no_grad():
            dispatched = dispatch_model(model, {**whole, "model.layers.1": place}, **kept)
            before = counted.copied[vgpu.CPU, torch.device(gpu)]
            dispatched(ids.to(gpu))
            copied = counted.copied[vgpu.CPU, torch.device(gpu)] - before
        assert (copied >= weights) == streams
        assert streams or copied < weights / 10


PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp.gate", "mlp.experts")
WHOLE: dict[str, Any] = {
    "model.embed_tokens": 0,
    **{f"model.layers.{i}": 1 if i > 5 else 0 for i in range(LAYERS)},
    "model.norm": 1,
    "lm_head": "cpu",
}


def changed(*drop: str, **add: Any) -> str:
    return json.dumps({**{k: v for k, v in WHOLE.items() if k not in drop}, **add}, indent=1)


def in_parts(index: int, **devices: Any) -> str:
    keys = {f"model.layers.{index}.{part}": devices.get(part.split(".")[-1], devices["rest"]) for part in PARTS}
    return changed(f"model.layers.{index}", **keys)


def test_hand_written_maps_are_understood() -> None:
    plan = read(json.dumps({"": 3}), MIXTRAL)
    assert {plan.embedding, plan.head, *(d for x in plan.layers for d in (x.attention, *x.experts))} == {"cuda:3"}
    plan = read(json.dumps({"model": "cuda", "lm_head": "cpu"}), MIXTRAL)
    assert (plan.embedding, plan.head, plan.layers[11].attention) == ("cuda:0", "cpu", "cuda:0")
    plan = read(json.dumps(WHOLE), MIXTRAL)
    assert [x.attention for x in plan.layers] == ["cuda:0"] * 6 + ["cuda:1"] * 6
    plan = read(in_parts(3, rest=0, experts="cpu"), MIXTRAL)
    assert [x.experts_device for x in plan.layers[2:5]] == ["cuda:0", "cpu", "cuda:0"]
    assert read(in_parts(3, rest="cpu", experts="cuda:0"), MIXTRAL).layers[3].attention == "cpu"
    streamed = "what is on cpu is computed on cuda:0, its weights are copied there at every pass"
    assert read(changed("model.norm", **{"model.norm": "cpu"}), MIXTRAL).notes == (streamed,)
    assert read(changed("lm_head", lm_head=0), MIXTRAL).notes == (
        "model.norm is on cuda:1, away from lm_head, and is counted with it",
    )
    assert read(json.dumps({"": "cpu"}), MIXTRAL).notes is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            changed("model.layers.10"),
            r"no key holds model.layers.10.input_layernorm \(.* where model.layers.1 is\); add",
        ),
        (changed("model.layers.1"), "no key holds model.layers.1.input_layernorm; add one"),
        (changed("lm_head"), "no key holds lm_head; add"),
        (changed(**{"": 0}), "line 2: 'model.embed_tokens' is held by the key '' already"),
        (changed(**{"model.layers.2.mlp": 0}), "'model.layers.2.mlp' is held by the key 'model.layers.2' already"),
        (changed(**{"model.layers.12": 0}), "line 17: 'model.layers.12' is no module of this model, whose 12 layers"),
        (changed("model.layers.2", **{"model.layers.2.block_sparse_moe": 0}), "where this layer has .*, mlp.experts; "),
        (changed("model.layers.2", **{"model.layers.2.mlp.experts.7": 0}), "is a part of model.layers.2.mlp.experts"),
        (changed("lm_head", lm_head="disk"), "line 16: 'lm_head' is on disk, which no plan uses; write the number"),
        (changed("lm_head", lm_head="tpu:0"), "'lm_head' is on 'tpu:0', which is no device"),
        (changed("lm_head", lm_head=True), "'lm_head' is on True"),
        (changed("lm_head", lm_head=-1), "'lm_head' is on -1"),
        (changed("lm_head", lm_head=10**40), "'lm_head' is on "),
        (changed("lm_head", lm_head=None), "'lm_head' is on None"),
        (changed("lm_head", lm_head=[0]), "'lm_head' is on a list of 1"),
        (in_parts(8, rest=1, experts="cpu"), "layers 8 are in pieces.*computed on cuda:0.*moeplan.apply"),
        (in_parts(3, rest=0, experts=1), "layers 3 are in pieces"),
        (in_parts(6, rest=1), "layers 6 are in pieces"),
        (in_parts(3, rest=0, gate=1), "model.layers.3.mlp.gate is on cuda:1, model.layers.3.input_layernorm on cuda:0"),
        ("[]", "expected a mapping of modules to devices, got a list of 0"),
        ("{}", "expected a mapping"),
        ('{"": 0, "": 1}', "key '' is given twice"),
        ("{'': 0}", "not valid JSON"),
        ('{"": 0', "not valid JSON.*line 1"),
        ('{"": !!python/object/apply:os.system [ls]}', "not valid JSON"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words) as caught:
        read(text, MIXTRAL, "mine")
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["x" * 10**7, "[" * 10**5, '{"' + "." * 2 * 10**5 + '": 0}', json.dumps({f"(a+)+${i}": 0 for i in range(10**4)})],
)
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="mine") as caught:
        read(text, MIXTRAL, "mine")
    assert len(str(caught.value)) < 400


def test_what_a_map_cannot_say_is_refused_with_a_remedy() -> None:
    parts = {"attention": "cuda:0", "experts": {"cuda:0": [0], "cpu": [*range(1, 8)]}}
    whole = [layer("cuda:0", "cuda:0")] * (LAYERS - 1)
    split = plan_of(MIXTRAL, [parts, *whole], "cpu", "cuda:0")
    assert "layers 0 divide their experts" in obstacles(split, MIXTRAL)[0]
    with pytest.raises(TargetError, match=r"moeplan\.apply"):
        write(split, MIXTRAL)
    away = plan_of(MIXTRAL, [*whole, layer("cuda:0", "cuda:1")], "cpu", "cuda:0")
    assert "layers 11 are in pieces" in obstacles(away, MIXTRAL)[0]
    listed = {"attention": "cuda:0", "experts": {"cuda:0": list(range(8))}}
    found = read(write(plan_of(MIXTRAL, [listed, *whole], "cpu", "cpu"), MIXTRAL), MIXTRAL)
    assert found.layers[0].experts == {"cuda:0": "all"}
    for architecture, words in ((None, "name the model"), ("dbrx", "'dbrx' is not known; use one of deepseek_v2")):
        outline = Outline(None, architecture, MIXTRAL.experts)
        assert words in obstacles(plan_of(MIXTRAL, [*whole, whole[0]], "cpu", "cpu"), outline)[0]
        with pytest.raises(TargetError, match=words):
            read("{}", outline)


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 6, 8])
def test_every_plan_for_accelerate_can_be_written(seed: int) -> None:
    instance = strategies.random_instance(random.Random(seed), loose=seed % 2 == 0)
    outline = Outline(None, "qwen3_moe", Outline.of_profile(instance.profile).experts)
    assert_writable(instance.profile, instance.hardware, instance.workload, outline)


def test_a_plan_that_streams_layers_can_be_written() -> None:
    profile = load_profile("mixtral-8x7b")
    plan = assert_writable(profile, "2xRTX4090,ram=256GB", None, Outline.of_profile(profile))
    assert {each.attention for each in plan.layers} == {"cuda:0", "cuda:1", "cpu"}


def assert_writable(profile: Any, hardware: Any, workload: Any, outline: Outline) -> Placement:
    plan = solve(profile, hardware, workload, target="accelerate", time_limit=5)
    found = read(write(plan, outline), outline)
    for there, here in zip(found.layers, plan.layers, strict=True):
        assert (there.attention, list(there.experts)) == (here.attention, list(here.experts))
    return plan


def golden_plan() -> Placement:
    """Mixtral on two GPUs: two layers' experts and a whole layer are streamed."""
    near = [layer("cuda:0", "cuda:0")] * 12 + [layer("cuda:0", "cpu")] * 2 + [layer("cpu", "cpu")]
    outline = outline_of("mixtral-8x7b")
    return plan_of(outline, near + [layer("cuda:1", "cuda:1")] * 17, "cuda:0", "cuda:1")


def test_the_golden_file() -> None:
    """Refresh with: .venv/bin/python tests/test_runtime_adapter_accelerate.py"""
    assert write(golden_plan(), outline_of("mixtral-8x7b")) + "\n" == GOLDEN.read_text()


if __name__ == "__main__":
    GOLDEN.write_text(write(golden_plan(), outline_of("mixtral-8x7b")) + "\n")
