"""A plan tried out on fake tensors: bytes to the byte, workspace within its bounds, one clear line when it fails."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest

from cost_models import CostModel
from profiles import Workload, load_hardware, load_profile
from profiles.errors import ApplyError, ProfileError
from profiles.hf_config.reader import read_hf_config
from profiles.model import ModelProfile
from profiles.placement import Placement
from profiles.presets import model_config_preset
from runtime_adapter.dry_run import DryRun, dry_run
from solver.evaluate import judge

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import vgpu  # noqa: E402 -- these need torch; vgpu first, because torch knows one made-up device in a process
from tiny_models import COMMON, FAMILIES, tiny_model  # noqa: E402

from runtime_adapter.apply import apply  # noqa: E402
from runtime_adapter.fakes.devices import fake_machine, fake_names  # noqa: E402

GIB = 2**30
MACHINE = load_hardware("8xA100-80GB")


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    name, own = FAMILIES[family]
    config: dict[str, Any] = getattr(transformers, f"{name}Config")(**{**COMMON, **own, **changes}).to_dict()
    return config


def spread(profile: ModelProfile, places: tuple[tuple[str, str], ...], ends: tuple[str, str]) -> Placement:
    """Layers take (attention, experts) from `places` in turn."""
    layers = []
    for i, layer in enumerate(profile.layers):
        attention, experts = places[i % len(places)]
        layers.append({"attention": attention, "experts": {experts: "all"} if layer.experts else {}})
    return Placement(embedding=ends[0], head=ends[1], layers=layers)


PLACES = {
    "together": ((("cuda:0", "cuda:0"),), ("cuda:0", "cuda:0")),
    "experts on the CPU": ((("cuda:0", "cpu"), ("cuda:1", "cpu")), ("cuda:0", "cuda:1")),
    "neighbours": ((("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")), ("cpu", "cpu")),
    "apart": ((("cuda:1", "cuda:2"),), ("cuda:0", "cuda:3")),
    "all on the CPU": ((("cpu", "cpu"),), ("cpu", "cpu")),
}


def check(
    config: dict[str, Any], plan: Placement, profile: ModelProfile, prompt: int, chunk: int, batch: int, new: int = 0
) -> DryRun:
    """Weights, KV and workspace of every device as the planner predicts them and as the forward needs them."""
    run = dry_run(plan, config, prompt_tokens=prompt, new_tokens=new, batch_size=batch, prefill_chunk=chunk)
    work = Workload(prompt_tokens=prompt, generated_tokens=new, batch_size=batch, prefill_chunk=chunk)
    memory = judge(plan, CostModel(profile, MACHINE, work)).memory
    windows = any(layer.attention.kv_window_tokens for layer in profile.layers)
    for device in plan.devices:
        held, last = memory[device], run.phases[-1].devices[device]
        assert held.weights_bytes == last.weights_bytes
        if windows and (new or chunk < prompt):
            assert run.kv_bytes[device] <= held.kv_bytes
        else:
            assert held.kv_bytes == last.kv_bytes
        assert run.workspace_bytes[device] <= held.workspace_bytes
        assert run.peak_bytes[device] <= held.used_bytes
    return run


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_predicted_bytes_are_those_of_the_forward(family: str, places: str) -> None:
    config = config_of(family)
    profile = read_hf_config(config, family, "bf16")
    plan = spread(profile, *PLACES[places])
    check(config, plan, profile, prompt=40, chunk=40, batch=1)
    check(config, plan, profile, prompt=40, chunk=16, batch=2, new=2)


def test_a_router_in_fp32_weighs_four_bytes_a_parameter() -> None:
    """ERNIE 4.5 creates its routers in fp32 whatever type the model is loaded as."""
    own = {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 16, "intermediate_size": 48}
    config = transformers.Ernie4_5_MoeConfig(**{**COMMON, **own}).to_dict()
    profile = read_hf_config(config, "ernie", "bf16")
    run = check(config, spread(profile, *PLACES["neighbours"]), profile, prompt=40, chunk=40, batch=1)
    router = 4 * (8 * 32 + 8)  # the matrix and the score correction
    model = transformers.AutoModelForCausalLM.from_config(transformers.Ernie4_5_MoeConfig(**{**COMMON, **own}))
    halves = sum(p.numel() for n, p in model.named_parameters() if ".mlp.gate." not in n) * 2
    moe = [layer for layer in profile.layers if layer.experts]
    assert sum(d.weights_bytes for d in run.phases[0].devices.values()) == halves + len(moe) * router


def test_kv_after_every_phase_of_a_model_with_windows() -> None:
    """A layer that slides over 4 tokens keeps three, but the storage of the whole step until the next one."""
    config = config_of("gpt_oss")
    profile = read_hf_config(config, "gpt_oss", "bf16")
    plan = spread(profile, *PLACES["together"])
    run = dry_run(plan, config, prompt_tokens=20, prefill_chunk=8, new_tokens=2)
    token = profile.layers[0].attention.kv_bytes_per_token
    assert [layer.attention.kv_window_tokens for layer in profile.layers] == [4, None, 4]
    kept = [8 + 2 * 8, 16 + 2 * 11, 20 + 2 * 7, 21 + 2 * 4, 22 + 2 * 4]
    assert [phase.devices["cuda:0"].kv_bytes for phase in run.phases] == [n * token for n in kept]
    assert [(phase.name, phase.tokens, phase.context_tokens) for phase in run.phases] == [
        ("prefill 1", 8, 8),
        ("prefill 2", 8, 16),
        ("prefill 3", 4, 20),
        ("decode 1", 1, 21),
        ("decode 2", 1, 22),
    ]


def test_linear_attention_keeps_a_state() -> None:
    config = transformers.Qwen3NextConfig(
        **{**COMMON, "num_hidden_layers": 4, "head_dim": 8, "num_key_value_heads": 2, "intermediate_size": 48},
        **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 8},
        **{"num_experts_per_tok": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
        **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ).to_dict()
    profile = read_hf_config(config, "qwen3_next", "bf16")
    for places in PLACES.values():
        check(config, spread(profile, *places), profile, prompt=70, chunk=40, batch=2, new=1)


def test_every_expert_of_llama_4_is_given_every_token() -> None:
    config = transformers.Llama4TextConfig(
        **{**COMMON, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48},
        **{"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2},
        intermediate_size_mlp=64,
        attention_chunk_size=16,
    ).to_dict()
    profile = read_hf_config(config, "llama4", "bf16")
    for places in PLACES.values():
        check(config, spread(profile, *places), profile, prompt=40, chunk=40, batch=1)


def cut(model: str, layers: int) -> dict[str, Any]:
    """The preset's config.json with its first layers only: every size but the depth as in the model."""
    config = model_config_preset(model) or {}
    text = config.get("text_config", config)
    text["num_hidden_layers"] = layers
    for key in ("layer_types", "no_rope_layers"):
        if isinstance(text.get(key), list):
            text[key] = text[key][:layers]
    return config


