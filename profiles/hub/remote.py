"""Bytes of the hub, through the session and with the token of `huggingface_hub`; read so far as needed, and no further.

The library itself parses headers of safetensors (`parse_safetensors_file_metadata`), but reads whatever body a server
sends to its end, which for one that ignores ranges is the weights, and knows no GGUF.
"""

from __future__ import annotations

import os
import re
import threading
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from profiles.document import one_line
from profiles.errors import ProfileError
from profiles.hub.allow import HubUnreachable
from profiles.hub.name import HubName

try:
    import httpx2
    from huggingface_hub import cached_assets_path, constants, get_session, get_token, hf_hub_url
except ImportError:
    raise ProfileError('the hub needs huggingface_hub 2 or newer; run: pip install "moeplan[hub]"') from None

MAX_ALL_BYTES = 512 * 2**20
"""Of one call. The largest checkpoints have some 40 MB of headers, a GGUF's tokenizer up to 20 MB."""
TRIES = 2
"""A connection may drop once in hundreds of files; what was fetched is kept, so a later call goes on from there."""
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_AGAIN = "run it again, what was fetched is kept"


class Part(NamedTuple):
    """The beginning or another part of a file, and how long the server says that all of it is."""

    data: bytes
    total: int | None


class _Broken(Exception):
    """The answer ended too early."""


def is_offline() -> bool:
    """Whether the hub must not be asked: HF_HUB_OFFLINE=1, now or when huggingface_hub was imported."""
    return constants.is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES


def endpoint() -> str:
    """HF_ENDPOINT, or the hub itself."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def cache_folder() -> Path:
    """Where `huggingface_hub` has us keep files: under HF_ASSETS_CACHE, HF_HOME or XDG_CACHE_HOME."""
    try:
        return cached_assets_path("moeplan", "hub", "headers-only")
    except OSError as problem:
        said = f"{problem.filename}: cannot be made: {problem.strerror}; set HF_ASSETS_CACHE to a folder that can"
        raise ProfileError(one_line(said)) from None


def _headers() -> dict[str, str]:
    """As the library's `build_hf_headers`, which for its own statistics may ask the hub something first (2.4)."""
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    said = {"User-Agent": f"moeplan/{version('moeplan')}; hf_hub/{version('huggingface_hub')}"}
    return said | {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})


