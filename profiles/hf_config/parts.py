"""The parts that decoders are made of, as tensors: attention of three kinds, feed-forward networks, routed experts.

Names are relative to the decoder layer. Each shape is the one that transformers gives the parameter of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from profiles.errors import ProfileError
from profiles.hf_config.fields import MAX_EXPERTS, MAX_LAYERS, Fields
from profiles.tensors import Cache, LayerTensors, ModelTensors, RoutedExperts, Tensor, Tensors, under


@dataclass(frozen=True)
class Mixer:
    """What mixes the tokens of a layer (attention or a recurrence): its tensors and what it caches."""

    tensors: Tensors
    cache: Cache


@dataclass(frozen=True)
class FeedForward:
    """What follows: tensors that stay with the attention (a dense FFN, or router and shared experts), and experts."""

    tensors: Tensors
    experts: RoutedExperts | None = None


def linear(name: str, out_features: int, in_features: int, *, bias: bool = False) -> Tensors:
    """A projection and, perhaps, its bias."""
    weight = Tensor(f"{name}.weight", (out_features, in_features), quantisable=True)
    return (weight, Tensor(f"{name}.bias", (out_features,))) if bias else (weight,)


def kept(name: str, *shape: int) -> Tensors:
    """A tensor that no format quantises: a norm, a router, a gate, a convolution."""
    return (Tensor(name, shape),)


def norm(name: str, size: int, *, bias: bool = False) -> Tensors:
    """A norm's weight and, perhaps, its bias."""
    return kept(f"{name}.weight", size) + (kept(f"{name}.bias", size) if bias else ())


def layer_count(fields: Fields) -> int:
    return fields.size("num_hidden_layers", most=MAX_LAYERS)


def head_shape(fields: Fields, default_head_dim: int | None = None) -> tuple[int, int, int]:
    """(attention heads, key-value heads, size of a head); sizes that do not divide are refused."""
    heads = fields.size("num_attention_heads")
    kv_heads = fields.maybe_size("num_key_value_heads", heads) or heads
    if heads % kv_heads:
        raise ProfileError(
            f"{fields.prefix}num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}; mend one"
        )
    head_dim = fields.maybe_size("head_dim", default_head_dim)
    if head_dim is None:
        hidden = fields.size("hidden_size")
        if hidden % heads:
            raise ProfileError(
                f"{fields.prefix}num_attention_heads: {heads} does not divide hidden_size {hidden}; mend one"
            )
        head_dim = hidden // heads
    return heads, kv_heads, head_dim


def grouped_query_attention(
    fields: Fields,
    *,
    bias: bool = False,
    out_bias: bool = False,
    head_dim: int | None = None,
    qk_norm: Literal["none", "head", "whole"] = "none",
    gated: bool = False,
    sinks: bool = False,
    window: int | None = None,
) -> Mixer:
    """Attention whose key-value heads are shared by groups of heads; keys and values are cached.

    `qk_norm` normalises queries and keys per head or over their whole width; `gated` doubles the query projection.
    Ignored: a causal mask halves the score FLOPs of a prompt with itself; they are counted for every pair.
    """
    hidden = fields.size("hidden_size")
    heads, kv_heads, size = head_shape(fields, head_dim)
    queries, keys = heads * size, kv_heads * size
    tensors = linear("q_proj", queries * (2 if gated else 1), hidden, bias=bias)
    tensors += linear("k_proj", keys, hidden, bias=bias) + linear("v_proj", keys, hidden, bias=bias)
    tensors += linear("o_proj", hidden, queries, bias=out_bias)
    if qk_norm != "none":
        tensors += norm("q_norm", size if qk_norm == "head" else queries)
        tensors += norm("k_norm", size if qk_norm == "head" else keys)
    if sinks:
        tensors += kept("sinks", heads)
    cache = Cache(values_per_token=2 * keys, window_tokens=window, flops_per_token_pair=4 * queries)
    return Mixer(under("self_attn.", tensors), cache)


def latent_attention(fields: Fields, *, bias: bool = False, rope_key: str = "qk_rope_head_dim") -> Mixer:
    """Multi-head latent attention (DeepSeek-V2): the cache holds a latent of `kv_lora_rank` and the rotary key.

    transformers caches exactly that and expands the whole of it at every step: for each cached token keys of
    nope + rope values a head beside the projection's nope + v. FLOPs are of scores and values on expanded heads;
    ignored: the expansion itself (2 * rank * heads * (nope + v) a cached token and step), and runtimes that absorb it.
    """
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    query_rank, rank = fields.maybe_size("q_lora_rank", 0), fields.size("kv_lora_rank")
    if query_rank == 0:
        raise ProfileError(f"{fields.prefix}q_lora_rank: missing; add it (null where queries have no low rank)")
    nope, rope, v = fields.size("qk_nope_head_dim"), fields.size(rope_key), fields.size("v_head_dim")
    if query_rank is None:
        tensors = linear("q_proj", heads * (nope + rope), hidden)
    else:
        tensors = linear("q_a_proj", query_rank, hidden, bias=bias) + norm("q_a_layernorm", query_rank)
        tensors += linear("q_b_proj", heads * (nope + rope), query_rank)
    tensors += linear("kv_a_proj_with_mqa", rank + rope, hidden, bias=bias) + norm("kv_a_layernorm", rank)
    tensors += linear("kv_b_proj", heads * (nope + v), rank) + linear("o_proj", hidden, heads * v, bias=bias)
    cache = Cache(
        values_per_token=rank + rope,
        flops_per_token_pair=2 * heads * (nope + rope + v),
        expanded_values_per_token=heads * (2 * nope + rope + v),
        full_values_per_token=heads * (nope + rope + v),
    )
    return Mixer(under("self_attn.", tensors), cache)


