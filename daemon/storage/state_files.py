"""SQLite files of state: their versions, and damage told from a disk that does not work.

Damage is whatever keeps a file from being read as it was written: what SQLite says of its pages, tables other than
those that were made, text that is none. What comes of the disk, permissions, locks or a newer version is not, and
nothing of the file must be altered then.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

# What says nothing of the content of a file. All else is damage: statements and parameters never vary.
_NO_DAMAGE = frozenset(
    (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_ABORT,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_AUTH,
    )
)
_MAGIC = b"SQLite format 3\0"
_WRITE_VERSION_AT, _HIGHEST_WRITE_VERSION = 18, b"\2"  # a higher one makes the file read-only
_BESIDE = ("", "-wal", "-shm", "-journal")


class NewerState(sqlite3.DatabaseError):
    """The file was written by a newer version; it is as it was."""


class Damaged(sqlite3.DatabaseError):
    """A file does not hold what was written to it."""


def is_damage(error: BaseException) -> bool:
    """Whether the content of a file of state is the reason of the error."""
    if isinstance(error, sqlite3.Error) and not isinstance(error, Damaged):
        code = getattr(error, "sqlite_errorcode", None)  # not of the module's own, and of those derived here
        return code is not None and code & 0xFF not in _NO_DAMAGE
    return isinstance(error, (Damaged, ValueError, RecursionError))


@contextlib.contextmanager
def telling_damage() -> Iterator[None]:
    """Raise Damaged for any error of the body that is damage, and all others as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Damaged) or not is_damage(error):
            raise
        raise Damaged(str(error)) from error


def connected(path: str, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection, with transactions as they are asked for, that several threads may use in turn.

    Text that is none raises UnicodeDecodeError.

    Raises:
        sqlite3.Error, OSError: there is none.
    """
    _check_head(path)
    target = f"file:{quote(os.fsencode(os.path.abspath(path)))}?mode=ro" if read_only else path
    connection = sqlite3.connect(target, isolation_level=None, check_same_thread=False, timeout=10, uri=read_only)
    connection.text_factory = _decoded  # what sqlite3 itself raises cannot be told from other errors
    return connection


def _check_head(path: str) -> None:
    """SQLite would take the file for one that may only be read. To be called before there is a connection:
    closing a file ends the locks that this process has on it.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        head = file.read(_WRITE_VERSION_AT + 1)
        if head.startswith(_MAGIC) and head[_WRITE_VERSION_AT:] > _HIGHEST_WRITE_VERSION:
            raise Damaged("its head is none of SQLite's")


def _decoded(text: bytes) -> str:
    return text.decode()


@contextlib.contextmanager
def migrated(connection: sqlite3.Connection, path: str, migrations: Sequence[str]) -> Iterator[int]:
    """Bring the file to the version that is as high as there are `migrations`, all or nothing with the body.

    Yields:
        The version that it had: 0 for none.

    Raises:
        NewerState: it has a higher one.
        Damaged: nobody has ever written such a version.
    """
    version = version_of(connection, path, len(migrations))
    if version == len(migrations):
        yield version
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        version = version_of(connection, path, len(migrations))  # another process may have been faster
        _migrate(connection, migrations[version:])
        _note_version(connection, len(migrations))
        yield version


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    for migration in migrations:
        for statement in migration.split(";"):
            connection.execute(statement)


def version_of(connection: sqlite3.Connection, path: str, newest: int) -> int:
    """The version of the file; see `migrated`."""
    version, again = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("user_version", "application_id")
    )
    # It stands there twice, as a damaged byte must not pass for a newer version. Once in files of before.
    if version < 0 or again not in ((0, version) if version <= newest else (version,)):
        raise Damaged(f"its version is {version} in one place and {again} in another")
    if version > newest:
        raise NewerState(
            f"{path} has version {version}; this brokervol knows versions up to {newest}:"
            " install the newer one again"
        )
    return version


def _note_version(connection: sqlite3.Connection, version: int) -> None:
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute(f"PRAGMA application_id = {version}")


def check(connection: sqlite3.Connection, pattern: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Look at all pages of the file, and compare its tables with those that `migrations` make.

    Args:
        pattern: an empty database to make them in.

    Raises:
        sqlite3.Error, ValueError: it is damaged, or cannot be read.
    """
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise Damaged(found)
    _migrate(pattern, migrations)
    if _tables(connection) != _tables(pattern):
        raise Damaged("its tables are not those that were made")


def _tables(connection: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")
    return [(kind, name, table, "".join((sql or "").split())) for kind, name, table, sql in rows]


def set_aside(path: str) -> str:
    """Rename the file, and what SQLite keeps beside it, to a name with the time, which is returned."""
    name = aside(path, "damaged")
    for suffix in _BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, name + suffix)
    return name


def remove(path: str) -> None:
    """Remove the file, if there is one, and what SQLite keeps beside it."""
    for suffix in _BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def aside(path: str, reason: str) -> str:
    """A name to keep a file under."""
    return f"{path}.{reason}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"


def write_privately(path: str, content: bytes, unfinished: str | None = None) -> None:
    """Replace the file at `path`, at once and durably, by one that only its owner reads.

    Args:
        unfinished: where it is written first, a file that may be there; else a name of its own beside it.

    Raises:
        OSError: it is as it was.
    """
    unfinished = unfinished or f"{path}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(unfinished, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise
    sync_directory(os.path.dirname(os.path.abspath(path)))


def sync_directory(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
