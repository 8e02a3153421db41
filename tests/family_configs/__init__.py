"""Small configs of every built-in family, small enough to run, for tests that hold families against transformers.

A file for each lineage, as in profiles/hf_config/families. The first config of a type is run for its cache as well;
further ones turn options that change shapes. NOT_RUN says why a small one cannot run its cache on a CPU, STEPPED where
a cache grows by steps, UNFILLED where transformers makes room that no checkpoint fills.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

_LINEAGES = [
    import_module(f"{__name__}.{name}") for name in sorted(m.name for m in iter_modules(__path__)) if name != "common"
]
CONFIGS: dict[str, list[dict[str, Any]]] = {k: v for lineage in _LINEAGES for k, v in lineage.CONFIGS.items()}
"""model_type -> arguments of its config class."""
NOT_RUN: dict[str, str] = {k: v for lineage in _LINEAGES for k, v in getattr(lineage, "NOT_RUN", {}).items()}
"""model_type -> the reason."""
STEPPED: dict[str, tuple[int, ...]] = {
    k: v for lineage in _LINEAGES for k, v in getattr(lineage, "STEPPED", {}).items()
}
"""model_type -> prompts after which its cache is fullest: at most a twentieth below what is promised. Never above."""
UNFILLED: dict[str, tuple[str, str]] = {
    k: v for lineage in _LINEAGES for k, v in getattr(lineage, "UNFILLED", {}).items()
}
"""model_type -> (pattern of parameters, the key that says how many of their rows a checkpoint fills)."""
