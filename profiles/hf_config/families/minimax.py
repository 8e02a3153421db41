"""MiniMax: Text-01 and M1 with lightning attention, M2 with plain attention, M3 with an indexer over blocks of keys."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families.family import MIXTRAL_NAMES, Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention, head_shape
from profiles.hf_config.parts.basic import FeedForward, Mixer, linear, norm
from profiles.hf_config.parts.decoder import by_layer, decoder, every_layer, flagged_kinds, layer_kinds
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, mixture
from profiles.hf_config.parts.indexers import NOTE as INDEXER_NOTE
from profiles.hf_config.parts.indexers import indexed
from profiles.hf_config.parts.next_token import uncounted_mtp
from profiles.hf_config.parts.recurrent import lightning_attention
from profiles.tensors import Cache, DiskNames, ModelTensors, Tensor, Tensors, under

FULL, LINEAR, INDEXED = "full_attention", "linear_attention", "minimax_m3_sparse"
DENSE, SPARSE = "dense", "sparse"


def _lightning(fields: Fields) -> Mixer:
    heads, _, size = head_shape(fields)
    return lightning_attention(fields.size("hidden_size"), heads, size)


def _minimax(fields: Fields) -> ModelTensors:
    """Linear and full attention by `layer_types`, or 0 and 1 in `attn_type_list` of first releases; in turn without."""
    if fields.count("shared_intermediate_size", 0):
        where = f"{fields.prefix}shared_intermediate_size"
        raise ProfileError(f"{where}: shared experts of MiniMax Text-01 are not known here; write 0, or a profile YAML")
    kinds = flagged_kinds(fields, "attn_type_list", LINEAR, FULL)
    kinds = layer_kinds(fields, "layer_types", (FULL, LINEAR), lambda i: kinds[i] if kinds else (FULL, LINEAR)[i % 2])
    sparse = mixture(
        fields, count="num_local_experts|num_experts", width=fields.size("intermediate_size"), router_weight_bytes=2
    )
    parts = {FULL: partial(grouped_query_attention, fields), LINEAR: partial(_lightning, fields)}
    return decoder(fields, by_layer(kinds, parts), every_layer(sparse))


def _minimax_m2(fields: Fields) -> ModelTensors:
    sparse = mixture(fields, count="num_local_experts", width=fields.size("intermediate_size"))
    attention = grouped_query_attention(fields, head_dim=128, qk_norm="whole")
    return decoder(fields, every_layer(attention), every_layer(sparse), notes=(UNCOUNTED_BUFFERS,))


def _fused_mlp(fields: Fields, width: int, name: str = "mlp") -> Tensors:
    hidden = fields.size("hidden_size")
    first = Tensor("gate_up_proj.weight", (2 * width, hidden), quantisable=True, stacked=2)
    return under(f"{name}.", (first, *linear("down_proj", hidden, width)))


def _sparse_settings(fields: Fields) -> Fields:
    """The sizes of the indexer, also as first releases have them in `sparse_attention_config`."""
    if fields.config.get("sparse_attention_config") is None:
        return fields
    inner = fields.nested("sparse_attention_config")
    if not inner.flag("use_sparse_attention", True):
        return fields.but(sparse_attention_freq=None, layer_types=None)
    names = {"sparse_num_index_heads": "index_n_heads", "sparse_index_dim": "index_head_dim"}
    names |= {key: key for key in ("sparse_attention_freq", "sparse_disable_index_value")}
    return fields.but(**{name: inner.config[key] for key, name in names.items() if key in inner.config})


def _block_indexer(fields: Fields) -> Mixer:
    """M3's indexer: a key a token, of which blocks are scored; queries and keys are normed."""
    hidden, heads, size = fields.size("hidden_size"), fields.size("index_n_heads"), fields.size("index_head_dim")
    tensors = linear("q_proj", heads * size, hidden) + linear("k_proj", size, hidden)
    tensors += norm("q_norm", size) + norm("k_norm", size)
    return Mixer(under("indexer.", tensors), Cache(values_per_token=size, flops_per_token_pair=2 * heads * size))


def _minimax_m3(fields: Fields) -> ModelTensors:
    """M3's text model. Its file lists which layers are indexed and which have experts as 0 and 1."""
    fields = _sparse_settings(fields)
    if fields.flag("attention_output_gate", False):
        where = f"{fields.prefix}attention_output_gate"
        raise ProfileError(f"{where}: no published MiniMax M3 has one and its shape is not known; write false")
    listed = flagged_kinds(fields, "sparse_attention_freq", FULL, INDEXED)
    kinds = layer_kinds(fields, "layer_types", (FULL, INDEXED), lambda i: listed[i] if listed else FULL)
    without = flagged_kinds(fields, "sparse_disable_index_value", "value", "none") or []
    if any(kind == INDEXED and value == "value" for kind, value in zip(kinds, without, strict=False)):
        given = short(fields.config["sparse_disable_index_value"])
        where = f"{fields.prefix}sparse_attention_config.sparse_disable_index_value"
        raise ProfileError(f"{where}: {given}; indexers with values are not known here; write 1 for indexed layers")
    routed = flagged_kinds(fields, "moe_layer_freq", DENSE, SPARSE)
    feeds = layer_kinds(fields, "mlp_layer_types", (DENSE, SPARSE), lambda i: routed[i] if routed else SPARSE)
    attention = grouped_query_attention(fields, head_dim=128, qk_norm="head")
    dense = FeedForward(_fused_mlp(fields, fields.size("dense_intermediate_size")))
    mtp = uncounted_mtp(fields if "num_nextn_predict_layers" in fields.config else _mtp_modules(fields))
    return decoder(
        fields,
        by_layer(kinds, {FULL: lambda: attention, INDEXED: lambda: indexed(attention, _block_indexer(fields))}),
        by_layer(feeds, {DENSE: lambda: dense, SPARSE: partial(_m3_experts, fields)}),
        notes=(UNCOUNTED_BUFFERS, *((INDEXER_NOTE,) if INDEXED in kinds else ()), *mtp),
    )


def _mtp_modules(fields: Fields) -> Fields:
    return fields.but(num_nextn_predict_layers=fields.count("num_mtp_modules", 0))


def _m3_experts(fields: Fields) -> FeedForward:
    plain = mixture(fields, count="num_local_experts|num_experts", width=fields.size("intermediate_size"))
    shared = _fused_mlp(fields, fields.size("shared_intermediate_size"), "shared_experts")
    return replace(plain, tensors=plain.tensors + under("mlp.", shared))


M3_NAMES = DiskNames(
    (
        (r"\.mlp\.(experts|gate|shared_experts)\b", r".block_sparse_moe.\1"),
        (r"\.self_attn\.indexer\.", ".self_attn.index_"),
        (r"\.gate_up_proj$", ".gate_proj"),
    ),
    ("w1", "w3", "w2"),
)
FAMILIES = {
    "minimax": Family(_minimax, MIXTRAL_NAMES),
    "minimax_m1": Family(_minimax, MIXTRAL_NAMES, "minimax", ("MiniMaxM1ForCausalLM",)),
    "minimax_m2": Family(_minimax_m2, MIXTRAL_NAMES),
    "minimax_m3": Family(
        _minimax_m3, M3_NAMES, "minimax_m3_vl_text", ("MiniMaxM3ForCausalLM", "MiniMaxM3SparseForCausalLM")
    ),
    "minimax_m3_vl_text": Family(_minimax_m3, M3_NAMES),
    "minimax_text_01": Family(_minimax, MIXTRAL_NAMES, "minimax", ("MiniMaxText01ForCausalLM",)),
}
