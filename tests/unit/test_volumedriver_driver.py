"""The verbs, with mounts in memory: order, locks, counts and what a failure leaves."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.memory_driver import Machine
from volumedriver.errors import (
    DriverError,
    HostPathRefused,
    InvalidVolume,
    MountFailed,
    StateUnavailable,
    VolumeBusy,
    VolumeConflict,
    VolumeInUse,
    VolumeNotFound,
)
from volumedriver.holders import Hold, Wanted
from volumedriver.locks import NamedLocks
from volumedriver.mounter import Source
from volumedriver.stale import noted
from volumedriver.store import Intent, Verb

HOST = {"host_path": "/srv/data"}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.driver.create("data", HOST)
    yield machine
    machine.stop()


def fail_once(machine: Machine, error: Exception) -> None:
    def failing(mountpoint: str) -> None:
        machine.mounter.before_mount = lambda _: None
        raise error

    machine.mounter.before_mount = failing


def test_failed_mount_leaves_nothing(machine: Machine) -> None:
    fail_once(machine, MountFailed("no"))
    with pytest.raises(MountFailed):
        machine.driver.mount("data", "x")
    assert machine.references.load() == {}
    assert machine.driver.get("data").references == {}
    assert list((machine.root / "volumes").iterdir()) == []
    machine.driver.mount("data", "x")


def test_intent_is_on_disk_before_the_mount_and_the_reference_after(machine: Machine) -> None:
    seen: list[object] = []
    machine.mounter.before_mount = lambda _: seen.extend((machine.references.intents(), machine.references.load()))
    machine.driver.mount("data", "x")
    assert seen == [[Intent("data", Verb.MOUNT, {"mount_id": "x", "count": 0})], {}]
    assert (machine.references.intents(), machine.references.load()) == ([], {"data": {"x": 1}})


def test_failed_second_mount_keeps_the_first(machine: Machine) -> None:
    machine.driver.mount("data", "x")
    machine.mounter.entries.clear()  # the kernel lost it, so that the second has to mount
    fail_once(machine, MountFailed("no"))
    with pytest.raises(MountFailed):
        machine.driver.mount("data", "x")
    assert machine.driver.get("data").references == {"x": 1}
    assert machine.references.load() == {"data": {"x": 1}}


def test_state_that_cannot_be_written_mounts_nothing(machine: Machine) -> None:
    machine.references.close()
    with pytest.raises(StateUnavailable):
        machine.driver.mount("data", "x")
    assert machine.mounter.entries == {}


@pytest.mark.root
def test_definition_that_cannot_be_written_leaves_no_directory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(definition: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(machine.definitions, "add", full)
    with pytest.raises(StateUnavailable, match="disk is full"):
        machine.driver.create("new", {"host_path": "/srv/new", "create": "true"})
    assert not (machine.hostfs / "srv/new").exists()
    with pytest.raises(VolumeNotFound):
        machine.driver.get("new")


def test_definition_that_cannot_be_removed_stays_usable(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    machine.driver.mount("data", "x")
    with monkeypatch.context() as patch:
        patch.setattr(machine.definitions, "remove", broken)
        with pytest.raises(StateUnavailable):
            machine.driver.remove("data")
    assert machine.driver.get("data").references == {}
    assert machine.mounter.entries == {}
    machine.driver.mount("data", "x")
    assert len(machine.mounter.entries) == 1


def test_unmount_that_fails_is_made_good_by_the_next_mount(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(mountpoint: str) -> None:
        raise MountFailed("locked")

    machine.driver.mount("data", "x")
    with monkeypatch.context() as patch:
        patch.setattr(machine.mounter, "unmount", locked)
        with pytest.raises(MountFailed):
            machine.driver.unmount("data", "x")
    machine.driver.mount("data", "y")
    assert machine.driver.get("data").references == {"y": 1}
    assert len(machine.mounter.entries) == 1


def test_volume_in_use_is_named_with_who_holds_it(machine: Machine) -> None:
    machine.containers.holding = [7]
    mountpoint = machine.driver.mount("data", "77c0" + "0" * 60)
    machine.driver.mount("data", "3f2a" + "0" * 60)
    with pytest.raises(VolumeInUse, match=r"^remove data: volume is in use - \[3f2a00000000, 77c000000000\]$"):
        machine.driver.remove("data")
    assert machine.containers.asked == [Wanted(machine.mounter.shown(mountpoint)[0], "/srv/data")]
    assert machine.driver.get("data").is_mounted


def test_nobody_is_asked_about_a_volume_without_references(machine: Machine) -> None:
    machine.containers.holding = [7]
    machine.driver.remove("data")


def test_removal_keeps_the_files(machine: Machine) -> None:
    (machine.hostfs / "srv/data/file").write_text("keep")
    machine.driver.mount("data", "x")
    machine.driver.remove("data")
    assert (machine.hostfs / "srv/data/file").read_text() == "keep"
    assert machine.start().list() == []


def test_conflict_names_the_differing_keys(machine: Machine) -> None:
    with pytest.raises(VolumeConflict, match="differs in create, gid, mode, read_only, uid;"):
        machine.driver.create("data", {**HOST, "create": "true", "read_only": "true"})
    with pytest.raises(VolumeConflict, match="differs in create, host_path, read_only, type;"):
        machine.driver.create("data", {"type": "sidecar"})
    machine.driver.create("data", {**HOST, "type": "host", "create": "false"})


def test_same_create_does_not_need_the_source(machine: Machine) -> None:
    """The engine of a Swarm node creates again what exists; a missing directory is Mount's business."""
    (machine.hostfs / "srv/data").rmdir()
    machine.driver.create("data", HOST)


