"""What may go where: pins of blocks, of devices and of their order, and what each target can express."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from strategies import Instance, random_instance, random_placement

from cost_models import CostModel
from cost_models.targets import TARGETS
from moeplan import cli as command
from profiles import Hardware, ModelProfile, MoeplanError, Placement, TargetError
from solver import solve
from solver.rules import FINEST, Allowed, breaks, check_target, coarser

BLOCK = {"weight_bytes": 10}
EXPERTS = {"weight_bytes": 40, "count": 4, "active": 2}
KINDS = ("embedding", "attention", "experts", "head")


def machine(gpus: int, order: int = 1) -> Hardware:
    speed = {"bandwidth_bytes_per_s": 1e9, "flops_per_s": {"bf16": 1e12}, "memory_bytes": 10**6}
    devices = [*({**speed, "name": f"cuda:{i}", "kind": "gpu"} for i in range(gpus)), {**speed, "name": "cpu"}]
    devices[-1]["kind"] = "cpu"
    links = [{"between": ["cpu", f"cuda:{i}"], "bandwidth_bytes_per_s": 1e9, "latency_s": 0} for i in range(gpus)]
    return Hardware(name=f"{gpus} cards", devices=devices[::order], links=links)


def model(layers: int = 4) -> ModelProfile:
    """Its first layer is dense."""
    rest = [{"attention": BLOCK, "experts": EXPERTS}] * (layers - 1)
    return ModelProfile(
        model="m", source="test", hidden_size=4, embedding=BLOCK, head=BLOCK, layers=[{"attention": BLOCK}, *rest]
    )


def rules(pins: Any = None, *, target: str = "torch", gpus: int = 3, order: int = 1) -> Allowed:
    return Allowed(CostModel(model(), machine(gpus, order), target=target), target, pins)


def where(allowed: Allowed, kind: str, layer: int = 1, order: int = 1) -> set[str]:
    names = [device.name for device in machine(3, order).devices]
    may = allowed(kind, layer if kind in ("attention", "experts") else 0)
    return {name for name, here in zip(names, may, strict=True) if here}


def plan(*attention: str, experts: Any = None, embedding: str = "cpu", head: str = "cpu") -> Placement:
    """Experts are with their attention unless said otherwise."""
    layers = [{"attention": home, "experts": experts or {home: "all"}} for home in attention]
    layers[0]["experts"] = {}
    return Placement(embedding=embedding, head=head, layers=layers)


def broken(placement: Placement, allowed: Allowed, gpus: int = 3) -> str | None:
    return breaks(placement, allowed, [device.name for device in machine(gpus).devices])


# ---- rules about a device ----


@pytest.mark.parametrize(
    ("value", "may"),
    [
        ("attention", ["attention"]),
        (["attention", "head"], ["attention", "head"]),
        (("embedding", "experts"), ["embedding", "experts"]),
        (list(KINDS), list(KINDS)),
        ("nothing", []),
        ([], []),
        (["attention", "last"], ["attention"]),
        ("last", list(KINDS)),
    ],
    ids=str,
)
def test_a_device_may_be_kept_for_some_kinds(value: Any, may: list[str]) -> None:
    allowed = rules({"cuda:0": value})
    for kind in KINDS:
        assert ("cuda:0" in where(allowed, kind)) == (kind in may)
        assert where(allowed, kind) >= {"cuda:1", "cuda:2", "cpu"}


def test_rules_about_devices_and_blocks_hold_together() -> None:
    allowed = rules({"cuda:0": "attention", "cuda:1": "experts", "experts": ["cuda:0", "cuda:1", "cpu"]})
    assert where(allowed, "attention") == {"cuda:0", "cuda:2", "cpu"}
    assert where(allowed, "experts") == {"cuda:1", "cpu"}
    assert where(allowed, "head") == {"cuda:2", "cpu"}


def test_dense_layers_have_no_experts_to_place() -> None:
    allowed = rules({"experts": "cuda:0", "cuda:0": ["experts"]})
    assert where(allowed, "experts", 1) == {"cuda:0"}
    profile = model(1)
    alone = Allowed(CostModel(profile, machine(0)), "torch", {"cpu": ["embedding", "attention", "head"]})
    assert alone("attention", 0) == (True,)


def test_plans_obey_rules_about_devices() -> None:
    kept = solve(model(), machine(2), pins={"cuda:0": "attention", "cuda:1": "nothing"})
    assert {kept.embedding, kept.head} == {"cpu"}
    assert not any("cuda:0" in layer.experts for layer in kept.layers)
    assert "cuda:1" not in kept.devices


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        ({"cuda:3": "attention"}, "pins: 'cuda:3': there is no such device; use cuda:0, cuda:1, cuda:2, cpu"),
        ({"cuda:00": "attention"}, "pins: 'cuda:00' is no block and no device"),
        ({"gpu": "attention"}, "pins: 'gpu' is no block and no device; write e.g."),
        ({"cuda:0": "attn"}, "pins: 'cuda:0': 'attn' is no kind of block; use embedding, attention, experts, head"),
        ({"cuda:0": ""}, "pins: 'cuda:0': '' is no kind of block"),
        ({"cuda:0": "cpu"}, "pins: 'cuda:0': 'cpu' is no kind of block"),
        ({"cuda:0": None}, "pins: 'cuda:0': None is no kind of block"),
        ({"cuda:0": {"attention": 1}}, "pins: 'cuda:0': a mapping of 1 is no kind of block"),
        ({"cuda:0": ["attention", 1]}, "pins: 'cuda:0': a list of 2 is no kind of block"),
        ({"cuda:0": ["nothing", "head"]}, "pins: 'cuda:0': nothing and head; keep one"),
        ({"cuda:0": ["first", "last"]}, "pins: 'cuda:0': first and last contradict each other; keep one"),
        ({"cuda:0": ["experts", "last"]}, "pins: 'cuda:0': last is about attention, which may not be there; add"),
        ({"head": "cuda:0", "cuda:0": "attention"}, "pins: 'cuda:0': leaves head no device; loosen it"),
        ({"layers.2": "cuda:0", "cuda:0": []}, "pins: 'cuda:0': leaves layers.2.attention no device; loosen it"),
        ({"cuda:0": [], "layers.2.experts": "cuda:0"}, "pins: 'layers.2.experts': leaves layers.2.experts no device"),
        ({"head": "nothing"}, "pins: 'head': no device nothing"),
        (dict.fromkeys(("cuda:0", "cuda:1", "cuda:2", "cpu"), "nothing"), "pins: 'cpu': leaves embedding no device"),
    ],
    ids=str,
)
def test_bad_pins_are_one_line(pins: Any, said: str) -> None:
    with pytest.raises(MoeplanError) as refused:
        rules(pins)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


# ---- the order of devices ----


@pytest.mark.parametrize(
    ("pins", "rank"),
    [
        (None, None),
        ({"cuda:0": "attention"}, None),
        ({"cuda:2": "last"}, (0, 0, 1, 0)),
        ({"cuda:0": "first"}, (-1, 0, 0, 0)),
        ({"cuda:0": "first", "cuda:1": ["last"], "cpu": "last"}, (-1, 1, 0, 1)),
        ({"cuda:2": ["attention", "head", "last"]}, (0, 0, 1, 0)),
        (dict.fromkeys(("cuda:0", "cuda:1", "cuda:2", "cpu"), "last"), None),
    ],
    ids=str,
)
def test_pins_rank_devices(pins: Any, rank: tuple[int, ...] | None) -> None:
    allowed = rules(pins)
    assert allowed.rank == rank
    assert not allowed.head_in_order


def test_ranks_follow_the_order_of_the_machine() -> None:
    assert rules({"cuda:2": "last"}, order=-1).rank == (0, 1, 0, 0)
    assert rules(target="llama.cpp", order=-1).rank == (0, 3, 2, 1)


def test_a_plan_that_comes_back_breaks_the_order() -> None:
    last, first = rules({"cuda:2": "last"}), rules({"cuda:0": "first"})
    assert broken(plan("cuda:0", "cpu", "cuda:2", "cuda:2"), last) is None
    assert broken(plan("cuda:0", "cuda:1", "cuda:0", "cpu"), last) is None
    assert broken(plan("cuda:0", "cuda:1", "cuda:0", "cpu", head="cuda:2"), last) is None
    said = broken(plan("cuda:0", "cuda:2", "cuda:1", "cuda:2"), last)
    assert (
        said
        == "attention of layer 2 on cuda:1, after attention on cuda:2, which comes later in the order of the devices"
    )
    assert broken(plan("cuda:0", "cuda:0", "cuda:1", "cuda:2"), first) is None
    assert "attention of layer 1 on cuda:0" in (broken(plan("cuda:1", "cuda:0", "cuda:0", "cuda:2"), first) or "")
    elsewhere = plan("cuda:0", "cuda:0", "cuda:0", "cuda:0", experts={"cuda:2": "all"})
    assert broken(elsewhere, last) is None, "experts have no order"


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        (
            {"layers.1.attention": "cuda:2", "layers.2.attention": "cuda:0", "cuda:2": "last"},
            "pins: the order of the devices (first, last) leaves layers.2.attention none after layers.1.attention on",
        ),
        (
            {"layers.0.attention": "cuda:1", "layers.3": "cuda:0", "cuda:0": "first"},
            "leaves layers.3.attention none after layers.0.attention on cuda:1",
        ),
    ],
    ids=str,
)
def test_pins_that_no_walk_can_follow_are_refused(pins: Any, said: str) -> None:
    with pytest.raises(MoeplanError) as refused:
        rules(pins)
    assert said in str(refused.value)
    assert str(refused.value).endswith("; loosen a pin")


# ---- split experts ----


def test_every_holder_of_split_experts_must_be_allowed() -> None:
    split = {"cuda:0": [0, 1], "cuda:1": [2], "cpu": [3]}
    placement = plan("cuda:0", "cuda:0", "cuda:0", "cuda:0", experts=split)
    assert broken(placement, rules()) is None
    assert broken(placement, rules({"cuda:1": "attention"})) == "experts of layer 1 on cuda:1"
    assert broken(placement, rules({"layers.2.experts": ["cuda:0", "cuda:1"]})) == "experts of layer 2 on cpu"


# ---- targets ----


def test_one_list_of_targets() -> None:
    assert set(FINEST) == set(TARGETS)
    for target in TARGETS:
        check_target(target)
    with pytest.raises(TargetError, match=r"'vllm' is not known; use one of " + ", ".join(TARGETS)):
        check_target("vllm")


def test_granularities_are_ordered() -> None:
    assert coarser("expert", "module") == coarser("module", "expert") == "module"
    assert coarser("layer", "expert") == "layer"


def test_torch_may_do_anything() -> None:
    allowed = rules()
    assert all(all(allowed(kind, 1)) for kind in KINDS)
    assert (allowed.rank, allowed.head_in_order, allowed.finest) == (None, False, "expert")


def test_ktransformers() -> None:
    allowed = rules(target="ktransformers")
    assert where(allowed, "embedding") == {"cpu"}
    assert where(allowed, "attention") == {"cuda:0", "cuda:1", "cuda:2"}
    assert (allowed.rank, allowed.finest) == (None, "module")
    split = plan("cuda:0", "cuda:0", "cuda:0", "cuda:0", experts={"cuda:0": [0, 1], "cpu": [2, 3]})
    assert broken(split, allowed) == "experts of layer 1 split between cuda:0 and cpu"


def test_llama_cpp_goes_through_the_devices_in_order() -> None:
    allowed = rules(target="llama.cpp")
    assert where(allowed, "embedding") == {"cpu"}
    assert len(where(allowed, "attention")) == len(where(allowed, "experts")) == 4
    assert (allowed.rank, allowed.head_in_order, allowed.finest) == ((1, 2, 3, 0), True, "module")
    assert broken(plan("cpu", "cuda:0", "cuda:0", "cuda:2", head="cuda:2"), allowed) is None
    assert broken(plan("cpu", "cuda:0", "cuda:0", "cuda:1", head="cuda:2"), allowed) is None
    assert (
        broken(plan("cuda:0", "cuda:0", "cuda:0", "cuda:0", experts={"cuda:2": "all"}, head="cuda:0"), allowed) is None
    )
    assert broken(plan("cpu", "cuda:0", "cuda:0", "cuda:1", head="cuda:0"), allowed) == (
        "head on cuda:0, after attention on cuda:1, which comes later in the order of the devices"
    )
    assert "attention of layer 3 on cuda:0" in (broken(plan("cpu", "cpu", "cuda:1", "cuda:0"), allowed) or "")
    assert broken(plan("cpu", "cpu", "cpu", "cpu", embedding="cuda:0"), allowed) == "embedding on cuda:0"
    split = plan("cuda:0", "cuda:0", "cuda:0", "cuda:0", experts={"cuda:0": [0, 1], "cpu": [2, 3]}, head="cuda:0")
    assert broken(split, allowed) == "experts of layer 1 split between cuda:0 and cpu"


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        ({"cuda:0": "last"}, "pins: 'cuda:0': last contradicts target llama.cpp, which has attention on cpu, cuda:0, "),
        ({"cuda:2": ["attention", "first"]}, "pins: 'cuda:2': first contradicts target llama.cpp"),
        ({"cpu": "last"}, "pins: 'cpu': last contradicts"),
        (
            {"head": "cpu", "layers.3": "cuda:0"},
            "(target llama.cpp) leaves head none after layers.3.attention on cuda:0",
        ),
        (
            {"layers.1": "cuda:1", "layers.2": "cuda:0"},
            "leaves layers.2.attention none after layers.1.attention on cuda:1",
        ),
        ({"embedding": "cuda:0"}, "pins: 'embedding': leaves embedding no device"),
    ],
    ids=str,
)
def test_pins_that_contradict_llama_cpp_are_refused(pins: Any, said: str) -> None:
    with pytest.raises(MoeplanError) as refused:
        rules(pins, target="llama.cpp")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "pins", [{"cuda:2": "last"}, {"cpu": "first"}, {"cuda:0": "first", "attention": ["cuda:0", "cuda:1"]}], ids=str
)
def test_pins_that_say_what_llama_cpp_does_anyway_change_nothing(pins: Any) -> None:
    assert rules(pins, target="llama.cpp").rank == (1, 2, 3, 0)


def test_accelerate_keeps_layers_whole() -> None:
    allowed = rules(target="accelerate")
    assert all(all(allowed(kind, 1)) for kind in KINDS)
    assert (allowed.rank, allowed.finest) == (None, "layer")
    assert broken(plan("cuda:1", "cuda:0", "cpu", "cuda:1", head="cuda:2"), allowed) is None
    away = plan("cuda:0", "cuda:0", "cuda:0", "cuda:0", experts={"cpu": "all"})
    assert broken(away, allowed) == "experts of layer 1 on cpu, away from their attention on cuda:0"


@pytest.mark.parametrize("order", [1, -1])
def test_sglang_kt_has_all_but_experts_on_the_first_gpu(order: int) -> None:
    allowed = rules(target="sglang-kt", order=order)
    names = [device.name for device in machine(3, order).devices]
    for kind in ("embedding", "attention", "head"):
        assert where(allowed, kind, order=order) == {"cuda:0"}
    assert where(allowed, "experts", order=order) == {"cuda:0", "cpu"}
    split = plan(*["cuda:0"] * 4, experts={"cuda:0": [0, 2], "cpu": [1, 3]}, embedding="cuda:0", head="cuda:0")
    assert breaks(split, allowed, names) is None
    assert allowed.finest == "expert"


def test_machines_without_gpus() -> None:
    for target in ("torch", "llama.cpp", "accelerate"):
        allowed = rules(target=target, gpus=0)
        assert all(allowed(kind, 1) == (True,) for kind in KINDS)
        assert (allowed.rank, allowed.head_in_order) == (None, False)
        assert broken(plan("cpu", "cpu", "cpu", "cpu"), allowed, gpus=0) is None
    with pytest.raises(TargetError, match=r"target sglang-kt: .* 0 cards has none; use another target"):
        rules(target="sglang-kt", gpus=0)
    with pytest.raises(MoeplanError, match="ktransformers"):
        rules(target="ktransformers", gpus=0)


# ---- a second opinion ----


def fine(placement: Placement, instance: Instance, target: str, only: dict[str, set[str]], last: str) -> bool:
    """The same rules, said the other way round: block by block for devices kept for `only` some kinds, with attention
    on `last` after all others."""
    homes = [layer.attention for layer in placement.layers]
    held = [("embedding", placement.embedding), ("head", placement.head), *(("attention", home) for home in homes)]
    held += [("experts", device) for layer in placement.layers for device in layer.experts]
    if any(device in only and kind not in only[device] for kind, device in held):
        return False
    if last in homes and any(home != last for home in homes[homes.index(last) :]):
        return False
    split = any(len(layer.experts) > 1 for layer in placement.layers)
    if target == "llama.cpp":
        line = ["cpu", *(gpu.name for gpu in sorted(instance.hardware.gpus, key=lambda gpu: gpu.name))]
        way = [line.index(home) for home in (*homes, placement.head)]
        return placement.embedding == "cpu" and not split and all(a <= b for a, b in pairwise(way))
    if target == "accelerate":
        return not any(device != layer.attention for layer in placement.layers for device in layer.experts)
    if target == "sglang-kt":
        first = {(kind, device) for kind, device in held if kind != "experts"} == {
            (kind, "cuda:0") for kind in ("embedding", "head", "attention")
        }
        return first and {device for kind, device in held if kind == "experts"} <= {"cuda:0", "cpu"}
    return target == "torch"


@pytest.mark.parametrize("target", ["torch", "llama.cpp", "accelerate", "sglang-kt"])
def test_breaks_against_a_second_opinion(target: str) -> None:
    rng, verdicts = random.Random(7), set()
    for _ in range(400):
        instance = random_instance(rng, layers=(1, 3), gpus=(1, 3))
        names = [device.name for device in instance.hardware.devices]
        kept = rng.choice(names)
        only = {kept: set(rng.sample(KINDS, rng.randint(1, 4)))} if rng.random() < 0.4 else {}
        last = rng.choice(names) if rng.random() < 0.4 and not only else ""
        pins: dict[str, Any] = {device: sorted(kinds) for device, kinds in only.items()} | (
            {last: "last"} if last else {}
        )
        costs = CostModel(instance.profile, instance.hardware, target=target)
        try:
            allowed = Allowed(costs, target, pins)
        except MoeplanError:
            continue  # such as llama.cpp with the CPU last
        for _ in range(20):
            placement = random_placement(rng, instance, split=rng.random() < 0.3)
            verdict = fine(placement, instance, target, only, last)
            assert (breaks(placement, allowed, names) is None) == verdict, (pins, placement)
            verdicts.add(verdict)
    assert verdicts == {True, False}


# ---- the command ----


def test_the_command_reads_pins_of_devices() -> None:
    written = ["cuda:0=attention", "cuda:3 = attention | last", "layers.3.experts=cuda:1|cpu", "cuda:2=nothing"]
    assert command._pins(written) == {
        "cuda:0": ["attention"],
        "cuda:3": ["attention", "last"],
        "layers.3.experts": ["cuda:1", "cpu"],
        "cuda:2": ["nothing"],
    }


@pytest.mark.parametrize(
    "pins", [["cuda:0="], ["cuda:0"], ["=attention"], ["cuda:0=last", "cuda:0=attention"]], ids=str
)
def test_the_command_refuses_half_a_pin(pins: list[str]) -> None:
    with pytest.raises(MoeplanError, match=r"^--pin: .* is not "):
        command._pins(pins)
