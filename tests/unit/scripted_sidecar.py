"""A sidecar that says exactly what a test tells it to, over a real Unix socket.

Only for what the real one does not do when asked: break off, stall, answer nonsense.
"""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What the client sent."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any


Script = Callable[[Request, Callable[[bytes], object]], None]


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = False  # closing the server waits for its threads: none outlives its test
    script: Script
    requests: list[Request]


class _Exchange(BaseHTTPRequestHandler):
    server: _Server

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = json.loads(self.rfile.read(length)) if length else None
        request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        self.server.requests.append(request)
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.server.script(request, self.wfile.write)

    do_GET = do_HEAD = do_POST = handle_any  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def scripted_sidecar(path: str, script: Script) -> Iterator[list[Request]]:
    """Serve `script` on the socket at `path`; yields the requests as they come."""
    with _Server(path, _Exchange) as server:
        server.script, server.requests = script, []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.requests
        finally:
            server.shutdown()
            thread.join()


def answer(document: object, status: str = "200 OK", kind: str = "application/json") -> bytes:
    """A whole answer."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(content: bytes) -> bytes:
    """A piece of a chunked answer; an empty one ends it."""
    return b"%x\r\n%s\r\n" % (len(content), content)


def lines(*items: object) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)
