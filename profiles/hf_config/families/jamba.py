"""AI21's Jamba: seven Mamba layers for one of attention, experts in every other; JetMoE: attention of experts too."""

from __future__ import annotations

from functools import partial

from profiles.errors import ProfileError
from profiles.hf_config.families.family import FUSED, Family
from profiles.hf_config.fields import MAX_EXPERTS, MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear
from profiles.hf_config.parts.decoder import by_layer, decoder, every_layer, layer_count
from profiles.hf_config.parts.feed_forward import gated_mlp, mixture
from profiles.hf_config.parts.mamba import mamba
from profiles.tensors import Cache, ModelTensors, RoutedExperts, Tensor, Tensors, under

ATTENTION, MAMBA, EXPERTS, DENSE = "attention", "mamba", "experts", "dense"


def _every(fields: Fields, name: str) -> list[bool]:
    """Whether a layer is the `{name}_layer_offset`-th of `{name}_layer_period` layers."""
    period, key = fields.size(f"{name}_layer_period", most=MAX_LAYERS), f"{name}_layer_offset"
    offset = fields.count(key, most=MAX_LAYERS)
    if offset >= period:
        raise ProfileError(f"{fields.prefix}{key}: {offset} is not below {name}_layer_period {period}; mend one")
    return [index % period == offset for index in range(layer_count(fields))]


def _mamba(fields: Fields) -> Mixer:
    hidden = fields.size("hidden_size")
    rank = -(-hidden // 16) if fields.config.get("mamba_dt_rank", "auto") == "auto" else fields.size("mamba_dt_rank")
    return mamba(
        "mamba",
        hidden,
        inner=fields.size("mamba_expand") * hidden,
        state=fields.size("mamba_d_state"),
        rank=rank,
        kernel=fields.size("mamba_d_conv"),
        bias=fields.flag("mamba_proj_bias", False),
        conv_bias=fields.flag("mamba_conv_bias", True),
    )


def _jamba(fields: Fields) -> ModelTensors:
    attends = [ATTENTION if hit else MAMBA for hit in _every(fields, "attn")]
    width, experts = fields.size("intermediate_size"), fields.size("num_experts|num_local_experts", most=MAX_EXPERTS)
    routes = [EXPERTS if hit and experts > 1 else DENSE for hit in _every(fields, "expert")]
    dense = partial(gated_mlp, fields, width, name="feed_forward")
    sparse = partial(mixture, fields, count="num_experts", width=width, router="router", name="feed_forward")
    return decoder(
        fields,
        by_layer(attends, {ATTENTION: partial(grouped_query_attention, fields), MAMBA: partial(_mamba, fields)}),
        by_layer(routes, {DENSE: dense, EXPERTS: sparse}),
        norms=("input_layernorm", "pre_ff_layernorm"),
        final_norm="final_layernorm",
    )


def _parallel(name: str, experts: int, out: int, into: int, stacked: int = 1) -> Tensors:
    return (Tensor(f"{name}.weight", (experts, out, into), quantisable=True, stacked=stacked),)


def _jetmoe(fields: Fields) -> ModelTensors:
    """Queries and outputs of attention are projected by as many experts as the FFN has, of which a token uses as many,
    each with all heads of keys and values. They belong to the attention block.
    """
    hidden, experts = fields.size("hidden_size"), fields.size("num_local_experts", most=MAX_EXPERTS)
    active, width = fields.size("num_experts_per_tok"), fields.size("intermediate_size")
    if active > experts:
        raise ProfileError(f"{fields.prefix}num_experts_per_tok: {active} is more than {experts} experts; mend one")
    keys = fields.size("num_key_value_heads") * fields.size("kv_channels|head_dim")
    around = kept("bias", hidden) + kept("router.layer.weight", experts, hidden)
    heads = _parallel("input_linear", experts, keys, hidden) + _parallel("output_linear", experts, hidden, keys)
    attention = under("experts.", around + heads) + linear("kv_proj", 2 * keys, hidden)
    cache = Cache(values_per_token=2 * keys, flops_per_token_pair=4 * keys * active)
    inside = _parallel("input_linear", experts, 2 * width, hidden, stacked=2)
    inside += _parallel("output_linear", experts, hidden, width)
    routed = RoutedExperts(under("mlp.", inside), experts, active, width, router_weight_bytes=2)
    feed_forward = FeedForward(under("mlp.", around), routed)
    note = f"attention's own {experts} experts are counted with it, although a token uses {active} of them"
    mixer = Mixer(under("self_attention.", attention), cache)
    return decoder(fields, every_layer(mixer), every_layer(feed_forward), notes=(note,))


FAMILIES = {
    "jamba": Family(_jamba),
    "jetmoe": Family(_jetmoe, FUSED),
}
