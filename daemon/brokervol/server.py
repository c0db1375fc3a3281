"""A WSGI application on a socket: the only module that knows cheroot.

Both processes serve through it. cheroot parses requests and calls the application; which connections there are,
and whose turn it is, `reception` decides. Beyond WSGI the application is given the connection itself
(`environ["brokervol.connection"]`), for the peer's identity and to see whether the client is still there. The
socket file is replaced atomically, so that a restart never shows a moment without one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import resource
import select
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Hashable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Required, TypedDict, Unpack

import structlog
from cheroot import server as cheroot_server
from cheroot import wsgi

from brokervol.reception import Client, Limits, Load, Reception
from brokervol.seldom import seldom
from brokervol.streams import (
    BLOCK_BYTES,
    MAX_HEAD_BYTES,
    Answer,
    AnswerNotRead,
    Body,
    BodyFailed,
    ClientGone,
    Pace,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["BodyFailed", "Connection", "Limits", "Load", "Refusal", "TcpServer", "UnixServer"]

log = structlog.get_logger()

RETRY_AFTER_S = 1

# A path of the longest kind, of bytes that are escaped twice in a cursor, has to have room in the first line.
MAX_REQUEST_LINE_BYTES = 40 * 1024
MAX_HEADER_BYTES = 8 * 1024
MAX_HEADERS = 100

_LONGEST_SOCKET_PATH = 107
_BACKLOG = 1024
_UNREAD_S = 1.0
_UNREAD_BYTES = 16 * 1024 * 1024
_EXIT_CUT_OFF = 1

_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00\r\n]*)\r\n")
_LENGTH = re.compile(rb"[0-9]{1,18}")
# Most request lines; all others are read by cheroot.
_PLAIN_LINE = re.compile(rb"(GET|PUT|POST|HEAD) ((/[\w.~/-]*)(?:\?([\w.~/=&-]*))?) HTTP/1\.1\r\n", re.ASCII)
_BODILESS = frozenset((204, 205, 304))
# What stands twice in a request says two things.
_SINGLE = frozenset(
    (b"Content-Length", b"Transfer-Encoding", b"Host", b"Content-Type", b"Range", b"Expect", b"Idempotency-Key")
)

# What is refused before the application sees it: from status and sentence to content type and body.
Refusal = Callable[[int, str], tuple[str, bytes]]


class _Request(cheroot_server.HTTPRequest):
    """A request whose errors of HTTP itself are told in the server's own form, and whose length is certain."""

    def __init__(self, server: _Server, connection: Connection) -> None:
        super().__init__(server, connection)
        self.header_reader = self._read_headers
        self.body: Body | None = None
        self._expectation = b""

    def parse_request(self) -> None:
        head = self.conn.stream.take_head()
        too_long = _too_long(head)
        if too_long is not None:
            self.refuse(*too_long)
            return
        self.rfile = io.BytesIO(head)
        try:
            has_line = self._read_plain_line() or self.read_request_line()  # type: ignore[no-untyped-call]
        except ValueError:  # of a target like `//[x`, which cheroot takes apart as a URL
            self.refuse(400, "the request line has no valid target")
            return
        self.ready = has_line and self.read_request_headers()

    def _read_plain_line(self) -> bool:
        """Read a request line in which there is nothing to decode or to refuse; returns whether it is one."""
        line = _PLAIN_LINE.match(self.rfile.getbuffer())
        if line is None or line[3].startswith(b"//"):  # which could be the name of a server
            return False
        self.rfile.seek(line.end())
        self.started_request = True
        self.method, self.uri, self.path, self.qs = line[1], line[2], line[3], line[4] or b""
        self.authority = b""
        self.request_protocol, self.response_protocol = b"HTTP/1.1", "HTTP/1.1"
        return True

    def read_request_headers(self) -> bool:
        if not super().read_request_headers():  # type: ignore[no-untyped-call]
            return False
        if self._expectation not in (b"", b"100-continue"):
            self.refuse(417, "the only expectation accepted is 100-continue")
            return False
        length = self.inheaders.get(b"Content-Length")
        coding = self.inheaders.get(b"Transfer-Encoding")
        # Two readings of where a request ends are how one is smuggled behind another.
        if length is not None and (coding is not None or _LENGTH.fullmatch(length) is None):
            self.refuse(400, "Content-Length is not a number, or stands beside chunks")
            return False
        if coding is not None and (coding.lower() != b"chunked" or not self.chunked_read):
            self.refuse(400, "the only Transfer-Encoding is chunked, once, and of HTTP/1.1")
            return False
        return True

    def _read_headers(self, lines: io.BytesIO, headers: dict[bytes, bytes]) -> None:
        for line in iter(lines.readline, b"\r\n"):
            header = _HEADER.fullmatch(line)
            if header is None:
                raise ValueError("a header is not a name, a colon and a value in one line that ends with CR LF")
            name, value = header[1].title(), header[2].strip(b" \t")
            if b"_" in name:  # which an application could not tell from one with a hyphen
                continue
            if name in headers and name in _SINGLE:
                raise ValueError(f"{name.decode()} is given twice")
            headers[name] = headers[name] + b", " + value if name in headers else value
        self._expectation = headers.pop(b"Expect", b"").lower()

    def respond(self) -> None:
        limits = self.server.limits
        pace = Pace(self.conn.socket, select.POLLIN, limits.client_s, limits.client_bytes_per_s)
        length = None if self.chunked_read else int(self.inheaders.get(b"Content-Length", 0))
        self.body = Body(self.conn.stream, length, pace, self._continue)
        self.rfile = io.BytesIO() if length == 0 else io.BufferedReader(self.body, BLOCK_BYTES)
        self.server.gateway(self).respond()
        self.conn.wfile.write(b"0\r\n\r\n" if self.chunked_write else b"")
        if not self.body.is_complete:
            self.close_connection = True

    def ensure_headers_sent(self) -> None:
        """The answer begins. What the application made of half a body is not sent."""
        if not self.sent_headers and self.body is not None:
            if self.body.failure is not None:
                raise self.body.failure
            if not self.body.skip():
                self.close_connection = True
        super().ensure_headers_sent()

    def send_headers(self) -> None:
        """As cheroot's, for the servers and clients that there are here."""
        given = {name.lower() for name, _ in self.outheaders}
        status = int(self.status[:3])
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            self.close_connection = True
        elif b"content-length" not in given and status not in _BODILESS:
            self.chunked_write = self.response_protocol == "HTTP/1.1" and self.method != b"HEAD"
            self.close_connection |= not self.chunked_write
        self.close_connection |= not self.server.can_add_keepalive_connection
        lines = [b"%b: %b\r\n" % header for header in self.outheaders]
        if self.chunked_write:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        if b"connection" not in given:
            lines.append(self._connection_line())
        lines.append(_standing(int(time.time())))
        status_line: Any = self.status  # cheroot's stubs say text, it gives bytes
        self.conn.wfile.keep(b"HTTP/1.1 " + status_line + b"\r\n" + b"".join(lines))

    def _connection_line(self) -> bytes:
        if self.response_protocol == "HTTP/1.1":
            return b"Connection: close\r\n" if self.close_connection else b""
        if self.close_connection:
            return b""
        return b"Connection: Keep-Alive\r\nKeep-Alive: timeout=%d\r\n" % self.server.timeout

    def _continue(self) -> None:
        if self._expectation and self.response_protocol == "HTTP/1.1" and not self.sent_headers:
            self.conn.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def simple_response(self, status: str, msg: str = "") -> None:
        self.refuse(int(status[:3]), msg or status[4:])

    def refuse(self, status: int, sentence: str) -> None:
        """Answer in the application's place, if it has not begun to, and end the connection."""
        self.close_connection = True
        if not self.sent_headers:
            self.sent_headers = True
            with contextlib.suppress(ClientGone):
                self.conn.wfile.write(self.server.refusal_bytes(status, sentence))


