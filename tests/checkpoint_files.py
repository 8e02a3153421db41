"""Safetensors checkpoints for tests: real names and headers, the data a hole that takes no disk.

Names, shapes and types are written down from the published files, each tensor with the block it belongs to, so that a
test can add up what every block must weigh without the reader under test.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from profiles.model import ModelProfile

Config = Mapping[str, Any]
BITS = {"F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E8M0": 8}
BITS |= {"U8": 8, "I8": 8, "U32": 32, "I32": 32, "I64": 64}


@dataclass(frozen=True)
class Item:
    """A tensor and its block: embedding, head, mtp, tower, or attention or experts of `layer`."""

    block: str
    name: str
    shape: tuple[int, ...]
    dtype: str = "BF16"
    layer: int = -1
    expert: int | None = None
    projection: str | None = None
    linear: bool = False

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * BITS[self.dtype] // 8


Items = list[Item]


# ---- writing ----


def write_raw(path: Path, header: bytes, data_bytes: int, *, length: int | None = None) -> None:
    """A file with this header, valid or not, and a hole of `data_bytes` behind it."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header) if length is None else length) + header)
    os.truncate(path, 8 + len(header) + data_bytes)


def header_of(items: Iterable[Item]) -> tuple[dict[str, Any], int]:
    """The header's mapping and how many bytes of data it describes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in items:
        begin, end = end, end + item.n_bytes
        header[item.name] = {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": [begin, end]}
    return header, end


def write_file(path: Path, items: Iterable[Item]) -> None:
    header, size = header_of(items)
    text = json.dumps(header, separators=(",", ":"))
    write_raw(path, (text + " " * (-len(text) % 8)).encode(), size)


def write_checkpoint(folder: Path, config: Config, items: Items, shards: int = 1, *, index: bool = True) -> Path:
    """config.json, and the tensors in `shards` files with an index, or in one file without."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_file(folder / "model.safetensors", items)
        return folder
    weight_map = {}
    size = -(-len(items) // shards)
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = items[number * size : (number + 1) * size]
        write_file(folder / file, part)
        weight_map |= {item.name: file for item in part}
    if index:
        text = json.dumps({"metadata": {"total_size": sum(i.n_bytes for i in items)}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


# ---- adding up ----


def block_sums(items: Items) -> Counter[tuple[str, int]]:
    """(block, layer) -> bytes."""
    sums: Counter[tuple[str, int]] = Counter()
    for item in items:
        sums[item.block, item.layer] += item.n_bytes
    return sums


# ---- names and shapes as published ----


def weight(block: str, name: str, *shape: int, layer: int = -1) -> Item:
    return Item(block, name, shape, layer=layer)


def projection(block: str, name: str, out: int, inp: int, layer: int = -1, *, bias: bool = False) -> Items:
    """A linear module's weight, which quantisers change, and perhaps its bias."""
    items = [Item(block, f"{name}.weight", (out, inp), layer=layer, linear=True)]
    return items + ([weight(block, f"{name}.bias", out, layer=layer)] if bias else [])


def ends(config: Config) -> Items:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    return [
        weight("embedding", "model.embed_tokens.weight", vocab, hidden),
        weight("head", "model.norm.weight", hidden),
        weight("head", "lm_head.weight", vocab, hidden),
    ]


def norms(config: Config, layer: int) -> Items:
    names = ("input_layernorm", "post_attention_layernorm")
    prefix = f"model.layers.{layer}."
    return [weight("attention", f"{prefix}{name}.weight", config["hidden_size"], layer=layer) for name in names]


def grouped(config: Config, layer: int, *, qk_norm: bool = False, bias: bool = False) -> Items:
    """Grouped-query attention."""
    hidden, prefix = config["hidden_size"], f"model.layers.{layer}.self_attn."
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    items = projection("attention", prefix + "q_proj", queries, hidden, layer, bias=bias)
    for name in ("k_proj", "v_proj"):
        items += projection("attention", prefix + name, keys, hidden, layer, bias=bias)
    items += projection("attention", prefix + "o_proj", hidden, queries, layer, bias=bias)
    if qk_norm:
        items += [weight("attention", f"{prefix}{name}.weight", size, layer=layer) for name in ("q_norm", "k_norm")]
    return items


def latent(config: Config, layer: int) -> Items:
    """DeepSeek's latent attention."""
    hidden, heads, prefix = config["hidden_size"], config["num_attention_heads"], f"model.layers.{layer}.self_attn."
    nope, rope, v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    rank, query_rank = config["kv_lora_rank"], config["q_lora_rank"]
    if query_rank is None:
        items = projection("attention", prefix + "q_proj", heads * (nope + rope), hidden, layer)
    else:
        items = projection("attention", prefix + "q_a_proj", query_rank, hidden, layer)
        items.append(weight("attention", prefix + "q_a_layernorm.weight", query_rank, layer=layer))
        items += projection("attention", prefix + "q_b_proj", heads * (nope + rope), query_rank, layer)
    items += projection("attention", prefix + "kv_a_proj_with_mqa", rank + rope, hidden, layer)
    items.append(weight("attention", prefix + "kv_a_layernorm.weight", rank, layer=layer))
    items += projection("attention", prefix + "kv_b_proj", heads * (nope + v), rank, layer)
    return items + projection("attention", prefix + "o_proj", hidden, heads * v, layer)


NAMES = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


def gated(prefix: str, hidden: int, width: int, layer: int, names: tuple[str, str, str], **place: Any) -> Items:
    """Gate, up and down projection of an FFN, dense, shared or one expert."""
    gate, up, down = names
    shapes = {gate: (width, hidden), up: (width, hidden), down: (hidden, width)}
    items = []
    for name, (out, inp) in shapes.items():
        kind = NAMES[name] if "expert" in place else None
        block = "experts" if "expert" in place else "attention"
        items += [replace(i, projection=kind, **place) for i in projection(block, prefix + name, out, inp, layer)]
    return items


LLAMA = ("gate_proj", "up_proj", "down_proj")


def single_experts(
    config: Config, layer: int, count: int, width: int, where: str, names: tuple[str, str, str]
) -> Items:
    """One tensor for each expert and projection."""
    prefix = f"model.layers.{layer}.{where}.experts."
    hidden = config["hidden_size"]
    return [i for e in range(count) for i in gated(f"{prefix}{e}.", hidden, width, layer, names, expert=e)]


def deepseek(config: Config) -> Items:
    """DeepSeek-V2-Lite, -V3 and -R1; the latter with their bias of the router and their layer of further tokens."""
    hidden, layers, v3 = config["hidden_size"], config["num_hidden_layers"], "num_nextn_predict_layers" in config
    items = ends(config)
    for layer in range(layers):
        items += _deepseek_layer(config, layer, v3)
    if v3:
        prefix = f"model.layers.{layers}."
        extra = _deepseek_layer(config, layers, v3) + projection("mtp", prefix + "eh_proj", hidden, 2 * hidden)
        extra += [weight("mtp", f"{prefix}{name}.weight", hidden) for name in ("enorm", "hnorm", "shared_head.norm")]
        for name in ("embed_tokens", "shared_head.head"):
            extra.append(weight("mtp", f"{prefix}{name}.weight", config["vocab_size"], hidden))
        keep = ("eh_proj",)  # in bf16, as published
        for item in extra:
            plain = any(name in item.name for name in keep)
            items.append(replace(item, block="mtp", layer=-1, linear=item.linear and not plain))
    return items


def _deepseek_layer(config: Config, layer: int, v3: bool) -> Items:
    hidden, width, prefix = config["hidden_size"], config["moe_intermediate_size"], f"model.layers.{layer}.mlp."
    items = norms(config, layer) + latent(config, layer)
    if layer < config["first_k_dense_replace"]:
        return items + gated(prefix, hidden, config["intermediate_size"], layer, LLAMA)
    count = config["n_routed_experts"]
    items.append(weight("attention", prefix + "gate.weight", count, hidden, layer=layer))
    if v3:
        bias = weight("attention", prefix + "gate.e_score_correction_bias", count, layer=layer)
        items.append(replace(bias, dtype="F32"))
    items += gated(prefix + "shared_experts.", hidden, config["n_shared_experts"] * width, layer, LLAMA)
    return items + single_experts(config, layer, count, width, "mlp", LLAMA)


def qwen3_moe(config: Config) -> Items:
    items = ends(config)
    for layer in range(config["num_hidden_layers"]):
        items += norms(config, layer) + grouped(config, layer, qk_norm=True)
        count, hidden = config["num_experts"], config["hidden_size"]
        items.append(weight("attention", f"model.layers.{layer}.mlp.gate.weight", count, hidden, layer=layer))
        items += single_experts(config, layer, count, config["moe_intermediate_size"], "mlp", LLAMA)
    return items


def mixtral(config: Config) -> Items:
    items = ends(config)
    for layer in range(config["num_hidden_layers"]):
        items += norms(config, layer) + grouped(config, layer)
        count, hidden = config["num_local_experts"], config["hidden_size"]
        router = f"model.layers.{layer}.block_sparse_moe.gate.weight"
        items.append(weight("attention", router, count, hidden, layer=layer))
        width, names = config["intermediate_size"], ("w1", "w3", "w2")
        items += single_experts(config, layer, count, width, "block_sparse_moe", names)
    return items


def gpt_oss(config: Config) -> Items:
    """Experts of all together in MXFP4: blocks of 16 bytes and a scale for every 32 weights, biases in bf16."""
    items, hidden, width, count = ends(config), config["hidden_size"], config["intermediate_size"], 0
    count = config["num_local_experts"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        items += norms(config, layer) + grouped(config, layer, bias=True)
        items.append(weight("attention", prefix + "self_attn.sinks", config["num_attention_heads"], layer=layer))
        items.append(weight("attention", prefix + "mlp.router.weight", count, hidden, layer=layer))
        items.append(weight("attention", prefix + "mlp.router.bias", count, layer=layer))
        for name, out, inp in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
            fused = Item(
                "experts", f"{prefix}mlp.experts.{name}", (), layer=layer, projection=name.removesuffix("_proj")
            )
            items.append(replace(fused, name=fused.name + "_blocks", shape=(count, out, inp // 32, 16), dtype="U8"))
            items.append(replace(fused, name=fused.name + "_scales", shape=(count, out, inp // 32), dtype="U8"))
            items.append(replace(fused, name=fused.name + "_bias", shape=(count, out)))
    return items


# ---- quantisers: what they make of a linear module's weight ----


def _up(number: int, step: int) -> int:
    return -(-number // step)


def fp8(item: Item) -> Iterator[Item]:
    out, inp = item.shape
    yield replace(item, dtype="F8_E4M3")
    yield replace(item, name=item.name + "_scale_inv", shape=(_up(out, 128), _up(inp, 128)), dtype="F32")


def gptq(item: Item) -> Iterator[Item]:
    (out, inp), module = item.shape, item.name.removesuffix("weight")
    yield replace(item, name=module + "qweight", shape=(inp // 8, out), dtype="I32")
    yield replace(item, name=module + "qzeros", shape=(_up(inp, 128), out // 8), dtype="I32")
    yield replace(item, name=module + "scales", shape=(_up(inp, 128), out), dtype="F16")
    yield replace(item, name=module + "g_idx", shape=(inp,), dtype="I32")


def awq(item: Item) -> Iterator[Item]:
    (out, inp), module = item.shape, item.name.removesuffix("weight")
    yield replace(item, name=module + "qweight", shape=(inp, out // 8), dtype="I32")
    yield replace(item, name=module + "qzeros", shape=(_up(inp, 128), out // 8), dtype="I32")
    yield replace(item, name=module + "scales", shape=(_up(inp, 128), out), dtype="F16")


def compressed(item: Item) -> Iterator[Item]:
    out, inp = item.shape
    yield replace(item, name=item.name + "_packed", shape=(out, inp // 8), dtype="I32")
    yield replace(item, name=item.name + "_scale", shape=(out, _up(inp, 128)))
    yield replace(item, name=item.name + "_shape", shape=(2,), dtype="I64")


def quantised(items: Items, by: Callable[[Item], Iterator[Item]], where: str = "") -> Items:
    """`items` with the linear modules whose name contains `where` as a quantiser leaves them."""
    return [new for item in items for new in (by(item) if item.linear and where in item.name else [item])]


def renamed(items: Items, old: str, new: str) -> Items:
    return [replace(item, name=item.name.replace(old, new, 1)) for item in items]


# ---- a small one, and what a profile must say ----

TINY = {
    **{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 96, "hidden_size": 32},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48},
    **{"num_local_experts": 2, "num_experts_per_tok": 1, "tie_word_embeddings": False},
}
TINY_ITEMS = mixtral(TINY)


def check(profile: ModelProfile, items: Items, *, tied: int = 0) -> None:
    """Every block of every layer weighs what its tensors add up to; so do experts and projections."""
    sums = block_sums(items)
    assert profile.embedding.weight_bytes.gpu == sums["embedding", -1]
    assert profile.head.weight_bytes.gpu == sums["head", -1] + tied
    assert profile.tied_bytes == tied
    assert (profile.mtp.weight_bytes.gpu if profile.mtp else 0) == sums["mtp", -1]
    for index, layer in enumerate(profile.layers):
        assert layer.attention.weight_bytes.gpu == layer.attention.weight_bytes.cpu == sums["attention", index], index
        assert (layer.experts.weight_bytes.gpu if layer.experts else 0) == sums["experts", index], index
        if layer.experts:
            routed = [item for item in items if (item.block, item.layer) == ("experts", index)]
            by: dict[str | None, int] = {}
            for item in routed:
                by[item.projection] = by.get(item.projection, 0) + item.n_bytes
            assert layer.experts.projection_bytes == by
    assert profile.file_bytes == sum(i.n_bytes for i in items if i.block != "tower")
