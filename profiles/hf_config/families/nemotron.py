"""NVIDIA's Nemotron-H and Nemotron 3: each layer is one of Mamba-2, attention, an FFN or experts, under one norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, linear, norm
from profiles.hf_config.parts.decoder import by_layer, decoder
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, mixture, plain_mlp
from profiles.hf_config.parts.mamba import StateSpace, mamba2
from profiles.tensors import DiskNames, ModelTensors, Tensors, under

MAMBA, ATTENTION, EXPERTS, MLP = "linear_attention", "full_attention", "moe", "mlp"
LETTERS = {"M": MAMBA, "*": ATTENTION, "E": EXPERTS, "-": MLP}
"""A letter of `hybrid_override_pattern` -> transformers' name of the layer."""
OLD_NAMES = {"mamba": MAMBA, "attention": ATTENTION}


def _kinds(fields: Fields, key: str, pattern: str) -> list[str] | None:
    """What each layer is, from the list under one of the names in `key`, or the letters under `pattern`."""
    listed = next((fields.config[name] for name in key.split("|") if fields.config.get(name) is not None), None)
    where, names = key.split("|")[0], {name: name for name in LETTERS.values()} | OLD_NAMES
    if listed is None:
        listed, where, names = fields.config.get(pattern), pattern, LETTERS
    if listed is None:
        return None
    if not isinstance(listed, list if names is not LETTERS else str) or not 0 < len(listed) <= MAX_LAYERS:
        raise ProfileError(f"{fields.prefix}{where}: {short(listed)}; give one of {', '.join(names)} for each layer")
    for index, word in enumerate(listed):
        if not isinstance(word, str) or word not in names:
            known = ", ".join(names)
            raise ProfileError(f"{fields.prefix}{where}[{index}]: {short(word)} is not known here; use one of {known}")
    return [names[word] for word in listed]


def _mamba(fields: Fields) -> Mixer:
    sizes = StateSpace(
        heads=fields.size("mamba_num_heads"),
        head_size=fields.size("mamba_head_dim"),
        groups=fields.size("n_groups|mamba_n_groups"),
        state=fields.size("ssm_state_size"),
        kernel=fields.size("conv_kernel|mamba_d_conv"),
    )
    bias, conv_bias = fields.flag("use_bias", False), fields.flag("use_conv_bias|mamba_conv_bias", True)
    return mamba2("mixer", fields.size("hidden_size"), sizes, bias=bias, conv_bias=conv_bias)


def _attention(fields: Fields) -> Mixer:
    return grouped_query_attention(fields.but(head_dim=fields.size("head_dim|attention_head_dim")), name="mixer")


def _experts(fields: Fields) -> FeedForward:
    """Experts without a gate, in a latent of `moe_latent_size` where there is one, and a shared expert beside it."""
    hidden, bias = fields.size("hidden_size"), fields.flag("mlp_bias", False)
    latent = fields.maybe_size("moe_latent_size")
    plain = mixture(
        fields,
        count="n_routed_experts|num_local_experts",
        width=fields.size("moe_intermediate_size"),
        shared_width=fields.size("moe_shared_expert_intermediate_size"),
        shared_bias=bias,
        gated=False,
        name="mixer",
        expert_hidden=latent,
    )
    if latent is None:
        return plain
    around = linear("fc1_latent_proj", latent, hidden, bias=bias) + linear("fc2_latent_proj", hidden, latent, bias=bias)
    return plain.beside(*under("mixer.", around))


def _mlp(fields: Fields) -> FeedForward:
    return plain_mlp(fields, fields.size("intermediate_size"), bias=fields.flag("mlp_bias", False), name="mixer")


def _nemotron_h(fields: Fields) -> ModelTensors:
    """The pattern of layers says how many there are; `num_hidden_layers` must agree where it is given."""
    kinds = _kinds(fields, "layers_block_type|layer_types", "hybrid_override_pattern")
    if kinds is None:
        raise ProfileError(
            f"{fields.prefix}layers_block_type: missing, as is hybrid_override_pattern; "
            "add one, as in the model's own config.json"
        )
    if fields.config.get("num_hidden_layers", len(kinds)) != len(kinds):
        given = short(fields.config["num_hidden_layers"])
        raise ProfileError(f"{fields.prefix}num_hidden_layers: {given}, but {len(kinds)} layers are listed; drop it")
    mixers: dict[str, Callable[[], Mixer]] = {MAMBA: partial(_mamba, fields), ATTENTION: partial(_attention, fields)}
    mixers |= dict.fromkeys((EXPERTS, MLP), Mixer)
    feeds: dict[str, Callable[[], FeedForward]] = {EXPERTS: partial(_experts, fields), MLP: partial(_mlp, fields)}
    feeds |= dict.fromkeys((MAMBA, ATTENTION), FeedForward)
    model = decoder(
        fields.but(num_hidden_layers=len(kinds)),
        by_layer(kinds, mixers),
        by_layer(kinds, feeds),
        norms=("norm",),
        embed="embeddings",
        final_norm="norm_f",
        notes=(UNCOUNTED_BUFFERS,) if EXPERTS in kinds else (),
    )
    return _with_mtp(model, fields)


def _with_mtp(model: ModelTensors, fields: Fields) -> ModelTensors:
    """The layers that predict further tokens: another pattern of layers, with a projection and two norms before the
    first and a norm after the last, as vLLM reads them. Embedding and head are the model's own.
    """
    if not fields.config.get("num_nextn_predict_layers"):
        return model
    extra = fields.count("num_nextn_predict_layers", most=MAX_LAYERS)
    kinds = _kinds(fields, "mtp_layers_block_type", "mtp_hybrid_override_pattern") or [ATTENTION, EXPERTS]
    hidden, tensors, index = model.hidden_size, Tensors(), 0
    parts = {ATTENTION: partial(_attention, fields), MAMBA: partial(_mamba, fields)}
    feeds = {EXPERTS: partial(_experts, fields), MLP: partial(_mlp, fields)}
    start = linear("eh_proj", hidden, 2 * hidden) + norm("enorm", hidden) + norm("hnorm", hidden)
    for _ in range(extra):
        for place, kind in enumerate(kinds):
            inside = _inside(parts[kind]() if kind in parts else feeds[kind]()) + norm("norm", hidden)
            inside += start if place == 0 else ()
            inside += norm("final_layernorm", hidden) if place == len(kinds) - 1 else ()
            tensors += under(f"mtp.layers.{index}.", inside)
            index += 1
    left_out = f"{extra} multi-token-prediction layer(s) of the checkpoint are left out, as transformers does"
    return replace(model, mtp=tensors, notes=(*model.notes, left_out))


def _inside(part: Mixer | FeedForward) -> Tensors:
    experts = part.experts if isinstance(part, FeedForward) else None
    return part.tensors + (experts.tensors if experts else ())


FAMILIES = {
    "nemotron_h": Family(_nemotron_h, DiskNames(((r"^model\.", "backbone."),))),
}
