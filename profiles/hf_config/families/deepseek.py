"""DeepSeek-V2 and V3 with latent attention, and what many lineages have of them: leading dense layers, shared experts,
layers that predict further tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from profiles.errors import ProfileError
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention, latent_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear, norm
from profiles.hf_config.parts.decoder import NORMS, by_layer, decoder, every_layer, layer_kinds
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp, mixture
from profiles.tensors import ModelTensors, Tensors, under

DENSE, SPARSE = "dense", "sparse"
EXPERTS = "n_routed_experts|num_local_experts|num_experts"


def shared_and_routed(fields: Fields, *, shared_bias: bool = False, router_fp32: bool = False) -> FeedForward:
    """DeepSeek's and GLM's experts: `n_shared_experts` shared ones are one FFN as wide as all of them."""
    width = fields.size("moe_intermediate_size")
    return mixture(
        fields,
        count=EXPERTS,
        width=width,
        shared_width=fields.count("n_shared_experts", most=1000) * width,
        shared_bias=shared_bias,
        router_fp32=router_fp32,
    )


def dense_first(fields: Fields, default: int = 0, *, bias: bool = False) -> Callable[[int], FeedForward]:
    """A dense FFN in the first `first_k_dense_replace` layers, experts in the others."""
    step = fields.size("moe_layer_freq", 1)
    if step != 1:
        raise ProfileError(f"{fields.prefix}moe_layer_freq: {step} is not supported (transformers ignores it); use 1")
    first = fields.count("first_k_dense_replace", default, most=MAX_LAYERS)
    dense = gated_mlp(fields, fields.size("intermediate_size"), bias=bias)
    sparse = shared_and_routed(fields, shared_bias=bias)
    return lambda index: dense if index < first else sparse


def listed_or_dense_first(
    fields: Fields, default: int, sparse: Callable[[], FeedForward] | None = None, *, bias: bool = False, step: int = 1
) -> Callable[[int], FeedForward]:
    """A dense FFN or experts as `mlp_layer_types` lists; without a list dense in the first `first_k_dense_replace`
    layers (`default` of them where the file does not say) and where `step` does not divide the layer's index.
    """
    first = fields.count("first_k_dense_replace", default, most=MAX_LAYERS)
    kinds = layer_kinds(
        fields, "mlp_layer_types", (DENSE, SPARSE), lambda i: SPARSE if i >= first and i % step == 0 else DENSE
    )
    dense = partial(gated_mlp, fields, fields.size("intermediate_size"), bias=bias)
    return by_layer(kinds, {DENSE: dense, SPARSE: sparse or partial(shared_and_routed, fields, shared_bias=bias)})


def layer_tensors(fields: Fields, mixer: Mixer, feeds: FeedForward) -> Tensors:
    """All tensors of a layer with the usual two norms, by their names in the layer."""
    norms = tuple(tensor for name in NORMS for tensor in norm(name, fields.size("hidden_size")))
    return mixer.tensors + feeds.tensors + (feeds.experts.tensors if feeds.experts else ()) + norms


def with_next_token_layers(
    model: ModelTensors, fields: Fields, *, own_ends: bool = True, layer: Tensors | None = None
) -> ModelTensors:
    """`model` and the multi-token-prediction layers that come with its files: they are not loaded by transformers.

    Each is another last layer (or `layer`, with names relative to the layer) with norms and a projection before it and,
    with `own_ends`, an embedding and a head.
    """
    extra = fields.count("num_nextn_predict_layers|num_mtp_layers", 0, most=MAX_LAYERS)
    if not extra:
        return replace(model, notes=(*model.notes, UNCOUNTED_BUFFERS))
    hidden, vocab, last = model.hidden_size, model.vocab_size, len(model.layers) - 1
    if layer is None:
        whole = model.layers[last].attention + (experts.tensors if (experts := model.layers[last].experts) else ())
        layer = tuple(replace(t, name=t.name.removeprefix(f"model.layers.{last}.")) for t in whole)
    around = linear("eh_proj", hidden, 2 * hidden) + norm("enorm", hidden) + norm("hnorm", hidden)
    around += norm("shared_head.norm", hidden)
    if own_ends:
        around += kept("embed_tokens.weight", vocab, hidden) + kept("shared_head.head.weight", vocab, hidden)
    tensors: Tensors = ()
    for index in range(last + 1, last + 1 + extra):
        tensors += under(f"model.layers.{index}.", layer + around)
    left_out = f"{extra} multi-token-prediction layer(s) of the checkpoint are left out, as transformers does"
    return replace(model, mtp=tensors, notes=(*model.notes, UNCOUNTED_BUFFERS, left_out))


def _deepseek_v2(fields: Fields) -> ModelTensors:
    """DeepSeek-V2; `use_mla: false` as in the text model of DeepSeek-OCR and DeepSeek-VL2-Tiny is plain attention."""
    bias = fields.flag("attention_bias", False)
    if fields.flag("use_mla", True):
        attention = latent_attention(fields, bias=bias)
    else:
        attention = grouped_query_attention(fields, bias=bias, out_bias=bias)
    return decoder(fields, every_layer(attention), dense_first(fields, bias=fields.flag("mlp_bias", False)))


def deepseek_v3(fields: Fields) -> ModelTensors:
    attention = latent_attention(fields, bias=fields.flag("attention_bias", False))
    return with_next_token_layers(decoder(fields, every_layer(attention), dense_first(fields)), fields)


FAMILIES = {
    "deepseek_v2": Family(_deepseek_v2),
    "deepseek_v3": Family(deepseek_v3),
}
