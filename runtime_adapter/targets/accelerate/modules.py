"""What transformers 5 calls the modules that a device_map may name, by `model_type`: a table that needs no torch.

Since version 5 the experts of a layer are one module with stacked weights, whatever the checkpoint calls them. Tests
compare the table with transformers' own classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from profiles.document import short
from profiles.errors import TargetError

EMBEDDING = "model.embed_tokens"
ROTARY = "model.rotary_emb"
"""Holds no weights, only what a pass computes first; it may have a key, and needs none."""
NORM = "model.norm"
HEAD = "lm_head"


@dataclass(frozen=True)
class Family:
    """The parts of one decoder layer, as named in it. `attention` is taken in turns where layers differ in it.

    `around` are the other parts of the block `ffn` that hold tensors: all but its experts.
    """

    attention: tuple[str, ...] = ("self_attn",)
    ffn: str = "mlp"
    around: tuple[str, ...] = ("gate",)

    def layer(self, index: int, moe: bool) -> tuple[str, ...]:
        """The modules that hold the weights of layer `index`; its experts, where it has any, are the last.

        >>> Family().layer(7, moe=True)[1:]
        ('model.layers.7.self_attn', 'model.layers.7.post_attention_layernorm', 'model.layers.7.mlp.gate', \
'model.layers.7.mlp.experts')
        """
        mixer = self.attention[index % len(self.attention)]
        inside = [f"{self.ffn}.{part}" for part in (*self.around, "experts")] if moe else [self.ffn]
        parts = ("input_layernorm", mixer, "post_attention_layernorm", *inside)
        return tuple(f"model.layers.{index}.{part}" for part in parts)


_SHARED = Family(around=("gate", "shared_experts"))
_QWEN_SHARED = ("gate", "shared_expert", "shared_expert_gate")
_LLAMA4 = Family(ffn="feed_forward", around=("router", "shared_expert"))
FAMILIES = {
    "deepseek_v2": _SHARED,
    "deepseek_v3": _SHARED,
    "dots1": _SHARED,
    "glm4_moe": _SHARED,
    "glm4_moe_lite": _SHARED,
    "gpt_oss": Family(around=("router",)),
    "kimi_k2": _SHARED,
    "llama": Family(),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "minimax_m2": Family(around=("gate", "e_score_correction_bias")),
    "mistral": Family(),
    "mixtral": Family(),
    "olmoe": Family(),
    "phimoe": Family(around=("router",)),
    "qwen2": Family(),
    "qwen2_moe": Family(around=_QWEN_SHARED),
    "qwen3": Family(),
    "qwen3_moe": Family(),
    # every fourth layer has full attention (full_attention_interval, 4 in all published models)
    "qwen3_next": Family(attention=(*["linear_attn"] * 3, "self_attn"), around=_QWEN_SHARED),
    "seed_oss": Family(),
}


def family_of(architecture: str | None) -> Family:
    """The names of an architecture's modules. Raises TargetError, which lists all, for one that is not known."""
    if architecture is None:
        raise TargetError("accelerate: module names depend on the architecture, which the plan lacks; name the model")
    if architecture not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise TargetError(f"accelerate: architecture {short(architecture)} is not known; use one of {known}")
    return FAMILIES[architecture]


def modules(family: Family, moe: Iterable[bool]) -> Iterator[str]:
    """Every module that holds weights and is placed whole, in the model's order."""
    yield EMBEDDING
    for index, has_experts in enumerate(moe):
        yield from family.layer(index, has_experts)
    yield from (NORM, HEAD)
