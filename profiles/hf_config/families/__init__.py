"""The built-in architectures, a file for each lineage: each a few lines that say how its config.json becomes parts.

Only families whose every parameter is accounted for are here, and the tests compare each with transformers, tensor by
tensor. Anything else is read by the reader that knows all of transformers, never guessed from a similar family.
How to add one: docs/families.md.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from profiles.hf_config.families.family import Family

LINEAGES = sorted({module.name for module in iter_modules(__path__)} - {"family"})
FAMILIES: dict[str, Family] = {
    name: family for lineage in LINEAGES for name, family in import_module(f"{__name__}.{lineage}").FAMILIES.items()
}
"""Hugging Face's `model_type` -> how to read it."""
