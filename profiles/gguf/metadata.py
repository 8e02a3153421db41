"""Typed, bounded access to a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.fields import MAX_SIZE

REMEDY = "the file is damaged or of a kind that is not known; download it again"


class Metadata:
    """Metadata by key; a key that starts with a dot is one of the file's architecture (`.block_count`).

    Every method raises ProfileError with the key, the value and the remedy.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    @property
    def architecture(self) -> str:
        name = self._fields.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise ProfileError(f"general.architecture: {short(name)} is not a name; {REMEDY}")
        return name

    def number(self, key: str, most: int = MAX_SIZE) -> int | None:
        """A whole number from 0 to `most`; None where the file has none."""
        full, value = self._find(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value <= most:
            raise ProfileError(f"{full}: {short(value)} is not a whole number from 0 to {most}; {REMEDY}")
        return value

    def size(self, key: str, most: int = MAX_SIZE) -> int:
        """A whole number from 1 to `most` that must be there."""
        value = self.number(key, most)
        if not value:
            full = self._find(key)[0]
            raise ProfileError(f"{full}: {'missing' if value is None else '0 is no size'}; {REMEDY}")
        return value

    def by_layer(self, key: str, layers: int, most: int = MAX_SIZE) -> list[int] | None:
        """One whole number from 0 a layer; one number stands for all. None where the file has none."""
        full, value = self._find(key)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value] * layers
        values = [int(v) if isinstance(v, bool) else v for v in values]
        if len(values) < layers or any(type(v) is not int or not 0 <= v <= most for v in values):
            raise ProfileError(f"{full}: {short(value)}; {layers} whole numbers are needed, one a layer; {REMEDY}")
        return values[:layers]

    def flags_or_number(self, key: str, layers: int) -> list[bool] | int | None:
        """A flag a layer where the file has a list, else a whole number; None where the file has neither."""
        if isinstance(self._find(key)[1], list):
            return [bool(flag) for flag in self.by_layer(key, layers) or ()]
        return self.number(key)

    def numbers(self, key: str, most: int = MAX_SIZE) -> list[int]:
        """A list of whole numbers from 0 to `most`, of whatever length; empty where the file has none."""
        full, value = self._find(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(v) is not int or not 0 <= v <= most for v in values):
            raise ProfileError(f"{full}: {short(value)} is not a list of whole numbers from 0 to {most}; {REMEDY}")
        return values

    def _find(self, key: str) -> tuple[str, Any]:
        full = self.architecture + key if key.startswith(".") else key
        return full, self._fields.get(full)
