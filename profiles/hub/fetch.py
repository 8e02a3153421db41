"""A model of the hub -> a folder or file for the readers of this machine's files: config and headers, no weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from profiles.document import one_line
from profiles.errors import ProfileError
from profiles.gguf.header import header_end
from profiles.gguf.header import read_header as read_gguf_header
from profiles.hub.allow import HubUnreachable, told
from profiles.hub.choose import INDEX_ENDING, chosen_gguf, ggufs, safetensors, small_files
from profiles.hub.listing import MAX_LISTING_BYTES, HubFile, Listing
from profiles.hub.name import CONFIG, HubName
from profiles.hub.remote import Remote, cache_folder, endpoint, is_offline
from profiles.hub.store import Store
from profiles.safetensors.header import LENGTH_BYTES, MAX_HEADER_BYTES, read_headers

FIRST_BYTES = 128 * 2**10
"""Read of every safetensors file at first: most headers end within, the others take a second request."""
GGUF_BYTES = tuple(mebibytes * 2**20 for mebibytes in (1, 4, 8, 16, 32, 64))
"""Of a GGUF file, whose header does not say how long it is: ever more. Tokenizers of 150,000 tokens take some 6 MB."""
MAX_SMALL_BYTES = 16 * 2**20
MAX_INDEX_BYTES = 100_000_000
AT_A_TIME = 8
"""Requests; the hub answers in some tenths of a second, of which most is waiting."""


@dataclass(frozen=True)
class Fetched:
    """Where to read the model, the folder of all that was fetched, the commit, and what a user should know."""

    path: Path
    folder: Path
    commit: str
    notes: tuple[str, ...] = ()


def fetch(name: HubName) -> Fetched:
    """What tells the model called `name`: its config.json and others like it, and headers of its weights.

    Weights are those that the name picks, else the repository's safetensors, else its only GGUF; with
    `name.reads_shapes`, none. A second call for the same commit fetches nothing, and asks nothing where the name has
    the whole commit. Raises ProfileError, one line; HubUnreachable where nothing answers and nothing was fetched.
    """
    store = Store(name, endpoint(), cache_folder())
    hub = Remote(name)
    try:
        listing, notes = _listing(name, store, hub)
        task = _Task(name, store, hub, listing)
        return Fetched(task.path(), store.folder(listing.commit), listing.commit, notes)
    finally:
        told()("")


def _listing(name: HubName, store: Store, hub: Remote) -> tuple[Listing, tuple[str, ...]]:
    """The revision's files; as last heard where the hub cannot be asked, and then with a note."""
    known = store.listing()
    if known is not None and (name.is_pinned or is_offline()):
        return known, ()
    if is_offline():
        problem = f"{name}: not fetched before, and HF_HUB_OFFLINE is set; unset it once, or give a folder"
        raise HubUnreachable(one_line(f"{problem} with its config.json"))
    told()(f"asking {hub.host} for {name}")
    try:
        found = Listing.of_answer(hub.listing(MAX_LISTING_BYTES))
    except HubUnreachable:
        if known is None:
            raise
        return known, (f"{hub.host} does not answer: read as last fetched, commit {known.commit[:7]}",)
    except ProfileError as problem:
        raise _about(name, problem) from None
    store.keep_listing(found)
    return found, ()


