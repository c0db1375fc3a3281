"""NFS volumes on a real server and client: the kernel's, in a machine of the tests' own (lab/inside.py)."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from lab.inner_engine import IMAGE, InnerEngine, inner_engine
from lab.nas import PREPARE, Nas, Relay, deaf_port, relay, started_nas
from lab.nfs_driver import (
    ID,
    TIMEOUT_S,
    WARM,
    Driver,
    assert_gone,
    exported,
    leaving_nothing,
    mount_and_unmount,
    running_driver,
    seconds,
)
from lab.processes import wait_until
from lab.unix_http import request
from storage.definitions import mountpoint
from storage.mountinfo import mount_at, read_mounts
from volumedriver import network

RUNS_INSIDE = PREPARE

VERSIONS = ["4.2", "4.1", "4.0", "3"]
PROMPT_S = TIMEOUT_S  # for so long, or longer, waits who asks a server that does not answer
ROUNDS = 3  # of which the best counts


@pytest.fixture(scope="module")
def shared_driver() -> Iterator[Driver]:
    with running_driver("shared") as driver:
        yield driver
        workers = driver.workers()
    assert_gone(workers)


@pytest.fixture
def driver(shared_driver: Driver) -> Iterator[Driver]:
    """A driver without volumes. Nothing is left of those that the test makes."""
    with leaving_nothing(shared_driver) as driver:
        yield driver


@pytest.fixture
def patient() -> Iterator[Driver]:
    """The same with as much time for a mount as usual: fifty of them, on one slow processor, need some."""
    with running_driver("patient", "--nfs-mount-timeout-s", "20") as driver, leaving_nothing(driver):
        yield driver


@pytest.fixture(scope="module")
def nas() -> Iterator[Nas]:
    with started_nas() as server:
        yield server


@pytest.fixture(scope="module")
def export(nas: Nas) -> Path:
    """A directory that everybody may do everything with."""
    path = nas.export("data")
    (path / "sub/deep").mkdir(parents=True)
    (path / "sub/deep/file").write_text("content")
    return path


@pytest.mark.parametrize("version", VERSIONS)
def test_a_volume_of_each_version_is_read_and_written(driver: Driver, export: Path, version: str) -> None:
    files = driver.mounted(export, f"vers={version},wsize=8192")
    (files / f"written-{version}").write_text(version)
    assert (export / f"written-{version}").read_text() == version
    (mount,) = driver.mounts()
    assert mount.fs_type == ("nfs" if version == "3" else "nfs4")
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(files) in line)
    options = line.split()[3].split(",")
    assert {f"vers={version}", "wsize=8192", "hard", "nosuid", "nodev", "proto=tcp"} <= {*options}


def test_the_newest_version_is_taken(driver: Driver, export: Path) -> None:
    driver.mounted(export)
    assert "vers=4.2" in Path("/proc/mounts").read_text()


@pytest.mark.parametrize(("off", "got"), [(["-N", "4.2"], "4.1"), (["-N", "4.2", "-N", "4.1"], "4.0")])
def test_an_older_server_gets_an_older_version(
    driver: Driver, nas: Nas, export: Path, off: list[str], got: str
) -> None:
    nas.stop()
    nas.start(*off)
    try:
        driver.mounted(export)
        assert f"vers={got}," in Path("/proc/mounts").read_text()
        refused = driver.refused(500, export, "vers=4.2,nosharecache")
        assert "does not serve NFS version 4.2" in refused
        driver.remove_all()
    finally:
        nas.stop()
        nas.start("-V", "4.0", "-V", "4.1", "-V", "4.2")


def test_a_server_of_version_3_only(driver: Driver, nas: Nas, export: Path) -> None:
    nas.stop()
    nas.start("-N", "4")
    try:
        driver.mounted(export)
        assert "vers=3," in Path("/proc/mounts").read_text()
        assert "does not serve NFS version 4.2, but 3 to 3" in driver.refused(500, export, "vers=4.2")
        driver.remove_all()
    finally:
        nas.stop()
        nas.start("-V", "4")


def test_ipv6(driver: Driver, export: Path) -> None:
    assert (driver.mounted(f"[::1]:{exported(export)}", "vers=4.1") / "sub").is_dir()
    assert "addr=::1" in Path("/proc/mounts").read_text()
    assert (driver.mounted(f"nas6:{exported(export)}/sub", "proto=tcp6") / "deep").is_dir()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sub_directory(driver: Driver, export: Path, version: str) -> None:
    files = driver.mounted(export / "sub/deep", f"vers={version}")
    assert (files / "file").read_text() == "content"
    assert not (files / "../sub").exists()


def test_difficult_names(driver: Driver, export: Path) -> None:
    for name in ("with space", "comma,vers=3", "dollar$(reboot)", "colon:x", "ümlaut", "quote'\"", "back\\slash"):
        (export / name).mkdir()
        (driver.mounted(export / name) / "here").touch()
        assert (export / name / "here").exists()


def test_a_missing_directory_is_made_as_asked(driver: Driver, export: Path) -> None:
    files = driver.mounted(export / "new/a/b", create="true", mode="2770", uid="1000", gid="1001")
    (files / "file").touch()
    made = (export / "new/a/b").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o7777) == (1000, 1001, 0o2770)
    assert (export / "new").stat().st_mode & 0o7777 == 0o755
    again = driver.mounted(export / "new/a/b", create="true", mode="0700", uid="5")
    assert (again / "file").exists()
    assert (export / "new/a/b").stat().st_uid == 1000, "what exists is never altered"


def test_no_directory_is_made_through_a_link(driver: Driver, export: Path, nas: Nas) -> None:
    elsewhere = nas.directory / "elsewhere"
    elsewhere.mkdir()
    (export / "link").symlink_to(elsewhere)
    driver.refused(403, export / "link/a", create="true")
    assert not list(elsewhere.iterdir())


def test_read_only(driver: Driver, export: Path) -> None:
    for options in ({"read_only": "true"}, {"mount_options": "ro"}):
        files = driver.mounted(export, **options)
        with pytest.raises(OSError, match="Read-only"):
            (files / "not-there").touch()
    (driver.mounted(export) / "there").touch()


def test_root_squash(driver: Driver, nas: Nas) -> None:
    path = nas.export("squashed", options="rw,root_squash")
    (path / "of-1000").mkdir()
    os.chown(path / "of-1000", 1000, 1000)
    files = driver.mounted(path / "of-1000")
    with pytest.raises(PermissionError):
        (files / "new").touch()
    refused = driver.refused(500, path / "of-1000/a", create="true")
    assert "Permission denied; where the server maps root to nobody (root_squash), give uid and gid" in refused
    made = driver.mounted(path / "of-1000/a", create="true", uid="1000", gid="1000", mode="0750")
    assert (path / "of-1000/a").stat().st_mode & 0o7777 == 0o750
    assert made.stat().st_uid == 1000


@pytest.mark.parametrize("version", ["4.2", "3"])
def test_an_export_for_others(driver: Driver, nas: Nas, version: str) -> None:
    path = nas.export(f"others-{version}", clients="192.0.2.1")
    status = 500 if version == "3" else 400
    refused = driver.refused(status, path, f"vers={version}")
    assert refused.startswith(f"cannot mount nas:{exported(path)}: nas ")
    assert "it is exported, but not to this host's address (127.0.0.1)" in refused


@pytest.mark.parametrize("version", ["4.2", "3"])
def test_no_such_export(driver: Driver, export: Path, version: str) -> None:
    refused = driver.refused(500 if version == "3" else 400, "nas:/nowhere", f"vers={version}")
    assert "the server says that it exports" in refused
    assert exported(export) in refused


@pytest.mark.parametrize("version", ["4.2", "3"])
def test_no_such_directory_in_an_export(driver: Driver, export: Path, version: str) -> None:
    refused = driver.refused(400, export / "sub/none/x", f"vers={version}")
    assert f"on nas there is no none/x in {exported(export)}/sub: make it (create=true does)" in refused


def test_the_server_is_not_known(driver: Driver) -> None:
    assert "the name nowhere.example is not known here (" in driver.refused(503, "nowhere.example:/x")


def test_the_server_is_nowhere(driver: Driver) -> None:
    refused = driver.refused(503, "192.0.2.1:/x")
    assert "there is no route to 192.0.2.1: check this host's network" in refused


def test_nobody_listens(driver: Driver) -> None:
    refused = driver.refused(503, "nas:/x", "port=9")
    assert "nas (127.0.0.1) refuses connections to port 9: no NFS server runs there" in refused


def test_a_port_that_never_answers(driver: Driver) -> None:
    started = time.monotonic()
    with deaf_port() as port:
        refused = driver.refused(503, "nas:/x", f"port={port}")
    assert TIMEOUT_S <= time.monotonic() - started < TIMEOUT_S + PROMPT_S
    assert f"accepts connections on port {port} but answers no request within {TIMEOUT_S} s" in refused


def test_what_hangs_costs_others_nothing(driver: Driver, export: Path) -> None:
    """Ten volumes of a silent server are mounted at once: everything else is as fast as ever."""
    driver.mounted(export)  # so that the server is in use, and not met anew each time
    driver.create("good", export)
    assert any(is_as_fast_beside_what_hangs(driver, f"bad{number}") for number in range(ROUNDS))


def is_as_fast_beside_what_hangs(driver: Driver, name: str) -> bool:
    """Whether volumes of this name, of a server never met before, cost others nothing while they are mounted."""
    quiet_s = statistics.median(mount_and_unmount(driver, "good") for _ in range(10))
    with deaf_port() as port, ThreadPoolExecutor(10) as pool:
        names = [f"{name}-{number}" for number in range(10)]
        for each in names:
            driver.create(each, "nas:/x", f"port={port}")
        hanging = [pool.submit(driver.error, 503, "Mount", Name=each, ID=ID) for each in names]
        wait_until(lambda: len(driver.workers()) >= 11, "ten workers")
        asked_s: list[float] = []
        mounted_s: list[float] = []
        while not any(future.done() for future in hanging) and len(mounted_s) < 20:
            asked_s += [seconds(partial(driver.done, verb, Name="good")) for verb in ("Get", "List")]
            mounted_s.append(mount_and_unmount(driver, "good"))
        assert all("answers no request within" in future.result() for future in hanging)
    if len(mounted_s) < 3:
        return False
    usual_s, found_s = statistics.median(asked_s), statistics.median(mounted_s)
    print(f"asked {usual_s:.3f} s; mounted {found_s:.3f} s, in quiet {quiet_s:.3f} s")
    # One processor, which may be busy with other things as well: what waits would take seconds.
    return usual_s < 0.05 and found_s < 3 * quiet_s + 0.05


@pytest.fixture
def silent(driver: Driver, export: Path) -> Iterator[tuple[Relay, str]]:
    """A relay to the server, and the name of a volume that is mounted through it."""
    with relay() as between:
        driver.create("silent", export, f"port={between.port}")
        driver.mount("silent")
        yield between, "silent"
        between.speak_again()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_volume_of_a_silent_server_is_given_back_at_once(driver: Driver, export: Path, version: str) -> None:
    """The last use of a server is ended with its consent, for which the kernel would wait: but not the caller."""
    with relay() as between:
        options = f"vers={version},port={between.port}"
        files = driver.mounted(export, options)
        (name,) = [volume["Name"] for volume in driver.done("List").json["Volumes"]]
        list(files.iterdir())
        between.fall_silent()
        assert seconds(partial(driver.done, "Unmount", Name=name, ID=ID)) < PROMPT_S
        assert seconds(partial(driver.done, "Remove", Name=name)) < PROMPT_S
        assert driver.mounts() == []
        driver.wait_for_idle_workers()


def test_a_held_volume_of_a_silent_server_is_listed_and_removed(driver: Driver, silent: tuple[Relay, str]) -> None:
    between, name = silent
    with open(f"{mountpoint(driver.root, name)}/sub/deep/file", "rb") as held:
        between.fall_silent()
        for verb in ("Get", "List", "Path", "Capabilities"):
            assert min(seconds(partial(driver.done, verb, Name=name)) for _ in range(ROUNDS)) < 0.5
        assert driver.mount(name, "b" * 64), "it is mounted, so nothing has to be asked"
        for mount_id in (ID, "b" * 64):
            assert seconds(partial(driver.done, "Unmount", Name=name, ID=mount_id)) < PROMPT_S
        assert seconds(partial(driver.done, "Remove", Name=name)) < PROMPT_S
        between.speak_again()
        assert held.read() == b"content"


def test_a_stopped_server(driver: Driver, nas: Nas, export: Path) -> None:
    driver.create("stopped", export)
    driver.mount("stopped")
    nas.stop()
    try:
        assert min(seconds(partial(driver.done, "List")) for _ in range(ROUNDS)) < 0.5
        assert seconds(partial(driver.done, "Unmount", Name="stopped", ID=ID)) < PROMPT_S
        assert "refuses connections to port 2049" in driver.error(503, "Mount", Name="stopped", ID=ID)
        assert seconds(partial(driver.done, "Remove", Name="stopped")) < PROMPT_S
        driver.wait_for_idle_workers()
    finally:
        nas.start()


def test_fifty_volumes_at_once(patient: Driver, export: Path) -> None:
    driver = patient
    for number in range(50):
        (export / f"many-{number}").mkdir()
        (export / f"many-{number}" / str(number)).touch()
        driver.create(f"many-{number}", export / f"many-{number}")
    with ThreadPoolExecutor(50) as pool:
        files = list(pool.map(lambda number: driver.mount(f"many-{number}"), range(50)))
    assert [(path / str(number)).exists() for number, path in enumerate(files)] == [True] * 50
    assert len(driver.mounts()) == 50
    driver.wait_for_idle_workers()


def test_one_volume_mounted_by_many_at_once_is_mounted_once(driver: Driver, export: Path) -> None:
    driver.create("one", export)
    ids = [f"{number:064}" for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda mount_id: driver.mount("one", mount_id), ids))
        assert len(driver.mounts()) == 1
        list(pool.map(lambda mount_id: driver.done("Unmount", Name="one", ID=mount_id), ids))
    assert driver.mounts() == []


def test_a_killed_driver_finds_its_mounts_again(nas: Nas, export: Path) -> None:
    with running_driver("killed") as first:
        first.create("data", export)
        first.create("more", export / "sub")
        files = first.mount("data")
        first.mount("more")
        (kept, _) = first.mounts()
        first.process.kill()
    with running_driver("killed") as second:
        assert kept in second.mounts()
        assert (files / "sub").is_dir()
        assert second.mount("data", "b" * 64) == files
        for mount_id in (ID, "b" * 64):
            second.done("Unmount", Name="data", ID=mount_id)
        assert len(second.mounts()) == 1
        nas.stop()
        try:
            second.process.kill()
            with running_driver("killed") as third:
                third.remove_all()
                third.nothing_is_left()
        finally:
            nas.start()


def test_a_driver_that_is_killed_while_it_mounts_leaves_nothing(export: Path) -> None:
    with running_driver("mounting") as driver, deaf_port() as port, ThreadPoolExecutor(1) as pool:
        driver.create("deaf", "nas:/x", f"port={port}")
        hanging = pool.submit(driver.call, "Mount", Name="deaf", ID=ID)
        wait_until(lambda: len(driver.workers()) >= 2, "its worker")
        workers = driver.workers()
        driver.process.kill()
        assert hanging.exception() is not None
        assert_gone(workers)
    with running_driver("mounting") as driver:
        driver.remove_all()
        driver.nothing_is_left()


def test_only_allowed_servers(nas: Nas, export: Path) -> None:
    with running_driver("allowed", "--allowed-nfs-servers", f"nas:{exported(export)}, 10.0.0.0/8") as driver:
        driver.mounted(export / "sub")
        for place in ("127.0.0.1:/data", "[::1]:/data"):
            refused = driver.error(403, "Create", Name="x", Opts={"nfs_path": place})
            assert "ALLOWED_NFS_SERVERS of this host allows nas:/data, 10.0.0.0/8" in refused
        for place in ("nas:/", "nas:/dat", "nas:/data-2", "localhost:/data"):  # at an address of 10.0.0.0/8?
            refused = driver.refused(403, place)
            assert "is at 127.0.0.1, and ALLOWED_NFS_SERVERS of this host allows this path in 10.0.0" in refused
        driver.remove_all()
        driver.nothing_is_left()


def test_workers_that_are_killed_are_replaced(driver: Driver, export: Path) -> None:
    driver.mounted(export)
    before = {*driver.workers()}
    for pid in before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    driver.mounted(export / "sub")
    assert before
    assert not before & {*driver.workers()}


def test_container_of_one_directory_does_not_hold_its_neighbour(driver: Driver, export: Path) -> None:
    """The kernel says of every directory of an export that its root is `/`."""
    for name in ("left", "right"):
        (export / name).mkdir()
    left, right = (driver.mounted(export / name) for name in ("left", "right"))
    mounts = read_mounts()
    found = [mount_at(mounts, str(path)) for path in (left, right)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].device == found[1].device
    assert not found[0].shows_same_as(found[1])


@pytest.fixture(scope="module")
def engine() -> Iterator[tuple[InnerEngine, Driver]]:
    """A real engine, which calls a driver of its own."""
    with running_driver("engine") as driver, inner_engine("brokervol", driver.process.socket_path) as opened:
        yield opened, driver


def with_volume(engine: InnerEngine, name: str, *options: str) -> str:
    """A container with a new volume at `/d`; it is not started, as copying from it mounts the volume as well."""
    given = [word for option in options for word in ("-o", option)]
    engine.done("volume", "create", "-d", "brokervol", *given, name)
    return engine.done("create", "-v", f"{name}:/d", IMAGE, "true").decode().strip()


def test_a_real_engine_mounts_what_it_copies_from(engine: tuple[InnerEngine, Driver], export: Path) -> None:
    docker, driver = engine
    container = with_volume(docker, "data", f"nfs_path=nas:{exported(export)}", "mount_options=vers=4.2,soft")
    assert b"content" in docker.done("cp", f"{container}:/d/sub/deep/file", "-")
    assert driver.mounts() == []
    docker.done("rm", container)
    docker.done("volume", "rm", "data")
    driver.nothing_is_left()


def test_a_real_engine_tells_why_and_stays_alive(engine: tuple[InnerEngine, Driver], export: Path) -> None:
    docker, driver = engine
    good = with_volume(docker, "good", f"nfs_path=nas:{exported(export)}")
    nowhere = with_volume(docker, "nowhere", "nfs_path=nas:/nowhere")
    assert "cannot mount nas:/nowhere: nas has no /nowhere for this host" in docker.error(
        "cp", f"{nowhere}:/d", "-"
    )
    with deaf_port() as port, ThreadPoolExecutor(1) as pool:
        deaf = with_volume(docker, "deaf", "nfs_path=nas:/x", f"mount_options=port={port}")
        hanging = pool.submit(docker.error, "cp", f"{deaf}:/d", "-")
        wait_until(lambda: len(driver.workers()) >= 2, "the mount is under way")
        assert b"good" in docker.done("volume", "ls")
        assert not hanging.done()
        assert b"content" in docker.done("cp", f"{good}:/d/sub/deep/file", "-")
        assert "answers no request within 3 s" in hanging.result()
    docker.done("rm", good, nowhere, deaf)
    docker.done("volume", "rm", "good", "nowhere", "deaf")
    driver.nothing_is_left()


def health(driver: Driver, name: str) -> str:
    """The health of a volume, as `docker volume inspect` shows it."""
    status = driver.done("Get", Name=name).json["Volume"]["Status"]
    return f"{status['health']}: {status['health_reason']}"


def wait_for_health(driver: Driver, name: str, wanted: str) -> None:
    wait_until(lambda: health(driver, name).startswith(wanted), f"{name} is {wanted}: {health(driver, name)}")


@pytest.fixture
def watching() -> Iterator[Driver]:
    """A driver of its own, as what it remembers of the server is no other test's. It probes every second."""
    with running_driver("watching", "--nfs-probe-s", "1") as driver, leaving_nothing(driver):
        yield driver


