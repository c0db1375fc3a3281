"""Definitions on disk: transactions, their backup, versions, and several processes at once."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.definitions import (
    AlreadyDefined,
    BackupDamaged,
    Definition,
    DefinitionStore,
    backup_path,
    read_definitions,
)
from storage.state_files import NewerState
from storage.volume_records import from_json, to_json

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def definition(name: str, **options: str) -> Definition:
    return Definition(name, {"type": "host", "host_path": "/srv", **options}, WHEN)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "definitions.sqlite")


def backup(path: str) -> list[Definition]:
    return from_json(Path(backup_path(path)).read_text())


def test_every_change_is_in_the_backup_which_only_root_reads(path: str) -> None:
    with DefinitionStore(path) as store:
        assert store.is_new
        store.add([definition("b"), definition("a")])
        assert backup(path) == store.load() == [definition("a"), definition("b")]
        store.save(definition("a", read_only="true"))
        assert backup(path) == store.load()
        store.remove("b")
        assert backup(path) == store.load() == [definition("a", read_only="true")]
        assert store.find("a") == definition("a", read_only="true")
        assert store.find("b") is None
    assert stat.S_IMODE(os.stat(backup_path(path)).st_mode) == 0o600
    with DefinitionStore(path) as store:
        assert not store.is_new
    assert sorted(os.listdir(os.path.dirname(path)))[0] == "definitions.json"


def test_what_cannot_be_committed_is_not_in_the_backup(path: str) -> None:
    """A start would add it. In the middle of a reading nobody can commit."""
    with DefinitionStore(path) as store, contextlib.closing(sqlite3.connect(path)) as reader:
        store.add([definition("a"), definition("b")])
        store._connection.execute("PRAGMA busy_timeout = 10")
        reading = reader.execute("SELECT name FROM definitions")
        reading.fetchone()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store.add([definition("c")])
        assert backup(path) == store.load() == [definition("a"), definition("b")]
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store.save(definition("a", read_only="true"))
        assert backup(path) == store.load() == [definition("a"), definition("b")]
        reading.close()
        store.add([definition("c")])
        assert backup(path) == store.load()


def test_several_are_added_or_none(path: str) -> None:
    with DefinitionStore(path) as store:
        store.add([definition("a")])
        with pytest.raises(AlreadyDefined) as refused:
            store.add([definition("b"), definition("a", read_only="true")])
        assert refused.value.names == ["a"]
        assert store.load() == backup(path) == [definition("a")]


def test_backup_that_cannot_be_written_refuses_the_definition(path: str) -> None:
    with DefinitionStore(path) as store:
        store.add([definition("a")])
        os.unlink(backup_path(path))
        os.mkdir(backup_path(path))
        with pytest.raises(OSError, match="Is a directory"):
            store.add([definition("b")])
        assert store.load() == [definition("a")]
        os.rmdir(backup_path(path))
        os.symlink("/", backup_path(path) + ".part")
        store.remove("a")
        assert store.load() == []
        assert not os.path.exists(backup_path(path)), "the volume would come back"
    assert not os.path.exists(backup_path(path) + ".part")


@pytest.mark.parametrize(
    "content", [None, "", "{", '{"format": "brokervol volumes", "version": 1, "volumes": []}']
)
def test_backup_that_is_not_what_it_should_be_is_written_again(path: str, content: str | None) -> None:
    with DefinitionStore(path) as store:
        store.add([definition("a")])
        os.unlink(backup_path(path))
        if content is not None:
            Path(backup_path(path)).write_text(content)
        assert store.agree_with_backup().added == []
        assert backup(path) == [definition("a")]
        before = os.stat(backup_path(path)).st_ino
        assert store.agree_with_backup() == ([], None)
        assert os.stat(backup_path(path)).st_ino == before, "written without need"


def test_what_only_the_backup_has_is_added(path: str) -> None:
    with DefinitionStore(path) as store:
        store.add([definition("a"), definition("b")])
        newer = to_json([definition("a", read_only="true"), definition("c")])
        Path(backup_path(path)).write_text(newer)
        assert store.agree_with_backup().added == ["c"]
        assert store.load() == backup(path) == [definition(name) for name in "abc"]


def test_missing_definitions_come_from_the_backup_and_not_from_a_damaged_one(path: str) -> None:
    with DefinitionStore(path) as store:
        store.add([definition("a")])
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)
    content = Path(backup_path(path)).read_text()
    Path(backup_path(path)).write_text(content[:-9])
    for _ in range(2):
        with pytest.raises(BackupDamaged, match=r"definitions\.json: "):
            DefinitionStore(path)
    Path(backup_path(path)).write_text(content)
    with DefinitionStore(path) as store:
        assert store.load() == [definition("a")]


def test_version_tells_of_other_processes_and_of_another_file(path: str) -> None:
    with DefinitionStore(path) as reader, DefinitionStore(path) as writer:
        seen = [reader.version()]
        reader.save(definition("own"))
        assert reader.version() == seen[0]
        writer.add([definition("a")])
        seen.append(reader.version())
        os.rename(path, f"{path}.damaged")
        seen.append(reader.version())  # between the two, there is none
        with DefinitionStore(path) as rebuilt:
            rebuilt.save(definition("z"))
            seen.append(reader.version())
            assert reader.load() == [definition("a"), definition("own"), definition("z")]
    assert seen[1] == seen[2]
    assert len({*seen}) == 3


def test_newer_definitions_are_refused_unaltered(path: str) -> None:
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
        newer.execute("PRAGMA application_id = 99")
    newer.close()
    before = Path(path).read_bytes()
    with pytest.raises(
        NewerState, match="has version 99; this brokervol knows versions up to 2: install the newer"
    ):
        DefinitionStore(path)
    assert Path(path).read_bytes() == before


@given(st.dictionaries(st.text(), st.dictionaries(st.text(), st.text()), max_size=5), st.datetimes())
def test_document_is_read_as_it_was_written(volumes: dict[str, dict[str, str]], created: datetime) -> None:
    definitions = [
        Definition(name, options, created.replace(tzinfo=UTC)) for name, options in sorted(volumes.items())
    ]
    assert from_json(to_json(definitions)) == definitions


EARLIER = """
PRAGMA journal_mode = WAL;
CREATE TABLE definitions (name TEXT PRIMARY KEY, options TEXT NOT NULL, created TEXT NOT NULL)
    STRICT, WITHOUT ROWID;
