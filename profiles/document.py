"""Documents: frozen nouns that check themselves, and the safe way from and to YAML or JSON files."""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from profiles.errors import MoeplanError, ProfileError

MAX_DOCUMENT_BYTES = 2**20
"""Larger files are refused before they are parsed: the largest honest document is well under this."""


class Noun(BaseModel):
    """A frozen value that refuses unknown keys; change it with `replace`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again (what-if variants are made this way)."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


class Document(Noun):
    """A noun with a file form. Creating one from bad values raises `error` with one line, never a traceback of ours."""

    error: ClassVar[type[MoeplanError]] = ProfileError

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as problem:
            raise self.error(f"{type(self).__name__}: {first_problem(problem, type(self))}") from None

    def to_dict(self) -> dict[str, Any]:
        """The canonical document: JSON types only, bytes, bytes/s, FLOP/s and seconds."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=10**6)

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> Self:
        """Build from a parsed document; `where` (a file name) starts the message of any error."""
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise cls.error(f"{where or cls.__name__}: expected a mapping of keys to values, got {short(data)}")
        try:
            return cls(**data)
        except MoeplanError as problem:
            raise (type(problem)(f"{where}: {problem}") if where else problem) from None

    def save(self, path: str | Path) -> None:
        """Write YAML (or JSON for a .json name) atomically: the old file stays whole until the new one is."""
        path = Path(path)
        write_text(path, self.to_json() if path.suffix == ".json" else self.to_yaml())


def first_problem(problem: ValidationError, model: type[BaseModel]) -> str:
    """The first of pydantic's findings as `field: reason (got value)`, with the remedy where one is known."""
    found = problem.errors(include_url=False)[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]).lstrip(".")
    if found["type"] == "extra_forbidden":
        known = _known_keys(model, found["loc"][:-1])
        near = difflib.get_close_matches(str(found["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"remove it; known keys: {', '.join(known)}"
        return f"{field}: unknown key, {hint}"
    if found["type"] == "missing":
        return f"{field}: missing, add it"
    reason = found["msg"].removeprefix("Value error, ")
    where = f"{field}: " if field else ""
    return f"{where}{reason}" + (f" (got {short(found['input'])})" if field else "")


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at `loc`, found by walking the models' field types."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        fields = current.model_fields if _is_model(current) else {}
        field = next((f for name, f in fields.items() if part in (name, f.alias)), None)
        current = _model_in(field.annotation) if field else current
    return [f.alias or name for name, f in current.model_fields.items()] if _is_model(current) else []


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _model_in(annotation: Any) -> Any:
    if _is_model(annotation):
        return annotation
    return next((m for arg in getattr(annotation, "__args__", ()) if (m := _model_in(arg)) is not None), None)


def short(value: object, limit: int = 60) -> str:
    """`value` on one short line for an error message, whatever it is and however deep."""
    if isinstance(value, (dict, list, tuple)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _StrictLoader(yaml.SafeLoader):
    """yaml.safe_load's own loader, which also refuses aliases (bombs) and keys given twice (silent loss)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None) if len(keys) != len(set(keys)) else None
        if twice is not None:
            raise yaml.YAMLError(f"key {twice!r} is given twice in line {node.start_mark.line + 1}; keep one")
        return super().construct_mapping(node, deep)


def parse_document(text: str, where: str, error: type[MoeplanError] = ProfileError) -> Any:
    """Parse YAML or JSON (text that starts with "{" or "[" and a .json name is JSON) into plain values.

    Raises `error` with one line: tags, aliases, doubled keys, bad syntax and too deep nesting are all refused.
    """
    try:
        if where.endswith(".json"):
            return json.loads(text)
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except json.JSONDecodeError as problem:
        reason = f"{problem.msg} in line {problem.lineno}"
        raise error(f"{where}: not valid JSON: {reason}; mend or download the file again") from None
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        reason = getattr(problem, "problem", None) or str(problem).splitlines()[0]
        place = f" in line {mark.line + 1}" if mark is not None else ""
        raise error(f"{where}: not valid YAML: {reason}{place}; only plain values are read") from None
    except (ValueError, RecursionError) as problem:
        reason = "nested too deep" if isinstance(problem, RecursionError) else str(problem).splitlines()[0]
        raise error(f"{where}: cannot be read: {reason}; write plain values") from None


def read_text(path: str | Path, error: type[MoeplanError] = ProfileError) -> str:
    """The text of a small file; raises `error` naming the path when it is missing, too large or not UTF-8."""
    path = Path(path)
    try:
        if path.is_dir():
            raise error(f"{path}: is a folder; name a file in it")
        size = path.stat().st_size
        if size > MAX_DOCUMENT_BYTES:
            raise error(
                f"{path}: {size} bytes, more than the {MAX_DOCUMENT_BYTES} that a document may have; shorten it"
            )
        with path.open("rb") as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise error(f"{path}: more than the {MAX_DOCUMENT_BYTES} bytes that a document may have; shorten it")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{path}: is not UTF-8 text; give a YAML or JSON file") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"{path}: cannot be read: {reason}; check the path") from None


def read_document(path: str | Path, error: type[MoeplanError] = ProfileError) -> Any:
    """Read and parse one YAML or JSON file."""
    return parse_document(read_text(path, error), str(path), error)


def write_text(path: str | Path, text: str) -> None:
    """Write atomically: a temporary file beside the target, then a rename. Raises MoeplanError naming the path."""
    path = Path(path)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as problem:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise MoeplanError(
            f"{path}: cannot be written: {problem.strerror}; check the path and its permissions"
        ) from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