def test_a_dead_server_is_remembered_until_it_answers(watching: Driver, nas: Nas, export: Path) -> None:
    driver = watching
    driver.create("mounted", export)
    driver.create("wanted", export / "sub")
    assert health(driver, "mounted") == "unknown: no volume of this server is mounted"
    driver.mount("mounted")
    assert health(driver, "wanted") == "healthy: ", "they have one server"
    assert network.connections(["127.0.0.1"], 2049) is not None, "the kernel's own connection is seen"
    nas.stop()
    try:
        wait_for_health(driver, "mounted", "unreachable since 20")
        assert "nas (127.0.0.1) refuses connections to port 2049: no NFS server runs" in health(driver, "wanted")
        refused = driver.error(503, "Mount", Name="wanted", ID=ID)
        assert "cannot mount nas:/data/sub: nas (127.0.0.1) refuses connections to port 2049: no NFS" in refused
        assert " s, and a mount can be tried again when it answers" in refused
        assert "nas has no" not in driver.refused(503, "nas:/nowhere"), "nothing is asked of it"
        assert "port 9" in driver.refused(503, export, "port=9"), "that is another service"
    finally:
        nas.start()
    wait_for_health(driver, "wanted", "healthy: ")
    driver.mount("wanted")
    assert "nas has no /nowhere" in driver.refused(400, "nas:/nowhere")
    assert health(driver, "wanted") == "healthy: ", "a path that is not there says nothing against the server"
    driver.done("Unmount", Name="wanted", ID=ID)