def _too_long(head: bytes) -> tuple[int, str] | None:
    """Status and sentence for a head that is too long."""
    first, _, headers = head.partition(b"\n")
    if len(first) > MAX_REQUEST_LINE_BYTES:
        return 414, f"the request line is longer than {MAX_REQUEST_LINE_BYTES} bytes"
    lines = headers.split(b"\n")
    if max(map(len, lines)) > MAX_HEADER_BYTES:
        return 431, f"a header is longer than {MAX_HEADER_BYTES} bytes"
    if len(head) > MAX_HEAD_BYTES or len(lines) > MAX_HEADERS:
        return 431, f"the headers are more than {MAX_HEADERS}, or with the request line {MAX_HEAD_BYTES} bytes"
    return None


class Connection(Client, cheroot_server.HTTPConnection):
    """One client's connection.

    Attributes:
        on_close: callbacks that run once, when the connection ends.
        peer: for the application to keep what it found out about the client.
    """

    def __init__(self, server: _Server, accepted: socket.socket) -> None:
        Client.__init__(self, accepted)  # cheroot's would read and write in its own way
        self.server = server
        self.on_close: list[Callable[[], None]] = []
        self.peer: Any = None

    def communicate(self) -> bool:
        limits = self.server.limits
        pace = Pace(self.socket, select.POLLOUT, limits.client_s, limits.client_bytes_per_s)
        self.wfile = Answer(self.socket, pace)
        request = _Request(self.server, self)
        try:
            request.parse_request()
            if request.ready:
                request.respond()
            else:
                self.server.refused("malformed")
        except BodyFailed as failure:
            request.refuse(failure.status, str(failure))
            if failure.status == HTTPStatus.REQUEST_TIMEOUT:
                seldom.warning("a request's body came too slowly", caller=self.caller)
                self.server.refused("body")
                return False
        except ClientGone as gone:
            if isinstance(gone, AnswerNotRead):
                seldom.warning("an answer was read too slowly", caller=self.caller)
                self.server.refused("answer")
            return False
        except Exception:
            log.exception("a request failed")
            request.refuse(500, "the server failed; its log says why")
        if request.ready and not request.close_connection:
            return True
        if request.body is None or not request.body.is_complete:
            self.stream.discard(_UNREAD_S, _UNREAD_BYTES)
        return False

    def close(self) -> None:
        while self.on_close:
            self.on_close.pop()()
        super().close()


