"""The audit log: who did what to which file, with what outcome. One line of JSON each, never a secret.

A line is of one file of a batch, or of one request that is no batch. Names and sizes are in it; bytes, bodies,
headers and configurations are not.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler

import structlog

from brokervol.kinds import AUDIT_OFF, AUDIT_TO_LOG
from brokervol.server import Connection
from sidecar.caller import Caller
from sidecar.metrics import Call, Metrics
from sidecar.outcomes import Outcome
from storage import linux

log = structlog.get_logger()

_FILE_BYTES = 20 * 1024 * 1024
_FILES_KEPT = 5
_LONGEST_PATH = 1000

Fields = dict[str, str | float | None]


@dataclass(frozen=True, slots=True)
class Who:
    """Who asks, as the kernel said when the connection was accepted: container or None, user, process."""

    container: str | None
    uid: int
    pid: int


def who(connection: Connection) -> Who:
    """The peer of a connection. In the view of the sidecar itself it has not been looked at more closely."""
    if isinstance(connection.peer, Caller):
        return Who(connection.peer.container, connection.peer.uid, connection.peer.pid)
    pid, uid, _ = linux.peer_credentials(connection.socket)
    return Who(None, uid, pid)


class AuditLog:
    """Where the lines go. Safe for several threads; close it at the end.

    A line that cannot be written (a full disk) is told in the sidecar's own log, and the operation goes on.
    """

    def __init__(self, target: str) -> None:
        """Open the log.

        Args:
            target: a file, kept to 20 MB with five older ones beside it; `-` for standard output; `off` for none.

        Raises:
            OSError: the file cannot be opened.
        """
        self._handler = _handler(target)

    def close(self) -> None:
        if self._handler is not None:
            with contextlib.suppress(OSError):  # of a line that could not be written, and was told
                self._handler.close()

    def write(self, **fields: str | float | None) -> None:
        """Write a line, with the time. Values that are None are left out."""
        self.write_all([fields])

    def write_all(self, lines: Sequence[Fields]) -> None:
        """Write some lines, as `write` does, at once."""
        if self._handler is not None and lines:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._handler.write("".join([_line(now, fields) for fields in lines]))


class Telling:
    """What is told of one request: every line has its id and who asks.

    Attributes:
        call: its id is in the lines, as in the answer's `X-Request-Id`.
        path: what the request is about, where that is one file.
        size: of that file, in bytes.
        outcome: `done`, or the code of the error that the request ended with.
    """

    def __init__(self, to: AuditLog, metrics: Metrics, asking: Who, call: Call, workspace: str | None) -> None:
        self.call = call
        self.path: str | None = None
        self.size: int | None = None
        self.outcome = "done"
        self._to = to
        self._metrics = metrics
        self._asking = asking
        self._workspace = workspace
        self._began = time.monotonic()
        self._is_told = False

    def items(self, groups: Iterator[list[Outcome]]) -> Iterator[Outcome]:
        """The outcomes of a batch, each told before it is passed on; what is skipped was not done and is not."""
        for group in groups:
            self._tell([_of_item(outcome) for outcome in group if outcome.status != "skipped"])
            yield from group

    def close(self) -> None:
        """Tell of the request as one, unless it was told item by item."""
        if not self._is_told:
            seconds = time.monotonic() - self._began
            self._tell([{**_of_file(self.path, self.outcome, self.size), "ms": _ms(seconds)}])
        if self.outcome != "done":
            self.call.code = self.outcome

    def _tell(self, lines: Sequence[Fields]) -> None:
        self._is_told = self._is_told or bool(lines)
        asking = self._asking
        of_all: Fields = {
            "request": self.call.request_id,
            "container": asking.container,
            "uid": asking.uid,
            "pid": asking.pid,
            "operation": self.call.operation,
            "workspace": self._workspace,
        }
        self._to.write_all([{**of_all, **line} for line in lines])
        self._metrics.worked(self.call, lines)


def _of_item(outcome: Outcome) -> Fields:
    file, asked = outcome.file, outcome.file_path
    told = "done" if outcome.error is None else outcome.error[0]
    found = _of_file(asked, told, None if file is None else file.file_size)
    if file is not None and file.file_path != asked:
        found["file_path"] = _shortened(file.file_path)
    return {**found, "ms": _ms(outcome.seconds)}


def _of_file(path: str | None, outcome: str, size: int | None) -> Fields:
    return {"path": _shortened(path), "outcome": outcome, "bytes": size}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _line(now: str, fields: Fields) -> str:
    said = {key: value for key, value in fields.items() if value is not None}
    # json, as it writes names that are not UTF-8 with escapes: a line is one line, and ASCII.
    return json.dumps({"time": now, "audit": True, **said}) + "\n"


def _shortened(path: str | None) -> str | None:
    """A path as it is told: strangers choose its length."""
    if path is None or len(path) <= _LONGEST_PATH:
        return path
    return f"{path[:_LONGEST_PATH]}... ({len(path)} characters)"


class _Handler(RotatingFileHandler):
    """A rotated file for its owner alone, whose failures are told in the log of the process.

    `emit` would ask the file system before each line how long the file is; here that is counted.
    """

    _bytes = 0
    _is_rotated = True

    def _open(self) -> TextIOWrapper:
        stream = open(self.baseFilename, "a", encoding="ascii", opener=_open_private)  # noqa: SIM115  # `close` does
        found = os.fstat(stream.fileno())
        self._bytes, self._is_rotated = found.st_size, stat.S_ISREG(found.st_mode)
        return stream

    def write(self, text: str) -> None:
        try:
            with self.lock or contextlib.nullcontext():
                self._append(text)
        except (OSError, ValueError) as error:
            _tell_failure(error)

    def _append(self, text: str) -> None:
        if self._is_rotated and self._bytes + len(text) >= self.maxBytes:
            self.doRollover()
        self.stream = self.stream or self._open()  # none, where the one before could not be rotated
        self.stream.write(text)
        self.stream.flush()
        self._bytes += len(text)


class _Stream:
    """Standard output."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        try:
            with self._lock:
                sys.stdout.write(text)
                sys.stdout.flush()
        except (OSError, ValueError) as error:
            _tell_failure(error)

    def close(self) -> None:
        pass


def _handler(target: str) -> _Handler | _Stream | None:
    if target == AUDIT_OFF:
        return None
    if target == AUDIT_TO_LOG:
        return _Stream()
    return _Handler(target, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _tell_failure(error: Exception) -> None:
    log.error("a line of the audit log could not be written", error=str(error))
