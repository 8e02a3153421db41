"""CPU engines compute what transformers' experts compute in fp32, give modules back unchanged, and refuse the rest.

The reference is always transformers' own eager forward of an fp32 copy of the module, made before the engine.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from profiles.errors import ApplyError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402 -- these need torch
from hypothesis import strategies as st  # noqa: E402
from tiny_models import EXPERTS, FAMILIES, MORE_FAMILIES, tiny_model  # noqa: E402
from transformers import Qwen3MoeConfig  # noqa: E402
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts  # noqa: E402

from runtime_adapter.anatomy import anatomy_of  # noqa: E402
from runtime_adapter.cpu_experts import ENGINES, crew, engine_of, fastest_engine, kt, missing, packed  # noqa: E402
from runtime_adapter.cpu_experts.choose import EngineTime, EngineTimes  # noqa: E402
from runtime_adapter.cpu_experts.panels import WIDEST, Int8Panels, Panels, width_of  # noqa: E402

ALWAYS = [name for name in ENGINES if not name.startswith("kt-kernel")]
MOST_ERROR = {"packed-int8": 0.03, "kt-kernel": 0.01, "kt-kernel-int8": 0.05, "kt-kernel-int4": 0.35}
"""Relative distance from fp32 of bf16 modules; whoever is not named has bf16's own."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def experts_of(family: str, dtype: Any) -> Any:
    """The experts of the family's first sparse layer."""
    model = tiny_model(family).to(dtype)
    return next(experts for experts in anatomy_of(model).experts if experts is not None)


def plain_experts(hidden: int = 64, intermediate: int = 48, count: int = 8, active: int = 3) -> Any:
    """Experts of sizes of our choice in bf16, with weights that keep the size of what goes through."""
    config = Qwen3MoeConfig(
        hidden_size=hidden, moe_intermediate_size=intermediate, num_experts=count, num_experts_per_tok=active
    )
    config._experts_implementation = "grouped_mm"
    experts = Qwen3MoeExperts(config)
    for parameter in experts.parameters():
        parameter.data = torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5
    return experts.to(torch.bfloat16)


def call(experts: Any, tokens: int, active: int = 3) -> tuple[Any, Any, Any]:
    projection = getattr(experts, "gate_up_proj", None)
    hidden = projection.shape[1 if getattr(experts, "is_transposed", False) else 2]
    chosen = torch.stack([torch.randperm(len(projection))[:active] for _ in range(tokens)])
    return torch.randn(tokens, hidden).to(projection.dtype), chosen, torch.rand(tokens, active)


def exact(experts: Any, hidden: Any, chosen: Any, weights: Any) -> Any:
    """The module's own eager forward, of a copy in fp32."""
    twin = copy.deepcopy(experts).float()
    twin.config = copy.deepcopy(twin.config)
    twin.config._experts_implementation = "eager"
    with torch.no_grad():
        return twin(hidden.float(), chosen, weights)


def distance(found: Any, wanted: Any) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES | MORE_FAMILIES)
def test_every_family_comes_out_as_in_fp32_for_few_and_many_tokens(family: str, dtype: Any) -> None:
    experts = experts_of(family, dtype)
    for tokens in (1, 2, 17):  # 17 tokens give experts more than one each, and some many
        inputs = call(experts, tokens)
        wanted = exact(experts, *inputs)
        for name in ALWAYS:
            engine = engine_of(name)(experts)
            found = engine(*inputs)
            engine.close()
            most = MOST_ERROR.get(name, 1e-5 if dtype is torch.float32 else 0.02)
            assert found.dtype is dtype
            assert distance(found, wanted) < most, (name, tokens)


def test_same_expert_twice_and_no_tokens_at_all() -> None:
    experts = plain_experts()
    hidden, _, weights = call(experts, 4)
    chosen = torch.tensor([[1, 1, 1], [2, 1, 2], [7, 7, 0], [0, 0, 0]])
    wanted = exact(experts, hidden, chosen, weights)
    for name in ("packed", "packed-int8"):
        engine = engine_of(name)(experts)
        assert distance(engine(hidden, chosen, weights), wanted) < 0.03
        assert engine(hidden[:0], chosen[:0], weights[:0]).shape == (0, 64)
        engine.close()


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])  # gpt_oss has transposed weights, and biases
def test_packed_takes_the_weights_over_and_gives_them_back_bit_for_bit(family: str) -> None:
    experts = experts_of(family, torch.bfloat16)
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in experts.named_parameters()}
    inputs = call(experts, 5)
    with torch.no_grad():
        original = experts(*inputs)
    engine = engine_of("packed")(experts)
    taken = [name for name, tensor in experts.named_parameters() if not tensor.numel()]
    assert taken == ["gate_up_proj", "down_proj"]
    assert engine.held_bytes == sum(before[name][1].numel() * 2 for name in taken)
    assert not engine.keeps_parameters
    engine.close()
    engine.close()
    for name, tensor in experts.named_parameters():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])
        assert tensor.stride() == before[name][1].stride()
    assert engine.held_bytes == 0
    with torch.no_grad():
        assert torch.equal(experts(*inputs), original)