class _Gateway(wsgi.Gateway_10):
    """Calls the application, and sees to it that an answer is as long as it says."""

    def get_environ(self) -> Any:  # cheroot's stubs say None
        request = self.req
        environ: dict[str, Any] = {
            "REQUEST_METHOD": request.method.decode("latin-1"),
            "REQUEST_URI": request.uri.decode("latin-1"),
            "SCRIPT_NAME": "",
            "PATH_INFO": request.path.decode("latin-1"),
            "QUERY_STRING": request.qs.decode("latin-1"),
            "SERVER_NAME": "brokervol",
            "SERVER_PORT": "",
            "SERVER_PROTOCOL": request.request_protocol.decode("latin-1"),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": request.rfile,
            "wsgi.input_terminated": True,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "brokervol.connection": request.conn,
        }
        for name, value in request.inheaders.items():
            environ[_variable(name)] = value.decode("latin-1")
        return environ

    def respond(self) -> None:
        response = self.req.server.wsgi_app(self.env, self.start_response)
        try:
            for chunk in filter(None, response):
                self.write(chunk)
            self.req.ensure_headers_sent()
        finally:
            if hasattr(response, "close"):
                response.close()
        if self.remaining_bytes_out and self.req.method != b"HEAD":
            self.req.close_connection = True  # whatever was said: the client must not wait for the rest

    def write(self, chunk: bytes) -> None:
        if self.remaining_bytes_out is not None:
            self.remaining_bytes_out -= len(chunk)
            if self.remaining_bytes_out < 0:
                raise ValueError("the answer is longer than its Content-Length says")
        self.req.ensure_headers_sent()
        self.req.write(chunk)


class _Options(TypedDict, total=False):
    """Of a server."""

    limits: Required[Limits]
    refusal: Required[Refusal]
    accepted: Callable[[Connection], None]
    caller: Callable[[Connection], Hashable]


