"""The journal's tables, and how they are written and read: intents, and what requests with a key have done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import sqlalchemy
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    Row,
    Select,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    delete,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from storage._saving import execute_each, save_rows
from storage.files import Actor
from storage.journal import FOREIGN_AGE, KEY_AGE, Claim, DoneItem, Identity, Intent, KeyedItem, Seen
from storage.models import LIVE, Id, Json, ScaleFile, UtcDateTime, metadata, scale_file

file_intent = Table(
    "file_intent",
    metadata,
    Column("token", String(32), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("run", String(32), nullable=False),
    Column("started", UtcDateTime, nullable=False),
    Column("workspace", Text, nullable=False),
    Column("verb", String(16), nullable=False),
    Column("file_path", Text, nullable=False),
    Column("new_path", Text, nullable=True),
    Column("model", Json, nullable=False),  # the ScaleFile, as far as its columns here do not tell it
    Column("details", Json, nullable=False),  # the rest of the Intent
    Column("request_id", BigInteger, nullable=True),
    Index("file_intent_workspace", "workspace"),
    Index("file_intent_request", "request_id"),
)

# A request with an idempotency key. A run is empty when nobody is at it.
keyed_request = Table(
    "keyed_request",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("workspace", Text, nullable=False),
    Column("caller", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("owner", Text, nullable=False),
    Column("run", String(32), nullable=False),
    Column("used", UtcDateTime, nullable=False),
    UniqueConstraint("workspace", "caller", "key", name="keyed_request_key"),
    Index("keyed_request_used", "used"),
)

# What was done of such a request.
keyed_item = Table(
    "keyed_item",
    metadata,
    Column("request_id", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("file_id", BigInteger, nullable=True),
    Column("created", UtcDateTime, nullable=False),
    Index("keyed_item_created", "created"),
)

# Made once: they are executed for every group of files.
_ADD = file_intent.insert()
_REMOVE = delete(file_intent).where(file_intent.c.token == bindparam("closed"))

_MODEL_FIELDS = ("file_name", "file_size", "media_type", "checksum", "tags", "uuid", "id")
_MODEL_TIMES = ("created", "last_modified")
_MODEL = attrgetter(*_MODEL_FIELDS)  # batches are large


def add(connection: Connection, intents: Sequence[Intent]) -> None:
    """Write intents down."""
    execute_each(connection, _ADD, [_row(intent) for intent in intents])


def update(connection: Connection, intent: Intent) -> None:
    """Write down what is known of an intent by now. One that is gone already is no error."""
    statement = sqlalchemy.update(file_intent).where(file_intent.c.token == intent.token)
    connection.execute(statement.values(details=_row(intent)["details"]))


def close(
    connection: Connection, done: Sequence[Intent], dropped: Sequence[Intent], ids: Mapping[str, int]
) -> None:
    """Remove intents, and remember what requests with a key have done. One that is gone already is no error.

    Args:
        ids: of the records that were just saved, by the uuids that their models had.
    """
    tokens = [{"closed": intent.token} for intent in (*done, *dropped)]
    if tokens:
        execute_each(connection, _REMOVE, tokens)
    _remember(connection, [(intent.item, ids.get(intent.file.uuid, intent.file.id)) for intent in done])


def _remember(connection: Connection, done: Sequence[tuple[KeyedItem | None, int | None]]) -> None:
    now = datetime.now(UTC)
    rows = [{**item._asdict(), "file_id": file_id, "created": now} for item, file_id in done if item]
    if rows:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(keyed_item).on_conflict_do_nothing(), rows)


def _row(intent: Intent) -> dict[str, Any]:
    file, item = intent.file, intent.item
    model = dict(zip(_MODEL_FIELDS, _MODEL(file), strict=True))
    model |= {"created": file.created.isoformat(), "last_modified": file.last_modified.isoformat()}
    details = {
        "before": intent.before,
        "size": intent.size,
        "overwrite": intent.overwrite,
        "is_recorded": intent.is_recorded,
        "item": item,
        "actor": intent.actor,
    }
    return {
        **dict(zip(_PLAIN, _VALUES(intent), strict=True)),
        "model": model,
        "details": details,
        "request_id": item.request_id if item else None,
    }


_PLAIN = ("token", "owner", "run", "started", "workspace", "verb", "file_path", "new_path")
_VALUES = attrgetter(*_PLAIN)


def _intent(row: Row[Any]) -> Intent:
    model = {**row.model, **{name: datetime.fromisoformat(row.model[name]) for name in _MODEL_TIMES}}
    details = row.details
    return Intent(
        **{name: getattr(row, name) for name in _PLAIN},
        file=ScaleFile(file_path=row.file_path, workspace=row.workspace, **model),
        before=Identity(*details["before"]) if details["before"] else None,
        size=details["size"],
        overwrite=details["overwrite"],
        is_recorded=details["is_recorded"],
        item=KeyedItem(*details["item"]) if details["item"] else None,
        actor=_actor(details.get("actor")),
    )


def _actor(told: Sequence[Any] | None) -> Actor | None:
    if told is None:  # of an earlier version, or of nobody in particular
        return None
    user, group, groups = told
    return Actor(user, group, tuple(groups))


class Journal:
    """What is asked of the journal apart from saving records. Raises `BackendUnavailable` as the catalog does."""

    def __init__(self, engine: Engine, writing: Engine, told: Callable[[], AbstractContextManager[None]]) -> None:
        self._engine, self._writing, self._told = engine, writing, told

    def open_in(self, workspace: str, owner: str, before: datetime) -> list[Intent]:
        """The intents in a workspace that are this owner's, or anybody's who began before then. Oldest first."""
        c = file_intent.c
        return self._found(
            select(file_intent).where(c.workspace == workspace, or_(c.owner == owner, c.started < before))
        )

    def of_request(self, request_id: int) -> list[Intent]:
        """The intents of a request with a key. Oldest first."""
        return self._found(select(file_intent).where(file_intent.c.request_id == request_id))

    def is_rivalled(self, intent: Intent) -> bool:
        """Whether there is another intent to upload to the same path."""
        c = file_intent.c
        is_same = (c.workspace == intent.workspace, c.file_path == intent.file_path, c.verb == intent.verb)
        with self._told(), self._engine.connect() as connection:
            found = connection.execute(select(c.token).where(*is_same, c.token != intent.token).limit(1))
            return intent.verb == "upload" and found.first() is not None

    def seen(self, intent: Intent) -> Seen:
        """The records that an intent can change, as they are now."""
        with self._told(), self._engine.connect() as connection:
            return _seen(connection, intent)

    def settle(self, intent: Intent, seen: Seen, files: Sequence[ScaleFile], *, is_done: bool) -> bool:
        """Save records and close an intent that was found, unless the records are not as they were seen any more.

        Returns:
            Whether it is closed now: by this, or by somebody else, and then nothing is saved.
        """
        with self._told():
            try:
                with self._writing.begin() as connection:
                    return self._settle(connection, intent, seen, files, is_done=is_done)
            except (IntegrityError, _Changed):
                return False

    def _settle(
        self, connection: Connection, intent: Intent, seen: Seen, files: Sequence[ScaleFile], *, is_done: bool
    ) -> bool:
        if connection.execute(_REMOVE, {"closed": intent.token}).rowcount == 0:
            return True
        if _seen(connection, intent, for_update=True) != seen:
            raise _Changed  # the intent stays: the transaction is rolled back
        now = datetime.now(UTC)
        rows = [file.row() | {"last_modified": now} for file in files]
        if rows:
            save_rows(connection, rows)
        if is_done:
            known = seen.at_path if intent.verb == "upload" else seen.own
            file_id = rows[0]["id"] if rows else known.id if known else None
            _remember(connection, [(intent.item, file_id)])
        return True

    def claim(self, workspace: str, caller: str, key: str, digest: str, process: tuple[str, str]) -> Claim:
        """Take a request with a key for this process, and forget all that are too old.

        Args:
            process: owner and run. Of the same owner, no other run is alive, and its own is not at it.
        """
        now = datetime.now(UTC)
        c = keyed_request.c
        mine = (c.workspace == workspace, c.caller == caller, c.key == key)
        row = {"workspace": workspace, "caller": caller, "key": key, "digest": digest}
        held = {"owner": process[0], "run": process[1], "used": now}
        with self._told(), self._writing.begin() as connection:
            _forget(connection, now)
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            statement = insert(keyed_request).on_conflict_do_nothing().returning(c.id)
            new = connection.execute(statement, row | held).scalar()
            if new is not None:
                return Claim(new, is_new=True, is_same=True, is_busy=False)
            found = connection.execute(select(keyed_request).where(*mine).with_for_update()).one()
            is_others = found.run != "" and found.owner != process[0]
            is_busy = is_others and found.used > now - FOREIGN_AGE
            if found.digest == digest and not is_busy:
                connection.execute(sqlalchemy.update(keyed_request).where(c.id == found.id).values(**held))
            return Claim(found.id, is_new=False, is_same=found.digest == digest, is_busy=is_busy)

    def remember(self, item: KeyedItem, file_id: int | None) -> None:
        """Remember that an item of a request with a key is done."""
        with self._told(), self._writing.begin() as connection:
            _remember(connection, [(item, file_id)])

    def release(self, request_id: int) -> None:
        """Let go of a request with a key."""
        statement = sqlalchemy.update(keyed_request).where(keyed_request.c.id == request_id)
        with self._told(), self._writing.begin() as connection:
            connection.execute(statement.values(run="", used=datetime.now(UTC)))

    def done_items(self, request_id: int, start: int, count: int) -> dict[int, DoneItem]:
        """What was done of a request's `count` items from `start` on, by number."""
        c = keyed_item.c
        query = select(c.number, c.digest, c.file_id).where(c.request_id == request_id)
        with self._told(), self._engine.connect() as connection:
            rows = connection.execute(query.where(c.number >= start, c.number < start + count))
            return {row.number: DoneItem(row.digest, row.file_id) for row in rows}

    def _found(self, query: Select[Any]) -> list[Intent]:
        with self._told(), self._engine.connect() as connection:
            return [_intent(row) for row in connection.execute(query.order_by(file_intent.c.started))]


class _Changed(Exception):
    """The records are not as they were seen any more."""


def _forget(connection: Connection, now: datetime) -> None:
    connection.execute(delete(keyed_item).where(keyed_item.c.created < now - KEY_AGE))
    connection.execute(delete(keyed_request).where(keyed_request.c.used < now - KEY_AGE))


def _seen(connection: Connection, intent: Intent, *, for_update: bool = False) -> Seen:
    c = scale_file.c

    def find(*conditions: Any) -> ScaleFile | None:
        query = select(scale_file).where(c.workspace == intent.workspace, *conditions)
        row = connection.execute(query.with_for_update() if for_update else query).first()
        return None if row is None else ScaleFile(**row._mapping)

    return Seen(
        find(c.uuid == intent.file.uuid),
        find(c.file_path == intent.file_path, LIVE),
        find(c.file_path == intent.new_path, LIVE) if intent.new_path is not None else None,
    )
