"""Clients that are not polite: slow, greedy, many, as different users. One process plays them all."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import http.client
import io
import platform
import socket
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from lab.processes import wait_until
from lab.unix_http import Answer, UnixConnection, connected

_SETRESUID = {"x86_64": 117, "aarch64": 147}

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n"


def connected_as(path: str, uid: int) -> socket.socket:
    """A connection whose peer is that user, as far as the server can see. Needs root."""

    def connect() -> socket.socket:
        # The system call itself: it changes this thread alone, which ends with the call.
        no_change, user = ctypes.c_long(-1), ctypes.c_long(uid)
        ctypes.CDLL(None).syscall(_SETRESUID[platform.machine()], no_change, user, no_change)
        return connected(path)

    with ThreadPoolExecutor(1) as one_thread:
        return one_thread.submit(connect).result()


class _Kept(io.BufferedReader):
    """What is received on a connection; an answer that is read to its end does not close it."""

    def close(self) -> None:
        pass


class Client:
    """One connection, used byte by byte. A context manager."""

    def __init__(self, path: str, uid: int | None = None) -> None:
        self.socket = connected(path) if uid is None else connected_as(path, uid)
        self._received = _Kept(socket.SocketIO(self.socket, "r"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._received.detach()
        self.socket.close()

    def send(self, *parts: bytes) -> Self:
        self.socket.sendall(b"".join(parts))
        return self

    def answer(self, method: str = "GET") -> Answer:
        """The next answer, read to its end."""
        response = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]
        response.begin()
        return Answer(response.status, response.headers, response.read())

    def makefile(self, *_: object) -> _Kept:
        """What HTTPResponse reads from: one for all answers, since it may hold some of the next."""
        return self._received

    def wait_until_taken(self) -> None:
        """Wait until the server has taken all that was sent."""
        unread = array.array("i", [1])

        def is_taken() -> bool:
            fcntl.ioctl(self.socket, termios.TIOCOUTQ, unread)
            return unread[0] == 0

        wait_until(is_taken, "the server to take what was sent")


class Occupant(Client):
    """A request that keeps a thread of the server until its body comes: `leave` sends it."""

    BODY = b'{"broker":{"type":"host","host_path":"/"}}'

    def __init__(self, path: str, uid: int | None = None) -> None:
        super().__init__(path, uid)
        self.send(b"POST /v1/validate HTTP/1.1\r\nHost: b\r\nContent-Length: %d\r\n\r\n" % len(self.BODY))
        self.wait_until_taken()

    def leave(self) -> Answer:
        return self.send(self.BODY).answer()


@contextlib.contextmanager
def trickling(clients: list[Client], interval_s: float = 0.05) -> Iterator[None]:
    """While open, each client sends a byte of a header in every interval."""
    stopped = threading.Event()

    def trickle() -> None:
        while not stopped.wait(interval_s):
            for client in clients:
                with contextlib.suppress(OSError):
                    client.socket.send(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def timed(path: str, target: str, uid: int | None = None) -> float:
    """The seconds that one small request takes, on a connection of its own; its status must be 200."""
    connection = UnixConnection(path)
    connection.sock = connected(path) if uid is None else connected_as(path, uid)
    try:
        began = time.monotonic()
        connection.request("GET", target)
        response = connection.getresponse()
        response.read()
        took = time.monotonic() - began
    finally:
        connection.close()
    assert response.status == 200
    return took


def p99(samples: list[float]) -> float:
    return sorted(samples)[int(len(samples) * 0.99)]
