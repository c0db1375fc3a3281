"""Volume definitions: which workspaces this host has, kept by the driver and read by the sidecar.

SQLite beside the driver's other state, in one small table, because both processes must see the same truth
and the driver must start without an ORM. No secret is ever in a definition.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from dataclasses import dataclass
from datetime import UTC, datetime

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS definitions (
    name TEXT PRIMARY KEY,
    options TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Definition:
    """A volume as `docker volume create` asked for it. `options` are the accepted `-o` keys and values."""

    name: str
    options: dict[str, str]
    created: datetime


class DefinitionStore:
    """Definitions on disk. Safe for several threads and for one writer beside several readers.

    Args:
        path: the SQLite file; made with its table where missing. Its directory must exist.

    Raises:
        sqlite3.Error: the file cannot be opened, is damaged, or was written by a newer version.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        with self._lock:
            self._prepare(path)

    def _prepare(self, path: str) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a definition that docker was told of must survive a power cut.
        self._connection.execute("PRAGMA synchronous = FULL")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise sqlite3.DatabaseError(
                f"{path} has version {version}; this brokervol knows versions up to {_SCHEMA_VERSION}"
            )
        self._connection.execute(_SCHEMA)
        self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def save(self, definition: Definition) -> None:
        """Add the definition, or replace the one of the same name. Durable when it returns."""
        row = (
            definition.name,
            json.dumps(definition.options, sort_keys=True),
            definition.created.isoformat(),
        )
        with self._lock:
            self._connection.execute("INSERT OR REPLACE INTO definitions VALUES (?, ?, ?)", row)

    def remove(self, name: str) -> None:
        """Forget the definition; one that is not there is no error. Durable when it returns."""
        with self._lock:
            self._connection.execute("DELETE FROM definitions WHERE name = ?", (name,))

    def load(self) -> list[Definition]:
        """Every definition, by name."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT name, options, created FROM definitions ORDER BY name"
            ).fetchall()
        return [_definition(*row) for row in rows]

    def version(self) -> int:
        """A number that changes when another process has written: cheap to ask before loading again."""
        with self._lock:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def __enter__(self) -> DefinitionStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _definition(name: str, options: str, created: str) -> Definition:
    return Definition(name, json.loads(options), datetime.fromisoformat(created))


def mountpoint(root: str, name: str) -> str:
    """Where the volume `name` is mounted below the driver's `--root`. A hash, since a name is never a path."""
    return os.path.join(root, "volumes", hashlib.sha256(name.encode()).hexdigest()[:40])


def definitions_path(root: str) -> str:
    """The file of definitions below the driver's `--root`."""
    return os.path.join(root, ".state", "definitions.sqlite")


def utc_now() -> datetime:
    """The current time with zone, to the microsecond."""
    return datetime.now(UTC)
