"""A plan on a live model: same tokens, bytes where the plan says, exact undo. On virtual GPUs; nothing runs on CUDA."""

from __future__ import annotations

import functools
import gc
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from profiles.errors import ApplyError
from profiles.placement import Placement
from runtime_adapter.apply import apply

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import vgpu  # noqa: E402 -- these need torch
from tiny_models import EXPERTS, FAMILIES, VOCABULARY, tiny_model  # noqa: E402

from runtime_adapter.anatomy import expert_count  # noqa: E402
from runtime_adapter.placing import hooks  # noqa: E402

GPUS = [f"cuda:{i}" for i in range(4)]
VIRTUAL = {f"cuda:{i}": f"vgpu:{i}" for i in range(4)}
TOKENS = 20
CARRIERS = (hooks.Bring, hooks.EnterLayer, hooks.SendBack)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # such small tensors gain nothing from more, and tests may run beside each other
    yield
    torch.set_num_threads(before)


@functools.cache
def shared_model(family: str) -> Any:
    """One model a family for all placements: that each leaves it as it was is part of what is tested."""
    model = tiny_model(family)
    # The default is grouped_mm, from which generate() switches to batched_mm for decoding, depending on the device of
    # the embedding: the last bits of decode logits would then depend on the placement. One kernel makes them equal.
    model.set_experts_implementation("batched_mm")
    return model


def prompt(rows: int = 1) -> Any:
    return torch.randint(1, VOCABULARY, (rows, 9), generator=torch.Generator().manual_seed(rows))


def outcome(model: Any, ids: Any, **inputs: Any) -> tuple[Any, list[Any], Any]:
    """(logits of the prompt, devices of the KV cache, greedy tokens with the logits that chose them)."""
    with torch.no_grad():
        first = model(ids, use_cache=True, **inputs)
        devices = [str(layer.keys.device) for layer in first.past_key_values.layers]
        more = model.generate(
            ids,
            max_new_tokens=TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **{"attention_mask": torch.ones_like(ids), **inputs},
        )
    assert more.sequences.shape[1] == ids.shape[1] + TOKENS
    return first.logits, devices, (more.sequences, *more.logits)


@functools.cache
def expected(family: str) -> tuple[Any, list[Any], Any]:
    return outcome(shared_model(family), prompt())


def assert_same(result: tuple[Any, list[Any], Any], reference: tuple[Any, list[Any], Any]) -> None:
    """Bitwise: the virtual GPUs run the very kernels of the CPU, in the same order."""
    assert str(result[0].device) == "cpu"
    assert torch.equal(result[0], reference[0])
    assert all(torch.equal(a, b) for a, b in zip(result[2], reference[2], strict=True))


def is_moe(model: Any) -> list[bool]:
    return [any(expert_count(module) for module in layer.modules()) for layer in model.model.layers]


def random_plan(model: Any, seed: int) -> Placement:
    rng = random.Random(seed)
    places = [*GPUS, "cpu"]
    layers = []
    for moe in is_moe(model):
        home = rng.choice(places)
        away = home if rng.random() < 0.25 else rng.choice(places)
        layers.append({"attention": home, "experts": {away: "all"} if moe else {}})
    return Placement(embedding=rng.choice(places), head=rng.choice(places), layers=layers)


def far_plan(model: Any) -> Placement:
    """Every block has neighbours on other devices, so that every carrying hook is needed."""
    layers = [
        {"attention": f"cuda:{1 + i % 2}", "experts": {"cuda:3": "all"} if moe else {}}
        for i, moe in enumerate(is_moe(model))
    ]
    return Placement(embedding="cuda:0", head="cuda:0", layers=layers)


def one_device(model: Any, home: str = "cuda:0", away: str | None = None) -> Placement:
    layers = [{"attention": home, "experts": {away or home: "all"} if moe else {}} for moe in is_moe(model)]
    return Placement(embedding=home, head=home, layers=layers)


