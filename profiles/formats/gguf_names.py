"""What llama.cpp calls the tensors of a Hugging Face model: names by architecture, as its loader wants them.

Most names are in the `gguf` package's table of an architecture. Facts beside it are of llama.cpp build 11434
(conversion/*.py, src/models/*.cpp): architectures that the package cannot name yet, and names of theirs.
"""

from __future__ import annotations

import re
from functools import cache

from gguf.constants import MODEL_ARCH_NAMES, TENSOR_NAMES
from gguf.tensor_mapping import TensorNameMap

ARCHITECTURES = {
    "afmoe": "afmoe", "arctic": "arctic", "bailing_moe": "bailingmoe", "bailing_moe_v2": "bailingmoe2",
    "bailing_moe_v3": "bailingmoe3", "cohere2_moe": "cohere2moe", "cohere2_vision": "cohere2moe", "dbrx": "dbrx",
    "deepseek": "deepseek", "deepseek_ocr": "deepseek2-ocr", "deepseek_ocr2_text": "deepseek2-ocr",
    "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "deepseek_v32": "deepseek32", "deepseek_v4": "deepseek4",
    "dots1": "dots1", "dots3_note_text": "dots3note", "ernie4_5_moe": "ernie4_5-moe", "exaone_moe": "exaone-moe",
    "gemma4_text": "gemma4", "gemma4_unified_text": "gemma4", "glm4_moe": "glm4moe", "glm4_moe_lite": "deepseek2",
    "glm4v_moe_text": "glm4moe", "glm5_next_text": "glm5-next", "glm_moe_dsa": "glm-dsa", "gpt_oss": "gpt-oss",
    "granitemoe": "granitemoe", "granitemoe_swa": "granite_swa", "granitemoehybrid": "granitehybrid",
    "granitemoeshared": "granitemoe", "grok": "grok", "grok-1": "grok", "grove_moe": "grovemoe",
    "hunyuan_v1_moe": "hunyuan-moe", "hy_v3": "hy_v3", "hy_v4": "hy_v4", "jamba": "jamba", "kimi_k2": "deepseek2",
    "kimi_k25": "deepseek2", "kimi_k3": "kimi-k3", "kimi_linear": "kimi-linear", "laguna": "laguna",
    "lfm2_moe": "lfm2moe", "llama": "llama", "llama4_text": "llama4", "mellum": "mellum", "mimo_v2": "mimo2",
    "mimo_v2_flash": "mimo2", "minimax": "minimax-01", "minimax_m1": "minimax-01", "minimax_m2": "minimax-m2",
    "minimax_m3": "minimax-m3", "minimax_m3_vl_text": "minimax-m3", "mistral": "llama", "mistral4": "mistral4",
    "mistral_large3": "deepseek2", "mixtral": "llama", "nemotron_h": "nemotron_h_moe", "olmoe": "olmoe",
    "phimoe": "phimoe", "qwen2": "qwen2", "qwen2_moe": "qwen2moe", "qwen3": "qwen3", "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5_text": "qwen35", "qwen3_moe": "qwen3moe", "qwen3_next": "qwen3next", "qwen3_omni_moe_text": "qwen3vlmoe",
    "qwen3_omni_moe_thinker": "qwen3vlmoe", "qwen3_vl_moe_text": "qwen3vlmoe", "qwen3_vl_text": "qwen3vl",
    "qwen4_exp_text": "qwen4exp", "sarvam_moe": "bailingmoe2", "seed_oss": "seed_oss", "smallthinker": "smallthinker",
    "solar_open": "glm4moe", "step3p5": "step35", "step3p7": "step35", "unlimited_ocr_text": "deepseek2-ocr",
}  # fmt: skip
"""Hugging Face's `model_type` -> llama.cpp's architecture; a model of text and more goes by its text model's type."""
LIKE = {
    "bailingmoe3": "kimi-linear", "cohere2moe": "qwen2moe", "deepseek32": "glm-dsa", "deepseek4": "glm-dsa",
    "dots3note": "glm-dsa", "glm5-next": "kimi-linear", "granite_swa": "granitemoe", "hy_v3": "exaone-moe",
    "hy_v4": "glm-dsa", "kimi-k3": "kimi-linear", "laguna": "exaone-moe", "maple": "qwen3moe", "mellum": "qwen3moe",
    "minimax-01": "minimax-m2", "minimax-m3": "exaone-moe", "qwen4exp": "qwen35moe",
}  # fmt: skip
"""Architectures that the package cannot name -> one that it can and that names the same parts alike."""
WHOLE_NAMES = {
    "A_log": "ssm_a", "D": "ssm_d", "dt_bias": "ssm_dt.bias", "sinks": "attn_sinks.weight",
    "e_score_correction_bias": "exp_probs_b.bias", "expert_bias": "exp_probs_b.bias",
    "attn_hc.base": "hc_attn_base.weight", "attn_hc.fn": "hc_attn_fn.weight", "attn_hc.scale": "hc_attn_scale.weight",
    "ffn_hc.base": "hc_ffn_base.weight", "ffn_hc.fn": "hc_ffn_fn.weight", "ffn_hc.scale": "hc_ffn_scale.weight",
    "compressor.indexer.position_bias": "indexer_compressor_ape.weight",
    "compressor.position_bias": "attn_compressor_ape.weight",
    "index_kpool_compress_ape": "indexer_compressor_ape.weight",
    "index_kpool_compress_gate": "indexer_compressor_gate.weight",
    "router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale",
    "layer_scalar": "layer_output_scale.weight", "tid2eid": "ffn_gate_tid2eid.weight",
}  # fmt: skip
"""How the name of a parameter in a layer ends that is no module's weight or bias -> its whole name in the file."""
MODULES = {
    "attn_hyper_connection.block_inject_weight": "hc_attn_inject",
    "attn_hyper_connection.hc_norm": "hc_attn_norm",
    "attn_hyper_connection.input_mix_weight_down": "hc_attn_down",
    "attn_hyper_connection.input_mix_weight_up": "hc_attn_up",
    "block_sparse_moe.router": "ffn_gate_inp",
    "ffn.router.layer": "ffn_gate_inp",
    "mlp_hyper_connection.block_inject_weight": "hc_ffn_inject",
    "mlp_hyper_connection.hc_norm": "hc_ffn_norm",
    "mlp_hyper_connection.input_mix_weight_down": "hc_ffn_down",
    "mlp_hyper_connection.input_mix_weight_up": "hc_ffn_up",
    "norm_attn_norm.attn.Wqkv": "attn_qkv", "norm_attn_norm.attn.out_proj": "attn_output",
    "norm_attn_norm.norm_1": "attn_norm", "norm_attn_norm.norm_2": "attn_output_norm",
    "ple.conv1d": "ple_conv1d", "ple.key_proj": "ple_key", "ple.norm_conv": "ple_norm_conv",
    "ple.norm_key": "ple_norm_key", "ple.norm_query": "ple_norm_query", "ple.value_proj": "ple_value",
    "mlp.routed_expert_down_proj": "ffn_routed_down", "mlp.routed_expert_norm": "ffn_routed_norm",
    "mlp.routed_expert_up_proj": "ffn_routed_up", "mlp_res_proj": "ffn_res_score",
    "router.proj": "ffn_gate_inp", "self_attention_res_proj": "attn_res_score",
    "self_attn.b_proj": "ssm_beta",
    "self_attn.compressor.gate_proj": "attn_compressor_gate",
    "self_attn.compressor.indexer.gate_proj": "indexer_compressor_gate",
    "self_attn.compressor.indexer.kv_norm": "indexer_compressor_norm",
    "self_attn.compressor.indexer.kv_proj": "indexer_compressor_kv",
    "self_attn.compressor.indexer.q_b_proj": "indexer.attn_q_b",
    "self_attn.compressor.indexer.scorer.weights_proj": "indexer.proj",
    "self_attn.compressor.kv_norm": "attn_compressor_norm",
    "self_attn.compressor.kv_proj": "attn_compressor_kv",
    "self_attn.forget_gate.f_a_proj": "ssm_f_a", "self_attn.forget_gate.f_b_proj": "ssm_f_b",
    "self_attn.g_a_proj": "ssm_g_a", "self_attn.g_b_proj": "ssm_g_b", "self_attn.g_proj": "attn_gate",
    "self_attn.gate_proj": "attn_gate",
    "self_attn.index_k_norm": "indexer.k_norm", "self_attn.index_k_proj": "indexer.k_proj",
    "self_attn.index_q_norm": "indexer.q_norm", "self_attn.index_q_proj": "indexer.q_proj",
    "self_attn.indexer.k_layernorm": "indexer.k_norm", "self_attn.indexer.k_norm": "indexer.k_norm",
    "self_attn.indexer.k_proj": "indexer.k_proj", "self_attn.indexer.q_layernorm": "indexer.q_norm",
    "self_attn.indexer.q_norm": "indexer.q_norm", "self_attn.indexer.q_proj": "indexer.q_proj",
    "self_attn.indexer.weights_proj": "indexer.proj", "self_attn.indexer.wk": "indexer.attn_k",
    "self_attn.indexer.wq_b": "indexer.attn_q_b",
    "self_attn.k_rope_only_layernorm": "attn_k_norm",
    "self_attn.kv_norm": "attn_kv_a_norm", "self_attn.kv_proj": "attn_kv",
    "self_attn.norm": "attn_norm_2",
    "self_attn.o_a_proj": "attn_output_a", "self_attn.o_b_proj": "attn_output_b",
    "self_attn.o_norm": "ssm_norm", "self_attn.out_proj": "attn_output", "self_attn.output_gate": "attn_gate",
    "self_attn.q_a_norm": "attn_q_a_norm",
    "shared_mlp.input_linear": "ffn_up_shexp", "shared_mlp.output_linear": "ffn_down_shexp",
}  # fmt: skip
"""Module of a layer -> what the file calls it, where the package's table of its architecture has no name."""
SPLITS = {
    "linear_attn.in_proj_qkvz": ("attn_qkv", "attn_gate"),
    "mlp.shared_experts.gate_up_proj": ("ffn_gate_shexp", "ffn_up_shexp"),
    "self_attn.conv1d": ("ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v"),
    "self_attn.indexer.index_qk_proj": ("indexer.q_proj", "indexer.k_proj"),
    "shared_mlp.input_linear": ("ffn_gate_shexp", "ffn_up_shexp"),
}  # fmt: skip
"""Module of a layer -> the tensors that the file has for its rows, one part after the other."""
KEEPS_FUSED_SHARED = "granite_swa"
"""The architecture whose shared experts' gate and up projections stay one tensor."""
TOP = {
    "model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "model.embedding_norm.weight": "token_embd_norm.weight",
    "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
    "ple.ple_embedding.ngram_embedding.weight": "per_layer_token_embd.weight",
    "model.output_attn_res_proj.weight": "output_res_score.weight",
    "model.hc_head.hc_base": "output_hc_base.weight", "model.hc_head.hc_fn": "output_hc_fn.weight",
    "model.hc_head.hc_scale": "output_hc_scale.weight",
    "model.hyper_connection_mixer.hc_norm.weight": "output_hc_norm.weight",
    "model.hyper_connection_mixer.input_mix_weight_down.weight": "output_hc_down.weight",
    "model.hyper_connection_mixer.input_mix_weight_up.weight": "output_hc_up.weight",
}  # fmt: skip
"""Parameters that are outside the layers in the file, and neither embedding, final norm nor head."""
FOLDED = ("self_attention_res_norm.weight", "mlp_res_norm.weight", "model.output_attn_res_norm.weight")
"""Vectors that the file holds multiplied into the projection beside them: Kimi-K3's of its residual scores."""
OWN = {
    "hy_v3": {"exp_probs_b.bias": "exp_probs_b"},
}
"""Whole names that one architecture has in its own way."""
_LAYERS = ("model.layers.0.", "backbone.layers.0.")
_SUFFIX = re.compile(r"(.*?)(\.weight|\.bias|_bias)?")


