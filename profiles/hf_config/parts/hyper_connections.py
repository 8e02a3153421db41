"""Hyper-connections (mHC): a layer's residual is several streams, mixed before and after each of its two parts."""

from __future__ import annotations

from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.basic import kept
from profiles.tensors import Tensors, under

NOTE = "hyper-connections: several hidden vectors a token travel between layers, and one is counted"


def hyper_connections(fields: Fields, *, fp32: bool = False) -> Tensors:
    """The two mixers of a layer: from `hc_mult` streams together to weights that gather, spread and mix them."""
    streams, hidden = fields.size("hc_mult", most=1000), fields.size("hidden_size")
    weights = (2 + streams) * streams
    mixer = kept("fn", weights, streams * hidden, fp32=fp32) + kept("base", weights, fp32=fp32)
    mixer += kept("scale", 3, fp32=fp32)
    return under("attn_hc.", mixer) + under("ffn_hc.", mixer)


def hyper_head(fields: Fields) -> Tensors:
    """What makes one stream of all after the last layer (DeepSeek-V4), in fp32."""
    streams, hidden = fields.size("hc_mult", most=1000), fields.size("hidden_size")
    tensors = kept("hc_fn", streams, streams * hidden, fp32=True)
    return tensors + kept("hc_base", streams, fp32=True) + kept("hc_scale", 1, fp32=True)