class _Server(cheroot_server.HTTPServer):
    """Serve `application`, one thread a request.

    Request bodies may be of any length; how much of one is accepted is for the application to say.

    Args:
        name: of the place where it listens.
        limits: what is granted to clients.
        refusal: the answer to what the application does not see: what is no request, too much, or too slow.
        accepted: called with each new connection, before anything is read from it.
        caller: whom such a connection counts for in the limits per caller; None for nobody.
    """

    gateway = _Gateway
    software = "brokervol"

    def __init__(
        self,
        name: str,
        application: WSGIApplication,
        *,
        limits: Limits,
        refusal: Refusal,
        accepted: Callable[[Connection], None] = lambda _: None,
        caller: Callable[[Connection], Hashable] = lambda _: None,
    ) -> None:
        super().__init__(name, _Gateway, server_name="brokervol")
        self.wsgi_app = application
        self.limits = limits
        self.timeout = int(limits.idle_s)  # as Keep-Alive tells it
        self._refusal = refusal
        self._accepted = accepted
        self._caller = caller
        self._reception: Reception | None = None

    def _listening(self) -> socket.socket:
        """The socket, which listens."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Listen. As many descriptors may be open as the system allows: each connection needs a few.

        Raises:
            OSError: that is not possible.
        """
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._reception = Reception(self._listening(), self.limits, self._connect, self.refusal_bytes)

    def load(self) -> Load:
        """What there is to do now."""
        return self._prepared().load()

    def refused(self, kind: str) -> None:
        """Count what was refused to a request that is worked on; see `Refusals`."""
        self._prepared().refusals.add(kind)

    def run_beside(self) -> None:
        """Serve in a thread of its own, which ends with the process, without finishing anything."""
        threading.Thread(target=self._prepared().run, name=f"server-{self.bind_addr}", daemon=True).start()

    def run(self, ending: Callable[[], object] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT; calls in flight are finished first. Needs the main thread.

        Calls that do not end in `drain_s` are cut off: the process ends at once then, since what they work with
        cannot be closed under them. `ending` is called before: it may have them end earlier, and must not wait.
        """
        reception = self._prepared()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda *_: reception.stop())
        if not reception.run(ending):
            log.error("calls in flight did not end, and are cut off", waited_s=self.limits.drain_s)
            os._exit(_EXIT_CUT_OFF)

    @property
    def can_add_keepalive_connection(self) -> bool:
        """Whether a connection may go on after the answer that is being made; cheroot asks."""
        return not self._prepared().is_stopping

    def refusal_bytes(self, status: int, sentence: str) -> bytes:
        """The answer to what the application does not see."""
        content_type, body = self._refusal(status, sentence)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}\r\n"
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            head += f"Retry-After: {RETRY_AFTER_S}\r\n"
        return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode("ascii") + body

    def _connect(self, accepted: socket.socket) -> Connection:
        connection = Connection(self, accepted)
        self._accepted(connection)
        connection.caller = self._caller(connection)
        return connection

    def _prepared(self) -> Reception:
        if self._reception is None:
            raise RuntimeError("the server does not listen yet")
        return self._reception


class UnixServer(_Server):
    """On the Unix socket at `path`, which appears there, ready to accept, when `prepare()` returns.

    Args:
        mode: permission bits of the socket: who may connect.

    Raises:
        OSError: the path is too long.
    """

    def __init__(self, path: str, application: WSGIApplication, *, mode: int, **options: Unpack[_Options]) -> None:
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            raise OSError(f"the socket path {path} is longer than the {_LONGEST_SOCKET_PATH} bytes Linux allows")
        super().__init__(path, application, **options)
        self._path, self._mode = path, mode

    def _listening(self) -> socket.socket:
        return _listening(self._path, self._mode)


class TcpServer(_Server):
    """On a port of an address.

    Attributes:
        port: the port; where 0 was asked for, `prepare()` finds one.
    """

    def __init__(self, host: str, port: int, application: WSGIApplication, **options: Unpack[_Options]) -> None:
        super().__init__(f"{host} port {port}", application, **options)
        self._host, self.port = host, port

    def _listening(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self.port), family=family, backlog=_BACKLOG)
        self.port = listener.getsockname()[1]
        return listener


@functools.lru_cache(maxsize=256)
def _variable(header: bytes) -> str:
    """What WSGI calls a header."""
    name = header.decode("latin-1").upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


@functools.lru_cache(maxsize=1)
def _standing(now_s: int) -> bytes:
    """The headers that every answer has, and the end of its head."""
    return f"Date: {formatdate(now_s, usegmt=True)}\r\nServer: brokervol\r\n\r\n".encode("ascii")


def _listening(path: str, mode: int) -> socket.socket:
    """Make the socket under a private name, listen, then rename it over the final one."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is no socket; name another path", path)
    private = os.path.join(os.path.dirname(path), f".{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(private)
        listener.bind(private)
        os.chmod(private, mode)
        listener.listen(_BACKLOG)
        os.rename(private, path)
    except OSError:
        listener.close()
        raise
    return listener
