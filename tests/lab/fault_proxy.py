"""A proxy in front of an HTTP server that breaks the exchanges that a test names, each in one exact way.

All else passes byte for byte, the Host header too: a client signs for the host and port that it connects to, which
are the proxy's, and the server verifies what the client sent.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_PIECE = 64 << 10
_TIMEOUT_S = 60
_POLL_S = 0.02
_SIZES = {"content-length", "transfer-encoding"}


@dataclass
class Request:
    """A request as it came."""

    method: str
    path: str  # decoded, without the query
    query: str
    headers: dict[str, str]  # names in lower case
    status: int = 0  # that was sent back; 0 for nothing


class _Head(NamedTuple):
    raw: bytes
    first_line: list[str]
    headers: dict[str, str]


class _Piece(NamedTuple):
    data: bytes
    is_content: bool  # or the framing of a chunked body


Pieces = Iterator[_Piece]


class _Peer:
    """The client or the server of a connection."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(_TIMEOUT_S)
        self.socket = connected
        self._stream = connected.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_head(self) -> _Head:
        lines: list[bytes] = []
        while (line := self._read_line()) != b"\r\n":
            lines.append(line)
        fields = (line.decode("latin-1").partition(":") for line in lines[1:])
        headers = {name.lower(): value.strip() for name, _, value in fields}
        return _Head(b"".join([*lines, line]), lines[0].decode("latin-1").split(maxsplit=2), headers)

    def read_body(self, headers: dict[str, str]) -> Pieces:
        """The body in pieces as they come; without a length, until the peer closes the connection."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((line := self._read_line()).partition(b";")[0], 16):
                yield _Piece(line, False)
                yield from self._read_content(size)
                yield _Piece(self._read_line(), False)
            yield _Piece(line, False)
            while line != b"\r\n":  # trailers, and an empty line
                line = self._read_line()
                yield _Piece(line, False)
        elif "content-length" in headers:
            yield from self._read_content(int(headers["content-length"]))
        else:
            while data := self._stream.read1(_PIECE):
                yield _Piece(data, True)

    def _read_line(self) -> bytes:
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the peer closed the connection")
        return line

    def _read_content(self, size: int) -> Pieces:
        while size:
            data = self._stream.read1(min(size, _PIECE))
            if not data:
                raise ConnectionError("the peer closed the connection within a body")
            yield _Piece(data, True)
            size -= len(data)

    def wake(self) -> None:
        """End what another thread waits for."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._stream.close()
        self.socket.close()


class Exchange:
    """One request and its answer, for a fault to act on."""

    def __init__(self, client: _Peer, server: _Peer, closing: threading.Event) -> None:
        self._client, self._server, self._closing = client, server, closing
        self._head = client.read_head()
        method, target, _ = self._head.first_line
        path, _, query = target.partition("?")
        self.request = Request(method, unquote(path), query, self._head.headers)
        self.keeps_open = True
        self._expects = self._head.headers.get("expect", "").lower() == "100-continue"
        self._answer: _Head | None = None

    def forward(self) -> _Head:
        """Have the server do what is asked, and read the head of its answer."""
        self._server.send(self._head.raw)
        if self._expects:
            self._answer = self._server.read_head()
            if self._answer.first_line[1] != "100":  # refused; the client may or may not send the body now
                self.keeps_open = False
                return self._answer
            self._client.send(self._answer.raw)
        for piece in self._request_body():  # ends this exchange when the client is gone: no answer would come
            try:
                self._server.send(piece.data)
            except OSError:  # who refuses early stops reading; the answer says why
                break
        self._answer = self._server.read_head()
        while self._answer.first_line[1] == "100":  # moto sends a second one
            self._answer = self._server.read_head()
        return self._answer

    def answer(self) -> Pieces:
        """The body of the server's answer."""
        answer = self._answer or self.forward()
        if self.request.method == "HEAD" or answer.first_line[1] in ("204", "304"):
            return
        self.keeps_open &= bool(_SIZES & answer.headers.keys())
        yield from self._server.read_body(answer.headers)

    def relay(self, change: Callable[[Pieces], Pieces] = iter) -> None:
        """Send the server's answer to the client, its body as `change` makes it."""
        answer = self._answer or self.forward()
        self.keeps_open &= answer.headers.get("connection", "").lower() != "close"
        self.request.status = int(answer.first_line[1])
        self._client.send(answer.raw)
        for piece in change(self.answer()):
            self._client.send(piece.data)

    def refuse(self, status: int, body: bytes) -> None:
        """Answer in the place of the server, which does not see the request."""
        if self._expects:
            self.keeps_open = False
        else:
            for _ in self._request_body():
                pass
        self.request.status = status
        lines = [
            f"HTTP/1.1 {status} Fault",
            "Content-Type: application/xml",
            f"Connection: {'keep-alive' if self.keeps_open else 'close'}",
            f"Content-Length: {len(body)}",
        ]
        head = "".join(f"{line}\r\n" for line in [*lines, ""]).encode()
        self._client.send(head if self.request.method == "HEAD" else head + body)

    def reset(self) -> None:
        """Have the client get ECONNRESET."""
        self.keeps_open = False
        self._client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def wait(self, until: threading.Event | float) -> None:
        """Wait seconds or for an event. The end of the proxy ends the connection instead."""
        if isinstance(until, threading.Event):
            while not until.is_set() and not self._closing.wait(_POLL_S):
                pass
        else:
            self._closing.wait(until)
        if self._closing.is_set():
            raise ConnectionAbortedError

    def _request_body(self) -> Pieces:
        if _SIZES & self._head.headers.keys():
            yield from self._client.read_body(self._head.headers)


