"""Liquid AI's LFM2 with experts: short convolutions, and attention in some layers."""

from __future__ import annotations

from functools import partial

from profiles.errors import ProfileError
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention, head_shape
from profiles.hf_config.parts.basic import FeedForward, Mixer, linear, norm
from profiles.hf_config.parts.decoder import by_layer, decoder, layer_count
from profiles.hf_config.parts.feed_forward import mixture
from profiles.hf_config.parts.recurrent import short_convolution
from profiles.tensors import DiskNames, ModelTensors, under

CONVOLUTION, FULL = "conv", "full_attention"


def _kinds(fields: Fields) -> list[str]:
    """From `layer_types`, or the list of layers with attention, `full_attn_idxs`, of older files."""
    layers, listed = layer_count(fields), fields.whole_numbers("full_attn_idxs")
    kinds = fields.per_layer("layer_types", (CONVOLUTION, FULL), layers)
    if kinds is None and listed is None:
        raise ProfileError(f"{fields.prefix}layer_types: missing; add it, as in the model's own config.json")
    return kinds or [FULL if index in set(listed or ()) else CONVOLUTION for index in range(layers)]


def _attention(fields: Fields) -> Mixer:
    _, _, size = head_shape(fields)
    attention = grouped_query_attention(fields, out="out_proj")
    return attention.beside(*under("self_attn.", norm("q_layernorm", size) + norm("k_layernorm", size)))


def _dense(fields: Fields) -> FeedForward:
    hidden, width = fields.size("hidden_size"), fields.size("intermediate_size")
    tensors = linear("w1", width, hidden) + linear("w3", width, hidden) + linear("w2", hidden, width)
    return FeedForward(under("feed_forward.", tensors))


def _lfm2_moe(fields: Fields) -> ModelTensors:
    """`num_dense_layers` first layers have a dense FFN. Older files call `tie_word_embeddings` `tie_embedding`."""
    first = fields.count("num_dense_layers", most=MAX_LAYERS)
    kinds = ["dense" if index < first else "experts" for index in range(layer_count(fields))]
    width = fields.size("moe_intermediate_size")
    sparse = partial(mixture, fields, count="num_experts", width=width, name="feed_forward")
    convolution = partial(
        short_convolution, fields.size("hidden_size"), fields.size("conv_L_cache"), bias=fields.flag("conv_bias", False)
    )
    tied = fields.flag("tie_embedding|tie_word_embeddings", True)
    return decoder(
        fields.but(tie_word_embeddings=tied),
        by_layer(_kinds(fields), {CONVOLUTION: convolution, FULL: partial(_attention, fields)}),
        by_layer(kinds, {"dense": partial(_dense, fields), "experts": sparse}),
        norms=("operator_norm", "ffn_norm"),
        final_norm="embedding_norm",
    )


FAMILIES = {"lfm2_moe": Family(_lfm2_moe, DiskNames(projections=("w1", "w3", "w2")))}
