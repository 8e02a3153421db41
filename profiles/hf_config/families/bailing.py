"""inclusionAI's Ling and Ring (BailingMoE): 1 and 2 with plain attention, 2.5 with lightning attention in most layers,
3 with Kimi's delta attention there.
"""

from __future__ import annotations

from functools import partial

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import DENSE, SPARSE, with_next_token_layers
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.attention import head_shape, latent_attention
from profiles.hf_config.parts.basic import FeedForward, Mixer, linear, norm
from profiles.hf_config.parts.decoder import by_layer, decoder, in_fp32, layer_count, layer_kinds
from profiles.hf_config.parts.feed_forward import gated_mlp, mixture
from profiles.hf_config.parts.kimi_delta import kimi_delta_attention
from profiles.tensors import Cache, DiskNames, ModelTensors, under

FULL, LINEAR = "full_attention", "linear_attention"
GATES = ("head_wise", "element_wise")
"""Of `gated_attention_proj_granularity_type`: latent attention has a gate for each head, or for each value."""


def _feed_forwards(fields: Fields) -> tuple[list[str], partial[FeedForward], partial[FeedForward]]:
    """Which layers are dense or have experts, and both."""
    first = fields.count("first_k_dense_replace", 0, most=MAX_LAYERS)
    kinds = layer_kinds(fields, "mlp_layer_types", (DENSE, SPARSE), lambda i: DENSE if i < first else SPARSE)
    bias, width = fields.flag("use_bias", False), fields.size("moe_intermediate_size")
    shared = fields.count("n_shared_experts|num_shared_experts", 0, most=1000)
    each = fields.size("moe_shared_expert_intermediate_size", width) if shared else 0
    sparse = partial(
        mixture,
        fields,
        count="num_experts|num_local_experts",
        width=width,
        shared_width=shared * each,
        shared_bias=bias,
        active="num_experts_per_tok|num_experts_per_token",
    )
    return kinds, partial(gated_mlp, fields, fields.size("intermediate_size"), bias=bias), sparse


def _model(fields: Fields, kinds: list[str], parts: dict[str, partial[Mixer]]) -> ModelTensors:
    feeds, dense, sparse = _feed_forwards(fields)
    model = decoder(fields, by_layer(kinds, parts), by_layer(feeds, {DENSE: dense, SPARSE: sparse}))
    return with_next_token_layers(model, fields, own_ends=False)


def _layers(fields: Fields, *, rest_is_full: bool) -> list[str]:
    """Full attention in every `layer_group_size`-th layer, and in those left over after the last whole group."""
    group, layers = fields.size("layer_group_size", most=MAX_LAYERS), layer_count(fields)
    whole = layers // group * group if rest_is_full else layers
    return layer_kinds(
        fields, "layer_types", (FULL, LINEAR), lambda i: FULL if (i + 1) % group == 0 or i >= whole else LINEAR
    )


def _latent(fields: Fields, gates: str | None) -> Mixer:
    """Latent attention whose output is gated by head, by value or not at all."""
    given = fields.config.get("gated_attention_proj_granularity_type", gates)
    if given is not None and given not in GATES:
        where = f"{fields.prefix}gated_attention_proj_granularity_type"
        raise ProfileError(f"{where}: {short(given)} is not known here; use null or one of {', '.join(GATES)}")
    bias = fields.flag("attention_bias", False)
    plain = latent_attention(fields.but(q_lora_rank=fields.config.get("q_lora_rank")), bias=bias)
    if given is None:
        return plain
    heads = fields.size("num_attention_heads")
    width = heads if given == "head_wise" else heads * fields.size("v_head_dim")
    return plain.beside(*linear("self_attn.g_proj", width, fields.size("hidden_size")))


def _bailing_hybrid(fields: Fields) -> ModelTensors:
    """Ling 3 as transformers has it, but that queries have a low rank where the file gives one (Ling 3 tiny), which
    transformers 5.23 does not read. Files of Ling 2.5 have the same `model_type` and are another model.
    """
    if _is_lightning(fields):
        return _bailing_linear(fields)
    if fields.flag("use_kda_lora", False) or not fields.flag("no_kda_lora", True):
        where = f"{fields.prefix}use_kda_lora"
        raise ProfileError(f"{where}: decays and gates of a low rank are not known of Ling 3; write a profile YAML")
    heads = fields.size("num_attention_heads")
    linear_sizes = fields.but(
        linear_num_heads=heads,
        linear_head_dim=fields.size("linear_head_dim" if "linear_head_dim" in fields.config else "head_dim"),
        linear_conv_kernel_dim=fields.size("short_conv_kernel_size"),
    )
    delta = partial(kimi_delta_attention, linear_sizes, decay=(heads,), full_rank_gate=True, full_rank_decay=True)
    kinds = _layers(fields, rest_is_full=False)
    model = _model(fields, kinds, {FULL: partial(_latent, fields, "head_wise"), LINEAR: delta})
    return in_fp32(model, "conv1d", "dt_bias", "A_log")


