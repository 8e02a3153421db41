"""Where fetched files are kept: one folder for a commit, whose weights are holes of the right size behind real headers.

Under `huggingface_hub`'s own folder for such files (HF_ASSETS_CACHE, HF_HOME or XDG_CACHE_HOME move it), so that
its tools clean it up. A file is there whole, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import get_ident
from urllib.parse import quote, urlsplit

from profiles.document import one_line, write_text
from profiles.errors import MoeplanError, ProfileError
from profiles.hub.listing import Listing
from profiles.hub.name import HubName, is_commit

Check = Callable[[Path], object]
"""Raises ProfileError where the file at the path is not what it should be."""


class Store:
    """What was fetched of one repository, by commit. Errors are ProfileError, one line."""

    def __init__(self, name: HubName, endpoint: str, root: Path) -> None:
        self.name = name
        host = quote(urlsplit(endpoint).netloc.rpartition("@")[2] or "hub", safe="")
        self._folder = root / host / name.owner / name.name

    def listing(self) -> Listing | None:
        """What the hub last said of the revision."""
        with suppress(OSError, ValueError):
            ref = self.name.at if self.name.is_pinned else self._ref().read_text(encoding="utf-8").strip()
            if is_commit(ref):
                found = Listing.of_text((self._folder / ref / "listing.json").read_text(encoding="utf-8"))
                return found if found.commit == ref else None
        return None

    def keep_listing(self, listing: Listing) -> None:
        """`listing` is what the revision is now."""
        path = self._folder / listing.commit / "listing.json"
        if not path.exists():
            self._write(path, listing.text())
        if not self.name.is_pinned:
            self._write(self._ref(), listing.commit)

    def folder(self, commit: str) -> Path:
        """The folder that a commit's files are in, called after the repository; weights in it are headers only."""
        return self._folder / commit / self.name.name

    def keep(self, path: Path, data: bytes, size: int, check: Check) -> None:
        """The file at `path`: `data`, and after them a hole up to `size`; only if `check` finds nothing wrong."""
        temporary = path.with_name(f".moeplan-{os.getpid()}-{get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.truncate(size)
            self._check(temporary, path, check)
            temporary.replace(path)
        except (OSError, OverflowError) as problem:
            raise self._bad(path, problem) from None
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _check(self, temporary: Path, path: Path, check: Check) -> None:
        try:
            check(temporary)
        except ProfileError as problem:
            said = str(problem).replace(str(temporary), path.name)
            raise ProfileError(one_line(f"{self.name}: {said}")) from None

    def _ref(self) -> Path:
        return self._folder / "refs" / quote(self.name.at, safe="")

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except (OSError, MoeplanError) as problem:
            raise self._bad(path, problem) from None

    def _bad(self, path: Path, problem: Exception) -> ProfileError:
        reason = getattr(problem, "strerror", None) or problem
        remedy = "make room, or set HF_ASSETS_CACHE to a folder on a disk that can hold files with holes"
        return ProfileError(one_line(f"{self.name}: cannot be kept in {path.parent}: {reason}; {remedy}"))
