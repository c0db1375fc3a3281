"""The catalog of files, on a real SQLite file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from storage import catalog
from storage.catalog import SCHEMA_VERSION, Catalog
from storage.models import ScaleFile, metadata, use_catalog


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Catalog]:
    opened = catalog.configure(f"sqlite:///{tmp_path}/c.sqlite")
    yield opened
    use_catalog(None)
    opened.close()


def new(path: str, workspace: str = "w", **fields: object) -> ScaleFile:
    return ScaleFile(file_path=path, workspace=workspace, **fields)  # type: ignore[arg-type]


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


def test_times_keep_their_instant_and_come_back_in_utc(records: Catalog) -> None:
    moment = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    file = new("a", created=moment)
    file.save()
    found = records.find_path("w", "a")
    assert found is not None
    assert found.created == moment
    assert found.created.tzinfo is UTC


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
    assert [(found.id, found.is_deleted) for found in records.page("w")] == [(one.id, False), (two.id, True)]


def test_a_batch_is_saved_whole_or_not_at_all(records: Catalog) -> None:
    broken = new("b")
    broken.media_type = None  # type: ignore[assignment]
    with pytest.raises(Exception, match="NOT NULL"):
        records.save_all([new("a"), broken])
    assert records.page("w") == []


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


def test_saving_without_a_catalog_says_what_to_do() -> None:
    use_catalog(None)
    with pytest.raises(RuntimeError, match="configure"):
        new("a").save()


def test_migrations_make_what_the_models_say_and_can_be_undone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/c.sqlite"
    opened = Catalog(url)
    opened.upgrade()
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA_VERSION
    opened.downgrade("base")
    with sqlite3.connect(tmp_path / "c.sqlite") as plain:
        tables = {name for (name,) in plain.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    plain.close()
    assert tables == {"alembic_version"}
    opened.upgrade()
    opened.close()
    engine.dispose()


@pytest.mark.parametrize(
    "url", ["nonsense", "floppy:///x", "postgresql+nodriver://h/d", "sqlite:////no/such/dir/c.sqlite"]
)
def test_a_database_that_cannot_be_used_is_an_error_of_sqlalchemy(url: str) -> None:
    with pytest.raises(SQLAlchemyError):
        Catalog(url).upgrade()
