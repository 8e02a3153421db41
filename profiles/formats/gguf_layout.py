"""How llama.cpp's converter lays a Hugging Face model out as GGUF: names, fused tensors split, routers and norms apart.

Names are those of `gguf_names`. Shapes are turned into ggml's order (input dimension first).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod

from profiles.formats.gguf_names import FOLDED, TOP, file_architecture, layer_name, split_names
from profiles.formats.llama_cpp_mix import Facts, mix_types
from profiles.formats.stored import Stored, StoredExperts, same
from profiles.gguf.tensors import GgmlType, GgufTensor, tensor_bytes
from profiles.llama_cpp_buffers import latent_heads
from profiles.tensors import LayerTensors, ModelTensors, Tensor, Tensors

KEEPS_MTP = ("glm4_moe",)
"""Architectures whose multi-token-prediction layers go into the GGUF file; for the others they are dropped."""
MXFP4_EXPERTS = ("gpt_oss",)
"""Architectures whose experts come in MXFP4 and stay so in every file."""
KEEPS_FUSED = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "granitemoe_swa")
"""Families whose experts' gate and up projections stay one tensor."""
WITH_ROPE_FACTORS = "gemma4"
"""The architecture whose files have a factor for every rotated pair of the layers that attend to everything."""
WHOLE_KV_B = ("deepseek_v2",)
"""Latent attention whose published files are older than the split of kv_b into attn_k_b and attn_v_b (spring 2025)."""
ROUTER_BIAS = (
    "afmoe", "bailing_moe_v2", "bailing_moe_v3", "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots1",
    "dots3_note_text", "ernie4_5_moe", "exaone_moe", "glm4_moe", "glm4_moe_lite", "glm4v_moe_text", "glm5_next_text",
    "glm_moe_dsa", "hy_v3", "hy_v4", "kimi_k2", "kimi_k25", "kimi_k3", "kimi_linear", "lfm2_moe", "mimo_v2",
    "mimo_v2_flash", "minimax_m2", "minimax_m3", "minimax_m3_vl_text", "nemotron_h", "sarvam_moe", "solar_open",
    "step3p5", "step3p7",
)  # fmt: skip
"""Families whose routers correct their scores by a bias an expert, in transformers a buffer and no parameter."""
LAYERS_OF_70B = 80
_PREFIX = re.compile(r".*?\.([0-9]+)\.")
_SUFFIX = re.compile(r"(.*?)(\.weight|\.bias|_bias)?")
_CORRECTION = "exp_probs_b"
EXPERTS = {"gate_up_proj": ("gate", "up"), "gate_proj": ("gate",), "up_proj": ("up",), "down_proj": ("down",)}
EXPERTS |= {"w1": ("gate",), "v1": ("up",), "w3": ("up",), "w2": ("down",)}
EXPERTS |= {"input_linear.weight": ("gate", "up"), "output_linear.weight": ("down",)}


@dataclass(frozen=True)
class _Placed:
    """A tensor of the file and the part of the model it belongs to: embedding, head, mtp, attention or a projection."""

    tensor: GgufTensor
    part: str


def stored_in_mix(model: ModelTensors, mix: str) -> Stored:
    """Bytes of every block of the GGUF file that llama.cpp would make of `model` under `mix`, a key of MIXES.

    The file's header and tokenizer (a few MB) are no weights and not counted.
    """
    placed = _file(model)
    kinds = mix_types(mix, [entry.tensor for entry in placed], _facts(model))
    sums: dict[tuple[int | None, str], int] = {}
    for entry, kind in zip(placed, kinds, strict=True):
        key = (entry.tensor.layer if entry.part not in ("embedding", "head", "mtp") else None, entry.part)
        sums[key] = sums.get(key, 0) + tensor_bytes(entry.tensor, kind)
    tied = tensor_bytes(placed[0].tensor, kinds[0]) if model.tied else 0
    return Stored(
        quant=mix,
        embedding=same(sums[None, "embedding"]),
        attention=tuple(same(sums.get((i, "attention"), 0)) for i in range(len(model.layers))),
        experts=tuple(_experts(sums, i) if layer.experts else None for i, layer in enumerate(model.layers)),
        head=same(sums.get((None, "head"), 0) + tied),
        tied_bytes=tied,
        mtp_bytes=sums.get((None, "mtp"), 0),
        mtp_layers=_mtp_layers(model),
        notes=(f"bytes predicted by llama.cpp's rule for {mix}, tensor by tensor",),
    )


def _experts(sums: dict[tuple[int | None, str], int], layer: int) -> StoredExperts:
    found = {part: n for (i, part), n in sums.items() if i == layer and part != "attention"}
    return StoredExperts(total=same(sum(found.values())), projections=found)


