"""The catalog of files: one suite over every database, each a real one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, event, text

from storage import models
from storage.catalog import Catalog
from storage.models import ScaleFile, use_catalog

MANY = 10_000


def new(path: str, workspace: str = "w", **fields: Any) -> ScaleFile:
    return ScaleFile(file_path=path, workspace=workspace, **fields)


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What is sent to any database meanwhile, with parameters."""
    found: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        found.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_a_saved_record_is_found_by_path_id_and_uuid(records: Catalog) -> None:
    file = new("a/b.txt", file_size=3, media_type="text/plain")
    file.save()
    assert file.id is not None
    assert records.find_path("w", "a/b.txt") == file
    assert records.find_id("w", file.id) == file
    assert records.find_uuid("w", file.uuid) == file
    assert records.find_id("other", file.id) is None
    assert records.find_uuid("other", file.uuid) is None
    assert records.find_path("other", "a/b.txt") is None


def test_live_records_are_found_by_many_paths_at_once(records: Catalog) -> None:
    files = [new(f"d/{number}", tags={"a": "b"}) for number in range(5)]
    deleted, other = new("gone"), new("d/0", workspace="other")
    deleted.set_deleted()
    records.save_all([*files, deleted, other])
    found = records.find_paths("w", ["d/3", "d/0", "none", "gone", "n\0l", "\udcff"])
    assert sorted(found, key=lambda file: file.file_path) == [files[0], files[3]]
    assert records.find_paths("w", []) == []


def test_every_field_is_kept(records: Catalog) -> None:
    tags = {"sensor": "optical", "": "ünïcode ☃", "quote's": '"\\ %(x)s :y', "long": "x" * 100_000}
    file = new("a", checksum="sha256:9f86d081", tags=tags, file_size=2**63 - 1, media_type="a/b", file_name="b")
    file.set_deleted()
    file.save()
    assert records.find_uuid("w", file.uuid) == file
    plain = new("b")
    plain.save()
    found = records.find_path("w", "b")
    assert found == plain
    assert (found.checksum, found.tags, found.file_size, found.deleted) == ("", {}, None, None)


@pytest.mark.parametrize("hours", [5.5, 0, -11])
def test_times_keep_their_instant_to_the_microsecond_and_come_back_in_utc(records: Catalog, hours: float) -> None:
    moment = datetime(2026, 11, 22, 1, 0, 0, 123456, tzinfo=timezone(timedelta(hours=hours)))
    file = new("a", created=moment, is_deleted=True, deleted=moment)
    file.save()
    found = records.find_uuid("w", file.uuid)
    assert found is not None
    assert (found.created, found.deleted, found.last_modified) == (moment, moment, file.last_modified)
    assert all(time.tzinfo is UTC for time in (found.created, found.deleted, found.last_modified) if time)
    assert file.last_modified > file.created


def test_a_path_has_one_live_record_and_any_number_of_deleted_ones(records: Catalog) -> None:
    for _ in range(3):
        file = new("a")
        file.save()
        file.set_deleted()
        file.save()
    live = new("a")
    live.save()
    assert [found.is_deleted for found in records.page("w")] == [True, True, True, False]
    assert records.find_path("w", "a") == live


def test_a_new_file_at_a_known_path_takes_the_record_over(records: Catalog) -> None:
    first = new("a", file_size=1)
    first.save()
    second = new("a", file_size=2)
    second.save()
    assert (second.id, second.uuid, second.created) == (first.id, first.uuid, first.created)
    assert [found.file_size for found in records.page("w")] == [2]


def test_a_record_that_moves_onto_another_marks_that_as_deleted(records: Catalog) -> None:
    one, two = new("one"), new("two")
    records.save_all([one, two])
    one.file_path = "two"
    one.save()
    moved, displaced = records.page("w")
    assert (moved.id, moved.is_deleted, displaced.id, displaced.is_deleted) == (one.id, False, two.id, True)
    assert displaced.deleted == displaced.last_modified == one.last_modified


def test_a_batch_is_saved_whole_or_not_at_all(records: Catalog) -> None:
    same = new("b")
    files = [new("a"), same, new("c", uuid=same.uuid)]
    with pytest.raises(Exception, match=r"(?i)unique"):
        models.save_files(files)
    assert records.page("w") == []
    assert [file.id for file in files] == [None, None, None]


def test_an_empty_batch_is_nothing(records: Catalog) -> None:
    records.save_all([])
    assert records.page("w") == []


def test_records_may_go_from_one_to_the_next_in_one_batch(records: Catalog) -> None:
    a, b, c = files = [new(path) for path in "abc"]
    records.save_all(files)
    a.file_path, b.file_path, c.file_path = "b", "c", "d"
    records.save_all(files)
    assert [(found.id, found.file_path, found.is_deleted) for found in records.page("w")] == [
        (a.id, "b", False),
        (b.id, "c", False),
        (c.id, "d", False),
    ]


