"""Experts of one layer on several devices: the same bits, the planned bytes, exact undo. On virtual GPUs."""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from profiles.errors import ApplyError
from profiles.placement import Placement
from runtime_adapter.apply import apply

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import vgpu  # noqa: E402 -- these need torch
from tiny_models import EXPERTS, FAMILIES, MORE_FAMILIES, VOCABULARY, tiny_model  # noqa: E402

from runtime_adapter.anatomy import anatomy_of, expert_count  # noqa: E402
from runtime_adapter.placing import free_memory  # noqa: E402
from runtime_adapter.placing.preflight import check  # noqa: E402
from runtime_adapter.placing.split_experts import SplitForward  # noqa: E402

ALL_FAMILIES = (*FAMILIES, *MORE_FAMILIES)
GPUS = [f"cuda:{i}" for i in range(4)]
VIRTUAL = {f"cuda:{i}": f"vgpu:{i}" for i in range(4)}
PLACEMENTS = int(os.environ.get("MOEPLAN_PLACEMENTS", "3"))
"""Random placements a family; 80 were tried by hand, each with its tokens (docs/lab_log.md)."""
EVERY_TOKEN = "MOEPLAN_EVERY_TOKEN" in os.environ
"""Whether each of these generates, not the first of a family alone."""
TOKENS = 32


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def model_of(family: str, kernel: str = "grouped_mm", dtype: str = "float32") -> Any:
    model = tiny_model(family).to(getattr(torch, dtype))
    model.set_experts_implementation(kernel)
    return model


def random_split(model: Any, rng: random.Random) -> Placement:
    """Half of the layers with experts are split over two to five devices, of which some may get one expert."""
    places = [*GPUS, "cpu"]
    layers = []
    for experts in anatomy_of(model).experts:
        among = rng.sample(places, rng.choice([1, 1, 2, 3, 5]))
        ids: dict[str, list[int]] = {}
        for expert in range(expert_count(experts) if experts else 0):
            ids.setdefault(rng.choice(among), []).append(expert)
        layers.append({"attention": rng.choice(places), "experts": ids})
    return Placement(embedding=rng.choice(places), head=rng.choice(places), layers=layers)


