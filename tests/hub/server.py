"""A Hub on this machine: HTTP as the Hub speaks it, for its real client, with failures on demand.

    with LoopbackHub(folder) as hub:
        HfApi(endpoint=hub.url, token="hf_alice").create_repo("alice/model")

Known are `alice`, who writes for the organisation `lab` and reads `club`, and `bob`; `reader` is a
token of alice that may only read. What is asked and sent is counted in points: one when a request
comes, one for each 64 kB of a body, one before it is answered. `at_point` is called with their
number and may raise `CutError`, which drops the connection; while `down`, all are dropped.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from .routes import ROUTES
from .store import RefusedError, Store

PIECE = 65536


class CutError(Exception):
    """The connection is to be dropped without an answer."""


@dataclass
class Fault:
    """An answer in place of the right one, for requests `METHOD /path` that match a pattern."""

    pattern: str
    status: int
    times: int = 10**9
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "no"
    code: str | None = None


@dataclass(frozen=True)
class User:
    """Whom a token stands for: the name, whether it may write, and roles in organisations."""

    name: str
    role: str = "write"
    organisations: dict[str, str] = field(default_factory=dict)


USERS = {
    "hf_alice": User("alice", organisations={"lab": "write", "club": "read"}),
    "hf_reader": User("alice", "read", {"lab": "write"}),
    "hf_bob": User("bob"),
}


class LoopbackHub:
    """The server; as a context manager it ends with the block.

    Attributes:
        store: what it holds.
        requests: every `METHOD /path` so far.
        sent: bytes of large objects that clients sent.
        part_size: objects larger than this come in several parts.
        errors: mistakes of its own.
        xet: where large objects go instead, a URL that hf_xet understands; None: they come here.
    """

    def __init__(self, folder: Path):
        self.store = Store(folder)
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.points = self.sent = 0
        self.down = False
        self.at_point: Callable[[int], None] = lambda point: None
        self.part_size = 10**9
        self.xet: str | None = None
        self.errors: list[BaseException | None] = []
        self.gate: dict[str, set[str]] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, pattern: str) -> list[str]:
        """The requests so far that match."""
        return [request for request in self.requests if re.search(pattern, request)]

    def calm(self) -> None:
        """No more failures, and nothing counted."""
        self.faults.clear()
        self.requests.clear()
        self.points = self.sent = 0
        self.down = False
        self.at_point = lambda point: None

    def point(self) -> None:
        """Something has happened."""
        with self._lock:
            self.points += 1
            number = self.points
        self.at_point(number)
        if self.down:
            raise CutError


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: LoopbackHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed leave broken connections, which is as it should be."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.hub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go apart, and would wait for each other
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    @property
    def hub(self) -> LoopbackHub:
        """Whose request this is."""
        return self.server.hub

    def _serve(self) -> None:
        hub, parts = self.hub, urlsplit(self.path)
        self.parts, self.query = parts, {k: v[0] for k, v in parse_qs(parts.query).items()}
        asked = f"{self.command} {parts.path}"
        self._was_read = False
        try:
            hub.requests.append(asked)
            hub.point()
            self.user = self._user()
            self._refuse_by_fault(asked)
            self._dispatch(asked)
        except CutError:
            self._drop()
        except RefusedError as error:
            self._refuse(error)
        except (BrokenPipeError, ConnectionResetError):
            self._drop()

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _user(self) -> User | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise RefusedError(401, None, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def _refuse_by_fault(self, asked: str) -> None:
        for fault in self.hub.faults:
            if fault.times > 0 and re.search(fault.pattern, asked):
                fault.times -= 1
                self._extra = fault.headers
                raise RefusedError(fault.status, fault.code, fault.message)
        self._extra = {}

    def _dispatch(self, asked: str) -> None:
        for pattern, route in ROUTES:
            found = re.fullmatch(pattern, asked)
            if found:
                told = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
                route(self, **told)
                return
        raise RefusedError(404, None, f"this Hub does not know {asked}")

    def body(self, into: Callable[[bytes], object] | None = None) -> bytes:
        """What the client sends, in pieces into a function, or at once."""
        self._was_read = True
        pieces: list[bytes] = []
        take = into or pieces.append
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                take(self.rfile.read(size))
                self.rfile.readline()
                self.hub.point()
            self.rfile.readline()
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(left, PIECE))
            if not piece:
                raise CutError
            left -= len(piece)
            take(piece)
            self.hub.point()
        return b"".join(pieces)

    def json(self) -> Any:
        """What the client sends, as JSON."""
        return json.loads(self.body() or b"{}")

    def answer(
        self,
        content: Any = None,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send JSON, or bytes."""
        if not self._was_read:
            self.body()
        self.hub.point()
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        told = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
        self.send_response(status)
        for name, value in (told | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _refuse(self, error: RefusedError) -> None:
        headers = {"X-Error-Message": error.message, **getattr(self, "_extra", {})}
        if error.code:
            headers["X-Error-Code"] = error.code
        try:
            self.answer({"error": error.message}, error.status, headers)
        except (CutError, OSError):
            self._drop()

    def _drop(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