def test_a_server_that_answers_late_is_slow(watching: Driver, export: Path) -> None:
    with relay() as between:
        watching.create("late", export, f"port={between.port},soft")
        watching.mount("late")
        wait_for_health(watching, "late", "healthy")
        between.fall_silent()
        late = (
            f"slow: nas (127.0.0.1) accepts connections on port {between.port} but answers no request within 5 s"
        )
        wait_for_health(watching, "late", late)
        between.speak_again()
        wait_for_health(watching, "late", "healthy: ")


def test_a_herd_of_mounts_of_a_silent_server_hinders_nobody(patient: Driver, export: Path) -> None:
    driver, herd = patient, 80
    driver.create("good", export)
    with ThreadPoolExecutor(herd) as pool:
        with deaf_port() as port:
            for number in range(herd):
                driver.create(f"bad{number}", "nas:/x", f"port={port}")
            hanging = [
                pool.submit(driver.error, 503, "Mount", Name=f"bad{number}", ID=ID) for number in range(herd)
            ]
            wait_until(lambda: f'calls_under_way{{call="Mount"}} {herd}.0' in metrics(driver), "all of them wait")
            wait_until(lambda: len(driver.workers()) > 16, "sixteen are tried")
            for _ in range(3):
                for verb in ("Get", "List", "Path", "Capabilities"):
                    driver.done(verb, Name="good")
                mount_and_unmount(driver, "good")
                assert len(driver.workers()) <= 16 + WARM
            assert not any(future.done() for future in hanging)
        sentences = [future.result() for future in hanging]  # it hung up on them
    assert all(sentence.startswith("cannot mount nas:/x: ") for sentence in sentences)
    assert sum("a mount can be tried again when it answers" in sentence for sentence in sentences) == herd - 16


def metrics(driver: Driver) -> str:
    return request(driver.process.socket_path, "GET", "/metrics").body.decode()


def test_soon_after_boot_a_mount_waits_for_the_server(nas: Nas, export: Path) -> None:
    options = ("--nfs-boot-s", "3600", "--nfs-mount-timeout-s", "20")
    with running_driver("boot", *options) as driver, ThreadPoolExecutor(2) as pool:
        driver.create("early", export)
        driver.create("unknown", f"later.example:{exported(export)}")
        nas.stop()
        try:
            mounting = [pool.submit(driver.mount, name) for name in ("early", "unknown")]
            wait_for_health(driver, "early", "unreachable since ")
            wait_for_health(driver, "unknown", "unreachable since ")
            assert "the name later.example is not known here" in health(driver, "unknown")
            assert not any(future.done() for future in mounting)
        finally:
            nas.start()
            with open("/etc/hosts", "a", encoding="ascii") as hosts:
                hosts.write("127.0.0.1 later.example\n")
        assert all((future.result() / "sub").is_dir() for future in mounting)
        driver.remove_all()
        driver.nothing_is_left()
