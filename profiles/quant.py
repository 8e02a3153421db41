"""Bytes of a tensor under each weight format, and which format a config says its file is in.

`bf16` and `fp16` are exactly 2 bytes and `fp32` exactly 4 for every parameter. The others store projections in fewer
bits and leave embedding, head, norms, biases, routers and convolutions in bf16:

- `fp8`: 1 byte a weight and one fp32 scale for every 128 x 128 block (DeepSeek-V3's own files).
  Ignores: the fp8 files of others, which may hold one scale a row or a tensor (fewer bytes).
- `int8`: 1 byte a weight and one fp16 scale for every output row. Ignores: zero points, outliers kept in fp16.
- `int4`: half a byte a weight and one fp16 scale for every 128 weights along the input. Symmetric: the zero point is
  the middle of the range, so none is stored. Ignores: zero points (0.5 byte a group more), act-order indices, padding
  and repacking by kernels.
- `mxfp4`: the routed experts' matrices in blocks of 32 weights along the input, 16 bytes of weights and one of scale;
  everything else bf16 (gpt-oss's own files). Ignores: padding by kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from profiles.document import short
from profiles.errors import ProfileError
from profiles.tensors import ModelTensors, Tensor

QUANTS = ("bf16", "fp16", "fp32", "fp8", "int8", "int4", "mxfp4")
PLAIN_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
FP8_BLOCK = 128
INT4_GROUP = 128
MXFP4_BLOCK, MXFP4_BLOCK_BYTES = 32, 17


def check_quant(quant: object) -> str:
    """`quant` if it is a known format, else ProfileError listing the known ones."""
    if not isinstance(quant, str) or quant not in QUANTS:
        raise ProfileError(f"quant: {short(quant)} is not known for a config.json; use one of {', '.join(QUANTS)}")
    return quant


def value_bytes(quant: str) -> int:
    """Bytes of one activation or cached value of a model whose weights are in `quant`."""
    return PLAIN_BYTES.get(quant, 2)


def tensors_bytes(tensors: Iterable[Tensor], quant: str, *, experts: bool = False) -> int:
    """Bytes of `tensors` together; `experts` says that they are routed experts, which `mxfp4` asks."""
    return sum(tensor_bytes(tensor, quant, experts=experts) for tensor in tensors)


def tensor_bytes(tensor: Tensor, quant: str, *, experts: bool = False) -> int:
    """Bytes of one tensor, whole and exact under the rules above.

    >>> tensor_bytes(Tensor("q_proj.weight", (256, 300), quantisable=True), "fp8")  # 2 x 3 blocks
    76824
    """
    if quant in PLAIN_BYTES:
        return tensor.params * PLAIN_BYTES[quant]
    if not tensor.quantisable or (quant == "mxfp4" and not experts):
        return tensor.params * 2
    rows = tensor.matrices * tensor.out_features
    if quant == "fp8":
        blocks_down = tensor.stacked * _up(tensor.out_features // tensor.stacked, FP8_BLOCK)
        return tensor.params + 4 * tensor.matrices * blocks_down * _up(tensor.in_features, FP8_BLOCK)
    if quant == "int8":
        return tensor.params + 2 * rows
    if quant == "int4":
        return rows * (_up(tensor.in_features, 2) + 2 * _up(tensor.in_features, INT4_GROUP))
    if quant == "mxfp4":
        return rows * _up(tensor.in_features, MXFP4_BLOCK) * MXFP4_BLOCK_BYTES
    raise AssertionError(f"no rule for {quant}")


def _up(number: int, step: int) -> int:
    return -(-number // step)


def check_fits_model(quant: str, model: ModelTensors) -> None:
    """ProfileError where the format would leave this model as it was, so that nobody takes bf16 for it."""
    if quant == "mxfp4" and not any(layer.experts for layer in model.layers):
        raise ProfileError(
            "quant: 'mxfp4' stores routed experts only and this model has none; use bf16, fp8, int8, int4"
        )


def quant_of_config(config: Mapping[str, Any]) -> str:
    """The format that a config.json says its weights are in; ProfileError asking for quant= where it is another one."""
    stored = config.get("quantization_config")
    if stored is not None:
        return _quant_of_method(stored)
    key = "dtype" if "dtype" in config else "torch_dtype"
    dtype = config.get(key)
    if dtype is None:
        return "bf16"
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    if not isinstance(name, str) or name not in _DTYPES:
        raise ProfileError(f"{key}: {short(dtype)} is not a known type; pass quant= (one of {', '.join(QUANTS)})")
    return _DTYPES[name]


def _quant_of_method(stored: object) -> str:
    """The rule for this `quantization_config`, where there is one (gptq and awq may add zero points: see `int4`)."""
    remedy = f"pass quant= (one of {', '.join(QUANTS)})"
    if not isinstance(stored, dict):
        raise ProfileError(f"quantization_config: {short(stored)} is not a mapping; remove it or {remedy}")
    method = stored.get("quant_method")
    if method == "fp8" and stored.get("weight_block_size") == [FP8_BLOCK, FP8_BLOCK]:
        return "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if method in ("gptq", "awq") and stored.get("bits") == 4 and stored.get("group_size") == INT4_GROUP:
        return "int4"
    raise ProfileError(f"quantization_config.quant_method: no rule for {short(method)} with these settings; {remedy}")
