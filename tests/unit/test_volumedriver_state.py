"""The state on disk when it is older, newer, damaged, lost, full or read-only; and what a volume keeps over it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.memory_driver import Machine
from lab.namespaces import in_private_namespace
from lab.power import Disk
from storage.definitions import AlreadyDefined, Definition, DefinitionStore, backup_path, mountpoint, utc_now
from volumedriver import options as volume_options
from volumedriver.engines import NOBODY, Engine
from volumedriver.errors import InvalidVolume, StateDamaged, StateUnavailable, VolumeConflict
from volumedriver.reconcile import GRACE_S
from volumedriver.recovery import LOST_ID
from volumedriver.store import Intent, ReferenceStore, Verb
from volumedriver.volume import Shown

HOST = {"host_path": "/srv/data"}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.driver.create("data", HOST)
    machine.driver.create("other", {**HOST, "read_only": "true"})
    yield machine
    machine.stop()


def definitions(machine: Machine) -> Path:
    return machine.root / ".state/definitions.sqlite"


def mounts(machine: Machine) -> Path:
    return machine.root / ".state/mounts.sqlite"


def set_aside(machine: Machine) -> list[str]:
    return sorted(
        name.partition(".damaged-")[0] for name in os.listdir(machine.root / ".state") if "damaged" in name
    )


# What a volume keeps

Given = st.SearchStrategy[dict[str, str]]

PATHS = st.lists(st.text("abc ü%:", min_size=1, max_size=5), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
FLAGS = st.sampled_from(("true", "false"))
CREATIONS = st.fixed_dictionaries(
    {"create": st.just("true")},
    optional={
        "mode": st.integers(0, 0o7777).map("{:o}".format),
        "uid": st.integers(0, 2**32 - 2).map(str),
        "gid": st.integers(0, 2**32 - 2).map(str),
    },
)
CREATION: Given = st.one_of(st.just({}), st.just({"create": "false"}), CREATIONS)
READ_ONLY: Given = st.one_of(st.just({}), FLAGS.map(lambda flag: {"read_only": flag}))
WORDS = st.text("abcxyz", min_size=3, max_size=9)


def merged(*parts: Given) -> Given:
    return st.tuples(*parts).map(lambda found: {key: value for part in found for key, value in part.items()})


# Each type that the driver has must have its line here.
OPTIONS = {
    "host": merged(PATHS.map(lambda path: {"host_path": path}), CREATION, READ_ONLY),
    "s3": merged(
        st.fixed_dictionaries(
            {"bucket_name": WORDS},
            optional={
                "region_name": st.just("eu-central-1"),
                "endpoint_url": WORDS.map("https://{}.example:9000".format),
                "prefix": WORDS,
                "credentials": WORDS,
                "host_path": PATHS,
            },
        ),
        READ_ONLY,
    ),
    "nfs": merged(
        st.tuples(st.one_of(WORDS, st.just("192.0.2.1"), st.just("[2001:db8::1]")), PATHS).map(
            lambda place: {"nfs_path": ":".join(place)}
        ),
        st.sampled_from(({}, {"mount_options": "vers=3,nolock"}, {"mount_options": "soft,timeo=50,retrans=2"})),
        CREATION,
        READ_ONLY,
    ),
    "sidecar": st.just({"type": "sidecar"}),
}


def test_every_type_is_tried() -> None:
    assert OPTIONS.keys() == volume_options._READERS.keys()


@pytest.mark.parametrize("kind", OPTIONS)
def test_volume_that_was_saved_is_restored_as_it_was(kind: str) -> None:
    @given(OPTIONS[kind])
    def saved_and_restored(options: dict[str, str]) -> None:
        volume = volume_options.parse({"type": kind, **options})
        text = json.dumps(volume.effective)
        assert volume_options.restore(json.loads(text)) == volume
        assert volume_options.restore(volume.effective).effective == volume.effective

    saved_and_restored()


def test_volume_is_the_same_after_a_restart(machine: Machine) -> None:
    machine.driver.create("bucket", {"bucket_name": "imagery", "prefix": "2026"})
    machine.driver.create("made", {"host_path": "/srv/made", "create": "true", "mode": "2770", "uid": "5"})
    machine.driver.create("socket", {"type": "sidecar"})
    machine.driver.mount("data", "x")
    before = machine.driver.list()
    assert machine.start().list() == before


# Versions

OLDER = """
PRAGMA journal_mode = WAL;
CREATE TABLE mount_references (
    volume TEXT NOT NULL, mount_id TEXT NOT NULL, count INTEGER NOT NULL CHECK (count > 0),
    PRIMARY KEY (volume, mount_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE boot (id TEXT NOT NULL) STRICT;
INSERT INTO mount_references VALUES ('data', 'x', 2);
INSERT INTO boot VALUES ('first boot');
PRAGMA user_version = 1;
"""


def test_state_of_an_older_version_is_migrated_with_its_mounts(machine: Machine) -> None:
    mountpoint = machine.driver.mount("data", "x")
    machine.stop()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{mounts(machine)}{suffix}").unlink(missing_ok=True)
    with sqlite3.connect(mounts(machine)) as older:
        older.executescript(OLDER)
    older.close()
    driver = machine.start()
    assert driver.get("data").references == {"x": 2}
    assert driver.get("data").shown == machine.mounter.shown(mountpoint)[0]
    assert machine.references.engines() == {("data", "x"): None}
    assert not set_aside(machine)
    driver.mount("data", "y", Engine(1, 1))
    assert machine.start().get("data").references == {"x": 2, "y": 1}


@pytest.mark.parametrize("file", [definitions, mounts])
def test_state_of_a_newer_version_is_refused_and_left_as_it_is(
    machine: Machine, file: Callable[[Machine], Path]
) -> None:
    machine.stop()
    with sqlite3.connect(file(machine)) as newer:
        newer.execute("PRAGMA user_version = 99")
        newer.execute("PRAGMA application_id = 99")
    newer.close()
    before = file(machine).read_bytes()
    with pytest.raises(StateUnavailable, match="has version 99; this brokervol knows versions up to"):
        machine.start()
    assert file(machine).read_bytes() == before
    assert not set_aside(machine)


def test_everything_that_the_store_knows_is_there_for_the_next_process(tmp_path: Path) -> None:
    path = str(tmp_path / "mounts.sqlite")
    intents = [
        Intent("a", Verb.CREATE, {"options": {"x": "ü"}, "created": "2026-01-02T03:04:05+00:00"}),
        Intent("b", Verb.MOUNT, {"mount_id": "x", "count": 1}),
    ]
    odd = Shown("0:5", "/not \udcff utf-8", "nas:/x")
    store = ReferenceStore(path)
    for intent in intents:
        store.intend(intent)
    store.set_shown("c", odd)
    store.set("c", "x", 1, Engine(5, 6))
    store.set("c", "x", 2)  # a later count without a word of the engine
    store.close()
    store = ReferenceStore(path)
    assert store.intents() == intents
    assert store.shown() == {"c": odd}
    assert store.engines() == {("c", "x"): Engine(5, 6)}
    store.intend(later := Intent("a", Verb.MOUNT, {"mount_id": "y", "count": 0}))
    store.set("b", "y", 1)
    assert store.intents() == [later], "one a volume, settled by its reference"
    store.begin_boot("next")
    assert (store.intents(), store.shown(), store.engines()) == ([], {}, {})
    store.close()


# Damage

GARBAGE = {
    "other content": lambda _: b"not a database" * 1000,
    "empty": lambda _: b"",
    "cut short": lambda content: content[:5000],
    "overwritten": lambda content: content[:4096] + b"\xff" * (len(content) - 4096),
    "missing": None,
}


def damage(path: Path, how: Callable[[bytes], bytes] | None) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    if how is None:
        path.unlink()
    else:
        path.write_bytes(how(path.read_bytes()))


@pytest.mark.parametrize("how", GARBAGE.values(), ids=GARBAGE)
def test_damaged_definitions_are_set_aside_and_rebuilt(
    machine: Machine, how: Callable[[bytes], bytes] | None
) -> None:
    machine.driver.mount("data", "x")
    before = machine.driver.list()
    machine.stop()
    damage(definitions(machine), how)
    content = definitions(machine).read_bytes() if how else b""
    assert machine.start().list() == before
    if content:
        assert set_aside(machine) == ["definitions.sqlite"]
        (kept,) = [path for path in (machine.root / ".state").iterdir() if "damaged" in path.name]
        assert kept.read_bytes() == content
    machine.driver.unmount("data", "x")
    assert machine.mounter.entries == {}


def test_damage_within_a_definition_is_noticed(machine: Machine) -> None:
    before = machine.driver.list()
    machine.stop()
    with sqlite3.connect(definitions(machine)) as connection:
        connection.execute("UPDATE definitions SET options = '{' WHERE name = 'data'")
    connection.close()
    assert machine.start().list() == before
    assert set_aside(machine) == ["definitions.sqlite"]


@pytest.mark.parametrize("how", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("has_backup", [True, False])
def test_definitions_that_cannot_be_rebuilt_are_refused_and_never_an_empty_list(
    machine: Machine, how: Callable[[bytes], bytes] | None, has_backup: bool
) -> None:
    machine.stop()
    damage(definitions(machine), how)
    backup = Path(backup_path(str(definitions(machine))))
    if has_backup:
        backup.write_text(backup.read_text()[:-10])
    else:
        backup.unlink()  # then the references say that there was a state
    for _ in range(2):
        with pytest.raises(StateDamaged, match=r"and the backup .* is not usable: .*brokervol volumes import"):
            machine.start()
        machine.stop()
    assert not set_aside(machine)


def test_start_that_was_killed_while_it_replaced_lost_references_begins_anew(machine: Machine) -> None:
    machine.containers.running["one"] = machine.mounter.shown(machine.driver.mount("data", "x"))[0]
    machine.stop()
    damage(mounts(machine), None)
    ReferenceStore(str(mounts(machine))).close()
    assert machine.start().get("data").references == {LOST_ID: 1}


@pytest.mark.parametrize("how", GARBAGE.values(), ids=GARBAGE)
def test_lost_references_are_replaced_for_what_containers_hold(
    machine: Machine, how: Callable[[bytes], bytes] | None
) -> None:
    held, unheld = machine.driver.mount("data", "x"), machine.driver.mount("other", "y")
    machine.driver.create("bucket", {"bucket_name": "imagery"})
    machine.containers.running["one"] = machine.mounter.shown(machine.driver.mount("bucket", "z"))[0]
    machine.stop()
    damage(mounts(machine), how)
    driver = machine.start()
    assert driver.get("bucket").references == {LOST_ID: 1}
    assert machine.references.engines() == {("bucket", LOST_ID): NOBODY}
    assert not {held, unheld} & machine.mounter.entries.keys()
    driver.unmount("bucket", "z")
    assert machine.start().get("bucket").references == {LOST_ID: 1}
    machine.containers.running.clear()
    for _ in range(2):
        machine.reconciler.step()
        machine.now += GRACE_S
    assert machine.mounter.entries == {}
    machine.driver.remove("bucket")


# No room, no permission


@contextlib.contextmanager
def small_state(directory: Path) -> Iterator[Machine]:
    """A machine whose state is on a file system of 1 MiB of its own."""
    state = directory / "root/.state"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "state", str(state)], check=True)
    machine = Machine(directory)
    yield machine
    machine.stop()


def fill(machine: Machine, left: int = 0) -> Path:
    """Leave so many pages free, not even those that SQLite has kept for its journal."""
    machine.stop()
    machine.start()
    filler = machine.root / ".state/filler"
    overfill(filler)
    os.truncate(filler, filler.stat().st_size - left * 4096)
    return filler


@pytest.mark.root
@pytest.mark.parametrize("left", range(12))
@in_private_namespace
def test_what_a_nearly_full_disk_refused_is_not_done_later(tmp_path: Path, left: int) -> None:
    with small_state(tmp_path) as machine:
        machine.driver.create("unused", HOST)
        filler = fill(machine, left)
        expected = {"unused", "new"}
        try:
            machine.driver.create("new", {"host_path": "/srv/new", "create": "true"})
        except StateUnavailable:
            expected.remove("new")
        try:
            machine.driver.remove("unused")
            expected.remove("unused")
        except StateUnavailable:
            pass
        filler.unlink()
        machine.reconciler.step()
        for _ in range(2):
            assert {volume.name for volume in machine.driver.list()} == expected
            assert (machine.hostfs / "srv/new").exists() == ("new" in expected)
            assert machine.references.intents() == []
            machine.start()
            machine.reconciler.step()


@pytest.mark.root
@in_private_namespace
def test_full_disk_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    with small_state(tmp_path) as machine:
        machine.driver.create("data", HOST)
        machine.driver.create("unused", HOST)
        machine.driver.mount("data", "x")
        before = machine.driver.list()
        filler = fill(machine)
        for _ in range(3):
            with pytest.raises(StateUnavailable, match=r"full|No space"):
                machine.driver.create("new", {"host_path": "/srv/new", "create": "true"})
            with pytest.raises(StateUnavailable, match="full"):
                machine.driver.mount("data", "y")
            with pytest.raises(StateUnavailable, match="full"):
                machine.driver.remove("unused")
        assert machine.driver.list() == before
        assert not (machine.hostfs / "srv/new").exists()
        assert len(machine.mounter.entries) == 1
        machine.driver.unmount("data", "x")
        assert machine.mounter.entries == {}, "an unmount does not wait for room"
        filler.unlink()
        machine.reconciler.step()
        assert machine.references.load() == {}
        machine.driver.create("new", HOST)
        machine.start()
        machine.reconciler.step()
        assert [volume.name for volume in machine.driver.list()] == ["data", "new", "unused"]


def overfill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


@pytest.mark.root
@in_private_namespace
def test_driver_starts_on_a_full_disk_in_the_room_that_it_has_kept(tmp_path: Path) -> None:
    with small_state(tmp_path) as machine:
        machine.driver.create("data", HOST)
        machine.driver.create("other", HOST)
        machine.driver.mount("data", "x")
        before = machine.driver.list()
        filler = fill(machine)
        for number in range(3):  # from the second time on it has none any more, and writes nothing
            machine.stop()
            overfill(machine.root / f".state/filler{number}")
            assert machine.start().list() == before
            machine.driver.get("data")
        machine.driver.unmount("data", "x")
        assert machine.mounter.entries == {}
        with pytest.raises(StateUnavailable, match="full"):
            machine.driver.create("new", HOST)
        filler.unlink()
        machine.driver.create("new", HOST)
        machine.start()
        assert (machine.root / ".state/reserve").stat().st_blocks * 512 >= 1 << 18, "for another time"


def test_backup_that_cannot_be_written_is_told_and_nothing_is_left(machine: Machine) -> None:
    backup = Path(backup_path(str(definitions(machine))))
    backup.unlink()
    backup.mkdir()
    before = machine.driver.list()
    with pytest.raises(StateUnavailable, match="Is a directory"):
        machine.driver.create("new", {"host_path": "/srv/new", "create": "true"})
    assert machine.driver.list() == before
    assert not (machine.hostfs / "srv/new").exists()
    with pytest.raises(StateUnavailable, match="Is a directory"):
        machine.start()
    backup.rmdir()
    assert machine.start().list() == before


@pytest.mark.root
@in_private_namespace
def test_read_only_state_is_told_in_a_sentence(tmp_path: Path) -> None:
    with small_state(tmp_path) as machine:
        machine.driver.create("data", HOST)
        before = machine.driver.list()
        machine.stop()
        for mode in ("ro", "rw"):
            subprocess.run(["mount", "-o", f"remount,{mode}", str(machine.root / ".state")], check=True)
            if mode == "ro":
                with pytest.raises(StateUnavailable, match=r"the file system of .*state is read-only"):
                    machine.start()
        assert machine.start().list() == before


@pytest.mark.root
@in_private_namespace
def test_disk_that_fails_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.plug_in()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/.state").symlink_to(disk.mountpoint)
    machine = Machine(tmp_path)
    machine.driver.create("data", HOST)
    machine.driver.mount("data", "x")
    machine.driver.create("unused", HOST)
    before = machine.driver.list()
    disk.write_all()
    disk.fail()
    with pytest.raises(StateUnavailable, match="the driver's state in"):
        machine.driver.create("new", {"host_path": "/srv/new", "create": "true"})
    for failing in (lambda: machine.driver.mount("unused", "x"), lambda: machine.driver.remove("unused")):
        with pytest.raises(StateUnavailable, match="the driver's state in"):
            failing()
    assert machine.driver.list() == before
    assert len(machine.mounter.entries) == 1
    assert not (machine.hostfs / "srv/new").exists()
    machine.driver.unmount("data", "x")
    assert machine.mounter.entries == {}
    machine.stop()
    disk.pull_out()


@pytest.mark.root
@pytest.mark.parametrize("has_commit", [False, True])
@in_private_namespace
def test_power_cut_keeps_every_volume_that_docker_was_told_of(tmp_path: Path, has_commit: bool) -> None:
    disk = Disk(tmp_path)
    disk.plug_in()
    machine = Machine(disk.mountpoint)
    for number in range(6):
        machine.driver.create(f"v{number}", HOST)
        machine.driver.mount(f"v{number}", "x")
        if number % 3 == 2:
            machine.driver.remove(f"v{number}")
        told = machine.driver.list()
        if has_commit:
            disk.commit_names()
        machine.stop()
        machine.mounter.detach_all()
        disk.cut_power()
        machine.boot_id = f"boot {number}"
        machine.start()
        assert [volume.name for volume in machine.driver.list()] == [volume.name for volume in told]
        assert machine.references.load() == {}
        assert not set_aside(machine)
    machine.stop()
    disk.pull_out()


def test_transaction_cut_in_the_middle_loses_no_volume_that_was_there_before(
    machine: Machine, tmp_path: Path
) -> None:
    """The table is half rewritten; the journal undoes it, or the backup has all."""
    before = machine.driver.list()
    state = machine.root / ".state"
    with contextlib.closing(sqlite3.connect(definitions(machine), isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")  # pages are written before the end, as by a commit
        writer.execute("BEGIN IMMEDIATE")
        rows = ((f"new{number}", "{}" + " " * 3000, "", "") for number in range(50))
        writer.executemany("INSERT INTO definitions VALUES (?, ?, ?, ?)", rows)
        cut = {name: (state / name).read_bytes() for name in ("definitions.sqlite", "definitions.json")}
        journal = (state / "definitions.sqlite-journal").read_bytes()
        writer.execute("ROLLBACK")
    assert cut["definitions.sqlite"] != definitions(machine).read_bytes()
    for has_journal in (True, False):
        copy = tmp_path / f"cut-{has_journal}"
        (copy / "root/.state").mkdir(parents=True)
        for name, content in (cut | {"definitions.sqlite-journal": journal} if has_journal else cut).items():
            (copy / "root/.state" / name).write_bytes(content)
        other = Machine(copy)
        assert other.driver.list() == [
            replace(volume, mountpoint=mountpoint(str(other.root), volume.name)) for volume in before
        ]
        other.stop()


# Creates that were begun, and volumes that another process defines


def begun(machine: Machine, name: str, options: dict[str, str]) -> None:
    machine.references.intend(Intent(name, Verb.CREATE, {"options": options, "created": utc_now().isoformat()}))


def test_create_that_was_begun_is_finished_or_undone(machine: Machine) -> None:
    begun(machine, "new", {"type": "host", **HOST})
    begun(machine, "wrong", {"type": "host", "host_path": "/srv/none"})
    begun(machine, "data", {"type": "host", **HOST})
    driver = machine.start()
    assert {volume.name for volume in driver.list()} == {"data", "other"}, "the host's files wait"
    machine.reconciler.step()
    assert {volume.name for volume in driver.list()} == {"data", "new", "other"}
    assert machine.references.intents() == []
    machine.driver.mount("new", "x")
    with pytest.raises(InvalidVolume):
        machine.driver.create("wrong", {"host_path": "/srv/none"})


def imported(machine: Machine, *names: str) -> None:
    with DefinitionStore(str(definitions(machine))) as store:
        store.add([Definition(name, volume_options.parse(HOST).effective, utc_now()) for name in names])


def test_imported_volumes_are_noticed(machine: Machine) -> None:
    imported(machine, "b", "c")
    machine.reconciler.notice()
    assert [volume.name for volume in machine.driver.list()] == ["b", "c", "data", "other"]
    machine.driver.mount("b", "x")
    machine.driver.remove("c")
    machine.reconciler.notice()
    assert [volume.name for volume in machine.driver.list()] == ["b", "data", "other"]


def test_create_of_a_name_that_was_just_imported_is_compared_with_it(machine: Machine) -> None:
    imported(machine, "b", "c")
    machine.driver.create("b", HOST)
    with pytest.raises(VolumeConflict, match="differs in read_only"):
        machine.driver.create("c", {**HOST, "read_only": "true"})
    assert machine.driver.get("c").options.read_only is False


def test_names_that_are_taken_are_told() -> None:
    assert str(AlreadyDefined(["a", "b"])) == "already defined: a, b"
