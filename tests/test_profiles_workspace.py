"""Closed forms of transient bytes: exact where the code was read to the byte, and how they must behave. No torch."""

from __future__ import annotations

from typing import Any

import pytest

from cost_models.memory import workspace_bytes
from profiles import Workload, load_profile
from profiles.hf_config.reader import model_tensors, read_hf_config
from profiles.model import Attention, ModelProfile, Workspace
from profiles.presets import model_config_preset
from profiles.workspace import BUFFER_BYTES, Surroundings, experts_workspace, surroundings

MIB = 2**20

# Most bytes alive beyond weights and KV, as transformers 5.23's forward on fake tensors needed them (torch 2.13, bf16,
# prompt of 2048 tokens read whole or by 512; each kind of block on a device of its own; first four layers).
MEASURED = {
    "deepseek-v2": {"attention": (602_685_440, 327_880_704), "experts": (776_488_192, 194_123_008)},
    "mixtral-8x22b": {"attention": (160_448_512, None), "experts": (612_515_904, None)},
    "qwen3-235b-a22b": {"attention": (203_440_128, 93_589_504), "experts": (554_304_512, 138_576_896)},
    "gpt-oss-120b": {"attention": (1_702_379_536, 449_317_904), "experts": (483_918_848, 120_980_480)},
    "glm-4.5": {"attention": (304_104_704, None), "experts": (1_028_326_656, None)},
    "qwen3-next-80b-a3b-thinking": {"attention": (509_763_584, 130_655_232), "experts": (344_756_224, 86_192_128)},
    "llama-4-scout": {"attention": (856_834_072, None), "experts": (2_483_027_968, None)},
    "olmoe-1b-7b": {"attention": (76_562_432, None), "experts": (277_479_936, None)},
    "llama-3.1-70b": {"attention": (454_049_792, None)},
}
CASES = [(model, part) for model, parts in MEASURED.items() for part in parts]


def most(profile: ModelProfile, part: str, **work: Any) -> int:
    """The workspace of the neediest block of a kind."""
    workload = Workload(**{"prompt_tokens": 2048, "generated_tokens": 0, "prefill_chunk": 2048, **work})
    blocks = [getattr(layer, part) for layer in profile.layers]
    return max(workspace_bytes(block, profile, workload) for block in blocks if block is not None)


@pytest.mark.parametrize(("model", "part"), CASES)
def test_forms_are_just_above_what_was_measured(model: str, part: str) -> None:
    profile = load_profile(model, quant="bf16")
    whole, by_chunks = MEASURED[model][part]
    assert whole is not None
    assert whole <= most(profile, part) <= 1.25 * whole
    if by_chunks is not None:
        assert by_chunks <= most(profile, part, prefill_chunk=512) <= 1.25 * by_chunks


def test_experts_form_is_exact_but_for_what_may_share_their_device() -> None:
    """776,488,192 bytes on a device with nothing but DeepSeek-V2's experts; the form adds what it says it adds."""
    tensors = model_tensors(model_config_preset("deepseek-v2") or {})
    around = surroundings(tensors, 2)
    experts = tensors.layers[5].experts
    assert experts is not None
    form = experts_workspace(experts, around)
    beside = 4 * 5120 * 2 + around.tables + 4 * 160  # the layer's vectors, tables, router logits
    fixed = BUFFER_BYTES + 102_400 * 2
    assert form.per_token * 2048 + form.per_sequence - fixed == 776_488_192 + beside * 2048


def test_nothing_needs_less_when_more_is_read() -> None:
    for model in ("deepseek-v3", "gpt-oss-120b", "llama-4-scout", "qwen3-next-80b-a3b-thinking"):
        profile = load_profile(model, quant="bf16")
        for part in ("attention", "experts"):
            sizes = [most(profile, part, prompt_tokens=4096, prefill_chunk=chunk) for chunk in (1, 64, 512, 4096)]
            assert sizes == sorted(sizes)
            longer = [most(profile, part, context_tokens=n) for n in (2048, 4096, 65536)]
            assert longer == sorted(longer)
            assert most(profile, part, batch_size=3) == 3 * most(profile, part)


def test_masks_and_repeated_heads_come_only_where_a_chunk_meets_a_cache() -> None:
    profile = load_profile("qwen3-235b-a22b", quant="bf16")
    whole = {"prompt_tokens": 512, "prefill_chunk": 512}
    far = most(profile, "attention", **whole, context_tokens=32_768)
    assert most(profile, "attention", **whole) < far
    repeated = 2 * 64 * 128 * 2 * 32_768
    assert repeated < far < repeated + 256 * MIB
    latent = load_profile("deepseek-v3", quant="bf16")
    expanded = 128 * (128 + 128 + 128 + 64) * 2
    longer = most(latent, "attention", context_tokens=65_536) - most(latent, "attention", context_tokens=32_768)
    assert longer == (expanded + 2048) * 32_768  # the whole cache is expanded, and the mask has one byte a pair


def test_scores_exist_only_where_attention_is_not_fused() -> None:
    fused = load_profile("glm-4.5", quant="bf16")
    sinks = load_profile("gpt-oss-120b", quant="bf16")
    assert most(sinks, "attention") > 3 * 64 * 2 * 2048**2
    assert most(fused, "attention") < 96 * 2 * 2048**2
    windowed, full = (layer.attention for layer in sinks.layers[:2])
    chunks = Workload(prompt_tokens=65_536, generated_tokens=0, prefill_chunk=512)
    assert windowed.kv_window_tokens == 128
    assert workspace_bytes(windowed, sinks, chunks) < workspace_bytes(full, sinks, chunks) / 20


def test_unusual_habits_are_known_by_the_architecture() -> None:
    scout = read_hf_config(model_config_preset("llama-4-scout") or {}, "scout", "bf16")
    hidden, width, experts = 5120, 8192, 16
    assert most(scout, "experts") > 2048 * experts * (hidden + 4 * width) * 2
    qwen = model_tensors(model_config_preset("qwen1.5-moe-a2.7b") or {})
    assert surroundings(qwen, 2).windows
    assert not any(layer.cache.window_tokens for layer in qwen.layers)


def test_an_unknown_recurrence_and_an_empty_layer_have_a_form() -> None:
    from profiles.tensors import Cache, LayerTensors, Tensor
    from profiles.workspace import attention_workspace, embedding_workspace, head_workspace

    around = Surroundings(hidden=64, vocab=100, value=2)
    mamba = LayerTensors((Tensor("model.layers.0.mamba.in_proj.weight", (256, 64), True),), Cache(state_values=1000))
    form = attention_workspace(mamba, around)
    assert form.per_token >= 3 * 2 * (256 - 64)
    assert form.per_sequence >= BUFFER_BYTES + 3 * 2 * 1000
    for form in (attention_workspace(LayerTensors((), Cache()), around), embedding_workspace(around)):
        assert form.per_token > 64 * 2
    assert head_workspace(around).per_sequence == BUFFER_BYTES + 100 * (2 + 4)


def test_a_profile_keeps_its_moments_when_written() -> None:
    profile = load_profile("gpt-oss-120b", quant="bf16")
    again = ModelProfile.from_dict(profile.to_dict())
    assert again == profile
    attention = again.layers[0].attention
    assert isinstance(attention, Attention)
    assert isinstance(attention.workspace_bytes, Workspace)
    assert len(attention.workspace_bytes.moments) > 1
