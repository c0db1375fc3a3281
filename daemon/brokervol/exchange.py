"""One request to the sidecar and its answer. Python 3.8, standard library."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Protocol

    class Readable(Protocol):
        """Where the bytes of a new file come from."""

        def read(self, size: int, /) -> bytes:
            """The next bytes, at most `size` and at least one; none at the end."""


BLOCK_BYTES = 64 * 1024
RESTART_PATIENCE_S = 3.0
_RESTART_POLL_S = 0.05
_WIRE_ERRORS = (OSError, http.client.HTTPException, ValueError, KeyError)


class BrokerError(Exception):
    """The sidecar refused or failed, or could not be reached.

    Attributes:
        code: one of the API's codes (`missing-file`, `read-only` ...), or `unreachable` where no sidecar answers.
        status: the HTTP status; 0 where the error did not come as an answer of its own.
        title: the kind of error in a few words.
        detail: what happened, in a sentence.
        results: of a batch that stopped, what was and was not done.
    """

    def __init__(
        self, code: str, status: int, title: str, detail: str, results: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(detail or title or code)
        self.code = code
        self.status = status
        self.title = title
        self.detail = detail
        self.results = results or []


class SourceFailed(Exception):
    """The source of a body raised `error`, and the sidecar has given up what came of it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket_path: str, timeout_s: float | None, patience_s: float) -> None:
        super().__init__("broker", timeout=timeout_s)
        self._socket_path = socket_path
        self._patience_s = patience_s

    def connect(self) -> None:
        deadline = time.monotonic() + self._patience_s
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(self.timeout)
                connection.connect(self._socket_path)
            except (ConnectionRefusedError, BlockingIOError):
                connection.close()
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RESTART_POLL_S)
            except BaseException:
                connection.close()
                raise
            else:
                self.sock = connection
                return


class Exchange:
    """One request and its answer; leaving the context closes the connection. Errors become `BrokerError`."""

    def __init__(self, socket_path: str, timeout_s: float | None, patience_s: float = RESTART_PATIENCE_S) -> None:
        self._socket_path = socket_path
        self._connection = _UnixConnection(socket_path, timeout_s, patience_s)
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if self._response is not None:
            self._response.close()
        self._connection.close()
        if isinstance(error, _WIRE_ERRORS):
            raise self._cut_off(error) from error

    def ask(self, method: str, url: str, headers: Mapping[str, str], body: Any = None) -> http.client.HTTPResponse:
        """Send a request, `body` as JSON; the head of a good answer, whose bytes `blocks` reads.

        Raises:
            BrokerError: for a bad answer, and where no sidecar can be reached.
        """
        self._connect()
        sent = {"Connection": "close", **headers}
        content = None if body is None else json.dumps(body, separators=(",", ":"))
        if content is not None:
            sent["Content-Type"] = "application/json"
        # The sidecar may answer (413, say) before it has read everything: its answer tells more.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(method, url, content, sent)
        return self._answer()

    def send(self, url: str, headers: Mapping[str, str], source: Readable) -> http.client.HTTPResponse:
        """PUT what `source` gives; it is not read where the sidecar refuses beforehand.

        Raises:
            BrokerError: as `ask`.
            SourceFailed: the source raised; nothing came of it.
        """
        self._connect()
        self._connection.putrequest("PUT", url)
        chunked = {"Connection": "close", "Transfer-Encoding": "chunked", "Expect": "100-continue"}
        for name, value in {**chunked, **headers}.items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
        # The invitation stays in the socket: http.client passes over it.
        if self._connection.sock.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 100":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._send_chunks(source)
        return self._answer()

    def blocks(self) -> Iterator[bytes]:
        """The answer's body in blocks as they arrive.

        Python 3.8's `read1` neither counts down nor notices a body that ends early, hence the counting.
        """
        response = self._response
        assert response is not None, "there is no answer yet"  # noqa: S101  # a mistake of ours
        remaining = response.length
        if remaining is None and not response.chunked:
            raise http.client.IncompleteRead(b"")  # it does not say where it ends: it broke in the head
        while remaining is None or remaining > 0:
            block = response.read1(BLOCK_BYTES if remaining is None else min(BLOCK_BYTES, remaining))
            if not block:
                if remaining is not None:
                    raise http.client.IncompleteRead(b"", remaining)
                return
            if remaining is not None:
                remaining -= len(block)
            yield block

    def lines(self) -> Iterator[bytes]:
        rest = b""
        for block in self.blocks():
            *lines, rest = (rest + block).split(b"\n")
            yield from filter(None, lines)
        if rest.strip():
            yield rest

    def _send_chunks(self, source: Readable) -> None:
        while True:
            try:
                block = source.read(BLOCK_BYTES)
            except Exception as error:
                self._give_up()
                raise SourceFailed(error) from error
            self._connection.send(b"%x\r\n%s\r\n" % (len(block), block))
            if not block:
                return

    def _give_up(self) -> None:
        """End the body before its end, and wait until the sidecar has cleared away what came of it."""
        with contextlib.suppress(*_WIRE_ERRORS):
            self._connection.sock.shutdown(socket.SHUT_WR)
            self._connection.getresponse().close()

    def _connect(self) -> None:
        try:
            self._connection.connect()
        except OSError as error:
            raise self._unreachable(error) from error

    def _answer(self) -> http.client.HTTPResponse:
        response = self._response = self._connection.getresponse()
        if response.status >= 400:
            raise _problem(response.status, response.reason, b"".join(self.blocks()))
        return response

    def _unreachable(self, error: OSError) -> BrokerError:
        if error.errno in (errno.EACCES, errno.EPERM):
            code, title = "permission-denied", "Permission denied"
        else:
            code, title = "unreachable", "Sidecar unreachable"
        reason = (error.strerror or str(error)).lower()
        if error.errno == errno.ENOENT:
            reason += "; mount a volume of type=sidecar in this container, or name its socket by --socket"
        return BrokerError(code, 0, title, f"no sidecar can be reached at {self._socket_path}: {reason}")

    def _cut_off(self, error: BaseException) -> BrokerError:
        reason = getattr(error, "strerror", None) or str(error) or "it closed the connection"
        if isinstance(error, http.client.HTTPException):
            reason = "it closed the connection"
        detail = f"the sidecar at {self._socket_path} broke off its answer: {reason.lower()}"
        return BrokerError("unreachable", 0, "Answer broken off", detail)


def _problem(status: int, reason: str, body: bytes) -> BrokerError:
    """The error in a problem+json document, or what can be said of an answer that is none."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return BrokerError("internal-error", status, reason, f"the sidecar answered {status} {reason}")
    title = str(document.get("title", reason))
    detail = str(document.get("detail") or title)
    return BrokerError(str(document.get("code", "internal-error")), status, title, detail, document.get("results"))
