"""DeepSeek-V3.2 with an indexer, V4 with compressed caches and hyper-connections, and SK Telecom's A.X-K1 and K2."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import (
    EXPERTS,
    layer_tensors,
    listed_or_dense_first,
    shared_and_routed,
    with_next_token_layers,
)
from profiles.hf_config.families.family import Family
from profiles.hf_config.families.glm import sparse_latent
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts import hyper_connections as streams
from profiles.hf_config.parts import indexers
from profiles.hf_config.parts.attention import latent_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, linear, norm
from profiles.hf_config.parts.compressed import HEAVY, RATIOS, SPARSE, WINDOW, compressed_attention
from profiles.hf_config.parts.decoder import decoder, every_layer, layer_count, layer_kinds
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, mixture
from profiles.tensors import DiskNames, ModelTensors, Tensors, under

HASHED = "tables of experts by token (the first layers') are buffers too"


def _deepseek_v32(fields: Fields) -> ModelTensors:
    _, attention = sparse_latent(fields)
    model = decoder(fields, every_layer(attention), listed_or_dense_first(fields, 3), notes=(indexers.NOTE,))
    return with_next_token_layers(model, fields, layer=layer_tensors(fields, attention, shared_and_routed(fields)))


def _axk1(fields: Fields) -> ModelTensors:
    """DeepSeek-V3 with a norm after the experts."""
    attention = latent_attention(fields, bias=fields.flag("attention_bias", False))
    step, hidden = fields.size("moe_layer_freq", 1), fields.size("hidden_size")

    def sparse() -> FeedForward:
        return shared_and_routed(fields).beside(*norm("mlp.post_mlp_layernorm", hidden))

    feed_forward = listed_or_dense_first(fields, 1, sparse, step=step)
    return with_next_token_layers(decoder(fields, every_layer(attention), feed_forward), fields)


def _axk2(fields: Fields) -> ModelTensors:
    """Sparse attention whose queries and output gate are one projection, and norms with a gate of low rank."""
    _, plain = sparse_latent(fields)
    rank, hidden = fields.size("q_lora_rank"), fields.size("hidden_size")
    heads, value = fields.size("num_attention_heads"), fields.size("v_head_dim")
    query = fields.size("qk_nope_head_dim") + fields.count("qk_rope_head_dim")
    own = tuple(tensor for tensor in plain.tensors if ".q_b_proj." not in tensor.name)
    queries = linear("self_attn.q_gate_proj", heads * (query + value), 2 * rank)
    attention = Mixer(own + queries, plain.cache)
    feed_forward = listed_or_dense_first(fields, 1, step=fields.size("moe_layer_freq", 1))
    narrow = fields.size("gated_norm_rank")

    def gated(name: str) -> Tensors:
        gate = linear("mlp.fc1", narrow, hidden) + linear("mlp.fc2", hidden, narrow)
        return under(f"{name}.", norm("norm", hidden) + gate)

    def norms(index: int) -> Tensors:
        after = "post_attention_layernorm"
        sparse = feed_forward(index).experts is not None
        return gated("input_layernorm") + (gated(after) if sparse else norm(after, hidden))

    model = decoder(fields, every_layer(attention), feed_forward, norms=(), beside=norms, notes=(indexers.NOTE,))
    return with_next_token_layers(model, fields)


def _deepseek_v4(fields: Fields) -> ModelTensors:
    """DeepSeek-V4: experts in every layer. Its layers that predict further tokens (`mtp.N` in checkpoints) are whole
    layers with two projections, three norms and a mixer of streams, without an embedding or a head of their own.

    transformers holds norms in fp32 too; checkpoints do not, and they are counted with the rest.
    """
    kinds, extra = _v4_kinds(fields)
    attention = cache(lambda kind: compressed_attention(fields, kind))
    width = fields.size("moe_intermediate_size")
    bias = fields.flag("mlp_bias", False)
    experts = mixture(fields, count=EXPERTS, width=width, shared_width=width, shared_bias=bias)
    mixers = streams.hyper_connections(fields, fp32=True)
    notes: tuple[str, ...] = (streams.NOTE, indexers.NOTE, UNCOUNTED_BUFFERS, HASHED)
    if extra:
        notes += (f"{len(extra)} multi-token-prediction layer(s) of the checkpoint are left out, as transformers does",)
    model = decoder(
        fields,
        lambda index: attention(kinds[index]),
        every_layer(experts),
        beside=every_layer(mixers),
        head=under("model.hc_head.", streams.hyper_head(fields)),
        notes=notes,
    )
    mtp: Tensors = ()
    for index, kind in enumerate(extra):
        layer = layer_tensors(fields, attention(kind), experts) + mixers
        mtp += under(f"mtp.{index}.", layer + _v4_around(fields))
    return replace(model, mtp=mtp)


def _v4_around(fields: Fields) -> Tensors:
    hidden = fields.size("hidden_size")
    tensors = linear("e_proj", hidden, hidden) + linear("h_proj", hidden, hidden)
    tensors += norm("enorm", hidden) + norm("hnorm", hidden) + norm("norm", hidden)
    return tensors + under("hc_head.", streams.hyper_head(fields))


def _v4_kinds(fields: Fields) -> tuple[list[str], list[str]]:
    """The type of each layer and of those that predict further tokens, from `layer_types` or `compress_ratios`.

    Lists may go on behind the last layer: for the further ones. Without a list: two heavily compressed layers, then by
    turns; a further one has a window only.
    """
    layers = layer_count(fields)
    further = fields.count("num_nextn_predict_layers", 0, most=MAX_LAYERS)
    kinds: list[str] = []
    listed = fields.config.get("layer_types")
    ratios = fields.whole_numbers("compress_ratios") if listed is None else None
    if isinstance(listed, list):
        known = (WINDOW, SPARSE, HEAVY)
        kinds = fields.but(layer_types=listed[:layers]).per_layer("layer_types", known, layers) or []
    elif ratios is not None:
        wrong = next((ratio for ratio in ratios if ratio not in RATIOS), None)
        if wrong is not None or len(ratios) < layers:
            what = f"has {short(wrong)}" if wrong is not None else f"has {len(ratios)} entries for {layers} layers"
            raise ProfileError(f"{fields.prefix}compress_ratios: {what}; give 0, 4 or 128 for each layer")
        kinds = [RATIOS[ratio] for ratio in ratios]
    else:
        kinds = layer_kinds(fields, "layer_types", (), lambda i: SPARSE if i >= 2 and i % 2 else HEAVY)
    behind = kinds[layers : layers + further]
    return kinds[:layers], behind + [WINDOW] * (further - len(behind))


V4_NAMES = DiskNames(
    renames=(
        (r"^model\.", ""), (r"^lm_head\b", "head"), (r"^embed_tokens\b", "embed"), (r"\bhc_head\.hc_", "hc_head_"),
        (r"\.compressor\.indexer\.scorer\b", ".indexer"), (r"\.compressor\.indexer\.q_b_proj\b", ".indexer.wq_b"),
        (r"\.compressor\.indexer\b", ".indexer.compressor"), (r"\.compressor\.kv_norm\b", ".compressor.norm"),
        (r"\.(attn|ffn)_hc\.", r".hc_\1_"), (r"\.self_attn\b", ".attn"), (r"\.mlp\b", ".ffn"),
        (r"\.input_layernorm\b", ".attn_norm"), (r"\.post_attention_layernorm\b", ".ffn_norm"),
        (r"(\.shared_experts)\.gate_proj\b", r"\1.w1"), (r"(\.shared_experts)\.up_proj\b", r"\1.w3"),
        (r"(\.shared_experts)\.down_proj\b", r"\1.w2"), (r"\.position_bias\b", ".ape"),
        (r"\.q_a_proj\b", ".wq_a"), (r"\.q_a_norm\b", ".q_norm"), (r"\.q_b_proj\b", ".wq_b"), (r"\.kv_proj\b", ".wkv"),
        (r"\.compressor\.gate_proj\b", ".compressor.wgate"), (r"\.o_a_proj\b", ".wo_a"), (r"\.o_b_proj\b", ".wo_b"),
        (r"\.sinks\b", ".attn_sink"),
    ),
    projections=("w1", "w3", "w2"),
)  # fmt: skip
"""DeepSeek's own names, as in `layers.3.attn.wq_a.weight`; the router's correction bias is `layers.3.ffn.gate.bias`."""
AXK1_NAMES = DiskNames(((r"\.mlp\.post_mlp_layernorm\b", ".post_mlp_layernorm"),))
AXK2_NAMES = DiskNames(((r"layernorm\.mlp\.fc1\b", "layernorm.W_down"), (r"layernorm\.mlp\.fc2\b", "layernorm.W_up")))
FAMILIES = {
    "axk1": Family(_axk1, AXK1_NAMES),
    "axk2": Family(_axk2, AXK2_NAMES),
    "deepseek_v32": Family(_deepseek_v32),
    "deepseek_v4": Family(_deepseek_v4, V4_NAMES, architectures=("DeepseekV4ForCausalLM",)),
}
