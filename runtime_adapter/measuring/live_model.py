"""A live model to try plans on: from a checkpoint, or with random weights where there is only a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from profiles.document import read_document
from profiles.errors import ProfileError
from profiles.presets import model_config_preset
from runtime_adapter.meta.errors import one_line
from runtime_adapter.meta.profile import offline_and_quiet


def live_model(source: str, most_share: float, seed: int) -> torch.nn.Module:
    """The causal LM of a folder with weights, or of a config.json or preset with random ones, on the CPU in bf16.

    Random weights may take `most_share` of the free RAM; ProfileError says by how much they are too many. It is raised
    for what cannot be read or built as well.
    """
    path = Path(source)
    if path.is_dir() and any(path.glob("*.safetensors")):
        try:
            with offline_and_quiet():
                loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                    path, dtype="auto", local_files_only=True
                )
        except Exception as problem:  # whatever a loader raises means the same to the user
            raise ProfileError(f"{path}: cannot be loaded: {one_line(problem)}") from None
        model: torch.nn.Module = loaded.eval()
        return model
    config = model_config_preset(source) or read_document(path / "config.json" if path.is_dir() else path)
    return _random(dict(config), source, most_share, seed)


def _random(config: dict[str, Any], source: str, most_share: float, seed: int) -> torch.nn.Module:
    try:
        with offline_and_quiet():
            kind = config.pop("model_type")
            made, build = transformers.AutoConfig.for_model(kind, **config), transformers.AutoModelForCausalLM
            with torch.device("meta"):
                model: Any = build.from_config(made, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
            needed, free = 2 * sum(p.numel() for p in model.parameters()), psutil.virtual_memory().available
            if needed <= most_share * free:
                torch.manual_seed(seed)
                model = build.from_config(made, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    except Exception as problem:
        raise ProfileError(
            f"{source}: cannot be built: {one_line(problem)}; give a config.json of a causal LM"
        ) from None
    if needed > most_share * free:
        raise ProfileError(
            f"{source}: its weights take {needed} bytes, more than {most_share:.0%} of the {free} that are free; give "
            "a smaller config.json (fewer num_hidden_layers)"
        )
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.ndim > 1):  # routers start at zero, where all experts tie
            weight.normal_(std=weight.shape[-1] ** -0.5)
    made_live: torch.nn.Module = model.eval()
    return made_live