def inputs(rows: int = 3) -> dict[str, Any]:
    ids = torch.randint(1, VOCABULARY, (rows, 9), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    for row in range(rows - 1):
        mask[row, : 2 * row + 2] = 0  # padding on the left
    return {"input_ids": ids, "attention_mask": mask}


def outcome(model: Any, generate: bool = True) -> tuple[Any, Any]:
    """Logits of a padded batch, and what it goes on with, greedily and with a cache."""
    given = inputs()
    with torch.no_grad():
        tokens = model.generate(**given, max_new_tokens=TOKENS, do_sample=False) if generate else None
        return model(**given).logits, tokens


@functools.cache
def expected(family: str, kernel: str, dtype: str) -> tuple[Any, Any]:
    return outcome(model_of(family, kernel, dtype))


@pytest.mark.parametrize("seed", range(PLACEMENTS))
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_any_split_gives_the_same_bits_and_tokens(family: str, seed: int) -> None:
    rng = random.Random(f"{family} {seed}")
    kernel, dtype = rng.choice(["eager", "grouped_mm"]), rng.choice(["float32", "bfloat16"])
    model, plan = model_of(family, kernel, dtype), random_split(model_of(family, kernel, dtype), rng)
    # generate() decodes with batched_mm instead of grouped_mm where the embedding is not on the CPU.
    plan = plan.replace(embedding="cpu") if kernel == "grouped_mm" else plan
    with vgpu.ledger() as ledger:
        with apply(plan, model, devices=VIRTUAL):
            logits, tokens = outcome(model, generate=EVERY_TOKEN or seed == 0)
        assert not ledger.live_bytes
    assert torch.equal(logits, expected(family, kernel, dtype)[0])
    assert tokens is None or torch.equal(tokens, expected(family, kernel, dtype)[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gathering_kernel_differs_by_rounding_alone(family: str) -> None:
    """batched_mm multiplies other numbers of rows in other ways: the order within a row's sum is its own affair."""
    model = model_of(family, "batched_mm")
    reference = expected(family, "batched_mm", "float32")[0]
    with apply(random_split(model, random.Random(3)), model, devices=VIRTUAL), torch.no_grad():
        logits = model(**inputs()).logits
    assert torch.allclose(logits, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("how", [{"cache_implementation": "static"}, {"do_sample": True}, {"num_beams": 3}])
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_other_ways_to_generate_follow_too(family: str, how: dict[str, Any]) -> None:
    model, results = model_of(family, "eager"), []
    for plan in (None, random_split(model, random.Random(7))):
        torch.manual_seed(0)
        with torch.no_grad(), apply(plan, model, devices=VIRTUAL) if plan else contextlib.nullcontext():
            results.append(model.generate(**inputs(), max_new_tokens=6, **how))
    assert torch.equal(*results)


def test_a_compiled_layer_follows_too() -> None:
    model = tiny_model("qwen3_moe")
    reference = outcome(model, generate=False)[0]
    with apply(halves(model, "cuda:1", "cuda:2"), model, devices=dict.fromkeys(GPUS, "cpu")):
        for layer in model.model.layers:
            layer.compile(backend="eager")
        assert torch.equal(outcome(model, generate=False)[0], reference)


def halves(model: Any, first: str = "cuda:1", second: str = "cpu", home: str = "cuda:0") -> Placement:
    low, high = list(range(EXPERTS // 2)), list(range(EXPERTS // 2, EXPERTS))
    layers = [
        {"attention": home, "experts": {first: low, second: high} if e else {}} for e in anatomy_of(model).experts
    ]
    return Placement(embedding="cpu", head=home, layers=layers)


def values(model: Any) -> list[tuple[str, int, bytes]]:
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return [(name, id(tensor), tensor.detach().numpy().tobytes()) for name, tensor in tensors]


@pytest.mark.parametrize("keep_host", [False, True])
@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3", "qwen3_moe"])
def test_undo_puts_every_expert_back(family: str, keep_host: bool) -> None:
    model = tiny_model(family)
    before, attributes = values(model), [list(vars(module)) for module in model.modules()]
    applied = apply(halves(model), model, devices=VIRTUAL, keep_host=keep_host)
    first = next(i for i, experts in enumerate(anatomy_of(model).layers) if "experts" in str(experts))
    assert applied.device_map[f"model.layers.{first}.mlp.experts.vgpu:1"] == "vgpu:1"
    assert applied.device_map[f"model.layers.{first}.mlp.experts.cpu"] == "cpu"
    applied.undo()
    applied.undo()
    assert values(model) == before
    assert [list(vars(module)) for module in model.modules()] == attributes


def test_each_device_holds_its_experts_and_nothing_else() -> None:
    model = model_of("mixtral")
    expert = sum(p.numel() * 4 for p in anatomy_of(model).experts[0].parameters()) // EXPERTS
    with (
        vgpu.ledger() as ledger,
        apply(halves(model, "cuda:1", "cuda:2", home="cpu"), model, devices=VIRTUAL) as applied,
    ):
        assert (
            ledger.live_bytes == dict.fromkeys(("vgpu:1", "vgpu:2"), 3 * EXPERTS // 2 * expert) == applied.moved_bytes
        )
        assert sum(p.numel() * 4 for p in model.parameters() if p.device.type == "vgpu") == 3 * EXPERTS * expert


def test_only_what_is_hit_travels() -> None:
    """One token: a part that it does not choose gets and sends nothing; one that it does gets a single row."""
    model = model_of("mixtral")
    ids = torch.tensor([[5]])
    chosen: list[Counter[int]] = []
    watched = [e.register_forward_pre_hook(lambda _, args: chosen.append(Counter(args[1].flatten().tolist())))
               for e in anatomy_of(model).experts]  # fmt: skip
    with vgpu.ledger() as ledger, apply(halves(model, "cuda:1", "cuda:2", home="cpu"), model, devices=VIRTUAL):
        ledger.copied.clear()
        with torch.no_grad():
            model(ids)
        copied = Counter(ledger.copied)
    for handle in watched:
        handle.remove()
    for device, mine in (("vgpu:1", range(EXPERTS // 2)), ("vgpu:2", range(EXPERTS // 2, EXPERTS))):
        back = sum(sum(layer[i] for i in mine) for layer in chosen)
        assert copied[torch.device(device), torch.device("cpu")] == back * 32 * 4


def test_memory_running_out_at_any_tensor_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt_oss")
    plan, before = halves(model, "cuda:1", "cuda:2"), values(model)
    with vgpu.ledger() as ledger, apply(plan, model, devices=VIRTUAL):
        full = ledger.live_bytes
    for device, most in full.items():
        for cap in range(64, most, max(64, most // 40)):
            with vgpu.ledger({device: cap}) as ledger:
                with pytest.raises(ApplyError, match=f"cannot be moved to {device}"):
                    apply(plan, model, devices=VIRTUAL)
                assert not ledger.live_bytes
            assert values(model) == before


def test_several_plan_devices_on_one_real_device_are_one_part() -> None:
    model = model_of("qwen2_moe")
    with apply(halves(model, "cuda:1", "cuda:2"), model, devices=dict.fromkeys(GPUS, "vgpu:3")):
        assert not any(isinstance(vars(m).get("forward"), SplitForward) for m in model.modules())
    with apply(halves(model, "cuda:1", "cpu"), model, devices=dict.fromkeys(GPUS, "vgpu:3")):
        assert sum(isinstance(vars(m).get("forward"), SplitForward) for m in model.modules()) == 3


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({"cpu": [0, 1], "cuda:1": [2, 3, 4, 5]}, "2 of 8 are on no device, first 6"),
        ({"cpu": [0, 1]}, "6 of 8 are on no device, first 2"),
        ({"cpu": [*range(7)], "cuda:1": [7, 8]}, "expert 8 of a layer with 8"),
    ],
)
def test_splits_that_do_not_cover_the_layer_are_refused(experts: Any, message: str) -> None:
    model = model_of("mixtral")
    layers = [{"attention": "cuda:0", "experts": experts}] * 3
    with pytest.raises(ApplyError, match=message):
        apply(Placement(embedding="cpu", head="cpu", layers=layers), model, devices=VIRTUAL)


def test_experts_that_take_rows_instead_of_choices_are_refused() -> None:
    import transformers

    config = transformers.Llama4TextConfig(
        hidden_size=32, intermediate_size=16, intermediate_size_mlp=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=VOCABULARY, head_dim=8, num_local_experts=EXPERTS,
    )  # fmt: skip
    model = transformers.Llama4ForCausalLM(config)
    with pytest.raises(ApplyError, match="Llama4TextExperts cannot be divided; solve with granularity='module'"):
        apply(halves(model), model, devices=VIRTUAL)


def test_an_id_beyond_the_experts_adds_nothing() -> None:
    """What transformers writes where an expert is on another machine."""
    model = model_of("mixtral", "eager")
    experts = anatomy_of(model).experts[0]
    hidden, weights = torch.randn(4, 32), torch.rand(4, 2)
    index = torch.tensor([[0, EXPERTS], [EXPERTS, EXPERTS], [7, 1], [EXPERTS, 4]])
    with torch.no_grad():
        whole = experts(hidden, index, weights)
        with apply(halves(model, home="cpu"), model, devices=VIRTUAL):
            assert torch.equal(experts(hidden, index, weights), whole)


@pytest.mark.parametrize("keep_host", [False, True])
def test_what_does_not_fit_is_refused_before_a_byte_moves(monkeypatch: pytest.MonkeyPatch, keep_host: bool) -> None:
    """The room that a device tells of decides, to the byte: what applying takes fits, one byte less does not."""
    model = tiny_model("qwen2_moe", tie_word_embeddings=True)
    plan, before = halves(model, "cuda:1", "cuda:2"), values(model)
    with vgpu.ledger() as ledger, apply(plan, model, devices=VIRTUAL, keep_host=keep_host):
        taken = ledger.live_bytes
    assert set(taken) == {"vgpu:0", "vgpu:1", "vgpu:2"}
    for device, size in taken.items():
        for free in (size - 1, size):
            room = {device: free}
            monkeypatch.setattr(free_memory, "free_bytes", lambda d, room=room: room.get(str(d)))
            with vgpu.ledger() as ledger:
                if free == size:
                    apply(plan, model, devices=VIRTUAL, keep_host=keep_host).undo()
                    continue
                with pytest.raises(ApplyError, match=f"^{device}: the plan puts .* more of weights there, but"):
                    apply(plan, model, devices=VIRTUAL, keep_host=keep_host)
                assert max(ledger.peak.values()) <= 64
    assert values(model) == before


def test_what_leaves_a_device_makes_room_there_unless_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral")
    anatomy = anatomy_of(model)
    away = Placement(
        embedding="cpu", head="cpu", layers=[{"attention": "cpu", "experts": {"cuda:1": "all"}}] * len(anatomy.layers)
    )
    homes = check(away, model, VIRTUAL)
    coming, leaving = free_memory.moves(homes)
    size = sum(p.numel() * 4 for experts in anatomy.experts if experts for p in experts.parameters())
    assert coming == {torch.device("vgpu:1"): size}
    assert leaving == {torch.device("cpu"): size}
