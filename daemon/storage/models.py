"""Defines the database model of a file, and its table."""

from __future__ import annotations

import uuid as uuids
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, always with zone UTC in Python, also where the database keeps none (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


metadata = MetaData()

# SQLite counts its own row ids only in columns of type INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")

scale_file = Table(
    "scale_file",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("workspace", Text, nullable=False),
    Column("file_path", Text, nullable=False),
    Column("file_name", Text, nullable=False),
    Column("file_size", BigInteger, nullable=True),
    Column("media_type", Text, nullable=False),
    Column("is_deleted", Boolean, nullable=False),
    Column("deleted", UtcDateTime, nullable=True),
    Column("created", UtcDateTime, nullable=False),
    Column("last_modified", UtcDateTime, nullable=False),
    # One live record a path; the deleted ones are history.
    Index(
        "scale_file_live_path",
        "workspace",
        "file_path",
        unique=True,
        sqlite_where=text("NOT is_deleted"),
        postgresql_where=text("NOT is_deleted"),
    ),
)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True, kw_only=True)
class ScaleFile:
    """A file of a workspace as the catalog knows it.

    Attributes:
        file_path: relative to the workspace.
        workspace: the workspace's name; empty for a library used without names.
        file_name: the last component of the path unless given.
        file_size: in bytes, None while unknown.
        id: None until saved for the first time.
        is_deleted, deleted: whether, and when, the file was deleted.
    """

    file_path: str
    workspace: str = ""
    file_name: str = ""
    file_size: int | None = None
    media_type: str = ""
    is_deleted: bool = False
    deleted: datetime | None = None
    created: datetime = field(default_factory=_now)
    last_modified: datetime = field(default_factory=_now)
    uuid: str = field(default_factory=lambda: str(uuids.uuid4()))
    id: int | None = None

    def __post_init__(self) -> None:
        if not self.file_name:
            self.file_name = self.file_path.rpartition("/")[2]

    def set_deleted(self) -> None:
        """Mark as deleted now. Not saved by this."""
        self.is_deleted = True
        self.deleted = _now()

    def save(self) -> None:
        """Add to the catalog, or update there. Sets `id` and `last_modified`.

        Raises:
            RuntimeError: no catalog is in use, see `storage.catalog.configure`.
        """
        if _in_use is None:
            raise RuntimeError("no catalog is in use: call storage.catalog.configure(url) first")
        _in_use.save(self)

    def row(self) -> dict[str, Any]:
        """The fields by column name."""
        return {column.name: getattr(self, column.name) for column in scale_file.columns}


class SavesFiles(Protocol):
    """What `ScaleFile.save` needs of a catalog."""

    def save(self, file: ScaleFile) -> None: ...


_in_use: SavesFiles | None = None


def use_catalog(catalog: SavesFiles | None) -> None:
    """Make `ScaleFile.save` write to `catalog`. For composition roots; a library user calls `configure`."""
    global _in_use  # noqa: PLW0603  # one catalog a process, as the reference's models imply
    _in_use = catalog
