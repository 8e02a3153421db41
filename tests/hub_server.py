"""A hub on this machine for tests: the two addresses of the real one that are used, and ways to behave badly.

Files are given by path, mostly with holes in place of weights, and never read whole: so a server can hold 10 GB.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Trick = Callable[["Handler", Path], bool]
"""Answers for a file in another way; False where the usual answer is wanted after all."""


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a folder of files; what was asked for, and how many bytes of bodies were sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Path] = {}
        self.tricks: dict[str, Trick] = {}
        """By the end of the path that is asked for."""
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.sent = 0
        self.commit = COMMIT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has enough hangs up, which is what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        self.server.tokens.append(self.headers.get("Authorization"))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self.repository(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path):
            self.file(self.server.repositories[found[1]] / found[3])
        else:
            self.say(404, b"no such page")

    def repository(self, name: str, revision: str) -> None:
        folder = self.server.repositories.get(name)
        if self.tricked(folder or Path()):
            return
        if folder is None:
            self.say(401, b"Invalid username or password.", **{"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", self.server.commit):
            self.say(404, b"", **{"X-Error-Code": "RevisionNotFound"})
        else:
            files = [self.entry(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
            self.say(200, json.dumps({"id": name, "sha": self.server.commit, "siblings": files}).encode())

    def entry(self, path: Path, folder: Path) -> dict[str, Any]:
        known = {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size}
        if path.suffix in (".safetensors", ".gguf"):
            return known | {"blobId": "0" * 40, "lfs": {"sha256": "0" * 64, "size": known["size"], "pointerSize": 134}}
        data = path.read_bytes()
        return known | {"blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}

    def file(self, path: Path) -> None:
        if self.tricked(path):
            return
        if not path.is_file():
            self.say(404, b"", **{"X-Error-Code": "EntryNotFound"})
            return
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self.send(path, 200, 0, size)
        elif int(asked[1]) >= size:
            self.say(416, b"", **{"Content-Range": f"bytes */{size}"})
        else:
            self.send(path, 206, int(asked[1]), min(int(asked[2]) + 1, size))

    def tricked(self, path: Path) -> bool:
        asked = urlsplit(self.path).path
        return any(asked.endswith(end) and trick(self, path) for end, trick in self.server.tricks.items())

    def send(self, path: Path, status: int, begin: int, end: int, **headers: str) -> None:
        """Bytes `begin` to `end` of the file, as long as the client listens."""
        if status == 206:
            headers = {"Content-Range": f"bytes {begin}-{end - 1}/{path.stat().st_size}", **headers}
        self.head(status, {"Content-Length": str(end - begin), **headers})
        with path.open("rb") as file, contextlib.suppress(ConnectionError):
            file.seek(begin)
            while begin < end:
                sent = self.wfile.write(file.read(min(2**16, end - begin)))
                self.server.sent += sent
                begin += sent

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.head(status, {"Content-Length": str(len(body)), **headers})
        self.wfile.write(body)
        self.server.sent += len(body)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


# ---- tricks ----


def saying(status: int, body: bytes = b"", **headers: str) -> Trick:
    """Always this answer; `X_Error_Code` stands for X-Error-Code."""

    def trick(handler: Handler, path: Path) -> bool:
        handler.say(status, body, **{name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return trick


def whole(handler: Handler, path: Path) -> bool:
    """No ranges: always the whole file."""
    handler.send(path, 200, 0, path.stat().st_size)
    return True


def breaking_off(handler: Handler, path: Path) -> bool:
    """Half of what was promised, then the connection ends."""
    handler.head(206, {"Content-Length": "1000", "Content-Range": f"bytes 0-999/{path.stat().st_size}"})
    handler.wfile.write(path.open("rb").read(500))
    handler.close_connection = True
    return True


def redirecting(other: Hub) -> Trick:
    """To the same path of another host."""

    def trick(handler: Handler, path: Path) -> bool:
        handler.say(302, b"", Location=other.url + handler.path)
        return True

    return trick