def test_packed_leaves_memory_that_others_share() -> None:
    experts = plain_experts()
    whole = experts.gate_up_proj.detach()
    value = whole.clone()
    engine = engine_of("packed")(experts)
    assert torch.equal(whole, value)
    engine.close()
    assert torch.equal(experts.gate_up_proj, value)


def test_int8_keeps_the_parameters_and_reads_them_no_more() -> None:
    experts = plain_experts()
    inputs = call(experts, 6)
    engine = engine_of("packed-int8")(experts)
    assert engine.keeps_parameters
    assert engine.held_bytes < 0.75 * sum(p.numel() * p.element_size() for p in experts.parameters())
    before = engine(*inputs)
    experts.gate_up_proj.data.zero_()
    assert torch.equal(engine(*inputs), before)
    engine.close()
    assert experts.down_proj.numel()


def test_packing_that_fails_half_way_gives_back_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, made = plain_experts(), []

    def scarce(weight: Any) -> Panels:
        if made:
            raise MemoryError("no room for the second weight")
        made.append(Panels(weight))
        return made[-1]

    values = [tensor.detach().clone() for tensor in experts.parameters()]
    monkeypatch.setattr(packed, "Panels", scarce)
    with pytest.raises(MemoryError):
        engine_of("packed")(experts)
    assert made
    assert all(torch.equal(tensor, value) for tensor, value in zip(experts.parameters(), values, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 300), st.integers(2, 40), st.integers(1, 9), st.booleans())
def test_panels_are_the_weight_in_another_order(
    experts: int, columns: int, inputs: int, rows: int, transposed: bool
) -> None:
    weight = torch.randn(experts, columns, inputs)
    if transposed:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    for dtype, close in ((torch.float32, 1e-4), (torch.bfloat16, 0.02)):
        panels, given_ = Panels(weight.to(dtype)), torch.randn(rows, inputs).to(dtype)
        assert torch.equal(panels.weight(), weight.to(dtype))
        wanted, found = given_.float() @ weight[-1].to(dtype).float().T, torch.full((rows, columns), 7.0, dtype=dtype)
        panels.product(experts - 1, 0, panels.count, given_, found)
        assert torch.allclose(found.float(), wanted, rtol=close, atol=close * max(1.0, float(wanted.abs().max())))
        if panels.count > 1:  # the columns of the last panel alone
            part = torch.full((rows, columns), 7.0, dtype=dtype)
            panels.product(experts - 1, panels.count - 1, panels.count, given_, part)
            assert torch.equal(part[:, -panels.width :], found[:, -panels.width :])
            assert bool((part[:, : -panels.width] == 7).all())
    coarse = Int8Panels(weight).weight() - weight
    assert float(coarse.abs().max()) <= 0.51 * float(weight.max() - weight.min()) / 255 + 1e-6


@pytest.mark.parametrize("name", ["packed", "packed-int8"])
def test_threads_change_neither_results_nor_torchs_settings(name: str) -> None:
    experts = plain_experts(64, 80)
    inputs = call(experts, 300)
    engine = engine_of(name)(experts)
    alone, seen = engine(*inputs), []
    torch.set_num_threads(3)
    try:
        assert torch.equal(engine(*inputs), alone)
        with torch.inference_mode():
            assert torch.equal(engine(*(tensor.clone() for tensor in inputs)), alone)
        assert torch.equal(engine(inputs[0].clone().requires_grad_(), *inputs[1:]), alone)
        other = threading.Thread(target=lambda: seen.append((torch.get_num_threads(), engine(*inputs))))
        other.start()
        engine(*inputs)  # meanwhile
        other.join()
        assert torch.get_num_threads() == 3
        assert seen[0][0] == 3
        assert torch.equal(seen[0][1], alone)
    finally:
        torch.set_num_threads(1)
        engine.close()


