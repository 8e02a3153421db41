"""What a repository holds at one commit: its files, their sizes and hashes, as the hub lists them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from profiles.document import short
from profiles.errors import ProfileError
from profiles.hub.name import is_commit

MAX_LISTING_BYTES = 64 * 2**20
MAX_FILES = 50_000
_PART = re.compile(r"[^/\\:\x00]{1,255}")


@dataclass(frozen=True)
class HubFile:
    """A file: its path in the repository, its bytes, and what git or LFS call its contents, where the hub says so."""

    path: str
    size: int | None = None
    blob_sha1: str | None = None
    sha256: str | None = None

    def is_this(self, data: bytes) -> bool:
        """Whether `data` can be all of the file: size and hash as listed."""
        if self.sha256 is not None:
            return hashlib.sha256(data).hexdigest() == self.sha256
        if self.blob_sha1 is not None:
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == self.blob_sha1
        return self.size is None or self.size == len(data)


@dataclass(frozen=True)
class Listing:
    """A commit and its files by path."""

    commit: str
    files: Mapping[str, HubFile]

    def text(self) -> str:
        """As JSON, to be kept."""
        return json.dumps({"commit": self.commit, "files": [asdict(file) for file in self.files.values()]})

    @classmethod
    def of_text(cls, text: str) -> Listing:
        """As `text` has left it. ValueError where it is another thing."""
        try:
            data = json.loads(text)
            files = [HubFile(**file) for file in data["files"]]
            return cls(str(data["commit"]), {file.path: file for file in files})
        except (KeyError, TypeError) as problem:
            raise ValueError(str(problem)) from None

    @classmethod
    def of_answer(cls, raw: bytes) -> Listing:
        """From the hub's own JSON. ProfileError, without a name in front, where it is not what a hub says.

        Paths that lead out of a folder are not read: they could only be meant to write elsewhere.
        """
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError):
            raise ProfileError("the list of its files is not JSON; check HF_ENDPOINT") from None
        commit = data.get("sha") if isinstance(data, dict) else None
        found = data.get("siblings") if isinstance(data, dict) else None
        if not is_commit(commit) or not isinstance(found, list):
            raise ProfileError(f"the list of its files names commit {short(commit)}; check HF_ENDPOINT")
        if len(found) > MAX_FILES:
            raise ProfileError(f"has {len(found)} files, more than {MAX_FILES}; name another repository")
        files = [_file(entry) for entry in found if isinstance(entry, dict)]
        return cls(str(commit), {file.path: file for file in files if file is not None})


def _file(entry: dict[str, Any]) -> HubFile | None:
    path, lfs = entry.get("rfilename"), entry.get("lfs")
    if not isinstance(path, str) or not _is_plain(path):
        return None
    if isinstance(lfs, dict):
        sha256 = lfs.get("sha256") or str(lfs.get("oid", "")).removeprefix("sha256:")
        return HubFile(path, _size(lfs.get("size", entry.get("size"))), None, _hash(sha256, 64))
    return HubFile(path, _size(entry.get("size")), _hash(entry.get("blobId"), 40))


def _is_plain(path: str) -> bool:
    parts = path.split("/")
    return path.isprintable() and len(path) <= 1000 and all(_PART.fullmatch(p) and p not in (".", "..") for p in parts)


def _size(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**63 else None


def _hash(value: object, digits: int) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) else None
