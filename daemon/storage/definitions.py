"""Volume definitions: which workspaces this host has, kept by the driver and read by the sidecar.

SQLite beside the driver's other state, in one small table, because both processes must see the same truth
and the driver must start without an ORM. No secret is ever in a definition.

Beside the table there is a backup of it, rewritten as a whole with every change: definitions are what nobody can
make again, and an engine forgets every volume that a driver does not list.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS definitions (
    name TEXT PRIMARY KEY,
    options TEXT NOT NULL,
    created TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""
_Row = tuple[str, str, str]  # name, options as JSON, created

_FORMAT = "brokervol volumes"
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Definition:
    """A volume as `docker volume create` asked for it. `options` are the accepted `-o` keys and values."""

    name: str
    options: dict[str, str]
    created: datetime


class AlreadyDefined(Exception):
    """Another volume has the name. `names` are all such."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"already defined: {', '.join(names)}")
        self.names = names


class NewerState(sqlite3.DatabaseError):
    """The file was written by a newer version; it is as it was."""


class BackupDamaged(sqlite3.DatabaseError):
    """There are no definitions, and their backup is not usable."""


class DefinitionStore:
    """Definitions on disk. Safe for several threads and processes: each change is a transaction of its own.

    Args:
        path: the SQLite file. Where it or its table is missing, it is made from the backup, or else empty. Its
            directory must exist.

    Attributes:
        is_new: there was no such table before.

    Raises:
        sqlite3.Error: the file cannot be opened, or is damaged.
        NewerState, BackupDamaged: see there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._opened = 0
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _SCHEMA_VERSION:
                raise NewerState(
                    f"{self._path} has version {version}; this brokervol knows versions up to {_SCHEMA_VERSION}:"
                    " install the newer one again"
                )
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL: a definition that docker was told of must survive a power cut.
            connection.execute("PRAGMA synchronous = FULL")
            self.is_new = version == 0
            if self.is_new:
                self._make(connection)
        except BaseException:
            connection.close()
            raise
        self._inode = os.stat(self._path).st_ino
        return connection

    def _make(self, connection: sqlite3.Connection) -> None:
        try:
            with open(backup_path(self._path), encoding="utf-8") as file:
                found = from_json(file.read())
        except FileNotFoundError:
            found = []
        except (OSError, ValueError) as error:
            raise BackupDamaged(f"{backup_path(self._path)}: {error}") from error
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SCHEMA)
            # Another process may have been faster.
            connection.executemany("INSERT OR IGNORE INTO definitions VALUES (?, ?, ?)", map(_row, found))
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def add(self, definitions: Iterable[Definition]) -> None:
        """Add all of the definitions, or none. Durable when it returns, and so is the backup.

        Raises:
            AlreadyDefined: volumes of some of the names are there.
            OSError: the backup cannot be written.
        """
        with self._transaction():
            added = [_row(definition) for definition in definitions]
            if taken := sorted(name for name, *_ in added if self._find(name) is not None):
                raise AlreadyDefined(taken)
            self._connection.executemany("INSERT INTO definitions VALUES (?, ?, ?)", added)
            self._write_backup()

    def save(self, definition: Definition) -> None:
        """Add the definition, or replace the one of the same name."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO definitions VALUES (?, ?, ?)", _row(definition))
            self._write_backup()

    def remove(self, name: str) -> None:
        """Forget the definition; one that is not there is no error. Durable when it returns.

        The backup loses it last; one that cannot be written is gone until the next change or start.
        """
        with self._transaction():
            self._connection.execute("DELETE FROM definitions WHERE name = ?", (name,))
        try:
            with self._transaction():
                self._write_backup()
        except (OSError, sqlite3.Error):
            with contextlib.suppress(OSError):
                os.unlink(backup_path(self._path))

    def load(self) -> list[Definition]:
        """Every definition, by name.

        Raises:
            ValueError: one of them is damaged.
        """
        with self._lock:
            return [_definition(*row) for row in self._rows()]

    def find(self, name: str) -> Definition | None:
        """The definition of this name, if there is one."""
        with self._lock:
            row = self._find(name)
        return None if row is None else _definition(*row)

    def version(self) -> int:
        """A number that changes when another process has written: cheap to ask before loading again."""
        with self._lock:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path).st_ino != self._inode:  # it was damaged, and has been replaced
                    replaced, self._connection = self._connection, self._open()
                    replaced.close()
                    self._opened += 1
            data_version = int(self._connection.execute("PRAGMA data_version").fetchone()[0])
            return self._opened << 32 | data_version

    def check(self) -> None:
        """Look at the whole file.

        Raises:
            sqlite3.DatabaseError, ValueError: it is damaged.
        """
        with self._lock:
            (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise ValueError(found)
        self.load()

    def agree_with_backup(self) -> list[str]:
        """Add what only the backup has, and write it if it is not what it should be.

        The backup has a volume more only after a crash between the two, or where what SQLite had written was lost.

        Returns:
            The names of what was added.

        Raises:
            OSError: the backup cannot be written.
        """
        with self._transaction():
            try:
                with open(backup_path(self._path), encoding="utf-8") as file:
                    text = file.read()
                if text == _document(self._rows()):
                    return []
                missing = [found for found in from_json(text) if self._find(found.name) is None]
            except (OSError, ValueError):
                missing = []
            self._connection.executemany("INSERT INTO definitions VALUES (?, ?, ?)", map(_row, missing))
            self._write_backup()
            return [definition.name for definition in missing]

    def _find(self, name: str) -> _Row | None:
        statement = "SELECT name, options, created FROM definitions WHERE name = ?"
        found: _Row | None = self._connection.execute(statement, (name,)).fetchone()
        return found

    def _rows(self) -> list[_Row]:
        return self._connection.execute("SELECT name, options, created FROM definitions ORDER BY name").fetchall()

    def _write_backup(self) -> None:
        """Within a transaction, so that of two processes the later one writes the later state."""
        write_privately(backup_path(self._path), _document(self._rows()))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def __enter__(self) -> DefinitionStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row(definition: Definition) -> _Row:
    return definition.name, json.dumps(definition.options, sort_keys=True), definition.created.isoformat()


def _definition(name: str, options: str, created: str) -> Definition:
    return Definition(name, _options(json.loads(options)), datetime.fromisoformat(created))


def _options(options: Any) -> dict[str, str]:
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise ValueError("the options of a volume must be an object of strings")
    return options


def to_json(definitions: Iterable[Definition]) -> str:
    """Definitions as a document of their own: the backup, and what is exported."""
    return _document(_row(definition) for definition in definitions)


def _document(rows: Iterable[_Row]) -> str:
    lines = ",\n".join(  # put together by hand, since there may be thousands, at every change
        f'{{"name": {json.dumps(name)}, "created": "{created}", "options": {options}}}'
        for name, options, created in rows
    )
    return f'{{"format": "{_FORMAT}", "version": {_FORMAT_VERSION}, "volumes": [\n{lines}\n]}}\n'


def from_json(text: str) -> list[Definition]:
    """What `to_json` has written.

    Raises:
        ValueError: it is something else, of a newer version, or damaged.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f'it must be a JSON object with "format": "{_FORMAT}"')
    if document.get("version") != _FORMAT_VERSION:
        raise ValueError(
            f"it has version {document.get('version')}; this brokervol knows version {_FORMAT_VERSION} only"
        )
    volumes = document.get("volumes")
    if not isinstance(volumes, list):
        raise ValueError("volumes must be an array")  # noqa: TRY004  # of the document, not of an argument
    definitions = [_entry(number, entry) for number, entry in enumerate(volumes)]
    if len({definition.name for definition in definitions}) != len(definitions):
        raise ValueError("a volume is in it twice")
    return definitions


def _entry(number: int, entry: Any) -> Definition:
    try:
        created = datetime.fromisoformat(entry["created"])
        if not isinstance(entry["name"], str) or created.tzinfo is None:
            raise ValueError("name must be a string, and created a time with zone")
        return Definition(entry["name"], _options(entry["options"]), created)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"volumes[{number}] must have name, created and options: {type(error).__name__}: {error}"
        ) from error


def write_privately(path: str, text: str) -> None:
    """Replace the file at `path`, at once and durably, by one that only its owner reads.

    Raises:
        OSError: it is as it was.
    """
    directory = os.path.dirname(os.path.abspath(path))
    unfinished = f"{path}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(unfinished, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


def mountpoint(root: str, name: str) -> str:
    """Where the volume `name` is mounted below the driver's `--root`. A hash, since a name is never a path."""
    return os.path.join(root, "volumes", hashlib.sha256(name.encode()).hexdigest()[:40])


def definitions_path(root: str) -> str:
    """The file of definitions below the driver's `--root`."""
    return os.path.join(root, ".state", "definitions.sqlite")


def backup_path(definitions: str) -> str:
    """The backup of the definitions in that file."""
    return os.path.join(os.path.dirname(definitions), "definitions.json")


def utc_now() -> datetime:
    """The current time with zone, to the microsecond."""
    return datetime.now(UTC)
