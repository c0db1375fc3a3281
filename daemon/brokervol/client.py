"""A client of the sidecar's HTTP API. It needs the standard library of Python 3.8 or later and nothing else.

    client = Client("/run/brokervol/broker.sock")
    for file in client.files("imagery", prefix="2026/", recursive=True):
        print(file.file, file.size)

In a task it is in the archive that the command line is, too: `sys.path.insert(0, "/run/brokervol/brokervol")`.

Nothing is retried: a request that failed may have been done. Only a refused *connection* is tried again for a
moment, for that is a sidecar being restarted and no request was sent.

Names and paths are strings as `os.fsdecode` makes them: a name that is not UTF-8 holds lone surrogates.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from brokervol.exchange import RESTART_PATIENCE_S, BrokerError, Exchange, SourceFailed

if TYPE_CHECKING:
    import http.client
    from collections.abc import Generator, Iterable
    from datetime import datetime

    from brokervol.exchange import Readable

__all__ = ["CHUNK_ITEMS", "LONGEST_PATH", "BrokerError", "Client", "FileDetails", "FileFacts", "Stored"]

CHUNK_ITEMS = 500

# Of a path that the sidecar takes, in characters.
LONGEST_PATH = 4096
_PAGE_RECORDS = 1000
_NDJSON = "application/x-ndjson"
_JSON = "application/json"
_UTC = timezone.utc  # noqa: UP017  # Python 3.8


class FileDetails(NamedTuple):
    """A file of a workspace: its path in the workspace, and its size in bytes."""

    file: str
    size: int


class FileFacts(NamedTuple):
    """What the storage says of one version of a file.

    Attributes:
        size: in bytes.
        etag: the version's entity tag, without quotes; another version has another one.
        last_modified: when the version was made, with zone, to the second; None where the storage does not tell.
        media_type: that of its record, or what the name suggests.
    """

    size: int
    etag: str
    last_modified: datetime | None
    media_type: str


class Stored(NamedTuple):
    """What has become of a written file: its record, its entity tag (if it has one), whether none was there."""

    record: dict[str, Any]
    etag: str
    is_new: bool


class Client:
    """The operations of the sidecar that listens at `socket_path`; each call is a connection of its own.

    Every method raises `BrokerError`. The iterators hold one item at a time, and close their connection when
    they end or are closed. An item of a batch that fails is a result with `status` "failed" and `error`;
    `on_error="stop"` ends the batch there, `"continue"` goes on with the next item.
    """

    def __init__(
        self, socket_path: str, *, timeout_s: float | None = None, patience_s: float = RESTART_PATIENCE_S
    ) -> None:
        """Nothing is connected yet.

        Args:
            timeout_s: how long the sidecar may be silent in the middle of a call; None for as long as it takes.
            patience_s: how long a refused connection is tried again.
        """
        self.socket_path = socket_path
        self.timeout_s = timeout_s
        self.patience_s = patience_s

    def workspaces(self) -> list[dict[str, Any]]:
        """The workspaces that this process may use."""
        return list(self._object("GET", "/v1/workspaces")["workspaces"])

    def workspace(self, name: str) -> dict[str, Any]:
        """One workspace, with its `health`."""
        return self._object("GET", _workspace_url(name))

    def files(
        self, workspace: str, prefix: str = "", recursive: bool = False
    ) -> Generator[FileDetails, None, None]:
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
    ) -> Generator[dict[str, Any], None, None]:
        """Bring files to local paths: items of `file_path`, `local_path` and, if wished, `partial`."""
        return self._batch(workspace, "download", items, on_error=on_error, overwrite=overwrite)

    def upload(
        self,
        workspace: str,
        items: Iterable[dict[str, Any]],
        *,
        on_error: str = "stop",
        overwrite: bool = True,
    ) -> Generator[dict[str, Any], None, None]:
        """Store local files: items of `local_path`, `file_path` and, if wished, `media_type`."""
        return self._batch(workspace, "upload", items, on_error=on_error, overwrite=overwrite)

    def move(
        self,
        workspace: str,
        items: Iterable[dict[str, Any]],
        *,
        on_error: str = "stop",
        overwrite: bool = True,
    ) -> Generator[dict[str, Any], None, None]:
        """Rename files within the workspace: items of `file_path` and `new_path`."""
        return self._batch(workspace, "move", items, on_error=on_error, overwrite=overwrite)

    def delete(
        self,
        workspace: str,
        items: Iterable[dict[str, Any]],
        *,
        on_error: str = "stop",
        update_model: bool = True,
    ) -> Generator[dict[str, Any], None, None]:
        """Delete files: items of `file_path`. A file that is gone already counts as done.

        Args:
            update_model: also mark the records as deleted.
        """
        return self._batch(workspace, "delete", items, on_error=on_error, update_model=update_model)

    def facts(self, workspace: str, file_path: str) -> FileFacts:
        """Size, version and time of a file, as the storage tells them."""
        url = _workspace_url(workspace, "content", file_path)
        try:
            with self._exchange() as exchange:
                return _facts(exchange.ask("HEAD", url, {}))
        except BrokerError as error:
            if not error.status:
                raise
        with self._exchange() as exchange:  # an answer to HEAD does not say why
            return _facts(exchange.ask("GET", url, {}))

    def read(
        self, workspace: str, file_path: str, start: int = 0, length: int | None = None, *, etag: str = ""
    ) -> Generator[bytes, None, None]:
        """The bytes of a file, or a part of them, in blocks and in constant memory.

        Args:
            start: the first byte; below 0, so many at the end.
            length: how many bytes at most; None for all that follow.
            etag: of the one version that is meant; another is the error `precondition-failed`.
        """
        if length is not None and (start < 0 or length < 1):
            raise ValueError("length must be at least 1, and only goes with a start of 0 or more")
        headers = {"If-Match": f'"{_plain("etag", etag)}"'} if etag else {}
        if start < 0:
            headers["Range"] = f"bytes={start}"
        elif start or length is not None:
            headers["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        with self._exchange() as exchange:
            try:
                exchange.ask("GET", _workspace_url(workspace, "content", file_path), headers)
            except BrokerError as error:
                if error.code == "range-not-satisfiable" and start <= 0:
                    return  # all that an empty file has
                raise
            yield from exchange.blocks()

    def write(
        self,
        workspace: str,
        file_path: str,
        source: Readable | bytes,
        *,
        media_type: str = "",
        overwrite: bool = True,
        etag: str | None = None,
    ) -> Stored:
        """Store what `source.read(size)` gives, of any length, whole or not at all; what it raises is raised.

        Args:
            source: such an object, or the bytes themselves.
            overwrite: whether a file that is there is replaced; else it is the error `already-exists`, and the
                source is not read.
            etag: of the one version that may be replaced; another is the error `precondition-failed`.
        """
        headers = {"If-None-Match": "*"} if not overwrite else {}
        if etag is not None:
            headers["If-Match"] = f'"{_plain("etag", etag)}"'
        if media_type:
            headers["Content-Type"] = _plain("media_type", media_type)
        try:
            with self._exchange() as exchange:
                reader = io.BytesIO(source) if isinstance(source, bytes) else source
                response = exchange.send(_workspace_url(workspace, "content", file_path), headers, reader)
                document = json.loads(b"".join(exchange.blocks()))
                tag = (response.getheader("ETag") or "").strip('"')
                return Stored(document["file"], tag, response.status == 201)
        except SourceFailed as failed:
            raise failed.error from None

    def paths(self, workspace: str, files: Iterable[str]) -> list[str] | None:
        """Where this process sees the files in its own file system; None where the broker mounts nothing."""
        url = _workspace_url(workspace, "paths")
        items = [{"file_path": path} for path in files]
        found: list[str] = []
        for start in range(0, max(len(items), 1), CHUNK_ITEMS):
            paths = self._object("POST", url, {"files": items[start : start + CHUNK_ITEMS]})["paths"]
            if paths is None:
                return None
            found += paths
        return found

    def catalog(
        self, workspace: str, file_path: str | None = None, is_deleted: bool | None = None
    ) -> Generator[dict[str, Any], None, None]:
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
    ) -> Generator[dict[str, Any], None, None]:
        url = _workspace_url(workspace, verb)
        remaining = iter(items)
        for chunk in iter(lambda: list(itertools.islice(remaining, CHUNK_ITEMS)), []):
            has_failed = False
            for result in self._lines("POST", url, {"files": chunk, **options}):
                has_failed = has_failed or result["status"] == "failed"
                yield result
            if has_failed and options["on_error"] == "stop":
                return

    def _exchange(self) -> Exchange:
        return Exchange(self.socket_path, self.timeout_s, self.patience_s)

    def _object(self, method: str, url: str, body: Any = None) -> dict[str, Any]:
        with self._exchange() as exchange:
            exchange.ask(method, url, {"Accept": _JSON}, body)
            document = json.loads(b"".join(exchange.blocks()))
            return dict(document)

    def _lines(self, method: str, url: str, body: Any) -> Generator[dict[str, Any], None, None]:
        """The answer's lines; one that says {"error"} is how the server tells that the stream broke."""
        with self._exchange() as exchange:
            exchange.ask(method, url, {"Accept": _NDJSON}, body)
            for line in exchange.lines():
                item = json.loads(line)
                if isinstance(item, dict) and "error" in item and "status" not in item:
                    error = item["error"]
                    raise BrokerError(error.get("code", "internal-error"), 0, "", error.get("detail", ""))
                yield item


