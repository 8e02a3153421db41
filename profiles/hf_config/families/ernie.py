"""Baidu's ERNIE 4.5, and its models of text and images, whose layers have experts for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from profiles.errors import ProfileError
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, MAX_SIZE, Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.basic import FeedForward, kept
from profiles.hf_config.parts.decoder import by_layer, decoder, every_layer, layer_count, layer_kinds
from profiles.hf_config.parts.feed_forward import gated_mlp, mixture
from profiles.hf_config.parts.next_token import uncounted_mtp
from profiles.tensors import DiskNames, ModelTensors, RoutedExperts

DENSE, SPARSE = "dense", "sparse"
COUNT, ACTIVE = "moe_num_experts", "moe_k"


def _experts(fields: Fields, width: int) -> FeedForward:
    """Routed experts whose router and its correction are in fp32."""
    routed = mixture(fields, count=COUNT, width=width, active=ACTIVE, router_fp32=True, router_weight_bytes=2, name="")
    correction = kept("gate.moe_statics.e_score_correction_bias", 1, fields.size(COUNT), fp32=True)
    return routed.beside(*correction)


def _shared(fields: Fields, width: int) -> FeedForward:
    """All shared experts as one FFN, nothing where there are none."""
    wide, bias = fields.count("moe_num_shared_experts", most=1000) * width, fields.flag("use_bias", False)
    return gated_mlp(fields, wide, bias=bias, name="shared_experts") if wide else FeedForward()


def _decoder(fields: Fields, kinds: list[str], sparse: Callable[[], FeedForward], note: str = "") -> ModelTensors:
    bias = fields.flag("use_bias", False)
    attention = grouped_query_attention(fields, bias=bias, out_bias=bias)
    dense = partial(gated_mlp, fields, fields.size("intermediate_size"), bias=bias)
    parts: dict[str, Callable[[], FeedForward]] = {DENSE: dense, SPARSE: sparse}
    notes = uncounted_mtp(fields) + ((note,) if note else ())
    return decoder(fields, every_layer(attention), by_layer(kinds, parts), head_bias=bias, tied=True, notes=notes)


def _ernie4_5_moe(fields: Fields) -> ModelTensors:
    layers, step = layer_count(fields), fields.size("moe_layer_interval")
    first, last = fields.count("moe_layer_start_index", most=MAX_LAYERS), fields.config.get("moe_layer_end_index", -1)
    end = layers - 1 if last in (-1, None) else fields.count("moe_layer_end_index", most=MAX_LAYERS)
    kinds = [SPARSE if first <= i <= end and (i + 1) % step == 0 else DENSE for i in range(layers)]
    width = fields.size("moe_intermediate_size")

    def sparse() -> FeedForward:
        return _experts(fields, width).beside(*_shared(fields, width).tensors).under("mlp.")

    return _decoder(fields, kinds, sparse)


def _two_widths(fields: Fields) -> tuple[int, int]:
    widths = fields.whole_numbers("moe_intermediate_size")
    if widths is None or len(widths) != 2 or not all(0 < width <= MAX_SIZE for width in widths):
        place = f"{fields.prefix}moe_intermediate_size"
        raise ProfileError(f"{place}: {widths}; give two widths, of experts for text and for images")
    return widths[0], widths[1]


def _together(text: RoutedExperts | None, image: RoutedExperts | None) -> RoutedExperts | None:
    return text and image and replace(text, tensors=text.tensors + image.tensors, count=text.count + image.count)


def _ernie4_5_vl_moe(fields: Fields) -> ModelTensors:
    """Two sets of experts a layer, with a router each: a token uses `moe_k` of its own kind's. The experts block holds
    both sets, and counts as active what a text token uses of it.
    """
    counts = fields.config.get(COUNT)
    if isinstance(counts, list) and len(counts) == 2 and counts[0] == counts[1]:
        fields = fields.but(**{COUNT: counts[0]})  # files from before transformers had the type say it for each set
    text_width, image_width = _two_widths(fields)
    starts = fields.config.get("moe_layer_start_index", 1)
    first = min(starts) if isinstance(starts, list) and starts else starts
    first = fields.but(moe_layer_start_index=first).count("moe_layer_start_index", 1, most=MAX_LAYERS)

    def sparse() -> FeedForward:
        text, image = (_experts(fields, width) for width in (text_width, image_width))
        text, image = text.under("text_moe."), image.under("vision_moe.")
        around = text.tensors + image.tensors + _shared(fields, text_width).tensors
        return FeedForward(around, _together(text.experts, image.experts)).under("mlp.")

    kinds = layer_kinds(fields, "mlp_layer_types", (DENSE, SPARSE), lambda i: SPARSE if i >= first else DENSE)
    share = text_width / (text_width + image_width)
    note = f"two sets of experts a layer, for text ({share:.0%} of the block) and for images; counted as used by text"
    return _decoder(fields, kinds, sparse, note if SPARSE in kinds else "")


NAMES = DiskNames(((r"\.mlp\.gate\.moe_statics\b", ".mlp.moe_statics"),))
VL_NAMES = DiskNames(
    (
        (r"\.mlp\.(?:text|vision)_moe\.experts\b", ".mlp.experts"),
        (r"\.mlp\.(?:text|vision)_moe\.gate\.moe_statics\b", ".mlp.moe_statics"),
        (r"\.mlp\.text_moe\.gate\b", ".mlp.gate"),
    )
)
FAMILIES = {
    "ernie4_5_moe": Family(_ernie4_5_moe, NAMES),
    "ernie4_5_moe_vl": Family(_ernie4_5_vl_moe, VL_NAMES, defaults="ernie4_5_vl_moe_text"),
    "ernie4_5_vl_moe_text": Family(_ernie4_5_vl_moe, VL_NAMES),
}
