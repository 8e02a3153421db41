"""When engines copy experts to a GPU, as planned and by their rule, and which parts are known by their names."""

from __future__ import annotations

import re

import pytest

from cost_models import CostModel, Step
from cost_models.engines import Engine, by_model, engine_of, engines
from cost_models.ledger import ledger
from cost_models.targets import TARGETS
from profiles import Placement, Workload, load_hardware, load_profile

LLAMA, IK = map(engine_of, ("llama.cpp", "ik_llama.cpp"))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
def test_prompts_copy_experts_by_the_engines_rule(engine: Engine, batch: int) -> None:
    model = load_profile("qwen3-30b-a3b", "q4_k_m")  # 8 of 128 experts
    machine = load_hardware("1xRTX4090,cpu=EPYC-9654,ram=128GB")
    costs = CostModel(model, machine, Workload(batch_size=batch), target="llama.cpp", engine=engine.name)

    def copies(tokens: int, attention: str = "cuda:0", device: str = "cpu") -> bool:
        return costs.copies_experts(0, attention, device, Step(tokens, 0), by_rule=True)

    if engine.copies is None:
        assert not copies(10**6)
        return
    least = engine.copies.from_tokens * (16 if engine.copies.per_expert else 1)
    step = -(-least // batch)
    assert [copies(step - 1), copies(step)] == [False, True]
    for attention, device in (("cuda:0", "cuda:0"), ("cpu", "cpu"), ("cpu", "cuda:0")):
        assert not copies(10**6, attention, device)


def test_experts_that_are_all_used_are_copied_as_soon_by_either_rule() -> None:
    assert IK.copies is not None
    assert IK.copies.per_expert
    model = load_profile("mixtral-8x7b")
    layers = [
        layer.replace(experts=layer.experts.replace(active=layer.experts.count))
        for layer in model.layers
        if layer.experts is not None
    ]
    costs = CostModel(model.replace(layers=layers), load_hardware("1xRTX4090"), target="llama.cpp", engine=IK.name)
    least = IK.copies.from_tokens
    found = [costs.copies_experts(0, "cuda:0", "cpu", Step(n, 0), by_rule=True) for n in (least - 1, least)]
    assert found == [False, True]


@pytest.mark.parametrize("tokens", [1, 31, 32, 511, 512, 4096])
@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
@pytest.mark.parametrize("target", TARGETS)
def test_a_plan_copies_what_is_quicker_copied(target: str, engine: Engine, tokens: int) -> None:
    """Only where its target keeps a buffer, and no sooner than the engine can: 8 of 128 experts, so 512 tokens."""
    machine = load_hardware("1xRTX4090,cpu=Ryzen-9-7950X,ram=128GB")
    costs = CostModel(load_profile("qwen3-30b-a3b", "q4_k_m"), machine, target=target, engine=engine.name)
    step, rule = Step(tokens, 0), engine.copies
    there = costs.block_s("experts", 0, "cpu", step)
    if target != "accelerate":  # where a GPU computes what is on the CPU, nothing is handed over
        there += costs.sync_s("cpu") + 2 * costs.hop_s("cpu", "cuda:0", tokens)
    can = target == "llama.cpp" and rule is not None and tokens >= (512 if rule.per_expert else 32)
    copied = costs.copied_experts_s(0, "cuda:0", "cpu", step)
    assert costs.copies_experts(0, "cuda:0", "cpu", step) == (can and copied < there)
    expected = min(there, copied) if can else there
    assert costs.experts_from_s(0, "cuda:0", "cpu", step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("host", ["EPYC-9654", "Xeon-Platinum-8358"])
@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
def test_copies_are_no_faster_than_memory_that_is_not_pinned(engine: Engine, host: str) -> None:
    machine = load_hardware(f"1xRTX4090,cpu={host},ram=128GB")
    n_bytes, rule = 10**10, engine.copies
    most = rule.most_bytes_per_s if rule else None
    if rule is not None and most is not None:
        most = next((one.value for one in rule.hosts if re.search(one.model, host, re.IGNORECASE)), most)
    limit = most or 20e9  # of what is pinned, and copied as fast as the link goes
    for rate in (limit / 3, limit * 3):
        links = [link.replace(bandwidth_bytes_per_s=rate, latency_s=1e-3) for link in machine.links]
        model = load_profile("qwen3-30b-a3b", "q4_k_m")
        costs = CostModel(model, machine.replace(links=links), target="llama.cpp", engine=engine.name)
        over = 1e-3 + n_bytes / rate
        capped = over if most is None else max(over, n_bytes / most)
        assert costs.copied_s("cpu", "cuda:0", n_bytes) == pytest.approx(capped, rel=1e-12)
        assert (capped > over) == (most is not None and rate > most)
        assert costs.copied_s("cpu", "cpu", n_bytes) == 0.0
        stored = costs.weight_bytes(costs.block("experts", 0), "cpu")
        copied = costs.copied_s("cpu", "cuda:0", stored) + costs.block_s("experts", 0, "cuda:0", Step(512, 0))
        assert costs.copied_experts_s(0, "cuda:0", "cpu", Step(512, 0)) == pytest.approx(copied, rel=1e-12)


def test_some_hosts_copy_slower() -> None:
    """The two hosts above are one of those that a rule names and one of the others."""
    assert LLAMA.copies is not None
    assert LLAMA.copies.most_bytes_per_s is not None
    assert by_model(LLAMA.copies.hosts, "EPYC-9654") is None
    slow = by_model(LLAMA.copies.hosts, "Xeon-Platinum-8358")
    assert slow is not None
    assert slow < LLAMA.copies.most_bytes_per_s


@pytest.mark.parametrize("tokens", [1, 10**4])
@pytest.mark.parametrize("engine", engines().engines, ids=lambda engine: engine.name)
def test_a_ledger_copies_where_the_engine_would(engine: Engine, tokens: int) -> None:
    machine = load_hardware("1xRTX4090,cpu=EPYC-9654,ram=128GB")
    costs = CostModel(load_profile("qwen3-30b-a3b", "q4_k_m"), machine, target="llama.cpp", engine=engine.name)
    layers = [{"attention": "cuda:0", "experts": {"cpu": "all"}} for _ in costs.profile.layers]
    step = Step(tokens, 0)
    found = ledger(Placement(embedding="cuda:0", head="cuda:0", layers=layers), costs, step, by_rule=True)
    copied = costs.copies_experts(0, "cuda:0", "cpu", step, by_rule=True)
    assert copied == (tokens > 1 and engine.copies is not None)
    ran_on = {device for device, work in found.work if work.kind == "experts"}
    assert ran_on == {"cuda:0" if copied else "cpu"}
    assert found.syncs == ({} if copied else {"cpu": len(layers)})
    stored = [costs.weight_bytes(costs.block("experts", i), "cpu") for i in range(len(layers))]
    expected = sum(costs.copied_s("cpu", "cuda:0", n) for n in stored) if copied else 0.0
    assert found.copies_s == pytest.approx(expected, rel=1e-12)
    assert (found.copies_s > 0) == copied
    quicker = found.seconds(costs, link=2.0)
    assert found.seconds(costs) - quicker == pytest.approx(found.copies_s / 2, abs=1e-12)


FAMILIES = {
    "GeForce 50": (
        "NVIDIA GeForce RTX 5090",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA GeForce RTX 5070 Ti",
        "NVIDIA GeForce RTX 5080 Laptop GPU",
        "RTX5060Ti-8GB",
        "rtx-5090",
    ),
    "GeForce 20 to 40": (
        "NVIDIA GeForce RTX 4090",
        "NVIDIA GeForce RTX 4080 SUPER",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 3060 Laptop GPU",
        "GeForce RTX 2080 Ti",
        "RTX4090D",
    ),
    "Blackwell": (
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA RTX PRO 5000 Blackwell",
        "NVIDIA B200",
        "NVIDIA GB200",
        "NVIDIA B300 SXM6 AC",
        "RTX-PRO-6000",
    ),
    "none": (
        "NVIDIA L40S",
        "NVIDIA L4",
        "NVIDIA RTX 6000 Ada Generation",
        "NVIDIA RTX 5000 Ada Generation",
        "NVIDIA RTX 4000 Ada Generation",
        "NVIDIA RTX 2000 Ada Generation",
        "NVIDIA RTX A6000",
        "NVIDIA RTX A4000",
        "Quadro RTX 5000",
        "Quadro RTX 4000",
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H200",
        "NVIDIA GH200 480GB",
        "Tesla V100-SXM2-32GB",
        "Tesla T4",
        "NVIDIA TITAN RTX",
        "NVIDIA GeForce GTX 1660 Ti",
        "AMD Instinct MI300X",
        None,
    ),
}
"""Names as drivers print them, and a few as people write them."""


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_cards_are_known_by_their_drivers_names(engine: str) -> None:
    rules = engine_of(engine).gpu.products
    expected = dict(zip(("GeForce 50", "GeForce 20 to 40", "Blackwell"), (rule.value for rule in rules), strict=True))
    for family, names in FAMILIES.items():
        for name in names:
            assert by_model(rules, name) == expected.get(family), name


@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("Intel(R) Xeon(R) Platinum 8358 CPU @ 2.60GHz", True),
        ("Intel(R) Core(TM) i9-7980XE CPU @ 2.60GHz", True),
        ("Intel(R) Core(TM) i9-13900K", False),
        ("AMD EPYC 9654 96-Core Processor", False),
        ("AMD Ryzen 9 7950X 16-Core Processor", False),
        (None, False),
    ],
)
def test_hosts_are_known_by_their_kernels_names(name: str | None, slow: bool) -> None:
    for engine in (LLAMA, IK):
        assert engine.copies is not None
        assert (by_model(engine.copies.hosts, name) is not None) == slow