def test_volume_whose_stored_options_are_not_understood_stays_known(machine: Machine) -> None:
    definition = machine.definitions.load()[0]
    definition.options.update({"type": "tape"})
    machine.definitions.save(definition)
    driver = machine.start()
    assert driver.get("data").options.effective["type"] == "tape"
    with pytest.raises(InvalidVolume, match="stored options are not usable: option type='tape' is not accepted"):
        driver.mount("data", "x")
    driver.remove("data")


def test_volume_without_a_directory_is_a_token_over_restarts(machine: Machine) -> None:
    options = {"bucket_name": "imagery", "read_only": "true"}
    machine.driver.create("imagery", options)
    machine.driver.create("imagery", {"type": "s3", **options})
    mountpoint = machine.driver.mount("imagery", "x")
    assert machine.mounter.entries == {mountpoint: (None, True)}
    driver = machine.start()
    assert driver.get("imagery").references == {"x": 1}
    machine.mounter.before_mount = lambda _: pytest.fail("it is mounted already")
    driver.mount("imagery", "y")
    for mount_id in ("x", "y"):
        driver.unmount("imagery", mount_id)
    assert machine.mounter.entries == {}
    driver.remove("imagery")


def test_bucket_that_the_host_has_mounted_shows_that_directory(machine: Machine) -> None:
    options = {"bucket_name": "imagery", "host_path": "/srv/data"}
    machine.driver.create("imagery", options)
    mountpoint = machine.driver.mount("imagery", "x")
    inode = (machine.hostfs / "srv/data").stat().st_ino
    assert machine.mounter.entries == {mountpoint: (inode, False)}
    with pytest.raises(HostPathRefused):
        machine.driver.create("etc", {**options, "host_path": "/etc"})
    with pytest.raises(InvalidVolume, match="does not exist"):
        machine.driver.create("none", {**options, "host_path": "/srv/none"})


def test_parallel_mounts_of_one_volume_mount_once(machine: Machine) -> None:
    mounted: list[str] = []
    machine.mounter.before_mount = mounted.append
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: machine.driver.mount("data", f"id{number}"), range(64)))
    assert len(mounted) == 1
    assert len(machine.driver.get("data").references) == 64
    assert machine.references.load()["data"] == machine.driver.get("data").references


