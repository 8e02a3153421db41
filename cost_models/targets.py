"""What a runtime needs in memory beside the weights, caches and transients that every runtime needs (docs/model.md).

Each figure has its source here. Nothing is known of a runtime that is not said: then it needs what transformers does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from profiles.errors import TargetError
from profiles.model import Experts


@dataclass(frozen=True)
class TargetMemory:
    """`stages_experts`: GPUs whose layers have experts on the CPU keep a buffer for the largest tensor of those, which
    steps of many tokens (`Copies` in engines.py) may copy over and compute on the GPU. `streams_blocks`: what
    is on the CPU is computed on the first GPU that holds anything, which keeps a buffer for the largest such block.

    While loading: `on_host`, the whole model is in RAM before it moves; `gpu_ratio`, GPUs hold so many times their
    weights; `experts_again`, devices hold the largest layer's experts so many times more than afterwards.
    """

    stages_experts: bool = False
    streams_blocks: bool = False
    on_host: bool = False
    gpu_ratio: Fraction = Fraction(1)
    experts_again: Mapping[str, int] | None = None


TARGETS: dict[str, TargetMemory] = {
    # `apply` moves a model that transformers has already loaded, tensor by tensor, and frees what it moved.
    "torch": TargetMemory(on_host=True),
    # 22 GB while loading what then took 12 GB (kvcache-ai/ktransformers issue 85, experts as Marlin).
    "ktransformers": TargetMemory(gpu_ratio=Fraction(22, 12)),
    # Operation offload of ggml's scheduler for batches of 32 tokens and more; weights are read into place.
    "llama.cpp": TargetMemory(stages_experts=True),
    # Modules mapped to the CPU run on the main device (accelerate, big_modeling.py: cpu is mapped to it), and
    # per-expert checkpoints are fused while they are loaded (transformers 5).
    "accelerate": TargetMemory(streams_blocks=True, experts_again={"gpu": 1, "cpu": 1}),
    # kt-kernel packs one layer at a time: source, staging and packed copies together, measured with kt-kernel 0.7.2.
    # Its layer-wise prefill is off unless asked for and takes a whole layer's room (9 GB of Kimi-K2): plans do without.
    "sglang-kt": TargetMemory(experts_again={"cpu": 2}),
}


def target_memory(target: str) -> TargetMemory:
    """The memory habits of a runtime; TargetError for one that is not known."""
    if target not in tuple(TARGETS):  # a list is not known either
        raise TargetError(f"target: {target!r} is not known; use one of {', '.join(TARGETS)}")
    return TARGETS[target]


def largest_tensor_bytes(experts: Experts) -> int:
    """Bytes of a layer's largest projection as the CPU stores it; a third of all experts where none is known."""
    stored = experts.weight_bytes
    if experts.projection_bytes is None or not stored.gpu:
        return -(-stored.cpu // 3)
    return -(-max(experts.projection_bytes.values()) * stored.cpu // stored.gpu)


def load_peaks(
    target: TargetMemory, weights: Mapping[str, int], experts: Mapping[str, Iterable[int]], model_bytes: int
) -> dict[str, int]:
    """The most bytes of weights that each device holds while the model is loaded; devices that peak at no more than
    their weights are left out.

    `weights` are bytes by device, `experts` those of each layer's experts there, `model_bytes` the whole model's.
    """
    peaks: dict[str, int] = {}
    for device, held in weights.items():
        kind = "cpu" if device == "cpu" else "gpu"
        peak = model_bytes if target.on_host and kind == "cpu" else held
        if kind == "gpu":
            peak = max(peak, -(-held * target.gpu_ratio.numerator // target.gpu_ratio.denominator))
        peak += (target.experts_again or {}).get(kind, 0) * max(experts.get(device, ()), default=0)
        if peak > held:
            peaks[device] = peak
    return peaks
