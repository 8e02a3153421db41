"""What KTransformers calls a model's modules: the names and classes that its injection rules match.

The facts were read in kvcache-ai/ktransformers: modules in `models/modeling_*.py`, rules in
`optimize/optimize_rules/*.yaml`. Families are in `families.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from runtime_adapter.targets.ktransformers.families import Family

_MODULE = ("torch.nn.Module",)
_LINEAR = ("torch.nn.Linear", "torch.nn.modules.linear.Linear", *_MODULE)
_LIST = ("torch.nn.ModuleList", *_MODULE)

Part = Literal["container", "attention", "linear", "norm", "rotary", "router", "experts", "expert", "other"]


@dataclass(frozen=True)
class Module:
    """One module as a rule sees it: its dotted name and the import paths of its class and of that class's parents.

    `layer` is the decoder layer it belongs to; a `container` holds no tensors, so that its device means nothing.
    """

    name: str
    classes: tuple[str, ...]
    part: Part = "container"
    layer: int | None = None

    @property
    def in_layer(self) -> str:
        """The name within its layer."""
        return self.name.split(".", 3)[-1]


def module_tree(family: Family, has_experts: Sequence[bool]) -> tuple[Module, ...]:
    """Every module of a model with that many layers, parents before children, in KT's own names.

    `has_experts` says for each layer whether it is a MoE layer. Optional parts are all there (a model has either
    q_proj or q_a_proj), and two experts stand for all.

    >>> from runtime_adapter.targets.ktransformers.families import FAMILIES
    >>> [m.name for m in module_tree(FAMILIES["mixtral"], [True]) if m.part == "experts"]
    ['model.layers.0.block_sparse_moe.experts']
    """
    layers = (_layer(family, index, moe) for index, moe in enumerate(has_experts))
    return (
        Module("", _MODULE),
        Module("model", (*family.paths("Model"), *_MODULE)),
        Module("model.embed_tokens", ("torch.nn.Embedding", "torch.nn.modules.sparse.Embedding", *_MODULE), "other"),
        Module("model.layers", _LIST),
        *(module for layer in layers for module in layer),
        Module("model.norm", (*family.paths("RMSNorm"), *_MODULE), "norm"),
        Module("model.rotary_emb", (*family.paths(*family.rotary), *_MODULE), "rotary"),
        Module("lm_head", _LINEAR, "linear"),
    )


def _layer(family: Family, index: int, moe: bool) -> Iterator[Module]:
    name = f"model.layers.{index}"
    yield Module(name, (*family.paths("DecoderLayer"), *_MODULE), layer=index)
    for attention, class_name in family.attentions:
        yield from _attention(family, f"{name}.{attention}", class_name, index)
    yield from _moe(family, f"{name}.{family.block_name}", index) if moe else _dense(family, name, index)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield Module(f"{name}.{norm}", (*family.paths("RMSNorm"), *_MODULE), "norm", index)


def _attention(family: Family, name: str, class_name: str, layer: int) -> Iterator[Module]:
    yield Module(name, (*family.paths(class_name), *_MODULE), "attention", layer)
    yield from _linears(name, family.attention_linears, layer)
    for norm in family.attention_norms:
        yield Module(f"{name}.{norm}", (*family.paths("RMSNorm"), *_MODULE), "norm", layer)
    yield Module(f"{name}.rotary_emb", (*family.paths(*family.rotary), *_MODULE), "rotary", layer)


def _linears(parent: str, names: Sequence[str], layer: int) -> Iterator[Module]:
    yield from (Module(f"{parent}.{name}", _LINEAR, "linear", layer) for name in names)


def _dense(family: Family, name: str, layer: int) -> Iterator[Module]:
    yield from _mlp(family, f"{name}.{family.dense_name or family.block_name}", family.mlp, layer)


def _mlp(family: Family, name: str, class_name: str, layer: int) -> Iterator[Module]:
    yield Module(name, (*family.paths(class_name), *_MODULE), layer=layer)
    yield from _linears(name, family.mlp_linears, layer)


def _moe(family: Family, name: str, layer: int) -> Iterator[Module]:
    yield Module(name, (*family.paths(family.block), *_MODULE), layer=layer)
    router = (*family.paths(family.router), *_MODULE) if family.router else _LINEAR
    yield Module(f"{name}.{family.router_name}", router, "router", layer)
    yield Module(f"{name}.experts", _LIST, "experts", layer)
    for expert in range(2):
        yield Module(f"{name}.experts.{expert}", (*family.paths(family.mlp), *_MODULE), layer=layer)
        for linear in family.mlp_linears:
            yield Module(f"{name}.experts.{expert}.{linear}", _LINEAR, "expert", layer)
    for shared in family.shared:
        yield from _mlp(family, f"{name}.{shared}", family.mlp, layer)
    if family.shared_gate:
        yield Module(f"{name}.{family.shared_gate}", _LINEAR, "linear", layer)
