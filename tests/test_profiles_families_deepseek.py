"""DeepSeek's relatives beyond what transformers' classes say: names in checkpoints, published totals, short files."""

from __future__ import annotations

import re
from math import ceil
from typing import Any

import pytest
from family_configs import CONFIGS
from llama_cpp_files import known, tensors

from cost_models.memory import workspace_bytes
from profiles import Workload
from profiles.errors import ProfileError
from profiles.hf_config.families import FAMILIES
from profiles.hf_config.reader import model_tensors, read_hf_config
from profiles.hf_config.text_model import text_model
from profiles.tensors import ModelTensors, Tensor, Tensors, params

V4_FLASH = {
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "vocab_size": 129280, "hidden_size": 4096,
    "num_hidden_layers": 43, "num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 512,
    "q_lora_rank": 1024, "o_lora_rank": 1024, "o_groups": 8, "qk_rope_head_dim": 64, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 6, "num_nextn_predict_layers": 1,
    "index_head_dim": 128, "index_n_heads": 64, "index_topk": 512, "sliding_window": 128, "num_hash_layers": 3,
    "hc_mult": 4, "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
}  # fmt: skip
"""deepseek-ai/DeepSeek-V4-Flash, config.json."""
GLM_5_2: dict[str, Any] = {
    "model_type": "glm_moe_dsa", "vocab_size": 154880, "hidden_size": 6144, "intermediate_size": 12288,
    "num_hidden_layers": 78, "num_attention_heads": 64, "num_key_value_heads": 64, "q_lora_rank": 2048,
    "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
    "index_head_dim": 128, "index_n_heads": 32, "num_nextn_predict_layers": 1,
    "indexer_types": ["full", "full", *["full", "shared", "shared", "shared"] * 19],
}  # fmt: skip
"""zai-org/GLM-5.2, config.json."""
LARGE_3 = {
    "architectures": ["MistralLarge3ForCausalLM"], "model_type": "mistral_large3", "hidden_size": 7168,
    "num_hidden_layers": 61, "intermediate_size": 16384, "num_attention_heads": 128, "num_key_value_heads": 128,
    "n_routed_experts": 128, "num_experts_per_tok": 4, "moe_intermediate_size": 4096,
}  # fmt: skip
LARGE_3_MORE = {
    "vocab_size": 131072, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "first_k_dense_replace": 3, "n_shared_experts": 1,
}  # fmt: skip
"""What a gallery's cut-down copy of Mistral Large 3 lacks of mistralai/Mistral-Large-3-675B's params.json."""
LONGCAT_LITE = {
    "architectures": ["LongcatFlashNgramForCausalLM"], "vocab_size": 131072, "hidden_size": 3072, "num_layers": 14,
    "ffn_hidden_size": 6144, "expert_ffn_hidden_size": 1024, "num_attention_heads": 32, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_routed_experts": 256,
    "zero_expert_num": 128, "moe_topk": 12, "ngram_vocab_size_ratio": 78, "emb_neighbor_num": 4, "emb_split_num": 4,
}  # fmt: skip
"""meituan-longcat/LongCat-Flash-Lite, config.json: no model_type."""
DELTA: dict[str, Any] = {"head_dim": 128, "num_heads": 96, "short_conv_kernel_size": 4, "use_full_rank_gate": True}
FULL = [*range(4, 93, 4), 93]
DELTA |= {"full_attn_layers": FULL, "kda_layers": [i for i in range(1, 94) if i not in FULL]}
K3_TEXT = {
    "model_type": "kimi_linear", "hidden_size": 7168, "intermediate_size": 33792, "num_hidden_layers": 93,
    "num_attention_heads": 96, "num_key_value_heads": 96, "vocab_size": 163840, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_experts": 896,
    "num_experts_per_token": 16, "num_shared_experts": 2, "moe_intermediate_size": 3072, "first_k_dense_replace": 1,
    "routed_expert_hidden_size": 3584, "latent_moe_use_norm": True, "mla_use_output_gate": True,
    "attn_res_block_size": 12, "linear_attn_config": DELTA,
}  # fmt: skip
K3 = {"architectures": ["KimiK3ForConditionalGeneration"], "model_type": "kimi_k3", "text_config": K3_TEXT}
"""moonshotai/Kimi-K3, config.json."""


