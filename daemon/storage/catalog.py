"""The catalog: which files each workspace holds and held, in SQLite or PostgreSQL.

Rows, not ORM objects: a record is read and written as a whole, and batches are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, IntegrityError

from storage.models import ScaleFile, scale_file, use_catalog

# The newest migration. A test compares it with storage/migrations/versions.
SCHEMA_VERSION = "0001"

_SQLITE_BUSY_TIMEOUT_S = 30


def configure(url: str) -> Catalog:
    """Open the catalog at `url`, bring its tables up to date, and make `ScaleFile.save` write to it.

    Args:
        url: an SQLAlchemy URL, `sqlite:////absolute/file.sqlite` or `postgresql+psycopg://...`.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be opened or upgraded, or the URL is none of one.
    """
    catalog = Catalog(url)
    catalog.upgrade()
    use_catalog(catalog)
    return catalog


class Catalog:
    """The records of files. Safe for several threads and processes."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(make_url(url))
        self._writing = self._engine.execution_options(writes=True)

    def close(self) -> None:
        """Close all connections. The catalog can be used again, which opens new ones."""
        self._engine.dispose()

    def upgrade(self, revision: str = "head") -> None:
        """Create the tables, or migrate them to `revision`. Does nothing, fast, where they are up to date."""
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
        a record that moves there marks the one it displaces as deleted.
        """
        try:
            self._save_all(files)
        except IntegrityError:  # another process made a live record of the path in between: now it is seen
            self._save_all(files)

    def _save_all(self, files: Sequence[ScaleFile]) -> None:
        now = datetime.now(UTC)
        with self._writing.begin() as connection:
            saved = [_save(connection, replace(file, last_modified=now)) for file in files]
        for file, row in zip(files, saved, strict=True):
            file.id, file.uuid, file.created, file.last_modified = (
                row.id,
                row.uuid,
                row.created,
                row.last_modified,
            )

    def find_path(self, workspace: str, file_path: str) -> ScaleFile | None:
        """The live record of a path, if there is one."""
        return self._find(_live(workspace, file_path))

    def find_id(self, workspace: str, file_id: int) -> ScaleFile | None:
        """The record with this id, live or not, if it is of this workspace."""
        return self._find((scale_file.c.workspace == workspace) & (scale_file.c.id == file_id))

    def find_uuid(self, workspace: str, uuid: str) -> ScaleFile | None:
        """The record with this uuid, live or not, if it is of this workspace."""
        return self._find((scale_file.c.workspace == workspace) & (scale_file.c.uuid == uuid))

    def page(
        self,
        workspace: str,
        *,
        file_path: str | None = None,
        is_deleted: bool | None = None,
        after_id: int = 0,
        limit: int = 1000,
    ) -> list[ScaleFile]:
        """The records of a workspace with ids above `after_id`, by id; None means any."""
        query = select(scale_file).where(scale_file.c.workspace == workspace, scale_file.c.id > after_id)
        if file_path is not None:
            query = query.where(scale_file.c.file_path == file_path)
        if is_deleted is not None:
            query = query.where(scale_file.c.is_deleted == is_deleted)
        with self._engine.connect() as connection:
            return [_file(row) for row in connection.execute(query.order_by(scale_file.c.id).limit(limit))]

    def _find(self, condition: Any) -> ScaleFile | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(scale_file).where(condition)).first()
        return None if row is None else _file(row)

    def _schema_version(self) -> str | None:
        with self._engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

    def _migrate(self, direction: str, revision: str) -> None:
        from alembic import command  # noqa: PLC0415  # slow to import and rarely needed
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._writing.begin() as connection:
            config.attributes["connection"] = connection
            getattr(command, direction)(config, revision)


def _save(connection: Connection, file: ScaleFile) -> ScaleFile:
    present = None if file.is_deleted else connection.execute(_select_live(file)).first()
    if file.id is None and present is not None:
        file = replace(file, id=present.id, uuid=present.uuid, created=_file(present).created)
    elif present is not None and present.id != file.id:
        displaced = {"is_deleted": True, "deleted": file.last_modified, "last_modified": file.last_modified}
        connection.execute(update(scale_file).where(scale_file.c.id == present.id).values(displaced))
    values = file.row()
    del values["id"]
    if file.id is not None:
        connection.execute(update(scale_file).where(scale_file.c.id == file.id).values(values))
        return file
    result = connection.execute(scale_file.insert().values(values))
    (new_id,) = result.inserted_primary_key or (None,)
    return replace(file, id=new_id)


def _select_live(file: ScaleFile) -> Any:
    return select(scale_file).where(_live(file.workspace, file.file_path))


def _live(workspace: str, file_path: str) -> Any:
    return (
        (scale_file.c.workspace == workspace)
        & (scale_file.c.file_path == file_path)
        & scale_file.c.is_deleted.is_(False)
    )


def _file(row: Row[Any]) -> ScaleFile:
    return ScaleFile(**row._mapping)


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        try:
            return create_engine(url, pool_pre_ping=True)
        except ImportError as error:
            raise ArgumentError(f"the driver for {url.drivername} is not installed: {error}") from error
    engine = create_engine(url, connect_args={"timeout": _SQLITE_BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says, not where sqlite3 guesses
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: two that read first and write later would fail instead of wait.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
