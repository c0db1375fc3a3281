"""The catalog's databases: written to by several at once, out of order, migrated. Each a real one."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, TextClause, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from lab import postgres
from lab.directories import temporary_directory
from lab.namespaces import in_private_namespace
from lab.postgres import OwnServer, own_server
from lab.processes import wait_until
from storage import catalog
from storage.catalog import SCHEMA_VERSION, Catalog
from storage.exceptions import BackendUnavailable
from storage.models import ScaleFile, metadata, use_catalog

WRITER = """
import sys
from storage import catalog
from storage.models import ScaleFile

url, number = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
records = catalog.configure(url)
paths = [f"f{n}" for n in range(50)]
for _ in range(5):
    paths.reverse()
    some = paths if number % 2 else paths[::-1]
    records.save_all([ScaleFile(file_path=path, workspace="w", file_size=number) for path in some])
records.close()
"""
ADD = text(
    "INSERT INTO scale_file"
    " (uuid, workspace, file_path, file_name, media_type, is_deleted, created, last_modified) VALUES"
    " (CAST(:path AS TEXT), 'w', CAST(:path AS TEXT), CAST(:path AS TEXT), '', :deleted,"
    " '2026-11-22 12:00:00.123456', '2026-11-22 12:00:00.123456')"
)


def new(path: str, **fields: Any) -> ScaleFile:
    return ScaleFile(file_path=path, workspace="w", **fields)


@contextmanager
def another(url: str) -> Iterator[Engine]:
    """Access to the database that the catalog knows nothing of."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def begun(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """`work` in a thread, which ends before the block does; its failure, if any, is in the list."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield failures
    finally:
        thread.join(60)
        assert not thread.is_alive()


def wait_until_blocked(by: Connection, watching: Engine) -> None:
    """Wait until somebody waits for what the connection `by` holds. SQLite does not tell that."""
    if watching.dialect.name != "postgresql":
        return
    query = text("SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))")
    pid = by.execute(text("SELECT pg_backend_pid()")).scalar()
    wait_for_activity(watching, query.bindparams(pid=pid), "a writer that waits")


def wait_for_activity(engine: Engine, query: TextClause, what: str) -> None:
    """Each look in a transaction of its own: within one the server goes on showing what the first look saw."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watching:
        wait_until(lambda: bool(watching.execute(query).scalar()), what)


# Several writers


def test_processes_that_start_and_save_at_once_all_succeed(catalog_url: str) -> None:
    """The tables are made once, whoever is first, and each path has one record."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, catalog_url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        for number in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    results = [(writer.communicate(timeout=60)[1].decode(), writer.returncode) for writer in writers]
    assert [code for _, code in results] == [0] * 4, results
    opened = Catalog(catalog_url)
    found = opened.page("w")
    opened.close()
    assert sorted(file.file_path for file in found) == sorted(f"f{number}" for number in range(50))
    assert not any(file.is_deleted for file in found)