def total(model: ModelTensors) -> int:
    return sum(map(params, (model.embedding, model.head, *(every(model, i) for i in range(len(model.layers))))))


def every(model: ModelTensors, index: int) -> Tensors:
    layer = model.layers[index]
    return layer.attention + (layer.experts.tensors if layer.experts else ())


@pytest.mark.parametrize(
    ("config", "billions"), [(V4_FLASH, 284), (GLM_5_2, 744), (LARGE_3 | LARGE_3_MORE, 673), (LONGCAT_LITE, 68.5)]
)
def test_totals_are_those_of_model_cards(config: dict[str, Any], billions: float) -> None:
    """Mistral's 675 billion count 2.5 of a vision tower."""
    assert total(model_tensors(config)) / 1e9 == pytest.approx(billions, rel=0.01)


def test_kimi_k3_is_as_large_as_its_files() -> None:
    """1.56 TB in all, a routed expert 17 547 264 bytes in MXFP4 as readers of the shards say, the rest in bf16."""
    model = model_tensors(K3)
    experts = [layer.experts for layer in model.layers if layer.experts]
    one = params(experts[0].tensors) // experts[0].count
    assert one * 17 // 32 == 17_547_264
    rest = total(model) - sum(params(group.tensors) for group in experts)
    assert 2 * rest + len(experts) * experts[0].count * 17_547_264 == pytest.approx(1.56e12, rel=0.01)
    assert model.architecture == "kimi_k3"
    assert (
        model.disk_names.module("model.layers.1.mlp.experts")
        == "language_model.model.layers.1.block_sparse_moe.experts"
    )


def test_kimi_k3_has_what_llama_cpp_loads() -> None:
    """llama.cpp joins the norm and the projection of each residual score, and has biases that no checkpoint has."""
    found = tensors(known()["architectures"]["kimi-k3"])
    inner = {"head_dim": 64, "num_heads": 4, "full_attn_layers": [4], "kda_layers": [1, 2, 3]}
    text = K3_TEXT | {
        "vocab_size": 128, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 256,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 48, "num_experts": 8, "num_experts_per_token": 2,
        "num_shared_experts": 1, "moe_intermediate_size": 96, "routed_expert_hidden_size": 192,
        "linear_attn_config": DELTA | inner,
    }  # fmt: skip
    model = model_tensors({"model_type": "kimi_k3", "text_config": text})
    for index in range(4):
        theirs = _sizes(found, f"blk.{index}.")
        expected = sum(size for name, size in theirs.items() if not re.search(r"attn_[qkv]\.bias|exp_probs_b", name))
        assert (
            params(every(model, index)) == expected + theirs["attn_res_score.weight"] + theirs["ffn_res_score.weight"]
        )
    top = _sizes(found, "")
    assert params(model.head) == sum(top[f"output{end}.weight"] for end in ("", "_norm", "_res_score", "_res_score"))


def _sizes(found: list[tuple[str, tuple[int, ...], Any]], prefix: str) -> dict[str, int]:
    named = {name.removeprefix(prefix): shape for name, shape, _ in found if name.startswith(prefix)}
    return {name: params([Tensor(name, shape)]) for name, shape in named.items()}


def test_glm_5_2_in_fp8_is_as_large_as_its_index_says() -> None:
    """`metadata.total_size` of zai-org/GLM-5.2-FP8: blocks of 128 x 128 with a scale in F32, corrections of the router
    in F32; the layer that predicts a further token has an indexer, but no embedding and head.
    """
    model = model_tensors(GLM_5_2)
    tensors = [t for index in range(78) for t in every(model, index)] + [*model.mtp, *model.embedding, *model.head]
    corrections = 4 * 256 * sum(name.endswith("mlp.gate.weight") for name in (t.name for t in tensors))
    assert sum(map(_fp8_bytes, tensors)) + corrections == 755_617_140_416


