"""A GGUF file's metadata and tensor infos -> ModelTensors: the shapes and caches that others find in config.json.

Which layers slide is not in most files but in llama.cpp's source, by architecture (`SLIDES_EVERY`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from profiles.config_fields import MAX_EXPERTS
from profiles.errors import ProfileError
from profiles.gguf_blocks import home_of, layer_counts
from profiles.gguf_header import GgufEntry
from profiles.gguf_metadata import REMEDY, Metadata
from profiles.gguf_tensors import GgufTensor
from profiles.tensors import Cache, LayerTensors, ModelTensors, RoutedExperts, Tensor, Tensors

SLIDES_EVERY = {
    "gpt-oss": 2, "gemma2": 2, "gemma3n": 5, "gemma3": 6, "cohere2": 4, "olmo2": 4, "exaone4": 4, "llama4": 4,
    "afmoe": 4,
}  # fmt: skip
"""Of so many layers the last attends to everything and the others slide (llama.cpp: set_swa_pattern)."""
CHUNK_OF_LLAMA4 = 8192
ARCHITECTURES = {
    "qwen3moe": "qwen3_moe", "qwen2moe": "qwen2_moe", "glm4moe": "glm4_moe", "qwen3next": "qwen3_next",
    "llama4": "llama4_text", "minimax-m2": "minimax_m2",
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
KEPT = ("_norm", "ffn_gate_inp", "ssm_conv1d")


@dataclass(frozen=True)
class _Attention:
    """What the metadata says of attention for all layers; sizes are those of one head."""

    heads: list[int]
    kv_heads: list[int]
    key_size: int
    value_size: int
    rank: int
    rope: int
    windows: list[int | None]


def model_of(fields: Metadata, entries: Sequence[GgufEntry]) -> tuple[ModelTensors, tuple[str, ...]]:
    """The model of the file, and notes on what was assumed. Raises ProfileError where the file does not say enough."""
    layers, extra = layer_counts(fields)
    by_layer: list[list[GgufTensor]] = [[] for _ in range(layers)]
    top: dict[str, GgufTensor] = {}
    for entry in entries:
        tensor = entry.tensor
        home = home_of(tensor.name, tensor.layer, layers, extra)
        if home.part in ("attention", "experts"):
            by_layer[home.layer].append(tensor)
        elif home.part != "mtp":
            top[tensor.name] = tensor
    empty = next((i for i, found in enumerate(by_layer) if not found), None)
    if empty is not None:
        raise ProfileError(f"layer {empty} of {layers} has no tensors; download the whole file, and all of its shards")
    if "token_embd.weight" not in top or len(top["token_embd.weight"].shape) != 2:
        raise ProfileError("token_embd.weight: missing, so this is no language model; give the file of its decoder")
    hidden, vocab = top["token_embd.weight"].shape
    attention, notes = _attention(fields, layers, hidden)
    is_tied = "output.weight" not in top
    head = [t for name, t in top.items() if name.startswith("output")]
    tensors = ModelTensors(
        architecture=_architecture(fields, by_layer),
        hidden_size=hidden,
        vocab_size=vocab,
        embedding=(Tensor("model.embed_tokens.weight", (vocab, hidden)),),
        layers=tuple(_layer(i, found, attention, fields) for i, found in enumerate(by_layer)),
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


def _attention(fields: Metadata, layers: int, hidden: int) -> tuple[_Attention, tuple[str, ...]]:
    heads = fields.by_layer(".attention.head_count", layers) or [0] * layers
    most = max(heads)
    size = hidden // most if most else 0
    key_size = fields.number(".attention.key_length_mla") or fields.number(".attention.key_length") or size
    value_size = fields.number(".attention.value_length_mla") or fields.number(".attention.value_length") or size
    windows, notes = _windows(fields, layers)
    return _Attention(
        heads=heads,
        kv_heads=fields.by_layer(".attention.head_count_kv", layers) or heads,
        key_size=key_size,
        value_size=value_size,
        rank=fields.number(".attention.kv_lora_rank") or 0,
        rope=fields.number(".rope.dimension_count") or 0,
        windows=windows,
    ), notes


def _windows(fields: Metadata, layers: int) -> tuple[list[int | None], tuple[str, ...]]:
    """The window of every layer, None where it attends to everything."""
    name, window = fields.architecture, fields.number(".attention.sliding_window", 10**9)
    if name == "llama4":
        window = fields.number(".attention.chunk_size") or CHUNK_OF_LLAMA4
    if not window:
        return [None] * layers, ()
    pattern = fields.by_layer(".attention.sliding_window_pattern", layers)
    if pattern is None and name in SLIDES_EVERY:
        pattern = [SLIDES_EVERY[name]] * layers
    if pattern is None:
        return [None] * layers, (
            f"a window of {window} tokens is in the file but not which layers slide: counted whole",
        )
    if set(pattern) <= {0, 1}:
        return [window if slides else None for slides in pattern], ()
    return [window if (i + 1) % every else None for i, every in enumerate(pattern)], ()


def _layer(index: int, found: list[GgufTensor], attention: _Attention, fields: Metadata) -> LayerTensors:
    routed = [t for t in found if home_of(t.name, index, index + 1, 0).part == "experts"]
    around = [t for t in found if t not in routed]
    stems = {t.name.split(".")[2] for t in around}
    prefix = f"model.layers.{index}."
    tensors: Tensors = tuple(_tensor(_hf_name(t, prefix), t) for t in around if _counts_once(t, stems))
    if "attn_k_b" in stems and "attn_kv_b" not in stems:
        tensors += (_whole_kv_b(prefix, around),)
    cache = _cache(index, stems, attention, fields)
    return LayerTensors(tensors, cache, _routed(prefix, routed, fields) if routed else None)


def _counts_once(tensor: GgufTensor, stems: set[str]) -> bool:
    """Latent attention's kv_b may be in a file whole, in two parts, or both: it is one projection."""
    return tensor.name.split(".")[2] not in ("attn_k_b", "attn_v_b")


