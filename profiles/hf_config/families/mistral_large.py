"""Mistral's large models with latent attention (Large 3, Small 4, Large 4), and Sarvam's, likewise DeepSeek-V3s."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.families.deepseek import deepseek_v3, dense_first, listed_or_dense_first, shared_and_routed
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts import indexers
from profiles.hf_config.parts.attention import latent_attention
from profiles.hf_config.parts.basic import Mixer, kept, norm
from profiles.hf_config.parts.decoder import decoder, every_layer, layer_count
from profiles.tensors import DiskNames, ModelTensors, Tensors, under

LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "vocab_size")


def _mistral_large3(fields: Fields) -> ModelTensors:
    """Mistral Large 3: a DeepSeek-V3 by another name, which is how vLLM and SGLang run it."""
    fields.require(*LATENT, "intermediate_size", "first_k_dense_replace", "n_shared_experts", "num_experts_per_tok")
    return deepseek_v3(fields)


def _sarvam_mla(fields: Fields) -> ModelTensors:
    """Sarvam 105B: a DeepSeek-V3 without a low rank for queries, as vLLM runs it, with its own names for counts."""
    fields = fields.but(q_lora_rank=fields.config.get("q_lora_rank"))
    if "num_shared_experts" in fields.config:
        fields = fields.but(n_shared_experts=fields.config["num_shared_experts"])
    sizes = ("num_attention_heads", "intermediate_size", "moe_intermediate_size", "num_experts_per_tok")
    fields.require(*LATENT, *sizes, "first_k_dense_replace", "n_shared_experts")
    return deepseek_v3(fields)


def _mistral4(fields: Fields) -> ModelTensors:
    attention = latent_attention(fields, bias=fields.flag("attention_bias", False))
    return decoder(fields, every_layer(attention), dense_first(fields))


def _mistral_large4_text(fields: Fields) -> ModelTensors:
    """Mistral Large 4: latent attention without a low rank for queries; in `no_rope_layers` (0) without rotary part;
    layers may share an indexer's choice (`indexer_types`) and the keys and values of one before (`kv_source_layers`).
    """
    choices, sources, rotary = indexers.indexer_kinds(fields), _sources(fields), _rotary(fields)
    made = cache(lambda rope, own, indexer: _large4_attention(fields, rope=rope, own=own, indexer=indexer))
    model = decoder(
        fields,
        lambda i: made(rotary[i], sources[i] == i, choices[i] == indexers.FULL),
        listed_or_dense_first(fields, 1, lambda: shared_and_routed(fields, router_fp32=True)),
        notes=(indexers.NOTE,),
    )
    if any(source != index for index, source in enumerate(sources)):
        model = replace(model, notes=(*model.notes, "layers that use keys and values of another cache none themselves"))
    return model


def _large4_attention(fields: Fields, *, rope: bool, own: bool, indexer: bool) -> Mixer:
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if not rope:
        nope = fields.size("qk_nope_head_dim") + fields.count("qk_rope_head_dim")
        fields = fields.but(qk_nope_head_dim=nope, qk_rope_head_dim=0)
    mixer = latent_attention(fields.but(q_lora_rank=None), bias=fields.flag("attention_bias", False))
    if not own:
        tensors = tuple(t for t in mixer.tensors if ".kv_a_" not in t.name)
        mixer = Mixer(tensors, replace(mixer.cache, values_per_token=0, full_values_per_token=0))
    mixer = mixer.beside(*under("self_attn.", _scaling(heads)))
    if not indexer:
        return mixer
    plain = indexers.lightning_indexer(fields, hidden)
    more = norm("q_input_norm", hidden, bias=True) + _scaling(fields.size("index_n_heads"))
    return indexers.indexed(mixer, plain.beside(*under("indexer.", more)))


def _scaling(heads: int) -> Tensors:
    return under("softmax_scaling.", kept("scale", heads) + kept("bias", heads))


def _sources(fields: Fields) -> list[int]:
    """For each layer the one whose keys and values it uses: itself, or one before that caches its own."""
    layers = layer_count(fields)
    listed = fields.whole_numbers("kv_source_layers") or list(range(layers))
    right = len(listed) == layers and all(s <= i and listed[s] == s for i, s in enumerate(listed))
    if not right:
        raise ProfileError(
            f"{fields.prefix}kv_source_layers: {short(listed)}; give each layer itself, or one before that has its own"
        )
    return listed


def _rotary(fields: Fields) -> list[bool]:
    layers, step = layer_count(fields), fields.size("no_rope_layer_interval", 4)
    listed = fields.whole_numbers("no_rope_layers") or [int((index + 1) % step != 0) for index in range(layers)]
    if len(listed) != layers:
        raise ProfileError(
            f"{fields.prefix}no_rope_layers: {len(listed)} entries; give one for each of {layers} layers"
        )
    return [bool(rotates) for rotates in listed]


LARGE4_NAMES = DiskNames(
    renames=(
        (r"^model\.", ""), (r"^embed_tokens\b", "tok_embeddings"), (r"^lm_head\b", "output"),
        (r"\.self_attn\b", ".attention"), (r"\.q_proj\b", ".wq"), (r"\.kv_a_proj_with_mqa\b", ".wkv_a_with_mqa"),
        (r"\.kv_b_proj\b", ".wkv_b"), (r"\.o_proj\b", ".wo"), (r"\.kv_a_layernorm\b", ".kv_a_norm"),
        (r"\.input_layernorm\b", ".attention_norm"), (r"\.post_attention_layernorm\b", ".ffn_norm"),
        (r"\.mlp\.(gate\b|experts\b|shared_experts\b)", r".\1"), (r"\.mlp\b", ".feed_forward"),
        (r"\.gate_proj\b", ".w1"), (r"\.down_proj\b", ".w2"), (r"\.up_proj\b", ".w3"),
        (r"\.softmax_scaling\.scale\b", ".ssmax_scaling.s"), (r"\.softmax_scaling\.bias\b", ".ssmax_scaling.b"),
    ),
    projections=("w1", "w3", "w2"),
)  # fmt: skip
FAMILIES = {
    "mistral4": Family(_mistral4),
    "mistral_large3": Family(_mistral_large3, defaults="mistral_large3", architectures=("MistralLarge3ForCausalLM",)),
    "mistral_large4_text": Family(_mistral_large4_text, LARGE4_NAMES),
    "sarvam_mla": Family(_sarvam_mla, defaults="sarvam_mla", architectures=("SarvamMLAForCausalLM",)),
}
