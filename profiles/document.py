"""Documents: frozen nouns that check themselves, and the safe way from and to YAML or JSON files."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import stat
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from profiles.errors import MoeplanError, ProfileError

MAX_DOCUMENT_BYTES = 2**20
"""Larger files are refused before they are parsed: the largest honest document is well under this."""
MAX_JSON_BYTES = 2**24
"""JSON parses a hundred times faster, and honest files are larger: MiniMax-M3-NVFP4's config.json, which names the
format of every projection of every expert, is 3 MB."""


def _schema_number(value: object) -> object:
    """1.0 and true equal 1 in Python, but neither is a schema number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is not a schema number; write schema: 1")
    return value


def text_keys(value: object) -> object:
    """`value`; ValueError when it is a mapping with keys that are not text. For documents inside documents."""
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise ValueError("has a key that is not text; write keys as plain words")
    return value


SchemaOne = Annotated[Literal[1], BeforeValidator(_schema_number)]


class Noun(BaseModel):
    """A frozen value that refuses unknown keys; change it with `replace`. `error` is what a bad change raises."""

    error: ClassVar[type[MoeplanError]] = ProfileError

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again (what-if variants are made this way).

        Raises MoeplanError with one line when the changed noun is no longer valid.
        """
        kept = {name: getattr(self, name) for name in type(self).model_fields}
        try:
            return type(self)(**{**kept, **changes})
        except ValidationError as problem:
            raise self.error(one_line(f"{type(self).__name__}: {first_problem(problem, type(self))}")) from None


class Document(Noun):
    """A noun with a file form. Creating one from bad values raises `error` with one line, never a traceback of ours."""

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as problem:
            raise self.error(one_line(f"{type(self).__name__}: {first_problem(problem, type(self))}")) from None

    def to_dict(self) -> dict[str, Any]:
        """The canonical document: JSON types only, bytes, bytes/s, FLOP/s and seconds."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_yaml(self) -> str:
        return dump_yaml(self.to_dict())

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> Self:
        """Build from a parsed document; `where` (a file name) starts the message of any error."""
        document = require_mapping(data, where or cls.__name__, cls.error)
        try:
            return cls(**document)
        except MoeplanError as problem:
            raise (type(problem)(one_line(f"{where}: {problem}")) if where else problem) from None

    def save(self, path: str | Path) -> None:
        """Write YAML (or JSON for a .json name) atomically: the old file stays whole until the new one is."""
        path = Path(path)
        write_text(path, self.to_json() if path.suffix == ".json" else self.to_yaml())