def planned_bytes(model: Any, plan: Placement) -> dict[str, int]:
    """Bytes of weights by virtual device, from the plan and the tensors' names alone."""
    total: Counter[str] = Counter()
    counted = set()
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        parts = name.split(".")
        if parts[1] == "layers":
            layer = plan.layers[int(parts[2])]
            device = layer.experts_device if parts[3:5] == ["mlp", "experts"] else layer.attention
        else:
            device = plan.embedding if parts[1] in ("embed_tokens", "rotary_emb") else plan.head
        if device != "cpu" and (id(tensor), device) not in counted:
            counted.add((id(tensor), device))
            total[VIRTUAL[device or ""]] += tensor.numel() * tensor.element_size()
    return dict(total)


def snapshot(model: Any) -> list[Any]:
    """Everything that undo promises to restore: objects by identity, values by bits, hooks and attributes."""
    state: list[Any] = [list(model.state_dict()), dict(model.__dict__)]
    for module in model.modules():
        state.append((list(vars(module)), id(getattr(module, "config", None))))
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                bits = (
                    None
                    if tensor is None
                    else tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                )
                facts = None if tensor is None else (tensor.shape, tensor.stride(), tensor.requires_grad, tensor.device)
                state.append((key, id(tensor), bits, facts))
        hook_tables = [value for name, value in vars(module).items() if "_hooks" in name and isinstance(value, dict)]
        state.append([list(table.items()) for table in hook_tables])
    return state


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("family", FAMILIES)
def test_any_placement_gives_the_same_tokens_and_leaves_no_trace(family: str, seed: int) -> None:
    model, reference = shared_model(family), expected(family)
    plan, before = random_plan(model, seed), snapshot(model)
    planned = planned_bytes(model, plan)
    with vgpu.ledger() as ledger:
        with apply(plan, model, devices=VIRTUAL) as applied:
            assert ledger.live_bytes == planned == applied.moved_bytes
            result = outcome(model, prompt())
        assert result[1] == [VIRTUAL.get(layer.attention, "cpu") for layer in plan.layers]
        assert_same(result, reference)
        assert not ledger.live_bytes
    assert snapshot(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padded_batch(family: str) -> None:
    model, ids = shared_model(family), prompt(rows=3)
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[1, :2] = 0
    reference = outcome(model, ids, attention_mask=mask)
    with apply(far_plan(model), model, devices=VIRTUAL):
        assert_same(outcome(model, ids, attention_mask=mask), reference)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_eager_experts_follow_too(family: str) -> None:
    model = tiny_model(family)
    model.set_experts_implementation("eager")
    reference = outcome(model, prompt())
    with apply(far_plan(model), model, devices=VIRTUAL):
        assert_same(outcome(model, prompt()), reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_kernels_differ_in_the_last_bits_of_decode_only(family: str) -> None:
    model = tiny_model(family)
    first, _, (tokens, *logits) = outcome(model, prompt())
    with apply(far_plan(model), model, devices=VIRTUAL):
        placed = outcome(model, prompt())
    assert torch.equal(placed[0], first)
    assert torch.equal(placed[2][0], tokens)
    torch.testing.assert_close(placed[2][1:], tuple(logits), rtol=0, atol=1e-5)


def test_generate_does_not_switch_experts_on_the_cpu_to_a_kernel_for_gpus() -> None:
    model = tiny_model("qwen3_moe")
    before, reference = snapshot(model), outcome(model, prompt())
    with apply(one_device(model, "cuda:0", "cpu"), model, devices=VIRTUAL):
        assert_same(outcome(model, prompt()), reference)  # bitwise: they decoded with grouped_mm, as without a plan
    assert snapshot(model) == before


def test_bfloat16() -> None:
    model = tiny_model("deepseek_v3").to(torch.bfloat16)
    model.set_experts_implementation("batched_mm")
    reference = outcome(model, prompt())
    with apply(far_plan(model), model, devices=VIRTUAL):
        assert_same(outcome(model, prompt()), reference)


def test_masks_that_come_as_a_dict() -> None:
    model, ids = shared_model("gpt_oss"), prompt()
    allowed = torch.ones(9, 9, dtype=torch.bool).tril()
    full = torch.zeros(9, 9).masked_fill(~allowed, float("-inf"))[None, None]
    near = torch.zeros(9, 9).masked_fill(~allowed.triu(-3), float("-inf"))[None, None]
    masks = {"full_attention": full, "sliding_attention": near}
    with torch.no_grad():
        reference = model(ids, attention_mask=masks).logits
        with apply(far_plan(model), model, devices=VIRTUAL):
            assert torch.equal(model(ids, attention_mask=masks).logits, reference)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_static_cache_follows_the_attention(family: str) -> None:
    model, ids = shared_model(family), prompt()
    how = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static", "attention_mask": ids * 0 + 1}
    how |= {"return_dict_in_generate": True}
    plan = far_plan(model)
    with torch.no_grad():
        reference = model.generate(ids, **how).sequences
        with apply(plan, model, devices=VIRTUAL):
            result = model.generate(ids, **how)
    assert torch.equal(result.sequences, reference)
    assert [str(la.keys.device) for la in result.past_key_values.layers] == [
        VIRTUAL[la.attention] for la in plan.layers
    ]


def test_loss_tuple_output_and_embeddings_as_input() -> None:
    model, ids = shared_model("qwen3_moe"), prompt(rows=2)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(ids)
        reference = model(ids, labels=ids, output_router_logits=True)
        with apply(far_plan(model), model, devices=VIRTUAL):
            named = model(ids, labels=ids, output_router_logits=True)
            plain = model(inputs_embeds=embedded, return_dict=False, use_cache=False, logits_to_keep=torch.arange(9))
    for value, other in ((named.loss, reference.loss), (named.logits, reference.logits), (plain[0], reference.logits)):
        assert str(value.device) == "cpu"
        assert torch.equal(value, other)
    assert str(named.aux_loss.device) == "cpu"


def test_logits_come_back_to_the_device_of_the_ids() -> None:
    model = shared_model("mixtral")
    with apply(far_plan(model), model, devices=VIRTUAL), torch.no_grad():
        logits = model(prompt().to("vgpu:3")).logits
    assert str(logits.device) == "vgpu:3"
    assert torch.equal(logits.cpu(), expected("mixtral")[0])


def test_what_is_there_already_is_passed_on_as_it_is() -> None:
    here = torch.zeros(2)
    there = here.to("vgpu:0")
    cpu, gpu = torch.device("cpu"), torch.device("vgpu:0")
    nested = {"a": (here, [here, None]), "b": {"c": "text"}}
    assert hooks.is_there(nested, cpu)
    assert hooks.moved(nested, cpu) is nested
    for value in (there, [here, there], {"a": {"b": (there,)}}):
        assert not hooks.is_there(value, cpu)
    kept, moved = hooks.moved((there, {"a": [here]}), gpu)
    assert kept is there
    assert moved["a"][0].device == gpu


def test_other_hooks_see_tensors_on_the_device_of_their_module() -> None:
    model, seen = tiny_model("mixtral"), []

    def watch(module: Any) -> None:
        module.register_forward_pre_hook(lambda _, args: seen.append(str(args[0].device)))
        module.register_forward_hook(lambda _, args, output: seen.append(str(output.device)))

    watch(model.model.layers[0].mlp.experts)
    with apply(far_plan(model), model, devices=VIRTUAL), torch.no_grad():
        watch(model.model.layers[1])
        model(prompt())
    assert seen == ["vgpu:3", "vgpu:3", "vgpu:2", "vgpu:2"]


def test_weights_stay_and_only_hidden_states_travel() -> None:
    model = shared_model("mixtral")
    layers, hidden, top_k = len(model.model.layers), 32, 2
    with vgpu.ledger() as ledger, apply(one_device(model, "cuda:0", "cuda:1"), model, devices=VIRTUAL), torch.no_grad():
        cache = model(prompt(), use_cache=True).past_key_values
        ledger.copied.clear()
        model(prompt()[:, :1], past_key_values=cache)
        gpu, other = torch.device("vgpu:0"), torch.device("vgpu:1")
        assert ledger.copied[gpu, other] == layers * (4 * hidden + 8 * top_k + 4 * top_k)  # states, ids, weights
        assert ledger.copied[other, gpu] == layers * 4 * hidden
        back = {pair: size for pair, size in ledger.copied.items() if vgpu.CPU in pair and pair[1] == vgpu.CPU}
        assert back == {(gpu, vgpu.CPU): 4 * VOCABULARY}  # the logits, and nothing else


def test_what_layers_share_crosses_once_a_device() -> None:
    model = shared_model("mixtral")
    plan = one_device(model, "cuda:1").replace(embedding="cuda:0")
    mask = torch.ones(1, 9, dtype=torch.long)
    with vgpu.ledger() as ledger, apply(plan, model, devices=VIRTUAL), torch.no_grad():
        ledger.copied.clear()
        model(prompt(), attention_mask=mask)
        rotary, positions, states = 2 * 9 * 8 * 4, 9 * 8, 9 * 32 * 4
        crossed = ledger.copied[torch.device("vgpu:0"), torch.device("vgpu:1")]
    masks = crossed - rotary - positions - states
    assert 0 <= masks <= 9 * 9  # one boolean mask, or none where the kernel makes its own


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_any_carrying_hook_raises(family: str) -> None:
    model, ids = shared_model(family), prompt()
    reference = expected(family)[0]
    with apply(far_plan(model), model, devices=VIRTUAL), torch.no_grad():
        tables = [(m, t) for m in model.modules() for t in (m._forward_pre_hooks, m._forward_hooks)]
        found = [(t, key, hook) for _, t in tables for key, hook in t.items() if isinstance(hook, hooks.PlanHook)]
        assert sum(isinstance(hook, CARRIERS) for _, _, hook in found) == 2 + len(is_moe(model)) + 2 * sum(
            is_moe(model)
        )
        for table, key, hook in found:
            del table[key]
            if isinstance(hook, CARRIERS):
                with pytest.raises(RuntimeError, match="same device"):
                    model(ids)
            else:
                assert torch.equal(model(ids).logits.to("cpu"), reference)
            table[key] = hook


def test_operands_on_two_devices_raise() -> None:
    here, there = torch.ones(2, device="vgpu:0"), torch.ones(2, device="vgpu:1")
    for a, b in ((here, there), (here, torch.ones(2)), (torch.ones(2), here)):
        with pytest.raises(RuntimeError, match="same device"):
            a + b
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat([a, b])
    rows = torch.tensor([1, 0])
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2)[rows.to("vgpu:0")]
    assert here[rows].device == here.device  # indices may stay on the CPU, as on CUDA
    assert torch.equal((here + there.to("vgpu:0")).cpu(), torch.full((2,), 2.0))
    assert torch.equal((here * torch.tensor(3.0)).cpu(), torch.full((2,), 3.0))  # no dimensions: allowed, as on CUDA


@pytest.mark.parametrize("keep_host", [False, True])
def test_undo_restores_objects_hooks_attributes_and_storages(keep_host: bool) -> None:
    model = tiny_model("deepseek_v3")
    model.set_experts_implementation("batched_mm")
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    model.hf_device_map = {"": "cpu"}
    model.model.norm.register_forward_pre_hook(lambda module, args: None)
    model.model.layers[1].register_forward_hook(lambda module, args, output: None)
    before, reference = snapshot(model), outcome(model, prompt())
    storages = [p.data_ptr() for p in model.parameters()]
    applied = apply(far_plan(model), model, devices=VIRTUAL, keep_host=keep_host)
    assert applied.active
    assert model.hf_device_map["model.embed_tokens"] == "vgpu:0"
    assert model.hf_device_map["model.layers.1.mlp.experts"] == "vgpu:3"
    assert [p.requires_grad for p in model.parameters()] == [False] * (len(storages) - 1) + [True]
    assert list(model.state_dict()) == before[0]
    applied.undo()
    applied.undo()
    assert not applied.active
    assert snapshot(model) == before
    assert not keep_host or [p.data_ptr() for p in model.parameters()] == storages
    assert_same(outcome(model, prompt()), reference)


def test_host_memory_is_freed_unless_kept() -> None:
    model = tiny_model("mixtral")
    originals = dict(model.named_parameters())
    for keep_host in (False, True):
        with apply(one_device(model), model, devices=VIRTUAL, keep_host=keep_host):
            assert all(bool(p.numel()) == keep_host for p in originals.values())


def test_edits_made_while_applied_survive_undo_only_without_keep_host() -> None:
    model = tiny_model("mixtral")
    for keep_host in (True, False):
        with apply(one_device(model), model, devices=VIRTUAL, keep_host=keep_host), torch.no_grad():
            model.model.norm.weight.fill_(7.0)
        assert bool((model.model.norm.weight == 7.0).all()) != keep_host


def test_undo_after_an_exception_in_the_with_block() -> None:
    model = shared_model("mixtral")
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), apply(far_plan(model), model, devices=VIRTUAL):
        raise ZeroDivisionError
    assert snapshot(model) == before