class Remote:
    """A repository at the endpoint. All methods raise ProfileError, one line, HubUnreachable where nothing answers."""

    def __init__(self, name: HubName) -> None:
        self.name = name
        self.host = urlsplit(endpoint()).hostname or endpoint()[:60]
        self._left = MAX_ALL_BYTES
        self._lock = threading.Lock()

    def listing(self, limit: int) -> bytes:
        """The revision's commit, files and their sizes, as the hub's JSON of no more than `limit` bytes."""
        path = f"/api/models/{self.name.repository}/revision/{quote(self.name.at, safe='')}?blobs=true"
        return self._read(endpoint() + path, "its list of files", 0, limit, ranged=False).data

    def read(self, path: str, commit: str, begin: int, end: int, *, ranged: bool = True) -> Part:
        """Bytes `begin` to `end` of a file, fewer only where the file itself ends before."""
        url = hf_hub_url(self.name.repository, path, revision=commit, endpoint=endpoint())
        return self._read(url, path, begin, end, ranged)

    def _read(self, url: str, what: str, begin: int, end: int, ranged: bool) -> Part:
        for left in reversed(range(TRIES)):
            try:
                return self._once(url, what, begin, end, ranged)
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, ValueError, _Broken) as problem:
                if not left or isinstance(problem, (httpx2.ConnectError, httpx2.UnsupportedProtocol)):
                    raise self._unreachable(what, problem) from None
        raise AssertionError("the last try returns or raises")

    def _once(self, url: str, what: str, begin: int, end: int, ranged: bool) -> Part:
        headers = _headers() | ({"Range": f"bytes={begin}-{end - 1}"} if ranged else {})
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        # The session leaves the token out where it is sent on to another host.
        with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as answer:
            if answer.status_code == 416:  # the file ends before `begin`
                return Part(b"", begin)
            self._refuse(answer, what)
            first, total = self._place(answer, what, begin)
            data = self._body(answer, begin - first, min(end, end if total is None else total) - begin)
        if total is not None and len(data) < min(end, total) - begin:
            raise _Broken(f"{len(data)} of {min(end, total) - begin} bytes came")
        return Part(data, begin + len(data) if total is None and len(data) < end - begin else total)

    def _body(self, answer: httpx2.Response, skip: int, count: int) -> bytes:
        """`count` bytes after the first `skip`; the rest is never read, and the connection is closed."""
        found = bytearray()
        if count > 0:
            for chunk in answer.iter_raw():
                self._spend(len(chunk))
                found += chunk[skip:]
                skip = max(0, skip - len(chunk))
                if len(found) >= count:
                    break
        return bytes(found[: max(count, 0)])

    def _spend(self, count: int) -> None:
        with self._lock:
            self._left -= count
        if self._left < 0:
            raise self._bad(f"more than {MAX_ALL_BYTES} bytes of headers; no known model comes near, give another one")

    def _place(self, answer: httpx2.Response, what: str, begin: int) -> tuple[int, int | None]:
        """Where the answer begins in the file, and how long the file is."""
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise self._bad(f"{what}: {self.host} sends it compressed, against the request; give another HF_ENDPOINT")
        length = answer.headers.get("content-length", "")
        if answer.status_code != 206:
            return 0, int(length) if re.fullmatch(r"\d{1,18}", length) else None
        found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or int(found[1]) != begin:
            raise self._bad(f"{what}: {self.host} sends another part than asked for; give another HF_ENDPOINT")
        return begin, None if found[3] == "*" else int(found[3])

    def _refuse(self, answer: httpx2.Response, what: str) -> None:
        """ProfileError where the status is not one of success."""
        status, code = answer.status_code, answer.headers.get("x-error-code", "")
        if status in (200, 206):
            return
        page, log_in = f"https://{self.host}/{self.name.repository}", "log in with: hf auth login (or set HF_TOKEN)"
        if code == "GatedRepo" or status == 403:
            raise self._bad(f"{what}: {self.host} has it for some people only; ask at {page}, then {log_in}")
        if code == "RevisionNotFound":
            raise self._bad(f"{self.host} has no revision {self.name.at}; leave it out, or see {page}")
        if code == "EntryNotFound":
            raise self._bad(f"{what}: not in this revision; see {page}/tree/{self.name.at}")
        if status in (401, 404):
            raise self._bad(f"no such repository at {self.host}, or a private one; check the name, or {log_in}")
        if status == 429:
            raise self._bad(f"{self.host} counts too many requests; wait some minutes or {log_in}, then {_AGAIN}")
        if status >= 500:
            raise _Broken(f"status {status}")
        raise self._bad(f"{what}: {self.host} answers with status {status}; check the name and HF_ENDPOINT")

    def _bad(self, problem: str) -> ProfileError:
        return ProfileError(one_line(f"{self.name}: {problem}"))

    def _unreachable(self, what: str, problem: Exception) -> HubUnreachable:
        """A token that cannot be sent would stand in what the session says of it."""
        reason, token = str(problem) or type(problem).__name__, get_token()
        if isinstance(problem, (ValueError, httpx2.LocalProtocolError)) or (token and token in reason):
            reason, remedy = f"{type(problem).__name__} in the request", "check HF_ENDPOINT and HF_TOKEN"
        elif isinstance(problem, (_Broken, httpx2.RemoteProtocolError, httpx2.ReadTimeout, httpx2.ReadError)):
            remedy = _AGAIN
        else:
            remedy = "check the network and HF_ENDPOINT, or give a folder with its config.json"
        said = f"{what} cannot be had from {self.host}: {reason[:120]}; {remedy}"
        return HubUnreachable(one_line(f"{self.name}: {said}"))