@pytest.mark.root
def test_parallel_creates_of_one_name_make_one_volume(machine: Machine) -> None:
    def create(number: int) -> bool:
        with contextlib.suppress(VolumeConflict):
            machine.driver.create("new", {"host_path": f"/srv/{number}", "create": "true"})
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(32))) == 1
    assert len(list((machine.hostfs / "srv").iterdir())) == 2


@contextlib.contextmanager
def blocked_mount(machine: Machine, name: str) -> Iterator[None]:
    """While open, a Mount of volume `name` is under way and does not end."""
    entered, release = threading.Event(), threading.Event()

    def block(mountpoint: str) -> None:
        if mountpoint == machine.driver.get(name).mountpoint:
            entered.set()
            assert release.wait(30)

    machine.mounter.before_mount = block
    with ThreadPoolExecutor(1) as pool:
        mounting = pool.submit(machine.driver.mount, name, "x")
        assert entered.wait(30)
        try:
            yield
        finally:
            release.set()
            mounting.result(30)


def test_blocked_mount_delays_nothing_else(machine: Machine) -> None:
    machine.driver.create("other", HOST)
    with blocked_mount(machine, "data"):
        assert machine.driver.get("data").references == {}
        assert [volume.name for volume in machine.driver.list()] == ["data", "other"]
        machine.driver.mount("other", "y")
        machine.driver.unmount("other", "y")
        machine.driver.create("third", HOST)
        machine.driver.remove("third")
    assert machine.driver.get("data").references == {"x": 1}


@pytest.mark.parametrize(
    "call",
    [
        lambda driver: driver.mount("data", "y"),
        lambda driver: driver.unmount("data", "y"),
        lambda driver: driver.remove("data"),
        lambda driver: driver.create("data", HOST),
    ],
)
def test_call_for_a_blocked_volume_ends_before_the_engine_gives_up(
    machine: Machine, call: Callable[[object], None]
) -> None:
    machine.lock_timeout_s = 0.05
    machine.start()
    with blocked_mount(machine, "data"), pytest.raises(VolumeBusy, match="volume 'data' is busy"):
        call(machine.driver)


def test_locks_are_forgotten_when_nobody_wants_them() -> None:
    locks = NamedLocks(0.01)
    with locks.held("a"), pytest.raises(VolumeBusy), locks.held("a"):
        pass
    with locks.held("a"), locks.held("b"):
        assert set(locks._locks) == {"a", "b"}
    assert locks._locks == {}


def test_stale_volume_is_mounted_anew_for_the_next_container(machine: Machine) -> None:
    machine.driver.create("far", {"nfs_path": "nas:/data"})
    mountpoint = machine.driver.mount("far", "x")
    (old,) = machine.mounter.shown(mountpoint)
    machine.containers.running["old"] = old
    machine.mounter.forget_exports()
    assert machine.driver.mount("far", "y") == mountpoint
    (new,) = machine.mounter.shown(mountpoint)
    volume = machine.driver.get("far")
    assert new != old
    assert volume.shown == new == machine.references.shown()["far"]
    assert volume.references == {"x": 1, "y": 1}
    assert "process 7" in volume.stale
    machine.driver.unmount("far", "x")
    assert machine.mounter.shown(mountpoint) == [new]
    machine.driver.unmount("far", "y")
    assert machine.mounter.shown(mountpoint) == []
    assert machine.driver.get("far").stale == ""


def test_directory_that_was_removed_is_mounted_anew_for_the_next_container(machine: Machine) -> None:
    mountpoint = machine.driver.mount("data", "x")
    (before,) = machine.mounter.shown(mountpoint)
    machine.containers.running["old"] = machine.mounter.remove_directory(mountpoint)
    assert machine.driver.mount("data", "y") == mountpoint
    volume = machine.driver.get("data")
    assert machine.mounter.shown(mountpoint) == [before]
    assert volume.shown == before == machine.references.shown()["data"]
    assert volume.references == {"x": 1, "y": 1}
    assert volume.stale == (
        "the directory that these have mounted was removed on the host, restart them: process 7"
    )
    machine.driver.mount("data", "z")
    assert machine.driver.get("data").stale == volume.stale, "it still holds it"
    for mount_id in "xyz":
        machine.driver.unmount("data", mount_id)
    assert machine.mounter.shown(mountpoint) == []
    assert machine.driver.get("data").stale == ""