@pytest.mark.parametrize(
    "model",
    [
        *("deepseek-v2", "mixtral-8x22b", "qwen3-235b-a22b", "gpt-oss-120b", "glm-4.5", "llama-4-scout", "olmoe-1b-7b"),
        *("qwen3-next-80b-a3b-thinking", "qwen1.5-moe-a2.7b", "llama-3.1-70b"),
    ],
)
def test_workspace_is_above_what_full_width_layers_need_and_near_it(model: str) -> None:
    config = cut(model, 4)
    profile = read_hf_config(config, model, "bf16")
    for places in ("together", "apart"):
        plan = spread(profile, *PLACES[places])
        for prompt, chunk in ((1024, 1024), (1536, 512)):
            run = dry_run(plan, config, prompt_tokens=prompt, prefill_chunk=chunk, new_tokens=1)
            work = Workload(prompt_tokens=prompt, generated_tokens=1, prefill_chunk=chunk)
            memory = judge(plan, CostModel(profile, MACHINE, work)).memory
            for device in plan.devices:
                measured, predicted = run.workspace_bytes[device], memory[device].workspace_bytes
                assert measured <= predicted <= max(1.25 * measured, measured + GIB // 8), (places, prompt, device)


def test_a_full_size_model_takes_seconds_and_its_weights_no_memory() -> None:
    """DeepSeek-V3, 61 layers and 1.3 TB: every layer runs."""
    config, profile = model_config_preset("deepseek-v3") or {}, load_profile("deepseek-v3", quant="bf16")
    places = (("cuda:0", "cuda:0"), ("cuda:1", "cpu"), ("cuda:2", "cuda:0"))
    plan = spread(profile, places, ("cuda:0", "cuda:2"))
    run = check(config, plan, profile, prompt=2048, chunk=2048, batch=1)
    work = Workload(prompt_tokens=2048, generated_tokens=0, prefill_chunk=2048)
    memory = judge(plan, CostModel(profile, MACHINE, work)).memory
    for device in plan.devices:
        measured, predicted = run.workspace_bytes[device], memory[device].workspace_bytes
        assert measured <= predicted <= max(1.25 * measured, measured + GIB // 2)
    assert sum(run.weights_bytes.values()) == profile.weight_bytes > 10**12
    (phase,) = run.phases
    hidden = 2048 * 7168 * 2
    routing = 2048 * 8 * (8 + 4)
    on_cpu = sum(1 for i, layer in enumerate(plan.layers) if "cpu" in layer.experts)
    assert phase.moved_bytes["cuda:1", "cpu"] == on_cpu * (hidden + routing)
    assert phase.moved_bytes["cpu", "cuda:1"] == on_cpu * hidden


@pytest.mark.parametrize("family", ["deepseek_v2", "qwen3_moe", "mixtral"])
def test_peaks_and_copies_are_those_of_a_run_with_real_arithmetic(family: str) -> None:
    """The same tiny model on virtual GPUs that compute: what fake tensors count is what real ones hold."""
    config = config_of(family)
    profile = read_hf_config(config, family, "bf16")
    plan = spread(profile, (("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")), ("cuda:0", "cuda:1"))
    run = dry_run(plan, config, prompt_tokens=12, new_tokens=0)
    torch.manual_seed(0)
    kind = getattr(transformers, f"{FAMILIES[family][0]}ForCausalLM")
    model = kind._from_config(tiny_model(family).config, dtype=torch.bfloat16).eval()  # rotary tables stay in fp32
    devices = {f"cuda:{i}": f"vgpu:{i}" for i in range(2)}
    with vgpu.ledger() as ledger, torch.no_grad(), apply(plan, model, devices=devices):
        gc.collect()
        ledger.peak = ledger.live.copy()
        ledger.copied.clear()
        cache = transformers.DynamicCache(config=model.config)
        model(torch.zeros((1, 12), dtype=torch.long), past_key_values=cache, use_cache=True, logits_to_keep=1)
        for name, virtual in devices.items():
            assert run.peak_bytes[name] == ledger.peak[torch.device(virtual)]
        moved = run.phases[0].moved_bytes["cuda:0", "cuda:1"]
        assert moved == ledger.copied[torch.device("vgpu:0"), torch.device("vgpu:1")]


def test_a_model_gives_its_class_and_config_and_is_left_alone() -> None:
    model = tiny_model("mixtral")
    before = {name: (id(p), p.dtype, p.clone()) for name, p in model.named_parameters()}
    plan = spread(read_hf_config(config_of("mixtral"), "mixtral", "bf16"), *PLACES["neighbours"])
    runs = [dry_run(plan, source) for source in (model, model.config, config_of("mixtral"))]
    assert runs[0] == runs[1] == runs[2]
    for name, parameter in model.named_parameters():
        identity, dtype, value = before[name]
        assert (id(parameter), parameter.dtype) == (identity, dtype)
        assert torch.equal(parameter, value)


def test_tied_weights_are_held_once_on_one_device() -> None:
    config = config_of("qwen3_moe", tie_word_embeddings=True)
    profile = read_hf_config(config, "tied", "bf16")
    for name in ("together", "apart"):
        check(config, spread(profile, *PLACES[name]), profile, prompt=12, chunk=12, batch=1)


def test_a_quantised_config_runs_in_bf16() -> None:
    config = {**config_of("deepseek_v3"), "quantization_config": {"quant_method": "fp8"}, "dtype": "float32"}
    profile = read_hf_config(config, "v3", "bf16")
    check(config, spread(profile, *PLACES["together"]), profile, prompt=12, chunk=12, batch=1)


def test_nothing_is_left_after_a_run_and_runs_do_not_add_up() -> None:
    config = config_of("deepseek_v2")
    plan = spread(read_hf_config(config, "v2", "bf16"), *PLACES["neighbours"])
    first = dry_run(plan, config, prompt_tokens=16, new_tokens=1)
    assert dry_run(plan, config, prompt_tokens=16, new_tokens=1) == first
    with fake_machine() as ledger:
        kept = torch.empty(1000, device=fake_names(["cuda:3"])["cuda:3"])
        view = kept[10:20]
        del kept
        assert ledger.live[view.device] == 4000
        del view
        torch.empty(10, device="cpu")
        assert not any(ledger.live.values())
        assert sum(event.size for event in ledger.events) == 0
    assert type(torch.empty(1)) is torch.Tensor


def test_the_cap_of_a_device_names_it_and_the_phase() -> None:
    config = config_of("mixtral")
    plan = spread(read_hf_config(config, "mixtral", "bf16"), *PLACES["experts on the CPU"])
    run = dry_run(plan, config, prompt_tokens=64, new_tokens=0)
    fits = {"cuda:0": run.peak_bytes["cuda:0"], "cpu": run.peak_bytes["cpu"]}
    assert dry_run(plan, config, prompt_tokens=64, new_tokens=0, caps=fits) == run
    with pytest.raises(ApplyError, match=r"^prefill 1: .*cuda:0.*mend the plan$") as problem:
        dry_run(plan, config, prompt_tokens=64, caps={"cuda:0": run.peak_bytes["cuda:0"] - 1})
    assert "\n" not in str(problem.value)
    assert "vgpu" not in str(problem.value)
    with pytest.raises(ApplyError, match=r"^cuda:1: the weights take \d+ of 1000 bytes"):
        dry_run(plan, config, caps={"cuda:1": 1000})


def test_a_cap_holds_on_a_device_without_weights_too() -> None:
    config = config_of("mixtral")
    plan = spread(read_hf_config(config, "mixtral", "bf16"), *PLACES["together"])
    with pytest.raises(ApplyError, match=r"^prefill 1: .* of 100 bytes on cpu"):
        dry_run(plan, config, prompt_tokens=64, caps={"cpu": 100})


def test_tensors_on_two_devices_raise_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime_adapter.placing import hooks

    monkeypatch.setattr(hooks.SendBack, "__call__", lambda self, module, args, output: output)
    config = config_of("mixtral")
    plan = spread(read_hf_config(config, "mixtral", "bf16"), *PLACES["neighbours"])
    with pytest.raises(ApplyError, match=r"^prefill 1: .*cuda:0.*mend the plan$") as problem:
        dry_run(plan, config)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens: 0"),
        ({"prompt_tokens": 1.5}, "prompt_tokens: 1.5"),
        ({"new_tokens": -1}, "new_tokens: -1"),
        ({"batch_size": True}, "batch_size: True"),
        ({"prefill_chunk": 0}, "prefill_chunk: 0"),
    ],
)
def test_bad_numbers_are_refused(changes: dict[str, Any], words: str) -> None:
    plan = spread(read_hf_config(config_of("mixtral"), "mixtral", "bf16"), *PLACES["together"])
    with pytest.raises(ApplyError, match=words):
        dry_run(plan, config_of("mixtral"), **changes)