class _PlainDumper(yaml.SafeDumper):
    """Writes a value that occurs twice out twice: an alias is what our own reader refuses."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(data: Any) -> str:
    """Plain values as YAML, innermost mappings and lists on one line each, without aliases."""
    return str(yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, default_flow_style=None, width=10**6))


MAX_MESSAGE = 380
"""Longest error message: what a terminal shows in a few lines, whatever was in the file."""


def one_line(message: str) -> str:
    """`message` without line breaks or other control characters, its middle cut out beyond `MAX_MESSAGE` characters.

    The start names the file and the end the remedy, so both stay.
    """
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE // 2] + "…" + message[-(MAX_MESSAGE // 2 - 1) :]
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in message)


def require_mapping(data: object, where: str, error: type[MoeplanError]) -> dict[str, Any]:
    """`data` if it is a mapping with text keys; otherwise `error`, which says what it is instead."""
    if not isinstance(data, dict):
        found = f"expected a mapping of keys to values, got {short(data)}"
        raise error(one_line(f"{where}: {found}; give 'key: value' lines"))
    stray = [key for key in data if not isinstance(key, str)]
    if stray:
        raise error(one_line(f"{where}: key {short(stray[0])} is not text; write it in quotes or take it out"))
    return data


def first_problem(problem: ValidationError, model: type[BaseModel]) -> str:
    """The first of pydantic's findings as `field: reason (got value)`, with the remedy where one is known."""
    errors = problem.errors(include_url=False)
    found = errors[0]
    if found["type"] == "missing":  # a misspelt key is why another one is missing
        found = next((error for error in errors if error["type"] == "extra_forbidden"), found)
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{_cut(part)}" for part in found["loc"]).lstrip(".")
    if found["type"] == "extra_forbidden":
        known = _known_keys(model, found["loc"][:-1])
        near = difflib.get_close_matches(_cut(str(found["loc"][-1])), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"remove it; known keys: {', '.join(known)}"
        return f"{field}: unknown key, {hint}"
    if found["type"] == "missing":
        return f"{field}: missing, add it"
    reason = found["msg"].removeprefix("Value error, ")
    where = f"{field}: " if field else ""
    return f"{where}{reason}" + (f" (got {short(found['input'])})" if field else "")


def _cut(key: str, limit: int = 40) -> str:
    return key if len(key) <= limit else key[: limit - 1] + "…"


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
    if isinstance(value, BaseModel):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge number"  # Python refuses to print more than 4300 digits
    text = repr(value[: limit + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _StrictLoader(yaml.SafeLoader):
    """yaml.safe_load's own loader, which also refuses aliases (bombs) and keys given twice (silent loss)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        line = node.start_mark.line + 1
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"merge keys (<<) are not allowed in line {line}; write the values out")
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"key {short(key.value)} is given twice in the mapping of line {line}; keep one")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        made = super().construct_mapping(node, deep)
        if len(made) < len(node.value):  # such as 1 and 0x1, equal once read
            raise yaml.YAMLError(f"two keys of the mapping of line {line} are equal; keep one")
        return made

    def construct_number(self, node: Any) -> int | float:
        """YAML numbers may be as long as the file (and in base 60); reading such a one takes time and has no use."""
        if len(node.value) > 60:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"a number of {len(node.value)} characters in line {line}; shorten it")
        if node.tag.endswith(":int"):
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_number)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_number)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different: Python's reader would silently keep the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {short(twice)} is given twice; keep one")
    return made


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)  # NaN and Infinity stand in real config.json files


MAX_DEPTH = 100
"""Brackets within brackets in YAML: PyYAML takes seconds to give up at some hundreds."""


def _parse_yaml(text: str) -> Any:
    if len(text) > MAX_DOCUMENT_BYTES:
        raise yaml.YAMLError(f"{len(text)} characters are more than the {MAX_DOCUMENT_BYTES} that a document may have")
    depth = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", text))
    if max(depth, default=0) > MAX_DEPTH:
        raise RecursionError
    loader = _StrictLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def parse_document(text: str, where: str, error: type[MoeplanError] = ProfileError) -> Any:
    """Parse YAML, or JSON where `where` ends in .json, into plain values.

    Raises `error` with one line: tags, aliases, doubled keys, bad syntax and too deep nesting are all refused.
    """
    kind = "JSON" if where.lower().endswith(".json") else "YAML"
    try:
        data = _parse_json(text) if kind == "JSON" else _parse_yaml(text)
        if "\\u" in text.lower():  # an escape can write half a character, which no file or screen takes
            json.dumps(data, ensure_ascii=False, default=str, skipkeys=True).encode("utf-8")
        return data
    except json.JSONDecodeError as problem:
        reason = f"{problem.msg} in line {problem.lineno}; mend or download the file again"
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        said = getattr(problem, "problem", None) or next(iter(str(problem).splitlines()), "bad syntax")
        reason = f"{said}{f' in line {mark.line + 1}' if mark is not None else ''}; only plain values are read"
    except RecursionError:
        reason = "nested too deep; no document needs that"
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as problem:
        # PyYAML lets these out for odd scalars, such as the date 2024-13-45
        reason = f"{next(iter(str(problem).splitlines()), 'odd value')}; write plain values"
    raise error(one_line(f"{where}: not valid {kind}: {reason}"))


def read_text(path: str | Path, error: type[MoeplanError] = ProfileError) -> str:
    """The text of a small file; raises `error` naming the path when it is missing, too large or not UTF-8."""
    path = Path(path)
    try:
        if path.is_dir():
            raise error(one_line(f"{path}: is a folder; name a file in it"))
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(one_line(f"{path}: is not a regular file; give a YAML or JSON file"))
        most = MAX_JSON_BYTES if path.suffix.lower() == ".json" else MAX_DOCUMENT_BYTES
        with path.open("rb") as file:
            raw = file.read(most + 1)
        if len(raw) > most:
            size = f"{max(status.st_size, len(raw))} bytes, more than the {most} that a document may have"
            raise error(one_line(f"{path}: {size}; shorten it"))
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(one_line(f"{path}: is not UTF-8 text; give a YAML or JSON file")) from None
    except (OSError, ValueError) as problem:
        raise error(one_line(f"{path}: cannot be read: {_reason(problem)}; check the path")) from None


def _reason(problem: OSError | ValueError) -> str:
    return getattr(problem, "strerror", None) or str(problem)


def read_document(path: str | Path, error: type[MoeplanError] = ProfileError) -> Any:
    """Read and parse one YAML or JSON file."""
    return parse_document(read_text(path, error), str(path), error)


def write_text(path: str | Path, text: str) -> None:
    """Write atomically: a temporary file beside the target, then a rename. Raises MoeplanError naming the path."""
    path = Path(path)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".moeplan-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
        temporary = None
    except (OSError, ValueError) as problem:
        message = f"{path}: cannot be written: {_reason(problem)}; check the path and its permissions"
        raise MoeplanError(one_line(message)) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