def test_catalogs_that_are_opened_at_once_make_the_tables_once(catalog_url: str) -> None:
    """The second one comes while the first is at it."""
    blocked, goes_on = threading.Event(), threading.Event()
    opened = [Catalog(catalog_url), Catalog(catalog_url)]
    makers: list[Connection] = []

    def pause(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if "CREATE TABLE scale_file" in statement and not makers:
            makers.append(connection)
            blocked.set()
            assert goes_on.wait(60)

    event.listen(Engine, "before_cursor_execute", pause)
    try:
        with another(catalog_url) as engine, begun(opened[0].upgrade) as first:
            assert blocked.wait(60)
            with begun(opened[1].upgrade) as second:
                if engine.dialect.name == "postgresql":
                    waiting = text(
                        "SELECT count(*) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    )
                    wait_for_activity(engine, waiting, "the second")
                goes_on.set()
    finally:
        event.remove(Engine, "before_cursor_execute", pause)
    assert (first, second) == ([], [])
    for each in opened:
        assert each.page("w") == []
        each.close()


@pytest.mark.parametrize("paths", [["a"], ["x", "a", "y"]])
def test_a_path_that_another_process_takes_meanwhile_is_taken_over(
    records: Catalog, catalog_url: str, paths: list[str]
) -> None:
    files = [new(path) for path in paths]
    with another(catalog_url) as engine, engine.connect() as other:
        other.execute(ADD, {"path": "a", "deleted": False})
        with begun(lambda: records.save_all(files)) as failures:
            wait_until_blocked(other, engine)
            other.commit()
    assert failures == []
    assert {found.file_path: found.uuid for found in records.page("w")} == {
        file.file_path: file.uuid for file in files
    }
    assert files[paths.index("a")].uuid == "a"


@pytest.mark.postgresql
@pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
def test_paths_that_two_others_take_meanwhile_are_taken_over(records: Catalog, catalog_url: str) -> None:
    files = [new("a"), new("b")]
    with another(catalog_url) as engine, engine.connect() as one, engine.connect() as two:
        one.execute(ADD, {"path": "a", "deleted": False})
        two.execute(ADD, {"path": "b", "deleted": False})
        with begun(lambda: records.save_all(files)) as failures:
            wait_until_blocked(one, engine)
            one.commit()
            wait_until_blocked(two, engine)
            two.commit()
    assert failures == []
    assert [file.uuid for file in files] == ["a", "b"]


@pytest.mark.postgresql
@pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
def test_of_two_batches_that_wait_for_each_other_both_are_saved(records: Catalog, catalog_url: str) -> None:
    files = [new("a"), new("b")]
    with another(catalog_url) as engine, engine.connect() as other:
        other.execute(ADD, {"path": "b", "deleted": False})
        with begun(lambda: records.save_all(files)) as failures:
            wait_until_blocked(other, engine)
            with contextlib.suppress(OperationalError):  # the database ends one of them, mostly who waited first
                other.execute(ADD, {"path": "a", "deleted": False})
                other.commit()
            other.rollback()
    assert failures == []
    assert sorted(found.uuid for found in records.page("w")) == sorted(file.uuid for file in files)


# What can go wrong with a database


def is_one_sentence(text: str, name: str) -> bool:
    return text.startswith(f"the catalog's {name} database cannot be used: ") and "\n" not in text


@pytest.fixture
def outage() -> Iterator[OwnServer]:
    """A PostgreSQL server to be stopped and started."""
    with own_server() as server:
        yield server


def every_call(records: Catalog) -> list[Callable[[], object]]:
    return [
        lambda: records.save(new("a")),
        lambda: records.save_all([new("a"), new("b")]),
        lambda: records.find_path("w", "a"),
        lambda: records.find_id("w", 1),
        lambda: records.find_uuid("w", "x"),
        lambda: records.page("w"),
    ]


def assert_unavailable(records: Catalog, name: str, reason: str, *secrets: str) -> None:
    for call in every_call(records):
        with pytest.raises(BackendUnavailable, match=reason) as told:
            call()
        assert is_one_sentence(str(told.value), name), told.value
        assert not any(secret in str(told.value) for secret in secrets)


@pytest.mark.postgresql
@pytest.mark.skipif(postgres.programs() is None, reason="needs a PostgreSQL server of its own")
def test_while_the_server_is_away_each_call_says_so_and_afterwards_works(outage: OwnServer) -> None:
    with outage.database() as url:
        records = catalog.configure(url)
        use_catalog(None)
        kept = new("kept")
        records.save(kept)
        outage.stop()
        assert_unavailable(records, "PostgreSQL", "No such file or directory|Connection refused")
        outage.start()
        assert records.find_path("w", "kept") == kept
        outage.stop()
        outage.start()
        records.save(new("after"))  # nobody noticed
        assert [found.file_path for found in records.page("w")] == ["kept", "after"]
        records.close()


@pytest.mark.postgresql
@pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
def test_a_connection_that_the_server_ends_is_told_and_replaced(records: Catalog, catalog_url: str) -> None:
    with another(catalog_url) as engine, engine.connect() as other:
        other.execute(ADD, {"path": "a", "deleted": False})
        with begun(lambda: records.save(new("a"))) as failures:
            wait_until_blocked(other, engine)
            other.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )
    (failure,) = failures
    assert isinstance(failure, BackendUnavailable)
    assert is_one_sentence(str(failure), "PostgreSQL")
    records.save(new("a"))
    assert len(records.page("w")) == 1


@pytest.mark.postgresql
@pytest.mark.skipif(postgres.programs() is None, reason="needs a PostgreSQL server of its own")
def test_a_wrong_password_is_told_and_never_shown(outage: OwnServer) -> None:
    wrong = "p@ss/w0rd:?#"
    right = outage.url.partition("@")[0].rpartition(":")[2]
    for url in (
        outage.url.replace(right, quote(wrong, safe="")),
        outage.url.replace(f":{right}", "") + f"&password={quote(wrong, safe='')}",
    ):
        records = Catalog(url)
        assert_unavailable(records, "PostgreSQL", "password authentication failed", wrong, "w0rd")
        with pytest.raises(SQLAlchemyError) as told:
            catalog.configure(url)
        assert "w0rd" not in str(told.value)
    same = Catalog(outage.url.replace(f"//brokervol:{right}", "//s3cret:s3cret"))
    assert_unavailable(same, "PostgreSQL", "password authentication failed for user", "s3cret")


def test_nobody_there_is_told(unused_port: int) -> None:
    for scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        records = Catalog(f"{scheme}://user:s3cret@127.0.0.1:{unused_port}/files")
        assert_unavailable(records, "PostgreSQL", "Connection refused", "s3cret")


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        records = Catalog(f"postgresql://user:s3cret@127.0.0.1:{port}/files?connect_timeout=2")
        with pytest.raises(BackendUnavailable, match="timeout"):
            records.find_path("w", "a")


def test_a_database_locked_for_long_is_told(tmp_path: Path) -> None:
    records = Catalog(f"sqlite:///{tmp_path}/c.sqlite?timeout=0.05")
    records.upgrade()
    with another(f"sqlite:///{tmp_path}/c.sqlite") as engine, engine.connect() as other:
        other.execute(ADD, {"path": "a", "deleted": False})
        with pytest.raises(BackendUnavailable, match="database is locked") as told:
            records.save(new("b"))
        assert is_one_sentence(str(told.value), "SQLite")
        assert records.page("w") == [], "readers do not wait"
    records.save(new("b"))
    records.close()


def test_a_database_that_may_only_be_read_is_told(records: Catalog, catalog_url: str) -> None:
    records.save(new("kept"))
    records.close()
    if catalog_url.startswith("sqlite"):
        url = catalog_url.replace("sqlite:///", "sqlite:///file:") + "?mode=ro&uri=true"
    else:
        url = f"{catalog_url}&options={quote('-c default_transaction_read_only=on')}"
    frozen = Catalog(url)
    with pytest.raises(BackendUnavailable, match=r"read-?only") as told:
        frozen.save(new("a"))
    assert is_one_sentence(str(told.value), "SQLite" if url.startswith("sqlite") else "PostgreSQL")
    assert frozen.find_path("w", "kept") is not None
    frozen.close()


@pytest.mark.root
@pytest.mark.postgresql
@pytest.mark.skipif(postgres.programs() is None, reason="needs a PostgreSQL server of its own")
@pytest.mark.parametrize("name", ["SQLite", "PostgreSQL"])
def test_a_full_disk_is_told_and_what_was_saved_is_kept(name: str) -> None:
    with temporary_directory() as directory:
        fill_disk(directory, name)


@in_private_namespace
def fill_disk(directory: Path, name: str) -> None:
    disk = directory / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "small", str(disk)], check=True)
    if name == "SQLite":
        fill_database(f"sqlite:///{disk}/c.sqlite", disk)
        return
    (disk / "space").mkdir()
    shutil.chown(disk / "space", postgres.SYSTEM_USER)
    with own_server(directory) as server, server.database() as url:
        server.execute(f"CREATE TABLESPACE small LOCATION '{disk}/space'")
        server.execute(f"ALTER DATABASE {make_url(url).database} SET TABLESPACE small")
        fill_database(url, disk)


