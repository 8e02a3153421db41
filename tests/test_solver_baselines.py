"""Every rule against its source where that is here, against worked examples, and on random instances."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import pytest
from strategies import Instance, random_instance

from cost_models import CostModel
from cost_models.experts import use_probabilities
from cost_models.targets import TARGETS
from profiles import Hardware, Layer, ModelProfile, Placement, Workload, load_hardware, load_profile
from profiles.hf_config.reader import read_hf_config
from profiles.presets import model_config_preset
from solver.baselines import RULES, hand_plans
from solver.baselines.accelerate import accelerate_balanced, device_map
from solver.baselines.by_hand import even_layers, spill_experts
from solver.baselines.ik_llama import ik_llama_fit, ik_llama_n_cpu_moe
from solver.baselines.ktransformers import ktransformers_even_split, ktransformers_front_loading
from solver.baselines.layout import Layout, Ledger
from solver.baselines.llama_cpp import llama_cpp_fit, llama_cpp_n_cpu_moe
from solver.baselines.masks import frequency_mask, uniform_mask
from solver.baselines.shares import even_runs, have_room
from solver.evaluate import check_describes, judge
from solver.rules import Allowed, breaks

GIB = 2**30
OWN_TARGET = {
    "accelerate balanced": "accelerate",
    "llama.cpp --fit": "llama.cpp",
    "llama.cpp -ncmoe": "llama.cpp",
    "ik_llama.cpp --fit": "llama.cpp",
    "ik_llama.cpp -ncmoe": "llama.cpp",
    "KTransformers even split": "ktransformers",
    "KTransformers front-loading": "ktransformers",
    "sglang-kt uniform, one GPU": "sglang-kt",
    "sglang-kt frequency, one GPU": "sglang-kt",
}
BY_HAND = {"layers split evenly", "split evenly, experts spilled", "all experts on the CPU"}


def instances(seeds: range, **shape: Any) -> Iterator[Instance]:
    for seed in seeds:
        yield random_instance(random.Random(seed), **shape)


def costs_of(instance: Instance, target: str = "torch") -> CostModel:
    return CostModel(instance.profile, instance.hardware, instance.workload, target=target)


def machine(*gpu_gib: float, ram_gib: float = 4000) -> Hardware:
    """Cards of so many GiB without any margin."""
    card = {"kind": "gpu", "bandwidth_bytes_per_s": 1e12, "flops_per_s": {"bf16": 1e14}, "safety_margin": 0.0}
    cards = [{**card, "name": f"cuda:{i}", "memory_bytes": round(n * GIB)} for i, n in enumerate(gpu_gib)]
    cpu = {**card, "kind": "cpu", "name": "cpu", "memory_bytes": round(ram_gib * GIB)}
    links = [{"between": ["cpu", c["name"]], "bandwidth_bytes_per_s": 25e9, "latency_s": 1e-5} for c in cards]
    return Hardware.model_validate({"name": "test", "devices": [*cards, cpu], "links": links})


def model(n_layers: int, attention_gib: float, experts_gib: float, *, ends_gib: float = 0.5, dense: int = 0) -> Any:
    """Layers of so many GiB, the first `dense` without experts; no cache and no workspace, so that sums are plain."""

    def block(gib: float, **more: Any) -> dict[str, Any]:
        return {"weight_bytes": round(gib * GIB), "workspace_bytes": 0, **more}

    experts = block(experts_gib, count=8, active=2)
    layers = [{"attention": block(attention_gib), "experts": None if i < dense else experts} for i in range(n_layers)]
    return ModelProfile.model_validate(
        {"model": "test", "source": "test", "hidden_size": 64, "embedding": block(ends_gib), "head": block(ends_gib),
         "layers": layers}
    )  # fmt: skip


def plan_by(rule: Callable[[CostModel], Placement | None], profile: ModelProfile, hardware: Hardware) -> Placement:
    plan = rule(CostModel(profile, hardware))
    assert plan is not None
    return plan


def gpu_short(plan: Placement, costs: CostModel) -> dict[str, int]:
    return {device: n for device, n in judge(plan, costs).short_bytes.items() if device != "cpu"}


def fits(plan: Placement, profile: ModelProfile, hardware: Hardware) -> bool:
    return judge(plan, CostModel(profile, hardware)).feasible


def layers_per_device(homes: Sequence[str]) -> list[tuple[str, int]]:
    """Runs of equal devices, in order."""
    return [(device, len(list(run))) for device, run in groupby(homes)]


def attention(plan: Placement) -> list[str]:
    return [layer.attention for layer in plan.layers]


def experts_on(plan: Placement, device: str) -> list[int]:
    return [i for i, layer in enumerate(plan.layers) if device in layer.experts]


# ---- all rules ----


def test_the_rules_have_their_names() -> None:
    assert set(RULES) == BY_HAND | set(OWN_TARGET)


@pytest.mark.parametrize("target", TARGETS)
def test_the_ledger_counts_what_the_judge_counts(target: str) -> None:
    for seed, instance in enumerate(instances(range(70_000, 70_100))):
        rng, costs = random.Random(seed), costs_of(instance, target)
        ledger, names = Ledger(costs), list(costs.device)
        attention = [rng.choice(names) for _ in instance.profile.layers]
        experts = ledger.homes_of_experts(lambda _, rng=rng, names=names: rng.choice(names))  # type: ignore[misc]
        layout = Layout(rng.choice(names), rng.choice(names), attention, experts)
        held = judge(layout.placement(), costs).memory
        used = {
            d: n + costs.overhead_bytes(d) * (d in layout.placement().devices) for d, n in ledger.used(layout).items()
        }
        assert used == {device: memory.used_bytes for device, memory in held.items()}


@pytest.mark.parametrize("target", ["torch", "llama.cpp", "accelerate"])
def test_every_plan_describes_the_model_and_obeys_its_own_runtime(target: str) -> None:
    for instance in instances(range(71_000, 71_150), layers=(1, 9), gpus=(1, 4)):
        costs = costs_of(instance, target)
        for name, plan in hand_plans(costs).items():
            check_describes(plan, costs)
            if name in OWN_TARGET:
                own = costs_of(instance, OWN_TARGET[name])
                assert breaks(plan, Allowed(own, OWN_TARGET[name], None), tuple(own.device)) is None


def test_fit_never_overfills_a_card() -> None:
    """llama.cpp's fit and accelerate have the CPU to send things to, so they always fit the cards."""
    for instance in instances(range(72_000, 72_300), layers=(1, 12), gpus=(1, 5)):
        for target in ("torch", "llama.cpp"):
            costs = costs_of(instance, target)
            for rule in (llama_cpp_fit, accelerate_balanced):
                plan = rule(costs)
                assert plan is not None
                assert gpu_short(plan, costs) == {}