def test_a_model_that_is_on_gpus_already_moves_between_them() -> None:
    model = tiny_model("qwen3_moe")
    model.set_experts_implementation("batched_mm")
    reference = outcome(model, prompt())
    plan, values = one_device(model, "cuda:2", "cuda:0"), [p.detach().clone() for p in model.parameters()]
    planned = planned_bytes(model, plan)
    with vgpu.ledger() as ledger:
        put_on(model, "vgpu:0")
        objects, full = [id(p) for p in model.parameters()], ledger.live_bytes
        with apply(plan, model, devices=VIRTUAL) as applied:
            assert applied.moved_bytes == {"vgpu:2": planned["vgpu:2"]}
            assert ledger.live_bytes == planned
            assert_same(outcome(model, prompt()), reference)
        assert ledger.live_bytes == full == {"vgpu:0": sum(planned.values())}
        with vgpu.ledger({"vgpu:2": 5000}), pytest.raises(ApplyError, match="cannot be moved to vgpu:2"):
            apply(plan, model, devices=VIRTUAL)
    assert [id(p) for p in model.parameters()] == objects
    assert all(torch.equal(a, b.cpu()) for a, b in zip(values, model.parameters(), strict=True))


def test_undo_that_runs_out_of_memory_can_be_resumed() -> None:
    model = tiny_model("mixtral")
    values = [p.detach().clone() for p in model.parameters()]
    with vgpu.ledger() as ledger:
        put_on(model, "vgpu:0")
        objects, full = [id(p) for p in model.parameters()], ledger.live_bytes
        applied = apply(one_device(model, "cuda:1"), model, devices=VIRTUAL)
        ledger.caps[torch.device("vgpu:0")] = full["vgpu:0"] // 2
        with pytest.raises(ApplyError, match=r"cannot be moved back to vgpu:0.*undo\(\) again"):
            applied.undo()
        assert applied.active
        ledger.caps.clear()
        applied.undo()
        assert ledger.live_bytes == full
    assert [id(p) for p in model.parameters()] == objects
    assert all(torch.equal(a, b.cpu()) for a, b in zip(values, model.parameters(), strict=True))


