"""What a runtime holds of a checkpoint after loading it, where that is not what is stored.

transformers unpacks many formats to 16 bits: some always, some where the machine's GPUs have no kernels for them. It
decides once, for the whole model, by what it finds in the machine. Facts from transformers 5.23.0, `quantizers/`:

- fp8 (`quantizer_finegrained_fp8.py`): without a GPU, or with one of compute capability below 8.9, all of it; loading
  tiny checkpoints on a CPU shows it (tests/test_runtime_adapter_held.py). On the CPU its layers have no kernel.
- mxfp4 (`quantizer_mxfp4.py`): below 7.5, without Triton 3.4 or `kernels` (taken to be installed), and on CPUs unless
  `use_kernels=True`.
- fbgemm_fp8 (`quantizer_fbgemm_fp8.py`) is refused below 9.0.
- compressed-tensors (`quantizer_compressed_tensors.py`) decompresses at the first forward, or while loading.
- modelopt, MLX and exl3 are not known to it: what it can load of such a model has 16 bits.
- gptq, awq, auto-round, bitsandbytes, hqq, quark and torchao stay as they are.

Nothing is known here of what other runtimes do with them: they hold what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from profiles.hardware import Device, Hardware
from profiles.model import Block, KindBytes, Layer, ModelProfile


@dataclass(frozen=True)
class Keeps:
    """Where weights stay packed: on GPUs, if all of the machine's have this compute capability; nowhere where None."""

    gpus_from: tuple[int, int] | None = None


TRANSFORMERS: Mapping[str, Keeps] = {
    "fp8": Keeps((8, 9)),
    "mxfp4": Keeps((7, 5)),
    "fbgemm_fp8": Keeps((9, 0)),
    **dict.fromkeys(("compressed-tensors", "modelopt", "mlx", "exl3"), Keeps()),
}
"""Method -> where it stays packed; methods that are not here stay packed everywhere."""
TARGETS = ("torch", "accelerate")
"""Targets that run transformers' models."""
STREAMS = ("accelerate",)
"""Of these, those that compute on a GPU what lies on the CPU: it is then kept as the GPU takes it."""
FP8_CAPABILITY = (8, 9)


def held(profile: ModelProfile, target: str, hardware: Hardware) -> ModelProfile:
    """`profile` with the bytes that `target` holds on the machine's devices; the same one where they are as stored.

    >>> from profiles import load_hardware, load_profile
    >>> old, new = load_hardware("1xRTX3090"), load_hardware("1xRTX4090")
    >>> model = load_profile("gpt-oss-20b", "fp8")
    >>> [round(held(model, "torch", machine).weight_bytes / 1e9, 1) for machine in (old, new)]
    [41.8, 22.1]
    """
    on_gpus, on_cpu = _stays_packed(profile, target, hardware)
    if on_gpus and on_cpu:
        return profile
    embedding, head = (block.replace(**_bytes(block, on_gpus, on_cpu)) for block in (profile.embedding, profile.head))
    tied = profile.tied_bytes
    if tied and not on_gpus:
        tied = min(embedding.weight_bytes.gpu, head.weight_bytes.gpu)
    done = {same: _layer(profile.layers[same], on_gpus, on_cpu) for same in set(profile.layer_class)}
    return profile.replace(
        packed_by=None,
        tied_bytes=tied,
        embedding=embedding,
        head=head,
        layers=[done[same] for same in profile.layer_class],
    )


def held_note(profile: ModelProfile, target: str, hardware: Hardware) -> str | None:
    """One line where `target` holds other bytes of `profile` than are stored, and why; None where it does not.

    >>> from profiles import load_hardware, load_profile
    >>> held_note(load_profile("gpt-oss-20b"), "torch", load_hardware("2xRTX3090"))
    'transformers unpacks mxfp4 weights to 16 bits on the CPU, where it has no kernel for them'
    """
    on_gpus, on_cpu = _stays_packed(profile, target, hardware)
    if on_gpus and on_cpu:
        return None
    least = TRANSFORMERS[str(profile.packed_by)].gpus_from
    what = f"transformers unpacks {profile.packed_by} weights to 16 bits"
    if on_gpus:
        return f"{what} on the CPU, where it has no kernel for them"
    if least is None:
        return f"{what} on every device; runtimes with kernels for them hold what is stored"
    old = next((gpu for gpu in hardware.gpus if not _has(gpu, least)), None)
    why = f"{old.name} is not known to have compute capability {least[0]}.{least[1]}" if old else "there is no GPU"
    return f"{what} on every device, as {why}"


def _stays_packed(profile: ModelProfile, target: str, hardware: Hardware) -> tuple[bool, bool]:
    """Whether weights stay packed on the machine's GPUs, and on its CPU."""
    keeps = TRANSFORMERS.get(profile.packed_by or "") if target in TARGETS else None
    if keeps is None:
        return True, True
    least = keeps.gpus_from
    on_gpus = least is not None and bool(hardware.gpus) and all(_has(gpu, least) for gpu in hardware.gpus)
    return on_gpus, on_gpus and target in STREAMS


def _has(gpu: Device, least: tuple[int, int]) -> bool:
    """Whether a GPU has the kernels. One of unknown capability has those for fp8 where it is known to compute in it."""
    if gpu.compute_capability is not None:
        major, minor = map(int, gpu.compute_capability.split("."))
        return (major, minor) >= least
    return least <= FP8_CAPABILITY and "fp8" in gpu.flops_per_s


def _layer(layer: Layer, on_gpus: bool, on_cpu: bool) -> Layer:
    experts = layer.experts
    if experts is not None:
        changes: dict[str, object] = {} if on_gpus else {"expert_weight_bytes": None, "projection_bytes": None}
        experts = experts.replace(**changes, **_bytes(experts, on_gpus, on_cpu))  # unpacked, experts do not differ
    attention = layer.attention.replace(**_bytes(layer.attention, on_gpus, on_cpu))
    return Layer(attention=attention, experts=experts)


def _bytes(block: Block, on_gpus: bool, on_cpu: bool) -> dict[str, object]:
    """The changed fields of a block. What it stores beside its parameters (buffers) is never unpacked away."""
    stored = block.weight_bytes
    unpacked = stored.gpu if block.unpacked_bytes is None else max(stored.gpu, block.unpacked_bytes)
    gpu, cpu = stored.gpu if on_gpus else unpacked, stored.cpu if on_cpu else unpacked
    return {"weight_bytes": KindBytes(gpu=gpu, cpu=cpu), "unpacked_bytes": None}
