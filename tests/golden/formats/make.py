"""Writes the golden headers anew: tiny checkpoints made by each format's own library, of which only headers stay.

Not part of the tests and of no environment of the project: every function names what it was run with. Two virtual
environments are needed, as libraries differ in the transformers they take (single experts are modules before 5):

    4: transformers 4.57.6, compressed-tensors 0.20.1, nvidia-modelopt 0.47.0, auto-round 0.16.1, autoawq 0.2.9
    5: transformers 5.23.0, bitsandbytes 0.50.2, hqq 0.2.8.post1, torchao 0.18.0, gptqmodel 7.7.0, mlx-lm 0.32.2,
       amd-quark 0.13

    python tests/golden/formats/make.py 4        # or 5; and names, for some only
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MAKERS: dict[str, Any] = {}


def golden(environment: int, by: str):  # type: ignore[no-untyped-def]
    """A function that fills a folder; `by` says which library wrote the files."""

    def register(function):  # type: ignore[no-untyped-def]
        MAKERS[function.__name__] = (environment, by, function)
        return function

    return register


def keep(name: str, by: str, folder: Path) -> None:
    """The headers of all safetensors of the folder, with config.json and what stands beside it."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as raw:
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
        header.pop("__metadata__", None)
        tensors |= {key: [entry["dtype"], entry["shape"]] for key, entry in header.items()}
    beside = {}
    for other in ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json"):
        if (folder / other).exists():
            beside[other] = json.loads((folder / other).read_text())
    config = json.loads((folder / "config.json").read_text())
    head = {"by": by, "config": config, "beside": beside}
    lines = [f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in head.items()]
    rows = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(tensors.items()))
    whole = ",\n".join([*lines, '"tensors": {\n' + rows + "\n}"])
    (HERE / f"{name}.json").write_text("{\n" + whole + "}\n")