def test_a_crew_does_every_job_once_and_passes_problems_on() -> None:
    done: list[int] = []
    three = crew.Crew([0, 0, 0])  # three threads that share a CPU
    three.run([functools.partial(done.append, number) for number in range(50)])
    assert sorted(done) == list(range(50))
    with pytest.raises(ZeroDivisionError):
        three.run([lambda: 1 // 0, *(functools.partial(done.append, number) for number in range(9))])
    done.clear()
    three.run([functools.partial(done.append, 1)])
    assert done == [1]


@given(st.integers(1, 20000))
def test_panel_width_divides_and_prefers_whole_vectors(columns: int) -> None:
    width = width_of(columns)
    assert columns % width == 0
    assert width <= WIDEST
    assert width % 8 == 0 or columns % 8


def test_widths_of_known_models_fill_most_of_the_registers() -> None:
    assert [width_of(n) for n in (5120, 3072, 2816, 2048, 4096, 7168, 5760)] == [80, 96, 88, 64, 64, 64, 96]


@pytest.mark.parametrize(("name", "kernel"), [("torch", "grouped_mm"), ("torch-eager", "eager")])
def test_torch_is_the_modules_own_kernel_on_the_live_parameters(name: str, kernel: str) -> None:
    experts = plain_experts()
    config, inputs = experts.config, call(experts, 9)
    engine = engine_of(name)(experts)
    experts.forward = lambda *_: pytest.fail("a forward put on the module is not the engine's")
    experts.down_proj.data.mul_(2)
    found = engine(*inputs)
    del experts.forward
    assert experts.config is config
    assert config._experts_implementation == "grouped_mm"
    config._experts_implementation = kernel
    with torch.no_grad():
        assert torch.equal(found, experts(*inputs))
    assert (engine.held_bytes, engine.keeps_parameters) == (0, True)


def test_names_that_are_unknown_or_not_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ApplyError, match='engine "fast" is unknown; choose one of torch, '):
        engine_of("fast")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "kt_kernel" else find(name))
    with pytest.raises(ApplyError, match="kt-kernel is not installed; pip install --no-deps kt-kernel"):
        engine_of("kt-kernel-int8")
    assert missing("packed") is None


def test_modules_that_an_engine_cannot_compute_are_refused_by_name() -> None:
    own = torch.nn.Linear(4, 4)
    with pytest.raises(ApplyError, match='Linear: engine "packed" needs fused experts'):
        engine_of("packed")(own)
    whole = plain_experts()
    whole.gate_up_proj.data = whole.gate_up_proj.data.to(torch.float8_e4m3fn)
    with pytest.raises(ApplyError, match=r"gate_up_proj is torch.float8_e4m3fn; .* use engine \"torch\""):
        engine_of("packed")(whole)
    with pytest.raises(ApplyError, match="gate_up_proj is on meta"):
        engine_of("packed")(plain_experts().to("meta"))


def test_ids_outside_are_refused() -> None:
    experts = plain_experts()
    hidden, chosen, weights = call(experts, 2)
    for wrong in (-1, 8):
        chosen[0, 0] = wrong
        engine = engine_of("packed")(copy.deepcopy(experts))
        with pytest.raises(IndexError):
            engine(hidden, chosen, weights)


def test_all_engines_are_timed_on_a_module_that_stays_as_it_is() -> None:
    experts = plain_experts()
    values = [tensor.detach().clone() for tensor in experts.parameters()]
    names = ["torch-eager", "packed", "packed-int8", "kt-kernel"]
    found = fastest_engine(experts, (1, 40), names, seconds=0.0)
    timed = [(time.engine, time.tokens) for time in found.times]
    here = [name for name in names if name not in found.absent]
    assert timed == [(name, tokens) for name in here for tokens in (1, 40)]
    assert here[:3] == names[:3]
    assert all(time.seconds > 0 and time.error < 0.05 for time in found.times)
    assert "kt-kernel" in found.absent  # an intermediate size of 48 is not one of its sizes, if it is here at all
    assert found.fastest(40) in here
    assert str(found).count("\n") == len(found.times) + len(found.absent)
    assert all(torch.equal(tensor, value) for tensor, value in zip(experts.parameters(), values, strict=True))


