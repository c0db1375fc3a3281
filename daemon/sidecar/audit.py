"""The audit log: who did what to which file, with what outcome. One line of JSON each, never a secret.

A line is of one file of a batch, or of one request that is no batch. Names and sizes are in it; bytes, bodies,
headers and configurations are not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from typing import Any

import structlog

from brokervol.server import Connection
from sidecar.caller import Caller
from sidecar.operations import Outcome
from storage import linux

log = structlog.get_logger()

TO_LOG = "-"
OFF = "off"
_FILE_BYTES = 20 * 1024 * 1024
_FILES_KEPT = 5
_LONGEST_PATH = 1000


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
        if self._handler is not None:
            said = {key: value for key, value in fields.items() if value is not None}
            # json, as it writes names that are not UTF-8 with escapes: a line is one line, and ASCII.
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"time": now, "audit": True, **said})
            self._handler.handle(logging.makeLogRecord({"msg": line}))


class Telling:
    """What is told of one request: every line has its id and who asks.

    Attributes:
        request_id: as in the lines, and in the answer's `X-Request-Id`.
        path: what the request is about, where that is one file.
        size: of that file, in bytes.
        outcome: `done`, or the code of the error that the request ended with.
    """

    def __init__(self, to: AuditLog, asking: Who, operation: str, workspace: str | None) -> None:
        self.request_id = secrets.token_hex(8)
        self.path: str | None = None
        self.size: int | None = None
        self.outcome = "done"
        self._to = to
        self._asking = asking
        self._operation = operation
        self._workspace = workspace
        self._began = time.monotonic()
        self._is_told = False

    def items(self, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
        """The outcomes of a batch, each told before it is passed on; what is skipped was not done and is not."""
        began = time.monotonic()
        for outcome in outcomes:
            if outcome.status != "skipped":
                self._tell_item(outcome, began)
            yield outcome
            began = time.monotonic()

    def close(self) -> None:
        """Tell of the request as one, unless it was told item by item."""
        if not self._is_told:
            self._tell(self._began, path=_shortened(self.path), outcome=self.outcome, bytes=self.size)

    def _tell_item(self, outcome: Outcome, began: float) -> None:
        file, asked = outcome.file, outcome.file_path
        self._tell(
            began,
            path=_shortened(asked),
            file_path=None if file is None or file.file_path == asked else _shortened(file.file_path),
            outcome="done" if outcome.error is None else outcome.error[0],
            bytes=None if file is None else file.file_size,
        )

    def _tell(self, began: float, **fields: str | int | None) -> None:
        self._is_told = True
        asking, ms = self._asking, round((time.monotonic() - began) * 1000, 3)
        self._to.write(
            request=self.request_id,
            container=asking.container,
            uid=asking.uid,
            pid=asking.pid,
            operation=self._operation,
            workspace=self._workspace,
            **fields,
            ms=ms,
        )


def _shortened(path: str | None) -> str | None:
    """A path as it is told: strangers choose its length."""
    if path is None or len(path) <= _LONGEST_PATH:
        return path
    return f"{path[:_LONGEST_PATH]}... ({len(path)} characters)"


class _Handler(RotatingFileHandler):
    """A rotated file for its owner alone, whose failures are told in the log of the process."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="ascii", opener=_open_private)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        _tell_failure(record)


class _Stream(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        _tell_failure(record)


def _handler(target: str) -> logging.Handler | None:
    if target == OFF:
        return None
    if target == TO_LOG:
        return _Stream(sys.stdout)
    return _Handler(target, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _tell_failure(record: logging.LogRecord) -> None:
    del record
    log.error("a line of the audit log could not be written", error=str(sys.exc_info()[1]))