def test_without_gpus_a_rule_uses_the_cpu_or_says_nothing() -> None:
    hardware = Hardware(name="no card", devices=[load_hardware("1xRTX4090,ram=256GB").cpu])
    plans = hand_plans(CostModel(load_profile("deepseek-v2-lite"), hardware))
    assert set(plans) == {*BY_HAND, "accelerate balanced", "llama.cpp --fit"}
    assert all(plan.devices == {"cpu"} for plan in plans.values())
    small = hardware.replace(devices=(hardware.cpu.replace(memory_bytes=10**9),))
    assert llama_cpp_fit(CostModel(load_profile("deepseek-v2-lite"), small)) is None


def test_cards_out_of_order_are_counted_by_index() -> None:
    hardware = machine(8, 9)
    backwards = hardware.replace(devices=hardware.devices[::-1])
    profile = model(6, 0.5, 2)
    for name, rule in RULES.items():
        if name not in BY_HAND:
            assert rule(CostModel(profile, hardware)) == rule(CostModel(profile, backwards))


def test_all_rules_together_are_quick() -> None:
    """60 layers, 9 devices: some ten milliseconds; a busy machine is given ten times as long."""
    costs = CostModel(load_profile("deepseek-v2"), load_hardware("8xL40-46GB"))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        hand_plans(costs)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5


# ---- by hand ----


