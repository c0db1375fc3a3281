"""What breaks other volume drivers, done to ours with NFS.

The first column is what was done to Docker's local driver, netshare and rclone's plugin; each fails in some rows.

| what was done to the others | here |
|---|---|
| shared volume, first container exits | `test_the_first_user_of_a_shared_volume_ends` |
| same Mount ID twice | `test_the_same_mount_id_twice` |
| unknown Unmount, repeated Unmount | `test_an_unknown_unmount`, `test_a_repeated_unmount` |
| driver killed -9 and restarted | `test_a_driver_is_killed_and_restarted`; see also `test_nfs.py` |
| engine killed -9 | `test_the_engine_is_killed`, `test_the_engine_and_the_driver_are_killed` |
| server silent | `test_a_silent_server_costs_others_nothing` |
| server stopped | `test_a_server_is_stopped` |
| 50 volumes at once | `test_nfs.py`: `test_fifty_volumes_at_once` |
| `../` in a volume name | `test_a_name_that_leads_elsewhere` |
| shell injection | `test_a_shell_never_sees_what_is_given`, `test_a_directory_that_looks_like_a_command` |
| `data` mounted after `data2` | `test_a_name_that_another_one_begins_with` |

And cut links. The servers are real, on hosts of their own (lab/houses.py), in a machine of the tests' own.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.houses import House
from lab.nas import PREPARE
from lab.nfs_driver import ID, TIMEOUT_S, WARM, Driver, leaving_nothing, mount_and_unmount, running_driver, seconds
from lab.processes import wait_until
from lab.unix_http import connected
from storage.definitions import mountpoint
from storage.mountinfo import Mount, read_mounts

RUNS_INSIDE = PREPARE

OTHER_ID = "b" * 64
HANGING = 10
PROMPT_S = TIMEOUT_S  # where a server is waited for it is more
ROUNDS = 3  # of which the best counts, for each call
_USER = """
mount --bind "$0" /mnt
exec 3>> /mnt/journal
echo ready
while read -r line; do
    echo "$line" >&3
    sync /mnt/journal
    while read -r next; do last=$next; done < /mnt/journal
    echo "$last"
done
"""
_ENGINE = """
import sys
from lab.unix_http import request
for body in sys.argv[2:]:
    print(request(sys.argv[1], "POST", "/VolumeDriver.Mount", body.encode()).status, flush=True)
sys.stdin.read()
"""


class Footprint(NamedTuple):
    """What a driver takes up."""

    threads: int
    descriptors: int
    mounts: tuple[Mount, ...]

    def is_within(self, other: Footprint) -> bool:
        workers = 2 * WARM  # of which one more may be kept now, each with two descriptors
        return (
            self.threads <= other.threads
            and self.descriptors <= other.descriptors + workers
            and self.mounts == other.mounts
        )


class User:
    """A process that has a volume as a container has: in a mount namespace of its own, with a file open."""

    def __init__(self, files: Path) -> None:
        command = ["unshare", "--mount", "--propagation", "slave", "sh", "-e", "-c", _USER, str(files)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._answer() == "ready"

    def begin(self, line: str) -> None:
        """Append a line to the file, and read it back."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def is_waiting(self) -> bool:
        """Whether that has not ended yet."""
        assert self._process.stdout is not None
        return not select.select([self._process.stdout], [], [], 0)[0]

    def finish(self, line: str) -> None:
        assert self._answer() == line

    def works(self, line: str) -> None:
        self.begin(line)
        self.finish(line)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 30)[0], "no answer within 30 s"
        return self._process.stdout.readline().decode().strip()


@contextlib.contextmanager
def using(files: Path) -> Iterator[User]:
    user = User(files)
    try:
        yield user
    finally:
        user.end()


