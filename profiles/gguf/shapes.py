"""A GGUF file's metadata and tensor infos -> ModelTensors: the shapes and caches that others find in config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from profiles.errors import ProfileError
from profiles.gguf.blocks import home_of, layer_counts
from profiles.gguf.caches import Shapes, cache_of, kv_b, together
from profiles.gguf.header import GgufEntry
from profiles.gguf.metadata import REMEDY, Metadata
from profiles.gguf.tensors import GgufTensor
from profiles.gguf.windows import windows_of
from profiles.hf_config.fields import MAX_EXPERTS
from profiles.tensors import LayerTensors, ModelTensors, RoutedExperts, Tensor, Tensors

ARCHITECTURES = {
    "bailingmoe": "bailing_moe", "bailingmoe2": "bailing_moe_v2", "bailingmoe3": "bailing_moe_v3",
    "cohere2moe": "cohere2_moe", "deepseek32": "deepseek_v32", "deepseek4": "deepseek_v4", "gemma4": "gemma4_text",
    "dots3note": "dots3_note_text", "glm-dsa": "glm_moe_dsa", "glm4moe": "glm4_moe", "granite_swa": "granitemoe_swa",
    "granitehybrid": "granitemoehybrid", "hunyuan-moe": "hunyuan_v1_moe", "lfm2moe": "lfm2_moe",
    "llama4": "llama4_text",
    "mimo2": "mimo_v2_flash", "minimax-01": "minimax", "minimax-m2": "minimax_m2", "minimax-m3": "minimax_m3",
    "nemotron_h_moe": "nemotron_h", "qwen2moe": "qwen2_moe", "qwen35moe": "qwen3_5_moe_text", "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next", "qwen3vlmoe": "qwen3_vl_moe_text", "qwen4exp": "qwen4_exp_text", "step35": "step3p5",
}  # fmt: skip
"""GGUF's name of an architecture -> Hugging Face's, where replacing dashes does not give it."""
HF_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "attn_q_a": "self_attn.q_a_proj", "attn_q_b": "self_attn.q_b_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_kv_b": "self_attn.kv_b_proj", "attn_sinks": "self_attn.sinks",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj", "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba", "ssm_out": "linear_attn.out_proj",
    "ssm_conv1d": "linear_attn.conv1d", "ssm_a": "linear_attn.A_log", "ssm_dt": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
}  # fmt: skip
ROUTES_IN_16_BITS = ("gpt-oss", "olmoe", "qwen2moe", "qwen3moe", "qwen3next")
"""Architectures whose routing weights meet the experts' outputs in the activations' type; in others they are fp32."""
CACHES_DRAFTS = ("bailingmoe3", "deepseek4", "nemotron_h_moe")
"""Architectures of which llama.cpp (build 11434) keeps the cache of blocks for multi-token prediction, used or not."""
KEPT = ("_norm", "ffn_gate_inp", "ssm_conv1d")


def model_of(fields: Metadata, entries: Sequence[GgufEntry]) -> tuple[ModelTensors, tuple[str, ...]]:
    """The model of the file, and notes on what was assumed. Raises ProfileError where the file does not say enough."""
    layers, extra = layer_counts(fields, entries)
    by_layer: list[list[GgufTensor]] = [[] for _ in range(layers)]
    drafts: dict[int, list[GgufTensor]] = {}
    top: dict[str, GgufTensor] = {}
    for entry in entries:
        tensor = entry.tensor
        home = home_of(tensor.name, tensor.layer, layers, extra)
        if home.part in ("attention", "experts"):
            by_layer[home.layer].append(tensor)
        elif home.part == "mtp":
            drafts.setdefault(home.layer, []).append(tensor)
        else:
            top[tensor.name] = tensor
    empty = next((i for i, found in enumerate(by_layer) if not found), None)
    if empty is not None:
        raise ProfileError(f"layer {empty} of {layers} has no tensors; download the whole file, and all of its shards")
    if "token_embd.weight" not in top or len(top["token_embd.weight"].shape) != 2:
        raise ProfileError("token_embd.weight: missing, so this is no language model; give the file of its decoder")
    hidden, vocab = top["token_embd.weight"].shape
    windows, notes = windows_of(fields, layers)
    built = [_layer(i, found, windows[i], fields) for i, found in enumerate(by_layer)]
    if drafts and fields.architecture in CACHES_DRAFTS:
        for index, found in sorted(drafts.items()):
            draft = _layer(index, found, None, fields).cache
            built[-1] = replace(built[-1], cache=together(built[-1].cache, draft))
        notes += (
            "the multi-token-prediction block's cache counts with the last layer: llama.cpp keeps it in any case",
        )
    is_tied = "output.weight" not in top
    head = [t for name, t in top.items() if name.startswith("output")]
    tensors = ModelTensors(
        architecture=_architecture(fields, by_layer),
        hidden_size=hidden,
        vocab_size=vocab,
        embedding=(Tensor("model.embed_tokens.weight", (vocab, hidden)),),
        layers=tuple(built),
        head=tuple(_tensor(t.name, t) for t in head)
        + ((Tensor("lm_head.weight", (vocab, hidden)),) if is_tied else ()),
        tied=is_tied,
    )
    return tensors, notes


def _architecture(fields: Metadata, by_layer: list[list[GgufTensor]]) -> str:
    """Hugging Face's name of the family, which exporters ask for."""
    name, sparse = fields.architecture, bool(fields.number(".expert_count", MAX_EXPERTS))
    if name == "deepseek2":
        has_bias = any("exp_probs_b" in t.name for t in by_layer[-1]) or fields.number(".expert_gating_func") == 2
        return "deepseek_v3" if has_bias else "deepseek_v2"
    if name == "llama" and sparse:
        return "mixtral"
    return ARCHITECTURES.get(name, name.replace("-", "_"))


