"""Built-in families against transformers on the meta device, tensor formats against their arithmetic, bad configs."""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from profiles.errors import ProfileError
from profiles.formats.by_shape import tensor_bytes
from profiles.hf_config.reader import model_tensors, read_hf_config
from profiles.model import ModelProfile
from profiles.presets import model_config_preset, model_config_presets
from profiles.tensors import Tensor

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from family_configs import CONFIGS  # noqa: E402
from family_judge import blocks_of_ours, blocks_of_transformers  # noqa: E402

SMALL = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 128,
}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
LATENT |= {"num_key_value_heads": 4, "head_dim": None}
GROUPS = {"n_routed_experts": 8, "n_shared_experts": 2, "n_group": 1, "topk_group": 1}
DELTA = {f"linear_{key}": n for key, n in {"conv_kernel_dim": 4, "key_head_dim": 8, "value_head_dim": 16}.items()}
DELTA |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "shared_expert_intermediate_size": 48}
VARIANTS: list[dict[str, Any]] = [
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    {"model_type": "mistral", "sliding_window": 32},
    {"model_type": "mistral", "sliding_window": None},
    {"model_type": "seed_oss", "attention_out_bias": True},
    {"model_type": "qwen2", "head_dim": 16, "tie_word_embeddings": True},
    {"model_type": "qwen2", "head_dim": 16, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    {"model_type": "qwen3", "attention_bias": True, "layer_types": ["full_attention", "sliding_attention"] * 2}
    | {"use_sliding_window": True, "sliding_window": 8},
    {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": 24},
    {"model_type": "phimoe", "num_local_experts": 4, "attention_bias": True, "lm_head_bias": True, "head_dim": None},
    {"model_type": "minimax_m2", "num_local_experts": 4},
    {"model_type": "olmoe", "head_dim": None, "attention_bias": True},
    {"model_type": "qwen2_moe", "head_dim": None, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 2},
    {"model_type": "qwen2_moe", "head_dim": None, "shared_expert_intermediate_size": 48, "qkv_bias": False}
    | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    {"model_type": "qwen3_moe", "mlp_only_layers": [1, 3], "attention_bias": True},
    {"model_type": "qwen3_moe", "use_sliding_window": True, "sliding_window": 8, "decoder_sparse_step": 3},
    {"model_type": "qwen3_next", **DELTA},
    {"model_type": "qwen3_next", **DELTA, "layer_types": ["full_attention"] + ["linear_attention"] * 3},
    {"model_type": "deepseek_v2", **LATENT, **GROUPS, "first_k_dense_replace": 1, "attention_bias": True},
    {"model_type": "deepseek_v2", **LATENT, **GROUPS, "q_lora_rank": None, "mlp_bias": True}
    | {"first_k_dense_replace": 2},
    {"model_type": "deepseek_v3", **LATENT, **GROUPS, "first_k_dense_replace": 9, "tie_word_embeddings": True},
    {"model_type": "glm4_moe", **GROUPS, "use_qk_norm": True, "first_k_dense_replace": 0},
    {"model_type": "glm4_moe_lite", **LATENT, **GROUPS},
    {"model_type": "glm4_moe_lite", **LATENT, **GROUPS, "mlp_layer_types": ["sparse", "dense", "sparse", "dense"]},
    {"model_type": "dots1", **GROUPS, "sliding_window": 16, "max_window_layers": 2, "attention_bias": True},
    {"model_type": "gpt_oss", "num_local_experts": 4, "attention_bias": False, "sliding_window": 16},
    {"model_type": "llama4_text", "num_local_experts": 4, "intermediate_size_mlp": 80, "interleave_moe_layer_step": 2}
    | {"attention_chunk_size": 16},
    {"model_type": "llama4_text", "num_local_experts": 4, "intermediate_size_mlp": 80, "moe_layers": [0]}
    | {"no_rope_layers": [1, 0, 1, 1], "attention_chunk_size": 16},
]


def as_config(variant: dict[str, Any]) -> dict[str, Any]:
    """A whole small config; None for `head_dim` means that the family has no such key."""
    merged = SMALL | variant
    other_count = bool({"num_local_experts", "n_routed_experts"} & variant.keys()) and "num_experts" not in variant
    unused = {"num_experts"} if other_count else set()
    unused |= {"head_dim"} if merged["head_dim"] is None else set()
    return {key: value for key, value in merged.items() if key not in unused}


def native(config: dict[str, Any]) -> Any:
    """transformers' own config object, from the config alone."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = {k: v for k, v in config.items() if k not in ("_source", "auto_map", "quantization_config", "model_type")}
    family = {"kimi_k2": "deepseek_v3"}.get(config["model_type"], config["model_type"])
    if family == "llama4":
        family, values = "llama4_text", {k: v for k, v in config["text_config"].items() if k != "model_type"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CONFIG_MAPPING[family](**values)


def meta_model(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(native(config), dtype=torch.bfloat16)


def counted_by_transformers(model: Any) -> tuple[Counter[object], int]:
    """Parameters of each block by the words in their names, and the total; ties count in both blocks, once in all."""
    found: Counter[object] = Counter()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        words = name.split(".")
        if "embed_tokens" in words:
            found["embedding"] += parameter.numel()
        elif "layers" not in words:
            found["head"] += parameter.numel()
        else:
            found[int(words[2]), "experts" if "experts" in words else "attention"] += parameter.numel()
    return found, sum(parameter.numel() for parameter in model.parameters())


def counted_by_profile(profile: ModelProfile) -> Counter[object]:
    found: Counter[object] = Counter({"embedding": profile.embedding.params or 0, "head": profile.head.params or 0})
    for index, layer in enumerate(profile.layers):
        found[index, "attention"] = layer.attention.params or 0
        if layer.experts is not None:
            found[index, "experts"] = layer.experts.params or 0
    return found


def assert_exact(config: dict[str, Any]) -> None:
    profile = read_hf_config(config, "model", "bf16")
    expected, total = counted_by_transformers(meta_model(config))
    assert counted_by_profile(profile) == expected
    assert profile.weight_bytes == 2 * total
    assert all(block.weight_bytes.gpu == block.weight_bytes.cpu == 2 * (block.params or 0) for block in profile.blocks)


OTHER_CODE = {
    "grok-2": "its model_type is that of a vision model",
    "ling-2.5-1t": "the code beside its weights is not that of transformers' type",
    "step-3.7-flash": "a flat file, which transformers' class of a nested one does not read",
}
"""Presets of a type that transformers knows whose files are not for its class."""


def presets_of_transformers() -> list[str]:
    """The first preset of each type that transformers has a class for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    first: dict[str, str] = {}
    for name in model_config_presets():
        first.setdefault((model_config_preset(name) or {}).get("model_type", ""), name)
    return [name for family, name in first.items() if family in CONFIG_MAPPING and name not in OTHER_CODE]


@pytest.mark.parametrize("name", presets_of_transformers())
def test_a_preset_of_every_type_has_the_parameters_of_transformers_block_by_block(name: str) -> None:
    config = model_config_preset(name) or {}
    plain = {k: v for k, v in config.items() if not k.startswith("_") and k not in ("quantization_config", "auto_map")}
    assert blocks_of_ours(model_tensors(config)) == blocks_of_transformers(plain)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v["model_type"])
def test_every_option_that_changes_shapes_is_followed(variant: dict[str, Any]) -> None:
    assert_exact(as_config(variant))


def cached_after(config: dict[str, Any], tokens: int) -> list[tuple[int, int]]:
    """(bytes, tokens) that transformers' own cache holds in each layer after a real prompt, one sequence, bf16."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(native(config), dtype=torch.bfloat16).eval()
    with torch.no_grad():
        held = transformers.DynamicCache(config=model.config)
        model(input_ids=torch.zeros((1, tokens), dtype=torch.long), past_key_values=held, use_cache=True)
    result = []
    for layer in held.layers:
        values = [x for v in vars(layer).values() for x in (v.values() if isinstance(v, dict) else [v])]
        tensors = [x for x in values if isinstance(x, torch.Tensor) and x.is_floating_point()]
        keys = getattr(layer, "keys", None)
        result.append((sum(x.numel() * x.element_size() for x in tensors), 0 if keys is None else keys.shape[-2]))
    return result


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v["model_type"] != "deepseek_v3"], ids=lambda v: v["model_type"]
)
def test_cache_bytes_are_those_of_a_real_cache(variant: dict[str, Any]) -> None:
    """40 tokens are more than any window here; transformers keeps one token less than a window."""
    config, tokens = as_config(variant), 40
    profile = read_hf_config(config, "model", "bf16")
    for layer, (held, kept) in zip(profile.layers, cached_after(config, tokens), strict=True):
        attention = layer.attention
        window = attention.kv_window_tokens
        expected = min(tokens, window - 1) if window else tokens if attention.kv_bytes_per_token else 0
        assert kept == expected
        assert held == attention.kv_bytes_per_token * expected + attention.state_bytes


@pytest.mark.parametrize(
    ("name", "kv_bytes", "total"),
    [
        ("deepseek-v2", 1152, 235_741_434_880),
        ("deepseek-v3", 1152, 671_026_404_352),
        ("kimi-k2-instruct", 1152, 1_026_408_209_408),
        ("mixtral-8x7b", 4096, 46_702_792_704),
        ("qwen3-235b-a22b", 2048, 235_093_634_560),
        ("glm-4.5-air", 4096, 106_852_245_504),
        ("olmoe-1b-7b", 8192, 6_919_161_856),
    ],
)
def test_published_totals_and_cache_sizes(name: str, kv_bytes: int, total: int) -> None:
    profile = read_hf_config(model_config_preset(name) or {}, name, "bf16")
    assert profile.layers[-1].attention.kv_bytes_per_token == kv_bytes
    assert profile.weight_bytes == 2 * total


def test_windows_and_states() -> None:
    oss = read_hf_config(model_config_preset("gpt-oss-120b") or {}, "gpt-oss")
    assert [layer.attention.kv_window_tokens for layer in oss.layers[:4]] == [128, None, 128, None]
    scout = read_hf_config(model_config_preset("llama-4-scout") or {}, "scout")
    assert [layer.attention.kv_window_tokens for layer in scout.layers[:4]] == [8192, 8192, 8192, None]
    following = read_hf_config(model_config_preset("qwen3-next-80b-a3b-thinking") or {}, "next")
    linear, full = following.layers[0].attention, following.layers[3].attention
    assert (linear.kv_bytes_per_token, linear.state_bytes) == (0, 8192 * 4 * 2 + 32 * 128 * 128 * 4)
    assert (full.kv_bytes_per_token, full.state_bytes) == (2 * 2 * 256 * 2, 0)


def test_tied_head_counts_once() -> None:
    profile = read_hf_config(as_config({"model_type": "llama", "tie_word_embeddings": True}), "tied", "bf16")
    assert profile.tied_bytes == profile.embedding.weight_bytes.gpu == 128 * 64 * 2
    assert profile.head.params == 128 * 64 + 64


# --- weight formats ---------------------------------------------------------------------------------------------------


def test_formats_default_to_the_files_own() -> None:
    own = {"deepseek-v3": "fp8", "gpt-oss-120b": "hf_mxfp4", "mixtral-8x7b": "bf16", "llama-4-scout": "bf16"}
    for name, quant in own.items():
        assert read_hf_config(model_config_preset(name) or {}, name).quant == quant
    assert read_hf_config(SMALL | {"torch_dtype": "float16"}, "half").quant == "fp16"
    assert read_hf_config(SMALL | {"dtype": "torch.float32"}, "full").activation_bytes == 4
    group = {"quant_method": "awq", "bits": 4, "group_size": 128}
    assert read_hf_config(SMALL | {"quantization_config": group}, "awq").quant == "awq-4bit"


def test_format_arithmetic() -> None:
    gate_up = Tensor("gate_up_proj", (2, 2 * 192, 300), quantisable=True, stacked=2)
    turned = Tensor("gate_up_proj", (2, 300, 2 * 192), quantisable=True, transposed=True, stacked=2)
    weights = 2 * 384 * 300
    for tensor in (gate_up, turned):
        assert tensor_bytes(tensor, "bf16") == 2 * weights
        assert tensor_bytes(tensor, "fp32") == 4 * weights
        assert tensor_bytes(tensor, "fp8") == weights + 4 * (2 * (2 + 2) * 3)
        assert tensor_bytes(tensor, "int8") == weights + 2 * (2 * 384)
        assert tensor_bytes(tensor, "int4") == weights // 2 + 2 * (2 * 384 * 3)
        assert tensor_bytes(tensor, "hf_mxfp4", experts=True) == 2 * 384 * 10 * 17
        assert tensor_bytes(tensor, "hf_mxfp4") == 2 * weights
    assert tensor_bytes(Tensor("norm.weight", (300,)), "int4") == 600


def test_gpt_oss_experts_weigh_what_its_file_holds() -> None:
    """Blocks of 17 bytes for 3 * 2880 * 2880 weights; the file stores the biases, 8640 values an expert, in bf16."""
    profile = read_hf_config(model_config_preset("gpt-oss-120b") or {}, "gpt-oss")
    experts = profile.layers[0].experts
    assert experts is not None
    assert experts.weight_bytes.gpu == 128 * (3 * 2880 * 2880 // 32 * 17 + 8640 * 2)


def test_embedding_head_norms_and_router_stay_in_bf16() -> None:
    full, small = (read_hf_config(SMALL, "m", quant) for quant in ("bf16", "int4"))
    assert (full.embedding.weight_bytes, full.head.weight_bytes) == (
        small.embedding.weight_bytes,
        small.head.weight_bytes,
    )
    dense = 64 * (4 * 16) * 2 + 64 * (2 * 16) * 2
    rest = (full.layers[0].attention.params or 0) - dense
    rows = 2 * (4 * 16) + 2 * (2 * 16)
    assert small.layers[0].attention.weight_bytes.gpu == 2 * rest + dense // 2 + 2 * rows


def test_every_format_is_smaller_than_bf16() -> None:
    for name in presets_of_transformers():
        config = model_config_preset(name) or {}
        full = read_hf_config(config, name, "bf16")
        ends = full.embedding.weight_bytes.gpu + full.head.weight_bytes.gpu - full.tied_bytes
        for quant, ratio in {"fp8": 0.52, "int8": 0.52, "int4": 0.3}.items():
            layers = read_hf_config(config, name, quant).weight_bytes - ends
            assert layers < (full.weight_bytes - ends) * ratio, name


# --- workspace --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("deepseek-v2", 776_504_576),
        ("mixtral-8x22b", 612_532_288),
        ("qwen3-235b-a22b", 554_320_896),
        ("deepseek-v3", 1_439_385_600),
    ],
)
def test_experts_workspace_is_just_above_what_a_fake_run_of_2048_tokens_needed(name: str, measured: int) -> None:
    profile = read_hf_config(model_config_preset(name) or {}, name, "bf16")
    experts = profile.layers[-1].experts
    assert experts is not None
    assert experts.workspace_bytes is not None
    formula = experts.workspace_bytes.per_token * 2048 + experts.workspace_bytes.per_sequence
    assert measured <= formula <= measured * 1.15  # the layer's own vectors, in case they are on the same device


def test_latent_attention_expands_its_whole_cache() -> None:
    profile = read_hf_config(model_config_preset("deepseek-v2") or {}, "deepseek-v2", "bf16")
    workspace = profile.layers[5].attention.workspace_bytes
    assert workspace is not None
    assert max(moment.per_context_token for moment in workspace.moments) == 128 * (128 + 128 + 128 + 64) * 2


HALF = "half"
LATENT_FAMILIES = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v3", "deepseek_v32", "dots3_note", "glm4_moe_lite", "glm_moe_dsa"), True
    ),
    **dict.fromkeys(("hy_v4", "minicpm3", "mistral4", "mistral_large4", "youtu"), True),
    **dict.fromkeys(("bailing_hybrid", "kimi_linear"), HALF),
    **dict.fromkeys(("qwen3_moe", "glm4_moe"), False),
}
"""transformers' families whose configs have kv_lora_rank (not mistral_large4, which takes half a minute), and some
others; in hybrids some layers have no cache."""


@pytest.mark.parametrize("family", LATENT_FAMILIES)
def test_layers_say_that_their_cache_is_latent(family: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        pytest.skip("this transformers does not know it")
    layers = 6 if LATENT_FAMILIES[family] == HALF else 3
    config = CONFIG_MAPPING[family](num_hidden_layers=layers).to_dict()
    profile = read_hf_config(config, family, "bf16")
    found = {layer.attention.latent for layer in profile.layers if layer.attention.kv_bytes_per_token}
    assert found == {LATENT_FAMILIES[family] is not False}
    without_cache = [layer for layer in profile.layers if not layer.attention.kv_bytes_per_token]
    assert not any(layer.attention.latent for layer in without_cache)
    assert bool(without_cache) == (LATENT_FAMILIES[family] == HALF)


# --- presets and bad configs ------------------------------------------------------------------------------------------


def test_presets_answer_to_short_names_and_repositories() -> None:
    assert len(model_config_presets()) >= 45
    for name in model_config_presets():
        config = model_config_preset(name)
        assert config is not None
        assert model_config_preset(config["_source"].upper()) == config
        assert config["_source"] in read_hf_config(config, name).source
    assert model_config_preset("no-such-model") is None
    (model_config_preset("deepseek-v2") or {}).clear()
    assert model_config_preset("deepseek-v2")


def test_notes_say_what_is_left_out() -> None:
    notes = " ".join(read_hf_config(model_config_preset("deepseek-v3") or {}, "v3").notes)
    assert "1 multi-token-prediction" in notes
    assert "buffers" in notes
    assert "vision" in " ".join(read_hf_config(model_config_preset("llama-4-scout") or {}, "scout").notes)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": None}, "hidden_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": -64}, "hidden_size"),
    ({"hidden_size": 10**30}, "hidden_size"),
    ({"hidden_size": [64]}, "hidden_size"),
    ({"hidden_size": float("nan")}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"num_key_value_heads": 0}, "num_key_value_heads"),
    ({"head_dim": "big"}, "head_dim"),
    ({"vocab_size": -1}, "vocab_size"),
    ({"num_experts": 0}, "num_experts"),
    ({"num_experts": 10**9}, "num_experts"),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
    ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
    ({"moe_intermediate_size": {}}, "moe_intermediate_size"),
    ({"mlp_only_layers": "all"}, "mlp_only_layers"),
    ({"mlp_only_layers": [0.5]}, "mlp_only_layers"),
    ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ({"attention_bias": "no"}, "attention_bias"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"use_sliding_window": True, "sliding_window": -5}, "sliding_window"),
    ({"torch_dtype": "float8"}, "torch_dtype"),
    ({"dtype": 16}, "dtype"),
    ({"num_experts": 8, "num_local_experts": 4, "head_dim": 16}, "num_experts"),
    ({"quantization_config": "fp8"}, "quantization_config"),
    ({"quantization_config": {"quant_method": "compressed-tensors"}}, "quant="),
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64]}}, "quant="),
    ({"model_type": None}, "model_type"),
    ({"model_type": 7}, "model_type"),
    ({"model_type": ""}, "model_type"),
    ({"model_type": "no_such_model"}, "model_type"),
    ({"model_type": "t5"}, "model_type"),
    ({"model_type": "gpt_oss", "num_local_experts": 4, "layer_types": ["full_attention"]}, "layer_types"),
    ({"model_type": "gpt_oss", "num_local_experts": 4, "layer_types": ["odd"] * 4}, "layer_types[0]"),
    ({"model_type": "gpt_oss", "num_local_experts": 4, "sliding_window": None}, "sliding_window"),
    ({"model_type": "deepseek_v3", **LATENT, **GROUPS, "moe_layer_freq": 2}, "moe_layer_freq"),
    ({"model_type": "deepseek_v3", **LATENT, **GROUPS, "kv_lora_rank": None}, "kv_lora_rank"),
    ({"model_type": "deepseek_v3", **LATENT, **GROUPS, "n_shared_experts": -1}, "n_shared_experts"),
    ({"model_type": "llama4"}, "text_config"),
    ({"model_type": "llama4", "text_config": []}, "text_config"),
    ({"model_type": "llama4", "text_config": SMALL | {"hidden_size": "x"}}, "text_config.hidden_size"),
]


@pytest.mark.parametrize(("change", "named"), BAD, ids=lambda x: x if isinstance(x, str) else None)
def test_bad_values_are_named_in_one_line(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ProfileError) as caught:
        read_hf_config(as_config(change), "bad")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", sorted(set(SMALL) - {"head_dim", "num_key_value_heads", "intermediate_size"}))
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ProfileError, match=key):
        read_hf_config({k: v for k, v in SMALL.items() if k != key}, "bad")


def test_unknown_formats_list_the_known_ones() -> None:
    for quant in ("q9", "", "bf17", "marlin,bf16"):
        with pytest.raises(ProfileError, match="bf16, fp16, fp32, fp8, int8, int4, hf_mxfp4"):
            read_hf_config(SMALL, "bad", quant)
    with pytest.raises(ProfileError, match="experts"):
        read_hf_config(as_config({"model_type": "llama"}), "dense", "mxfp4")


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_not_a_mapping_is_refused(value: Any) -> None:
    with pytest.raises(ProfileError, match="mapping"):
        read_hf_config(value, "bad")


def test_no_value_of_any_key_makes_a_traceback() -> None:
    """Every key of every family, replaced by junk: read or refused, never another exception."""
    for family, configs in CONFIGS.items():
        for key in configs[0]:
            for junk in ("x", -1, 0, 10**20, [], {}, None, [{}]):
                with suppress(ProfileError):
                    model_tensors({"model_type": family, **configs[0], key: junk})


def test_without_transformers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiles.hf_config.reader.entry_points", lambda group: [])
    with pytest.raises(ProfileError, match=r"install moeplan\[torch\]"):
        read_hf_config(SMALL | {"model_type": "gemma2"}, "gemma")