def test_of_a_large_module_a_part_is_timed_and_the_time_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime_adapter.cpu_experts import choose

    experts, seen = plain_experts(count=8), []

    class Counting:
        name, held_bytes, keeps_parameters = "counting", 0, True

        def __init__(self, module: Any) -> None:
            self.module = module

        def __call__(self, hidden: Any, chosen: Any, weights: Any) -> Any:
            seen.append((len(hidden), len(self.module.gate_up_proj), int(chosen.max())))
            return exact(self.module, hidden, chosen, weights).to(hidden.dtype)

        def close(self) -> None:
            pass

    monkeypatch.setattr(choose, "SAMPLE_BYTES", 4 * 3 * 64 * 48 * 2)
    choose.time_engines(experts, {"counting": Counting}, (2, 80), seconds=0.0)
    assert {count for _, count, _ in seen} == {4}
    assert max(expert for _, _, expert in seen) == 3
    # 2 tokens use at most 6 of 8 experts and stay; 80 would each expert serve 30 times, as 40 do with half the experts
    assert [tokens for tokens, _, _ in seen] == [1] + [2] * 4 + [40] * 4


def test_the_fastest_is_chosen_among_the_exact() -> None:
    times = EngineTimes(
        (
            EngineTime("slow", 1, 3.0, 0.004),
            EngineTime("good", 1, 2.0, 0.005),
            EngineTime("coarse", 1, 1.0, 0.3),
            EngineTime("slow", 512, 1.0, 0.004),
        ),
        {},
    )
    assert times.fastest(1) == "good"
    assert times.fastest(1, most_error=0.5) == "coarse"
    assert times.fastest(512) == "slow"
    with pytest.raises(ApplyError, match="none was timed with 7 tokens"):
        times.fastest(7)


@pytest.fixture(params=["kt-kernel", "kt-kernel-int8", "kt-kernel-int4"])
def kt_name(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if reason := missing(name):
        pytest.skip(reason)
    return name


def test_kt_kernel_leaves_the_arithmetic_of_the_process_alone(kt_name: str) -> None:
    """It is built with -ffast-math, whose start-up code makes subnormal numbers zero."""
    experts = plain_experts(256, 256)
    engine = engine_of(kt_name)(experts)
    engine(*call(experts, 1))
    engine.close()
    assert float("5e-324") * 1.0 > 0


def test_kt_kernel_comes_out_as_in_fp32(kt_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = plain_experts(256, 256)
    monkeypatch.setattr(kt, "CHUNK_TOKENS", 16)  # it makes its buffers for as many, and does not look
    engine = engine_of(kt_name)(experts)
    # one token, a few, more than its buffers hold, more experts a token than they hold, one pair a row
    for tokens, active in ((1, 3), (7, 3), (90, 3), (5, 7), (6, 1)):
        inputs = call(experts, tokens, active)
        assert distance(engine(*inputs), exact(experts, *inputs)) < MOST_ERROR[kt_name], (tokens, active)
    assert engine(*call(experts, 1))[:0].shape == (0, 256)
    engine.close()


def test_kt_kernel_keeps_the_parameters_and_reads_them_no_more(kt_name: str) -> None:
    experts = plain_experts(256, 256)
    engine, inputs = engine_of(kt_name)(experts), call(experts, 20)
    before = engine(*inputs)
    for parameter in experts.parameters():
        parameter.data.fill_(float("nan"))
    assert engine.keeps_parameters
    assert torch.equal(engine(*inputs), before)
    assert engine.held_bytes > 0
    engine.close()
    with pytest.raises(ApplyError, match="is closed"):
        engine(*inputs)


def test_kt_kernel_refuses_what_it_would_overrun_or_get_wrong(kt_name: str) -> None:
    with pytest.raises(ApplyError, match="is no multiple of"):
        engine_of(kt_name)(plain_experts(256, 48))
    with pytest.raises(ApplyError, match="has no biases"):
        engine_of(kt_name)(experts_of("gpt_oss", torch.bfloat16))
    other = plain_experts(256, 256)
    other.act_fn = torch.nn.GELU()
    with pytest.raises(ApplyError, match=r"computes silu\(gate\) \* up and this is another"):
        engine_of(kt_name)(other)
    engine = engine_of(kt_name)(plain_experts(256, 256))
    hidden, chosen, weights = call(plain_experts(256, 256), 2)
    for wrong in (-1, EXPERTS):
        chosen[1, 2] = wrong
        with pytest.raises(IndexError, match=r"not in 0 \.\. 7"):
            engine(hidden, chosen, weights)
    engine.close()
