"""Arcee's Trinity (AFMoE) and poolside's Laguna, whose gated attention is Trinity's: windows in most layers."""

from __future__ import annotations

from functools import cache, partial

from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import listed_or_dense_first
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention, head_shape
from profiles.hf_config.parts.basic import Mixer, kept, linear
from profiles.hf_config.parts.decoder import by_window, decoder, layer_count, typed_windows
from profiles.hf_config.parts.feed_forward import mixture
from profiles.tensors import DiskNames, ModelTensors

NORMS = ("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm")


def _attention(fields: Fields, window: int | None, gate: str, *, per_head: bool = False) -> Mixer:
    """Attention with a gate on its output, for each value or for each head."""
    bias, (heads, _, size) = fields.flag("attention_bias", False), head_shape(fields)
    plain = grouped_query_attention(fields, bias=bias, out_bias=bias, qk_norm="head", window=window)
    return plain.beside(*linear(f"self_attn.{gate}", heads if per_head else heads * size, fields.size("hidden_size")))


def _afmoe(fields: Fields) -> ModelTensors:
    width = fields.size("moe_intermediate_size")
    windows = typed_windows(fields, lambda i: (i + 1) % fields.size("global_attn_every_n_layers") != 0)
    sparse = mixture(
        fields,
        count="num_experts",
        width=width,
        shared_width=fields.count("num_shared_experts", most=1000) * width,
        router="router.gate",
    )
    sparse = sparse.beside(*kept("mlp.expert_bias", fields.size("num_experts")))
    dense = fields.but(first_k_dense_replace=fields.count("num_dense_layers", most=MAX_LAYERS), mlp_layer_types=None)
    attention = by_window(windows, partial(_attention, fields, gate="gate_proj"))
    return decoder(fields, attention, listed_or_dense_first(dense, 0, lambda: sparse), norms=NORMS)


def _laguna(fields: Fields) -> ModelTensors:
    """`num_attention_heads_per_layer` may differ; the gate is for each head unless `gating` says per-element."""
    layers, per_head = layer_count(fields), fields.config.get("gating", True) in (True, "per-head")
    heads = fields.whole_numbers("num_attention_heads_per_layer") or [fields.size("num_attention_heads")] * layers
    if len(heads) != layers:
        place = f"{fields.prefix}num_attention_heads_per_layer"
        raise ProfileError(f"{place}: {len(heads)} entries; give one for each of {layers} layers")
    windows = typed_windows(fields)

    @cache
    def attention(count: int, window: int | None) -> Mixer:
        return _attention(fields.but(num_attention_heads=count), window, "g_proj", per_head=per_head)

    sparse = mixture(
        fields,
        count="num_experts",
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("shared_expert_intermediate_size"),
        router_weight_bytes=2,
    )
    sparse = sparse.beside(*kept("mlp.gate.e_score_correction_bias", fields.size("num_experts")))
    first = fields.but(first_k_dense_replace=1)
    return decoder(fields, lambda i: attention(heads[i], windows[i]), listed_or_dense_first(first, 1, lambda: sparse))


LAGUNA_NAMES = DiskNames(
    (
        (r"\.mlp\.shared_experts\b", ".mlp.shared_expert"),
        (r"\.mlp\.gate\.e_score_correction_bias\b", ".mlp.experts.e_score_correction_bias"),
    )
)
FAMILIES = {"afmoe": Family(_afmoe), "laguna": Family(_laguna, LAGUNA_NAMES)}
