"""What the timer and the start do, with the real process, real mounts and real mount namespaces."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.namespaces import Host
from lab.processes import Running, running, wait_until
from lab.unix_http import request
from lab.volume_driver import DIES_WITH_THE_TESTS, VolumeDriver, command, driver_on
from storage.mountinfo import Mount, mount_at, read_mounts

pytestmark = pytest.mark.root

OFTEN = ("--reconcile-s", "1", "--reference-grace-s", "1")

# Mounts as an engine does, says so, and waits: to be killed, or to give it back.
ENGINE = """
import sys
from lab.unix_http import request
import json
def call(verb):
    body = json.dumps({"Name": sys.argv[2], "ID": sys.argv[3]}).encode()
    assert request(sys.argv[1], "POST", f"/VolumeDriver.{verb}", body).status == 200
call("Mount")
print("mounted", flush=True)
sys.stdin.read()
call("Unmount")
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "host")
    for name in ("data", "empty"):
        (host.files / "srv" / name).mkdir(parents=True)
    (host.files / "srv/data/file").write_text("content")
    yield host
    assert (host.files / "srv/data/file").read_text() == "content"
    host.close()


class Engine:
    """A process that holds a reference."""

    def __init__(self, driver: VolumeDriver, name: str, mount_id: str) -> None:
        arguments = [driver.process.socket_path, name, mount_id]
        self._process = subprocess.Popen(
            [sys.executable, "-c", ENGINE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"mounted\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        self._process.communicate(timeout=20)
        assert self._process.returncode == 0


def passes(driver: VolumeDriver, count: int = 3) -> None:
    """Let the timer look some times: it looks at the definitions each time, for which it opens nothing new."""
    for number in range(count):
        name = f"pass{number}"
        driver.create(name, "/srv/data")
        driver.done("Mount", Name=name, ID="x")
        driver.host.run("umount", driver.mountpoint(name))
        wait_until(lambda name=name: is_mounted(driver, name), "the next pass")  # type: ignore[misc]
        driver.done("Unmount", Name=name, ID="x")
        driver.done("Remove", Name=name)


def published(driver: VolumeDriver, name: str) -> Mount | None:
    return mount_at(read_mounts(f"/proc/{driver.process.pid}/mountinfo"), driver.mountpoint(name))


def is_mounted(driver: VolumeDriver, name: str) -> bool:
    return published(driver, name) is not None


def test_mount_of_a_killed_engine_goes_when_its_container_has_gone(host: Host) -> None:
    with driver_on(host, *OFTEN) as driver:
        driver.create("data", "/srv/data")
        engine = Engine(driver, "data", "x")
        with host.container(driver.mountpoint("data")) as pid:
            engine.kill()
            passes(driver)
            assert driver.references("data") == 1
            assert Path(f"/proc/{pid}/root{host.directory}/container/file").read_text() == "content"
        wait_until(lambda: driver.references("data") == 0, "the reference to be dropped")
        wait_until(lambda: driver.mounts() == [], "the volume to be unmounted")
        assert "no process has the volume" in driver.process.log()


def test_mount_of_a_living_engine_stays_before_its_container_starts(host: Host) -> None:
    with driver_on(host, *OFTEN) as driver:
        driver.create("data", "/srv/data")
        engine = Engine(driver, "data", "x")
        passes(driver)
        assert driver.references("data") == 1
        assert is_mounted(driver, "data")
        engine.end()
        assert driver.references("data") == 0


def test_what_containers_hold_is_published_again_after_a_forced_disable(host: Host) -> None:
    with driver_on(host) as driver:
        driver.create("data", "/srv/data")
        driver.create("unused", "/srv/empty")
        driver.mount("data", "x")
        driver.mount("unused", "y")
        mountpoint = driver.mountpoint("data")
        driver.process.kill()
    with host.container(mountpoint) as pid:
        for name in ("data", "unused"):
            host.run("umount", "-l", driver.mountpoint(name))
        with driver_on(host) as driver:
            wait_until(lambda: is_mounted(driver, "data"), "the volume to be published again")
            assert driver.references("data") == 1
            held = mount_at(read_mounts(f"/proc/{pid}/mountinfo"), f"{host.directory}/container")
            ours = published(driver, "data")
            assert ours is not None
            assert held is not None
            assert ours.shows_same_as(held)
            driver.done("Unmount", Name="data", ID="x")
            assert driver.mounts() == []


@pytest.mark.parametrize("read_only", ["false", "true"])
def test_token_is_had_again_from_the_container_that_holds_it(host: Host, read_only: str) -> None:
    """After a forced disable: a new one would be another, by which the sidecar does not know the container."""
    with driver_on(host) as driver:
        driver.done("Create", Name="bucket", Opts={"bucket_name": "imagery", "read_only": read_only})
        driver.mount("bucket", "x")
        before, mountpoint = published(driver, "bucket"), driver.mountpoint("bucket")
        assert before is not None
        driver.process.kill()
    with host.container(mountpoint):
        host.run("umount", "-l", mountpoint)
        with driver_on(host, *OFTEN) as driver:
            wait_until(lambda: is_mounted(driver, "bucket"), "the token to be published again")
            (ours,) = driver.mounts()
            assert ours.shows_same_as(before)
            assert (ours.source, ours.is_mounted_read_only) == (before.source, read_only == "true")
            host.run("umount", "-l", mountpoint)
            assert driver.mount("bucket", "x").exists()
            (again,) = driver.mounts()
            assert again.shows_same_as(before)
            driver.done("Unmount", Name="bucket", ID="x")
            driver.done("Unmount", Name="bucket", ID="x")
            assert driver.mounts() == []


def test_token_of_a_container_that_may_mount_what_it_likes_is_not_believed(host: Host) -> None:
    """In a user namespace of its own anybody makes a file system that looks like the token."""
    with driver_on(host) as driver:
        driver.done("Create", Name="bucket", Opts={"bucket_name": "imagery"})
        driver.mount("bucket", "x")
        mountpoint = driver.mountpoint("bucket")
        driver.process.kill()
    host.run("umount", "-l", mountpoint)
    script = 'mount -t tmpfs "brokervol:$0" /mnt && touch /mnt/theirs && echo ready && exec cat'
    command = ["unshare", "--user", "--map-root-user", "-m", "sh", "-c", script, os.path.basename(mountpoint)]
    with subprocess.Popen([*host.entering, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as theirs:
        assert theirs.stdout is not None
        assert theirs.stdout.readline() == b"ready\n"
        with driver_on(host) as driver:
            wait_until(lambda: is_mounted(driver, "bucket"), "the token to be published again")
            assert os.listdir(f"/proc/{driver.process.pid}/root{mountpoint}") == []
            driver.process.wait_for_log("token not taken from its holder")
            driver.done("Unmount", Name="bucket", ID="x")
        theirs.communicate()


def test_directory_that_was_removed_and_made_anew_is_what_the_next_container_gets(host: Host) -> None:
    again = host.files / "srv/again"
    again.mkdir()
    with driver_on(host, *OFTEN) as driver:
        driver.create("again", "/srv/again")
        driver.mount("again", "x")

        def told() -> str:
            return str(driver.done("Get", Name="again").json["Volume"]["Status"].get("health_reason", ""))

        with host.container(driver.mountpoint("again")) as pid:
            again.rmdir()
            wait_until(lambda: f"process {pid}" in told(), "it is told who has it")
            again.mkdir()
            (again / "file").write_text("new")
            assert (driver.mount("again", "y") / "file").read_text() == "new"
            passes(driver)
            assert f"removed on the host, restart them: process {pid}" in told()
            assert len(driver.mounts()) == 1
        wait_until(lambda: told() == "", "nobody has it any more")
        for mount_id in ("x", "y"):
            driver.done("Unmount", Name="again", ID=mount_id)
        assert driver.mounts() == []
        assert (again / "file").read_text() == "new"


def test_what_is_mounted_on_top_is_taken_off(host: Host) -> None:
    with driver_on(host, *OFTEN) as driver:
        driver.create("data", "/srv/data")
        files = driver.mount("data", "x")
        before = published(driver, "data")
        host.run("mount", "-t", "tmpfs", "other", driver.mountpoint("data"))
        assert not (files / "file").exists()
        wait_until((files / "file").exists, "the files to be seen again")
        passes(driver, 1)  # both are taken off, one after the other, before the volume is mounted again
        assert (files / "file").exists()
        ours = published(driver, "data")
        assert ours is not None
        assert before is not None
        assert ours.shows_same_as(before)
        assert len(driver.mounts()) == 1


def test_state_of_a_newer_version_ends_the_driver_with_a_sentence(host: Host) -> None:
    with driver_on(host) as driver:
        driver.create("data", "/srv/data")
    for file, version in (("definitions.sqlite", 2), ("mounts.sqlite", 3)):
        change_version(host, file, 99)
        ended = subprocess.run(
            command(host, str(host.directory.parent / "refused.sock")),
            env={**os.environ, **DIES_WITH_THE_TESTS},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ended.returncode == 1
        said = json.loads(ended.stdout.splitlines()[-1])
        assert said["event"] == "brokervol driver cannot work"
        assert f"{file} has version 99; this brokervol knows versions up to" in said["reason"]
        change_version(host, file, version)
    with driver_on(host) as driver:
        assert [volume["Name"] for volume in driver.done("List").json["Volumes"]] == ["data"]


def change_version(host: Host, file: str, version: int) -> None:
    """Of a SQLite file, where it stands twice, in the host's own mount namespace."""
    program = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1]);"
        "connection.execute(f'PRAGMA user_version = {sys.argv[2]}');"
        "connection.execute(f'PRAGMA application_id = {sys.argv[2]}'); connection.commit(); connection.close()"
    )
    host.run(sys.executable, "-c", program, f"{host.directory}/root/.state/{file}", str(version))


def test_damaged_state_is_mended_told_and_kept(host: Host) -> None:
    with driver_on(host) as driver:
        driver.create("data", "/srv/data", read_only="true")
        driver.mount("data", "x")
        before = driver.done("List").json
        driver.process.kill()
    state = host.files / "root/.state"
    for file in ("definitions.sqlite", "mounts.sqlite"):
        for suffix in ("-wal", "-shm"):
            (state / f"{file}{suffix}").unlink(missing_ok=True)
        (state / file).write_bytes(b"damaged" * 1000)
    with host.container(driver.mountpoint("data")), driver_on(host) as driver:
        assert driver.done("List").json == before, "one reference, for the one container"
        for told in ("definitions rebuilt", "state set aside", "references replaced"):
            assert told in driver.process.log()
    assert len([path for path in state.iterdir() if ".damaged-" in path.name]) == 2


def test_timer_does_not_keep_the_driver_from_ending(host: Host) -> None:
    with driver_on(host, *OFTEN) as driver:
        driver.create("data", "/srv/data")
        driver.mount("data", "x")
        os.kill(driver.process.pid, signal.SIGTERM)
        assert driver.process.wait() == 0
        assert "reconciling failed" not in driver.process.log()
    assert len(host.mounts()) == 1


def test_daemon_mends_a_crashed_driver_and_leaves_mounts_at_its_end(host: Host) -> None:
    """The reason is told, a call that comes meanwhile is answered, and what was mounted is adopted."""
    root, socket_path = f"{host.directory}/root", str(host.directory.parent / "daemon.sock")
    daemon = [sys.executable, "-m", "brokervol", "daemon", "--socket", socket_path, "--root", root]
    command = [*host.entering_as_plugin, *daemon, "--hostfs", str(host.directory)]
    with running(command, DIES_WITH_THE_TESTS, socket_path) as process:
        driver = VolumeDriver(host, process)
        driver.create("data", "/srv/data")
        driver.done("Mount", Name="data", ID="x")
        pid = next(event["pid"] for event in events(process) if event["event"] == "started")
        os.kill(pid, signal.SIGSEGV)
        process.wait_for_log('"died"')
        wait_until(lambda: answers(driver), "the driver to be back")
        died = next(event for event in events(process) if event["event"] == "died")
        assert (died["child"], died["reason"], died["restart_in_s"]) == ("driver", "SIGSEGV", 0.1)
        assert driver.references("data") == 1
        assert process.terminate() == 0
    assert len(host.mounts()) == 1
    with driver_on(host) as again:
        assert again.references("data") == 1


def events(process: Running) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.log().splitlines() if line.startswith("{")]


def answers(driver: VolumeDriver) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return driver.call("List").status == 200
    return False


def test_volumes_are_imported_beside_a_driver_that_runs(host: Host) -> None:
    with driver_on(host, "--reconcile-s", "0") as driver:
        driver.create("data", "/srv/data")
        root = f"{host.directory}/root"
        brokervol = [sys.executable, "-m", "brokervol", "volumes", "--root", root]
        host.run(*brokervol, "export", f"{host.directory}/volumes.json")
        driver.done("Remove", Name="data")
        host.run(*brokervol, "import", f"{host.directory}/volumes.json")

        def is_known() -> bool:
            body = json.dumps({"Name": "data"}).encode()
            return request(driver.process.socket_path, "POST", "/VolumeDriver.Get", body).status == 200

        wait_until(is_known, "the driver to notice")
        assert (driver.mount("data", "x") / "file").exists()