INSERT INTO definitions VALUES ('a', '{"host_path": "/srv", "type": "host"}', '2026-01-02T04:04:05.678901+01:00');
PRAGMA user_version = 1;
"""


def test_file_of_the_earlier_version_is_migrated_with_what_is_in_its_log(path: str) -> None:
    """A process that was killed has left it so."""
    child = os.fork()
    if child == 0:
        sqlite3.connect(path).executescript(EARLIER)
        os._exit(0)
    os.waitpid(child, 0)
    assert os.path.getsize(f"{path}-wal") > 0
    assert read_definitions(path) == [definition("a")]
    with DefinitionStore(path) as store, DefinitionStore(path) as other:
        store.check()
        assert store.load() == other.load() == [definition("a")]
        assert not store.is_new
        assert store.agree_with_backup() == ([], None)
    assert sorted(os.listdir(os.path.dirname(path))) == ["definitions.json", "definitions.sqlite"]
    assert read_definitions(path) == backup(path) == [definition("a")]


ENTRY = {"name": "a", "created": WHEN.isoformat(), "options": {}}
WRONG = {
    "not JSON": "{",
    "another document": "[]",
    "no format": '{"version": 1, "volumes": []}',
    "newer": '{"format": "brokervol volumes", "version": 2, "volumes": []}',
    "no volumes": '{"format": "brokervol volumes", "version": 1}',
}
WRONG_ENTRIES = {
    "no object": [1],
    "no name": [{**ENTRY, "name": None}],
    "no date": [{**ENTRY, "created": "yesterday"}],
    "no zone": [{**ENTRY, "created": "2026-01-02T03:04:05"}],
    "option that is no text": [{**ENTRY, "options": {"read_only": True}}],
    "one twice": [ENTRY, ENTRY],
}
WRONG |= {
    name: json.dumps({"format": "brokervol volumes", "version": 1, "volumes": entries})
    for name, entries in WRONG_ENTRIES.items()
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_no_such_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|version|twice|Expecting"):
        from_json(text)
