"""The headers of safetensors files: names, types and shapes of tensors, checked against the file, and never their data.

The format (README of huggingface/safetensors): 8 bytes with the header's length, little endian; a JSON object of
{name: {dtype, shape, data_offsets}}; then the tensors, one after the other without gaps up to the end of the file.

Read with the standard library. `safetensors.safe_open` (0.8) was tried first: it refuses most bad files in
milliseconds, but takes a tensor named twice in a header silently, tells no bytes of a tensor, sets no limit to the
number of tensors (half a million take 2 s and 500 MB, and its 100 MB of header hold two million), waits for ever at a
named pipe, and says what is wrong without file or remedy. What it refuses is refused here; the tests compare the two.
"""

from __future__ import annotations

import json
import stat
import sys
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from profiles.document import one_line, short
from profiles.errors import ProfileError

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Bits of one value of every type that safetensors 0.8 knows. Types below 8 bits are packed without padding."""
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""Longest header of one file, as in the library itself."""
MAX_ALL_HEADERS_BYTES = 256_000_000
"""Longest headers of a checkpoint together, about eight times those of the largest known ones."""
MAX_TENSORS = 500_000
"""Most tensors of a checkpoint. DeepSeek-R1 has 91,991; Kimi-K2 with four tensors a projection (NVFP4) some 280,000."""
MAX_DIMENSIONS, MAX_DIMENSION = 16, 2**48
AGAIN = "download the file again"
_KEYS = {"dtype", "shape", "data_offsets"}
_METADATA = "__metadata__"


class Entry(NamedTuple):
    """One tensor of a file: its type, its shape, and where its data lie after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def n_bytes(self) -> int:
        return self.end - self.begin

    @property
    def values(self) -> int:
        """How many values of its type the tensor holds."""
        return self.n_bytes * 8 // DTYPE_BITS[self.dtype]


Headers = dict[Path, dict[str, Entry]]


def bad(path: Path, problem: str) -> ProfileError:
    """The one-line error about a file."""
    return ProfileError(one_line(f"{path}: {problem}"))


def read_headers(paths: Iterable[Path]) -> Headers:
    """The tensors of each file by name, all checked; a tensor is in one file only.

    Raises ProfileError naming the file and the remedy: not a regular file, not safetensors, cut short, a header or
    checkpoint beyond the limits above, a tensor given twice, or whose type, shape and place do not agree.
    """
    headers: Headers = {}
    seen: set[str] = set()
    left = MAX_ALL_HEADERS_BYTES
    for path in paths:
        tensors, header_bytes = _read_header(path, left)
        left -= header_bytes
        if len(seen) + len(tensors) > MAX_TENSORS:
            raise bad(path, f"more than {MAX_TENSORS} tensors so far; no known checkpoint comes near, {AGAIN}")
        twice = next((name for name in tensors if name in seen), None)
        if twice is not None:
            first = next(other.name for other, held in headers.items() if twice in held)
            raise bad(path, f"tensor {short(twice)} is in {first} too; keep the files of one checkpoint only")
        seen.update(tensors)
        headers[path] = tensors
    return headers


def _read_header(path: Path, left: int) -> tuple[dict[str, Entry], int]:
    """The checked tensors of one file and the length of its header, of which `left` bytes may be read."""
    raw, data_bytes = _header_bytes(path, left)
    found = parse_json(raw, path, "header")
    if type(found) is not dict:
        raise bad(path, f"header: {short(found)} instead of a mapping of tensor names; {AGAIN}")
    if type(found.pop(_METADATA, {})) is not dict:
        raise bad(path, f"header: {_METADATA} is not a mapping; {AGAIN}")
    for name, entry in found.items():
        problem = _problem(entry)
        if problem:
            raise bad(path, f"tensor {short(name)}: {problem}")
    _check_places(path, found, data_bytes)
    return found, len(raw)


def _header_bytes(path: Path, left: int) -> tuple[bytes, int]:
    """The header as written, and how many bytes of the file follow it."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # asked before opening, which would wait for ever at a named pipe
            raise bad(path, "is not a regular file; give a .safetensors file")
        with path.open("rb") as file:
            start = file.read(LENGTH_BYTES + 1)
            length = int.from_bytes(start[:LENGTH_BYTES], "little")
            _check_start(path, start, length, status.st_size, left)
            file.seek(LENGTH_BYTES)
            raw = file.read(length)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise bad(path, f"cannot be read: {reason}; check the path") from None
    return raw, status.st_size - LENGTH_BYTES - length