def _facts(model: ModelTensors) -> Facts:
    """What the rule asks. A latent counts as one key-value head, which is how converted files describe it."""
    weights = (t for layer in model.layers for t in layer.attention if t.name.endswith("weight"))
    by_name = {t.name.rsplit(".", 2)[-2]: t for t in weights}  # of all layers: the first may be linear attention
    out, keys = by_name.get("o_proj"), by_name.get("k_proj")
    per_kv_head = out.in_features // keys.out_features if out and keys else 1
    counts = [layer.experts.count for layer in model.layers if layer.experts]
    layers = len(model.layers) + _mtp_layers(model)
    return Facts(
        layers=layers,
        experts=max(counts, default=0),
        heads_per_kv_head=max(1, per_kv_head),
        is_70b=not counts and layers == LAYERS_OF_70B,
        tied=model.tied,
        mxfp4_experts=model.architecture in MXFP4_EXPERTS,
        architecture=file_architecture(model.architecture),
    )


def _mtp_layers(model: ModelTensors) -> int:
    """Multi-token-prediction layers that the file has."""
    return len({_index(tensor.name) for tensor in model.mtp}) if model.architecture in KEEPS_MTP else 0


def _file(model: ModelTensors) -> list[_Placed]:
    """Every tensor of the file, the token embedding first."""
    placed = [_Placed(_plain("token_embd.weight", model.embedding[0]), "embedding")]
    placed += [_Placed(_plain(TOP.get(t.name, t.name), t), "embedding") for t in model.embedding[1:]]
    if file_architecture(model.architecture) == WITH_ROPE_FACTORS:
        placed.append(_Placed(GgufTensor("rope_freqs.weight", (_largest_head(model) // 2,)), "embedding"))
    for index, layer in enumerate(model.layers):
        around = _attention(index, layer, model.architecture)
        placed += [_Placed(t, "embedding" if t.layer is None else "attention") for t in around]
        if layer.experts is not None:
            placed += _routed(index, layer.experts.tensors, model.architecture)
    placed += [
        _Placed(_plain(_head_name(tensor.name), tensor), "head")
        for tensor in model.head
        if not _is_tied(tensor, model) and tensor.name not in FOLDED
    ]
    if model.architecture in KEEPS_MTP:
        for tensor in model.mtp:
            placed += [_Placed(t, "mtp") for t in _of_layer(_index(tensor.name), tensor, model.architecture)]
    return placed


def _largest_head(model: ModelTensors) -> int:
    """The size of a head, the largest where layers differ; from the norm of its queries."""
    norms = (t for layer in model.layers for t in layer.attention if t.name.endswith(".q_norm.weight"))
    return max(norm.shape[0] for norm in norms)


def _is_tied(tensor: Tensor, model: ModelTensors) -> bool:
    return model.tied and tensor.name == "lm_head.weight"


def _head_name(name: str) -> str:
    """The projection and the final norm have names of GGUF's own; what else a head has keeps its name."""
    module, suffix = _parts(name)
    if module in ("lm_head", "embed_out"):
        return "output" + suffix
    if module.rsplit(".", 1)[-1] in ("norm", "final_layernorm", "ln_f", "norm_f"):
        return "output_norm" + suffix
    return TOP.get(name, name)


def _attention(index: int, layer: LayerTensors, architecture: str) -> list[GgufTensor]:
    """All of a layer but its routed experts; latent attention's kv_b may be split into its keys and its values."""
    found: list[GgufTensor] = []
    for tensor in layer.attention:
        is_latent = tensor.name.endswith(".kv_b_proj.weight") and layer.cache.full_values_per_token
        if is_latent and architecture not in WHOLE_KV_B:
            found += _split_kv_b(index, tensor, layer)
        else:
            named = _of_layer(index, tensor, architecture, layer.attention)
            if layer.experts is None and ".shared_mlp." in tensor.name:  # then it is the layer's only FFN
                named = [replace(t, name=t.name.replace("_shexp.", ".")) for t in named]
            found += named
    corrected = any(f".{_CORRECTION}" in t.name or ".ffn_gate_tid2eid" in t.name for t in found)
    corrects = architecture in ROUTER_BIAS or f"{architecture}_text" in ROUTER_BIAS
    if layer.experts is not None and corrects and not corrected:
        name = layer_name(f"{_CORRECTION}.bias", file_architecture(architecture))
        found.append(GgufTensor(f"blk.{index}.{name}", (layer.experts.count,)))
    return found


def _split_kv_b(index: int, kv_b: Tensor, layer: LayerTensors) -> list[GgufTensor]:
    """attn_k_b is stored transposed: its rows are as long as the part of a head without rotary positions."""
    out = next(t for t in layer.attention if t.name.endswith(".o_proj.weight"))
    rank, values, heads = kv_b.in_features, out.in_features, latent_heads(layer)
    keys = (kv_b.out_features - values) // heads
    return [
        GgufTensor(f"blk.{index}.attn_k_b.weight", (keys, rank, heads)),
        GgufTensor(f"blk.{index}.attn_v_b.weight", (rank, values // heads, heads)),
    ]


def _of_layer(index: int, tensor: Tensor, architecture: str, beside: Tensors = ()) -> list[GgufTensor]:
    """A tensor of a layer under its GGUF name; one that fuses several becomes as many."""
    if ".experts." in tensor.name:
        return [entry.tensor for entry in _routed(index, (tensor,), architecture)]
    rest = tensor.name.split(f".{index}.", 1)[-1]
    if rest in FOLDED:
        return []
    if rest in TOP:
        return [_plain(TOP[rest], tensor)]
    if names := split_names(rest, file_architecture(architecture)):
        return _split_rows(index, tensor, names, beside)
    name = layer_name(rest, file_architecture(architecture))
    if _CORRECTION in name:
        return [GgufTensor(f"blk.{index}.{name}", (tensor.params,))]
    return [_plain(f"blk.{index}.{name}", tensor)]


def _split_rows(index: int, tensor: Tensor, names: tuple[str, ...], beside: Tensors) -> list[GgufTensor]:
    """Parts of the tensor's rows: equal ones, but for what follows a linear attention's or an indexer's queries.

    A gate is as wide as the attention's output, an indexer's key as wide as its norm.
    """
    rows, last = tensor.shape[0], tensor.shape[0] // len(names)
    for other in beside:
        if tensor.name.endswith("in_proj_qkvz.weight") and other.name.endswith("linear_attn.out_proj.weight"):
            last = other.in_features
        if tensor.name.endswith("index_qk_proj.weight") and other.name.endswith("indexer.k_layernorm.weight"):
            last = other.shape[0]
    first = (rows - last) // (len(names) - 1)
    sizes = [first] * (len(names) - 1) + [last]
    whole = _plain("", tensor).shape
    return [GgufTensor(f"blk.{index}.{name}", (*whole[:-1], size)) for name, size in zip(names, sizes, strict=True)]


def _routed(index: int, tensors: Tensors, architecture: str) -> list[_Placed]:
    """Routed experts by projection: one tensor for all experts of a layer each, biases likewise."""
    placed = []
    for tensor in tensors:
        last = tensor.name.split(".experts.")[-1].split("block_sparse_moe.")[-1]
        stem, suffix = (last.removesuffix("_bias"), ".bias") if last.endswith("_bias") else (last, ".weight")
        parts = EXPERTS.get(stem, EXPERTS.get(stem.rsplit(".", 1)[-1], (stem.replace(".", "_"),)))
        if len(parts) > 1 and architecture in KEEPS_FUSED:
            parts = ("gate_up",)
        for part in parts:
            if suffix == ".bias":
                shape: tuple[int, ...] = (tensor.shape[-1] // len(parts), tensor.shape[0])
            else:
                shape = (tensor.in_features, tensor.out_features // len(parts), tensor.matrices)
            placed.append(_Placed(GgufTensor(f"blk.{index}.ffn_{part}_exps{suffix}", shape), part))
    return placed


def _plain(name: str, tensor: Tensor) -> GgufTensor:
    if len(tensor.shape) < 2:
        return GgufTensor(name, tensor.shape)
    if len(tensor.shape) == 2:
        return GgufTensor(name, (tensor.in_features, tensor.out_features))
    shape = tuple(n for n in reversed(tensor.shape) if n > 1)  # a convolution over time keeps a dimension of one
    return GgufTensor(name, shape if prod(shape) == tensor.params else tuple(reversed(tensor.shape)))


def _index(name: str) -> int:
    match = _PREFIX.match(name)
    assert match is not None
    return int(match[1])


def _parts(name: str) -> tuple[str, str]:
    match = _SUFFIX.fullmatch(name)
    assert match is not None
    return match[1], (match[2] or "").replace("_bias", ".bias")


def predicted_file(model: ModelTensors, mix: str) -> list[tuple[GgufTensor, GgmlType]]:
    """Every tensor of the file that llama.cpp would make of `model` under `mix`, with its type."""
    tensors = [entry.tensor for entry in _file(model)]
    return list(zip(tensors, mix_types(mix, tensors, _facts(model)), strict=True))
