"""HTTP over a Unix socket: by the standard library, and byte by byte."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from typing import Any, NamedTuple


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def without_request(problem: str) -> str:
    """A problem's text without the id of its request, which is another each time."""
    return re.sub("request:[0-9a-f]{16}", "request:", problem)


class UnixConnection(http.client.HTTPConnection):
    """A connection to the server on the Unix socket `path`."""

    def __init__(self, path: str, timeout_s: float = 60) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = connected(self._path, self.timeout or 60)


def connected(path: str, timeout_s: float = 60) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout_s)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def request(socket_path: str, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request on a connection of its own."""
    connection = UnixConnection(socket_path)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def exchange(socket_path: str, sent: bytes) -> bytes:
    """Send exactly these bytes, end the sending side, and return everything that comes back."""
    with connected(socket_path) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):  # the server closed with some of `sent` unread
            while part := connection.recv(65536):
                received += part
        return received