def _check_start(path: Path, start: bytes, length: int, size: int, left: int) -> None:
    if start.startswith(b"GGUF"):
        raise bad(path, "is a GGUF file by its first bytes; give it the suffix .gguf")
    if len(start) <= LENGTH_BYTES:
        raise bad(path, f"{size} bytes are too few for a safetensors file; {AGAIN}")
    if start[LENGTH_BYTES:] != b"{":
        raise bad(path, f"is not a safetensors file: no JSON header after the first {LENGTH_BYTES} bytes; {AGAIN}")
    if length > MAX_HEADER_BYTES:
        raise bad(path, f"header of {length} bytes, more than the {MAX_HEADER_BYTES} that one may have; {AGAIN}")
    if length > size - LENGTH_BYTES:
        raise bad(path, f"is cut short: {size} bytes, but its header alone has {length}; {AGAIN}")
    if length > left:
        raise bad(path, f"headers of more than {MAX_ALL_HEADERS_BYTES} bytes so far; give one checkpoint's files only")


def parse_json(raw: bytes, path: Path, what: str, commas_each: int = 8) -> Any:
    """The value of a header or an index, tensors in it as `Entry`, in bounded memory; a key given twice is refused.

    A tensor has 3 brackets at most and, of the whole file on average, `commas_each` commas.
    """
    brackets, commas = raw.count(b"{") + raw.count(b"["), raw.count(b",")
    if brackets > 3 * MAX_TENSORS + 1000 or commas > commas_each * MAX_TENSORS + 1000:
        raise bad(path, f"{what}: more than {MAX_TENSORS} tensors; no known checkpoint comes near, {AGAIN}")
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_object)
        if b"\\u" in raw:  # an escape can write half a character, which no file or screen takes
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        return found
    except UnicodeError:
        reason = "not UTF-8 text"
    except json.JSONDecodeError as problem:
        reason = f"not valid JSON: {problem.msg} at character {problem.pos}"
    except RecursionError:
        reason = "not valid JSON: nested too deep"
    except ValueError as problem:  # a name given twice, a number of thousands of digits
        reason = next(iter(str(problem).splitlines()), "odd value")
    raise bad(path, f"{what}: {reason}; {AGAIN}")


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """A JSON object: an entry becomes an `Entry` at once, as that takes half the memory of a dict."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{short(twice)} is given twice")
    if len(made) == 3 and made.keys() == _KEYS:
        dtype, shape, offsets = made["dtype"], made["shape"], made["data_offsets"]
        if type(dtype) is str and type(shape) is list and type(offsets) is list and len(offsets) == 2:
            return Entry(sys.intern(dtype), tuple(shape), offsets[0], offsets[1])
    return made


def _problem(entry: object) -> str | None:
    """What is wrong with this entry alone, and the remedy."""
    if type(entry) is not Entry:
        return f"{short(entry)} instead of dtype, shape and two data_offsets; {AGAIN}"
    dtype, shape, begin, end = entry
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        return f"dtype {short(dtype)} is none of {', '.join(DTYPE_BITS)}; convert it"
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_DIMENSION:
            return f"shape: {short(size)} is no possible dimension; {AGAIN}"
    if len(shape) > MAX_DIMENSIONS:
        return f"shape: {len(shape)} dimensions, more than {MAX_DIMENSIONS}; {AGAIN}"
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        return f"data_offsets {short(begin)} to {short(end)} are no range of bytes; {AGAIN}"
    if prod(shape) * bits != (end - begin) * 8:
        values = f"shape of {short(prod(shape))} {dtype} values"
        return f"{values} does not take the {short(end - begin)} bytes of its data_offsets; {AGAIN}"
    return None


def _check_places(path: Path, tensors: dict[str, Entry], data_bytes: int) -> None:
    """The tensors must follow each other without gap or overlap, up to the end of the file."""
    reached = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            what = "overlaps the one before it" if entry.begin < reached else "comes after a gap"
            raise bad(path, f"tensor {short(name)}: data_offsets {entry.begin} to {entry.end}: {what}; {AGAIN}")
        reached = entry.end
    if reached > data_bytes:
        raise bad(path, f"is cut short: {data_bytes} bytes of tensors, but its header promises {reached}; {AGAIN}")
    if reached < data_bytes:
        raise bad(path, f"{data_bytes - reached} bytes follow its last tensor; {AGAIN}")