def test_a_plan_for_another_model_and_a_thing_that_is_no_model_are_refused() -> None:
    plan = spread(read_hf_config(config_of("mixtral"), "mixtral", "bf16"), *PLACES["together"])
    with pytest.raises(ApplyError, match="plan for this model"):
        dry_run(plan, config_of("mixtral", num_hidden_layers=2))
    with pytest.raises(ApplyError, match="got int"):
        dry_run(plan, 7)
    with pytest.raises(ProfileError, match="model_type"):
        dry_run(plan, {"model_type": "no-such"})


def test_without_another_made_up_device_its_own_is_registered() -> None:
    """In this process the virtual GPUs of the tests came first; elsewhere nobody makes a device but dry_run."""
    code = (
        "from runtime_adapter import dry_run\n"
        "from profiles.placement import Placement\n"
        "import sys\n"
        "assert 'torch' not in sys.modules\n"
        "config = {'model_type': 'llama', 'hidden_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 4,"
        " 'intermediate_size': 48, 'vocab_size': 96}\n"
        "plan = Placement(embedding='cpu', head='cuda:1', layers=[{'attention': 'cuda:0'}])\n"
        "run = dry_run(plan, config)\n"
        "import torch\n"
        "print(torch._C._get_privateuse1_backend_name(), run.kv_bytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "vgpu {'cpu': 0, 'cuda:0': 65664, 'cuda:1': 0}\n", done.stderr
