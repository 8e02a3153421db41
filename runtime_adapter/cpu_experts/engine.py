"""What a CPU engine is: something that computes a routed experts module from the module's own arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from profiles.errors import ApplyError

ACTIVE_NAMES = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


class ExpertEngine(Protocol):
    """Computes the routed experts of one module on the CPU, for inference: no gradient passes through it.

    `name` is the one that `engine_of` knows. `held_bytes` are the weight bytes that the engine itself keeps.
    `keeps_parameters` is True where the module's own parameters stay as they were: then both lie in memory, unless
    the engine keeps none. Where it is False the engine took them over: they are empty (no elements, `state_dict()`
    has nothing of them) until `close()` fills the same Parameter objects with the same values, bit for bit.
    """

    name: str
    held_bytes: int
    keeps_parameters: bool

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [T, H], expert ids [T, k] and their weights [T, k] -> [T, H], of hidden_states' dtype.

        Ids are those of the module, 0 .. n-1. The result is ready when this returns.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds and leave the module as it was; a second call does nothing."""
        ...


@dataclass(frozen=True)
class Projections:
    """How a transformers experts module keeps its two weights, whatever its family calls and lays them out.

    `inward` names the parameter from hidden to intermediate (gate and up in one where the experts are gated),
    `outward` the one back. `transposed` weights are [E, K, N] for K values in and N out, others [E, N, K].
    """

    inward: str
    outward: str
    transposed: bool
    biased: bool
    gated: bool

    def weight(self, experts: nn.Module, name: str) -> Tensor:
        """The weight called `name` as a view [E, N, K] on the module's parameter."""
        weight: Tensor = getattr(experts, name).detach()
        return weight.transpose(1, 2) if self.transposed else weight

    def activate(self, experts: nn.Module, projected: Tensor) -> Tensor:
        """The module's own activation of what its inward weight gave."""
        called = experts._apply_gate if self.gated else experts.act_fn
        activated: Tensor = called(projected)  # type: ignore[operator]
        return activated


def projections_of(experts: nn.Module, engine: str) -> Projections:
    """How `experts` keeps its weights.

    Raises ApplyError, naming `engine`, when it is not a module of transformers' experts interface on the CPU in
    bf16, fp16 or fp32: only "torch" then computes it.
    """
    kind = type(experts).__name__
    if not hasattr(experts, "is_transposed") or not hasattr(experts, "has_gate"):
        raise ApplyError(
            f'{kind}: engine "{engine}" needs fused experts of transformers\' own form; use engine "torch"'
        )
    gated = bool(experts.has_gate)
    inward = "gate_up_proj" if gated else "up_proj"
    found = {name: getattr(experts, name, None) for name in (inward, "down_proj")}
    for name, weight in found.items():
        if not isinstance(weight, Tensor) or weight.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            told = getattr(weight, "dtype", "missing")
            raise ApplyError(f'{kind}.{name} is {told}; engine "{engine}" takes bf16, fp16, fp32: use engine "torch"')
        if weight.device.type != "cpu":
            raise ApplyError(f'{kind}.{name} is on {weight.device}; engine "{engine}" computes experts on the CPU only')
    transposed, biased = bool(experts.is_transposed), bool(getattr(experts, "has_bias", False))
    return Projections(inward, "down_proj", transposed, biased, gated)


def active_of(experts: nn.Module, count: int) -> int:
    """How many of `count` experts a token uses by the module's config; 8, or all, where that does not say."""
    config = getattr(experts, "config", None)
    told = [getattr(config, name, None) for name in ACTIVE_NAMES]
    return next((value for value in told if isinstance(value, int) and value > 0), min(8, count))
