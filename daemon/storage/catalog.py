"""The catalog: which files each workspace holds and held, in SQLite or PostgreSQL.

Rows, not ORM objects: a record is read and written as a whole, and batches are large.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Row,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InvalidRequestError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from storage._journaling import Journal, add, close, update
from storage._saving import save_rows, where_one_of
from storage.exceptions import BackendUnavailable
from storage.interrupts import held_back
from storage.journal import Intent
from storage.models import LIVE, ScaleFile, check_storable, is_storable, scale_file, use_catalog

# The newest migration. A test compares it with storage/migrations/versions.
SCHEMA_VERSION = "0003"

# How the driver of each database is told to give up; a query parameter of the URL goes before.
_CONNECT_ARGUMENTS: dict[str, dict[str, object]] = {
    "pysqlite": {"timeout": 30},  # s that a writer waits for another
    # A host that is gone does not even refuse: s for a connection, ms until what was sent is acknowledged.
    "psycopg": {"connect_timeout": 10, "tcp_user_timeout": 30_000},
}
_LOG_AHEAD_S = 30
_NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}

# What is done beside saving records, in the same transaction: given are the ids, by the uuids that the models had.
_Then = Callable[[Connection, Mapping[str, int]], None]

_MIGRATION_LOCK = 0x62726F6B  # any number that is always the same

# What PostgreSQL answers to one of two transactions that wait for each other, or cannot be put in a row.
_COLLISIONS = ("40P01", "40001")


def configure(url: str) -> Catalog:
    """Open the catalog at `url`, bring its tables up to date, and make `ScaleFile.save` write to it.

    Args:
        url: an SQLAlchemy URL, `sqlite:////absolute/file.sqlite` or `postgresql://user:password@host/database`
            (by psycopg 3). What is not a letter or a digit in a password is written as %40 and the like.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be opened or upgraded, or the URL is none of one.
    """
    catalog = Catalog(url)
    try:
        catalog.upgrade()
    except BaseException:
        catalog.close()
        raise
    use_catalog(catalog)
    return catalog


class Catalog:
    """The records of files. Safe for several threads, processes and, with PostgreSQL, hosts.

    What finds or saves records raises `BackendUnavailable` when the database cannot be used now. The next call
    tries anew.

    Attributes:
        journal: what recovery and requests with an idempotency key ask for, in the same database.
    """

    def __init__(self, url: str) -> None:
        """Check the URL; nothing is opened before it is needed.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the URL is not one of a database, or its driver is not installed.
        """
        parsed = _url(url)
        self._passwords = [*filter(None, [parsed.password, *parsed.normalized_query.get("password", ())])]
        self._engine = _engine(parsed)
        self._writing = self._engine.execution_options(writes=True)
        self.journal = Journal(self._engine, self._writing, self._told)

    def close(self) -> None:
        """Close all connections. The catalog can be used again, which opens new ones."""
        self._engine.dispose()

    def upgrade(self, revision: str = "head") -> None:
        """Create the tables, or migrate them to `revision`. Does nothing, fast, where they are up to date.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database cannot be used, or is newer than this program.
        """
        if revision == "head" and self._schema_version() == SCHEMA_VERSION:
            return
        self._migrate("upgrade", revision)

    def downgrade(self, revision: str) -> None:
        """Migrate the tables back to `revision`; "base" removes them and all records."""
        self._migrate("downgrade", revision)

    def save(self, file: ScaleFile) -> None:
        """Add or update one record; see `save_all`."""
        self.save_all([file])

    def save_all(self, files: Sequence[ScaleFile]) -> None:
        """Add or update records in one transaction, and set their `id` and `last_modified`.

        A path has one live record. A new file at the path of one takes that record over, id and uuid included;
        a record that moves there marks the one it displaces as deleted. All is as if saved one after another.

        Raises:
            ValueError: a field holds what no database can store, see `storage.models.check_storable`.
            BackendUnavailable: the database cannot be used now.
        """
        self._save_all(files)

    def begin(self, intents: Sequence[Intent]) -> None:
        """Write intents down, in one transaction; see `storage.journal`."""
        with self._told(), self._writing.begin() as connection:
            add(connection, intents)

    def update_intent(self, intent: Intent) -> None:
        """Write down what is known of an intent by now."""
        with self._told(), self._writing.begin() as connection:
            update(connection, intent)

    def finish(self, files: Sequence[ScaleFile], done: Sequence[Intent], dropped: Sequence[Intent]) -> None:
        """As `save_all`, and close the intents of what was done, and of what was not, in the same transaction."""

        def close_intents(connection: Connection, ids: Mapping[str, int]) -> None:
            close(connection, done, dropped, ids)

        self._save_all(files, close_intents)

    def _save_all(self, files: Sequence[ScaleFile], then: _Then | None = None) -> None:
        for file in files:
            check_storable(file)
        with self._told():
            try:
                self._save_once(files, then, is_alone=False)
            except (IntegrityError, OperationalError) as error:
                if not _is_collision(error):
                    raise
                self._save_once(files, then, is_alone=True)

    def _save_once(self, files: Sequence[ScaleFile], then: _Then | None, *, is_alone: bool) -> None:
        now = datetime.now(UTC)
        rows = [file.row() | {"last_modified": now} for file in files]
        uuids = [file.uuid for file in files]
        with self._writing.begin() as connection:
            if is_alone and connection.dialect.name == "postgresql":  # in SQLite, a writer always is
                connection.execute(text("LOCK TABLE scale_file IN SHARE ROW EXCLUSIVE MODE"))
            save_rows(connection, rows)
            if then is not None:
                then(connection, {uuid: row["id"] for uuid, row in zip(uuids, rows, strict=True)})
        for file, row in zip(files, rows, strict=True):
            file.id, file.uuid = row["id"], row["uuid"]
            file.created, file.last_modified = row["created"], row["last_modified"]

    def find_path(self, workspace: str, file_path: str) -> ScaleFile | None:
        """The live record of a path, if there is one."""
        if not is_storable(file_path):
            return None
        return self._find(scale_file.c.workspace == workspace, scale_file.c.file_path == file_path, LIVE)

    def find_paths(self, workspace: str, file_paths: Sequence[str]) -> list[ScaleFile]:
        """The live records of these paths, in no particular order."""
        query = select(scale_file).where(scale_file.c.workspace == workspace, LIVE)
        wanted = [path for path in file_paths if is_storable(path)]
        with self._told(), self._engine.connect() as connection:
            return [_file(row) for row in where_one_of(connection, query, scale_file.c.file_path, wanted)]

    def find_id(self, workspace: str, file_id: int) -> ScaleFile | None:
        """The record with this id, live or not, if it is of this workspace."""
        return self._find(scale_file.c.workspace == workspace, scale_file.c.id == file_id)

    def find_uuid(self, workspace: str, uuid: str) -> ScaleFile | None:
        """The record with this uuid, live or not, if it is of this workspace."""
        if not is_storable(uuid):
            return None
        return self._find(scale_file.c.workspace == workspace, scale_file.c.uuid == uuid)

    def page(
        self,
        workspace: str,
        *,
        file_path: str | None = None,
        is_deleted: bool | None = None,
        below: str = "",
        after_id: int = 0,
        limit: int = 1000,
    ) -> list[ScaleFile]:
        """The records of a workspace with ids above `after_id`, by id; None means any, `below` a directory."""
        if file_path is not None and not is_storable(file_path):
            return []
        query = select(scale_file).where(scale_file.c.workspace == workspace, scale_file.c.id > after_id)
        if file_path is not None:
            query = query.where(scale_file.c.file_path == file_path)
        if is_deleted is not None:
            query = query.where(scale_file.c.is_deleted == is_deleted)
        if below:  # not LIKE, to which in SQLite `a` is `A`
            query = query.where(func.substr(scale_file.c.file_path, 1, len(below) + 1) == f"{below}/")
        with self._told(), self._engine.connect() as connection:
            return [_file(row) for row in connection.execute(query.order_by(scale_file.c.id).limit(limit))]

    def _find(self, *conditions: Any) -> ScaleFile | None:
        with self._told(), self._engine.connect() as connection:
            row = connection.execute(select(scale_file).where(*conditions)).first()
        return None if row is None else _file(row)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell in a sentence that the database cannot be used; what is wrong with the data is another matter."""
        # A transaction of SQLite is short, and its lock everybody's. A server's is not, and may hang.
        whole = held_back() if self._engine.dialect.name == "sqlite" else nullcontext()
        try:
            with whole:
                yield
        except (IntegrityError, DataError):
            raise
        except (DBAPIError, NoConnectionFree) as error:
            fact = str(error.orig if isinstance(error, DBAPIError) else error.args[0])
            for password in self._passwords:
                fact = fact.replace(password, "***")
            name = _NAMES.get(self._engine.dialect.name, self._engine.dialect.name)
            raise BackendUnavailable(
                f"the catalog's {name} database cannot be used: {' '.join(fact.split())}"
            ) from error

    def _schema_version(self) -> str | None:
        with self._engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

    def _migrate(self, direction: str, revision: str) -> None:
        from alembic import command  # noqa: PLC0415  # slow to import and rarely needed
        from alembic.config import Config  # noqa: PLC0415
        from alembic.util import CommandError  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._writing.begin() as connection:
            if connection.dialect.name == "postgresql":  # several hosts may start at once
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            try:
                getattr(command, direction)(config, revision)
            except CommandError as error:
                raise InvalidRequestError(
                    f"the catalog's tables cannot be migrated to {revision}: {error}"
                ) from error


