"""StepFun's Step 3.5 and 3.7: windows in three of four layers, with more heads there, and a gate for each head."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import DENSE, SPARSE
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention, head_shape
from profiles.hf_config.parts.basic import FeedForward, Mixer, kept, linear, norm
from profiles.hf_config.parts.decoder import NORMS, by_layer, decoder, layer_count, layer_kinds
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, gated_mlp, mixture
from profiles.tensors import DiskNames, ModelTensors, Tensors, under

FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = (FULL, SLIDING)
SAME_HEADS = "the file does not say how many heads layers with windows have: as many as the others are counted"
EXPERTS = "n_routed_experts|num_experts"


def _with_listed(fields: Fields, extra: int) -> Fields:
    """Lists of layers, which go on with those that predict further tokens, cut to the layers themselves."""
    layers, cut = layer_count(fields), {}
    for key in ("layer_types", "mlp_layer_types"):
        value = fields.config.get(key)
        if isinstance(value, list) and extra and len(value) == layers + extra:
            cut[key] = value[:layers]
    return fields.but(**cut)


def _sparse_layers(fields: Fields) -> set[int]:
    """From `moe_layers_enum`, a list or text with commas; all but the first three without it."""
    given: Any = fields.config.get("moe_layers_enum")
    if given is None:
        return set(range(fields.count("first_k_dense_replace", 3, most=MAX_LAYERS), layer_count(fields)))
    words = given.split(",") if isinstance(given, str) else given
    words = [word for word in words if str(word).strip()] if isinstance(words, list) else [None]
    if not all(str(word).strip().isdecimal() for word in words):
        raise ProfileError(
            f"{fields.prefix}moe_layers_enum: {short(given)}; list the layers with experts, as in '3,4,5'"
        )
    return {int(word) for word in words}


def _sliding_heads(fields: Fields) -> int | None:
    """Heads of layers with windows, by any of the names that files have for it; None where none says."""
    if fields.config.get("num_sliding_attention_heads") is not None:
        return fields.size("num_sliding_attention_heads")
    if fields.config.get("attention_other_setting"):
        return fields.nested("attention_other_setting").size("num_attention_heads", fields.size("num_attention_heads"))
    return None


def _check_per_layer(fields: Fields, kinds: list[str], heads: int) -> None:
    """transformers writes what differs by layer as well; anything but the heads of sliding layers is refused."""
    listed = fields.config.get("per_layer_config") or {}
    if not isinstance(listed, dict):
        raise ProfileError(f"{fields.prefix}per_layer_config: {short(listed)} is not a mapping; drop it")
    for index, changes in listed.items():
        sliding = str(index).isdecimal() and int(index) < len(kinds) and kinds[int(index)] == SLIDING
        if not sliding or changes != {"num_attention_heads": heads}:
            where = f"{fields.prefix}per_layer_config.{short(index)}"
            raise ProfileError(f"{where}: {short(changes)} is not what the other keys say of this layer; drop it")


def _attention(fields: Fields, kind: str) -> Mixer:
    bias = fields.flag("attention_bias", False)
    own = fields.but(num_attention_heads=_sliding_heads(fields) or fields.size("num_attention_heads"))
    own = own if kind == SLIDING else fields
    heads, _, size = head_shape(own)
    gate = heads if fields.config.get("gating", True) in (True, "per-head") else heads * size
    window = fields.size("sliding_window") if kind == SLIDING else None
    plain = grouped_query_attention(own, bias=bias, out_bias=bias, qk_norm="head", window=window)
    return plain.beside(*linear("self_attn.g_proj", gate, fields.size("hidden_size")))


def _experts(fields: Fields) -> FeedForward:
    return mixture(
        fields,
        count=EXPERTS,
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("share_expert_dim"),
        shared_bias=fields.flag("mlp_bias", False),
        active="num_experts_per_tok|moe_top_k",
    )


def _step3p5(fields: Fields) -> ModelTensors:
    extra = fields.count("num_nextn_predict_layers", most=MAX_LAYERS) if _has_mtp(fields) else 0
    whole, fields = fields, _with_listed(fields, extra)
    kinds, sparse = layer_kinds(fields, "layer_types", KINDS, lambda _: FULL), _sparse_layers(fields)
    feeds = layer_kinds(fields, "mlp_layer_types", (DENSE, SPARSE), lambda i: SPARSE if i in sparse else DENSE)
    heads = _sliding_heads(fields)
    _check_per_layer(fields, kinds, heads or fields.size("num_attention_heads"))
    dense = partial(gated_mlp, fields, fields.size("intermediate_size"), bias=fields.flag("mlp_bias", False))
    model = decoder(
        fields,
        by_layer(kinds, {kind: partial(_attention, fields, kind) for kind in KINDS}),
        by_layer(feeds, {DENSE: dense, SPARSE: partial(_experts, fields)}),
        notes=(UNCOUNTED_BUFFERS, *((SAME_HEADS,) if SLIDING in kinds and heads is None else ())),
    )
    return _with_mtp(model, whole, extra, dense())


def _has_mtp(fields: Fields) -> bool:
    return bool(fields.config.get("num_nextn_predict_layers"))


def _with_mtp(model: ModelTensors, fields: Fields, extra: int, dense: FeedForward) -> ModelTensors:
    """Layers that predict further tokens, numbered on: attention by the end of `layer_types`, a dense FFN and a head of
    their own, as vLLM reads them.
    """
    if not extra:
        return model
    listed, layers, hidden = fields.config.get("layer_types") or [], len(model.layers), model.hidden_size
    around = linear("eh_proj", hidden, 2 * hidden) + kept("shared_head.head.weight", model.vocab_size, hidden)
    for name in (*NORMS, "enorm", "hnorm", "shared_head.norm"):
        around += norm(name, hidden)
    tensors: Tensors = ()
    for index in range(layers, layers + extra):
        kind = SLIDING if listed[index : index + 1] == [SLIDING] else FULL
        tensors += under(f"model.layers.{index}.", _attention(fields, kind).tensors + dense.tensors + around)
    left_out = f"{extra} multi-token-prediction layer(s) of the checkpoint are left out, as transformers does"
    return replace(model, mtp=tensors, notes=(*model.notes, left_out))


NAMES = DiskNames(
    (
        (r"\.mlp\.gate\b", ".moe.gate"),
        (r"\.mlp\.shared_experts\b", ".share_expert"),
        (r"\.mlp\.experts\.down_proj\b", ".moe.down_proj"),
        (r"\.mlp\.experts\.gate_up_proj\b", ".moe.gate_proj"),
        (r"\.mlp\.experts\b", ".moe"),
    ),
    (),
)
FAMILIES = {
    # transformers has a causal model of it inside step3p7 only, and that is what the tests compare with
    "step3p5": Family(_step3p5, NAMES, "step3p5", ("Step3p5ForCausalLM",), handles=("per_layer_config",)),
    "step3p7_text": Family(_step3p5, NAMES, "step3p5", ("Step3p7FlashForCausalLM",), handles=("per_layer_config",)),
}
