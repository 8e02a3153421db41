"""Databricks' DBRX: one projection for queries, keys and values, experts stacked along their rows."""

from __future__ import annotations

from profiles.errors import ProfileError
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_EXPERTS, Fields
from profiles.hf_config.parts.attention import head_shape
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear
from profiles.hf_config.parts.decoder import decoder, every_layer
from profiles.tensors import Cache, DiskNames, ModelTensors, RoutedExperts, Tensor, under


def _attention(fields: Fields) -> Mixer:
    hidden, (heads, kv_heads, size) = fields.size("hidden_size"), head_shape(fields)
    queries, keys = heads * size, kv_heads * size
    tensors = linear("Wqkv", queries + 2 * keys, hidden) + linear("out_proj", hidden, queries)
    cache = Cache(values_per_token=2 * keys, flops_per_token_pair=4 * queries)
    return Mixer(under("norm_attn_norm.attn.", tensors), cache)


def _experts(fields: Fields, hidden: int) -> FeedForward:
    """The class stacks a layer's experts along the rows of one matrix; here the expert is a dimension of its own."""
    count, width = fields.size("moe_num_experts", most=MAX_EXPERTS), fields.size("ffn_hidden_size")
    used = fields.size("moe_top_k", most=MAX_EXPERTS)
    if used > count:
        raise ProfileError(f"{fields.prefix}moe_top_k: {used} is more than the {count} experts there are; mend one")
    shape = (count, width, hidden)
    tensors = (Tensor("w1", shape, True), Tensor("v1", shape, True), Tensor("w2", shape, True, transposed=True))
    routed = RoutedExperts(under("ffn.experts.mlp.", tensors), count, used, width, router_weight_bytes=2)
    return FeedForward(kept("ffn.router.layer.weight", count, hidden), routed)


def _dbrx(fields: Fields) -> ModelTensors:
    attention, feeds = fields.nested("attn_config"), fields.nested("ffn_config")
    own = fields.but(num_key_value_heads=attention.size("kv_n_heads", 1))
    norms = ("norm_attn_norm.norm_1", "norm_attn_norm.norm_2")
    experts = _experts(feeds, fields.size("hidden_size"))
    return decoder(own, every_layer(_attention(own)), every_layer(experts), norms=norms)


NAMES = DiskNames(
    (
        (r"^model\.layers\.", "transformer.blocks."),
        (r"^model\.embed_tokens\b", "transformer.wte"),
        (r"^model\.norm\b", "transformer.norm_f"),
    ),
    (),
)
FAMILIES = {"dbrx": Family(_dbrx, NAMES)}
