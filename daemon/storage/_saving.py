"""How records are written to the catalog: a batch in a few statements, with the outcome of one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, Column, Connection, Row, Select, Text, bindparam, func, select, true, update

from storage.models import LIVE, scale_file

_VALUES_A_QUERY = 1000


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
        query = select(columns.file_path, columns.id, columns.uuid, columns.created)
        query = query.where(columns.workspace == workspace, LIVE)
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
    connection.execute(update(scale_file).where(scale_file.c.id == bindparam("record")), rows)
    for row in rows:
        row["id"] = row.pop("record")


def _insert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Add records, and fill in their `id`."""
    if not rows:
        return
    for row in rows:
        del row["id"]
    keys = select(scale_file.c.uuid, scale_file.c.id)
    added: Iterable[Row[Any]]
    if len(rows) > 1 and connection.dialect.name == "postgresql":  # five times as fast as one large statement
        connection.execute(scale_file.insert(), rows)
        added = where_one_of(connection, keys, scale_file.c.uuid, [row["uuid"] for row in rows])
    else:
        added = connection.execute(scale_file.insert().returning(*keys.selected_columns), rows)
    ids = {row.uuid: row.id for row in added}
    for row in rows:
        row["id"] = ids[row["uuid"]]
