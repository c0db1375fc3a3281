"""How records are written to the catalog: a batch in a few statements, with the outcome of one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    Connection,
    Delete,
    Insert,
    Row,
    Select,
    Text,
    Update,
    bindparam,
    func,
    select,
    true,
    update,
)
from sqlalchemy.dialects import sqlite

from storage.models import LIVE, UtcDateTime, scale_file

_VALUES_A_QUERY = 1000

# Made once: they are executed for every group of files.
_ADD = scale_file.insert()
_CHANGE = update(scale_file).where(scale_file.c.id == bindparam("record"))
_IDS = select(scale_file.c.uuid, scale_file.c.id)
_LIVE_AT = select(scale_file.c.file_path, scale_file.c.id, scale_file.c.uuid, scale_file.c.created)


def save_rows(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Add or update records as if one after another.

    Args:
        rows: as `ScaleFile.row` makes them. Filled in are the ids, and what is kept of a record taken over.

    All at once where what becomes of a row depends on no other of them; else one half after the other.
    """
    live = {(row["workspace"], row["file_path"]): row for row in rows if not row["is_deleted"]}
    present = _find_live(connection, live)
    if _depend_on_each_other(rows, live, present):
        middle = len(rows) // 2
        save_rows(connection, rows[:middle])
        save_rows(connection, rows[middle:])
        return
    displaced = []
    for path, found in present.items():
        row = live[path]
        if row["id"] is None:
            row.update(id=found.id, uuid=found.uuid, created=found.created)
        elif row["id"] != found.id:
            now = row["last_modified"]
            displaced.append({"id": found.id, "is_deleted": True, "deleted": now, "last_modified": now})
    _update(connection, displaced)
    _update(connection, [row for row in rows if row["id"] is not None])
    _insert(connection, [row for row in rows if row["id"] is None])


def _depend_on_each_other(
    rows: Sequence[dict[str, Any]],
    live: Mapping[tuple[str, str], dict[str, Any]],
    present: Mapping[tuple[str, str], Row[Any]],
) -> bool:
    """Whether two rows are of one path or record, or one row's path is still another's. Never for a single row."""
    records = [row["id"] for row in rows if row["id"] is not None]
    ids = set(records)
    return (
        len(ids) < len(records)
        or len(live) < sum(not row["is_deleted"] for row in rows)
        or any(found.id in ids and found.id != live[path]["id"] for path, found in present.items())
    )


def _find_live(connection: Connection, paths: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Row[Any]]:
    """Id, uuid and creation of the live records at each (workspace, path)."""
    columns = scale_file.c
    by_workspace: dict[str, list[str]] = {}
    for workspace, path in paths:
        by_workspace.setdefault(workspace, []).append(path)
    found: dict[tuple[str, str], Row[Any]] = {}
    for workspace, wanted in by_workspace.items():
        query = _LIVE_AT.where(columns.workspace == workspace, LIVE)
        for row in where_one_of(connection, query, columns.file_path, wanted):
            found[workspace, row.file_path] = row
    return found


def where_one_of(
    connection: Connection, query: Select[Any], column: Column[str], values: Sequence[str]
) -> Iterator[Row[Any]]:
    """The rows of `query` whose `column`, unique among them, is one of `values`."""
    for start in range(0, len(values), _VALUES_A_QUERY):
        some = values[start : start + _VALUES_A_QUERY]
        if connection.dialect.name == "postgresql":
            # Not IN: the plan for that, kept from when the table was small, compares each row with each value.
            # This looks into the index once a value, whatever is believed of the table.
            wanted = func.unnest(bindparam(None, some, ARRAY(Text))).table_valued("value").render_derived("wanted")
            each = query.where(column == wanted.c.value).limit(1).lateral()
            yield from connection.execute(select(each).select_from(wanted).join(each, true()))
        else:
            yield from connection.execute(query.where(column.in_(some)))


def _update(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Update records by `id`, all with the same columns."""
    if not rows:
        return
    for row in rows:
        row["record"] = row.pop("id")
    rows.sort(key=lambda row: row["record"])  # in one order, no two batches wait for each other
    execute_each(connection, _CHANGE, rows)
    for row in rows:
        row["id"] = row.pop("record")


def _insert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Add records, and fill in their `id`."""
    if not rows:
        return
    for row in rows:
        del row["id"]
    added: Iterable[Row[Any]]
    if len(rows) > 1:  # much faster than a statement that returns them
        execute_each(connection, _ADD, rows)
        added = where_one_of(connection, _IDS, scale_file.c.uuid, [row["uuid"] for row in rows])
    else:
        added = connection.execute(_ADD.returning(*_IDS.selected_columns), rows)
    ids = {row.uuid: row.id for row in added}
    for row in rows:
        row["id"] = ids[row["uuid"]]


def execute_each(
    connection: Connection, statement: Insert | Update | Delete, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Execute a statement, which is made once, for each of the rows, all with the same keys; at least one.

    In SQLite by its driver: what SQLAlchemy does a row takes several times as long as the database.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(statement, rows)
        return
    sql, columns = _plain(statement, tuple(rows[0]))
    connection.exec_driver_sql(
        sql, [tuple([tell(row[name]) if tell else row[name] for name, tell in columns]) for row in rows]
    )


_Tell = Callable[[Any], object]


@cache  # of few statements, with few sets of keys
def _plain(
    statement: Insert | Update | Delete, keys: tuple[str, ...]
) -> tuple[str, list[tuple[str, _Tell | None]]]:
    """A statement for SQLite's driver, and the keys of its parameters in order, with how each value is told."""
    compiled = statement.compile(dialect=sqlite.dialect(paramstyle="qmark"), column_keys=keys)
    return str(compiled), [(name, _teller(compiled.binds[name].type)) for name in compiled.positiontup or ()]


def _teller(kind: object) -> _Tell | None:
    if isinstance(kind, UtcDateTime):
        return _time
    return _json if isinstance(kind, JSON) else None


def _time(value: datetime | None) -> str | None:
    """As SQLAlchemy tells SQLite of a time."""
    return None if value is None else value.astimezone(UTC).isoformat(" ", "microseconds").removesuffix("+00:00")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
