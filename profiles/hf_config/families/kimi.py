"""Moonshot: Kimi K2, which is a DeepSeek-V3, Kimi Linear, and the text model of Kimi K3, which grew out of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import EXPERTS, deepseek_v3, listed_or_dense_first
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import latent_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear, norm
from profiles.hf_config.parts.decoder import by_layer, decoder, layer_count, layer_kinds
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, mixture
from profiles.hf_config.parts.kimi_delta import kimi_delta_attention, with_linear_sizes
from profiles.tensors import DiskNames, ModelTensors, Tensors, under

FULL, LINEAR = "full_attention", "linear_attention"
RESIDUALS = (
    "attention over earlier blocks' outputs: one hidden vector a token is counted between layers, not all blocks'"
)


def _kimi_linear(fields: Fields) -> ModelTensors:
    """Kimi Linear as transformers has it. Keys that only Kimi K3 has add what it has more, of which transformers knows
    nothing: an output gate (`mla_use_output_gate`, `use_full_rank_gate` in linear attention), experts in a latent of
    `routed_expert_hidden_size`, attention over residuals every `attn_res_block_size` layers.

    Shapes of those: the published checkpoint's names, as several engines read them, and llama.cpp's `kimi-k3`.
    """
    fields = with_linear_sizes(fields)
    mixer = by_layer(_kinds(fields), {FULL: partial(_latent, fields), LINEAR: partial(_delta, fields)})
    feed_forward = listed_or_dense_first(fields, 1, partial(_experts, fields))
    model = decoder(fields, mixer, feed_forward, notes=(UNCOUNTED_BUFFERS,))
    if fields.maybe_size("attn_res_block_size") is None:
        return model
    layers = tuple(
        replace(layer, attention=layer.attention + under(f"model.layers.{index}.", _residual_attention(fields)))
        for index, layer in enumerate(model.layers)
    )
    head = model.head + under("model.", _score(fields, "output_attn_res"))
    return replace(model, layers=layers, head=head, notes=(*model.notes, RESIDUALS))


def _kinds(fields: Fields) -> list[str]:
    """From `layer_types`, or the lists in `linear_attn_config`, which count layers from 1."""
    inner = fields.config.get("linear_attn_config")
    if fields.config.get("layer_types") is not None or not isinstance(inner, dict):
        return layer_kinds(fields, "layer_types", (FULL, LINEAR), lambda i: FULL if i and i % 4 == 0 else LINEAR)
    nested, layers = fields.nested("linear_attn_config"), layer_count(fields)
    found = dict.fromkeys(nested.whole_numbers("kda_layers") or [], LINEAR)
    found |= dict.fromkeys(nested.whole_numbers("full_attn_layers") or [], FULL)
    missing = [index for index in range(1, layers + 1) if index not in found]
    if missing:
        where = f"{nested.prefix}kda_layers and full_attn_layers"
        raise ProfileError(f"{where}: layer {short(missing[0])} of {layers} is in neither; add it, counting from 1")
    return [found[index] for index in range(1, layers + 1)]


def _latent(fields: Fields) -> Mixer:
    plain = latent_attention(fields, bias=fields.flag("attention_bias", False))
    if not fields.flag("mla_use_output_gate", False):
        return plain
    width = fields.size("num_attention_heads") * fields.size("v_head_dim")
    return plain.beside(*linear("self_attn.g_proj", width, fields.size("hidden_size")))


def _delta(fields: Fields) -> Mixer:
    inner = fields.config.get("linear_attn_config")
    whole = fields.nested("linear_attn_config").flag("use_full_rank_gate", False) if inner is not None else False
    heads = fields.size("linear_num_heads")
    return kimi_delta_attention(fields, decay=(1, 1, heads, 1), full_rank_gate=whole)


def _experts(fields: Fields) -> FeedForward:
    """Shared and routed experts. Where the routed ones work in a latent, its projections are in 16 bits in Kimi K3's
    checkpoint although its list of exceptions does not name them.
    """
    width, hidden = fields.size("moe_intermediate_size"), fields.size("hidden_size")
    latent = fields.maybe_size("routed_expert_hidden_size")
    plain = mixture(
        fields,
        count=EXPERTS,
        width=width,
        shared_width=fields.count("n_shared_experts", most=1000) * width,
        expert_hidden=latent,
    )
    if latent is None:
        return plain
    around = kept("routed_expert_down_proj.weight", latent, hidden)
    around += kept("routed_expert_up_proj.weight", hidden, latent)
    around += norm("routed_expert_norm", latent) if fields.flag("latent_moe_use_norm", False) else ()
    return plain.beside(*under("mlp.", around))


def _residual_attention(fields: Fields) -> Tensors:
    return _score(fields, "self_attention_res") + _score(fields, "mlp_res")


def _score(fields: Fields, name: str) -> Tensors:
    hidden = fields.size("hidden_size")
    return norm(f"{name}_norm", hidden) + kept(f"{name}_proj.weight", 1, hidden)


LINEAR_NAMES = DiskNames(
    ((r"\.forget_gate\b", ""), (r"\.mlp\.(gate\b|experts\b|shared_experts\b|routed_)", r".block_sparse_moe.\1")),
    ("w1", "w3", "w2"),
)
FAMILIES = {
    "kimi_k2": Family(deepseek_v3, defaults="deepseek_v3"),
    "kimi_linear": Family(_kimi_linear, LINEAR_NAMES, architectures=("KimiLinearForCausalLM",)),
}
