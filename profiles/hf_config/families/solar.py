"""Upstage's Solar Open, and Solar Open 2 with three layers of linear attention for one of attention."""

from __future__ import annotations

from functools import partial

from profiles.hf_config.families.deepseek import shared_and_routed
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.basic import Mixer, linear
from profiles.hf_config.parts.decoder import by_layer, decoder, every_layer, layer_count
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp
from profiles.hf_config.parts.kimi_delta import kimi_delta_attention, with_linear_sizes
from profiles.tensors import DiskNames, ModelTensors

FULL, LINEAR = "full_attention", "linear_attention"
EVERY_FOURTH = "the file does not say which layers have attention: every fourth, from the first, as in Solar Open 2"


def _solar_open(fields: Fields) -> ModelTensors:
    attention = grouped_query_attention(fields, bias=fields.flag("attention_bias", False))
    return decoder(fields, every_layer(attention), every_layer(shared_and_routed(fields)), notes=(UNCOUNTED_BUFFERS,))


def _gated(fields: Fields) -> Mixer:
    """Attention without positions, whose heads' outputs are gated one by one."""
    plain = grouped_query_attention(fields)
    return plain.beside(*linear("self_attn.g_proj", fields.size("num_attention_heads"), fields.size("hidden_size")))


def _solar_open2(fields: Fields) -> ModelTensors:
    """Kimi's delta attention but for the layers in `gqa_layers` (counted from 0), experts from the first layer on.

    transformers does not know it: sizes are the config's own, shapes those of the published checkpoint as converters
    to GGUF describe it, and the whole comes to the 250 billion parameters of its name.
    """
    fields = with_linear_sizes(fields)
    fields.require("linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim", "num_key_value_heads", "head_dim")
    listed, layers = fields.whole_numbers("gqa_layers"), layer_count(fields)
    full = set(range(0, layers, 4) if listed is None else listed)
    kinds = [FULL if index in full else LINEAR for index in range(layers)]
    delta = partial(kimi_delta_attention, fields, decay=(fields.size("linear_num_heads"),))
    first = fields.count("first_k_dense_replace", 0, most=MAX_LAYERS)
    sparse = shared_and_routed(fields)
    dense = gated_mlp(fields, fields.size("intermediate_size")) if first else sparse
    return decoder(
        fields,
        by_layer(kinds, {FULL: partial(_gated, fields), LINEAR: delta}),
        lambda index: dense if index < first else sparse,
        notes=(UNCOUNTED_BUFFERS, *((EVERY_FOURTH,) if listed is None else ())),
    )


FAMILIES = {
    "solar_open": Family(_solar_open),
    "solar_open2": Family(
        _solar_open2, DiskNames(((r"\.forget_gate\b", ""),)), architectures=("SolarOpen2ForCausalLM",)
    ),
}
