"""LongCat-Flash: two attentions and two dense networks a layer beside experts, some of which compute nothing."""

from __future__ import annotations

from dataclasses import replace

from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_EXPERTS, MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import latent_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear
from profiles.hf_config.parts.decoder import decoder, every_layer
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp, mixture
from profiles.tensors import ModelTensors, Tensors

TWICE = (0, 1)
NORMS = tuple(f"{name}.{index}" for name in ("input_layernorm", "post_attention_layernorm") for index in TWICE)


def _longcat_flash(fields: Fields) -> ModelTensors:
    """`num_layers` layers; transformers' `num_hidden_layers` counts each twice, for its two caches.

    Experts are those that checkpoints store. transformers 5.23 makes its `gate_up_proj` longer by `zero_expert_num`
    rows that nothing fills, which are not counted.
    """
    return _longcat(fields, ())


def _longcat_ngram(fields: Fields) -> ModelTensors:
    """LongCat-Flash-Lite, whose embedding adds those of the last tokens together, hashed into tables.

    transformers does not know it. For each length from 2 to `emb_neighbor_num` there are `emb_split_num` tables of
    about `ngram_vocab_size_ratio` vocabularies (each two rows longer than the one before) and a projection.
    """
    hidden, lengths = fields.size("hidden_size"), fields.size("emb_neighbor_num", most=100) - 1
    tables = fields.size("emb_split_num", most=1000) * lengths
    rows = fields.size("ngram_vocab_size_ratio") * fields.size("vocab_size")
    ngrams: Tensors = ()
    for index in range(tables):
        ngrams += kept(f"model.ngram_embeddings.embedders.{index}.weight", rows + 2 * index + 1, hidden // tables)
        ngrams += linear(f"model.ngram_embeddings.post_projs.{index}", hidden, hidden // tables)
    return _longcat(fields, ngrams)


def _longcat(fields: Fields, embedding: Tensors) -> ModelTensors:
    if "num_layers" in fields.config:
        layers = fields.size("num_layers", most=MAX_LAYERS)
    else:
        layers = max(1, fields.size("num_hidden_layers", most=2 * MAX_LAYERS) // 2)
    fields = fields.but(num_hidden_layers=layers)
    zero = fields.count("zero_expert_num", 0, most=MAX_EXPERTS)
    notes: tuple[str, ...] = (UNCOUNTED_BUFFERS, "two attentions a layer, of which its cache is the sum")
    if zero:
        experts, used = fields.size("n_routed_experts|num_local_experts"), fields.size("moe_topk")
        average = f"on average {used * experts / (experts + zero):g} of the {used} chosen compute"
        notes += (f"{zero} experts more can be chosen that compute nothing: {average}",)
    attention, feeds = _two_attentions(fields), _feed_forward(fields, zero)
    return decoder(fields, every_layer(attention), every_layer(feeds), norms=NORMS, embedding=embedding, notes=notes)


def _two_attentions(fields: Fields) -> Mixer:
    one = latent_attention(fields, bias=fields.flag("attention_bias", False))
    tensors = tuple(
        replace(tensor, name=tensor.name.replace("self_attn.", f"self_attn.{index}."))
        for index in TWICE
        for tensor in one.tensors
    )
    both = replace(
        one.cache,  # expanded one after the other, so what is expanded stays that of one
        values_per_token=2 * one.cache.values_per_token,
        flops_per_token_pair=2 * one.cache.flops_per_token_pair,
        full_values_per_token=2 * one.cache.full_values_per_token,
    )
    return Mixer(tensors, both)


def _feed_forward(fields: Fields, zero: int) -> FeedForward:
    experts = mixture(
        fields,
        count="n_routed_experts|num_local_experts",
        width=fields.size("expert_ffn_hidden_size|moe_intermediate_size"),
        router="router.classifier",
        router_bias=fields.flag("router_bias", False),
        active="moe_topk|num_experts_per_tok",
        zero_experts=zero,
    )
    width = fields.size("ffn_hidden_size|intermediate_size")
    return experts.beside(*(t for index in TWICE for t in gated_mlp(fields, width, name=f"mlps.{index}").tensors))


FAMILIES = {
    "longcat_flash": Family(_longcat_flash),
    "longcat_flash_ngram": Family(
        _longcat_ngram, defaults="longcat_flash", architectures=("LongcatFlashNgramForCausalLM",)
    ),
}
