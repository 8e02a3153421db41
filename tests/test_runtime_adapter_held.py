"""Packed checkpoints on disk, loaded by transformers on this CPU: what it holds, and what a profile says it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cost_models.held import held
from profiles import load_hardware, load_profile
from profiles.model import ModelProfile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

FP8 = json.loads((Path(__file__).parent / "golden" / "formats" / "fp8_block.json").read_text(encoding="utf-8"))
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}
GPT_OSS = {
    **{"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "dtype": "bfloat16", "hidden_size": 64},
    **{"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"head_dim": 16, "vocab_size": 512, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    **{"tie_word_embeddings": False, "layer_types": ["sliding_attention", "full_attention"]},
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.layers.*.self_attn"]},
}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def fp8_checkpoint(folder: Path) -> Path:
    zeros = {name: torch.zeros(shape, dtype=DTYPES[dtype]) for name, (dtype, shape) in FP8["tensors"].items()}
    return write(folder, FP8["config"], zeros)


def mxfp4_checkpoint(folder: Path) -> Path:
    """As gpt-oss's own files name them: blocks of 16 bytes and a scale for every 32 weights, biases in bf16."""
    plain = {key: value for key, value in GPT_OSS.items() if key != "quantization_config"}
    config = transformers.GptOssConfig(**{k: v for k, v in plain.items() if k != "model_type"})
    state = transformers.GptOssForCausalLM(config).to(torch.bfloat16).state_dict()
    tensors = {name: value for name, value in state.items() if not name.endswith(("gate_up_proj", "down_proj"))}
    for layer in range(2):
        for name, rows, columns in (("gate_up_proj", 192, 64), ("down_proj", 64, 96)):
            where = f"model.layers.{layer}.mlp.experts.{name}"
            tensors[f"{where}_blocks"] = torch.zeros(4, rows, columns // 32, 16, dtype=torch.uint8)
            tensors[f"{where}_scales"] = torch.full((4, rows, columns // 32), 127, dtype=torch.uint8)
    return write(folder, GPT_OSS, {name: value.contiguous() for name, value in tensors.items()})


def bytes_by_block(model: Any) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        layer = name.split("layers.")[-1].split(".")[0] if "layers." in name else ""
        around = "attention" if layer else "embedding" if "embed" in name else "head"
        part = "experts" if ".experts." in name else around
        sums[part + layer] = sums.get(part + layer, 0) + parameter.nbytes
    return sums


def predicted(profile: ModelProfile) -> dict[str, int]:
    sums = {"embedding": profile.embedding.weight_bytes.cpu, "head": profile.head.weight_bytes.cpu}
    for i, layer in enumerate(profile.layers):
        sums[f"attention{i}"] = layer.attention.weight_bytes.cpu
        if layer.experts:
            sums[f"experts{i}"] = layer.experts.weight_bytes.cpu
    return sums


@pytest.mark.parametrize("make", [fp8_checkpoint, mxfp4_checkpoint], ids=["fp8", "mxfp4"])
def test_held_bytes_are_those_of_the_loaded_model(make: Any, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("with a GPU transformers may keep the weights packed")
    folder = make(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    machine = load_hardware("1xV100,ram=128GB")
    for read in (load_profile(folder), load_profile(folder / "config.json")):
        found = held(read, "torch", machine)
        assert predicted(found) == bytes_by_block(loaded)
        assert found.weight_bytes == sum(p.nbytes for p in loaded.parameters()) > 1.2 * read.weight_bytes
