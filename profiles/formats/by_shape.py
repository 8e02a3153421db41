"""Bytes of a tensor under weight formats that one name says all of, whatever the checkpoint.

`bf16` and `fp16` are exactly 2 bytes and `fp32` exactly 4 for every parameter. The others store projections in fewer
bits and leave embedding, head, norms, biases, routers and convolutions in bf16. What a model holds in fp32 whatever it
is loaded as (routers of ERNIE 4.5 and Hunyuan, A_log of OLMo Hybrid) is 4 bytes in all of them:

- `fp8`: 1 byte a weight and one fp32 scale for every 128 x 128 block (DeepSeek-V3's own files).
  Ignores: the fp8 files of others, which may hold one scale a row or a tensor (fewer bytes).
- `int8`: 1 byte a weight and one fp16 scale for every output row. Ignores: zero points, outliers kept in fp16.
- `int4`: half a byte a weight and one fp16 scale for every 128 weights along the input. Symmetric: the zero point is
  the middle of the range, so none is stored. Ignores: zero points (0.5 byte a group more), act-order indices, padding
  and repacking by kernels.
- `hf_mxfp4`: the routed experts' matrices in blocks of 32 weights along the input, 16 bytes of weights and one of
  scale; everything else bf16 (gpt-oss's own files). Ignores: padding by kernels.
- `marlin` (GPUs): KTransformers' KLinearMarlin and KExpertsMarlin, 4 bits a weight and one fp16 scale for every 64
  along the input, inputs padded to 128 and outputs to 64, and a lock buffer of 4 * 16 bytes for every 64 outputs; the
  head too, but not latent attention's kv_b. Source: KLinearMarlin's defaults in kvcache-ai/ktransformers, linear.py.
- `amx_int8`, `amx_int4` (CPUs): kt-kernel's packed experts, 1 or 1/2 byte a weight and one fp32 scale for every output
  row (BufferB::required_size in its amx kernels); everything but routed experts bf16.
"""

from __future__ import annotations

from collections.abc import Iterable

from profiles.formats.stored import Stored, StoredExperts, same
from profiles.tensors import LayerTensors, ModelTensors, Tensor

QUANTS = ("bf16", "fp16", "fp32", "fp8", "int8", "int4", "hf_mxfp4")
ASK = "bf16, fp8, int4, q4_k_m, …"
GPU_QUANTS, CPU_QUANTS = ("marlin",), ("amx_int8", "amx_int4")
"""Formats that exist on one kind of device only."""
PLAIN_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
PACKED_BY = {"fp8": "fp8", "hf_mxfp4": "mxfp4"}
"""Formats that are also checkpoints' -> the method, as transformers calls it."""
FP8_BLOCK = 128
INT4_GROUP = 128
MXFP4_BLOCK, MXFP4_BLOCK_BYTES = 32, 17
MARLIN_GROUP, MARLIN_IN, MARLIN_OUT, MARLIN_LOCKS_BYTES = 64, 128, 64, 4 * 16
AMX_WEIGHTS_A_BYTE = {"amx_int8": 1, "amx_int4": 2}


def tensors_bytes(tensors: Iterable[Tensor], quant: str, *, experts: bool = False) -> int:
    """Bytes of `tensors` together; `experts` says that they are routed experts, which some formats ask."""
    return sum(tensor_bytes(tensor, quant, experts=experts) for tensor in tensors)


def tensor_bytes(tensor: Tensor, quant: str, *, experts: bool = False) -> int:
    """Bytes of one tensor, whole and exact under the rules above.

    >>> tensor_bytes(Tensor("q_proj.weight", (256, 300), quantisable=True), "fp8")  # 2 x 3 blocks
    76824
    """
    if tensor.fp32:
        return tensor.params * 4
    if quant in PLAIN_BYTES:
        return tensor.params * PLAIN_BYTES[quant]
    if quant == "marlin":
        return _marlin_bytes(tensor)
    if not tensor.quantisable or (not experts and (quant == "hf_mxfp4" or quant in AMX_WEIGHTS_A_BYTE)):
        return tensor.params * 2
    rows = tensor.matrices * tensor.out_features
    if quant == "fp8":
        blocks_down = tensor.stacked * _up(tensor.out_features // tensor.stacked, FP8_BLOCK)
        return tensor.params + 4 * tensor.matrices * blocks_down * _up(tensor.in_features, FP8_BLOCK)
    if quant == "int8":
        return tensor.params + 2 * rows
    if quant == "int4":
        return rows * (_up(tensor.in_features, 2) + 2 * _up(tensor.in_features, INT4_GROUP))
    if quant in AMX_WEIGHTS_A_BYTE:
        return rows * (_up(tensor.in_features, AMX_WEIGHTS_A_BYTE[quant]) + 4)
    if quant == "hf_mxfp4":
        return rows * _up(tensor.in_features, MXFP4_BLOCK) * MXFP4_BLOCK_BYTES
    raise AssertionError(f"no rule for {quant}")


def _marlin_bytes(tensor: Tensor) -> int:
    is_head = tensor.name.startswith("lm_head.")
    if not (tensor.quantisable or (is_head and len(tensor.shape) == 2)) or ".kv_b_proj." in tensor.name:
        return tensor.params * 2
    inputs = _up(tensor.in_features, MARLIN_IN) * MARLIN_IN
    blocks_out = _up(tensor.out_features // tensor.stacked, MARLIN_OUT)
    one = blocks_out * (MARLIN_OUT * (inputs // 2 + 2 * (inputs // MARLIN_GROUP)) + MARLIN_LOCKS_BYTES)
    return tensor.matrices * tensor.stacked * one


def _up(number: int, step: int) -> int:
    return -(-number // step)


def stored_by_shape(model: ModelTensors, quant: str) -> Stored:
    """Bytes of every block of `model` in `quant`, one of the formats of this file."""

    def experts(layer: LayerTensors) -> StoredExperts | None:
        if layer.experts is None:
            return None
        return StoredExperts(same(tensors_bytes(layer.experts.tensors, quant, experts=True)))

    return Stored(
        quant=quant,
        embedding=same(tensors_bytes(model.embedding, quant)),
        attention=tuple(same(tensors_bytes(layer.attention, quant)) for layer in model.layers),
        experts=tuple(experts(layer) for layer in model.layers),
        head=same(tensors_bytes(model.head, quant)),
        tied_bytes=tensors_bytes(model.embedding[:1], quant) if model.tied else 0,
        mtp_bytes=sum(tensor_bytes(t, quant, experts=".experts." in t.name) for t in model.mtp),
        packed_by=PACKED_BY.get(quant),
        value_bytes=PLAIN_BYTES.get(quant, 2),
    )
