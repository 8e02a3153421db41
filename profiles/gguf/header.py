"""The header of one GGUF file: metadata and tensor infos, read through the `gguf` package, never a byte of tensor data.

The package's reader trusts its file. `_Reader` is that reader with its steps bounded: no read beyond the end of the
file, no list of a whole tokenizer in memory, no view of the data.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUFValueType
from gguf.gguf_reader import GGUFReader, ReaderField

from profiles.document import one_line, short
from profiles.errors import ProfileError
from profiles.gguf.tensors import GgmlType, GgufTensor, fits, tensor_bytes

MAX_TENSORS = 200_000
"""No model comes near: the largest published one with a tensor for every expert has about 50 000."""
MAX_FIELDS = 10_000
MAX_TEXT_BYTES = 2**24
MAX_ELEMENTS = 10_000_000
"""Of all arrays together: tokenizers hold a few hundred thousand tokens and merges."""
MAX_DIMS = 4


@dataclass(frozen=True)
class GgufEntry:
    """One tensor of a file, the type it is stored in and its bytes."""

    tensor: GgufTensor
    kind: GgmlType
    n_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """One file: metadata by key (long texts and arrays of texts left out), and its tensors in their order."""

    path: Path
    fields: Mapping[str, Any]
    entries: tuple[GgufEntry, ...]


class CutShort(ValueError):
    """The header goes on beyond the end of what there is of the file."""


def read_header(path: Path) -> GgufHeader:
    """The header of the GGUF file at `path`.

    Raises ProfileError with one line: not a file, not GGUF, cut short, corrupt, a tensor twice or beyond the end.
    """
    return _read(path)[0]


def header_end(path: Path) -> int | None:
    """Where the header ends in the GGUF file of which `path` is the beginning; None where it goes on after that.

    Raises ProfileError as `read_header`, but for tensors beyond the end.
    """
    try:
        return _read(path, whole=False)[1]
    except CutShort:
        return None


def _read(path: Path, whole: bool = True) -> tuple[GgufHeader, int]:
    """The header and its end; where the file need not be `whole`, CutShort says that there is too little of it."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ProfileError(one_line(f"{path}: is not a regular file; give a .gguf file"))
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ProfileError(one_line(f"{path}: starts with {short(magic)}, not with GGUF; give a GGUF file"))
        reader = _Reader(path, whole)
        return GgufHeader(path, reader.plain_fields(), tuple(reader.entries)), int(reader.data_offset)
    except (ValueError, KeyError, IndexError, OverflowError, TypeError, struct.error) as problem:
        if isinstance(problem, CutShort) and not whole:
            raise
        reason = short(str(problem.args[0]) if problem.args else type(problem).__name__, 160).strip("'\"")
        raise ProfileError(one_line(f"{path}: not a whole GGUF file: {reason}; download it again")) from None
    except OSError as problem:
        raise ProfileError(one_line(f"{path}: cannot be read: {problem.strerror or problem}; check it")) from None


class _Reader(GGUFReader):
    """The package's reader, bounded. It fails with ValueError, KeyError or IndexError where the file is not right."""

    def __init__(self, path: Path, whole: bool) -> None:
        self.entries: list[GgufEntry] = []
        self._whole = whole
        self._left = MAX_ELEMENTS
        super().__init__(path)

    def plain_fields(self) -> dict[str, Any]:
        """Metadata as plain Python values: numbers, flags, texts, lists of numbers."""
        found = {}
        for key, field in self.fields.items():
            if not (field.types[0] == GGUFValueType.ARRAY and field.types[-1] == GGUFValueType.STRING):
                found[key] = field.contents()
        return found

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        kind, offset, count = np.dtype(dtype), int(offset), int(count)
        if offset + kind.itemsize * count > len(self.data):
            raise CutShort(f"cut short, it has {len(self.data)} bytes and the header goes on")
        # Not a slice of the mapped file: numpy takes ten times as long to make one.
        array = np.frombuffer(self.data.data, kind, count, offset)
        return array.view(kind.newbyteorder(override_order or self.byte_order))

    def _get_str(self, offset: int) -> Any:
        length = int(self._get(offset, np.uint64)[0])
        if length > MAX_TEXT_BYTES:
            raise ValueError(f"a text of {length} bytes at byte {offset}")
        return super()._get_str(offset)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """As the package's, but an array of numbers is one part and an array of texts is passed over."""
        if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        start, types = orig_offs + 12, [GGUFValueType.ARRAY, kind]
        self._left -= count
        if self._left < 0 or kind == GGUFValueType.ARRAY:
            raise ValueError(f"an array of {count} elements of type {kind.name} at byte {orig_offs}")
        if kind == GGUFValueType.STRING:
            return self._after_texts(start, count) - orig_offs, [], [], types
        values = self._get(start, self.gguf_scalar_to_np[kind], count)
        return 12 + int(values.nbytes), [values], [0], types

    def _after_texts(self, offset: int, count: int) -> int:
        length = struct.Struct("<Q" if self.byte_order == "I" else ">Q")
        data, end = self.data.data, len(self.data)
        for _ in range(count):
            if offset + 8 > end:
                break
            offset += 8 + length.unpack_from(data, offset)[0]
        if offset > end:
            raise CutShort(f"cut short, it has {end} bytes and a list of texts goes on")
        return offset

    def _build_fields(self, offs: int, count: int) -> int:
        if count > MAX_FIELDS:
            raise ValueError(f"{count} metadata fields, more than {MAX_FIELDS}")
        return int(super()._build_fields(offs, count))

    def _build_tensor_info(self, offs: int, count: int) -> Any:
        if count > MAX_TENSORS:
            raise ValueError(f"{count} tensors, more than the {MAX_TENSORS} that any model has")
        found = []
        for _ in range(int(count)):
            field = self._get_tensor_info_field(offs)
            offs += sum(int(part.nbytes) for part in field.parts)
            shape = tuple(int(n) for n in field.parts[3])
            kind = GgmlType(int(field.parts[4][0]))
            found.append((GgufTensor(field.name, shape), kind, int(field.parts[5][0])))
        return offs, found

    def _get_tensor_info_field(self, orig_offs: int) -> ReaderField:
        length = int(self._get(orig_offs, np.uint64)[0])
        dims = int(self._get(orig_offs + 8 + length, np.uint32)[0]) if length <= MAX_TEXT_BYTES else 0
        if dims > MAX_DIMS:
            raise ValueError(f"a tensor of {dims} dimensions at byte {orig_offs}")
        return super()._get_tensor_info_field(orig_offs)

    def _build_tensors(self, start_offs: int, fields: Any) -> None:
        """In place of views of the data: is each tensor there once, possible, and within the file?"""
        names: set[str] = set()
        for tensor, kind, offset in fields:
            name = tensor.name[:80]
            if tensor.name in names:
                raise ValueError(f"tensor {name} is there twice")
            names.add(tensor.name)
            if kind not in GGML_QUANT_SIZES or not tensor.numel or not fits(tensor, kind):
                raise ValueError(f"tensor {name} of shape {list(tensor.shape)} cannot be {kind.name}")
            n_bytes = tensor_bytes(tensor, kind)
            end = start_offs + offset + n_bytes
            if end > len(self.data) and self._whole:
                raise ValueError(f"cut short, tensor {name} ends at byte {end} of {len(self.data)}")
            self.entries.append(GgufEntry(tensor, kind, n_bytes))
