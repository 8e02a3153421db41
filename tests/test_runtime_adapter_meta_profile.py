"""The reader of everything transformers knows: totals, caches, cross-checks with the built-in families, refusals."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import pytest

from profiles.block_bytes import profile_of
from profiles.errors import ProfileError
from profiles.formats.door import stored_as
from profiles.hf_config.reader import read_hf_config, source_of
from profiles.model import ModelProfile
from profiles.presets import model_config_preset

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from runtime_adapter.meta.profile import read_config  # noqa: E402 - needs torch

BASE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}
BASE |= {"intermediate_size": 80}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_head": 16, "mamba_n_heads": 8}
DBRX = {
    "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 10000.0},
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 4,
}
DBRX |= {"ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}, "vocab_size": 96}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 16, "sliding_window": 50},
    "gemma3_text": {"head_dim": 16, "sliding_window": 50},
    "gemma4_text": {},
    "cohere2": {"sliding_window": 50},
    "olmo3": {"sliding_window": 50},
    "phi3": {"pad_token_id": 0},
    "starcoder2": {},
    "exaone4": {"sliding_window": 50},
    "afmoe": MOE | {"num_experts": 8, "head_dim": 16, "sliding_window": 50},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0},
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "granitemoehybrid": {"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 48}
    | {"layer_types": ["mamba", "mamba", "attention", "mamba"]}
    | MAMBA,
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": [2, 3, 2, 3], "head_dim": 16},
    "lfm2_moe": MOE
    | {"num_experts": 8, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3},
    "exaone_moe": MOE | {"num_experts": 8, "head_dim": 16, "sliding_window": 50},
    "solar_open": MOE | {"n_routed_experts": 8, "head_dim": 16},
    "jamba": {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "minimax": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "deepseek_v32": MOE | LATENT | {"n_routed_experts": 8, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
    "bailing_hybrid": MOE
    | {"num_experts": 8, "n_group": 1, "topk_group": 1, "pad_token_id": 0, "num_hidden_layers": 6},
    "dbrx": DBRX,
}


def config_of(family: str) -> dict[str, Any]:
    own = FAMILIES[family]
    return {"model_type": family, **({} if family == "dbrx" else BASE), **own}


def native_model(config: dict[str, Any], device: str = "meta") -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = {key: value for key, value in config.items() if key != "model_type"}
    settings = CONFIG_MAPPING[config["model_type"]](**values)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()


def by_transformers(config: dict[str, Any], quant: str = "bf16") -> ModelProfile:
    """The profile as this reader makes it, also of families that are built in."""
    tensors = read_config(config)
    return profile_of(tensors, stored_as(tensors, quant), "model", source_of(config, quant))


def params_of(profile: ModelProfile) -> int:
    return sum(block.params or 0 for block in profile.blocks) - profile.tied_bytes // 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_the_block_its_name_says(family: str) -> None:
    config = config_of(family)
    profile, model = by_transformers(config), native_model(config)
    assert params_of(profile) == sum(parameter.numel() for parameter in model.parameters())
    assert profile.weight_bytes == sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    layered: Counter[tuple[int, bool]] = Counter()
    for name, parameter in model.named_parameters():
        words = name.split(".")
        index = next((int(word) for word in words if word.isdigit()), None)
        if index is not None:
            layered[index, "experts" in words and "shared" not in name] += parameter.numel()
    for index, layer in enumerate(profile.layers):
        assert layer.attention.params == layered[index, False]
        assert (layer.experts.params if layer.experts else 0) == layered[index, True]


RECURRENT = {"granitemoehybrid", "jamba", "minimax", "bailing_hybrid"}
"""Their prompts need kernels or options that this machine may lack, or caches of their own."""


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in RECURRENT])
def test_cache_bytes_are_those_of_a_real_prompt(family: str) -> None:
    """100 tokens are more than any window here, of which transformers keeps one token less."""
    config, tokens = config_of(family), 100
    profile, model = by_transformers(config), native_model(config, "cpu")
    held = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.ones((1, tokens), dtype=torch.long), past_key_values=held, use_cache=True)
    for layer, cached in zip(profile.layers, held.layers, strict=True):
        values = [x for v in vars(cached).values() for x in (v.values() if isinstance(v, dict) else [v])]
        tensors = [x for x in values if isinstance(x, torch.Tensor) and x.is_floating_point()]
        window = layer.attention.kv_window_tokens
        kept = min(tokens, window - 1) if window else tokens
        expected = kept * layer.attention.kv_bytes_per_token + layer.attention.state_bytes
        assert sum(x.numel() * x.element_size() for x in tensors) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("deepseek-v2-lite", "deepseek-v3", "gpt-oss-120b", "llama-4-scout", "qwen3-next-80b-a3b-thinking"),
        *("glm-4.5-air", "mixtral-8x7b", "olmoe-1b-7b", "qwen1.5-moe-a2.7b", "qwen3-30b-a3b", "llama-3.1-8b"),
    ],
)
def test_built_in_families_and_transformers_agree_on_every_figure(name: str) -> None:
    """Two derivations that share no shapes: bytes, parameters, cache, FLOPs and workspace of every block."""
    config, tensors = model_config_preset(name) or {}, read_config(model_config_preset(name) or {})
    for quant in ("int4", "q4_k_m", "gpu=marlin,cpu=q8_0"):
        if not any(layer.experts for layer in tensors.layers) and "marlin" in quant:
            continue
        built_in = read_hf_config(config, name, quant).to_dict()
        read = profile_of(tensors, stored_as(tensors, quant), name, source_of(config, quant)).to_dict()
        for document in (built_in, read):
            document.pop("notes", None)
            for key in ("mtp", "mtp_layers"):  # of layers that transformers leaves out
                document.pop(key, None)
        assert built_in == read


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (
            {"model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352}
            | {"attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000}}
            | {"ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4}},
            131.597,
        ),
        (
            {"model_type": "minimax", "hidden_size": 6144, "intermediate_size": 9216, "num_hidden_layers": 80}
            | {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 32}
            | {"num_experts_per_tok": 2, "vocab_size": 200064, "rope_theta": 1e7}
            | {"layer_types": (["linear_attention"] * 7 + ["full_attention"]) * 10},
            456.090,
        ),
        (
            {"model_type": "jamba", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 65536}
            | {"num_experts": 16, "num_experts_per_tok": 2, "num_attention_heads": 32, "num_key_value_heads": 8}
            | {"intermediate_size": 14336, "attn_layer_offset": 4, "attn_layer_period": 8, "mamba_dt_rank": 256},
            51.570,
        ),
    ],
    ids=["dbrx", "minimax-text-01", "jamba"],
)
def test_full_size_totals_are_the_published_ones(config: dict[str, Any], billions: float) -> None:
    profile = by_transformers(config)
    assert round(profile.weight_bytes / 2e9, 3) == billions
    assert all(layer.experts is None or layer.experts.active < layer.experts.count for layer in profile.layers)


def test_sizes_left_to_the_class_are_noted() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    profile = read_hf_config({"model_type": "gemma3", "text_config": text}, "gemma")
    assert any("vocab_size 262208" in note for note in profile.notes)


def test_active_experts_may_differ_by_layer() -> None:
    profile = by_transformers(config_of("hunyuan_v1_moe"))
    assert [layer.experts.active for layer in profile.layers if layer.experts] == [2, 3, 2, 3]


def test_only_the_text_of_a_model_of_more_is_planned() -> None:
    text = BASE | MOE | {"model_type": "qwen3_vl_moe_text", "num_experts": 8, "head_dim": 16}
    text |= {"rope_scaling": {"mrope_section": [4, 2, 2], "rope_type": "default"}}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
    vision |= {"deepstack_visual_indexes": [0]}
    profile = by_transformers({"model_type": "qwen3_vl_moe", "text_config": text, "vision_config": vision})
    assert profile.layers[0].experts is not None
    assert any("model.visual" in note for note in profile.notes)
    bare = {"model_type": "qwen3_moe", **BASE, **MOE, "num_experts": 8, "head_dim": 16}
    assert params_of(profile) == params_of(by_transformers(bare))


def test_the_cache_of_compressed_attention_stays_below_its_line() -> None:
    """DeepSeek-V4 caches one entry every so many tokens; the line used must not be below what any prompt holds."""
    profile = by_transformers({"model_type": "deepseek_v4", **_small_v4()})
    assert any("grows by steps" in note for note in profile.notes)
    from runtime_adapter.meta.model import _is_fused_experts
    from runtime_adapter.meta.run import forward

    model = native_model({"model_type": "deepseek_v4", **_small_v4()})
    skipped = [m for m in model.modules() if _is_fused_experts(m, model.config)]
    for tokens in (1, 127, 1000, 20000):
        run = forward(model, tokens, transformers.DynamicCache(config=model.config), skipped)
        for layer, module in zip(profile.layers, model.model.layers, strict=True):
            held = sum(part.small_bytes + part.fp32_bytes for part in run.held[id(module)].values())
            assert held <= layer.attention.state_bytes + tokens * layer.attention.kv_bytes_per_token


def _small_v4() -> dict[str, Any]:
    settings = transformers.models.auto.configuration_auto.CONFIG_MAPPING["deepseek_v4"]().to_dict()
    short = {"num_hidden_layers": 6, "vocab_size": 512, "hidden_size": 256}
    cut = {key: value[:6] for key, value in settings.items() if isinstance(value, list) and len(value) == 43}
    return {key: value for key, value in settings.items() if key != "model_type"} | cut | short


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "t5", "d_model": 64, "vocab_size": 96}, "encoder"),
        ({"model_type": "bert", **BASE}, "model_type"),
        ({"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 2}, "vit"),
        ({"model_type": "gemma2", **BASE, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"model_type": "gemma2", **BASE, "intermediate_size": 0}, "size of 0"),
        ({"model_type": "gemma2", **BASE, "quantization_config": {"quant_method": "odd"}}, "quant="),
        ({"model_type": "gemma3", "text_config": None}, "text_config"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 64}}, "text_config.num_hidden_layers"),
        ({"model_type": "ernie4_5_moe", **BASE, "moe_num_experts": 10**6} | MOE, "moe_num_experts"),
        ({"model_type": "dbrx", "d_model": 64, "n_layers": 2}, "_config"),
        ({"model_type": "gemma2", "num_hidden_layers": 2, "vocab_size": 96}, "hidden_size"),
        ({"model_type": "gemma2", **BASE, "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "gemma2", **BASE, "num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"model_type": "gemma2", **BASE, "intermediate_size": 10**15}, "intermediate_size"),
        ({"model_type": "granitemoe", **BASE, "num_local_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"model_type": "zamba2", **BASE, **{"num_hidden_layers": 14}}, ""),
        ({"model_type": "exists_nowhere", **BASE}, "exists_nowhere"),
    ],
)
def test_what_is_not_certain_is_refused_in_one_line(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ProfileError) as caught:
        read_hf_config(config, "bad")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_remote_code_and_network_are_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    remote = {"auto_map": {"AutoConfig": "evil/repo--configuration.Evil", "AutoModelForCausalLM": "evil/repo--m.Evil"}}
    config = config_of("granitemoe") | remote | {"_name_or_path": "evil/repo", "_attn_implementation": "evil/kernel"}
    assert by_transformers(config).layers[0].experts is not None


def test_reading_leaves_the_config_and_transformers_as_they_were() -> None:
    import logging

    from huggingface_hub import constants

    config = config_of("granitemoe")
    before = (dict(config), constants.HF_HUB_OFFLINE, logging.getLogger("transformers").level)
    by_transformers(config)
    assert before == (config, constants.HF_HUB_OFFLINE, logging.getLogger("transformers").level)
