"""What becomes of NFS volumes in use: the server loses their files, falls silent, or is not to be had again.

On a real server and client, the kernel's, in a machine of the tests' own (lab/inside.py).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.nas import PREPARE, Nas, relay, started_nas
from lab.nfs_driver import ID, Driver, exported, leaving_nothing, running_driver, seconds
from lab.processes import wait_until
from storage.definitions import mountpoint

RUNS_INSIDE = PREPARE

OTHER_ID = "b" * 64
CONTAINER = Path("/run/container")


@pytest.fixture(scope="module")
def nas() -> Iterator[Nas]:
    with started_nas() as server:
        yield server


@pytest.fixture(scope="module")
def export(nas: Nas) -> Path:
    return nas.export("data")


@pytest.fixture(scope="module")
def shared_driver() -> Iterator[Driver]:
    """It looks every second."""
    with running_driver("life", "--reconcile-s", "1") as driver:
        yield driver


@pytest.fixture
def driver(shared_driver: Driver) -> Iterator[Driver]:
    """A driver without volumes. Nothing is left of those that the test makes."""
    with leaving_nothing(shared_driver) as driver:
        yield driver


@contextlib.contextmanager
def container(volume: Path, part: str = "") -> Iterator[int]:
    """A process with a mount namespace of its own that has the volume, or a part of it, at CONTAINER."""
    CONTAINER.mkdir(exist_ok=True)
    script = 'mount --bind "$0" "$1" && echo ready && exec cat'
    with subprocess.Popen(
        ["unshare", "-m", "--propagation", "slave", "sh", "-c", script, str(volume / part), str(CONTAINER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate(timeout=20)


def seen_by(pid: int) -> list[str]:
    """What a container has in its volume."""
    return os.listdir(f"/proc/{pid}/root{CONTAINER}")


def is_stale(path: str | Path) -> bool:
    try:
        os.listdir(path)
    except OSError as error:
        return error.errno == errno.ESTALE
    return False


def events(driver: Driver, event: str, volume: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in driver.process.log().splitlines() if line.startswith("{"))
    return [line for line in lines if (line["event"], line.get("volume")) == (event, volume)]


def made_anew(directory: Path, nas: Nas) -> None:
    del nas
    (directory / "old").unlink()
    directory.rmdir()
    directory.mkdir()
    (directory / "new").touch()


def another_file_system(directory: Path, nas: Nas) -> None:
    """The server comes back, and where the files were another disk is mounted."""
    nas.stop()
    subprocess.run(["mount", "-t", "tmpfs", "disk", str(directory)], check=True)
    (directory / "new").touch()
    options = "rw,no_root_squash,insecure,no_subtree_check,fsid=4711"
    subprocess.run(["exportfs", "-o", options, f"*:{exported(directory)}"], check=True)
    nas.start()


def can_mount(driver: Driver, name: str) -> bool:
    return driver.call("Mount", Name=name, ID=OTHER_ID).status == 200


@pytest.mark.parametrize(("version", "lose"), [("4.2", made_anew), ("3", made_anew), ("4.2", another_file_system)])
def test_stale_volume_is_mounted_anew_and_who_holds_it_is_told(
    driver: Driver, nas: Nas, export: Path, version: str, lose: Callable[[Path, Nas], None]
) -> None:
    name = f"{lose.__name__}-{version}"
    directory = nas.export(name) if lose is another_file_system else export / name
    directory.mkdir(exist_ok=True)
    (directory / "old").touch()
    driver.create(name, directory, f"vers={version}")
    files = driver.mount(name)
    with container(files) as pid:
        assert seen_by(pid) == ["old"]
        lose(directory, nas)
        wait_until(partial(is_stale, files), "the server to have forgotten it")
        assert driver.mount(name, OTHER_ID) == files
        assert os.listdir(files) == ["new"]
        assert is_stale(f"/proc/{pid}/root{CONTAINER}")
        (told,) = events(driver, "stale mount is in use", name)
        assert (told["pids"], told["containers"]) == ([pid], [])
        status = driver.done("Get", Name=name).json["Volume"]["Status"]
        assert (status["health"], status["health_reason"]) == ("stale", told["reason"])
        assert len(driver.mounts()) == 1
        with container(files) as newer:
            assert seen_by(newer) == ["new"]
        driver.done("Unmount", Name=name, ID=ID)
        assert len(driver.mounts()) == 1
    wait_until(lambda: bool(events(driver, "stale mount is in use no more", name)), "its end to be told")
    driver.done("Unmount", Name=name, ID=OTHER_ID)
    assert driver.mounts() == []
    assert driver.done("Get", Name=name).json["Volume"]["Status"]["references"] == 0


def test_what_became_stale_in_a_container_is_told_without_a_mount(driver: Driver, export: Path, nas: Nas) -> None:
    directory = export / "told"
    (directory / "part").mkdir(parents=True)
    (directory / "old").touch()
    (directory / "part/old").touch()
    driver.create("told", directory)
    files = driver.mount("told")
    with container(files, "part") as pid:
        assert seen_by(pid) == ["old"]
        made_anew(directory / "part", nas)
        wait_until(lambda: bool(events(driver, "stale mount is in use", "told")), "it to be told")
        (told,) = events(driver, "stale mount is in use", "told")
        assert told["pids"] == [pid]
        assert "old" in os.listdir(files), "the volume itself is not stale"
    wait_until(lambda: bool(events(driver, "stale mount is in use no more", "told")), "its end to be told")


def test_silent_server_is_not_stale(driver: Driver, export: Path) -> None:
    with relay() as between:
        driver.create("silent", export, f"port={between.port}")
        driver.mount("silent")
        (before,) = driver.mounts()
        between.fall_silent()
        assert seconds(partial(driver.mount, "silent", OTHER_ID)) < 5
        assert driver.mounts() == [before]
        for mount_id in (ID, OTHER_ID):
            driver.done("Unmount", Name="silent", ID=mount_id)
        driver.done("Remove", Name="silent")
        between.speak_again()


def test_dead_servers_keep_no_volume_from_being_mended(driver: Driver, export: Path) -> None:
    """What somebody unmounted on the host is mounted again, though the servers of others are silent."""
    driver.create("good", export)
    driver.mount("good")
    with relay() as one, relay() as two:
        for number, between in enumerate((one, two)):
            driver.create(f"bad{number}", export, f"port={between.port},vers=3")
            driver.mount(f"bad{number}")
        # Held open, since the kernel would have the servers agree to the end of the last mount.
        with contextlib.ExitStack() as opened:
            for name in ("bad0", "bad1"):
                fd = os.open(mountpoint(driver.root, name), os.O_PATH)
                opened.callback(os.close, fd)
            for between in (one, two):
                between.fall_silent()
            for name in ("bad0", "bad1", "good"):
                subprocess.run(["umount", "-l", mountpoint(driver.root, name)], check=True)
            good = mountpoint(driver.root, "good")
            wait_until(lambda: [mount.mountpoint for mount in driver.mounts()] == [good], "the good one")
            for name in ("bad0", "bad1"):
                wait_until(lambda name=name: bool(events(driver, "volume is not mended", name)), "it to fail")  # type: ignore[misc]
                assert [told["again_in_s"] for told in events(driver, "volume is not mended", name)] == [60.0]
        for between in (one, two):
            between.speak_again()
        for name in ("bad0", "bad1"):
            wait_until(partial(can_mount, driver, name), "the server to be known to answer")
            driver.done("Unmount", Name=name, ID=OTHER_ID)
        driver.remove_all()


def test_neighbours_and_parts_of_one_export_are_told_apart(driver: Driver, export: Path) -> None:
    """The kernel says of all that the root is `/`, and the source of each shows its directory."""
    for name in ("left/part", "left-2", "renamed"):
        (export / name).mkdir(parents=True)
    for name in ("left", "left-2", "renamed"):
        driver.create(name, export / name, "vers=3,nolock" if name == "renamed" else "")
        driver.mount(name)
    with container(Path(mountpoint(driver.root, "left")), "part"):
        assert "volume is in use" in driver.error(409, "Remove", Name="left")
        driver.done("Remove", Name="left-2")
        before = driver.mounts()
        # Reached by another name of the server, the kernel shows that, and what the directory is called by now.
        above = driver.mounted(f"127.0.0.1:{exported(export)}", "vers=3,nolock")
        os.rename(above / "renamed", above / "renamed-2")
        assert Path(mountpoint(driver.root, "renamed")) == driver.mount("renamed", OTHER_ID)
        driver.done("Unmount", Name="renamed", ID=OTHER_ID)
        kept = {mount.mount_id for mount in driver.mounts()}
        assert {mount.mount_id for mount in before} <= kept
        assert any(mount.source == f"127.0.0.1:{exported(export)}/renamed-2" for mount in driver.mounts())