@contextlib.contextmanager
def engine(driver: Driver, *names: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has mounted these volumes, as an engine does, and gives none of them back."""
    bodies = [f'{{"Name": "{name}", "ID": "{ID}"}}' for name in names]
    command = [sys.executable, "-c", _ENGINE, driver.process.socket_path, *bodies]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline() for _ in names] == [b"200\n"] * len(names)
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def east() -> House:
    return House("east")


@pytest.fixture(scope="module")
def west() -> House:
    return House("west")


@pytest.fixture(scope="module")
def north() -> House:
    return House("north")


@pytest.fixture(scope="module")
def data(east: House) -> Path:
    return east.export("data")


@pytest.fixture(scope="module")
def shared_driver() -> Iterator[Driver]:
    with running_driver("shared") as driver:
        yield driver


@pytest.fixture
def driver(shared_driver: Driver) -> Iterator[Driver]:
    """A driver without volumes. Nothing is left of those that the test makes."""
    with leaving_nothing(shared_driver) as driver:
        yield driver


# Uses and names


def test_the_first_user_of_a_shared_volume_ends(driver: Driver, data: Path) -> None:
    driver.create("shared", "east:/data")
    with using(driver.mount("shared")) as second:
        with using(driver.mount("shared", OTHER_ID)) as first:
            first.works("of the first")
        driver.done("Unmount", Name="shared", ID=OTHER_ID)
        second.works("of the second")
        assert len(driver.mounts()) == 1
        assert (data / "journal").read_text() == "of the first\nof the second\n"
        driver.done("Unmount", Name="shared", ID=ID)
        assert driver.mounts() == []
        second.works("and it has it still")


def test_the_same_mount_id_twice(driver: Driver, data: Path) -> None:
    driver.create("twice", "east:/data")
    driver.mount("twice")
    driver.mount("twice")  # as `docker cp` does
    driver.done("Unmount", Name="twice", ID=ID)
    assert len(driver.mounts()) == 1
    driver.done("Unmount", Name="twice", ID=ID)
    assert driver.mounts() == []


def test_an_unknown_unmount(driver: Driver, data: Path) -> None:
    driver.create("known", "east:/data")
    driver.mount("known")
    driver.done("Unmount", Name="known", ID=OTHER_ID)
    driver.done("Unmount", Name="unknown", ID=ID)
    assert len(driver.mounts()) == 1


def test_a_repeated_unmount(driver: Driver, data: Path) -> None:
    """Of A: B holds the volume still."""
    driver.create("both", "east:/data")
    driver.mount("both", ID)
    driver.mount("both", OTHER_ID)
    for _ in range(3):
        driver.done("Unmount", Name="both", ID=OTHER_ID)
        assert len(driver.mounts()) == 1
    assert driver.done("Get", Name="both").json["Volume"]["Status"]["references"] == 1


def test_a_name_that_another_one_begins_with(driver: Driver, data: Path) -> None:
    for name in ("data2", "data", "dat"):
        (data / name).mkdir()
        driver.create(name, f"east:/data/{name}")
        (driver.mount(name) / name).touch()
        assert os.listdir(data / name) == [name]
    assert len(driver.mounts()) == 3
    driver.done("Unmount", Name="data", ID=ID)
    assert len(driver.mounts()) == 2


@pytest.mark.parametrize("name", ["../x", "../../../run/x", "..", ".", "/run/x", "a/../../x", "x/", "a/b", ""])
def test_a_name_that_leads_elsewhere(driver: Driver, data: Path, name: str) -> None:
    def seen() -> object:
        return read_mounts(), os.listdir("/run"), os.listdir(driver.root), os.listdir(f"{driver.root}/volumes")

    before = seen()
    assert "is not accepted" in driver.error(400, "Create", Name=name, Opts={"nfs_path": "east:/data"})
    for verb in ("Mount", "Get", "Path", "Remove"):
        assert "there is no volume" in driver.error(404, verb, Name=name, ID=ID)
    driver.done("Unmount", Name=name, ID=ID)
    assert seen() == before


COMMANDS = [
    "$(touch /run/sentinel)",
    "`touch /run/sentinel`",
    ";touch /run/sentinel;",
    "'\n touch /run/sentinel\n",
]
SENTINEL = Path("/run/sentinel")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["name", "server", "options", "value"])
def test_a_shell_never_sees_what_is_given(driver: Driver, data: Path, place: str, command: str) -> None:
    name = f"v{command}" if place == "name" else "v"
    given = {"nfs_path": f"east{command}:/data" if place == "server" else "east:/data"}
    given["mount_options"] = {"options": command, "value": f"vers={command}"}.get(place, "")
    assert "not accepted" in driver.error(400, "Create", Name=name, Opts=given)
    driver.error(404, "Mount", Name=name, ID=ID)
    assert not SENTINEL.exists()


@pytest.mark.parametrize("command", COMMANDS[:3])
def test_a_directory_that_looks_like_a_command(driver: Driver, data: Path, command: str) -> None:
    (driver.mounted(f"east:/data/{command}", create="true") / "file").touch()
    assert (data / command / "file").exists()
    assert not SENTINEL.exists()


# Kills


def test_a_driver_is_killed_and_restarted(data: Path) -> None:
    """Options are kept, the mount is, and the next ones are right."""
    (data / "restarted").mkdir()
    with running_driver("restarted") as first:
        first.create("data", "east:/data/restarted", "vers=4.1,wsize=8192,noatime", read_only="true")
        first.create("later", "east:/data/restarted", "vers=4.1,wsize=8192")
        first.mount("data")
        known, mounted = options(first), first.mounts()
        first.process.kill()
    with running_driver("restarted") as second:
        assert options(second) == known
        assert known[0]["read_only"] == "true"
        assert second.mounts() == mounted
        files = second.mount("data", OTHER_ID)
        assert second.mounts() == mounted
        with pytest.raises(OSError, match="Read-only"):
            (files / "not-there").touch()
        (second.mount("later") / "there").touch()
        assert os.listdir(data / "restarted") == ["there"]
        for mount_id in (ID, OTHER_ID):
            second.done("Unmount", Name="data", ID=mount_id)
        assert len(second.mounts()) == 1
        files = second.mount("data")
        line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(files) in line)
        assert {"ro", "vers=4.1", "wsize=8192", "noatime"} <= {*line.split()[3].split(",")}
        second.remove_all()
        second.nothing_is_left()


def options(driver: Driver) -> list[dict[str, str]]:
    """What is in force for each volume."""
    keys = ("type", "nfs_path", "mount_options", "read_only")
    return [{key: volume["Status"][key] for key in keys} for volume in driver.done("List").json["Volumes"]]


def test_the_engine_is_killed(driver: Driver, data: Path) -> None:
    """Its containers go on. What nobody has any more can be removed, or is mounted for the next engine."""
    create_beneath(driver, data, "kept", "lost", "again")
    with engine(driver, "kept", "lost", "again") as killed:
        with using(Path(mountpoint(driver.root, "kept"))) as user:
            killed.kill()
            killed.wait()
            driver.done("Remove", Name="lost")
            assert "volume is in use" in driver.error(409, "Remove", Name="kept")
            user.works("without an engine")
        driver.done("Remove", Name="kept")
    with engine(driver, "again"):
        assert len(driver.mounts()) == 1
        (Path(mountpoint(driver.root, "again")) / "file").touch()
    driver.done("Remove", Name="again")
    assert driver.mounts() == []


def test_the_engine_and_the_driver_are_killed(data: Path) -> None:
    """The next driver keeps what a container has, until that ends, and nothing else."""
    with running_driver("recovering") as first:
        create_beneath(first, data, "held", "loose")
        with engine(first, "held", "loose") as killed:
            (held,) = (mount for mount in first.mounts() if mount.source == "east:/data/held")
            user = User(Path(mountpoint(first.root, "held")))
            killed.kill()
        first.process.kill()
    try:
        with running_driver("recovering", "--reconcile-s", "1", "--reference-grace-s", "1") as second:
            wait_until(lambda: second.mounts() == [held], "the volume that nobody has is unmounted")
            user.works("without engine and driver")
            user.end()
            wait_until(lambda: second.mounts() == [], "the other one is unmounted, too")
            second.remove_all()
            second.nothing_is_left()
    finally:
        user.end()


def create_beneath(driver: Driver, data: Path, *names: str) -> None:
    """A volume for each name, of a directory of its own."""
    for name in names:
        (data / name).mkdir()
        driver.create(name, f"east:/data/{name}")


# Servers and links


def test_a_server_is_stopped(driver: Driver, data: Path, west: House) -> None:
    driver.mounted("east:/data")
    path = west.export("stopped")
    driver.create("stopped", "west:/stopped")
    driver.create("not-mounted", "west:/stopped")
    driver.mount("stopped")
    west.close()
    try:
        others_are_unaffected(driver)
        for verb in ("Unmount", "Remove"):  # what `docker rm -f` and `docker volume rm -f` come to
            assert seconds(partial(driver.done, verb, Name="stopped", ID=ID)) < PROMPT_S
        assert "refuses connections to port 2049" in refused_mount(driver, "not-mounted")
        driver.wait_for_idle_workers()
    finally:
        west.open()
    mounted_again(driver, "not-mounted", path)


@pytest.mark.parametrize("inside", [True, False], ids=["at the server", "at this host"])
def test_a_link_is_cut(driver: Driver, data: Path, west: House, inside: bool) -> None:
    names = [f"{name}-{inside}" for name in ("held", "idle", "new")]
    paths = [west.export(name) for name in names]
    for name in names:
        driver.create(name, f"west:/{name}")
    held, idle, new = names
    files = driver.mount(held)
    driver.mount(idle)
    driver.mounted("east:/data")
    with using(files) as user:
        user.works("before")
        west.cut(inside=inside)
        try:
            user.begin("while it was cut")
            fact = "the link west towards west (" if inside else "there is no route to west ("
            assert fact in refused_mount(driver, new)
            assert user.is_waiting()
            others_are_unaffected(driver)
            for verb in ("Unmount", "Remove"):
                assert seconds(partial(driver.done, verb, Name=idle, ID=ID)) < PROMPT_S
            driver.mount(held, OTHER_ID)
            driver.done("Unmount", Name=held, ID=OTHER_ID)
            assert user.is_waiting()
        finally:
            west.mend()
        user.finish("while it was cut")
        user.works("afterwards")
        assert (paths[0] / "journal").read_text() == "before\nwhile it was cut\nafterwards\n"
    mounted_again(driver, new, paths[2])


def refused_mount(driver: Driver, name: str) -> str:
    """The sentence with which, in time, a volume of a dead server is not mounted."""
    started = time.monotonic()
    sentence = driver.error(503, "Mount", Name=name, ID=ID)
    assert time.monotonic() - started < TIMEOUT_S + PROMPT_S
    assert sentence.startswith("cannot mount west:/")
    return sentence


def others_are_unaffected(driver: Driver) -> None:
    """Nothing that has to do with another server, or with none, waits for a dead one."""
    driver.create("other", "east:/data")
    assert mount_and_unmount(driver, "other") < PROMPT_S
    for verb in ("Get", "Path", "List", "Capabilities", "Remove"):
        assert seconds(partial(driver.done, verb, Name="other")) < PROMPT_S


def mounted_again(driver: Driver, name: str, path: Path) -> None:
    """The server is back, and the driver finds out."""
    wait_until(lambda: driver.call("Mount", Name=name, ID=ID).status == 200, f"{name} can be mounted again")
    (Path(mountpoint(driver.root, name)) / "there").touch()
    assert (path / "there").exists()


@pytest.fixture
def patient() -> Iterator[Driver]:
    """Another one, in which a mount may take long enough to look around meanwhile."""
    with running_driver("patient", "--nfs-mount-timeout-s", "24") as patient, leaving_nothing(patient):
        yield patient


def test_a_silent_server_costs_others_nothing(driver: Driver, patient: Driver, data: Path, west: House) -> None:
    """Ten of its volumes are mounted at once: everything else is as fast as in a driver that has nothing to do."""
    for each in (driver, patient):
        each.mounted("east:/data")  # so that the server is in use, and not met anew each time
        each.create("good", "east:/data")
    with ThreadPoolExecutor(HANGING) as pool:
        with west.silent(is_deaf=True):
            mounts = hanging(patient, pool, "west:/silent")
            slow = {*CALLS}
            for _ in range(ROUNDS):
                for call in sorted(slow):
                    is_slow = is_slower(call, patient, driver)
                    if not is_slow and not any(mount.done() for mount in mounts):  # or this does not count
                        slow.discard(call)
            assert not slow
        assert all(mount.result().startswith("cannot mount west:/silent: ") for mount in mounts)


def is_slower(call: str, driver: Driver, quiet: Driver) -> bool:
    """Whether it takes twice as long as in the quiet driver, by what 99 of 100 calls took at most."""
    floor_s, took = CALLS[call]
    # They take turns: what else the machine does slows both of them.
    taken = [(took(driver), took(quiet)) for _ in range(100)]
    driver_s, quiet_s = sorted(busy for busy, _ in taken)[98], sorted(calm for _, calm in taken)[98]
    print(f"{call}: {driver_s * 1000:.1f} ms, quiet {quiet_s * 1000:.1f} ms")
    return driver_s >= max(2 * quiet_s, floor_s)


def asked(verb: str, driver: Driver) -> float:
    return seconds(partial(driver.done, verb, Name="good"))


# How long it took, and what is never too long for this one processor, whose clock ticks every 10 ms.
CALLS: dict[str, tuple[float, Callable[[Driver], float]]] = {
    **{verb: (0.005, partial(asked, verb)) for verb in ("Get", "List", "Capabilities")},
    "Mount": (0.05, lambda driver: mount_and_unmount(driver, "good")),
}


@pytest.mark.parametrize("silence", ["deaf", "mute"])
def test_what_hung_fails_in_time_and_leaves_nothing(driver: Driver, data: Path, west: House, silence: str) -> None:
    driver.mounted("east:/data")
    path = west.export(silence)
    have_threads(driver)
    before = footprint(driver)
    with west.silent(is_deaf=silence == "deaf"):
        with ThreadPoolExecutor(HANGING) as pool:
            mounts = hanging(driver, pool, f"west:/{silence}")
            took_s = seconds(lambda: [mount.result() for mount in mounts])
        assert took_s < TIMEOUT_S + PROMPT_S
        assert all(mount.result().startswith(f"cannot mount west:/{silence}: ") for mount in mounts)
        assert any(f"answers no request within {TIMEOUT_S} s" in mount.result() for mount in mounts)
        driver.wait_for_idle_workers()
        wait_until(lambda: footprint(driver).is_within(before), "as much is in use as before")
        for number in range(1, HANGING):
            assert seconds(partial(driver.done, "Remove", Name=f"hanging-{number}")) < PROMPT_S
    mounted_again(driver, "hanging-0", path)


def test_first_mount_of_another_server_does_not_wait_for_a_mute_one(
    patient: Driver, west: House, north: House
) -> None:
    """The kernel greets one server at a time, and cannot be stopped while it waits for an answer."""
    north.export("data")
    path = west.export("greets")
    with west.silent(is_deaf=False), ThreadPoolExecutor(HANGING) as pool:
        mounts = hanging(patient, pool, "west:/greets")
        patient.mounted("north:/data")
        assert not any(mount.done() for mount in mounts)
        for mount in mounts:
            assert mount.result().startswith("cannot mount west:/greets: ")
    mounted_again(patient, "hanging-0", path)


def have_threads(driver: Driver) -> None:
    """Have it work on as many requests at once as there will be: it keeps a thread for each."""
    head = b"POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connected(driver.process.socket_path)) for _ in range(2 * HANGING)]
        for connection in waiting:
            connection.sendall(head)
        wait_until(lambda: footprint(driver).threads > len(waiting), "a thread for each request")
        for connection in waiting:
            connection.sendall(b"{}")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def footprint(driver: Driver) -> Footprint:
    threads = len(os.listdir(f"/proc/{driver.process.pid}/task"))
    return Footprint(threads, driver.descriptors(), tuple(read_mounts()))


def hanging(driver: Driver, pool: ThreadPoolExecutor, nfs_path: str) -> list[Future[str]]:
    """Ten volumes of a silent server, which are being mounted."""
    names = [f"hanging-{number}" for number in range(HANGING)]
    for name in names:
        driver.create(name, nfs_path)
    idle = driver.descriptors()
    mounts = [pool.submit(driver.error, 503, "Mount", Name=name, ID=ID) for name in names]
    wait_until(lambda: driver.descriptors() >= idle + HANGING, "ten Mounts are under way")
    return mounts
