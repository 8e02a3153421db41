"""What a checkpoint says about its weights, found where libraries look for it, with typed access to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from profiles.document import short
from profiles.errors import ProfileError

REMEDY = "give the folder with its safetensors, whose headers say the bytes, or pass quant= (bf16, fp8, nvfp4, int4, …)"
METHOD_FILES = {"hf_quant_config.json": None, "quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside a config.json that is silent, in the order in which they are asked -> the method that they are of where
they do not say it."""
TENSOR_LIST_FILE = "quantization_config.json"
"""Where exl3 lists its tensors, beside what config.json says."""
CONFIG_KEYS = ("quantization", "quantization_config", "compression_config")
"""MLX's own block wins over the copy beside it; old compressed-tensors have a name of their own."""
MAX_NAMES = 1_000_000

Beside = Callable[[str], "dict[str, Any] | None"]
"""The parsed file of that name beside config.json, None where there is none."""


def nothing_beside(name: str) -> dict[str, Any] | None:
    """For a config that has no folder."""
    return None


class _Missing:
    """The type of MISSING: no default, the file must say."""


MISSING: Final = _Missing()


@dataclass(frozen=True)
class Settings:
    """One mapping of a config. `where` starts the field in messages; `config` is the whole config.json.

    Every method raises ProfileError with the field, the value and the remedy.
    """

    values: Mapping[str, Any]
    where: str
    config: Mapping[str, Any] = field(default_factory=dict)
    beside: Beside = nothing_beside

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def place(self, key: str) -> str:
        return f"{self.where}{' ' if self.where.endswith(':') else '.'}{key}"

    def bad(self, key: str, problem: str) -> ProfileError:
        """The error about the value under `key`."""
        return ProfileError(f"{self.place(key)}: {short(self.get(key))} {problem}; {REMEDY}")

    def whole(self, key: str, default: int | _Missing | None = MISSING, least: int = 1, most: int = 2**24) -> Any:
        """A whole number from `least` to `most`; null counts as missing."""
        value = self.get(key)
        if value is None and default is not MISSING:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self.bad(key, f"is not a whole number from {least} to {most}")
        return value

    def group(self, key: str = "group_size", default: int | _Missing | None = MISSING) -> int | None:
        """The size of a group along the input; None where -1 says that a row is one group."""
        if self.get(key) == -1:
            return None
        found: int | None = self.whole(key, default)
        return found

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(key, "is neither true nor false")
        return value

    def choice(self, key: str, known: Iterable[str], default: str | _Missing = MISSING) -> str:
        """One of the `known` words, in any case."""
        value, words = self.get(key), tuple(known)
        if value is None and isinstance(default, str):
            return default
        by_case = {word.lower(): word for word in words}
        if not isinstance(value, str) or value.lower() not in by_case:
            raise self.bad(key, f"is not known here ({', '.join(words)} are)")
        return by_case[value.lower()]

    def names(self, *keys: str) -> list[str]:
        """The texts of the first of these lists that is there; empty where none is."""
        key = next((key for key in keys if self.get(key) is not None), keys[0])
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > MAX_NAMES or not all(isinstance(v, str) and v for v in value):
            raise self.bad(key, "is not a list of names")
        return value

    def inside(self, key: str) -> Settings | None:
        """The mapping under `key`; None where there is none."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(key, "is not a mapping")
        return Settings(value, self.place(key), self.config, self.beside)

    def mappings(self, key: str) -> dict[str, Settings]:
        """Name -> the mapping under it, of all that are under `key`."""
        outer = self.inside(key)
        return {name: outer._inner(name) for name in outer.values} if outer else {}

    def _inner(self, name: str) -> Settings:
        found = self.inside(name)
        if found is None:
            raise self.bad(name, "is not a mapping")
        return found

    def only(self, known: Iterable[str], idle: Iterable[str] = ()) -> None:
        """ProfileError on a key that is neither `known`, nor known to change no bytes (`idle`), nor says nothing."""
        understood = {*known, *idle}
        for key, value in self.values.items():
            if key not in understood and value not in (None, False, [], {}, ""):
                raise self.bad(str(key)[:60], "is not understood and may change the bytes of weights")


def settings_of(config: Mapping[str, Any], beside: Beside = nothing_beside) -> Settings | None:
    """What the checkpoint says of its weights' format, where runtimes look for it; None where nothing does.

    First config.json itself, then its text model's part, then files of methods beside it, as vLLM, sglang and mlx-lm
    do: where both speak, config.json is what they load by.
    """
    for prefix, holder in holders(config):
        for key in CONFIG_KEYS:
            value = holder.get(key)
            if value is not None:
                if not isinstance(value, dict):
                    problem = f"{prefix}{key}: {short(value)} is not a mapping"
                    raise ProfileError(f"{problem}; remove it or {REMEDY}")
                if value:
                    return Settings(value, f"{prefix}{key}", config, beside)
    for name, method in METHOD_FILES.items():
        found = beside(name)
        if found is not None:
            values = {"quant_method": method, **found} if method else found
            inner, where = found.get("quantization"), f"{name}:"
            if isinstance(inner, dict):
                values, where = (
                    {**{k: v for k, v in values.items() if k != "quantization"}, **inner},
                    f"{name}: quantization",
                )
            return Settings(values, where, config, beside)
    return None


def flattened(value: object) -> tuple[str, ...]:
    """The texts of a list of texts, or of lists of texts; empty where it is anything else."""
    if not isinstance(value, list):
        return ()
    parts = [part if isinstance(part, list) else [part] for part in value]
    flat = [text.strip() for part in parts for text in part if isinstance(text, str)]
    return tuple(flat) if all(flat) and len(flat) == sum(map(len, parts)) else ()


def holders(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config and the configs of text models inside it, from the outside in."""
    yield prefix, config
    for key in ("thinker_config", "text_config", "llm_config", "language_config"):
        inner = config.get(key)
        if isinstance(inner, dict):
            yield from holders(inner, f"{prefix}{key}.")
