"""A client of the sidecar's HTTP API. It needs the standard library of Python 3.8 or later and nothing else.

    client = Client("/run/brokervol/broker.sock")
    for file in client.files("imagery", prefix="2026/", recursive=True):
        print(file.file, file.size)

Nothing is retried: a request that failed may have been done. Only a refused *connection* is tried again for a
moment, for that is a sidecar being restarted and no request was sent.

Names and paths are strings as `os.fsdecode` makes them: a name that is not UTF-8 holds lone surrogates.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import itertools
import json
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHUNK_ITEMS = 500
_BLOCK_BYTES = 64 * 1024
_PAGE_RECORDS = 1000
_RESTART_PATIENCE_S = 3.0
_RESTART_POLL_S = 0.05
_NDJSON = "application/x-ndjson"


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


class FileDetails(NamedTuple):
    """A file of a workspace: its path in the workspace, and its size in bytes."""

    file: str
    size: int


class Client:
    """The operations of the sidecar that listens at `socket_path`; each call is a connection of its own.

    Every method raises `BrokerError`. The iterators hold one item at a time, and close their connection when
    they end or are closed. An item of a batch that fails is a result with `status` "failed" and `error`;
    `on_error="stop"` ends the batch there, `"continue"` goes on with the next item.
    """

    def __init__(self, socket_path: str, *, timeout_s: float | None = None) -> None:
        self.socket_path = socket_path
        self.timeout_s = timeout_s

    def workspaces(self) -> list[dict[str, Any]]:
        """The workspaces that this process may use."""
        return list(self._object("GET", "/v1/workspaces")["workspaces"])

    def workspace(self, name: str) -> dict[str, Any]:
        """One workspace, with its `health`."""
        return self._object("GET", _workspace_url(name))

    def files(self, workspace: str, prefix: str = "", recursive: bool = False) -> Iterator[FileDetails]:
        """The files whose path begins with `prefix`: those one level deep, or all of them."""
        url = _workspace_url(workspace, "files", prefix=prefix, recursive="true" if recursive else "false")
        for item in self._lines("GET", url, None):
            yield FileDetails(item["file"], item["size"])

    def download(
        self,
        workspace: str,
        items: Iterable[dict[str, Any]],
        *,
        on_error: str = "stop",
        overwrite: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Bring files to local paths: items of `file_path`, `local_path` and, if wished, `partial`."""
        return self._batch(workspace, "download", items, on_error=on_error, overwrite=overwrite)

    def upload(
        self,
        workspace: str,
        items: Iterable[dict[str, Any]],
        *,
        on_error: str = "stop",
        overwrite: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Store local files: items of `local_path`, `file_path` and, if wished, `media_type`."""
        return self._batch(workspace, "upload", items, on_error=on_error, overwrite=overwrite)

    def move(
        self,
        workspace: str,
        items: Iterable[dict[str, Any]],
        *,
        on_error: str = "stop",
        overwrite: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Rename files within the workspace: items of `file_path` and `new_path`."""
        return self._batch(workspace, "move", items, on_error=on_error, overwrite=overwrite)

    def delete(
        self, workspace: str, items: Iterable[dict[str, Any]], *, on_error: str = "stop"
    ) -> Iterator[dict[str, Any]]:
        """Delete files: items of `file_path`. A file that is gone already counts as done."""
        return self._batch(workspace, "delete", items, on_error=on_error)

    def paths(self, workspace: str, files: Iterable[str]) -> list[str] | None:
        """Where this process sees the files in its own file system; None where the broker mounts nothing."""
        body = {"files": [{"file_path": path} for path in files]}
        paths: list[str] | None = self._object("POST", _workspace_url(workspace, "paths"), body)["paths"]
        return paths

    def catalog(
        self, workspace: str, file_path: str | None = None, is_deleted: bool | None = None
    ) -> Iterator[dict[str, Any]]:
        """The records of files, of one path and of one state where these are given."""
        query = {"limit": str(_PAGE_RECORDS)}
        if file_path is not None:
            query["file_path"] = file_path
        if is_deleted is not None:
            query["is_deleted"] = "true" if is_deleted else "false"
        while True:
            page = self._object("GET", _workspace_url(workspace, "catalog", **query))
            yield from page["files"]
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    def _batch(
        self, workspace: str, verb: str, items: Iterable[dict[str, Any]], **options: Any
    ) -> Iterator[dict[str, Any]]:
        url = _workspace_url(workspace, verb)
        remaining = iter(items)
        for chunk in iter(lambda: list(itertools.islice(remaining, CHUNK_ITEMS)), []):
            has_failed = False
            for result in self._lines("POST", url, {"files": chunk, **options}):
                has_failed = has_failed or result["status"] == "failed"
                yield result
            if has_failed and options["on_error"] == "stop":
                return

    def _object(self, method: str, url: str, body: Any = None) -> dict[str, Any]:
        with _Exchange(self.socket_path, self.timeout_s) as exchange:
            document = json.loads(b"".join(exchange.blocks(method, url, body, "application/json")))
            return dict(document)

    def _lines(self, method: str, url: str, body: Any) -> Iterator[dict[str, Any]]:
        """The answer's lines; one that says {"error"} is how the server tells that the stream broke."""
        with _Exchange(self.socket_path, self.timeout_s) as exchange:
            for line in _split_lines(exchange.blocks(method, url, body, _NDJSON)):
                item = json.loads(line)
                if isinstance(item, dict) and "error" in item and "status" not in item:
                    error = item["error"]
                    raise BrokerError(error.get("code", "internal-error"), 0, "", error.get("detail", ""))
                yield item


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket_path: str, timeout_s: float | None) -> None:
        super().__init__("broker", timeout=timeout_s)
        self._socket_path = socket_path

    def connect(self) -> None:
        deadline = time.monotonic() + _RESTART_PATIENCE_S
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
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
                connection.settimeout(self.timeout)
                self.sock = connection
                return