def _workspace_url(name: str, *parts: str, **query: str) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"a workspace is named by a string that is not empty, not by {name!r}")
    try:
        spelled = [quote(part, errors="surrogateescape") for part in parts]
        url = "/".join(("/v1/workspaces", quote(name, safe="", errors="surrogateescape"), *spelled))
        return f"{url}?{urlencode(query, errors='surrogateescape', quote_via=quote)}" if query else url
    except UnicodeEncodeError as error:
        detail = f"{error.object!a} is not valid UTF-8 text"
        raise BrokerError("invalid-path", 0, "Invalid path", detail) from None


def _plain(name: str, text: str) -> str:
    """The text, if a header can have it."""
    if re.fullmatch("[ -~]*", text):
        return text
    detail = f"{name} {text!a} is not accepted: printable ASCII characters are"
    raise BrokerError("invalid-request", 0, "Invalid request", detail)


def _facts(response: http.client.HTTPResponse) -> FileFacts:
    told = response.getheader("Last-Modified")
    modified = parsedate_to_datetime(told).replace(tzinfo=_UTC) if told else None
    size = int(response.getheader("Content-Length") or 0)
    return FileFacts(
        size, (response.getheader("ETag") or "").strip('"'), modified, response.getheader("Content-Type") or ""
    )