# Per item of a batch: which record (those above the known ones are new), where to, whether deleted.
ITEM = st.tuples(st.integers(0, 7), st.sampled_from("abcde"), st.booleans())
NUMBERS = itertools.count()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ITEM, max_size=8), st.lists(ITEM, max_size=12))
def test_a_batch_is_as_if_saved_one_after_another(
    records: Catalog, known: list[tuple[int, str, bool]], batch: list[tuple[int, str, bool]]
) -> None:
    def result(save_each: bool) -> tuple[list[tuple[Any, ...]], list[int]]:
        workspace = f"w{next(NUMBERS)}"
        for _, path, is_deleted in known:
            new(path, workspace, is_deleted=is_deleted).save()
        files = []
        for size, (index, path, is_deleted) in enumerate(batch):
            page = records.page(workspace)
            file = page[index] if index < len(page) else new(path, workspace)
            file.file_path, file.is_deleted, file.file_size = path, is_deleted, size
            files.append(file)
        if save_each:
            for file in files:
                records.save_all([file])
        else:
            records.save_all(files)
        page = records.page(workspace)
        order = {found.id: number for number, found in enumerate(page)}
        assert all(records.find_uuid(workspace, file.uuid) for file in files)
        kept = [(found.file_path, found.is_deleted, found.deleted is None, found.file_size) for found in page]
        return kept, [order[file.id] for file in files]

    assert result(save_each=False) == result(save_each=True)


def test_a_large_batch_takes_a_few_statements(records: Catalog) -> None:
    files = [new(f"{number % 100}/{number}") for number in range(MANY)]
    with statements() as sent:
        records.save_all(files)
    assert len(sent) <= 40
    assert [found.file_path for found in records.page("w", limit=MANY)] == [file.file_path for file in files]
    again = [new(file.file_path, file_size=1) for file in files]
    with statements() as sent:
        records.save_all(again)
    assert len(sent) <= 40
    assert [file.id for file in again] == [file.id for file in files]
    for file in again:
        file.file_path = f"moved/{file.file_path}"
    with statements() as sent:
        records.save_all(again)
    assert len(sent) <= 40
    assert records.page("w", limit=MANY) == again


def test_nothing_is_found_by_reading_the_whole_table(records: Catalog, catalog_url: str) -> None:
    file = new("a")
    file.save()
    with statements() as sent:
        records.find_path("w", "a")
        records.find_id("w", file.id or 0)
        records.find_uuid("w", file.uuid)
        records.page("w")
        records.page("w", file_path="a")
        records.save_all([new("a"), new("b")])
    selects = [(statement, parameters) for statement, parameters in sent if statement.startswith("SELECT")]
    assert len(selects) >= 6
    engine = create_engine(catalog_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        is_sqlite = engine.dialect.name == "sqlite"
        if not is_sqlite:
            connection.execute(text("SET enable_seqscan = off"))  # the table is small
        for statement, parameters in selects:
            explain = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN"
            plan = str(connection.exec_driver_sql(f"{explain} {statement}", parameters).all())
            assert ("SCAN" if is_sqlite else "Seq Scan") not in plan, (statement, plan)
    engine.dispose()


def test_pages_filter_and_go_on_after_an_id(records: Catalog) -> None:
    files = [new(f"f{number}") for number in range(5)]
    records.save_all(files)
    files[1].set_deleted()
    files[1].save()
    first = records.page("w", limit=2)
    rest = records.page("w", after_id=first[-1].id or 0)
    assert [found.file_path for found in first + rest] == [f"f{number}" for number in range(5)]
    assert [found.file_path for found in records.page("w", is_deleted=True)] == ["f1"]
    assert len(records.page("w", is_deleted=False)) == 4
    assert [found.file_path for found in records.page("w", file_path="f3")] == ["f3"]
    assert records.page("other") == []


@pytest.mark.parametrize("path", ["%(a)s", ":a", "a'b", 'a"b', "a\nb", "\\", "\x7f\x01", "ü☃𐍈", "x" * 4095])
def test_names_are_data(records: Catalog, path: str) -> None:
    file, other = new(path, workspace=path[:200]), new(f"{path}2", workspace=path[:200])
    records.save_all([file, other])
    assert records.find_path(file.workspace, path) == file
    assert records.page(file.workspace, file_path=path) == [file]


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize("field", ["workspace", "file_path", "file_name", "media_type", "checksum", "uuid"])
def test_text_that_no_database_stores_is_refused_by_name(records: Catalog, field: str, bad: str) -> None:
    file = new("a")
    setattr(file, field, bad)
    with pytest.raises(ValueError, match=f"^{field} of file .* must be text that is valid UTF-8 without NUL$"):
        records.save_all([new("b"), file])
    assert records.page("w") == []


@pytest.mark.parametrize("tags", [{"a": "\0"}, {"\0": "a"}, {"a": "\ud800"}, {"a": 1}, {"a": None}, {1: "a"}])
def test_tags_that_no_database_stores_are_refused_by_name(records: Catalog, tags: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^tags of file 'a' must be text"):
        new("a", tags=tags).save()
    assert records.page("w") == []


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"])
def test_nothing_is_found_by_what_cannot_be_stored(records: Catalog, bad: str) -> None:
    assert records.find_path("w", bad) is None
    assert records.find_uuid("w", bad) is None
    assert records.page("w", file_path=bad) == []


def test_many_threads_saving_one_path_end_with_one_live_record(records: Catalog) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                new("same").save()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(records.page("w")) == 1


def test_without_a_catalog_saving_says_what_to_do_and_can_be_asked_before() -> None:
    use_catalog(None)
    for save in (new("a").save, lambda: models.save_files([]), models.require_catalog):
        with pytest.raises(RuntimeError, match=r"storage\.catalog\.configure"):
            save()


def test_with_a_catalog_saving_is_possible(records: Catalog) -> None:
    models.require_catalog()
    files = [new("a"), new("b")]
    models.save_files(files)
    assert records.page("w") == files
