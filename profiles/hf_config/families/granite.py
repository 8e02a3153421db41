"""IBM's Granite with experts: 3.0's, those with a shared expert, with windows, and Granite 4 with Mamba-2 layers."""

from __future__ import annotations

from functools import partial

from profiles.errors import ProfileError
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_EXPERTS, Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, linear
from profiles.hf_config.parts.decoder import by_layer, by_window, decoder, every_layer, layer_kinds, typed_windows
from profiles.hf_config.parts.feed_forward import mixture
from profiles.hf_config.parts.mamba import StateSpace, mamba2
from profiles.tensors import DiskNames, ModelTensors, Tensor, Tensors, under

MAMBA, FULL = "linear_attention", "full_attention"


def fused_mlp(name: str, hidden: int, width: int) -> Tensors:
    """A dense FFN whose gate and up projection are one."""
    first = Tensor("input_linear.weight", (2 * width, hidden), quantisable=True, stacked=2)
    return under(f"{name}.", (first, *linear("output_linear", hidden, width)))


def _feed_forward(fields: Fields, shared: int) -> FeedForward:
    """Experts, none where there are 0 of them, and a shared FFN of width `shared` beside them."""
    beside = fused_mlp("shared_mlp", fields.size("hidden_size"), shared) if shared else ()
    if fields.count("num_local_experts", most=MAX_EXPERTS) == 0:
        return FeedForward(beside)
    sparse = mixture(
        fields,
        count="num_local_experts",
        width=fields.size("intermediate_size"),
        router="router",
        router_weight_bytes=2,
        name="block_sparse_moe",
    )
    return sparse.beside(*beside)


def _attention(fields: Fields, window: int | None = None, *, sinks: bool = False) -> Mixer:
    bias = fields.flag("attention_bias", False)
    return grouped_query_attention(fields, bias=bias, out_bias=bias, window=window, sinks=sinks)


def _granitemoe(fields: Fields) -> ModelTensors:
    return decoder(fields, every_layer(_attention(fields)), every_layer(_feed_forward(fields, 0)))


def _granitemoeshared(fields: Fields) -> ModelTensors:
    sparse = _feed_forward(fields, fields.count("shared_intermediate_size", 0))
    return decoder(fields, every_layer(_attention(fields)), every_layer(sparse))


def _granitemoe_swa(fields: Fields) -> ModelTensors:
    """Attention with sinks, and windows in three of four layers."""
    windows = typed_windows(fields, lambda index: index % 4 != 0)
    sparse = _feed_forward(fields, fields.count("shared_intermediate_size", 0))
    return decoder(fields, by_window(windows, partial(_attention, fields, sinks=True)), every_layer(sparse))


def _mamba(fields: Fields) -> Mixer:
    hidden, heads = fields.size("hidden_size"), fields.size("mamba_n_heads")
    inner, given = fields.size("mamba_expand") * hidden, fields.config.get("mamba_d_head", "auto")
    size = inner // heads if given == "auto" else fields.size("mamba_d_head")
    if size * heads != inner:
        where = f"{fields.prefix}mamba_n_heads"
        raise ProfileError(f"{where}: {heads} heads of {size} are not mamba_expand * hidden_size, {inner}; mend one")
    sizes = StateSpace(
        heads, size, fields.size("mamba_n_groups"), fields.size("mamba_d_state"), fields.size("mamba_d_conv")
    )
    bias, conv_bias = fields.flag("mamba_proj_bias", False), fields.flag("mamba_conv_bias", True)
    return mamba2("mamba", hidden, sizes, bias=bias, conv_bias=conv_bias)


def _granitemoehybrid(fields: Fields) -> ModelTensors:
    """Granite 4: Mamba-2 where `layer_types` does not say attention, and a shared FFN with experts or alone."""
    known, key = (MAMBA, FULL, "mamba", "attention"), "layer_types"
    if fields.config.get(key) is None and fields.config.get("layers_block_type") is not None:
        key = "layers_block_type"
    kinds = layer_kinds(fields, key, known, lambda _: MAMBA)
    mamba, attention = partial(_mamba, fields), partial(_attention, fields)
    mixer = by_layer(kinds, {MAMBA: mamba, "mamba": mamba, FULL: attention, "attention": attention})
    return decoder(fields, mixer, every_layer(_feed_forward(fields, fields.size("shared_intermediate_size"))))


NAMES = DiskNames(
    (
        (r"\.block_sparse_moe\.experts\.gate_up_proj\b", ".block_sparse_moe.input_linear"),
        (r"\.block_sparse_moe\.experts\.down_proj\b", ".block_sparse_moe.output_linear"),
        (r"\.block_sparse_moe\.router\b", ".block_sparse_moe.router.layer"),
    ),
    (),
)
FAMILIES = {
    "granitemoe": Family(_granitemoe, NAMES),
    "granitemoe_swa": Family(_granitemoe_swa, NAMES),
    "granitemoehybrid": Family(_granitemoehybrid, NAMES),
    "granitemoeshared": Family(_granitemoeshared, NAMES),
}
