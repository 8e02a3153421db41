"""Llama and dense models like it; Llama 4 with its chunks and experts in every other layer."""

from __future__ import annotations

from functools import partial

from profiles.errors import ProfileError
from profiles.hf_config.families.family import FUSED, Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import by_window, decoder, every_layer, layer_count, layer_kinds, uniform_windows
from profiles.hf_config.parts.feed_forward import gated_mlp, mixture
from profiles.tensors import ModelTensors


def _llama(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    mlp = gated_mlp(fields, fields.size("intermediate_size"), bias=fields.flag("mlp_bias", False))
    return decoder(fields, every_layer(grouped_query_attention(fields, bias=bias, out_bias=bias)), every_layer(mlp))


def _mistral(fields: Fields) -> ModelTensors:
    mlp = gated_mlp(fields, fields.size("intermediate_size"))
    return decoder(
        fields, by_window(uniform_windows(fields), partial(grouped_query_attention, fields)), every_layer(mlp)
    )


def _seed_oss(fields: Fields) -> ModelTensors:
    bias, out_bias = fields.flag("attention_bias", True), fields.flag("attention_out_bias", False)
    mlp = gated_mlp(fields, fields.size("intermediate_size"), bias=fields.flag("mlp_bias", False))
    return decoder(fields, every_layer(grouped_query_attention(fields, bias=bias, out_bias=out_bias)), every_layer(mlp))


def _chunks(fields: Fields) -> list[int | None]:
    """`attention_chunk_size` in the layers with rotary positions (three of four), None in the others."""
    layers, chunk = layer_count(fields), fields.maybe_size("attention_chunk_size")
    interval = fields.size("no_rope_layer_interval", 4)
    rotary = fields.whole_numbers("no_rope_layers") or [(index + 1) % interval for index in range(layers)]
    if len(rotary) != layers:
        raise ProfileError(
            f"{fields.prefix}no_rope_layers: {len(rotary)} entries; give one for each of {layers} layers"
        )
    full, chunked = known = ("full_attention", "chunked_attention")
    kinds = layer_kinds(fields, "layer_types", known, lambda i: chunked if rotary[i] else full)
    return [chunk if kind == chunked else None for kind in kinds]


def _llama4_text(fields: Fields) -> ModelTensors:
    layers, bias = layer_count(fields), fields.flag("attention_bias", False)
    step, listed = fields.size("interleave_moe_layer_step"), fields.whole_numbers("moe_layers")
    sparse_layers = set(range(step - 1, layers, step) if listed is None else listed)
    width = fields.size("intermediate_size")
    sparse = mixture(
        fields,
        count="num_local_experts",
        width=width,
        shared_width=width,
        shared_name="shared_expert",
        router="router",
        transposed=True,
        name="feed_forward",
    )
    dense = gated_mlp(fields, fields.size("intermediate_size_mlp"), name="feed_forward")
    attention = partial(grouped_query_attention, fields, bias=bias, out_bias=bias, head_dim=128)
    mixer = by_window(_chunks(fields), attention)
    return decoder(fields, mixer, lambda index: sparse if index in sparse_layers else dense)


FAMILIES = {
    "llama": Family(_llama),
    "llama4_text": Family(_llama4_text, FUSED),
    "mistral": Family(_mistral),
    "seed_oss": Family(_seed_oss),
}