def test_even_layers_and_the_cure() -> None:
    profile, hardware = load_profile("deepseek-v2-measured"), load_hardware("8xL40-46GB")
    costs = CostModel(profile, hardware)
    eight = even_layers(costs, per_card=8)
    assert layers_per_device(attention(eight)) == [(f"cuda:{i}", 8 if i < 7 else 4) for i in range(8)]
    cured = spill_experts(eight, costs)
    assert judge(cured, costs).feasible
    assert experts_on(cured, "cpu") == [15, 23, 31, 39, 47, 55]


# ---- accelerate ----


@pytest.mark.parametrize(
    ("profile", "gpus", "expected"),
    [
        pytest.param(model(32, 0.2, 1.95, ends_gib=1.5), [46] * 8, [3, 5, 5, 5, 5, 5, 4], id="72 GiB, last card empty"),
        pytest.param("mixtral-8x7b", [24] * 4, [7, 8, 8, 8, 1], id="one layer on the CPU although all fit"),
        pytest.param("deepseek-v2", [46] * 8, [6, 6, 6, 6, 6, 6, 6, 6, 12], id="DeepSeek-V2"),
        pytest.param("mixtral-8x7b", [80, 24, 46], [10, 8, 14], id="capacities hardly matter"),
    ],
)
def test_accelerate_on_worked_examples(profile: Any, gpus: list[float], expected: list[int]) -> None:
    """As device_map="auto" of transformers 5.23 divided these models' layers, the CPU last."""
    found = load_profile(profile) if isinstance(profile, str) else profile
    plan = plan_by(accelerate_balanced, found, machine(*gpus))
    assert [n for _, n in layers_per_device(attention(plan))] == expected
    assert layers_per_device(attention(plan))[-1][0] == (
        "cpu" if len(expected) > len(gpus) else f"cuda:{len(expected) - 1}"
    )
    assert all(layer.experts_device in (None, layer.attention) for layer in plan.layers)


def test_accelerate_leaves_room_for_cache_and_workspace() -> None:
    """The rule counts weights only. Its users lower max_memory; here that is done for them."""
    profile = load_profile("mixtral-8x7b")
    hardware = machine(24, 24, 24, 24)
    costs = CostModel(profile, hardware, Workload(prompt_tokens=16_384, batch_size=4))
    ledger = Ledger(costs)
    assert ledger.short(device_map(ledger, ledger.caps))
    plan = accelerate_balanced(costs)
    assert plan is not None
    assert judge(plan, costs).feasible


LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
ROUTED = {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 128}
SMALL = {
    "mixtral": {"num_local_experts": 4, "num_hidden_layers": 9, "intermediate_size": 96},
    "qwen3_moe": {"num_experts": 8, "num_hidden_layers": 7, "moe_intermediate_size": 64, "tie_word_embeddings": True},
    "deepseek_v3": {**LATENT, **ROUTED, "num_hidden_layers": 8, "first_k_dense_replace": 2, "num_key_value_heads": 4},
    "qwen3": {"num_hidden_layers": 5},
}
COMMON = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096, "head_dim": 16,
    "num_experts_per_tok": 2, "intermediate_size": 512,
}  # fmt: skip


@pytest.fixture(scope="module", params=SMALL)
def beside_transformers(request: pytest.FixtureRequest) -> tuple[Any, ModelProfile]:
    """A small model on torch's meta device, and its profile."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = {"model_type": request.param, **COMMON, **SMALL[request.param]}
    settings = CONFIG_MAPPING[request.param](**{key: value for key, value in config.items() if key != "model_type"})
    with torch.device("meta"):
        live = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    live.tie_weights()
    return live, read_hf_config(config, request.param, "bf16")


def test_accelerate_as_transformers_does(
    beside_transformers: tuple[Any, ModelProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random sizes of cards, from too small for anything to room for all on each."""
    live, profile = beside_transformers
    names = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(len(profile.layers))), "lm_head"]
    whole = profile.weight_bytes
    for seed in range(200):
        rng = random.Random(seed)
        ledger = Ledger(CostModel(profile, machine(*[1] * rng.randint(1, 7))))
        most = rng.choice((1.5 / len(ledger.gpus), 1.5 / len(ledger.gpus), 2.0))
        limits = {gpu: round(whole * rng.uniform(0.05, most)) for gpu in ledger.gpus}
        if rng.random() < 0.5:
            limits = dict.fromkeys(limits, max(limits.values()))
        found = device_map(ledger, {**limits, "cpu": 100 * whole})
        expected = transformers_map(live, list(limits.values()), 100 * whole, monkeypatch)
        assert [found.embedding, *found.attention, found.head] == [device_of(name, expected) for name in names]


