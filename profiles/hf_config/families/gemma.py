"""Gemma 4: windows in five of six layers, larger heads in the sixth, experts beside a dense FFN; DiffusionGemma."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families.family import FUSED, Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import head_shape
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear, norm
from profiles.hf_config.parts.decoder import decoder, layer_count, layer_kinds
from profiles.hf_config.parts.feed_forward import gated_mlp, mixture
from profiles.tensors import Cache, ModelTensors, Tensors, under

FULL, SLIDING = "full_attention", "sliding_attention"
INTERVAL, GLOBAL_HEAD_DIM = 6, 512
"""Where a file is silent: every sixth layer is full attention, with heads of this size."""
PER_LAYER = "per_layer_config"
NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
EXPERT_NORMS = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")


def _kinds(fields: Fields) -> list[str]:
    """The kind of each layer; the last is full attention whatever the list says, as in transformers."""
    known = (FULL, SLIDING)
    kinds = layer_kinds(fields, "layer_types", known, lambda i: SLIDING if (i + 1) % INTERVAL else FULL)
    return [*kinds[:-1], FULL]


def _window(fields: Fields) -> int:
    window = fields.size("sliding_window")
    both_ways = fields.config.get("use_bidirectional_attention") == "all"
    return window // 2 + 1 if both_ways else window


def _by_layer(fields: Fields, kinds: Sequence[str], *, fewer_heads: bool) -> Callable[[int], Fields]:
    """The fields as each layer sees them. Published files say `global_head_dim` and `num_global_key_value_heads`
    (used where `fewer_heads`), those that transformers writes `per_layer_config`: index -> what differs.
    """
    if fields.config.get(PER_LAYER) is None:
        heads = fields.maybe_size("num_global_key_value_heads") if fewer_heads else None
        wide = fields.but(
            head_dim=fields.size("global_head_dim", GLOBAL_HEAD_DIM),
            num_key_value_heads=heads or fields.size("num_key_value_heads"),
        )
        return lambda index: wide if kinds[index] == FULL else fields
    given, own = fields.nested(PER_LAYER), {}
    for key in given.config:
        values = given.nested(key).config
        if not key.isdigit() or int(key) >= len(kinds) or set(values) - {"head_dim", "num_key_value_heads"}:
            place = f"{given.prefix}{key}"
            raise ProfileError(
                f"{place}: {short(values)}; give head_dim and num_key_value_heads of a layer by its index"
            )
        own[int(key)] = fields.but(**values)
    return lambda index: own.get(index, fields)


def _attention(fields: Fields, window: int | None, *, values: bool, reuses: bool) -> Mixer:
    """Attention with norms of queries and keys. Without `values` the keys' projection gives the values too (both are
    cached); where it `reuses` an earlier layer's keys and values it has and caches none.
    """
    hidden, bias = fields.size("hidden_size"), fields.flag("attention_bias", False)
    heads, kv_heads, size = head_shape(fields)
    queries, keys = heads * size, kv_heads * size
    tensors = linear("q_proj", queries, hidden, bias=bias) + norm("q_norm", size)
    tensors += linear("o_proj", hidden, queries, bias=bias)
    if not reuses:
        tensors += linear("k_proj", keys, hidden, bias=bias) + norm("k_norm", size)
        tensors += linear("v_proj", keys, hidden, bias=bias) if values else ()
    cached = 0 if reuses else 2 * keys
    return Mixer(under("self_attn.", tensors), Cache(cached, window, flops_per_token_pair=4 * queries))


def _feed_forward(fields: Fields, *, wide: bool, experts: bool) -> FeedForward:
    """A dense FFN in every layer, and where there are `experts` those beside it, with norms of their own."""
    dense = gated_mlp(fields, fields.size("intermediate_size") * (2 if wide else 1))
    if not experts:
        return dense
    hidden, count = fields.size("hidden_size"), fields.size("num_experts")
    routed = mixture(
        fields,
        count="num_experts",
        width=fields.size("moe_intermediate_size"),
        active="top_k_experts",
        router="router.proj",
        name="",
    )
    router = kept("router.scale", hidden) + kept("router.per_expert_scale", count)
    return routed.beside(*dense.tensors, *router)


def _per_layer_inputs(fields: Fields) -> tuple[Tensors, Tensors]:
    """What gives every layer an input of its own from the token's id: tensors beside the embedding, and of a layer."""
    size, hidden = fields.count("hidden_size_per_layer_input", 0), fields.size("hidden_size")
    if not size:
        return (), ()
    wide, rows = size * layer_count(fields), fields.size("vocab_size_per_layer_input")
    table = kept("model.embed_tokens_per_layer.weight", rows, wide)
    table += linear("model.per_layer_model_projection", wide, hidden) + norm("model.per_layer_projection_norm", size)
    layer = linear("per_layer_input_gate", size, hidden) + linear("per_layer_projection", hidden, size)
    return table, layer + norm("post_per_layer_input_norm", hidden)


