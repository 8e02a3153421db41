"""The types of safetensors that torch has and that are loaded as they are."""

from __future__ import annotations

import torch

from profiles.document import short
from profiles.errors import ApplyError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PLAIN = FLOATS | {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def checked_dtype(wanted: torch.dtype | str | None) -> torch.dtype | None:
    """A floating type of torch from itself or its name, None from None; ApplyError for anything else."""
    if wanted is None:
        return None
    found = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or found not in FLOATS.values():
        raise ApplyError(f"dtype: {short(wanted)} is none of bfloat16, float16, float32, float64; use one of them")
    return found
