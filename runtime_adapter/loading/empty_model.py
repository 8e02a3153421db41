"""The model of a config.json without weights, and what no checkpoint holds: rotary tables and their like, computed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from profiles.document import one_line as in_one_line
from profiles.document import short
from profiles.errors import ApplyError, ProfileError
from profiles.safetensors.header import Headers
from runtime_adapter.fakes.model import SAME_CODE
from runtime_adapter.loading.dtypes import FLOATS
from runtime_adapter.loading.memory import placing
from runtime_adapter.meta.errors import one_line
from runtime_adapter.meta.profile import offline_and_quiet, settings_of

QUANTISED_KEYS = ("quantization_config", "compression_config", "quantization")


def empty_model(config: dict[str, Any], folder: Path, headers: Headers, dtype: torch.dtype | None) -> Any:
    """The causal LM that transformers makes of `config`, parsed from `folder`'s config.json: all of it on meta.

    It is in eval mode and has the generation config of the folder. `dtype` None is that of the config, or else that of
    the first floating tensor. Raises ProfileError where transformers cannot build it, and ApplyError where the config
    says that the weights are quantised.
    """
    where = folder / "config.json"
    key = next((key for key in QUANTISED_KEYS if isinstance(config.get(key), dict)), None)
    if key is not None:
        method = config[key].get("quant_method")
        kind = f"{short(method)} weights" if isinstance(method, str) else "quantised weights"
        raise ApplyError(in_one_line(f"{where}: {key}: {kind} cannot be loaded; get the model in bf16"))
    try:
        with offline_and_quiet(), torch.inference_mode(False):
            return _built(config, folder, headers, dtype)
    except ProfileError as problem:
        reason = str(problem).removeprefix("config.json: ")
    except Exception as problem:  # whatever a model's constructor raises means the same to the user
        reason = f"transformers refuses it: {one_line(problem)}; mend it"
    raise ProfileError(in_one_line(f"{where}: {reason}"))


def _built(config: dict[str, Any], folder: Path, headers: Headers, dtype: torch.dtype | None) -> Any:
    from transformers import AutoModelForCausalLM

    family = config.get("model_type")
    known = {**config, "model_type": SAME_CODE.get(family, family)} if isinstance(family, str) else config
    settings, _ = settings_of(known)
    settings.name_or_path = str(folder)
    with torch.device("meta"):
        kind: Any = AutoModelForCausalLM
        model = kind.from_config(settings, dtype=dtype or _stated(settings) or _first(headers))
    model.adjust_generation_fn(
        None,
        from_auto_class=True,
        from_pipeline=None,
        pretrained_model_name_or_path=str(folder),
        cache_dir=None,
        force_download=False,
        proxies=None,
        local_files_only=True,
        token=None,
        revision="main",
        subfolder="",
        trust_remote_code=False,
    )
    return model.eval()


def _stated(settings: Any) -> torch.dtype | None:
    """The dtype that the config states, for the model or for its text part."""
    for holder in (settings, settings.get_text_config(decoder=True)):
        dtype = getattr(holder, "dtype", None)
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if isinstance(dtype, torch.dtype):
            return dtype
    return None


def _first(headers: Headers) -> torch.dtype:
    """As in transformers, the type of the first floating tensor stands for all."""
    types = (FLOATS.get(entry.dtype) for tensors in headers.values() for entry in tensors.values())
    return next((dtype for dtype in types if dtype is not None), torch.float32)


def compute(model: Any, parameters: Iterable[str]) -> None:
    """Give non-persistent buffers and these parameters the values that the model's own code gives them, on the CPU.

    It is what transformers does after loading. Everything else is marked as done, so that nothing is initialised that
    will be read. Raises ApplyError when memory runs out.
    """
    names = [*(name for name, _ in model.named_non_persistent_buffers()), *parameters]
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    with placing("what the model computes itself", "cpu"), torch.inference_mode(False):
        for name in names:
            owner, _, key = name.rpartition(".")
            _make_real(model.get_submodule(owner), key)
        model.initialize_weights()


def _make_real(module: nn.Module, key: str) -> None:
    tensor = getattr(module, key)
    fresh = torch.empty_like(tensor, device="cpu")
    if key in module._buffers:
        module._buffers[key] = fresh
    else:
        module._parameters[key] = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
