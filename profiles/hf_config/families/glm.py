"""GLM: GLM-4.5 and its like, GLM-4.7-Flash with latent attention, GLM-5 with sparse attention, GLM-5.3 with both it and
linear attention.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from profiles.hf_config.families.deepseek import (
    DENSE,
    SPARSE,
    dense_first,
    layer_tensors,
    listed_or_dense_first,
    shared_and_routed,
    with_next_token_layers,
)
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts import hyper_connections as streams
from profiles.hf_config.parts import indexers
from profiles.hf_config.parts.attention import grouped_query_attention, latent_attention
from profiles.hf_config.parts.basic import Mixer
from profiles.hf_config.parts.decoder import by_layer, decoder, every_layer, in_fp32, layer_kinds
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp
from profiles.hf_config.parts.kimi_delta import kimi_delta_attention, with_linear_sizes
from profiles.tensors import DiskNames, ModelTensors


def _glm4_moe_lite(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    attention = latent_attention(fields, bias=bias, rope_key="qk_rope_head_dim|head_dim")
    kinds = layer_kinds(fields, "mlp_layer_types", (DENSE, SPARSE), lambda index: SPARSE if index else DENSE)
    mlp = partial(gated_mlp, fields, fields.size("intermediate_size"))
    feed_forward = by_layer(kinds, {DENSE: mlp, SPARSE: partial(shared_and_routed, fields)})
    return with_next_token_layers(decoder(fields, every_layer(attention), feed_forward), fields)


def _glm4_moe(fields: Fields) -> ModelTensors:
    bias, qk_norm = fields.flag("attention_bias", False), fields.flag("use_qk_norm", False)
    # Without head_dim transformers rounds down, and its own default config (96 heads in 4096) relies on that.
    size = max(1, fields.size("hidden_size") // fields.size("num_attention_heads"))
    attention = grouped_query_attention(fields, bias=bias, head_dim=size, qk_norm="head" if qk_norm else "none")
    return with_next_token_layers(decoder(fields, every_layer(attention), dense_first(fields)), fields)


def _glm4v_moe_text(fields: Fields) -> ModelTensors:
    size = max(1, fields.size("hidden_size") // fields.size("num_attention_heads"))
    attention = grouped_query_attention(fields, bias=fields.flag("attention_bias", True), head_dim=size)
    return with_next_token_layers(decoder(fields, every_layer(attention), dense_first(fields)), fields)


def sparse_latent(fields: Fields) -> tuple[Mixer, Mixer]:
    """Latent attention without and with an indexer that takes its queries from the latent of the queries."""
    plain = latent_attention(fields, bias=fields.flag("attention_bias", False))
    return plain, indexers.indexed(plain, indexers.lightning_indexer(fields, fields.size("q_lora_rank")))


def _glm_moe_dsa(fields: Fields) -> ModelTensors:
    """GLM-5; from 5.2 on most layers share the indexer of one before. A layer that predicts a further token has one
    of its own, but no embedding and head (`total_size` of GLM-5.2-FP8).
    """
    shared, full = sparse_latent(fields)
    kinds = indexers.indexer_kinds(fields)
    feed_forward = listed_or_dense_first(fields, 3)
    model = decoder(
        fields, lambda i: full if kinds[i] == indexers.FULL else shared, feed_forward, notes=(indexers.NOTE,)
    )
    layer = layer_tensors(fields, full, shared_and_routed(fields))
    return with_next_token_layers(model, fields, own_ends=False, layer=layer)


def _glm5_next_text(fields: Fields) -> ModelTensors:
    """GLM-5.3: three layers of linear attention for one of latent attention with an indexer over pools of tokens."""
    fields = with_linear_sizes(fields)
    linear, full, sparse = "linear_attention", "full_attention", "indexed_attention"
    kinds = layer_kinds(fields, "layer_types", (linear, full, sparse), lambda i: sparse if i % 4 == 3 else linear)
    latent, choices = (
        latent_attention(fields, bias=fields.flag("attention_bias", False)),
        indexers.indexer_kinds(fields),
    )
    indexed = indexers.indexed(latent, indexers.pooled_indexer(fields, fields.size("q_lora_rank")))
    recurrent = kimi_delta_attention(fields, decay=(fields.size("linear_num_heads"),))

    def mixer(index: int) -> Mixer:
        attends = indexed if choices[index] == indexers.FULL else latent
        return recurrent if kinds[index] == linear else attends

    streamed = streams.hyper_connections(fields)
    types = layer_kinds(fields, "mlp_layer_types", (DENSE, SPARSE), lambda index: SPARSE if index >= 3 else DENSE)
    dense = partial(gated_mlp, fields, fields.size("intermediate_size"))
    feed_forward = by_layer(types, {DENSE: dense, SPARSE: partial(shared_and_routed, fields)})
    model = decoder(fields, mixer, feed_forward, beside=every_layer(streamed))
    notes = [streams.NOTE, indexers.NOTE, UNCOUNTED_BUFFERS]
    if extra := fields.count("num_nextn_predict_layers", 0, most=MAX_LAYERS):
        notes.append(f"{extra} multi-token-prediction layer(s) of the checkpoint are left out and not counted")
    fp32 = (
        "conv1d",
        "dt_bias",
        "A_log",
        *(f"{part}_hc.{name}" for part in ("attn", "ffn") for name in ("base", "scale")),
    )
    return replace(in_fp32(model, *fp32), notes=tuple(notes))


GLM5_NEXT_NAMES = DiskNames(((r"\.forget_gate\b", ""), (r"\.(attn|ffn)_hc\.", r".hc_\1_")))
FAMILIES = {
    "glm4_moe": Family(_glm4_moe),
    "glm4_moe_lite": Family(_glm4_moe_lite),
    "glm4v_moe_text": Family(_glm4v_moe_text),
    "glm5_next_text": Family(_glm5_next_text, GLM5_NEXT_NAMES),
    "glm_moe_dsa": Family(_glm_moe_dsa),
}
