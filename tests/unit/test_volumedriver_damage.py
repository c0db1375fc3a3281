"""Files of the state that are damaged, altered or removed, before a start and while the driver runs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from structlog.testing import capture_logs

from lab.memory_driver import Machine
from storage.definitions import backup_path
from storage.volume_records import from_json
from volumedriver.errors import StateDamaged, StateUnavailable
from volumedriver.recovery import LOST_ID
from volumedriver.store import Intent, Verb

HOST = {"host_path": "/srv/data"}
DAMAGES = 480
FASTEST = "/dev/shm"  # what is synced there is not waited for


@pytest.fixture
def machine() -> Iterator[Machine]:
    with TemporaryDirectory(dir=FASTEST) as directory:
        machine = Machine(Path(directory))
        for name in ("data", "other", "third"):
            machine.driver.create(name, HOST)
        yield machine
        machine.stop()


def state(machine: Machine) -> Path:
    return machine.root / ".state"


def put(machine: Machine, files: dict[str, bytes]) -> None:
    """Have the state consist of these files."""
    for path in state(machine).iterdir():
        path.unlink()
    for name, content in files.items():
        (state(machine) / name).write_bytes(content)


def taken(machine: Machine) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in state(machine).iterdir()}


def altered(machine: Machine, file: str, before: bytes, after: bytes) -> None:
    path = state(machine) / file
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))


def flipped(content: bytes, dice: random.Random) -> bytes:
    at = dice.choice([number for number, byte in enumerate(content) if byte])
    return content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]


def headless(content: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(100)
    return content[:at] + dice.randbytes(1) + content[at + 1 :]


def overwritten(content: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(0, len(content), 512)
    return content[:at] + dice.choice((bytes(512), dice.randbytes(512))) + content[at + 512 :]


def cut(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content))]


@pytest.mark.parametrize("how", [flipped, headless, overwritten, cut])
@pytest.mark.parametrize("file", ["definitions.sqlite", "definitions.json", "mounts.sqlite"])
def test_any_damage_of_a_file_is_mended_at_the_start(
    machine: Machine, file: str, how: Callable[[bytes, random.Random], bytes]
) -> None:
    """A good backup, or a good table, has every volume as it was; of references, none is invented."""
    before = machine.driver.list()
    machine.driver.mount("data", "x" * 64)
    machine.references.intend(Intent("data", Verb.MOUNT, {"mount_id": "y", "count": 0}))
    machine.stop()
    sound = taken(machine)
    dice = random.Random(f"{file} {how.__name__}")  # noqa: S311  # the same ones each time
    for number in range(DAMAGES // 12):
        put(machine, sound | {file: how(sound[file], dice)})
        driver = machine.start()
        found = [(volume.name, volume.options, volume.created) for volume in driver.list()]
        assert found == [(volume.name, volume.options, volume.created) for volume in before], number
        assert {*driver.get("data").references} <= {"x" * 64, LOST_ID}
        driver.create("new", HOST)
        driver.mount("third", "z")
        driver.unmount("third", "z")
        driver.remove("new")
        machine.reconciler.step()
        machine.stop()


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("definitions.sqlite", b"/srv/data", b"/srv\x80data"),
        ("definitions.sqlite", b"created TEXT", b"created\xa0TEXT"),
        ("definitions.sqlite", b"SQLite format 3\0\x10\0\x01", b"SQLite format 3\0\x10\0\x42"),
        ("definitions.json", b"[", b"[" * 100_000),
        ("mounts.sqlite", b"mount_references", b"mount_refe\x80ences"),
        ("mounts.sqlite", b"CHECK (count > 0)", b"CHECK (count > 8)"),
        ("mounts.sqlite", b"engine_pid INTEGER", b"engine_pie INTEGER"),
    ],
)
def test_damage_that_sqlite_does_not_see_is_mended(
    machine: Machine, file: str, before: bytes, after: bytes
) -> None:
    volumes = machine.driver.list()
    machine.stop()
    altered(machine, file, before, after)
    assert machine.start().list() == volumes
    machine.driver.mount("data", "x")
    assert any(".damaged-" in name or ".differs-" in name for name in os.listdir(state(machine)))


def test_definition_that_was_altered_on_disk_is_not_believed(machine: Machine) -> None:
    """One byte, and all is well-formed: another directory of the host would be given out."""
    volumes = machine.driver.list()
    machine.stop()
    backup = Path(backup_path(str(state(machine) / "definitions.sqlite")))
    before = backup.read_bytes()
    altered(machine, "definitions.sqlite", b"/srv/data", b"/srv/dada")
    assert machine.start().list() == volumes
    assert backup.read_bytes() == before
    (kept,) = state(machine).glob("definitions.sqlite.damaged-*")
    assert b"/srv/dada" in kept.read_bytes()


def test_backup_that_says_something_else_is_kept_and_told(machine: Machine) -> None:
    volumes = machine.driver.list()
    machine.stop()
    sound = taken(machine)
    backup = json.loads(sound["definitions.json"])
    for entry in backup["volumes"]:
        del entry["digest"]  # as versions before had it
    same = json.dumps(backup).encode()
    backup["volumes"][0]["options"]["host_path"] = "/srv/else"
    for content, is_kept in ((same, False), (json.dumps(backup).encode(), True), (b"{", True)):
        put(machine, sound | {"definitions.json": content})
        with capture_logs() as logs:
            assert machine.start().list() == volumes
        machine.stop()
        assert taken(machine)["definitions.json"] == sound["definitions.json"]
        assert [path.read_bytes() for path in state(machine).glob("*.differs-*")] == [content] * is_kept
        assert ("the backup of definitions said something else" in {line["event"] for line in logs}) is is_kept


@pytest.mark.parametrize(
    ("verb", "detail"),
    [
        ("mount", '{"mount_ie": "x", "count": 0}'),
        ("mount", "{"),
        ("mount", "[" * 100_000),
        ("moumt", '{"mount_id": "x", "count": 0}'),
        ("remove", "{}"),  # of earlier versions
        ("create", '{"options": [], "created": "2026-01-02T03:04:05+00:00"}'),
        ("create", '{"options": {}, "created": "yesterday"}'),
    ],
)
def test_intent_that_cannot_be_read_is_dropped_and_told(machine: Machine, verb: str, detail: str) -> None:
    machine.references.intend(Intent("other", Verb.MOUNT, {"mount_id": "y", "count": 0}))
    machine.stop()
    with contextlib.closing(sqlite3.connect(state(machine) / "mounts.sqlite")) as connection:
        connection.execute("INSERT INTO intents VALUES ('data', ?, ?)", (verb, detail))
        connection.commit()
    with capture_logs() as logs:
        machine.start()
    assert [line["volume"] for line in logs if line["event"] == "intent dropped"] == ["data"]
    assert [line["volume"] for line in logs if line["event"] == "an earlier driver died in a call"] == ["other"]
    assert machine.references.intents() == []
    assert not list(state(machine).glob("*.damaged-*"))


def test_definitions_that_are_gone_with_their_backup_are_refused_where_a_driver_has_worked(
    machine: Machine,
) -> None:
    machine.stop()
    sound = taken(machine)
    leftovers = {name: content for name, content in sound.items() if not name.startswith("definitions")}
    assert leftovers
    for _ in range(2):
        put(machine, leftovers)
        with pytest.raises(StateDamaged, match=r"a driver has worked here.*brokervol volumes import"):
            machine.start()
    put(machine, {})
    (machine.root / "volumes/left").mkdir()
    with pytest.raises(StateDamaged, match=r"a driver has worked here: .*volumes/left"):
        machine.start()
    put(machine, {})
    (machine.root / "volumes/left").rmdir()
    assert machine.start().list() == [], "the first start"


def gone(path: Path) -> None:
    path.unlink()


def overwritten_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))


def replaced_by_garbage(path: Path) -> None:
    garbage = path.with_name("garbage")
    garbage.write_bytes(b"garbage" * 1000)
    garbage.rename(path)


@pytest.mark.parametrize("how", [gone, overwritten_in_place, replaced_by_garbage])
@pytest.mark.parametrize("has_backup", [True, False])
def test_definitions_damaged_while_the_driver_runs_are_written_again_once(
    machine: Machine, how: Callable[[Path], None], has_backup: bool
) -> None:
    how(state(machine) / "definitions.sqlite")
    if not has_backup:
        how(state(machine) / "definitions.json")
    with capture_logs() as logs:
        for _ in range(3):
            machine.reconciler.notice()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["definitions written again"]
    machine.driver.create("new", HOST)
    machine.driver.remove("third")
    volumes = machine.driver.list()
    assert [volume.name for volume in volumes] == ["data", "new", "other"]
    assert [found.name for found in from_json((state(machine) / "definitions.json").read_text())] == [
        volume.name for volume in volumes
    ]
    assert machine.start().list() == volumes


def test_damage_that_only_a_change_meets_is_mended_after_it(machine: Machine) -> None:
    """The pages that are looked at each second are sound."""
    path = state(machine) / "definitions.sqlite"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(4096))
        file.seek(24)
        file.write(os.urandom(4))  # the count of changes, as nobody else would read the pages again
    with pytest.raises(StateDamaged):
        machine.driver.create("new", HOST)
    machine.reconciler.notice()
    machine.driver.create("new", HOST)
    volumes = machine.driver.list()
    assert len(volumes) == 4
    assert machine.start().list() == volumes


def test_definitions_of_earlier_put_in_their_place_while_the_driver_runs_lose_none(machine: Machine) -> None:
    earlier = (state(machine) / "definitions.sqlite").read_bytes()
    machine.driver.create("later", HOST)
    (state(machine) / "copy").write_bytes(earlier)
    (state(machine) / "copy").rename(state(machine) / "definitions.sqlite")
    machine.reconciler.notice()
    volumes = machine.driver.list()
    assert [volume.name for volume in volumes] == ["data", "later", "other", "third"]
    assert machine.start().list() == volumes


@pytest.mark.parametrize("how", [gone, overwritten_in_place, replaced_by_garbage])
def test_references_damaged_while_the_driver_runs_are_written_again(
    machine: Machine, how: Callable[[Path], None]
) -> None:
    machine.driver.mount("data", "x", machine.engine)
    machine.driver.mount("data", "x", machine.engine)
    machine.driver.mount("other", "y", machine.engine)
    before = machine.driver.list()
    engines = machine.references.engines()
    for path in state(machine).glob("mounts.sqlite*"):
        how(path)
    with contextlib.suppress(StateUnavailable):
        machine.driver.mount("third", "z", machine.engine)
        machine.driver.unmount("third", "z")
    with capture_logs() as logs:
        for _ in range(3):
            machine.reconciler.notice()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["references written again"]
    machine.driver.mount("third", "z", machine.engine)
    machine.driver.unmount("third", "z")
    assert machine.references.engines() == engines
    assert machine.start().list() == before
