"""A full-size causal LM of fake tensors: its own class and shapes, no memory. For use inside `fake_machine()`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from profiles.errors import ApplyError, ProfileError
from runtime_adapter.meta.errors import one_line
from runtime_adapter.meta.profile import build

SAME_CODE = {"kimi_k2": "deepseek_v3"}
"""Model types that come with code of their own, and whose transformers class does the same."""


def fake_model(source: Any) -> nn.Module:
    """The model of a parsed config.json, a transformers config or another model, in bf16 with its weights on the CPU.

    Another model gives class and config only and is left alone. Raises ProfileError where it cannot be built and
    ApplyError where `source` is none of these.
    """
    with torch.utils._python_dispatch._disable_current_modes():
        model = _on_meta(source)
    fakes: dict[int, torch.Tensor] = {}  # one fake for one tensor, so that tied weights stay tied
    for module in model.modules():
        tables: tuple[dict[str, Any], dict[str, Any]] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    if id(tensor) not in fakes:
                        fakes[id(tensor)] = _fake(tensor)
                    table[name] = fakes[id(tensor)]
    return model


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake


def _on_meta(source: Any) -> nn.Module:
    from transformers import PretrainedConfig, PreTrainedModel

    if isinstance(source, PreTrainedModel):
        try:
            with torch.device("meta"):
                kind: Any = type(source)
                model: nn.Module = kind._from_config(copy.deepcopy(source.config), dtype=torch.bfloat16)
        except Exception as problem:  # whatever a model's constructor raises means the same to the user
            raise ProfileError(f"{type(source).__name__}: cannot be built again: {one_line(problem)}") from None
        return model.eval()
    config = source.to_dict() if isinstance(source, PretrainedConfig) else source
    if not isinstance(config, dict):
        raise ApplyError(
            f"model: expected a config.json as a dict, a transformers config or a model, got {type(source).__name__}"
        )
    family = config.get("model_type")
    return build({**config, "model_type": SAME_CODE.get(family, family)} if isinstance(family, str) else config)[0]
