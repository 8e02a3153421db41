"""Typed, bounded access to a config.json: every value that reaches a shape has passed through here."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Final

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hf_config.defaults import aliases_of, defaults_of


class Required:
    """The type of REQUIRED: no default, the file must say."""


REQUIRED: Final = Required()
MAX_SIZE = 2**24
"""No width, vocabulary or count of anything in a model comes near this; larger values are typing errors."""
MAX_LAYERS = 10_000
ESSENTIAL = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
MAX_EXPERTS = 100_000


class Fields:
    """A config.json's values by key. `prefix` names where a nested config sits; it starts the key in messages.

    Keys may be given as alternatives "a|b", and transformers' own aliases count too: all that are present must agree.
    A key that the file leaves out has transformers' declared default (`profiles/hf_config/defaults.py`), unless a model
    would silently become another one by it (`_is_essential`); where there is none, the caller's. `assumed` collects
    the sizes that were taken so. Every method raises ProfileError with the field, the value and the remedy.
    """

    def __init__(self, config: Mapping[str, Any], prefix: str = "", family: str = "") -> None:
        self.config, self.prefix = config, prefix
        self.defaults, self.aliases = defaults_of(family), aliases_of(family)
        self.assumed: dict[str, int] = {}

    def but(self, **values: object) -> Fields:
        """These fields with other `values`: of a layer whose sizes differ."""
        fields = copy(self)
        fields.config = {**self.config, **values}
        return fields

    def require(self, *keys: str) -> None:
        """Raise one error that names all of `keys` that the file leaves out, for types without declared defaults."""
        missing = [f"{self.prefix}{key}" for key in keys if key not in self.config]
        if missing:
            raise ProfileError(f"{', '.join(missing)}: missing; add what the model's own config.json says")

    def size(self, keys: str, default: int | Required = REQUIRED, most: int = MAX_SIZE) -> int:
        """A whole number from 1 to `most`."""
        return self._whole(keys, default, 1, most)

    def count(self, keys: str, default: int | Required = REQUIRED, most: int = MAX_SIZE) -> int:
        """A whole number from 0 to `most`."""
        return self._whole(keys, default, 0, most)

    def maybe_size(self, keys: str, default: int | None = None, most: int = MAX_SIZE) -> int | None:
        """A whole number from 1, or None where the file says null; `default` where it says nothing."""
        key, value = self._find(keys, default)
        return None if value is None else self._checked(key, value, 1, most)

    def flag(self, keys: str, default: bool) -> bool:
        """True or false; null counts as false."""
        key, value = self._find(keys, default)
        if value is not None and not isinstance(value, bool):
            raise ProfileError(f"{self.prefix}{key}: {short(value)} is neither true nor false; write one of them")
        return bool(value)

    def text(self, key: str, default: str | Required = REQUIRED) -> str:
        """Text that is not empty."""
        _, value = self._find(key, default)
        if not isinstance(value, str) or not value:
            raise ProfileError(f"{self.prefix}{key}: {short(value)} is not text; write it as in the model's own file")
        return value

    def nested(self, key: str, family: str = "") -> Fields:
        """The fields of a config inside this one, of the type `family`."""
        _, value = self._find(key, REQUIRED)
        if not isinstance(value, dict):
            raise ProfileError(
                f"{self.prefix}{key}: {short(value)} is not a mapping; copy it from the model's own file"
            )
        return Fields(value, f"{self.prefix}{key}.", family)

    def whole_numbers(self, key: str) -> list[int] | None:
        """A list of whole numbers from 0, or None where there is none."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(v) is int and 0 <= v <= MAX_SIZE for v in value):
            raise ProfileError(
                f"{self.prefix}{key}: {short(value)} is not a list of whole numbers >= 0; mend or drop it"
            )
        return value

    def per_layer(self, key: str, known: tuple[str, ...], layers: int) -> list[str] | None:
        """One of the `known` words for each of the layers, or None where the list is missing."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != layers:
            raise ProfileError(
                f"{self.prefix}{key}: {short(value)}; give a list of {layers}, one for each hidden layer"
            )
        for index, word in enumerate(value):
            if not isinstance(word, str) or word not in known:
                place = f"{self.prefix}{key}[{index}]"
                raise ProfileError(f"{place}: {short(word)} is not known here; use one of {', '.join(known)}")
        return value

    def _whole(self, keys: str, default: int | Required, least: int, most: int) -> int:
        key, value = self._find(keys, default)
        found = self._checked(key, value, least, most)
        if key not in self.config and key in self.defaults:
            self.assumed[key] = found
        return found

    def _checked(self, key: str, value: object, least: int, most: int) -> int:
        if type(value) is not int:
            raise ProfileError(f"{self.prefix}{key}: {short(value)} is not a whole number; write one, at least {least}")
        if not least <= value <= most:
            raise ProfileError(f"{self.prefix}{key}: {short(value)} is not from {least} to {most}; mend it")
        return value

    def _find(self, keys: str, default: object) -> tuple[str, object]:
        names = keys.split("|")
        names += [
            other for pair in self.aliases.items() for other in pair if set(pair) & set(names) and other not in names
        ]
        given = [name for name in names if name in self.config]
        for other in given[1:]:
            if self.config[other] != self.config[given[0]]:
                both = f"{short(self.config[given[0]])} but {other} is {short(self.config[other])}"
                raise ProfileError(f"{self.prefix}{given[0]}: {both}; they mean the same, keep one")
        if given:
            return given[0], self.config[given[0]]
        declared = next((name for name in names if self.defaults.get(name) is not None), None)
        if declared is not None and not _is_essential(declared):
            return declared, self.defaults[declared]
        if isinstance(default, Required):
            raise ProfileError(f"{self.prefix}{names[0]}: missing; add it, as in the model's own config.json")
        return names[0], default


def _is_essential(key: str) -> bool:
    """Whether a model without this key in its file must be refused: its default is that of another model's size."""
    return key in ESSENTIAL or "expert" in key or ("moe" in key and key.endswith("_size"))