def gated_delta_net(fields: Fields) -> Mixer:
    """Linear attention (Qwen3-Next): no cache per token, but a convolution's and a recurrence's state.

    The convolution keeps `linear_conv_kernel_dim` columns of activations; the recurrence keeps a matrix of
    key by value size a value head, which transformers computes and caches in fp32.
    """
    hidden = fields.size("hidden_size")
    key_heads, value_heads = fields.size("linear_num_key_heads"), fields.size("linear_num_value_heads")
    key_size, value_size = fields.size("linear_key_head_dim"), fields.size("linear_value_head_dim")
    keys, values, kernel = key_heads * key_size, value_heads * value_size, fields.size("linear_conv_kernel_dim")
    tensors = kept("dt_bias", value_heads) + kept("A_log", value_heads)
    tensors += kept("conv1d.weight", 2 * keys + values, 1, kernel)
    tensors += linear("in_proj_qkvz", 2 * keys + 2 * values, hidden) + linear("in_proj_ba", 2 * value_heads, hidden)
    tensors += norm("norm", value_size) + linear("out_proj", hidden, values)
    cache = Cache(state_values=(2 * keys + values) * kernel, state_fp32_values=value_heads * key_size * value_size)
    return Mixer(under("linear_attn.", tensors), cache)


def gated_mlp(fields: Fields, width: int, *, bias: bool = False, name: str = "mlp") -> FeedForward:
    """A dense feed-forward network with a gate."""
    hidden = fields.size("hidden_size")
    tensors = linear("gate_proj", width, hidden, bias=bias) + linear("up_proj", width, hidden, bias=bias)
    return FeedForward(under(f"{name}.", tensors + linear("down_proj", hidden, width, bias=bias)))


def mixture(
    fields: Fields,
    *,
    count: str,
    width: int,
    shared_width: int = 0,
    shared_name: str = "shared_experts",
    router: str = "gate",
    router_bias: bool = False,
    shared_gate: bool = False,
    expert_bias: bool = False,
    transposed: bool = False,
    active: str = "num_experts_per_tok",
    router_weight_bytes: int = 4,
    shared_bias: bool = False,
    name: str = "mlp",
) -> FeedForward:
    """Routed experts with gate and up projection fused, their router, and shared experts of `shared_width` if any.

    `count` and `active` are the config's keys for the number of experts and of those that a token uses.
    """
    hidden = fields.size("hidden_size")
    experts, used = fields.size(count, most=MAX_EXPERTS), fields.size(active)
    if used > experts:
        key = active.split("|")[0]
        raise ProfileError(f"{fields.prefix}{key}: {used} is more than the {experts} experts there are; mend one")
    around = kept(f"{router}.weight", experts, hidden)
    around += kept(f"{router}.bias", experts) if router_bias else ()
    if shared_width:
        around += gated_mlp(fields, shared_width, bias=shared_bias, name=shared_name).tensors
        around += kept("shared_expert_gate.weight", 1, hidden) if shared_gate else ()
    gate_up = (experts, hidden, 2 * width) if transposed else (experts, 2 * width, hidden)
    down = (experts, width, hidden) if transposed else (experts, hidden, width)
    inside: Tensors = (
        Tensor("gate_up_proj", gate_up, True, transposed, stacked=2),
        Tensor("down_proj", down, True, transposed),
    )
    if expert_bias:
        inside += kept("gate_up_proj_bias", experts, 2 * width) + kept("down_proj_bias", experts, hidden)
    routed = RoutedExperts(under(f"{name}.experts.", inside), experts, used, width, router_weight_bytes)
    return FeedForward(under(f"{name}.", around), routed)


def decoder(
    fields: Fields,
    mixer: Callable[[int], Mixer],
    feed_forward: Callable[[int], FeedForward],
    *,
    norm_bias: bool = False,
    head_bias: bool = False,
    tied: bool = False,
    notes: tuple[str, ...] = (),
) -> ModelTensors:
    """The whole model: embedding, layers of (norm, mixer, norm, feed-forward), final norm and head.

    `tied` is the family's default for `tie_word_embeddings`.
    """
    hidden, vocab = fields.size("hidden_size"), fields.size("vocab_size")
    between = norm("input_layernorm", hidden, bias=norm_bias)
    between += norm("post_attention_layernorm", hidden, bias=norm_bias)
    layers = []
    for index in range(layer_count(fields)):
        prefix, mixes, feeds = f"model.layers.{index}.", mixer(index), feed_forward(index)
        routed = feeds.experts
        if routed is not None:
            routed = RoutedExperts(
                under(prefix, routed.tensors), routed.count, routed.active, routed.width, routed.router_weight_bytes
            )
        layers.append(LayerTensors(under(prefix, mixes.tensors + feeds.tensors + between), mixes.cache, routed))
    head = norm("model.norm", hidden, bias=norm_bias) + kept("lm_head.weight", vocab, hidden)
    return ModelTensors(
        architecture=fields.text("model_type"),
        hidden_size=hidden,
        vocab_size=vocab,
        embedding=kept("model.embed_tokens.weight", vocab, hidden),
        layers=tuple(layers),
        head=head + (kept("lm_head.bias", vocab) if head_bias else ()),
        tied=fields.flag("tie_word_embeddings", tied),
        notes=notes,
    )
