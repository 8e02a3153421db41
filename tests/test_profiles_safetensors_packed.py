"""Packed checkpoints as they are published: names and types in their headers, their blocks, what is held."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_configs import config_of
from checkpoint_files import Item, Items, write_checkpoint

from cost_models.held import held
from profiles import ModelProfile, load_hardware, load_profile
from profiles.hf_config.reader import model_tensors, read_hf_config
from profiles.tensors import Tensor

GOLDEN = Path(__file__).parent / "golden" / "formats"
V4 = {**config_of("DeepSeek-V4-Flash"), "num_hidden_layers": 4, "n_routed_experts": 8, "num_experts_per_tok": 2}
V4["compress_ratios"] = V4["compress_ratios"][:4] + V4["compress_ratios"][-1:]
IN_FP8 = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "indexer.wq_b", "w1", "w2", "w3")
"""What DeepSeek-V4's files hold in fp8, by their own names; a compressor's wkv is in bf16."""


def up(number: int, step: int) -> int:
    return -(-number // step)


def v4_items() -> Items:
    """Tensors by their published names: fp8 with a byte a block as `scale`, experts two values a byte, hc_* in fp32."""
    model, items = model_tensors(V4), []
    blocks = [("embedding", -1, model.embedding), ("head", -1, model.head)]
    blocks += [("attention", i, layer.attention) for i, layer in enumerate(model.layers)]
    for block, layer, tensors in blocks:
        for tensor in tensors:
            name = model.disk_names.module(tensor.name)
            items += plain_or_fp8(Item(block, name, tensor.shape, "F32" if tensor.fp32 else "BF16", layer))
    for layer, found in enumerate(model.layers):
        for tensor in found.experts.tensors if found.experts else ():
            items += [item for expert in range(8) for item in fp4_expert(tensor, layer, expert)]
    return items


def plain_or_fp8(item: Item) -> Items:
    module = item.name.removesuffix(".weight")
    if not module.endswith(IN_FP8) or "compressor" in module:
        return [item]
    out, inp = item.shape
    scale = replace(item, name=f"{module}.scale", shape=(up(out, 128), up(inp, 128)), dtype="F8_E8M0")
    return [replace(item, dtype="F8_E4M3"), scale]


def fp4_expert(tensor: Tensor, layer: int, expert: int) -> Items:
    names = ("w1", "w3") if "gate_up" in tensor.name else ("w2",)
    out, inp = tensor.out_features // len(names), tensor.in_features
    found = []
    for name in names:
        module = f"layers.{layer}.ffn.experts.{expert}.{name}"
        one = Item("experts", f"{module}.weight", (out, inp // 2), "I8", layer, expert, name)
        found += [one, replace(one, name=f"{module}.scale", shape=(out, inp // 32), dtype="F8_E8M0")]
    return found


def test_deepseek_v4_by_its_published_names(tmp_path: Path) -> None:
    items = v4_items()
    named = {item.name for item in items}
    assert named >= {
        "embed.weight", "head.weight", "norm.weight", "hc_head_fn", "hc_head_base", "hc_head_scale",
        "layers.0.attn.wq_a.weight", "layers.0.attn.wq_a.scale", "layers.0.attn.attn_sink", "layers.0.hc_attn_fn",
        "layers.3.ffn.experts.7.w1.scale", "layers.3.ffn.shared_experts.w2.weight", "layers.2.attn.indexer.wq_b.scale",
        "layers.2.attn.compressor.ape", "layers.2.attn.compressor.wkv.weight", "layers.1.attn_norm.weight",
    }  # fmt: skip
    mtp = [
        Item("mtp", f"mtp.0.{name}", (64, 64)) for name in ("e_proj.weight", "ffn.experts.0.w1.weight", "hc_attn_fn")
    ]
    folder = write_checkpoint(tmp_path, V4, [*items, *mtp], 3)
    profile, told = load_profile(folder), load_profile(folder / "config.json")
    assert profile.packed_by == told.packed_by == "fp8"
    assert profile.mtp is not None
    assert profile.mtp.weight_bytes.gpu == 3 * 64 * 64 * 2
    same_blocks(profile, told)


def same_blocks(a: ModelProfile, b: ModelProfile) -> None:
    assert a.embedding.weight_bytes == b.embedding.weight_bytes
    assert a.head.weight_bytes == b.head.weight_bytes
    for index, (one, other) in enumerate(zip(a.layers, b.layers, strict=True)):
        assert one.attention.weight_bytes == other.attention.weight_bytes, index
        assert (one.experts is None) == (other.experts is None)
        if one.experts and other.experts:
            assert one.experts.weight_bytes == other.experts.weight_bytes, index


def golden_checkpoint(folder: Path, name: str) -> Path:
    golden: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    items = [Item("", name, tuple(shape), dtype) for name, (dtype, shape) in golden["tensors"].items()]
    write_checkpoint(folder, golden["config"], items)
    for other, content in golden["beside"].items():
        (folder / other).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("name", "method", "label"),
    [
        ("ct_int4_zeros", "compressed-tensors", "compressed-tensors-4bit"),
        ("ct_nvfp4", "compressed-tensors", "compressed-tensors-4bit"),
        ("modelopt_nvfp4", "modelopt", "modelopt-4bit"),
        ("modelopt_fp8", "modelopt", "fp8"),
        ("auto_gptq_int4", "gptq", "gptq-4bit"),
        ("auto_round_int4", "auto-round", "auto-round-4bit"),
        ("awq_int4_g64", "awq", "awq-4bit"),
        ("bnb_nf4_of_4", "bitsandbytes", "bitsandbytes"),
        ("mlx_4bit", "mlx", "mlx-4bit"),
        ("fp8_block", "fp8", "fp8"),
        ("quark_mxfp4", "quark", "quark"),
    ],
)
def test_headers_and_config_say_the_same(name: str, method: str, label: str, tmp_path: Path) -> None:
    folder = golden_checkpoint(tmp_path, name)
    profile, told = load_profile(folder), load_profile(folder / "config.json")
    same_blocks(profile, told)
    assert (profile.packed_by, profile.quant) == (method, label)
    assert told.packed_by == method
    machine = load_hardware("1xRTX3090")
    same_blocks(held(profile, "torch", machine), held(told, "torch", machine))


def test_plain_files_are_not_packed_whatever_the_config_says(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "fp8_block.json").read_text(encoding="utf-8"))
    plain = {key: value for key, value in golden["config"].items() if key != "quantization_config"}
    items = [
        Item("", name, tuple(shape), "BF16")
        for name, (_, shape) in golden["tensors"].items()
        if not name.endswith("scale_inv")
    ]
    profile = load_profile(write_checkpoint(tmp_path, golden["config"], items))
    assert (profile.quant, profile.packed_by) == ("bf16", None)
    assert profile.weight_bytes == read_hf_config(plain, "plain").weight_bytes
