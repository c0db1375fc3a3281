"""Volume definitions: which workspaces this host has, kept by the driver and read by the sidecar.

SQLite beside the driver's other state, in one small table, because both processes must see the same truth
and the driver must start without an ORM. No secret is ever in a definition.

Beside the table there is a backup of it, rewritten as a whole with every change: definitions are what nobody can
make again, and an engine forgets every volume that a driver does not list. In both, each definition has a digest,
so that one that was altered on disk is never taken for what docker asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from storage import state_files
from storage.state_files import Damaged, telling_damage
from storage.volume_records import (
    Definition,
    Row,
    digest_of,
    from_json,
    from_row,
    in_utc,
    to_document,
    to_row,
)

__all__ = [
    "AlreadyDefined",
    "BackupDamaged",
    "Definition",
    "DefinitionStore",
    "backup_path",
    "definitions_path",
    "mountpoint",
    "read_backup",
    "read_definitions",
    "utc_now",
]

# What each version adds to the one before. None is ever altered: hosts have them.
_MIGRATIONS = (
    """
    CREATE TABLE IF NOT EXISTS definitions (
        name TEXT PRIMARY KEY,
        options TEXT NOT NULL,
        created TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    ALTER TABLE definitions ADD COLUMN digest TEXT NOT NULL DEFAULT '';
    UPDATE definitions SET created = utc(created);
    UPDATE definitions SET digest = digest(name, options, created)
    """,
)
_COLUMNS = ("name, options, created, ''", "name, options, created, digest")  # of each version
_INSERT = "INSERT INTO definitions (name, options, created, digest) VALUES (?, ?, ?, ?)"


class AlreadyDefined(Exception):
    """Another volume has the name. `names` are all such."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"already defined: {', '.join(names)}")
        self.names = names


class BackupDamaged(Damaged):
    """There are no definitions where there were some, and their backup is not usable."""


class Agreement(NamedTuple):
    """What came of comparing a table with its backup.

    Attributes:
        added: the names of those that only the backup had.
        kept_as: where the backup is kept that said something else, or was damaged.
    """

    added: list[str]
    kept_as: str | None


class DefinitionStore:
    """Definitions on disk. Safe for several threads and processes: each change is a transaction of its own.

    Args:
        path: the SQLite file. Where it or its table is missing, it is made from the backup, or else empty. Its
            directory must exist.
        may_begin: an empty one is made even where a driver has worked before, and so definitions were lost.

    Attributes:
        is_new: there was no such table before.

    Raises:
        sqlite3.Error: the file cannot be opened.
        NewerState, Damaged, BackupDamaged: see there.
    """

    def __init__(self, path: str, *, may_begin: bool = False) -> None:
        self._path = path
        self._may_begin = may_begin
        self._lock = threading.Lock()
        self._opened = 0
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        with telling_damage(), contextlib.ExitStack() as undo:
            connection = _connected(self._path)
            undo.callback(connection.close)
            state_files.version_of(connection, self._path, len(_MIGRATIONS))
            _begin_journal(connection)
            with state_files.migrated(connection, self._path, _MIGRATIONS) as version:
                self.is_new = version == 0
                if self.is_new:
                    connection.executemany(_INSERT, map(to_row, self._first()))
            undo.pop_all()
        self._inode = os.stat(self._path).st_ino
        return connection

    def _first(self) -> list[Definition]:
        """What a new table begins with."""
        backup = backup_path(self._path)
        try:
            return _read(backup)
        except FileNotFoundError as error:
            if self._may_begin or not (trace := _trace(self._path)):
                return []
            raise BackupDamaged(f"{backup}: there is none, but a driver has worked here: {trace}") from error
        except (OSError, ValueError) as error:
            raise BackupDamaged(f"{backup}: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def add(self, definitions: Iterable[Definition]) -> None:
        """Add all of the definitions, or none. Durable when it returns, and so is the backup.

        Raises:
            AlreadyDefined: volumes of some of the names are there.
            OSError: the backup cannot be written.
        """
        with self._changing():
            added = [to_row(definition) for definition in definitions]
            if taken := sorted(name for name, *_ in added if self._find(name) is not None):
                raise AlreadyDefined(taken)
            self._connection.executemany(_INSERT, added)

    def save(self, *definitions: Definition) -> None:
        """Add the definitions, or replace those of the same names."""
        with self._changing():
            self._connection.executemany(_INSERT.replace("INSERT", "INSERT OR REPLACE"), map(to_row, definitions))

    def remove(self, name: str) -> None:
        """Forget the definition; one that is not there is no error. Durable when it returns.

        The backup loses it last; one that cannot be written is gone until the next change or start.
        """
        with self._transaction():
            self._connection.execute("DELETE FROM definitions WHERE name = ?", (name,))
        self._rewrite_backup()

    def load(self) -> list[Definition]:
        """Every definition, by name.

        Raises:
            Damaged: one of them is.
        """
        with self._lock, telling_damage():
            return [from_row(row) for row in _rows(self._connection)]

    def find(self, name: str) -> Definition | None:
        """The definition of this name, if there is one."""
        with self._lock, telling_damage():
            row = self._find(name)
            return None if row is None else from_row(row)

    def version(self) -> int:
        """A number that changes when another process has written: cheap to ask before loading again."""
        with self._lock, telling_damage():
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path).st_ino != self._inode:  # it was damaged, and has been replaced
                    self._open_again()
            data_version = int(self._connection.execute("PRAGMA data_version").fetchone()[0])
            return self._opened << 32 | data_version

    def _open_again(self) -> None:
        self._connection.close()  # first: what SQLite has beside a file it knows by name
        self._connection = self._open()
        self._opened += 1

    def is_there(self) -> bool:
        """Whether the file is where it was; without it, what is written goes nowhere."""
        return os.path.exists(self._path)

    def has_backup(self) -> bool:
        """Whether there is a backup, of whatever content."""
        return os.path.exists(backup_path(self._path))

    def check(self) -> None:
        """Look at the whole file.

        Raises:
            Damaged: it is.
        """
        with self._lock, telling_damage():
            _check(self._connection)
        self.load()

    def agree_with_backup(self) -> Agreement:
        """Add what only the backup has, and write it if it is not what it should be.

        The backup has a volume more only after a crash between the two, or where what SQLite had written was lost.
        Nothing else should ever differ. Where it does, the table is right, and the backup kept under another name.

        Raises:
            OSError: the backup cannot be written.
        """
        with self._transaction():
            return self._agree()

    def _agree(self) -> Agreement:
        backup, rows = backup_path(self._path), _rows(self._connection)
        content = b""
        with contextlib.suppress(FileNotFoundError), open(backup, "rb") as file:
            content = file.read()
        if content == to_document(rows):
            return Agreement([], None)
        known = {row[0]: from_row(row) for row in rows}
        missing, kept_as = [], None
        try:
            found = {definition.name: definition for definition in from_json(content)}
            missing = [definition for name, definition in found.items() if name not in known]
            differs = any(found.get(name) != definition for name, definition in known.items())
        except ValueError:
            differs = bool(content)
        if differs:
            kept_as = state_files.aside(backup, "differs")
            state_files.write_privately(kept_as, content)
        self._connection.executemany(_INSERT, map(to_row, missing))
        self._write_backup()
        return Agreement([definition.name for definition in missing], kept_as)

    def write_anew(self, definitions: Iterable[Definition]) -> str:
        """Make a new file of `definitions`, and of what only the backup has; for when the one there is damaged.

        Returns:
            The name that the old one is kept under.

        Raises:
            sqlite3.Error, OSError: it cannot be written, and the old one is as it was.
        """
        with self._lock, telling_damage():
            wanted = {definition.name: definition for definition in definitions}
            with contextlib.suppress(OSError, ValueError):
                wanted = {definition.name: definition for definition in _read(backup_path(self._path))} | wanted
            unfinished = f"{self._path}.new"
            state_files.remove(unfinished)
            with (
                contextlib.closing(_connected(unfinished)) as connection,
                state_files.migrated(connection, unfinished, _MIGRATIONS),
            ):
                connection.executemany(_INSERT, map(to_row, wanted.values()))
            self._connection.close()
            kept_as = state_files.set_aside(self._path)
            os.rename(unfinished, self._path)
            state_files.sync_directory(os.path.dirname(os.path.abspath(self._path)))
            self._open_again()
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._agree()
            return kept_as

    def _find(self, name: str) -> Row | None:
        statement = f"SELECT {_COLUMNS[-1]} FROM definitions WHERE name = ?"  # noqa: S608  # a constant
        found: Row | None = self._connection.execute(statement, (name,)).fetchone()
        return found

    def _write_backup(self) -> None:
        """Within a transaction, so that of two processes the later one writes the later state."""
        state_files.write_privately(backup_path(self._path), to_document(_rows(self._connection)))

    def _rewrite_backup(self) -> None:
        """Without what is not in the table: a start would add that to it."""
        try:
            with self._transaction():
                self._write_backup()
                self._connection.rollback()  # nothing is changed, and a commit would wait for readers
        except (OSError, sqlite3.Error):
            with contextlib.suppress(OSError):
                os.unlink(backup_path(self._path))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """What the body adds is in table and backup, or in neither."""
        is_in_backup = False
        try:
            with self._transaction():
                yield
                self._write_backup()
                is_in_backup = True
        except sqlite3.Error:
            if is_in_backup:  # and the commit has failed
                self._rewrite_backup()
            raise

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, telling_damage(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def __enter__(self) -> DefinitionStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_definitions(path: str) -> list[Definition]:
    """Every definition of the file, by name, without writing anything, not even beside it.

    Raises:
        sqlite3.Error, OSError: it cannot be read so.
        NewerState, Damaged: see there.
    """
    with telling_damage(), contextlib.closing(_connected(path, read_only=True)) as connection:
        version = state_files.version_of(connection, path, len(_MIGRATIONS))
        if version == 0:
            raise Damaged("there is no table in it")
        if version == len(_MIGRATIONS):
            _check(connection)
        return [from_row(row) for row in _rows(connection, version)]


def read_backup(path: str) -> list[Definition]:
    """Every definition of the backup of that file.

    Raises:
        OSError, ValueError: it cannot be read, or is damaged.
    """
    return _read(backup_path(path))


def _connected(path: str, *, read_only: bool = False) -> sqlite3.Connection:
    connection = state_files.connected(path, read_only=read_only)
    connection.create_function("digest", 3, digest_of, deterministic=True)
    connection.create_function("utc", 1, in_utc, deterministic=True)
    return connection


def _begin_journal(connection: sqlite3.Connection) -> None:
    """No write-ahead log: a file that has one cannot be read on a full or read-only disk, nor be replaced while
    other processes have it open.
    """
    with contextlib.suppress(sqlite3.OperationalError):  # it has one, and another process is about to end it
        connection.execute("PRAGMA journal_mode = DELETE")
    # EXTRA: a definition that docker was told of must survive a power cut.
    connection.execute("PRAGMA synchronous = EXTRA")


def _check(connection: sqlite3.Connection) -> None:
    with contextlib.closing(_connected(":memory:")) as pattern:
        state_files.check(connection, pattern, _MIGRATIONS)


def _rows(connection: sqlite3.Connection, version: int = len(_MIGRATIONS)) -> list[Row]:
    statement = f"SELECT {_COLUMNS[version - 1]} FROM definitions ORDER BY name"  # noqa: S608  # constants
    return connection.execute(statement).fetchall()


def _trace(path: str) -> str:
    """What tells that a driver has had definitions in the file `path`; empty for nothing."""
    state = os.path.dirname(os.path.abspath(path))
    references, mountpoints = os.path.join(state, "mounts.sqlite"), os.path.join(os.path.dirname(state), "volumes")
    if os.path.exists(references):
        return references
    with contextlib.suppress(OSError):
        return next((os.path.join(mountpoints, name) for name in os.listdir(mountpoints)), "")
    return ""


def _read(path: str) -> list[Definition]:
    with open(path, "rb") as file:
        return from_json(file.read())


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
