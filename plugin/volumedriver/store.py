"""What the driver must remember over a crash: who holds which volume, and in which boot of the machine.

Definitions have a store of their own (`storage.definitions`), which the sidecar reads too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

from volumedriver.errors import StateUnavailable, reason

References = dict[str, dict[str, int]]
"""Volume name -> Mount ID -> count."""

_SCHEMA_VERSION = 1
_SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS mount_references (
    volume TEXT NOT NULL,
    mount_id TEXT NOT NULL,
    count INTEGER NOT NULL CHECK (count > 0),
    PRIMARY KEY (volume, mount_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS boot (id TEXT NOT NULL) STRICT;
COMMIT;
"""
_LOCK_POLL_S = 0.05


class ReferenceStore:
    """References on disk, in the SQLite file `path`. Every change is there for the next process at once.

    Raises:
        StateUnavailable: the file cannot be opened, is damaged, or was written by a newer version.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        with state_errors(path):
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        # NORMAL: a killed process loses nothing. A power cut may, but ends every mount as well.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise StateUnavailable(
                f"{self._path} has version {version};"
                f" this brokervol knows versions up to {_SCHEMA_VERSION}: install the newer one again"
            )
        self._connection.executescript(_SCHEMA)
        self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def set(self, volume: str, mount_id: str, count: int) -> None:
        """Record that `mount_id` holds the volume `count` times; 0 forgets it."""
        if count:
            self._run("INSERT OR REPLACE INTO mount_references VALUES (?, ?, ?)", volume, mount_id, count)
        else:
            self._run("DELETE FROM mount_references WHERE volume = ? AND mount_id = ?", volume, mount_id)

    def drop(self, volume: str) -> None:
        """Forget every reference of `volume`."""
        self._run("DELETE FROM mount_references WHERE volume = ?", volume)

    def load(self) -> References:
        """Every reference."""
        references: References = {}
        for volume, mount_id, count in self._run("SELECT volume, mount_id, count FROM mount_references"):
            references.setdefault(volume, {})[mount_id] = count
        return references

    def boot_id(self) -> str | None:
        """The boot of the machine that the references belong to; None before the first."""
        rows = self._run("SELECT id FROM boot")
        return rows[0][0] if rows else None

    def begin_boot(self, boot_id: str) -> None:
        """Start anew: the references of an earlier boot are forgotten."""
        with self._lock, state_errors(self._path), self._connection:
            self._connection.execute("BEGIN")
            self._connection.execute("DELETE FROM mount_references")
            self._connection.execute("DELETE FROM boot")
            self._connection.execute("INSERT INTO boot VALUES (?)", (boot_id,))

    def _run(self, statement: str, *values: str | int) -> list[tuple[Any, ...]]:
        with self._lock, state_errors(self._path):
            return self._connection.execute(statement, values).fetchall()


@contextlib.contextmanager
def state_errors(path: str) -> Iterator[None]:
    """Tell the caller in a sentence that the state at `path` does not work."""
    try:
        yield
    except sqlite3.Error as error:
        raise StateUnavailable(f"the driver's state in {path} is not usable: {error}") from error


@contextlib.contextmanager
def sole_user(state: str, wait_s: float = 5) -> Iterator[None]:
    """Hold the lock of the directory `state`, for as long as this process works with it.

    Raises:
        StateUnavailable: another driver holds it and does not end within `wait_s`.
    """
    try:
        fd = os.open(os.path.join(state, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnavailable(f"the driver's state in {state} is not usable: {reason(error)}") from error
    with os.fdopen(fd, "r+", encoding="ascii") as file:
        _wait_for_lock(file.fileno(), state, time.monotonic() + wait_s)
        yield


def _wait_for_lock(fd: int, state: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StateUnavailable(
                    f"another brokervol driver works with {state}: two drivers need two directories (--root)"
                ) from None
        time.sleep(_LOCK_POLL_S)