def test_directory_that_was_removed_and_not_made_anew_keeps_its_references(machine: Machine) -> None:
    mountpoint = machine.driver.mount("data", "x")
    machine.mounter.remove_directory(mountpoint)
    path = machine.hostfs / "srv/data"
    path.rmdir()
    with pytest.raises(DriverError, match="/srv/data"):
        machine.driver.mount("data", "y")
    assert machine.driver.get("data").references == {"x": 1}
    path.mkdir()
    machine.reconciler.step()
    assert len(machine.mounter.shown(mountpoint)) == 1
    machine.driver.unmount("data", "x")
    assert list((machine.root / "volumes").iterdir()) == []


def test_silent_server_is_not_taken_for_stale(machine: Machine) -> None:
    machine.driver.create("far", {"nfs_path": "nas:/data"})
    mountpoint = machine.driver.mount("far", "x")
    before = machine.mounter.shown(mountpoint)
    machine.mounter.silent.add("nas")
    machine.mounter.forget_exports()
    machine.driver.mount("far", "y")
    assert machine.mounter.shown(mountpoint) == before
    assert machine.driver.get("far").references == {"x": 1, "y": 1}


def test_stale_volume_that_cannot_be_mounted_anew_keeps_its_references(machine: Machine) -> None:
    machine.driver.create("far", {"nfs_path": "nas:/data"})
    mountpoint = machine.driver.mount("far", "x")
    machine.mounter.forget_exports()
    fail_once(machine, MountFailed("nas denies /data to this host"))
    with pytest.raises(MountFailed):
        machine.driver.mount("far", "y")
    assert machine.driver.get("far").references == {"x": 1}
    assert machine.mounter.shown(mountpoint) == []
    machine.reconciler.step()
    assert len(machine.mounter.shown(mountpoint)) == 1
    machine.driver.unmount("far", "x")
    assert list((machine.root / "volumes").iterdir()) == []


def test_token_is_taken_from_its_holder_and_else_made_anew(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.driver.create("bucket", {"bucket_name": "imagery"})
    mountpoint = machine.driver.mount("bucket", "x")
    before = machine.mounter.shown(mountpoint)
    machine.containers.running["one"] = before[0]
    machine.mounter.detach_all()
    machine.driver.mount("bucket", "y")
    assert machine.mounter.shown(mountpoint) == before
    machine.mounter.detach_all()
    mount = machine.mounter.mount

    def denied(source: Source, mountpoint: str, *, read_only: bool) -> None:
        if isinstance(source, Hold):
            raise MountFailed("what the process has mounted is not what was looked for")
        mount(source, mountpoint, read_only=read_only)

    monkeypatch.setattr(machine.mounter, "mount", denied)
    machine.driver.mount("bucket", "z")
    (other,) = machine.mounter.shown(mountpoint)
    assert other != before[0]
    assert other.holding == before[0].holding
    assert machine.driver.get("bucket").references == {"x": 1, "y": 1, "z": 1}


def test_stale_holders_are_told_by_container(machine: Machine, tmp_path: Path) -> None:
    identity = "0123456789abcdef" * 4
    for pid, path in (("7", f"docker-{identity}.scope"), ("8", "user.slice")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cgroup").write_text(f"0::/system.slice/{path}\n")
    holds = [Hold(pid, "/data", 1, "0:50") for pid in (9, 8, 7, 7)]
    volume = noted(machine.driver.get("data"), holds, str(tmp_path))
    assert volume.stale.endswith(": process 7 of container 0123456789ab, process 8, process 9")
    many = noted(volume, [Hold(pid, "/data", 1, "0:50") for pid in range(20, 29)], str(tmp_path))
    assert many.stale.endswith("process 24, 4 more")
    assert noted(many, []).stale == ""