class _Exchange:
    """One request and its answer; leaving the context closes the connection. Errors become `BrokerError`."""

    def __init__(self, socket_path: str, timeout_s: float | None) -> None:
        self._socket_path = socket_path
        self._connection = _UnixConnection(socket_path, timeout_s)

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._connection.close()
        if isinstance(error, (OSError, http.client.HTTPException, ValueError, KeyError)):
            raise self._cut_off(error) from error

    def blocks(self, method: str, url: str, body: Any, accept: str) -> Iterator[bytes]:
        """Send the request and yield the body of a good answer.

        Raises:
            BrokerError: for a bad answer, and where no sidecar can be reached.
        """
        try:
            self._connection.connect()
        except OSError as error:
            raise self._unreachable(error) from error
        headers = {"Accept": accept, "Connection": "close"}
        content = None if body is None else json.dumps(body, separators=(",", ":"))
        if content is not None:
            headers["Content-Type"] = "application/json"
        self._send(method, url, content, headers)
        with self._connection.getresponse() as response:
            if response.status >= 400:
                raise _problem(response.status, response.reason, b"".join(_read(response)))
            yield from _read(response)

    def _send(self, method: str, url: str, content: str | None, headers: dict[str, str]) -> None:
        # The sidecar may answer (413, say) before it has read everything: its answer tells more.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(method, url, content, headers)

    def _unreachable(self, error: OSError) -> BrokerError:
        if error.errno in (errno.EACCES, errno.EPERM):
            code, title = "permission-denied", "Permission denied"
        else:
            code, title = "unreachable", "Sidecar unreachable"
        reason = error.strerror or str(error)
        return BrokerError(code, 0, title, f"no sidecar can be reached at {self._socket_path}: {reason.lower()}")

    def _cut_off(self, error: BaseException) -> BrokerError:
        reason = getattr(error, "strerror", None) or str(error) or "it closed the connection"
        if isinstance(error, http.client.HTTPException):
            reason = "it closed the connection"
        detail = f"the sidecar at {self._socket_path} broke off its answer: {reason.lower()}"
        return BrokerError("unreachable", 0, "Answer broken off", detail)


def _workspace_url(name: str, *parts: str, **query: str) -> str:
    url = "/".join(("/v1/workspaces", quote(name, safe="", errors="surrogateescape"), *parts))
    if query:
        url += "?" + urlencode(query, errors="surrogateescape", quote_via=quote)
    return url


def _read(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body in blocks as they arrive.

    Python 3.8's `read1` neither counts down nor notices a body that ends early, hence the counting.
    """
    remaining = response.length
    if remaining is None and not response.chunked:
        raise http.client.IncompleteRead(b"")  # it does not say where it ends: the connection broke in the head
    while remaining is None or remaining > 0:
        block = response.read1(_BLOCK_BYTES if remaining is None else min(_BLOCK_BYTES, remaining))
        if not block:
            if remaining is not None:
                raise http.client.IncompleteRead(b"", remaining)
            return
        if remaining is not None:
            remaining -= len(block)
        yield block


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from filter(None, lines)
    if rest.strip():
        yield rest


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