def _fp8_bytes(tensor: Tensor) -> int:
    if not tensor.quantisable or "eh_proj" in tensor.name:
        return 2 * tensor.params
    rows = tensor.out_features // tensor.stacked
    blocks = tensor.matrices * tensor.stacked * ceil(rows / 128) * ceil(tensor.in_features / 128)
    return tensor.params + 4 * blocks


def test_v4_under_another_model_type() -> None:
    other = V4_FLASH | {"model_type": "deepseek_ref"}
    assert text_model(other).family == "deepseek_v4"
    assert model_tensors(other) == model_tensors(V4_FLASH)


def test_v4_predicts_further_tokens_with_a_layer_that_has_a_window_only() -> None:
    """1575 tensors in the published shard of `mtp.0`: 256 experts with 6 each (weights and scales), and 39 others, of
    which 10 scales of fp8 matrices and the router's correction.
    """
    model = model_tensors(V4_FLASH)
    experts = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    others = [t for t in model.mtp if t.name.removeprefix("mtp.0.") not in experts]
    scales = sum(tensor.quantisable for tensor in others)
    assert len(others) + scales + 1 + 256 * 6 == 1575
    assert not any("compressor" in tensor.name for tensor in model.mtp)
    assert model.disk_names.module("mtp.0.hc_head.hc_fn") == "mtp.0.hc_head_fn"


@pytest.mark.parametrize("ratios", [[0, 4, 64], [0, 4]])
def test_v4_with_ratios_that_nobody_knows(ratios: list[int]) -> None:
    with pytest.raises(ProfileError, match=r"^compress_ratios: has .*; give 0, 4 or 128 for each layer$"):
        model_tensors(V4_FLASH | {"compress_ratios": ratios, "num_hidden_layers": 3})


def test_short_files_say_what_is_missing() -> None:
    with pytest.raises(ProfileError) as problem:
        model_tensors(LARGE_3)
    missing, remedy = str(problem.value).split(": missing; ")
    assert set(missing.split(", ")) == LARGE_3_MORE.keys()
    assert remedy == "add what the model's own config.json says"
    with pytest.raises(ProfileError, match=r"^kv_lora_rank, .*n_shared_experts: missing; "):
        model_tensors({"model_type": "sarvam_mla", "num_experts": 128, "hidden_size": 4096, "num_hidden_layers": 32})


def test_a_flat_file_is_read_as_the_text_model() -> None:
    text = CONFIGS["dots3_note_text"][0]
    flat = model_tensors({"model_type": "dots3_note", **text})
    nested = model_tensors({"model_type": "dots3_note", "text_config": text})
    assert flat.layers == nested.layers
    assert nested.disk_names.module("model.norm") == "model.language_model.norm"


def test_deepseek_ocr_has_plain_attention_under_deepseek_v2s_name() -> None:
    """deepseek-ai/DeepSeek-OCR: `use_mla` false and null ranks; 3.3 billion parameters, 0.4 of them vision towers."""
    text = {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 129280,
        "hidden_size": 1280, "intermediate_size": 6848, "num_hidden_layers": 12, "num_attention_heads": 10,
        "num_key_value_heads": 10, "moe_intermediate_size": 896, "n_routed_experts": 64, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "first_k_dense_replace": 1, "use_mla": False, "q_lora_rank": None,
        "kv_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0,
    }  # fmt: skip
    model = model_tensors({"model_type": "deepseek_vl_v2", "language_config": text})
    assert model.layers[3].cache.values_per_token == 2 * 1280
    assert total(model) / 1e9 == pytest.approx(2.93, rel=0.01)


RENAMED = ("axk1", "axk2", "deepseek_v4", "glm5_next_text", "kimi_linear", "mistral_large4_text")