def tiny(layers: int = 2, **changes: Any):  # type: ignore[no-untyped-def]
    """A Qwen3-MoE with a dense layer and one of four experts, in bf16."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    values = {
        **{"hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 128, "num_hidden_layers": layers},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512, "num_experts": 4},
        **{"num_experts_per_tok": 2, "mlp_only_layers": [0], "tie_word_embeddings": False},
        **{"max_position_embeddings": 128},
    }
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**values, **changes})).to(torch.bfloat16).eval()
    model.config.architectures = ["Qwen3MoeForCausalLM"]
    return model


def tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(511)} | {"<unk>": 511}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), unk_token="<unk>", pad_token="<unk>"
    )


# ---- compressed-tensors ----


def compressed(folder: Path, weights: dict[str, Any], activations: dict[str, Any] | None, **whole: Any) -> None:
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = tiny()
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    ignore = ["lm_head", "re:.*mlp.gate$"]
    settings = QuantizationConfig(config_groups={"group_0": group}, ignore=ignore, **whole)
    apply_quantization_config(model, settings)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("scale"):
                torch.nn.init.constant_(parameter, 0.01)
    from compressed_tensors.quantization import QuantizationStatus

    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=whole.get("format"))
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_int4_g64(folder: Path) -> None:
    compressed(folder, INT4, None)


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_int4_zeros(folder: Path) -> None:
    compressed(folder, {**INT4, "group_size": 128, "symmetric": False}, None)


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_int3_channel(folder: Path) -> None:
    compressed(
        folder, {"num_bits": 3, "type": "int", "strategy": "channel", "symmetric": True}, None, format="pack-quantized"
    )


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_w8a8(folder: Path) -> None:
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    compressed(folder, weights, {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True})


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_w4a8(folder: Path) -> None:
    compressed(folder, INT4, {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True})


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_fp8_channel(folder: Path) -> None:
    compressed(folder, FP8, {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True})


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_fp8_static(folder: Path) -> None:
    static = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    compressed(folder, {**FP8, "strategy": "tensor"}, static)


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_fp8_block(folder: Path) -> None:
    group = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128, "dynamic": True}
    compressed(folder, {**FP8, "strategy": "block", "block_structure": [128, 128]}, group)


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_nvfp4(folder: Path) -> None:
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    compressed(folder, weights, {**weights, "dynamic": "local"})


@golden(4, "compressed-tensors 0.20.1 compress_model")
def ct_mxfp4(folder: Path) -> None:
    import torch

    weights = {
        **{"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True},
        "scale_dtype": torch.uint8,
    }
    compressed(folder, weights, None, format="mxfp4-pack-quantized")


# ---- modelopt ----


def by_modelopt(folder: Path, name: str, change: Any = None) -> None:
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    model = tiny()
    settings = getattr(mtq, name) if isinstance(name, str) else name

    def forward(net: Any) -> None:
        net(torch.arange(256)[None] % 500)
        net((torch.arange(256)[None] * 7) % 500)

    model = mtq.quantize(model, settings, forward)
    export_hf_checkpoint(model, export_dir=str(folder))


@golden(4, "modelopt 0.47.0 export_hf_checkpoint")
def modelopt_nvfp4(folder: Path) -> None:
    by_modelopt(folder, "NVFP4_DEFAULT_CFG")


@golden(4, "modelopt 0.47.0 export_hf_checkpoint")
def modelopt_nvfp4_mlp_only(folder: Path) -> None:
    by_modelopt(folder, "NVFP4_MLP_ONLY_CFG")


@golden(4, "modelopt 0.47.0 export_hf_checkpoint")
def modelopt_fp8(folder: Path) -> None:
    by_modelopt(folder, "FP8_DEFAULT_CFG")


@golden(4, "modelopt 0.47.0 export_hf_checkpoint")
def modelopt_mxfp8(folder: Path) -> None:
    by_modelopt(folder, "MXFP8_DEFAULT_CFG")


@golden(4, "modelopt 0.47.0 export_hf_checkpoint")
def modelopt_fp8_pb_wo(folder: Path) -> None:
    by_modelopt(folder, "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG")


# ---- auto-round ----


def by_auto_round(folder: Path, scheme: str, form: str, **more: Any) -> None:
    import torch
    from auto_round import AutoRound

    maker = AutoRound(
        tiny(), tokenizer=tokenizer(), scheme=scheme, iters=0, nsamples=1, seqlen=8, disable_opt_rtn=True,
        dataset=[torch.arange(8)[None]], **more,
    )  # fmt: skip
    maker.quantize_and_save(str(folder), format=form)
    made = next(folder.rglob("config.json")).parent  # it makes a folder of its own inside
    for file in [] if made == folder else [*made.iterdir()]:
        file.rename(folder / file.name)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = "float32"  # without amp, as on a CPU, it writes so whatever the config says
    (folder / "config.json").write_text(json.dumps(config))


@golden(4, "auto-round 0.16.1 quantize_and_save, auto_round")
def auto_round_int4(folder: Path) -> None:
    by_auto_round(folder, "W4A16", "auto_round")


@golden(4, "auto-round 0.16.1 quantize_and_save, auto_gptq")
def auto_gptq_int4(folder: Path) -> None:
    by_auto_round(folder, "W4A16", "auto_gptq")


@golden(4, "auto-round 0.16.1 quantize_and_save, auto_awq")
def auto_awq_int4(folder: Path) -> None:
    by_auto_round(folder, "W4A16", "auto_awq")


@golden(4, "auto-round 0.16.1 quantize_and_save, auto_round")
def auto_round_mixed_bits(folder: Path) -> None:
    change = {"self_attn": {"bits": 8}, "model.layers.0.mlp.down_proj": {"bits": 16}}
    by_auto_round(folder, "W2A16G64", "auto_round", layer_config=change)


@golden(4, "auto-round 0.16.1 quantize_and_save, auto_round")
def auto_round_mxfp4(folder: Path) -> None:
    by_auto_round(folder, "MXFP4", "auto_round")


@golden(4, "auto-round 0.16.1 quantize_and_save, auto_round")
def auto_round_nvfp4(folder: Path) -> None:
    by_auto_round(folder, "NVFP4", "auto_round")


# ---- transformers' own ----


def by_transformers(folder: Path, settings: Any) -> None:
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as plain:
        tiny().save_pretrained(plain)
        model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings, device_map="cpu")
        model.save_pretrained(folder)


@golden(5, "transformers 5.23.0 and bitsandbytes 0.50.2 save_pretrained")
def bnb_nf4(folder: Path) -> None:
    from transformers import BitsAndBytesConfig

    by_transformers(folder, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))


@golden(5, "transformers 5.23.0 and bitsandbytes 0.50.2 save_pretrained")
def bnb_nf4_double(folder: Path) -> None:
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    by_transformers(folder, settings)


@golden(4, "transformers 4.57.6 and bitsandbytes 0.50.2 save_pretrained")
def bnb_nf4_of_4(folder: Path) -> None:
    bnb_nf4(folder)


@golden(5, "transformers 5.23.0 and bitsandbytes 0.50.2 save_pretrained")
def bnb_int8(folder: Path) -> None:
    from transformers import BitsAndBytesConfig

    by_transformers(folder, BitsAndBytesConfig(load_in_8bit=True))


@golden(5, "transformers 5.23.0 and torchao 0.18.0 save_pretrained")
def torchao_int8(folder: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    by_transformers(folder, TorchAoConfig(Int8WeightOnlyConfig()))


@golden(5, "transformers 5.23.0 and torchao 0.18.0 save_pretrained")
def torchao_float8(folder: Path) -> None:
    from torchao.quantization import Float8WeightOnlyConfig
    from transformers import TorchAoConfig

    by_transformers(folder, TorchAoConfig(Float8WeightOnlyConfig()))


@golden(5, "transformers 5.23.0 and torchao 0.18.0 save_pretrained")
def torchao_intx(folder: Path) -> None:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    by_transformers(folder, TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))))


@golden(5, "transformers 5.23.0 and hqq 0.2.8.post1 save_pretrained")
def hqq_int4(folder: Path) -> None:
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = tiny()
    save_hqq(model, folder, BaseQuantizeConfig(nbits=4, group_size=64, axis=1), HQQLinear, torch)


def save_hqq(model: Any, folder: Path, settings: Any, linear: Any, torch: Any) -> None:
    """Layers as hqq packs them, their own state dict saved: transformers 5.23 refuses hqq on a CPU."""
    from safetensors.torch import save_file

    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            packed = linear(module, settings, compute_dtype=torch.bfloat16, device="cpu", del_orig=False)
            tensors |= {f"{name}.{key}": value for key, value in packed.state_dict().items()}
    done = {key.rsplit(".", 1)[0] for key in tensors}
    tensors |= {k: v for k, v in model.state_dict().items() if k.rsplit(".", 1)[0] not in done}
    save_file({k: v.contiguous() for k, v in tensors.items() if hasattr(v, "shape")}, str(folder / "model.safetensors"))
    model.config.quantization_config = {"quant_config": settings, "quant_method": "hqq", "skip_modules": ["lm_head"]}
    model.config.save_pretrained(folder)


# ---- single layers packed by a library's own class, saved as it names them ----


def packed_by(folder: Path, pack: Any, quantization: dict[str, Any]) -> None:
    """Every linear module but head and routers as `pack(module)` makes it: a module or a dict of tensors."""
    import torch
    from safetensors.torch import load_file, save_file

    model, tensors = tiny(), {}
    with tempfile.TemporaryDirectory() as plain:
        model.save_pretrained(plain)
        weights = load_file(f"{plain}/model.safetensors")
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if weight.ndim < 2 or module.endswith(("lm_head", "mlp.gate", "embed_tokens")):
            tensors[name] = weight
            continue
        made = pack(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
        state = made if isinstance(made, dict) else made.state_dict()
        tensors |= {f"{module}.{key}": value for key, value in state.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(folder / "model.safetensors"))
    model.config.quantization_config = quantization
    model.config.save_pretrained(folder)


def by_gptqmodel(folder: Path, bits: int, group: int) -> None:
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    def pack(module: Any) -> Any:
        made = TorchLinear(
            bits=bits, group_size=group, sym=True, desc_act=False, in_features=module.in_features,
            out_features=module.out_features, bias=False, register_buffers=True,
        )  # fmt: skip
        return {key: value for key, value in made.state_dict().items() if torch.is_tensor(value)}

    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": True, "desc_act": False}
    settings |= {"checkpoint_format": "gptq", "lm_head": False, "pack_dtype": "int32"}
    packed_by(folder, pack, settings)


@golden(5, "gptqmodel 7.7.0 TorchLinear")
def gptq_int4_g128(folder: Path) -> None:
    by_gptqmodel(folder, 4, 128)


@golden(5, "gptqmodel 7.7.0 TorchLinear")
def gptq_int3_g32(folder: Path) -> None:
    by_gptqmodel(folder, 3, 32)


@golden(5, "gptqmodel 7.7.0 TorchLinear")
def gptq_int8_channel(folder: Path) -> None:
    by_gptqmodel(folder, 8, -1)


@golden(5, "autoawq 0.2.9 WQLinear_GEMM")
def awq_int4_g64(folder: Path) -> None:
    from awq.modules.linear.gemm import WQLinear_GEMM

    def pack(module: Any) -> Any:
        return WQLinear_GEMM(4, 64, module.in_features, module.out_features, False, "cpu")

    settings = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    packed_by(folder, pack, {**settings, "modules_to_not_convert": ["mlp.gate."]})


# ---- mlx-lm, quark ----


def by_mlx(folder: Path, **more: Any) -> None:
    import shutil

    from mlx_lm import convert

    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as outside:
        model = tiny()
        model.save_pretrained(plain)
        config = json.loads(Path(plain, "config.json").read_text())
        config |= {"rope_theta": 10000.0, "num_experts": 4, "torch_dtype": "bfloat16"}  # as before transformers 5
        Path(plain, "config.json").write_text(json.dumps(config))
        tokenizer().save_pretrained(plain)
        convert(plain, mlx_path=f"{outside}/made", quantize=True, **more)
        shutil.copytree(f"{outside}/made", folder, dirs_exist_ok=True)


@golden(5, "mlx-lm 0.32.2 convert")
def mlx_4bit(folder: Path) -> None:
    by_mlx(folder, q_bits=4, q_group_size=64)


@golden(5, "mlx-lm 0.32.2 convert")
def mlx_6bit_g32(folder: Path) -> None:
    by_mlx(folder, q_bits=6, q_group_size=32)


@golden(5, "mlx-lm 0.32.2 convert")
def mlx_mxfp4(folder: Path) -> None:
    by_mlx(folder, q_mode="mxfp4")


def by_quark(folder: Path, scheme: str) -> None:
    import torch
    from quark.torch import LLMTemplate, ModelQuantizer, export_safetensors

    model = tiny()
    template = LLMTemplate.get("qwen3_moe")
    settings = template.get_config(scheme=scheme)
    data = torch.utils.data.DataLoader([torch.arange(8) for _ in range(2)], batch_size=1)
    quantizer = ModelQuantizer(settings)
    model = quantizer.freeze(quantizer.quantize_model(model, data))
    export_safetensors(model, str(folder))


@golden(4, "amd-quark 0.13 export_safetensors")
def quark_mxfp4(folder: Path) -> None:
    by_quark(folder, "mxfp4")


@golden(4, "amd-quark 0.13 export_safetensors")
def quark_fp8(folder: Path) -> None:
    by_quark(folder, "fp8")


# ---- modules of transformers that need a GPU to fill: the parameters it allocates ----


@golden(5, "transformers 5.23.0 FP8Linear")
def fp8_block(folder: Path) -> None:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    def pack(module: Any) -> Any:
        return FP8Linear(module.in_features, module.out_features, block_size=(128, 128))

    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"}
    packed_by(folder, pack, settings)


def main() -> None:
    environment, *names = sys.argv[1:]
    for name, (wanted, by, function) in MAKERS.items():
        if str(wanted) != environment or (names and name not in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                function(Path(folder))
                keep(name, f"{by}; transformers {version('transformers')}", Path(folder))
                print("wrote", name, flush=True)
            except Exception:  # the others go on
                print("failed", name, traceback.format_exc().splitlines()[-3:], flush=True)


if __name__ == "__main__":
    main()
