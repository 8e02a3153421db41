"""The engine "torch": transformers' own kernels, the grouped one, which is the faster, and "torch-eager" beside it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

EAGER, GROUPED = "eager", "grouped_mm"


class TorchExperts:
    """The module's own forward with one of transformers' kernels, "grouped_mm" or "eager".

    On six shapes and 1 to 512 tokens grouped was up to 1.6 times as fast and at most 2 % slower (docs/cpu_experts.md).
    Holds nothing: the module's parameters are read in place at every call, so edits to them are seen. A module without
    transformers' experts interface has one forward, and that is used. The module's config, and a forward put on the
    instance, are left alone.
    """

    held_bytes = 0
    keeps_parameters = True

    def __init__(self, experts: nn.Module, kernel: str = GROUPED) -> None:
        self.name = "torch" if kernel == GROUPED else f"torch-{kernel}"
        self._twin = _twin(experts, kernel)

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = self._twin(hidden_states, top_k_index, top_k_weights)
        return result

    def close(self) -> None:
        pass


def _twin(experts: nn.Module, kernel: str) -> nn.Module:
    """A second module on the same parameters, with a config of its own that names `kernel`, and its class's forward."""
    twin = copy.copy(experts)
    twin.__dict__ = dict(experts.__dict__)
    twin.__dict__.pop("forward", None)
    if getattr(experts, "config", None) is not None:
        config = copy.copy(experts.config)
        # not through the property, which would set it in the configs that the original shares with this copy, too
        config._experts_implementation_internal = kernel  # type: ignore[union-attr]
        twin.__dict__["config"] = config
    return twin