def transformers_map(live: Any, gpus: list[int], cpu: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from transformers.integrations import accelerate as door

    monkeypatch.setattr(door, "accelerate_max_memory", lambda given=None: dict(given))
    max_memory: dict[Any, int] = {**dict(enumerate(gpus)), "cpu": cpu}
    options = {"no_split_module_classes": live._no_split_modules}
    balanced = door.get_balanced_memory(live, max_memory=dict(max_memory), **options)
    found: dict[str, Any] = door.infer_auto_device_map(live, max_memory=balanced, **options)
    return found


def device_of(name: str, found: dict[str, Any]) -> str:
    """A module's device, its own or that of the module it is in."""
    while name not in found:
        name = name.rpartition(".")[0]
    return f"cuda:{found[name]}" if isinstance(found[name], int) else str(found[name])


# ---- llama.cpp ----


def test_fit_leaves_a_default_that_fits_alone() -> None:
    """Layers and head by count, in proportion to memory."""
    plan = plan_by(llama_cpp_fit, model(11, 0.1, 0.9), machine(12, 36))
    assert layers_per_device(attention(plan)) == [("cuda:0", 3), ("cuda:1", 8)]
    assert (plan.embedding, plan.head) == ("cpu", "cuda:1")
    assert experts_on(plan, "cpu") == []


def test_fit_fills_the_front_with_whole_layers_and_piles_the_rest_up_on_the_last_card() -> None:
    """4 + 4 GiB of layers fit the first two cards exactly; the last has all other attention."""
    plan = plan_by(llama_cpp_fit, model(20, 0.25, 3.75, ends_gib=0.25), machine(8.1, 8.1, 9))
    assert layers_per_device(attention(plan)) == [("cuda:0", 2), ("cuda:1", 2), ("cuda:2", 16)]
    assert experts_on(plan, "cpu") == list(range(5, 20))
    assert plan.layers[4].experts_device == "cuda:2"
    assert plan.head == "cuda:2"
    assert fits(plan, model(20, 0.25, 3.75, ends_gib=0.25), machine(8.1, 8.1, 9))


def test_fit_lets_the_experts_of_a_boundary_layer_go_on_to_the_next_card() -> None:
    plan = plan_by(llama_cpp_fit, model(12, 0.25, 3.75, ends_gib=0.25), machine(9, 9, 9))
    assert layers_per_device(attention(plan)) == [("cuda:0", 3), ("cuda:1", 2), ("cuda:2", 7)]
    assert [layer.experts_device for layer in plan.layers[:5]] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:2"]
    assert experts_on(plan, "cpu") == list(range(5, 12))


def test_fit_keeps_leading_layers_whole_on_the_cpu() -> None:
    """Where even dense weights are too much for all cards together, no experts come back."""
    plan = plan_by(llama_cpp_fit, model(10, 2, 0.25), machine(5, 5))
    assert layers_per_device(attention(plan)) == [("cpu", 6), ("cuda:0", 2), ("cuda:1", 2)]
    assert experts_on(plan, "cpu") == list(range(10))  # although two would fit cuda:0


def test_fit_lets_the_head_follow_where_nothing_else_is_left() -> None:
    """By count four layers of 2.5 GiB would be on the first card; by bytes all fit the first two."""
    plan = plan_by(llama_cpp_fit, model(6, 0.1, 2.4), machine(8, 8, 1))
    assert layers_per_device(attention(plan)) == [("cuda:0", 4), ("cuda:1", 2)]
    assert [layer.experts_device for layer in plan.layers] == ["cuda:0"] * 3 + ["cuda:1"] * 3
    assert plan.head == "cuda:1"


def test_fit_of_a_dense_model_fills_from_the_back() -> None:
    plan = plan_by(llama_cpp_fit, model(10, 2, 1, dense=10), machine(5, 5))
    assert layers_per_device(attention(plan)) == [("cpu", 6), ("cuda:0", 2), ("cuda:1", 2)]


@pytest.mark.parametrize("seed", range(80))
def test_n_cpu_moe_takes_the_first_layers_and_as_few_as_fit(seed: int) -> None:
    instance = random_instance(random.Random(73_000 + seed), layers=(3, 9), gpus=(1, 3))
    costs = costs_of(instance, ("torch", "llama.cpp")[seed % 2])
    plan, ledger = llama_cpp_n_cpu_moe(costs), Ledger(costs)
    assert plan is not None
    away = experts_on(plan, "cpu")
    assert away == ledger.with_experts[: len(away)]
    if gpu_short(plan, costs):
        assert away == ledger.with_experts
    elif away:
        one_less = [i < away[-1] for i in range(len(plan.layers))]
        assert not have_room(ledger, one_less)


@pytest.mark.parametrize("seed", range(60))
def test_runs_are_as_even_as_they_go(seed: int) -> None:
    """Against every way to cut a few layers into runs, with staging buffers and without."""
    instance = random_instance(random.Random(74_000 + seed), layers=(2, 6), gpus=(2, 3))
    ledger = Ledger(costs_of(instance, ("torch", "llama.cpp")[seed % 2]))
    on_cpu = [random.Random(seed).random() < 0.5 for _ in ledger.layers]
    found = even_runs(ledger, on_cpu)
    cuts = list(all_runs(ledger.gpus, len(on_cpu) + 1))
    experts = [ledger.homes_of_experts(lambda i, h=homes: "cpu" if on_cpu[i] else h[i]) for homes in cuts]  # type: ignore[misc]
    tried = [Layout("cpu", homes[-1], list(homes[:-1]), e) for homes, e in zip(cuts, experts, strict=True)]
    assert fullest(ledger, found) <= min(fullest(ledger, layout) for layout in tried) * 1.001


def all_runs(gpus: Sequence[str], n: int) -> Iterator[list[str]]:
    if len(gpus) == 1:
        yield [gpus[0]] * n
        return
    for first in range(n + 1):
        for rest in all_runs(gpus[1:], n - first):
            yield [gpus[0]] * first + rest


def fullest(ledger: Ledger, layout: Layout) -> float:
    used = ledger.used(layout)
    return max(used[gpu] / ledger.caps[gpu] for gpu in ledger.gpus)


# ---- ik_llama.cpp ----


@pytest.mark.parametrize("seed", range(60))
def test_ik_fit_sends_a_suffix_of_each_cards_layers(seed: int) -> None:
    instance = random_instance(random.Random(75_000 + seed), layers=(3, 9), gpus=(1, 3))
    costs = costs_of(instance)
    plan, ledger = ik_llama_fit(costs), Ledger(costs)
    if plan is None or not ledger.with_experts or "cpu" in attention(plan):
        return
    homes = attention(plan)
    assert [gpu for gpu, _ in layers_per_device(homes)] == [gpu for gpu in ledger.gpus if gpu in homes]
    for gpu in ledger.gpus:
        mine = [i for i in ledger.with_experts if homes[i] == gpu]
        away = [i for i in mine if plan.layers[i].experts_device == "cpu"]
        assert away == mine[len(mine) - len(away) :]


def test_ik_fit_on_a_worked_example() -> None:
    """Two equal cards, ten layers of 4 GiB: five each, of which 5 * 0.25 + 2 * 3.75 GiB fit 9 GiB."""
    plan = plan_by(ik_llama_fit, model(10, 0.25, 3.75, ends_gib=0.1), machine(9, 9))
    assert layers_per_device(attention(plan)) == [("cuda:0", 5), ("cuda:1", 5)]
    assert experts_on(plan, "cpu") == [2, 3, 4, 7, 8, 9]


def test_ik_fit_divides_in_proportion_to_memory_and_rounds_to_the_nearest_layer() -> None:
    """24.5 GiB on 12 and 24: the first card's part is 8.17, of which the third layer's end, 9, is nearer than 6."""
    plan = plan_by(ik_llama_fit, model(8, 0.5, 2.5), machine(12, 24))
    assert layers_per_device(attention(plan)) == [("cuda:0", 3), ("cuda:1", 5)]
    assert experts_on(plan, "cpu") == []


def test_ik_fit_gives_up_where_attention_is_too_much() -> None:
    assert ik_llama_fit(CostModel(model(10, 2, 4), machine(5, 5))) is None


def test_ik_fit_gets_a_margin_where_rounding_would_overflow() -> None:
    """7.5 layers a card on average, 7 fit: by itself the rule sees that the sum fits, and overflows."""
    profile, hardware = load_profile("deepseek-v2-measured"), load_hardware("8xL40-46GB")
    plan = plan_by(ik_llama_fit, profile, hardware)
    assert fits(plan, profile, hardware)
    assert experts_on(plan, "cpu")


def test_ik_n_cpu_moe_spreads_the_last_layers_over_the_cards() -> None:
    """The example of pull request 1464: 24 of 48 layers on two equal cards are 12-23 and 36-47."""
    profile = model(48, 0.1, 1, ends_gib=0.1)
    plan = plan_by(ik_llama_n_cpu_moe, profile, machine(14.55, 14.55))
    assert experts_on(plan, "cpu") == [*range(12, 24), *range(36, 48)]
    one_card = plan_by(ik_llama_n_cpu_moe, profile, machine(29.1))
    assert experts_on(one_card, "cpu") == list(range(24, 48))


# ---- KTransformers ----


def test_ktransformers_even_split() -> None:
    plan = plan_by(ktransformers_even_split, model(9, 0.25, 3.75), machine(9, 20))
    assert layers_per_device(attention(plan)) == [("cuda:0", 5), ("cuda:1", 4)]
    assert experts_on(plan, "cpu") == list(range(9))
    assert (plan.embedding, plan.head) == ("cpu", "cuda:1")


def test_ktransformers_front_loading_is_first_come_first_served() -> None:
    profile, hardware = model(10, 0.25, 3.75, dense=1), machine(9, 10)
    plan = plan_by(ktransformers_front_loading, profile, hardware)
    assert fits(plan, profile, hardware)
    assert experts_on(plan, "cpu") == [5, 6, 7, 8, 9]  # four of 3.75 GiB, two on each card
    assert [layer.experts_device == layer.attention for layer in plan.layers[1:5]] == [True] * 4


def test_rules_that_spill_spill_nothing_that_fits() -> None:
    profile = model(6, 0.5, 2.5)
    for rule in (llama_cpp_n_cpu_moe, ik_llama_n_cpu_moe, ktransformers_front_loading, uniform_mask):
        assert experts_on(plan_by(rule, profile, machine(40, 40)), "cpu") == []


def test_ktransformers_cannot_divide_mixtral() -> None:
    """It has no transfer map for that model."""
    costs = CostModel(load_profile("mixtral-8x7b"), load_hardware("4xRTX4090,ram=256GB"))
    for rule in (ktransformers_even_split, ktransformers_front_loading):
        plan = rule(costs)
        assert plan is not None
        assert set(attention(plan)) == {"cuda:0"}
        assert judge(plan, costs).feasible


# ---- masks ----


def on_gpu(plan: Placement, profile: ModelProfile) -> list[list[int]]:
    """Ids on cuda:0 of every layer with experts."""
    found = []
    for placed, layer in zip(plan.layers, profile.layers, strict=True):
        if layer.experts is not None:
            here = placed.experts.get("cuda:0", ())
            found.append(list(range(layer.experts.count)) if here == "all" else list(here))
    return found


@pytest.mark.parametrize("rule", [uniform_mask, frequency_mask])
@pytest.mark.parametrize("seed", range(40))
def test_a_mask_is_as_large_as_fits(rule: Callable[[CostModel], Placement | None], seed: int) -> None:
    instance = random_instance(random.Random(76_000 + seed), layers=(2, 6), gpus=(1, 2))
    costs, profile = costs_of(instance), instance.profile
    plan = rule(costs)
    assert plan is not None
    ids = on_gpu(plan, profile)
    if gpu_short(plan, costs):
        assert all(not here for here in ids)
        return
    counts = [layer.experts.count for layer in profile.layers if layer.experts is not None]
    if [len(here) for here in ids] == counts:
        return
    more = [
        plan.replace(layers=tuple(with_one_more(plan, i, profile.layers[i])))
        for i, layer in enumerate(profile.layers)
        if layer.experts is not None and plan.layers[i].experts.get("cuda:0") != "all"
    ]
    assert any(gpu_short(bigger, costs) for bigger in more)


def with_one_more(plan: Placement, i: int, layer: Layer) -> Iterator[Any]:
    """The plan's layers, with one expert more of layer i on the GPU."""
    assert layer.experts is not None
    for k, placed in enumerate(plan.layers):
        if k != i:
            yield placed
            continue
        here = list(placed.experts.get("cuda:0", ()))
        away = [j for j in range(layer.experts.count) if j not in here]
        experts = {"cuda:0": [*here, away[0]], **({"cpu": away[1:]} if away[1:] else {})}
        yield placed.replace(experts=dict.fromkeys(experts, "all") if len(experts) == 1 else experts)


def test_a_uniform_mask_gives_every_layer_the_same_first_experts() -> None:
    """Three layers of eight experts of 0.5 GiB beside 1 GiB of other blocks: room for 10, dealt out 4, 3, 3."""
    profile = model(3, 0.1, 4, ends_gib=0.35)
    plan = plan_by(uniform_mask, profile, machine(6.2, 6.2))
    assert on_gpu(plan, profile) == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert plan.devices == {"cuda:0", "cpu"}


def test_a_mask_of_all_experts_needs_no_buffer_for_those_elsewhere() -> None:
    """llama.cpp's staging buffer, a third of a layer's experts, is only there when some are on the CPU."""
    profile = model(3, 0.1, 4, ends_gib=0.35)
    costs = CostModel(profile, machine(13.01), target="llama.cpp")
    plan = uniform_mask(costs)
    assert plan is not None
    assert experts_on(plan, "cpu") == []
    assert judge(plan, costs).feasible


def test_a_frequency_mask_takes_the_most_used_of_all_layers() -> None:
    profile = model(3, 0.1, 4, ends_gib=0.35)
    used = [[0.9, 0.1, 0.8, 0.02, 0.03, 0.05, 0.05, 0.05], [0.25] * 8, [0.3, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3]]
    layers = [
        layer.replace(experts=layer.experts.replace(frequencies=f))
        for layer, f in zip(profile.layers, used, strict=True)
    ]
    known = profile.replace(layers=tuple(layers))
    plan = plan_by(frequency_mask, known, machine(6.2))
    assert on_gpu(plan, known) == [[0, 2], [0, 1, 2, 3], [0, 5, 6, 7]]
    assert plan_by(frequency_mask, profile, machine(6.2)) == plan_by(uniform_mask, profile, machine(6.2))


@pytest.mark.parametrize("seed", range(20))
def test_no_expert_on_the_cpu_is_used_more_than_one_on_the_gpu(seed: int) -> None:
    instance = random_instance(random.Random(77_000 + seed), layers=(2, 6), gpus=(1, 1))
    plan = frequency_mask(costs_of(instance))
    assert plan is not None
    layers = [layer.experts for layer in instance.profile.layers if layer.experts is not None]
    if all(experts.frequencies is None for experts in layers):
        return
    chosen = [set(here) for here in on_gpu(plan, instance.profile)]
    pairs = [(f, j in here) for e, here in zip(layers, chosen, strict=True) for j, f in enumerate(use_probabilities(e))]
    least = min((f for f, here in pairs if here), default=1.0)
    assert all(f <= least for f, here in pairs if not here)


def test_presets_named_here_exist() -> None:
    assert model_config_preset("mixtral-8x7b") is not None
