"""The model families that KTransformers knows: the names of their modules, and the operators that replace these.

Read in kvcache-ai/ktransformers (`models/modeling_*.py`, `operators/*.py`, `optimize/optimize_rules/*.yaml`). Families
are called as in a config.json's `model_type`. Those without operators here are read, not written: KT ships rules for
one GPU only, and its server does not move hidden states between GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from profiles.errors import TargetError

MODELS = "ktransformers.models"
_OPERATORS = "ktransformers.operators"
LINEAR = "torch.nn.Linear"
LINEAR_OPERATOR = f"{_OPERATORS}.linear.KTransformersLinear"
EXPERTS_OPERATOR = f"{_OPERATORS}.experts.KTransformersExperts"


@dataclass(frozen=True)
class Operators:
    """Import paths of what replaces a module; None: nothing does.

    Without a `model` there is no transfer map, so all attention stays where the inputs start. `not_quantised` is what
    the linear operator must leave alone, as a regex after "model.layers.N.".
    """

    rotary: str
    block: str
    router: str | None = None
    attention: str | None = None
    model: str | None = None
    not_quantised: str | None = None


@dataclass(frozen=True)
class Family:
    """Names of modules and, by the `prefix` of their classes in `modeling`, classes. `operators` is None: read only.

    `rotary` are the class of the rotary embedding and its parents; rules match the first. A `router` of None is a plain
    linear. `attentions` are the possible names and classes of a layer's attention.
    """

    modeling: str
    prefix: str
    rotary: tuple[str, ...] = ("RotaryEmbedding",)
    attentions: tuple[tuple[str, str], ...] = (("self_attn", "Attention"),)
    attention_linears: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    attention_norms: tuple[str, ...] = ()
    block: str = "MoE"
    block_name: str = "mlp"
    dense_name: str | None = None
    router: str | None = None
    router_name: str = "gate"
    mlp: str = "MLP"
    mlp_linears: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    shared: tuple[str, ...] = ()
    shared_gate: str | None = None
    operators: Operators | None = None

    def paths(self, *names: str) -> tuple[str, ...]:
        """The import paths of classes: of this family by the end of their names ("MLP"), of another file with it.

        >>> FAMILIES["mixtral"].paths("RMSNorm", "modeling_x.Y")
        ('ktransformers.models.modeling_mixtral.MixtralRMSNorm', 'ktransformers.models.modeling_x.Y')
        """
        own = f"{self.modeling}.{self.prefix}"
        return tuple(f"{MODELS}.{name if '.' in name else own + name}" for name in names)


_DEEPSEEK_V3 = Family(
    modeling="modeling_deepseek_v3",
    prefix="DeepseekV3",
    attention_linears=("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    attention_norms=("q_a_layernorm", "kv_a_layernorm"),
    router="modeling_deepseek_v3.MoEGate",
    shared=("shared_experts",),
    operators=Operators(
        rotary=f"{_OPERATORS}.RoPE.YarnRotaryEmbeddingV3",
        block=f"{_OPERATORS}.experts.KDeepseekV3MoE",
        router=f"{_OPERATORS}.gate.KMoEGate",
        attention=f"{_OPERATORS}.attention.KDeepseekV2Attention",
        model=f"{_OPERATORS}.models.KDeepseekV2Model",
        not_quantised=r"self_attn\.kv_b_proj",
    ),
)
_DEEPSEEK_V2 = replace(
    _DEEPSEEK_V3,
    modeling="modeling_deepseek",
    prefix="DeepseekV2",
    rotary=("YarnRotaryEmbedding", "RotaryEmbedding"),
    router="modeling_deepseek.MoEGate",
    operators=Operators(
        rotary=f"{_OPERATORS}.RoPE.YarnRotaryEmbedding",
        block=f"{_OPERATORS}.experts.KDeepseekV2MoE",
        attention=f"{_OPERATORS}.attention.KDeepseekV2Attention",
        model=f"{_OPERATORS}.models.KDeepseekV2Model",
        not_quantised=r"self_attn\.kv_b_proj",
    ),
)
_QWEN2_MOE = Family(
    modeling="modeling_qwen2_moe",
    prefix="Qwen2Moe",
    block="SparseMoeBlock",
    shared=("shared_expert",),
    shared_gate="shared_expert_gate",
    operators=Operators(
        rotary=f"{_OPERATORS}.RoPE.RotaryEmbedding",
        block=f"{_OPERATORS}.experts.KQwen2MoeSparseMoeBlock",
        model=f"{_OPERATORS}.models.KQwen2MoeModel",
        not_quantised=r"mlp\.shared_expert_gate",
    ),
)
_QWEN3_MOE = Family(
    modeling="modeling_qwen3_moe",
    prefix="Qwen3Moe",
    rotary=("modeling_qwen2_moe.Qwen2MoeRotaryEmbedding",),
    attention_norms=("q_norm", "k_norm"),
    block="SparseMoeBlock",
    # The model operator is that of Qwen2-MoE, as in KT's own rules for Qwen3-235B on two GPUs (kt-sft).
    operators=Operators(
        rotary=f"{_OPERATORS}.RoPE.RotaryEmbedding",
        block=f"{_OPERATORS}.experts.KQwen3MoeSparseMoeBlock",
        model=f"{_OPERATORS}.models.KQwen2MoeModel",
    ),
)
_MIXTRAL = Family(
    modeling="modeling_mixtral",
    prefix="Mixtral",
    block="SparseMoeBlock",
    block_name="block_sparse_moe",
    mlp="BlockSparseTop2MLP",
    mlp_linears=("w1", "w2", "w3"),
    operators=Operators(
        rotary=f"{_OPERATORS}.RoPE.RotaryEmbedding",
        block=f"{_OPERATORS}.experts.KMistralSparseMoEBlock",
    ),
)
_QWEN3_NEXT = replace(
    _QWEN2_MOE,
    modeling="modeling_qwen3_next",
    prefix="Qwen3Next",
    attentions=(("self_attn", "Attention"), ("linear_attn", "GatedDeltaNet")),
    attention_linears=("q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkvz", "in_proj_ba", "out_proj"),
    attention_norms=("q_norm", "k_norm"),
    operators=None,
)
_GLM4_MOE = Family(
    modeling="modeling_glm4_moe",
    prefix="Glm4Moe",
    attention_norms=("q_norm", "k_norm"),
    router="TopkRouter",
    shared=("shared_experts",),
)
_LLAMA4 = Family(
    modeling="modeling_llama4",
    prefix="Llama4Text",
    block="Moe",
    block_name="feed_forward",
    router_name="router",
    shared=("shared_expert",),
)
_SMALLTHINKER = Family(
    modeling="modeling_smallthinker",
    prefix="Smallthinker",
    block="MoeBlock",
    block_name="block_sparse_moe",
    router_name="primary_router",
    mlp="DenseMlpBlock",
    mlp_linears=("gate", "up", "down"),
)
_HUNYUAN = Family(
    modeling="modeling_hunyuan",
    prefix="HunYuan",
    rotary=("DynamicNTKAlphaRotaryEmbedding", "RotaryEmbedding"),
    attention_norms=("query_layernorm", "key_layernorm"),
    router="TopKGate",
    shared=("shared_mlp",),
)
_LLAMA = Family(modeling="modeling_llama", prefix="Llama")

FAMILIES = {
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "qwen2_moe": _QWEN2_MOE,
    "qwen3_moe": _QWEN3_MOE,
    "mixtral": _MIXTRAL,
    "qwen3_next": _QWEN3_NEXT,
    "glm4_moe": _GLM4_MOE,
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "smallthinker": _SMALLTHINKER,
    "hunyuan_v1_moe": _HUNYUAN,
    "hunyuan": _HUNYUAN,
    "llama": _LLAMA,
    "internlm2": _LLAMA,
}
WRITTEN = tuple(name for name, family in FAMILIES.items() if family.operators)


def family_of(architecture: str | None) -> Family:
    """The family of that `model_type`. Raises TargetError for an unknown one, or for None."""
    known = ", ".join(FAMILIES)
    if architecture is None:
        raise TargetError(
            f"ktransformers: the plan does not say its architecture, and the rules name modules of one; "
            f"set `architecture` to one of {known}"
        )
    if architecture not in FAMILIES:
        raise TargetError(
            f"ktransformers: architecture {architecture!r} has no injection rules; known: {known}; use another target"
        )
    return FAMILIES[architecture]


def operators_of(architecture: str | None) -> Operators:
    """The operators of that `model_type`. Raises TargetError for a family that is unknown, or only read."""
    operators = family_of(architecture).operators
    if operators is None:
        raise TargetError(
            f"ktransformers: architecture {architecture!r} is read, not written: its server runs it on one GPU with "
            f"rules of its own; known for writing: {', '.join(WRITTEN)}; use another target"
        )
    return operators