Fault = Callable[[Exchange], None]


def error(status: int, code: str) -> Fault:
    """Answer with S3's XML of an error. Status 200 is how S3 reports a copy or a completion that fails late."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
    return lambda exchange: exchange.refuse(status, body.encode())


def reset(*, after_forwarding: bool = False) -> Fault:
    """Reset the connection: before the server sees the request, or after it did what was asked."""

    def fault(exchange: Exchange) -> None:
        if after_forwarding:
            for _ in exchange.answer():
                pass
        exchange.reset()

    return fault


def truncate(size: int, *, resets: bool = False) -> Fault:
    """Send the head of the answer and `size` bytes of its body; then close the connection, or reset it."""

    def beginning(pieces: Pieces) -> Pieces:
        left = size
        for piece in pieces:
            if piece.is_content and len(piece.data) >= left:
                yield _Piece(piece.data[:left], True)
                return
            left -= len(piece.data) if piece.is_content else 0
            yield piece

    def fault(exchange: Exchange) -> None:
        exchange.relay(beginning)
        exchange.keeps_open = False
        if resets:
            exchange.reset()

    return fault


def stall(until: threading.Event | float, *, after_forwarding: bool = False) -> Fault:
    """Wait seconds or for an event, before the server sees the request or with its answer; then go on."""

    def fault(exchange: Exchange) -> None:
        if after_forwarding:
            exchange.forward()
        exchange.wait(until)
        exchange.relay()

    return fault


def corrupt(offset: int = 0) -> Fault:
    """Flip the bits of the byte at `offset` of the answer's body."""

    def flipped(pieces: Pieces) -> Pieces:
        start = 0
        for piece in pieces:
            at = offset - start
            if piece.is_content:
                start += len(piece.data)
            if piece.is_content and 0 <= at < len(piece.data):
                data = bytearray(piece.data)
                data[at] ^= 0xFF
                yield _Piece(bytes(data), True)
            else:
                yield piece

    return lambda exchange: exchange.relay(flipped)


def slow_body(size: int, until: threading.Event | float) -> Fault:
    """Send the answer's body `size` bytes at a time, and wait seconds or for an event after each time."""

    def fault(exchange: Exchange) -> None:
        def slowly(pieces: Pieces) -> Pieces:
            for piece in pieces:
                for start in range(0, len(piece.data), size):
                    yield _Piece(piece.data[start : start + size], piece.is_content)
                    exchange.wait(until)

        exchange.relay(slowly)

    return fault


@dataclass
class _Rule:
    fault: Fault
    method: str | None
    path: str | None
    query: str | None
    after: int
    times: int | None
    seen: int = 0

    def takes(self, request: Request) -> bool:
        """Whether this request is one to break; counts those that it could be."""
        if (
            self.method not in (None, request.method)
            or not re.search(self.path or "", request.path)
            or not re.search(self.query or "", request.query)
        ):
            return False
        self.seen += 1
        return self.after < self.seen and (self.times is None or self.seen <= self.after + self.times)


class FaultProxy:
    """Serves at `url`, within its `with` block, what is served at `target`."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        self._target = (parts.hostname, parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._requests: list[Request] = []
        self._serving: dict[threading.Thread, tuple[_Peer, _Peer]] = {}
        self._threads: list[threading.Thread] = []  # those of `_serving`, and of them that may not have ended
        self._accepting = threading.Thread(target=self._accept, name="fault-proxy")

    @property
    def requests(self) -> list[Request]:
        """A copy of all that came, in the order in which it came."""
        with self._lock:
            return [replace(request) for request in self._requests]

    @property
    def serving(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._serving)

    def fail(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str | None = None,
        query: str | None = None,
        after: int = 0,
        times: int | None = 1,
    ) -> None:
        """Break requests of this method whose path and query these regular expressions find something in.

        Args:
            after: how many such requests pass first.
            times: how many are broken then; None for all.
        """
        with self._lock:
            self._rules.append(_Rule(fault, method, path, query, after, times))

    def clear(self) -> None:
        """Forget all faults and all requests."""
        with self._lock:
            self._rules.clear()
            self._requests.clear()

    def __enter__(self) -> FaultProxy:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            serving = [*self._serving.values()]
        for peers in serving:
            for peer in peers:
                peer.wake()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                self._start_serving(_Peer(self._listener.accept()[0]))

    def _start_serving(self, client: _Peer) -> None:
        try:
            server = _Peer(socket.create_connection(self._target, _TIMEOUT_S))
        except OSError:  # the server is down, which is for the client to see
            client.close()
            return
        thread = threading.Thread(target=self._serve, args=[client, server], name="fault-proxy-connection")
        with self._lock:
            self._serving[thread] = (client, server)
        thread.start()
        self._threads = [*(other for other in self._threads if other.is_alive()), thread]

    def _serve(self, client: _Peer, server: _Peer) -> None:
        """Serve requests until somebody has enough."""
        with contextlib.suppress(OSError):
            keeps_open = True
            while keeps_open:
                exchange = Exchange(client, server, self._closing)
                self._choose(exchange.request)(exchange)
                keeps_open = exchange.keeps_open
        client.close()
        server.close()
        with self._lock:
            del self._serving[threading.current_thread()]

    def _choose(self, request: Request) -> Fault:
        with self._lock:
            self._requests.append(request)
            return next((rule.fault for rule in self._rules if rule.takes(request)), Exchange.relay)
