"""xAI's Grok 1 and 2. transformers does not know them, and Grok 2's file says that its type is `git`."""

from __future__ import annotations

from profiles.errors import ProfileError
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import decoder, every_layer
from profiles.hf_config.parts.feed_forward import gated_mlp, mixture
from profiles.tensors import DiskNames, ModelTensors

NORMS = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")


def _grok(fields: Fields) -> ModelTensors:
    """Experts of `moe_intermediate_size` (Grok 1: `intermediate_size`) and, where `residual_moe` says so, a dense FFN
    beside them in every layer.

    Shapes are those that SGLang's `Grok1ForCausalLM` loads; names are the published checkpoint's.
    `sliding_window_size` -1 and `global_attn_every_n` 1 say that no layer has a window.
    """
    fields.require("num_key_value_heads", "hidden_size", "intermediate_size")
    every = fields.size("global_attn_every_n", 1)
    if every != 1:
        where = f"{fields.prefix}global_attn_every_n"
        raise ProfileError(f"{where}: {every}; windows of Grok are not known here; write 1 where no layer has one")
    residual = fields.flag("residual_moe", False)
    wide = fields.size("intermediate_size")
    sparse = mixture(
        fields,
        count="num_local_experts|num_experts",
        width=fields.size("moe_intermediate_size", wide),
        router_fp32=True,
        name="block_sparse_moe",
    )
    if residual:
        sparse = sparse.beside(*gated_mlp(fields, wide).tensors)
    attention = grouped_query_attention(fields, head_dim=128)
    return decoder(fields, every_layer(attention), every_layer(sparse), norms=NORMS)


FAMILIES = {
    "grok-1": Family(
        _grok, DiskNames(projections=("w1", "w3", "w2")), architectures=("Grok1ForCausalLM", "Grok1ModelForCausalLM")
    ),
}