def _first_reusing(fields: Fields, kinds: Sequence[str]) -> int:
    """The first of the `num_kv_shared_layers` last layers, which use keys and values of the last before them."""
    shared = fields.count("num_kv_shared_layers", 0, most=MAX_LAYERS)
    first = max(0, len(kinds) - shared)
    if shared and set(kinds[:first]) != set(kinds):
        raise ProfileError(
            f"{fields.prefix}num_kv_shared_layers: {shared} of {len(kinds)} layers leaves no layer of each kind before "
            "them; lower it"
        )
    return first


def _model(fields: Fields, *, experts: bool, by_token: bool, always_one: bool = False) -> ModelTensors:
    kinds = _kinds(fields)
    equal, window = always_one or fields.flag("attention_k_eq_v", False), _window(fields)
    own = _by_layer(fields, kinds, fewer_heads=equal)
    first = len(kinds) if always_one else _first_reusing(fields, kinds)
    doubles = not always_one and fields.flag("use_double_wide_mlp", False)
    table, inputs = _per_layer_inputs(fields) if by_token else ((), ())

    def mixer(index: int) -> Mixer:
        full = kinds[index] == FULL
        return _attention(own(index), None if full else window, values=not (full and equal), reuses=index >= first)

    made = cache(lambda wide: _feed_forward(fields, wide=wide, experts=experts))
    reusing = len(kinds) - first
    note = f"the last {reusing} layers use keys and values of earlier ones, which come from those layers' device"
    return decoder(
        fields,
        mixer,
        lambda index: made(doubles and index >= first),
        norms=NORMS + (EXPERT_NORMS if experts else ()),
        beside=lambda _: inputs,
        embedding=table,
        tied=True,
        notes=(note,) if reusing else (),
    )


def _gemma4(fields: Fields) -> ModelTensors:
    return _model(fields, experts=fields.flag("enable_moe_block", False), by_token=True)


def _gemma4_unified(fields: Fields) -> ModelTensors:
    return _model(fields, experts=False, by_token=False)


def _diffusion_gemma(fields: Fields) -> ModelTensors:
    """Generates blocks of tokens by diffusion: the prompt goes through an encoder with the decoder's very weights and
    fills the cache, which the decoder reads while it refines a block; a small FFN feeds its guesses back to its input.
    """
    model = _model(fields, experts=True, by_token=False, always_one=True)
    guesses = (
        norm("pre_norm", model.hidden_size) + gated_mlp(fields, fields.size("intermediate_size"), name="x").tensors
    )
    guesses = tuple(replace(tensor, name=tensor.name.removeprefix("x.")) for tensor in guesses)
    note = "generates blocks of tokens in several steps each; times are of one token a step"
    return replace(
        model, embedding=model.embedding + under("model.self_conditioning.", guesses), notes=(*model.notes, note)
    )


FAMILIES = {
    "diffusion_gemma_text": Family(_diffusion_gemma, FUSED, handles=(PER_LAYER,)),
    "gemma4_text": Family(_gemma4, FUSED, handles=(PER_LAYER,)),
    "gemma4_unified_text": Family(_gemma4_unified, handles=(PER_LAYER,)),
}