def _whole_kv_b(prefix: str, around: list[GgufTensor]) -> Tensor:
    keys = next(t for t in around if ".attn_k_b." in t.name)
    values = next((t for t in around if ".attn_v_b." in t.name), None)
    if values is None:
        raise ProfileError(f"{keys.name}: has no attn_v_b beside it; {REMEDY}")
    rank = values.shape[0]
    return Tensor(f"{prefix}self_attn.kv_b_proj.weight", ((keys.numel + values.numel) // rank, rank), quantisable=True)


def _hf_name(tensor: GgufTensor, prefix: str) -> str:
    stem, _, suffix = tensor.name.split(".", 2)[2].partition(".")
    return f"{prefix}{HF_NAMES.get(stem, stem)}{'.' if suffix else ''}{suffix}"


def _tensor(name: str, tensor: GgufTensor) -> Tensor:
    matrix = len(tensor.shape) > 1 and not any(part in tensor.name for part in KEPT)
    return Tensor(name, tuple(reversed(tensor.shape)), quantisable=matrix)


def _cache(index: int, stems: set[str], attention: _Attention, fields: Metadata) -> Cache:
    heads, kv_heads = attention.heads[index], attention.kv_heads[index]
    if any(stem.startswith("ssm_") for stem in stems):
        return Cache(state_fp32_values=_recurrent_state(fields))
    if any(stem.startswith("shortconv") for stem in stems):
        return Cache(state_fp32_values=(fields.size(".shortconv.l_cache") - 1) * fields.size(".embedding_length"))
    if any(stem.startswith("time_mix") for stem in stems):
        raise ProfileError(
            f"general.architecture: {fields.architecture}: its recurrence is not known; write a profile YAML"
        )
    if not stems & {"attn_k", "attn_qkv", "attn_kv_a_mqa"}:
        return Cache()  # a layer that mixes no tokens
    both = attention.key_size + attention.value_size
    if not heads or not both:
        raise ProfileError(f"{fields.architecture}.attention.head_count: layer {index} has none; {REMEDY}")
    if attention.rank and "attn_kv_a_mqa" in stems:
        return Cache(
            values_per_token=attention.rank + attention.rope,
            flops_per_token_pair=2 * heads * both,
            expanded_values_per_token=heads * (both - attention.rope + attention.key_size),
            full_values_per_token=heads * both,
        )
    return Cache(
        values_per_token=kv_heads * both, window_tokens=attention.windows[index], flops_per_token_pair=2 * heads * both
    )


def _recurrent_state(fields: Metadata) -> int:
    """Values of a convolution's and a recurrence's state, both in fp32 in llama.cpp."""
    inner, state = fields.size(".ssm.inner_size"), fields.size(".ssm.state_size")
    groups = fields.number(".ssm.group_count") or 0
    return (fields.size(".ssm.conv_kernel") - 1) * (inner + 2 * groups * state) + state * inner


def _routed(prefix: str, found: list[GgufTensor], fields: Metadata) -> RoutedExperts:
    """Gate and up as one tensor, as Hugging Face has them."""
    count, active = fields.size(".expert_count", MAX_EXPERTS), fields.size(".expert_used_count", MAX_EXPERTS)
    if active > count:
        raise ProfileError(f"{fields.architecture}.expert_used_count: {active} of {count} experts; {REMEDY}")
    matrices = [t for t in found if t.name.endswith(".weight")]
    downs = [t for t in matrices if ".ffn_down" in t.name]
    if not downs:
        raise ProfileError(f"{found[0].name}: no down projection of experts beside it; {REMEDY}")
    width = downs[0].shape[0]
    others = sum(t.numel for t in matrices if t not in downs)
    hidden = downs[0].shape[1] if len(downs[0].shape) > 1 else 1
    inside: Tensors = (
        Tensor(f"{prefix}mlp.experts.down_proj", (count, hidden, width), quantisable=True),
        *(
            (Tensor(f"{prefix}mlp.experts.gate_up_proj", (count, others // count // hidden, hidden), True, stacked=2),)
            if others
            else ()
        ),
        *(
            Tensor(f"{prefix}mlp.experts.{t.name.split('.', 2)[2]}", (prod(t.shape),))
            for t in found
            if t not in matrices
        ),
    )
    return RoutedExperts(inside, count, active, width)
