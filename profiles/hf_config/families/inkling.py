"""Inkling and Inkling 2: attention with relative positions, windows in five of six layers, and short convolutions over
keys, values and what each part of a layer adds.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from profiles.hf_config.families.deepseek import DENSE, SPARSE
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, convolution, kept, linear, norm
from profiles.hf_config.parts.decoder import NORMS, by_layer, decoder, in_fp32, layer_count, layer_kinds
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp, mixture
from profiles.tensors import DiskNames, ModelTensors, Tensor, Tensors, under

FULL, SLIDING = "hybrid", "hybrid_sliding"
RESIDUALS = "attention over earlier layers' outputs: one hidden vector a token is counted between layers, not all"
ROUTED = "n_routed_experts|num_local_experts"


def _kinds(fields: Fields) -> list[str]:
    """From `layer_types`, or the indices in `local_layer_ids`; without them a full layer follows five with windows."""
    listed = fields.whole_numbers("local_layer_ids")
    local = set(listed) if listed is not None else {i for i in range(layer_count(fields)) if (i + 1) % 6}
    return layer_kinds(fields, "layer_types", (FULL, SLIDING), lambda i: SLIDING if i in local else FULL)


def _sizes(fields: Fields, kind: str) -> tuple[Fields, int | None, int]:
    """The fields with the heads of layers of `kind`, their window, and how far their relative positions reach."""
    if kind == FULL:
        return fields, None, fields.size("rel_extent")
    window = fields.size("sliding_window_size|sliding_window")
    names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    return fields.but(**{name: fields.size(f"swa_{name}") for name in names}), window, window


def _attention(fields: Fields, kind: str) -> Mixer:
    """Attention of a layer of `kind` with the part that sees relative positions; what all Inklings have."""
    own, window, reach = _sizes(fields, kind)
    heads, relative = own.size("num_attention_heads"), fields.size("d_rel")
    tensors = linear("r_proj", heads * relative, fields.size("hidden_size"))
    tensors += kept("rel_logits_proj.proj", relative, reach)
    return grouped_query_attention(own, window=window).beside(*under("self_attn.", tensors))


def _keeping(mixer: Mixer, fields: Fields, key_values: int) -> Mixer:
    """`mixer` and the columns that the four convolutions of its layer keep: over keys, values, and twice over all."""
    columns = (2 * key_values + 2 * fields.size("hidden_size")) * _kernel(fields)
    return replace(mixer, cache=replace(mixer.cache, state_fp32_values=columns))


def _kernel(fields: Fields) -> int:
    return fields.size("conv_kernel_size|sconv_kernel_size")


def _convolution(name: str, channels: int, fields: Fields) -> Tensors:
    return convolution(f"{name}.conv1d", channels, _kernel(fields))


def _key_values(fields: Fields, kind: str) -> int:
    own, _, _ = _sizes(fields, kind)
    return own.size("num_key_value_heads") * own.size("head_dim")


def _inkling_attention(fields: Fields, kind: str) -> Mixer:
    own, _, _ = _sizes(fields, kind)
    size, width = own.size("head_dim"), _key_values(fields, kind)
    tensors = norm("q_norm", size) + norm("k_norm", size)
    tensors += _convolution("k_sconv", width, fields) + _convolution("v_sconv", width, fields)
    return _keeping(_attention(fields, kind).beside(*under("self_attn.", tensors)), fields, width)


def _inkling_experts(fields: Fields, width: int) -> FeedForward:
    """Routed experts; the router also weighs `n_shared_experts` shared ones, which are stacked like those."""
    hidden, shared = fields.size("hidden_size"), fields.count("n_shared_experts", most=1000)
    plain = mixture(fields, count=ROUTED, width=width, zero_experts=shared)
    if plain.experts is None:
        return plain
    stacked = tuple(
        Tensor(f"mlp.shared_experts.{name}", (shared, *shape), quantisable=True)
        for name, shape in (
            ("gate_proj", (width, hidden)),
            ("up_proj", (width, hidden)),
            ("down_proj", (hidden, width)),
        )
    )
    routed = replace(plain.experts, active=fields.size("num_experts_per_tok"))
    return FeedForward(plain.tensors + kept("mlp.gate.global_scale", 1) + (stacked if shared else ()), routed)


def _inkling(fields: Fields) -> ModelTensors:
    """`dense_intermediate_size`, where a file has it, is the dense width, and `intermediate_size` that of an expert."""
    hidden, first = fields.size("hidden_size"), fields.count("dense_mlp_idx", 0, most=MAX_LAYERS)
    dense, width = fields.size("intermediate_size"), None
    if fields.config.get("dense_intermediate_size") is not None:
        dense, width = fields.size("dense_intermediate_size"), dense
    mlp = gated_mlp(fields, dense).beside(*kept("mlp.global_scale", 1))
    feeds = layer_kinds(fields, "mlp_layer_types", (DENSE, SPARSE), lambda i: DENSE if i < first else SPARSE)
    kinds = _kinds(fields)
    beside = _convolution("attn_sconv", hidden, fields) + _convolution("mlp_sconv", hidden, fields)
    model = decoder(
        fields,
        by_layer(kinds, {kind: partial(_inkling_attention, fields, kind) for kind in (FULL, SLIDING)}),
        by_layer(
            feeds,
            {
                DENSE: lambda: mlp,
                SPARSE: lambda: _inkling_experts(fields, width or fields.size("moe_intermediate_size")),
            },
        ),
        beside=lambda _: beside,
        embedding=norm("model.embed_tokens.embed_norm", hidden),
        notes=(UNCOUNTED_BUFFERS, *_mtp_note(fields)),
    )
    return in_fp32(model, "attn_sconv", "mlp_sconv", "k_sconv", "v_sconv", "gate.global_scale")


def _mtp_note(fields: Fields) -> tuple[str, ...]:
    extra = fields.config.get("num_mtp_layers")
    note = f"{extra} multi-token-prediction layer(s) of the checkpoint are neither loaded nor counted in its file"
    return (note,) if extra else ()


def _inkling2_attention(fields: Fields, kind: str) -> Mixer:
    """With a gate and a sink from each token; in full layers the convolutions' weights are of each token too."""
    own, _, _ = _sizes(fields, kind)
    hidden, heads, kernel = fields.size("hidden_size"), own.size("num_attention_heads"), _kernel(fields)
    size, width, kv_heads = own.size("head_dim"), _key_values(fields, kind), own.size("num_key_value_heads")
    tensors = linear("gate_proj", heads * size, hidden) + linear("sink_proj", heads, hidden)
    tensors += kept("q_l2_clip.scale", heads, size) + kept("rel_l2_clip.scale", heads, fields.size("d_rel"))
    for name in ("k_sconv", "v_sconv"):
        if kind == SLIDING:
            tensors += _convolution(name, width, fields)
        else:
            tensors += kept(f"{name}.static_weight", kernel, width)
            tensors += linear(f"{name}.weight_proj", kv_heads * kernel, hidden)
    return _keeping(_attention(fields, kind).beside(*under("self_attn.", tensors)), fields, width)