def put_on(model: Any, device: str) -> None:
    """What `model.to(device)` does where parameters can change their device in place."""
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    there = tensor.detach().to(device)
                    table[key] = torch.nn.Parameter(there) if isinstance(tensor, torch.nn.Parameter) else there


@pytest.mark.parametrize("head", ["cuda:0", "cuda:1", "cpu"])
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v2"])
def test_tied_embeddings_stay_tied_on_one_device_and_are_copied_on_two(family: str, head: str) -> None:
    model = tiny_model(family, tie_word_embeddings=True)
    model.set_experts_implementation("batched_mm")
    reference, before = outcome(model, prompt()), snapshot(model)
    plan = one_device(model).replace(head=head)
    planned = planned_bytes(model, plan)
    with vgpu.ledger() as ledger:
        with apply(plan, model, devices=VIRTUAL):
            assert (model.lm_head.weight is model.model.embed_tokens.weight) == (head == "cuda:0")
            assert ledger.live_bytes == planned
            result = outcome(model, prompt())
        assert not ledger.live_bytes
    assert_same(result, reference)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert snapshot(model) == before


def test_two_parameters_in_one_memory_stay_in_one() -> None:
    model = tiny_model("mixtral")
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.data)
    with apply(one_device(model), model, devices=VIRTUAL):
        twin = model.lm_head.weight.elem
        assert twin.data_ptr() == model.model.embed_tokens.weight.elem.data_ptr()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("real", ["cpu", "vgpu:3"])