def _is_collision(error: DBAPIError) -> bool:
    """Whether another process wrote the same records or paths at the same time."""
    return isinstance(error, IntegrityError) or getattr(error.orig, "sqlstate", None) in _COLLISIONS


def _file(row: Row[Any]) -> ScaleFile:
    return ScaleFile(**row._mapping)


def _url(given: str) -> URL:
    try:
        url = make_url(given)
    except ValueError as error:  # its text may quote a part of the password
        raise ArgumentError("the port in the database's URL is not a number") from error
    if "@" in (url.host or ""):  # what follows the password's @ would be told as the host
        raise ArgumentError("an '@' in the password of the database's URL must be written as %40")
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    return url


def _engine(url: URL) -> Engine:
    defaults = _CONNECT_ARGUMENTS.get(url.get_driver_name(), {})
    arguments = {name: value for name, value in defaults.items() if name not in url.query}
    try:
        engine = create_engine(url, connect_args=arguments, pool_pre_ping=url.get_backend_name() != "sqlite")
    except ImportError as error:
        raise ArgumentError(f"the driver for {url.drivername} is not installed: {error}") from error
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says, not where sqlite3 guesses
    _log_ahead(connection)
    connection.execute("PRAGMA synchronous = NORMAL")


def _log_ahead(connection: Any) -> None:
    """Have the database use a write-ahead log. Whoever is first changes it, and SQLite has the others fail there,
    however long they would wait for a lock anywhere else."""
    deadline = time.monotonic() + _LOG_AHEAD_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: two that read first and write later would fail instead of wait.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
