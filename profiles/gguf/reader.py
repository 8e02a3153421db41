"""A GGUF file, or all shards of one -> ModelProfile, to the byte."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from gguf.constants import LlamaFileType

from profiles.block_bytes import profile_of
from profiles.document import one_line
from profiles.errors import MoeplanError, ProfileError
from profiles.formats.kv_cache import KvFormat
from profiles.gguf.blocks import stored_in_file
from profiles.gguf.header import MAX_TENSORS, GgufEntry, GgufHeader, read_header
from profiles.gguf.metadata import Metadata
from profiles.gguf.shapes import model_of
from profiles.model import ModelProfile

SHARD = re.compile(r"-([0-9]{5})-of-([0-9]{5})(?=\.gguf$)", re.IGNORECASE)
MAX_SHARDS = 1000


def read_gguf(path: Path, kv: KvFormat | None = None) -> ModelProfile:
    """The profile of the model in the GGUF file at `path`; of a sharded file any shard will do, all must be there.

    Bytes are those of the tensors as stored. The cache is counted in fp16 unless `kv` says otherwise. Raises
    ProfileError with one line.
    """
    shards = _shards(path)
    fields, entries = Metadata(shards[0].fields), _all_entries(shards)
    try:
        model, notes = model_of(fields, entries)
        quant = _quant(fields)
        stored = stored_in_file(fields, entries, quant)
        kv, cache_notes = _cache_format(kv or KvFormat(), {entry.tensor.name for entry in entries})
        name = SHARD.sub("", path.name).removesuffix(".gguf") or path.stem
        files = f"{len(shards)} GGUF files" if len(shards) > 1 else "GGUF"
        return profile_of(model, stored, name, f"{files}, {quant}, bytes as stored", notes + cache_notes, kv)
    except MoeplanError as problem:
        raise ProfileError(one_line(f"{path}: {problem}")) from None


def _cache_format(kv: KvFormat, names: set[str]) -> tuple[KvFormat, tuple[str, ...]]:
    """llama.cpp keeps the latent of latent attention only where the file's kv_b is split for it (since spring 2025)."""
    if kv.mla is not None or "blk.0.attn_kv_b.weight" not in names or "blk.0.attn_k_b.weight" in names:
        return kv, ()
    note = "latent attention's cache is counted expanded, as llama.cpp keeps it for a file with a whole kv_b"
    return replace(kv, mla="expanded"), (f"{note}; mla=compressed for runtimes that keep the latent",)


def _quant(fields: Metadata) -> str:
    """The mix that the file says it is; unsloth's and other mixes by hand call themselves by the nearest one."""
    kind = fields.number("general.file_type")
    name = next((member.name for member in LlamaFileType if member.value == kind), "mixed")
    return name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()


def _shards(path: Path) -> list[GgufHeader]:
    """The headers of all files of the model, the one with its metadata first."""
    match = SHARD.search(path.name)
    header = read_header(path)
    split = Metadata(header.fields).number("split.count") or 1
    if split < 2:
        return [header]
    if match is None or int(match[2]) != split or split > MAX_SHARDS:
        names = f"NAME-00001-of-{split:05}.gguf and so on"
        raise ProfileError(one_line(f"{path}: is one of {split} files of a model; call them {names}"))
    paths = [path.with_name(SHARD.sub(f"-{i:05}-of-{match[2]}", path.name)) for i in range(1, split + 1)]
    missing = next((other for other in paths if not other.exists()), None)
    if missing is not None:
        raise ProfileError(one_line(f"{missing}: no such file, one of {split} of this model; download it too"))
    headers: list[GgufHeader] = []
    for number, other in enumerate(paths):
        found = header if other == path else read_header(other)
        headers.append(found)
        if sum(len(known.entries) for known in headers) > MAX_TENSORS:
            raise ProfileError(one_line(f"{other}: more than {MAX_TENSORS} tensors with the files before it; check it"))
        if Metadata(found.fields).number("split.no") != number or Metadata(found.fields).number("split.count") != split:
            raise ProfileError(one_line(f"{found.path}: says it is another part than its name; download it again"))
    return headers


def _all_entries(shards: list[GgufHeader]) -> tuple[GgufEntry, ...]:
    """The tensors of all files; each must be there once, and none be missing where the files say how many there are."""
    seen: dict[str, Path] = {}
    for shard in shards:
        for entry in shard.entries:
            other = seen.setdefault(entry.tensor.name, shard.path)
            if other != shard.path:
                twice = f"tensor {entry.tensor.name[:80]} is in {other.name} too"
                raise ProfileError(one_line(f"{shard.path}: {twice}; download both again"))
    promised = Metadata(shards[0].fields).number("split.tensors.count")
    if len(shards) > 1 and promised is not None and promised != len(seen):
        raise ProfileError(
            one_line(f"{shards[0].path}: {len(seen)} tensors in all files, but it says {promised}; download them again")
        )
    return tuple(entry for shard in shards for entry in shard.entries)