def file_architecture(model_type: str) -> str | None:
    """llama.cpp's name of the architecture; None where it has none that is known.

    >>> file_architecture("kimi_k2"), file_architecture("llama4"), file_architecture("zaya")
    ('deepseek2', 'llama4', None)
    """
    return ARCHITECTURES.get(model_type) or ARCHITECTURES.get(f"{model_type}_text")


def split_names(rest: str, architecture: str | None) -> tuple[str, ...]:
    """What follows `blk.N.` in the names of the tensors that one parameter of a layer becomes; empty for just one."""
    if architecture == KEEPS_FUSED_SHARED:
        return ()
    return tuple(f"{stem}.weight" for stem in SPLITS.get(rest.removesuffix(".weight"), ()))


def layer_name(rest: str, architecture: str | None) -> str:
    """What follows `blk.N.` in the file, for the parameter called `rest` below a layer; `rest` where that is unknown.

    >>> layer_name("post_attention_layernorm.weight", "gpt-oss"), layer_name("self_attn.sinks", "gpt-oss")
    ('post_attention_norm.weight', 'attn_sinks.weight')
    """
    whole = next((name for end, name in WHOLE_NAMES.items() if rest == end or rest.endswith(f".{end}")), None)
    if whole is None:
        match = _SUFFIX.fullmatch(rest)
        assert match is not None
        stem = _stem(match[1], architecture)
        whole = rest if stem is None else stem + (match[2] or "").replace("_bias", ".bias")
    return OWN.get(architecture or "", {}).get(whole, whole)


def _stem(module: str, architecture: str | None) -> str | None:
    known = _package_stems(LIKE.get(architecture or "", architecture or ""))
    return known.get(module) or MODULES.get(module) or _any_stems().get(module)


@cache
def _package_stems(architecture: str) -> dict[str, str]:
    """Module -> stem, by the package's table of one architecture."""
    arch = next((kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if arch is None:
        return {}
    found: dict[str, str] = {}
    for name, (_, stem) in TensorNameMap(arch, 1).mapping.items():
        for prefix in _LAYERS:
            if name.startswith(prefix):
                found.setdefault(name.removeprefix(prefix), stem.removeprefix("blk.0."))
    return found


@cache
def _any_stems() -> dict[str, str]:
    """Module -> stem, by the package's table of all architectures; the first that has the module's name."""
    found: dict[str, str] = {}
    for tensor, names in TensorNameMap.block_mappings_cfg.items():
        for name in names:
            for prefix in _LAYERS:
                prefix = prefix.replace("0", "{bid}")
                if name.startswith(prefix):
                    found.setdefault(name.removeprefix(prefix), TENSOR_NAMES[tensor].removeprefix("blk.{bid}."))
    return found
