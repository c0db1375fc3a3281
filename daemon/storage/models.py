"""Defines the database model of a file, and its table."""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import (
    JSON,
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
from sqlalchemy.dialects.postgresql import JSONB

from storage.os_errors import quoted

if TYPE_CHECKING:
    from storage.journal import Intent


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, always with zone UTC in Python: SQLite keeps none, PostgreSQL answers in the server's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

# SQLite counts its own row ids only in columns of type INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")
Json = JSON().with_variant(JSONB(), "postgresql")

# One live record a path; the deleted ones are history. The databases use the index of the live ones only for
# queries that say this in the very same words.
LIVE = text("NOT is_deleted")

scale_file = Table(
    "scale_file",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
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
    # With defaults for the programs of version 0001 that other hosts may still run on the same database.
    Column("checksum", Text, nullable=False, server_default=text("''")),
    Column("tags", Json, nullable=False, server_default=text("'{}'")),
    Index("scale_file_live_path", "workspace", "file_path", unique=True, sqlite_where=LIVE, postgresql_where=LIVE),
    Index("scale_file_path", "workspace", "file_path"),  # what is and was at a path
    Index("scale_file_workspace", "workspace", "id"),  # a workspace's pages
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
        checksum: `algorithm:hex`, as `sha256:9f86d0...`; empty while unknown.
        tags: what the user wants to know of the file; names and values are text.
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
    checksum: str = ""
    tags: dict[str, str] = field(default_factory=dict)
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
        """Add to the catalog, or update there; see `save_files`."""
        save_files([self])

    def row(self) -> dict[str, Any]:
        """The fields by column name."""
        return dict(zip(_COLUMNS, _VALUES(self), strict=True))


_COLUMNS = [column.name for column in scale_file.columns]
_VALUES = attrgetter(*_COLUMNS)  # batches are large


class SavesFiles(Protocol):
    """What `save_files`, and brokers by way of `storage.journal`, need of a catalog."""

    def save_all(self, files: Sequence[ScaleFile]) -> None: ...

    def begin(self, intents: Sequence[Intent]) -> None: ...

    def update_intent(self, intent: Intent) -> None: ...

    def finish(self, files: Sequence[ScaleFile], done: Sequence[Intent], dropped: Sequence[Intent]) -> None: ...


_in_use: SavesFiles | None = None


def use_catalog(catalog: SavesFiles | None) -> None:
    """Make `save_files` write to `catalog`. For composition roots; a library user calls `configure`."""
    global _in_use  # noqa: PLW0603  # one catalog a process, as the reference's models imply
    _in_use = catalog


def save_files(files: Sequence[ScaleFile]) -> None:
    """Add to the catalog, or update there, all in one transaction. Sets `id` and `last_modified`.

    Raises:
        RuntimeError: no catalog is in use.
        ValueError: a field holds what no database can store, see `check_storable`.
        BackendUnavailable: the database cannot be used now.
    """
    catalog_in_use().save_all(files)


def require_catalog() -> None:
    """See to it that records can be saved, before a file is touched.

    Raises:
        RuntimeError: no catalog is in use, see `storage.catalog.configure`.
    """
    catalog_in_use()


def catalog_in_use() -> SavesFiles:
    """The catalog that `use_catalog` was told.

    Raises:
        RuntimeError: there is none.
    """
    if _in_use is None:
        raise RuntimeError("no catalog is in use: call storage.catalog.configure(url) first")
    return _in_use


# PostgreSQL stores no NUL, and neither database what UTF-8 cannot say.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_TEXT_FIELDS = ("workspace", "file_path", "file_name", "media_type", "checksum", "uuid")
_TEXTS = attrgetter(*_TEXT_FIELDS)


def is_storable(value: object) -> bool:
    """Whether the catalog can store this text."""
    return isinstance(value, str) and _UNSTORABLE.search(value) is None


def check_storable(file: ScaleFile) -> None:
    """Refuse a record that not every database can store, on all of them. Brokers ask before they touch the file.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    texts: Sequence[str] = _TEXTS(file)
    try:
        if file.tags != {}:
            texts = [*texts, *file.tags, *file.tags.values()]
        is_fine = _UNSTORABLE.search("".join(texts)) is None
    except (TypeError, AttributeError):  # one is no text at all
        is_fine = False
    if not is_fine:
        raise ValueError(_refusal(file))
    if file.deleted is None and type(file.created) is type(file.last_modified) is datetime:
        return  # as most are, and batches are large
    for name in ("created", "last_modified", "deleted"):
        value = getattr(file, name)
        if not isinstance(value, datetime) and not (name == "deleted" and value is None):
            raise ValueError(f"{name} of file {quoted(file.file_path)} must be a datetime")


def _refusal(file: ScaleFile) -> str:
    wrong = next((name for name in _TEXT_FIELDS if not is_storable(getattr(file, name))), "tags")
    path = quoted(str(file.file_path))
    return f"{wrong} of file {path} must be text that is valid UTF-8 without NUL"
