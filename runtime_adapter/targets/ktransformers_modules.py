"""What KTransformers calls its modules: the names and classes that its injection rules match, per architecture.

The facts were read in kvcache-ai/ktransformers: modules in `models/modeling_*.py`, operators in `operators/*.py` and
`optimize/optimize_rules/*.yaml`. Architectures are named as in a config.json's `model_type`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from profiles.errors import TargetError

_MODULE = ("torch.nn.Module",)
_LINEAR = ("torch.nn.Linear", "torch.nn.modules.linear.Linear", *_MODULE)
_OPERATORS = "ktransformers.operators"
_MODELS = "ktransformers.models"
LINEAR = "torch.nn.Linear"
LINEAR_OPERATOR = f"{_OPERATORS}.linear.KTransformersLinear"
EXPERTS_OPERATOR = f"{_OPERATORS}.experts.KTransformersExperts"


@dataclass(frozen=True)
class Module:
    """One module as a rule sees it: its dotted name and the import paths of its class and of that class's parents.

    `layer` is the decoder layer it belongs to; `holds_tensors` is False for containers, whose device means nothing.
    """

    name: str
    classes: tuple[str, ...]
    layer: int | None = None
    holds_tensors: bool = True


@dataclass(frozen=True)
class Architecture:
    """One model family: class names inside `modeling`, and the operator that replaces each; None: KT has none.

    `rotary` is the class of the layers' rotary embedding and its parents; rules match the first. Without a
    `model_operator` there is no transfer map, so all attention stays where the inputs start. `not_quantised` is what
    the linear operator must leave alone, as a regex after "model.layers.N.".
    """

    modeling: str
    rotary: tuple[str, ...]
    rotary_operator: str
    block: str
    block_operator: str
    gate: str | None
    gate_operator: str | None
    attention: str
    attention_operator: str | None
    model_operator: str | None
    not_quantised: str | None
    attention_linears: tuple[str, ...]
    attention_norms: tuple[str, ...]
    expert_linears: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    shared: str | None = None
    shared_gate: str | None = None
    block_name: str = "mlp"

    def classes(self, *names: str) -> tuple[str, ...]:
        """The import paths of a modeling class and its parents, youngest first."""
        return (*(f"{_MODELS}.{self.modeling}.{name}" for name in names), *_MODULE)


_DEEPSEEK_V3 = Architecture(
    modeling="modeling_deepseek_v3",
    rotary=("DeepseekV3RotaryEmbedding",),
    rotary_operator=f"{_OPERATORS}.RoPE.YarnRotaryEmbeddingV3",
    block="DeepseekV3MoE",
    block_operator=f"{_OPERATORS}.experts.KDeepseekV3MoE",
    gate="MoEGate",
    gate_operator=f"{_OPERATORS}.gate.KMoEGate",
    attention="DeepseekV3Attention",
    attention_operator=f"{_OPERATORS}.attention.KDeepseekV2Attention",
    model_operator=f"{_OPERATORS}.models.KDeepseekV2Model",
    not_quantised=r"self_attn\.kv_b_proj",
    attention_linears=("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    attention_norms=("q_a_layernorm", "kv_a_layernorm"),
    shared="shared_experts",
)
ARCHITECTURES = {
    "deepseek_v2": replace(
        _DEEPSEEK_V3,
        modeling="modeling_deepseek",
        rotary=("DeepseekV2YarnRotaryEmbedding", "DeepseekV2RotaryEmbedding"),
        rotary_operator=f"{_OPERATORS}.RoPE.YarnRotaryEmbedding",
        block="DeepseekV2MoE",
        block_operator=f"{_OPERATORS}.experts.KDeepseekV2MoE",
        gate_operator=None,
        attention="DeepseekV2Attention",
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "qwen2_moe": Architecture(
        modeling="modeling_qwen2_moe",
        rotary=("Qwen2MoeRotaryEmbedding",),
        rotary_operator=f"{_OPERATORS}.RoPE.RotaryEmbedding",
        block="Qwen2MoeSparseMoeBlock",
        block_operator=f"{_OPERATORS}.experts.KQwen2MoeSparseMoeBlock",
        gate=None,
        gate_operator=None,
        attention="Qwen2MoeAttention",
        attention_operator=None,
        model_operator=f"{_OPERATORS}.models.KQwen2MoeModel",
        not_quantised=r"mlp\.shared_expert_gate",
        attention_linears=("q_proj", "k_proj", "v_proj", "o_proj"),
        attention_norms=(),
        shared="shared_expert",
        shared_gate="shared_expert_gate",
    ),
    "mixtral": Architecture(
        modeling="modeling_mixtral",
        rotary=("MixtralRotaryEmbedding",),
        rotary_operator=f"{_OPERATORS}.RoPE.RotaryEmbedding",
        block="MixtralSparseMoeBlock",
        block_operator=f"{_OPERATORS}.experts.KMistralSparseMoEBlock",
        gate=None,
        gate_operator=None,
        attention="MixtralAttention",
        attention_operator=None,
        model_operator=None,
        not_quantised=None,
        attention_linears=("q_proj", "k_proj", "v_proj", "o_proj"),
        attention_norms=(),
        expert_linears=("w1", "w2", "w3"),
        block_name="block_sparse_moe",
    ),
}


def architecture_of(name: str | None) -> Architecture:
    """The family of that `model_type`. Raises TargetError for an unknown one, or for None."""
    known = ", ".join(ARCHITECTURES)
    if name is None:
        raise TargetError(
            f"ktransformers: the plan does not say its architecture, and the rules name modules of one; "
            f"set `architecture` to one of {known}"
        )
    if name not in ARCHITECTURES:
        raise TargetError(
            f"ktransformers: architecture {name!r} has no injection rules here; known: {known}; use another target"
        )
    return ARCHITECTURES[name]


def module_tree(architecture: str | None, has_experts: Sequence[bool]) -> tuple[Module, ...]:
    """Every module of a model with that many layers, parents before children, in KT's own names.

    `has_experts` says for each layer whether it is a MoE layer. Optional parts are all there (a model has either
    q_proj or q_a_proj), and two experts stand for all. Raises TargetError for an unknown architecture.

    >>> [m.name for m in module_tree("mixtral", [True]) if m.name.endswith("experts")]
    ['model.layers.0.block_sparse_moe.experts']
    """
    kind = architecture_of(architecture)
    layers = (_layer(kind, index, moe) for index, moe in enumerate(has_experts))
    return (
        Module("", _MODULE, holds_tensors=False),
        Module("model", _MODULE, holds_tensors=False),
        Module("model.embed_tokens", ("torch.nn.Embedding", *_MODULE)),
        Module("model.layers", ("torch.nn.ModuleList", *_MODULE), holds_tensors=False),
        *(module for layer in layers for module in layer),
        Module("model.norm", _MODULE),
        Module("lm_head", _LINEAR),
    )


def _layer(kind: Architecture, index: int, moe: bool) -> Iterator[Module]:
    name = f"model.layers.{index}"
    attention = f"{name}.self_attn"
    yield Module(name, _MODULE, index, holds_tensors=False)
    yield Module(attention, kind.classes(kind.attention), index)
    yield from _linears(attention, kind.attention_linears, index)
    yield from (Module(f"{attention}.{norm}", _MODULE, index) for norm in kind.attention_norms)
    yield Module(f"{attention}.rotary_emb", kind.classes(*kind.rotary), index)
    yield from _moe(kind, f"{name}.{kind.block_name}", index) if moe else _mlp(kind, f"{name}.mlp", index)
    yield from (Module(f"{name}.{norm}", _MODULE, index) for norm in ("input_layernorm", "post_attention_layernorm"))


def _linears(parent: str, names: Sequence[str], layer: int) -> Iterator[Module]:
    yield from (Module(f"{parent}.{name}", _LINEAR, layer) for name in names)


def _mlp(kind: Architecture, name: str, layer: int) -> Iterator[Module]:
    yield Module(name, _MODULE, layer, holds_tensors=False)
    yield from _linears(name, kind.expert_linears, layer)


def _moe(kind: Architecture, name: str, layer: int) -> Iterator[Module]:
    yield Module(name, kind.classes(kind.block), layer, holds_tensors=False)
    yield Module(f"{name}.gate", kind.classes(kind.gate) if kind.gate else _LINEAR, layer)
    yield Module(f"{name}.experts", ("torch.nn.ModuleList", *_MODULE), layer)
    for expert in range(2):
        yield from _mlp(kind, f"{name}.experts.{expert}", layer)
    if kind.shared:
        yield from _mlp(kind, f"{name}.{kind.shared}", layer)
    if kind.shared_gate:
        yield Module(f"{name}.{kind.shared_gate}", _LINEAR, layer)
