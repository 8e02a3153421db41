"""How llama.cpp's converter lays a Hugging Face model out as GGUF: names, fused tensors split, routers and norms apart.

Names come from the `gguf` package's own table. Shapes are turned into ggml's order (input dimension first).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from math import prod

from gguf.constants import TENSOR_NAMES
from gguf.tensor_mapping import TensorNameMap

from profiles.formats.llama_cpp_mix import Facts, mix_types
from profiles.formats.stored import Stored, StoredExperts, same
from profiles.gguf.tensors import GgmlType, GgufTensor, tensor_bytes
from profiles.llama_cpp_buffers import latent_heads
from profiles.tensors import LayerTensors, ModelTensors, Tensor, Tensors

KEEPS_MTP = ("glm4_moe",)
"""Architectures whose multi-token-prediction layers go into the GGUF file; for the others they are dropped."""
MXFP4_EXPERTS = ("gpt_oss",)
"""Architectures whose experts come in MXFP4 and stay so in every file."""
WHOLE_KV_B = ("deepseek_v2",)
"""Latent attention whose published files are older than the split of kv_b into attn_k_b and attn_v_b (spring 2025)."""
LAYERS_OF_70B = 80
_PREFIX = re.compile(r".*?\.([0-9]+)\.")
_SUFFIX = re.compile(r"(.*?)(\.weight|\.bias|_bias)?")
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
    layers = len(model.layers) + len({_index(t.name) for t in model.mtp if model.architecture in KEEPS_MTP})
    return Facts(
        layers=layers,
        experts=max(counts, default=0),
        heads_per_kv_head=max(1, per_kv_head),
        is_70b=not counts and layers == LAYERS_OF_70B,
        tied=model.tied,
        mxfp4_experts=model.architecture in MXFP4_EXPERTS,
    )


def _file(model: ModelTensors) -> list[_Placed]:
    """Every tensor of the file, the token embedding first."""
    placed = [_Placed(_plain("token_embd.weight", model.embedding[0]), "embedding")]
    placed += [_Placed(_plain(tensor.name, tensor), "embedding") for tensor in model.embedding[1:]]
    for index, layer in enumerate(model.layers):
        splits = model.architecture not in WHOLE_KV_B
        placed += [_Placed(t, "attention") for t in _attention(index, layer, splits)]
        if layer.experts is not None:
            placed += _routed(index, layer.experts.tensors)
    placed += [
        _Placed(_plain(_head_name(tensor.name), tensor), "head") for tensor in model.head if not _is_tied(tensor, model)
    ]
    if model.architecture in KEEPS_MTP:
        placed += [_Placed(t, "mtp") for tensor in model.mtp for t in _of_layer(_index(tensor.name), tensor)]
    return placed


def _is_tied(tensor: Tensor, model: ModelTensors) -> bool:
    return model.tied and tensor.name == "lm_head.weight"


def _head_name(name: str) -> str:
    """The projection and the final norm have names of GGUF's own; what else a head has keeps its name."""
    module, suffix = _parts(name)
    if module in ("lm_head", "embed_out"):
        return "output" + suffix
    return (
        "output_norm" + suffix if module.rsplit(".", 1)[-1] in ("norm", "final_layernorm", "ln_f", "norm_f") else name
    )


def _attention(index: int, layer: LayerTensors, splits_kv_b: bool) -> list[GgufTensor]:
    """All of a layer but its routed experts; latent attention's kv_b may be split into its keys and its values."""
    found: list[GgufTensor] = []
    for tensor in layer.attention:
        if splits_kv_b and tensor.name.endswith(".kv_b_proj.weight") and layer.cache.full_values_per_token:
            found += _split_kv_b(index, tensor, layer)
        else:
            found += _of_layer(index, tensor)
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


def _of_layer(index: int, tensor: Tensor) -> list[GgufTensor]:
    """A tensor of a layer under its GGUF name; one that fuses gate and up becomes two."""
    if ".experts." in tensor.name:
        return [entry.tensor for entry in _routed(index, (tensor,))]
    name, suffix = _parts(tensor.name)
    rest = name.split(f".{index}.", 1)[-1]
    return [_plain(f"blk.{index}.{_stem(name, index) or rest}{suffix}", tensor)]


def _routed(index: int, tensors: Tensors) -> list[_Placed]:
    """Routed experts by projection: one tensor for all experts of a layer each, biases likewise."""
    placed = []
    for tensor in tensors:
        last = tensor.name.split(".experts.")[-1].split("block_sparse_moe.")[-1]
        stem, suffix = (last.removesuffix("_bias"), ".bias") if last.endswith("_bias") else (last, ".weight")
        parts = EXPERTS.get(stem, EXPERTS.get(stem.rsplit(".", 1)[-1], (stem.replace(".", "_"),)))
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


def _stem(name: str, index: int) -> str | None:
    """The GGUF name of a Hugging Face module of a layer, by the package's table; None where that has none."""
    return _stems().get(name.replace(f".{index}.", ".{bid}.", 1))


@cache
def _stems() -> dict[str, str]:
    found: dict[str, str] = {}
    for tensor, names in TensorNameMap.block_mappings_cfg.items():
        for name in names:
            found.setdefault(name, TENSOR_NAMES[tensor].removeprefix("blk.{bid}."))
    return found


def predicted_file(model: ModelTensors, mix: str) -> list[tuple[GgufTensor, GgmlType]]:
    """Every tensor of the file that llama.cpp would make of `model` under `mix`, with its type."""
    tensors = [entry.tensor for entry in _file(model)]
    return list(zip(tensors, mix_types(mix, tensors, _facts(model)), strict=True))