@pytest.mark.parametrize("family", RENAMED)
def test_names_in_checkpoints_are_those_that_transformers_renames(family: str) -> None:
    """transformers' own renames take every name that we say back to the one it came from."""
    renames = _renames(family)
    config = {"model_type": family, **CONFIGS[family][0]}
    model = model_tensors(config)
    names = FAMILIES[family].disk_names
    outside = {tensor.name for tensor in model.embedding + model.head}
    for name in outside | {tensor.name for layer in model.layers for tensor in layer.attention}:
        if "conv1d" in name:  # three of the checkpoint's become one
            continue
        disk = names.module(name)
        assert _renamed(disk, renames).removeprefix("model.") == name.removeprefix("model."), disk
    experts = names.module("model.layers.3.mlp.experts")
    for projection, end in zip(names.projections, ("gate_up_proj", "gate_up_proj", "down_proj"), strict=True):
        disk = f"{experts}.5.{projection}.weight"
        assert _renamed(disk, renames).removeprefix("model.") == f"layers.3.mlp.experts.{end}", disk


def _renames(family: str) -> list[Any]:
    mapping = pytest.importorskip("transformers.conversion_mapping").get_checkpoint_conversion_mapping
    if family == "mistral_large4_text":  # the root's renames come first, and those of the vision tower are not ours
        root = [rename for rename in mapping("mistral_large4") if len(rename.target_patterns) == 1]
        return [r for r in root if not any("wq" in s or "wk" in s for s in r.source_patterns)] + mapping(family)
    return list(mapping(family.removesuffix("_text")) or mapping(family))


def _renamed(name: str, renames: list[Any]) -> str:
    """Renames all apply in turn, then at most one converter, as when transformers loads a checkpoint."""
    from transformers.core_model_loading import WeightConverter

    for rename in (r for r in renames if not isinstance(r, WeightConverter)):
        name, _ = rename.rename_source_key(name)
    for converter in (r for r in renames if isinstance(r, WeightConverter)):
        name, matched = converter.rename_source_key(name)
        if matched:
            break
    return name.replace("model.language_model.", "model.")


V3_2 = {
    "model_type": "deepseek_v32", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "num_hidden_layers": 5, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "index_head_dim": 128,
    "index_n_heads": 64, "index_topk": 2048,
}  # fmt: skip
LINEAR_48B = {
    "model_type": "kimi_linear", "vocab_size": 163840, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 32, "q_lora_rank": None,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_experts": 256,
    "num_experts_per_token": 8, "num_shared_experts": 1, "moe_intermediate_size": 1024,
    "linear_attn_config": DELTA | {"num_heads": 32, "use_full_rank_gate": False, "full_attn_layers": [4],
                                   "kda_layers": [1, 2, 3]},
}  # fmt: skip
# MiB of attention's workspace, as transformers 5.23's forward on fake tensors needed them (torch 2.13, bf16) for
# (prompt, chunk); V4's in two layers of one kind on a device with all else.
NEEDED = [
    (V3_2, {(2048, 2048): 2645.5, (4096, 512): 1566.4}),
    (GLM_5_2 | {"num_hidden_layers": 8, "indexer_types": GLM_5_2["indexer_types"][:8]},
     {(2048, 2048): 1463.5, (4096, 512): 930.9}),
    (V4_FLASH | {"num_hidden_layers": 2, "compress_ratios": [4, 4]},
     {(2048, 2048): 2207.9, (4096, 512): 462.7, (8192, 512): 846.7}),
    (V4_FLASH | {"num_hidden_layers": 2, "compress_ratios": [128, 128]},
     {(2048, 2048): 1819.6, (4096, 512): 213.1, (8192, 512): 217.2}),
    (LINEAR_48B, {(2048, 2048): 6434.4, (4096, 512): 1608.7}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "measured"), NEEDED, ids=["v3.2", "glm-5.2", "v4-sparse", "v4-heavy", "kda"])
def test_workspace_is_just_above_what_was_measured(
    config: dict[str, Any], measured: dict[tuple[int, int], float]
) -> None:
    profile = read_hf_config(config, "cut", "bf16")
    for (prompt, chunk), needed in measured.items():
        workload = Workload(prompt_tokens=prompt, generated_tokens=0, prefill_chunk=chunk)
        ours = max(workspace_bytes(layer.attention, profile, workload) for layer in profile.layers) / 2**20
        assert needed <= ours <= max(1.25 * needed, needed + 100), (prompt, chunk)
