"""Xiaomi's MiMo-V2: windows in five of six layers, with more key-value heads and attention sinks there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import DENSE, SPARSE
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.basic import Mixer, linear, norm
from profiles.hf_config.parts.decoder import NORMS, by_layer, decoder, flagged_kinds, layer_kinds
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp, mixture
from profiles.tensors import DiskNames, ModelTensors, Tensors, under

FULL, SLIDING = "full_attention", "sliding_attention"


def _attention(fields: Fields, kind: str) -> Mixer:
    """Layers with windows have sizes of their own under `swa_`; transformers takes twice the key-value heads there."""
    own, window, prefix = fields, None, "add_full"
    if kind == SLIDING:
        sizes = {"num_attention_heads": 1, "num_key_value_heads": 2, "head_dim": 1, "v_head_dim": 1}
        given = {key: fields.size(f"swa_{key}", times * fields.size(key)) for key, times in sizes.items()}
        own, window, prefix = fields.but(**given), _window(fields), "add_swa"
    return grouped_query_attention(
        own,
        bias=fields.flag("attention_bias", False),
        value_size=own.size("v_head_dim"),
        sinks=fields.flag(f"{prefix}_attention_sink_bias", kind == SLIDING),
        window=window,
    )


def _window(fields: Fields) -> int:
    """Tokens that are seen. `sliding_window_size` is one less of them, as transformers reads it."""
    if fields.config.get("sliding_window_size") is None:
        return fields.size("sliding_window")
    return fields.size("sliding_window_size") + 1


def _mimo_v2_flash(fields: Fields) -> ModelTensors:
    """Which layers have windows and which have experts is listed as 0 and 1 in published files."""
    if fields.config.get("n_shared_experts"):
        where = f"{fields.prefix}n_shared_experts"
        raise ProfileError(f"{where}: no published MiMo-V2 has any and their shape is not known; write 0")
    slides = flagged_kinds(fields, "hybrid_layer_pattern", FULL, SLIDING)
    routes = flagged_kinds(fields, "moe_layer_freq", DENSE, SPARSE)
    kinds = layer_kinds(
        fields,
        "layer_types",
        (FULL, SLIDING),
        lambda i: slides[i] if slides else (SLIDING if i and (i + 1) % 6 else FULL),
    )
    feeds = layer_kinds(
        fields,
        "mlp_layer_types",
        (DENSE, SPARSE),
        lambda i: routes[i] if routes else (SPARSE if i else DENSE),
    )
    width = fields.size("moe_intermediate_size")
    sparse = partial(mixture, fields, count="n_routed_experts|num_local_experts", width=width)
    model = decoder(
        fields,
        by_layer(kinds, {kind: partial(_attention, fields, kind) for kind in (FULL, SLIDING)}),
        by_layer(feeds, {DENSE: partial(gated_mlp, fields, fields.size("intermediate_size")), SPARSE: sparse}),
        notes=(UNCOUNTED_BUFFERS,),
    )
    return _with_mtp(model, fields)


def _with_mtp(model: ModelTensors, fields: Fields) -> ModelTensors:
    """Layers that predict further tokens: attention with a window and a dense FFN, as SGLang and vLLM read them."""
    if not fields.config.get("num_nextn_predict_layers"):
        return model
    extra, hidden = fields.count("num_nextn_predict_layers", most=MAX_LAYERS), model.hidden_size
    layer = _attention(fields, SLIDING).tensors + gated_mlp(fields, fields.size("intermediate_size")).tensors
    layer += linear("eh_proj", hidden, 2 * hidden)
    for name in (*NORMS, "enorm", "hnorm", "final_layernorm"):
        layer += norm(name, hidden)
    tensors: Tensors = ()
    for index in range(extra):
        tensors += under(f"model.mtp.layers.{index}.", layer)
    left_out = f"{extra} multi-token-prediction layer(s) of the checkpoint are left out, as transformers does"
    return replace(model, mtp=tensors, notes=(*model.notes, left_out))


def _mimo_v2(fields: Fields) -> ModelTensors:
    """MiMo-V2.5, also Pro: the same with sizes of its own, which its file states; transformers does not know it."""
    fields.require(
        *("hybrid_layer_pattern", "moe_layer_freq", "head_dim", "v_head_dim", "num_key_value_heads"),
        *("swa_num_attention_heads", "swa_num_key_value_heads", "swa_head_dim", "swa_v_head_dim"),
    )
    return _mimo_v2_flash(fields)


NAMES = DiskNames(((r"\.self_attn\.sinks\b", ".self_attn.attention_sink_bias"),))
FAMILIES = {
    "mimo_v2": Family(_mimo_v2, NAMES, "mimo_v2_flash", ("MiMoV2ForCausalLM",)),
    "mimo_v2_flash": Family(_mimo_v2_flash, NAMES),
}