def fill_database(url: str, disk: Path) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(4_000_000))
    records = catalog.configure(url)
    saved: list[ScaleFile] = []

    def save_more() -> None:
        while len(saved) < 50_000:
            files = [new(f"{len(saved) + number}", tags={"x": os.urandom(2000).hex()}) for number in range(50)]
            records.save_all(files)
            saved.extend(files)

    with pytest.raises(BackendUnavailable, match=r"(?i)full|space"):
        save_more()
    assert saved
    assert records.page("w", limit=100_000) == saved
    ballast.unlink()
    records.save(new("after"))
    records.close()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_text("something else entirely\n" * 1000)
    url = f"sqlite:///{tmp_path}/c.sqlite"
    assert_unavailable(Catalog(url), "SQLite", "file is not a database")
    with pytest.raises(SQLAlchemyError, match="file is not a database"):
        catalog.configure(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "parse"),
        ("", "parse"),
        ("floppy:///x", "floppy"),
        ("postgresql+nodriver://user:s3cret@h/d", "nodriver"),
        ("postgresql+asyncpg://user:s3cret@h/d", "not installed"),
        ("postgresql://user:s3cret@h:port/d", "port"),
        ("postgresql://user:s3@s3cret@h/d", "%40"),
        ("sqlite:////no/such/dir/c.sqlite", "unable to open"),
        ("postgresql://user:s3cret@/d?host=/no/such/dir", "No such file"),
        ("postgresql://user:s3cret@/d?no_such_option=1", "no_such_option"),
    ],
)
def test_a_database_that_cannot_be_used_is_an_error_of_sqlalchemy(url: str, reason: str) -> None:
    with pytest.raises(SQLAlchemyError, match=reason) as told:
        catalog.configure(url)
    assert "s3cret" not in str(told.value)


