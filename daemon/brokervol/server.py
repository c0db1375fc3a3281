"""A WSGI application on a Unix socket: the only module that knows cheroot.

Both processes serve through it. Beyond cheroot it gives the application the connection itself
(`environ["brokervol.connection"]`), for the peer's identity and to see whether the client is still there, and
it replaces the socket file atomically, so that a restart never shows a moment without one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog
from cheroot import server as cheroot_server
from cheroot import wsgi

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = structlog.get_logger()

_LONGEST_SOCKET_PATH = 107
_LONGEST_LINE = 8192
_WAIT_FOR_DESCRIPTORS_S = 1.0


# What a malformed request is answered: from status and sentence to content type and body.
Refusal = Callable[[int, str], tuple[str, bytes]]


class _Headers(dict[bytes, bytes]):
    """Headers of a request, of which one may not be said twice."""

    def __setitem__(self, name: bytes, value: bytes) -> None:
        if name in (b"Content-Length", b"Transfer-Encoding") and name in self:
            raise ValueError(f"{name.decode()} is given twice")
        super().__setitem__(name, value)


class _ShortLines:
    """What is read from a connection, with lines (of chunk sizes and trailers) that cannot fill the memory."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.read = file.read

    def readline(self, size: int | None = None) -> bytes:
        line: bytes = self._file.readline(min(size or _LONGEST_LINE, _LONGEST_LINE))
        if len(line) == _LONGEST_LINE:
            raise ValueError("a line of the chunked body is too long")
        return line


class _Request(cheroot_server.HTTPRequest):
    """A request whose errors of HTTP itself are told in the server's own form, and whose length is certain."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.inheaders = _Headers()

    def read_request_headers(self) -> Any:
        if not super().read_request_headers():  # type: ignore[no-untyped-call]
            return False
        length = self.inheaders.get(b"Content-Length", b"0")
        if not length.isdigit() or (self.chunked_read and b"Content-Length" in self.inheaders):
            # Two readings of where a request ends are how one is smuggled behind another.
            self.simple_response("400 Bad Request", "Content-Length is not a number, or stands beside chunks")
            return False
        return True

    def respond(self) -> None:
        if not self.chunked_read:
            super().respond()
            return
        self.rfile = cheroot_server.ChunkedRFile(_ShortLines(self.conn.rfile), self.server.max_request_body_size)
        self.close_connection = True  # what is left of a body that was not read to its end is no request
        self.server.gateway(self).respond()
        self.ensure_headers_sent()
        if self.chunked_write:
            self.conn.wfile.write(b"0\r\n\r\n")

    def simple_response(self, status: str, msg: str = "") -> None:
        code = int(status[:3])
        content_type, body = self.server.refusal(code, msg or status[4:])
        self.close_connection = True
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError):  # nobody waits for it
            self.conn.wfile.write(head.encode("ascii") + body)


class Connection(cheroot_server.HTTPConnection):
    """One client's connection.

    Attributes:
        on_close: callbacks that run once, when the connection ends.
        peer: for the application to keep what it found out about the client.
    """

    RequestHandlerClass = _Request

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.on_close: list[Callable[[], None]] = []
        self.peer: Any = None
        self.has_waited = False

    def is_peer_gone(self) -> bool:
        """Whether the client has closed its side altogether, so that nobody will read an answer."""
        poll = select.poll()
        poll.register(self.socket, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def close(self) -> None:
        while self.on_close:
            self.on_close.pop()()
        super().close()


class _Gateway(wsgi.Gateway_10):
    def get_environ(self) -> Any:  # cheroot's stubs say None
        environ: dict[str, Any] = super().get_environ()  # type: ignore[no-untyped-call]
        environ["brokervol.connection"] = self.req.conn
        return environ


class UnixServer(wsgi.Server):
    """Serve `application` on the Unix socket at `path`, one thread a request.

    Args:
        path: where the socket appears, ready to accept, when `prepare()` returns.
        mode: permission bits of the socket: who may connect.
        threads: how many requests are worked on at once. Idle connections hold no thread.
        timeout_s: how long a client may be silent, in the middle of a request or between two.
        max_body_bytes: larger request bodies are answered 413.
        refusal: the answer to what is not even a request.
        accepted: called with each new connection, before anything is read from it.

    Raises:
        OSError: from `prepare()`, where the socket cannot be made.
    """

    ConnectionClass = Connection
    keep_alive_conn_limit = 1024

    def __init__(
        self,
        path: str,
        application: WSGIApplication,
        *,
        mode: int,
        threads: int,
        timeout_s: int,
        max_body_bytes: int,
        refusal: Refusal,
        accepted: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            raise OSError(f"the socket path {path} is longer than the {_LONGEST_SOCKET_PATH} bytes Linux allows")
        super().__init__(
            path,
            application,
            numthreads=threads,
            timeout=timeout_s,
            request_queue_size=1024,
            server_name="brokervol",
        )
        self.gateway = _Gateway
        self.mode = mode
        self.refusal = refusal
        self.accepted = accepted
        # The application refuses first, in its own words; this bounds what it does not read.
        self.max_request_body_size = max_body_bytes + 64 * 1024
        self.max_request_header_size = 64 * 1024

    def bind_unix_socket(self, bind_addr: Any) -> None:
        """Make the socket under a private name, listen, then rename it over the final one."""
        private = os.path.join(os.path.dirname(bind_addr), f".{os.getpid()}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(private)
            listener.bind(private)
            os.chmod(private, self.mode)
            listener.listen(self.request_queue_size)
            os.rename(private, bind_addr)
        except OSError:
            listener.close()
            raise
        self.socket = listener

    def process_conn(self, conn: Any) -> None:
        """Let a new connection wait in the selector, so that a silent client holds no thread."""
        if conn.has_waited:
            super().process_conn(conn)
        else:
            conn.has_waited = True
            self.accepted(conn)
            self.put_conn(conn)

    def prepare(self) -> None:
        """Listen. As many descriptors may be open as the system allows: each connection needs a few."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        super().prepare()

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            log.error("too many connections; waiting for some to end")
            time.sleep(_WAIT_FOR_DESCRIPTORS_S)  # the connection that waits would wake us at once, again and again
            return
        log.log(level, "http server", detail=str(msg), exc_info=traceback)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; calls in flight are finished first. Needs the main thread."""
        stopping: list[threading.Thread] = []

        def stop(*_: object) -> None:
            stopping.append(threading.Thread(target=self.stop, name="stop"))
            stopping[-1].start()

        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, stop)
        self.serve()
        self.stop()
        for thread in stopping:  # only then may the caller close what the calls in flight work with
            thread.join()