def _is_lightning(fields: Fields) -> bool:
    """Whether this is Ling 2.5, whose files name no convolution; those that name a class name its own."""
    classes = fields.config.get("architectures")
    if isinstance(classes, list) and classes and isinstance(classes[0], str):
        return "V2_5" in classes[0] or "Linear" in classes[0]
    return "group_norm_size" in fields.config and "short_conv_kernel_size" not in fields.config


def _fused(fields: Fields) -> Mixer:
    """Attention of Ling 1 and 2: one projection for queries, keys and values; both are normed by head from 2 on."""
    heads, kv_heads, size = head_shape(fields)
    hidden, bias = fields.size("hidden_size"), fields.flag("use_bias", False)
    in_bias = bias or fields.flag("use_qkv_bias", False)
    tensors = linear("query_key_value", (heads + 2 * kv_heads) * size, hidden, bias=in_bias)
    tensors += linear("o_proj", hidden, heads * size, bias=bias)
    if fields.flag("use_qk_norm", False):
        tensors += norm("query_layernorm", size) + norm("key_layernorm", size)
    cache = Cache(values_per_token=2 * kv_heads * size, flops_per_token_pair=4 * heads * size)
    return Mixer(under("self_attn.", tensors), cache)


def _lightning(fields: Fields) -> Mixer:
    """Linear attention of Ling 2.5: the projections of plain attention, a norm and a gate of its output.

    Engines keep a matrix of size by size a head in fp32.
    """
    own = fields.but(num_key_value_heads=fields.config.get("num_kv_heads_for_linear_attn") or None)
    heads, _, size = head_shape(own)
    gate = norm("g_norm", heads * size) + linear("g_proj", heads * size, fields.size("hidden_size"))
    state = Cache(state_fp32_values=heads * size * size)
    return Mixer(_fused(own).tensors + under("self_attn.", gate), state)


def _bailing_linear(fields: Fields) -> ModelTensors:
    """Ling 2.5, and Ring-linear 2.0 with plain attention where 2.5 has latent attention. transformers knows neither.

    Shapes: SGLang's and vLLM's BailingMoeV2_5. Ling 2.5 1T comes to the 1 trillion parameters of its name, 63 billion
    of them active, as its card says.
    """
    fields.require("layer_group_size", "num_attention_heads", "head_dim", "num_experts", "moe_intermediate_size")
    latent = fields.config.get("kv_lora_rank") is not None
    if latent:
        fields.require("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    full = partial(_latent, fields, None) if latent else partial(_fused, fields)
    return _model(fields, _layers(fields, rest_is_full=True), {FULL: full, LINEAR: partial(_lightning, fields)})


def _bailing_moe(fields: Fields) -> ModelTensors:
    """Ling and Ring 1 and 2, which transformers does not know. Shapes: vLLM's and SGLang's `bailing_moe`."""
    fields.require("num_attention_heads", "num_key_value_heads", "num_experts", "moe_intermediate_size")
    return _model(fields, [FULL] * layer_count(fields), {FULL: partial(_fused, fields)})


NAMES = DiskNames(
    (
        (r"^model\.embed_tokens\b", "model.word_embeddings"),
        (r"\.forget_gate\b", ""),
        (r"\.self_attn\.", ".attention."),
    )
)
LING_NAMES = DiskNames((*NAMES.renames, (r"\.attention\.o_proj\b", ".attention.dense")))
FAMILIES = {
    "bailing_hybrid": Family(_bailing_hybrid, NAMES, architectures=("BailingMoeV3ForCausalLM",)),
    "bailing_moe": Family(_bailing_moe, LING_NAMES, architectures=("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM")),
    "bailing_moe_linear": Family(_bailing_linear, LING_NAMES, architectures=("BailingMoeLinearV2ForCausalLM",)),
    "bailing_moe_v2": Family(_bailing_moe, LING_NAMES),
}