def _layer(index: int, found: list[GgufTensor], window: int | None, fields: Metadata) -> LayerTensors:
    parts: dict[str, list[GgufTensor]] = {"attention": [], "experts": []}
    for tensor in found:
        parts[home_of(tensor.name, index, index + 1, 0).part].append(tensor)
    around, routed = parts["attention"], parts["experts"]
    shapes = {t.name.split(".", 2)[2]: t.shape for t in around}
    prefix = f"model.layers.{index}."
    tensors: Tensors = tuple(_tensor(_hf_name(t, prefix), t) for t in around if not _is_half_of_kv_b(t))
    if "attn_k_b.weight" in shapes and "attn_kv_b.weight" not in shapes:
        tensors += (_whole_kv_b(prefix, shapes),)
    cache = cache_of(index, shapes, window, fields)
    return LayerTensors(tensors, cache, _routed(index, routed, fields) if routed else None)


def _is_half_of_kv_b(tensor: GgufTensor) -> bool:
    """Latent attention's kv_b may be in a file whole, in two parts, or both: it is one projection."""
    return tensor.name.split(".")[2] in ("attn_k_b", "attn_v_b")


def _whole_kv_b(prefix: str, shapes: Shapes) -> Tensor:
    rank, out = kv_b(shapes)
    return Tensor(f"{prefix}self_attn.kv_b_proj.weight", (out, rank), quantisable=True)


def _hf_name(tensor: GgufTensor, prefix: str) -> str:
    stem, _, suffix = tensor.name.split(".", 2)[2].partition(".")
    return f"{prefix}{HF_NAMES.get(stem, stem)}{'.' if suffix else ''}{suffix}"


def _tensor(name: str, tensor: GgufTensor) -> Tensor:
    matrix = len(tensor.shape) > 1 and not any(part in tensor.name for part in KEPT)
    return Tensor(name, tuple(reversed(tensor.shape)), quantisable=matrix)


def _routed(index: int, found: list[GgufTensor], fields: Metadata) -> RoutedExperts:
    """Gate and up as one tensor, as Hugging Face has them."""
    prefix = f"model.layers.{index}."
    count = fields.size(".expert_count", MAX_EXPERTS)
    active = (fields.by_layer(".expert_used_count", index + 1, MAX_EXPERTS) or [0] * (index + 1))[index]
    if not 0 < active <= count:
        raise ProfileError(f"{fields.architecture}.expert_used_count: {active} of {count} experts; {REMEDY}")
    matrices = [t for t in found if t.name.endswith(".weight")]
    down = next((t for t in matrices if ".ffn_down" in t.name and len(t.shape) > 1), None)
    if down is None:
        raise ProfileError(f"{found[0].name}: no down projection of experts beside it; {REMEDY}")
    width, hidden = down.shape[:2]
    inside: list[Tensor] = [Tensor(f"{prefix}mlp.experts.down_proj", (count, hidden, width), quantisable=True)]
    if others := sum(t.numel for t in matrices if ".ffn_down" not in t.name):
        shape = (count, others // count // hidden, hidden)
        inside.append(Tensor(f"{prefix}mlp.experts.gate_up_proj", shape, True, stacked=2))
    biases = [t for t in found if not t.name.endswith(".weight")]
    inside += [Tensor(f"{prefix}mlp.experts.{t.name.split('.', 2)[2]}", (t.numel,)) for t in biases]
    routing_bytes = 2 if fields.architecture in ROUTES_IN_16_BITS else 4
    return RoutedExperts(tuple(inside), count, active, width, routing_bytes)