def _inkling2_norms(kind: str) -> tuple[str, ...]:
    inputs = tuple(f"{name}_input_layernorm" for name in "qkv") if kind == FULL else NORMS[:1]
    return (*inputs, NORMS[1])


def _inkling2(fields: Fields) -> ModelTensors:
    """Each part of a layer takes its input from all earlier blocks of layers, by one query or, in full ones, three."""
    kinds, hidden = _kinds(fields.but(local_layer_ids=None)), fields.size("hidden_size")
    sparse = mixture(
        fields, count=ROUTED, width=fields.size("moe_intermediate_size|intermediate_size"), router_fp32=True
    )
    beside = _convolution("post_attention_convolution", hidden, fields)
    beside += _convolution("post_mlp_convolution", hidden, fields) + kept("mlp_input.query", hidden)

    def around(index: int) -> Tensors:
        queries = (3, hidden) if kinds[index] == FULL else (hidden,)
        return beside + (kept("attention_input.query", *queries) if index else ())

    model = decoder(
        fields,
        by_layer(kinds, {kind: partial(_inkling2_attention, fields, kind) for kind in (FULL, SLIDING)}),
        lambda _: sparse,
        norms=lambda index: _inkling2_norms(kinds[index]),
        beside=around,
        embedding=norm("model.embed_tokens.embed_norm", hidden),
        head=kept("model.final_input.query", hidden),
        notes=(RESIDUALS, UNCOUNTED_BUFFERS),
    )
    fp32 = ("post_attention_convolution", "post_mlp_convolution", "k_sconv.conv1d", "v_sconv.conv1d")
    return in_fp32(model, *fp32, "attention_input", "mlp_input", "final_input")


ATTENTION_NAMES = (
    *((rf"\.self_attn\.{new}\b", f".attn.{old}") for new, old in (
        ("q_proj", "wq_du"), ("k_proj", "wk_dv"), ("v_proj", "wv_dv"), ("r_proj", "wr_du"), ("o_proj", "wo_ud"),
        ("gate_proj", "gate_attn"), ("sink_proj", "attn_sink_proj"))),
    (r"\.self_attn\.", ".attn."), (r"\.experts\.gate_up_proj\b", ".experts.w13_weight"),
    (r"\.experts\.down_proj\b", ".experts.w2_weight"), (r"\.post_attention_layernorm\b", ".mlp_norm"),
    (r"\.input_layernorm\b", ".attn_norm"), (r"^lm_head\b", "model.llm.unembed"),
    (r"^model\.embed_tokens\.embed_norm\b", "model.llm.embed_norm"), (r"^model\.embed_tokens\b", "model.llm.embed"),
    (r"^model\.(?!llm)", "model.llm."),
)  # fmt: skip
INKLING_NAMES = DiskNames(
    (
        (r"\.shared_experts\.(gate|up)_proj\b", ".shared_experts.shared_w13_weight"),
        (r"\.shared_experts\.down_proj\b", ".shared_experts.shared_w2_weight"),
        (r"\.mlp\.(gate|up)_proj\b", ".mlp.w13_dn"), (r"\.mlp\.down_proj\b", ".mlp.w2_md"), *ATTENTION_NAMES,
    ),
    (),
)  # fmt: skip
FAMILIES = {
    "inkling2_text": Family(_inkling2, DiskNames(ATTENTION_NAMES, ())),
    "inkling_text": Family(_inkling, INKLING_NAMES),
}