def test_several_plan_devices_on_one_real_device(real: str) -> None:
    model = shared_model("deepseek_v2")
    plan = far_plan(model)
    with apply(plan, model, devices=dict.fromkeys(GPUS, real)) as applied:
        assert set(applied.device_map.values()) == {real}
        assert set(applied.moved_bytes) == ({real} - {"cpu"})
        assert_same(outcome(model, prompt()), expected("deepseek_v2"))


def test_every_expert_listed_on_one_device_is_all_of_them() -> None:
    model = shared_model("mixtral")
    layers = [{"attention": "cuda:0", "experts": {"cuda:1": list(range(EXPERTS))}} for _ in range(3)]
    with apply(Placement(embedding="cpu", head="cpu", layers=layers), model, devices=VIRTUAL) as applied:
        assert applied.device_map["model.layers.0.mlp.experts"] == "vgpu:1"


def test_a_dense_model_is_placed_by_layer() -> None:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    reference = outcome(model, prompt())
    with apply(far_plan(model), model, devices=VIRTUAL):
        assert_same(outcome(model, prompt()), reference)


def test_out_of_memory_anywhere_rolls_back() -> None:
    model = tiny_model("deepseek_v2", tie_word_embeddings=True)
    plan, before = far_plan(model).replace(head="cuda:2"), snapshot(model)
    planned = planned_bytes(model, plan)
    for device, size in planned.items():
        for cap in (8, size // 3, size // 2, size - 1):
            with vgpu.ledger({device: cap}) as ledger:
                with pytest.raises(ApplyError, match=f"bytes cannot be moved to {device}.*out of memory") as caught:
                    apply(plan, model, devices=VIRTUAL)
                assert not ledger.live_bytes, "the error keeps moved weights alive"
            assert "\n" not in str(caught.value)
            assert snapshot(model) == before
    with vgpu.ledger(planned), apply(plan, model, devices=VIRTUAL):
        pass


@pytest.mark.parametrize("after", [0, 3, 6])
def test_an_interrupt_while_hooking_rolls_back(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    model = tiny_model("mixtral")
    before, register, calls = snapshot(model), torch.nn.Module.register_forward_pre_hook, []

    def interrupted(self: Any, *args: Any, **how: Any) -> Any:
        calls.append(self)
        if len(calls) > after:
            raise KeyboardInterrupt
        return register(self, *args, **how)

    monkeypatch.setattr(torch.nn.Module, "register_forward_pre_hook", interrupted)
    with vgpu.ledger() as ledger:
        with pytest.raises(KeyboardInterrupt):
            apply(far_plan(model), model, devices=VIRTUAL)
        gc.collect()
        assert not ledger.live_bytes
    assert snapshot(model) == before


def test_no_memory_in_the_forward_leaves_the_weights_where_they_are() -> None:
    model = shared_model("mixtral")
    plan, before = far_plan(model), snapshot(model)
    planned = planned_bytes(model, plan)
    with vgpu.ledger({"vgpu:3": planned["vgpu:3"] + 100}) as ledger:
        with apply(plan, model, devices=VIRTUAL):
            with pytest.raises(torch.OutOfMemoryError), torch.no_grad():
                model(prompt())
            gc.collect()
            assert ledger.live_bytes == planned, "what layers shared in the failed forward is still held"
        assert not ledger.live_bytes
    assert snapshot(model) == before


def plan_of(*layers: dict[str, Any], embedding: str = "cuda:0", head: str = "cuda:0") -> Placement:
    return Placement(embedding=embedding, head=head, layers=list(layers))


DENSE: dict[str, Any] = {"attention": "cuda:0"}
MOE: dict[str, Any] = {"attention": "cuda:0", "experts": {"cpu": "all"}}
PART: dict[str, Any] = {"attention": "cuda:0", "experts": {"cpu": [0, 1]}}


@pytest.mark.parametrize(
    ("plan", "devices", "message"),
    [
        (plan_of(DENSE, MOE), VIRTUAL, "layers: the plan has 2, DeepseekV2ForCausalLM has 3"),
        (plan_of(MOE, MOE, MOE), VIRTUAL, r"layers\[0\]: dense in the model, but the plan places experts"),
        (plan_of(DENSE, DENSE, MOE), VIRTUAL, r"layers\[1\]: has experts in the model, but none in the plan"),
        (plan_of(DENSE, MOE, PART), VIRTUAL, r"layers\[2\].experts: 6 of 8 are on no device, first 2; place each once"),
        (plan_of(DENSE, MOE, MOE), {"gpu0": "vgpu:0"}, "'gpu0' is not a device of a plan"),
        (plan_of(DENSE, MOE, MOE), {"cuda:0": "nonsense:0"}, r"cuda:0 \(mapped to nonsense:0\): not a torch device"),
        (plan_of(DENSE, MOE, MOE), {"cuda:0": "meta"}, "the meta device computes nothing"),
        (plan_of(DENSE, MOE, MOE, embedding="cuda:99"), VIRTUAL, "cuda:99: this machine has .* CUDA devices"),
        (
            plan_of(DENSE, MOE, MOE, embedding="cuda:256"),
            VIRTUAL,
            r"cuda:256: not a torch device \(torch reads cuda:0\)",
        ),
        (plan_of(DENSE, MOE, MOE), {"cuda:0": "xpu:0"}, r"cuda:0 \(mapped to xpu:0\): cannot be used"),
        ({"layers": []}, VIRTUAL, "plan: expected a Placement, got dict"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_anything_moves(plan: Any, devices: Any, message: str) -> None:
    model = shared_model("deepseek_v2")
    before = snapshot(model)
    with vgpu.ledger() as ledger:
        with pytest.raises(ApplyError, match=message) as caught:
            apply(plan, model, devices=devices)
        assert not any(size > 64 for size in ledger.peak.values())  # a device is tried with a few bytes
    assert "\n" not in str(caught.value)
    assert snapshot(model) == before


def test_a_second_plan_and_an_accelerate_dispatch_are_refused() -> None:
    model = tiny_model("mixtral")
    plan = one_device(model)
    with apply(plan, model, devices=VIRTUAL), pytest.raises(ApplyError, match=r"already applied.*undo"):
        apply(plan, model, devices=VIRTUAL)
    accelerate = pytest.importorskip("accelerate")
    accelerate.hooks.add_hook_to_module(model.model.layers[0], accelerate.hooks.ModelHook())
    with pytest.raises(ApplyError, match=r"model\.layers\.0: accelerate already dispatched"):
        apply(plan, model, devices=VIRTUAL)


def test_models_that_cannot_be_placed_are_refused() -> None:
    model = tiny_model("mixtral")
    plan = one_device(model)
    with torch.device("meta"):
        empty = type(model)(model.config)
    shared = tiny_model("mixtral")
    shared.model.layers[1].mlp = shared.model.layers[0].mlp
    quantized = tiny_model("mixtral")
    kind = type("Int4Parameter", (torch.nn.Parameter,), {})
    quantized.lm_head.weight = kind(quantized.lm_head.weight.data)
    unfused = tiny_model("mixtral")
    unfused.model.layers[2].mlp.experts = torch.nn.ModuleList([torch.nn.Linear(32, 32)])
    apart = plan.replace(layers=[*plan.layers[:1], {"attention": "cuda:1", "experts": {"cpu": "all"}}, plan.layers[2]])
    for broken, its_plan, message in (
        (empty, plan, "on the meta device.*load the weights"),
        (shared, apart, "the same module as model.layers.0.mlp"),
        (quantized, plan, r"lm_head\.weight: is a Int4Parameter"),
        (unfused, plan, r"layer 2: mlp\.experts is a list of modules"),
        (model.model, plan, "no causal LM"),
        (torch.nn.Linear(2, 2), plan, "Linear: no causal LM"),
        ("model", plan, "expected a torch.nn.Module, got str"),
    ):
        with pytest.raises(ApplyError, match=message):
            apply(its_plan, broken, devices=VIRTUAL)


def test_fake_cuda_tensors_need_no_gpu() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = tiny_model("mixtral")
        with apply(one_device(model, "cuda:1", "cpu"), model):
            assert str(model.lm_head.weight.device) == "cuda:1"
            assert str(model.model.layers[0].mlp.experts.down_proj.device) == "cpu"


def test_importing_apply_does_not_import_torch() -> None:
    code = "import sys, runtime_adapter.apply; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
