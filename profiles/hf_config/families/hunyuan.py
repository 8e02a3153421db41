"""Tencent's Hunyuan: A13B, Hy3, and Hy4 with latent attention, indexers and several residual streams."""

from __future__ import annotations

from functools import cache, partial

from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import listed_or_dense_first, shared_and_routed, with_next_token_layers
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention, head_shape, latent_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear, norm
from profiles.hf_config.parts.decoder import decoder, every_layer, in_fp32, layer_count, layer_kinds
from profiles.hf_config.parts.feed_forward import mixture
from profiles.hf_config.parts.hyper_connections import NOTE as STREAMS_NOTE
from profiles.hf_config.parts.hyper_connections import hyper_head
from profiles.hf_config.parts.indexers import FULL, SHARED, indexed, indexer_kinds, lightning_indexer
from profiles.hf_config.parts.indexers import NOTE as INDEXER_NOTE
from profiles.tensors import DiskNames, ModelTensors, Tensors, under

ACTIVE = "moe_topk|num_experts_per_tok"
FP32_MODULES = ("fn", "scale", "base", "hc_fn", "hc_scale", "hc_base", "weights_proj", "k_norm", "sinks", "lm_head")
"""What transformers keeps of Hy4 in fp32 (`_keep_in_fp32_modules_strict`)."""


def _active(fields: Fields) -> list[int]:
    """Experts that a token uses in each layer: one number for all, or a list."""
    layers, listed = layer_count(fields), fields.config.get("moe_topk")
    if not isinstance(listed, list):
        return [fields.size(ACTIVE)] * layers
    if len(listed) != layers:
        raise ProfileError(f"{fields.prefix}moe_topk: {len(listed)} entries; give one for each of {layers} layers")
    return [fields.but(moe_topk=number).size("moe_topk") for number in listed]


def _hunyuan_v1_moe(fields: Fields) -> ModelTensors:
    """Shared experts are one FFN as wide as an expert, as in transformers."""
    bias, width, active = fields.flag("attention_bias", False), fields.size("intermediate_size"), _active(fields)
    _, _, size = head_shape(fields)
    attention = grouped_query_attention(fields, bias=bias, out_bias=bias)
    attention = attention.beside(*norm("self_attn.query_layernorm", size), *norm("self_attn.key_layernorm", size))

    @cache
    def sparse(used: int) -> FeedForward:
        own = fields.but(moe_topk=used)
        return mixture(
            own,
            count="num_experts",
            width=width,
            shared_width=width,
            shared_name="shared_mlp",
            router="gate.wg",
            router_fp32=True,
            active="moe_topk",
        )

    return decoder(fields, every_layer(attention), lambda index: sparse(active[index]))


def _hy_v3(fields: Fields) -> ModelTensors:
    bias, wide = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    width = fields.size("moe_intermediate_size")
    sparse = partial(
        mixture,
        fields,
        count="num_experts",
        width=width,
        shared_width=fields.count("num_shared_experts", most=1000) * width,
        shared_bias=wide,
    )
    attention = grouped_query_attention(fields, bias=bias, out_bias=bias, qk_norm="head")
    feed_forward = listed_or_dense_first(fields.but(first_k_dense_replace=1), 1, sparse, bias=wide)
    return with_next_token_layers(decoder(fields, every_layer(attention), feed_forward), fields, own_ends=False)


def _streams(fields: Fields) -> Tensors:
    """What gathers a layer's residual streams before each of its two parts, and spreads the result after it."""
    streams, hidden = fields.size("hc_mult", most=1000), fields.size("hidden_size")
    mixer = kept("fn", 2 * streams, streams * hidden) + kept("base", 2 * streams) + kept("scale", 2)
    return under("attn_hc.", mixer) + under("ffn_hc.", mixer)


def _hy_v4(fields: Fields) -> ModelTensors:
    bias, heads = fields.flag("attention_bias", False), fields.size("num_attention_heads")
    listed = layer_kinds(fields, "indexer_types", (FULL, SHARED), lambda i: SHARED if i and (i - 1) % 4 else FULL)
    kinds = indexer_kinds(fields.but(indexer_types=listed))
    gate = linear("gate_proj", heads * fields.size("v_head_dim"), fields.size("hidden_size"))
    shared = latent_attention(fields, bias=bias).beside(*under("self_attn.", gate + kept("sinks", heads)))
    full = indexed(shared, lightning_indexer(fields, fields.size("q_lora_rank")))

    def mixer(index: int) -> Mixer:
        return full if kinds[index] == FULL else shared

    model = decoder(
        fields,
        mixer,
        listed_or_dense_first(fields.but(first_k_dense_replace=1), 1, partial(shared_and_routed, fields)),
        beside=every_layer(_streams(fields)),
        head=under("model.hc_head.", hyper_head(fields)),
        notes=(INDEXER_NOTE, STREAMS_NOTE),
    )
    return with_next_token_layers(in_fp32(model, *FP32_MODULES), fields, own_ends=False)


HY3_NAMES = DiskNames(((r"\.mlp\.gate\b", ".mlp.router.gate"), (r"\.mlp\.shared_experts\b", ".mlp.shared_mlp")))
HY4_NAMES = DiskNames(
    (
        (r"\.self_attn\.sinks\b", ".self_attn.learnable_sink_param"),
        (r"\.self_attn\.gate_proj\b", ".self_attn.linear_gate"),
        (r"\.attn_hc\.(fn|base|scale)\b", r".hc_pre.hc_attn_layer.hc_\1"),
        (r"\.ffn_hc\.(fn|base|scale)\b", r".hc_pre.hc_mlp_layer.hc_\1"),
        (r"\.hc_head\.hc_(fn|base|scale)\b", r".hc_head.hc_head_\1"),
    )
)
FAMILIES = {
    "hunyuan_v1_moe": Family(_hunyuan_v1_moe),
    "hy_v3": Family(_hy_v3, HY3_NAMES),
    "hy_v4": Family(_hy_v4, HY4_NAMES),
}