@dataclass
class _Task:
    """Fetching what one name means at one commit."""

    name: HubName
    store: Store
    hub: Remote
    listing: Listing

    def path(self) -> Path:
        """Fetch, and say where the model is to be read."""
        folder, paths = self.store.folder(self.listing.commit), self.listing.files
        small = [CONFIG] if self.name.reads_shapes else small_files(paths)
        sets = {} if self.name.reads_shapes else ggufs(paths)
        plain = [path for path in paths if "/" not in path and path.endswith(".safetensors")]
        if self.name.pick is not None and not self.name.reads_shapes and not sets:
            raise self._bad(f"has no GGUF files of which {self.name.pick} could be one; leave it out")
        if sets and (self.name.pick is not None or not plain):
            files = self._ask(lambda: chosen_gguf(self.name, sets))
            self._all(self._gguf, files)
            return folder / files[0]
        if CONFIG not in paths:
            has = "safetensors, but not the config.json" if plain else "neither config.json nor GGUF files"
            raise self._bad(f"has {has} of a model; name a repository that has")
        self._all(self._small, small)
        indices = {path: self._named(folder / path) for path in small if path.endswith(INDEX_ENDING)}
        if self.name.reads_shapes:
            return folder / CONFIG
        self._all(self._safetensors, self._ask(lambda: safetensors(paths, indices)))
        return folder

    def _ask(self, choose: Callable[[], list[str]]) -> list[str]:
        try:
            return choose()
        except ProfileError as problem:
            raise _about(self.name, problem) from None

    def _all(self, one: Callable[[HubFile, Path], None], paths: Iterable[str]) -> None:
        """Fetch with `one` all files that are not there yet, some at a time; the first problem ends it."""
        folder = self.store.folder(self.listing.commit)
        missing = [path for path in paths if not (folder / path).exists()]
        if missing and is_offline():
            raise HubUnreachable(
                one_line(f"{self.name}: {missing[0]} was not fetched before, and HF_HUB_OFFLINE is set; unset it once")
            )
        done, lock, hears = 0, Lock(), told()

        def say() -> None:
            hears(f"fetching headers of {self.name}: {done} of {len(missing)} files")

        def run(path: str) -> None:
            nonlocal done
            one(self.listing.files[path], folder / path)
            with lock:
                done += 1
                say()

        if missing:
            say()
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            jobs = [pool.submit(run, path) for path in missing]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _small(self, file: HubFile, path: Path) -> None:
        """A whole JSON file, which is what the hub listed."""
        most = MAX_INDEX_BYTES if path.name.endswith(INDEX_ENDING) else MAX_SMALL_BYTES
        data = self.hub.read(file.path, self.listing.commit, 0, most + 1, ranged=False).data
        if len(data) > most:
            raise self._bad(f"{file.path}: more than the {most} bytes that it may have; name another repository")
        if not file.is_this(data):
            raise self._bad(f"{file.path}: {len(data)} bytes, not those that the hub lists; run it again")
        self.store.keep(path, data, len(data), _check_json)

    def _safetensors(self, file: HubFile, path: Path) -> None:
        """8 bytes that say how long the header is, the header, and a hole in place of the weights."""
        start, size = self._first(file, FIRST_BYTES)
        end = LENGTH_BYTES + int.from_bytes(start[:LENGTH_BYTES], "little")
        if len(start) < end <= min(size, LENGTH_BYTES + MAX_HEADER_BYTES):
            start += self.hub.read(file.path, self.listing.commit, len(start), end).data
        self.store.keep(path, start[:end], size, lambda kept: read_headers([kept]))

    def _gguf(self, file: HubFile, path: Path) -> None:
        """Ever more of the file until its header is whole, and a hole in place of the weights."""
        start, size = self._first(file, GGUF_BYTES[0])
        end = self._gguf_end(start)
        for most in GGUF_BYTES[1:]:
            if end is None and len(start) < size:
                start += self.hub.read(file.path, self.listing.commit, len(start), min(most, size)).data
                end = self._gguf_end(start)
        if end is None and len(start) < size:
            raise self._bad(f"{file.path}: its header has more than {GGUF_BYTES[-1]} bytes; name another file")
        self.store.keep(path, start[:end], size, read_gguf_header)

    def _gguf_end(self, start: bytes) -> int | None:
        """Where the header ends; None where more is needed. What is no GGUF ends here too, and is found when kept."""
        with tempfile.TemporaryDirectory(prefix="moeplan-") as folder:
            path = Path(folder) / "start.gguf"
            path.write_bytes(start)
            try:
                return header_end(path)
            except ProfileError:
                return len(start)

    def _first(self, file: HubFile, count: int) -> tuple[bytes, int]:
        """The first bytes of the file, and how long it is, about which the hub's list and the server must agree."""
        part = self.hub.read(file.path, self.listing.commit, 0, count)
        size = file.size if part.total is None else part.total
        if size is None:
            raise self._bad(f"{file.path}: neither the list of files nor the server says how long it is; run it again")
        if file.size is not None and file.size != size:
            said = f"{size} bytes as the server says, {file.size} in the list of files"
            raise self._bad(f"{file.path}: {said}; run it again")
        return part.data, size

    def _named(self, index: Path) -> list[str]:
        """The files that an index of safetensors names."""
        try:
            found = json.loads(index.read_bytes())["weight_map"].values()
            return sorted({file for file in found if isinstance(file, str)})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._bad(f"{index.name}: has no weight_map of tensors to files; name another repository") from None

    def _bad(self, problem: str) -> ProfileError:
        return ProfileError(one_line(f"{self.name}: {problem}"))


def _check_json(path: Path) -> None:
    """A page on which one has to log in to a network is no JSON."""
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ProfileError(f"{path}: is not JSON; check the network and HF_ENDPOINT") from None


def _about(name: HubName, problem: ProfileError) -> ProfileError:
    """The problem with the name in front, once."""
    said = str(problem)
    return ProfileError(one_line(said if said.startswith(f"{name}:") else f"{name}: {said}"))