# Migrations


def snapshot(url: str) -> list[dict[str, Any]]:
    with another(url) as engine, engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM scale_file ORDER BY id"))
        return [dict(row) for row in rows.mappings()]


def tables(url: str) -> set[str]:
    with another(url) as engine:
        return set(inspect(engine).get_table_names())


def test_migrations_make_what_the_models_say(records: Catalog, catalog_url: str) -> None:
    with another(catalog_url) as engine, engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA_VERSION
    versions = sorted(Path(catalog.__file__).parent.glob("migrations/versions/[0-9]*.py"))
    assert versions[-1].name.startswith(f"{SCHEMA_VERSION}_")


def test_migrations_keep_the_rows_up_and_down(catalog_url: str) -> None:
    opened = Catalog(catalog_url)
    opened.upgrade("0001")
    with another(catalog_url) as engine, engine.begin() as connection:
        for path in ("gone", "live"):
            connection.execute(ADD, {"path": path, "deleted": path == "gone"})
    before = snapshot(catalog_url)
    assert len(before) == 2
    opened.upgrade()
    assert [(found.uuid, found.is_deleted, found.checksum, found.tags) for found in opened.page("w")] == [
        ("gone", True, "", {}),
        ("live", False, "", {}),
    ]
    created, was = opened.page("w")[0].created, before[0]["created"]
    assert (created if isinstance(was, datetime) else f"{created:%Y-%m-%d %H:%M:%S.%f}") == was
    opened.save(new("live", checksum="sha256:00", tags={"a": "b"}))
    opened.downgrade("0001")
    after = snapshot(catalog_url)
    assert [row.keys() for row in after] == [row.keys() for row in before]
    assert after[0] == before[0]
    assert (after[1]["uuid"], after[1]["created"]) == ("live", before[1]["created"])
    opened.upgrade()
    assert opened.page("w")[1].tags == {}
    opened.downgrade("base")
    assert tables(catalog_url) == {"alembic_version"}
    opened.upgrade()
    assert opened.page("w") == []
    opened.close()


def test_programs_of_the_version_before_can_still_add_records(records: Catalog, catalog_url: str) -> None:
    with another(catalog_url) as engine, engine.begin() as connection:
        connection.execute(ADD, {"path": "old", "deleted": False})
    found = records.find_path("w", "old")
    assert found is not None
    assert (found.checksum, found.tags) == ("", {})


def test_tables_newer_than_the_program_are_told(records: Catalog, catalog_url: str) -> None:
    with another(catalog_url) as engine, engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SQLAlchemyError, match="9999"):
        catalog.configure(catalog_url)
