"""LG's EXAONE with experts: windows in three of four layers, leading dense layers, shared experts."""

from __future__ import annotations

from functools import partial

from profiles.hf_config.families.deepseek import listed_or_dense_first
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import by_window, decoder, no_windows, typed_windows
from profiles.hf_config.parts.feed_forward import UNCOUNTED_BUFFERS, mixture
from profiles.hf_config.parts.next_token import uncounted_mtp
from profiles.tensors import ModelTensors


def _windows(fields: Fields) -> list[int | None]:
    """Without a list, every `sliding_window_pattern`-th layer is full attention: a number, or as many letters."""
    if fields.config.get("layer_types") is None and fields.maybe_size("sliding_window") is None:
        return no_windows(fields)
    pattern = fields.config.get("sliding_window_pattern")
    own = fields.but(sliding_window_pattern=len(pattern)) if isinstance(pattern, str) else fields
    step = own.maybe_size("sliding_window_pattern", 4)
    return typed_windows(fields, lambda i: step is not None and (i + 1) % step != 0)


def _exaone_moe(fields: Fields) -> ModelTensors:
    width = fields.size("moe_intermediate_size")
    sparse = partial(
        mixture,
        fields,
        count="num_experts",
        width=width,
        shared_width=fields.count("num_shared_experts", most=1000) * width,
    )
    attention = by_window(_windows(fields), partial(grouped_query_attention, fields, qk_norm="head"))
    notes = (UNCOUNTED_BUFFERS, *uncounted_mtp(fields))
    return decoder(fields, attention, listed_or_dense_first(fields, 1, sparse), notes=notes)


FAMILIES = {"exaone_moe": Family(_exaone_moe)}
