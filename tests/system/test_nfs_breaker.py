"""What is known of a server is true: who is dead, who is not, and whose fault it was."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from lab.houses import House
from lab.nas import PREPARE, Nas, deaf_port, started_nas
from lab.nfs_driver import ID, TIMEOUT_S, Driver, assert_gone, leaving_nothing, running_driver, seconds
from lab.processes import wait_until

RUNS_INSIDE = PREPARE

V3 = "vers=3,nolock"
PROMPT_S = TIMEOUT_S  # for so long, or longer, waits who asks a server that does not answer
ROUNDS = 5  # of which one counts: a look at a server has 0.3 s, which a busy machine may need for itself
PUTROOTFH, SETCLIENTID_CONFIRM, CREATE_SESSION = 24, 36, 43
MANY_EXPORTS = 900


@pytest.fixture(scope="module")
def nas() -> Iterator[Nas]:
    with started_nas() as server:
        yield server


@pytest.fixture(scope="module")
def east() -> House:
    return House("east")


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """One for each test: what it knows of servers is what is tested."""
    name = f"b{abs(hash(request.node.name)) % 10**8}"
    with running_driver(name, "--nfs-probe-s", "1") as running, leaving_nothing(running):
        yield running


@pytest.fixture
def patient() -> Iterator[Driver]:
    """One in which a mount has more time than what is asked for it."""
    with running_driver("patient", "--nfs-mount-timeout-s", "20") as running, leaving_nothing(running):
        yield running


def health(driver: Driver, name: str) -> str:
    return str(driver.done("Get", Name=name).json["Volume"]["Status"].get("health", ""))


def daemon(program: str, house: House | None = None) -> int:
    """The process of a service, of this machine or of a house."""
    where = os.readlink(f"/proc/{house.pid if house else 'self'}/ns/net")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name == program and os.readlink(f"/proc/{pid}/ns/net") == where:
                return int(pid)
    raise LookupError(program)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def holding(files: Path) -> Iterator[None]:
    """A process with a mount namespace of its own that has the files, as a container does."""
    script = 'mount --bind "$0" /mnt && echo ready && exec cat'
    with subprocess.Popen(
        ["unshare", "-m", "--propagation", "slave", "sh", "-c", script, str(files)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.communicate(timeout=20)


@contextlib.contextmanager
def swallowing(operation: int) -> Iterator[int]:
    """A port of this machine on which its NFS server is, but for calls that begin with an operation of NFSv4."""

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", 2049))
                threading.Thread(target=carry, args=(near, far, operation), daemon=True).start()
                threading.Thread(target=carry_back, args=(near, far), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def carry(near: socket.socket, far: socket.socket, operation: int) -> None:
    with near, far, contextlib.suppress(OSError, struct.error), near.makefile("rb") as calls:
        while True:
            mark = calls.read(4)
            call = calls.read(struct.unpack(">I", mark)[0] & 0x7FFFFFFF)
            if first_operation(call) != operation:
                far.sendall(mark + call)


def carry_back(near: socket.socket, far: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := far.recv(1 << 16):
            near.sendall(data)


def first_operation(call: bytes) -> int | None:
    program, _, procedure, _, length = struct.unpack(">5I", call[12:32])
    if (program, procedure) != (100003, 1):
        return None
    place = 32 + -(-length // 4) * 4  # behind the credentials
    place += 8 + -(-int.from_bytes(call[place + 4 : place + 8], "big") // 4) * 4
    place += 4 + -(-int.from_bytes(call[place : place + 4], "big") // 4) * 4  # and the tag
    return int.from_bytes(call[place + 8 : place + 12], "big")


@pytest.mark.parametrize(
    ("version", "operation", "named"),
    [
        ("4.2", CREATE_SESSION, "CREATE_SESSION"),
        ("4.0", SETCLIENTID_CONFIRM, "SETCLIENTID_CONFIRM"),
    ],
)
def test_a_server_that_hangs_after_the_first_call_keeps_nobody_from_another(
    driver: Driver, nas: Nas, version: str, operation: int, named: str
) -> None:
    """The kernel greets one server at a time, and cannot be stopped while it waits for an answer."""
    nas.export(f"mute{operation}")
    other = House(f"first{operation}")  # to which the kernel has not spoken yet
    other.export("data")
    with swallowing(operation) as port, ThreadPoolExecutor(1) as pool:
        driver.create("mute", f"127.0.0.1:/mute{operation}", f"vers={version},port={port}")
        hanging = pool.submit(driver.error, 503, "Mount", Name="mute", ID=ID)
        driver.create("other", f"{other.name}:/data", f"vers={version}")
        assert seconds(partial(driver.mount, "other")) < PROMPT_S
        assert not hanging.done()
        assert f"does not answer {named} within {TIMEOUT_S} s" in hanging.result()
        # The probes ask as much: the next one is refused at once, as often as it comes.
        for _ in range(3):
            assert seconds(partial(driver.error, 503, "Mount", Name="mute", ID=ID)) < PROMPT_S
            time.sleep(0.5)


def test_a_mount_that_hangs_is_no_fault_of_a_server_that_answers(driver: Driver, nas: Nas) -> None:
    """Its disk hangs, say, or it refers the kernel to another server."""
    nas.export("disk")
    with swallowing(PUTROOTFH) as port:
        driver.create("a", "127.0.0.1:/disk", f"vers=4.0,port={port}")
        for _ in range(2):
            said = driver.error(503, "Mount", Name="a", ID=ID)
            assert "did not let the mount with NFS 4.0 end" in said
            assert "so it has been since" not in said
        wait_until(lambda: health(driver, "a") == "healthy", "it has answered a probe")
        assert "unreachable" not in driver.process.log()


def test_a_mount_service_that_hangs_is_known_by_probes(driver: Driver, east: House) -> None:
    east.export("mountd")
    driver.create("a", "east:/mountd", V3)
    with stopped(daemon("rpc.mountd", east)):
        said = driver.error(503, "Mount", Name="a", ID=ID)
        assert "its mount service (rpc.mountd) hangs" in said
        time.sleep(1.2)  # a probe has asked meanwhile
        assert seconds(partial(driver.error, 503, "Mount", Name="a", ID=ID)) < PROMPT_S
        assert health(driver, "a").startswith("unreachable since ")
    wait_until(lambda: driver.call("Mount", Name="a", ID=ID).status == 200, "it is mounted again")


def test_a_server_of_version_3_alone_is_asked_for_that(driver: Driver, east: House) -> None:
    east.export("three")
    east.close()
    try:
        east.serve_version_3_only()
        driver.create("a", "east:/three", "nolock")
        with stopped(daemon("rpcbind", east)):
            assert "its rpcbind hangs" in driver.error(503, "Mount", Name="a", ID=ID)
            time.sleep(1.2)
            assert seconds(partial(driver.error, 503, "Mount", Name="a", ID=ID)) < PROMPT_S
        wait_until(lambda: driver.call("Mount", Name="a", ID=ID).status == 200, "it is mounted again")
        driver.done("Unmount", Name="a", ID=ID)
    finally:
        east.close()
        east.open()


def test_a_wrong_option_of_one_volume_is_no_fault_of_its_server(driver: Driver, east: House) -> None:
    east.export("fine")
    driver.create("fine", "east:/fine", V3)
    driver.create("port", "east:/fine", f"{V3},mountport=9")
    driver.create("family", "east:/fine", "proto=tcp6")
    for _ in range(3):
        assert "mountport=9 in mount_options is not where" in driver.error(500, "Mount", Name="port", ID=ID)
        assert "has no IPv6 address, which proto=tcp6" in driver.error(500, "Mount", Name="family", ID=ID)
    driver.mount("fine")
    assert health(driver, "fine") == "healthy"
    assert "unreachable" not in driver.process.log()


def test_a_hanging_rpcbind_of_this_host_is_no_fault_of_a_server(patient: Driver, east: House) -> None:
    east.export("locks")
    patient.create("a", "east:/locks", "vers=3")
    patient.create("b", "east:/locks", V3)
    with stopped(daemon("rpcbind")):
        said = patient.error(500, "Mount", Name="a", ID=ID)
        assert "this host's rpcbind, who would know, does not answer within 2 s" in said, "and not the mount"
        assert seconds(partial(patient.mount, "b")) < PROMPT_S
    assert health(patient, "b") == "healthy"


def test_who_is_not_mounted_any_more_is_not_called_healthy(driver: Driver, east: House) -> None:
    east.export("left")
    driver.create("a", "east:/left")
    driver.mount("a")
    assert health(driver, "a") == "healthy"
    driver.done("Unmount", Name="a", ID=ID)
    wait_until(lambda: health(driver, "a") == "unknown", "nobody looks any more")


def is_mounted_from(driver: Driver, name: str) -> bool:
    """Whether it is at the first attempt; it is given back."""
    answer = driver.call("Mount", Name=name, ID=ID)
    if answer.status == 200:
        driver.done("Unmount", Name=name, ID=ID)
    return answer.status == 200


@pytest.mark.parametrize("pause_s", [0.3, 0.9])
def test_a_server_that_is_back_is_mounted_from_at_once(driver: Driver, east: House, pause_s: float) -> None:
    east.export(f"back-{pause_s}")
    driver.create("a", f"east:/back-{pause_s}")

    def is_back() -> bool:
        east.close()
        driver.error(503, "Mount", Name="a", ID=ID)
        time.sleep(pause_s)
        driver.error(503, "Mount", Name="a", ID=ID)
        east.open()
        time.sleep(0.25)
        return is_mounted_from(driver, "a")

    assert any(is_back() for _ in range(ROUNDS))


def test_a_silent_server_that_is_back_is_mounted_from_at_once(driver: Driver, east: House) -> None:
    east.export("quiet")
    driver.create("a", "east:/quiet")

    def is_back() -> bool:
        with east.absent():
            driver.error(503, "Mount", Name="a", ID=ID)
            for _ in range(4):  # until a probe is under way, which takes seconds
                assert seconds(partial(driver.error, 503, "Mount", Name="a", ID=ID)) < PROMPT_S
                time.sleep(0.4)
        return is_mounted_from(driver, "a")

    assert any(is_back() for _ in range(ROUNDS))


def test_who_has_stale_files_is_told_of_also_if_they_cannot_be_mounted_anew(driver: Driver, east: House) -> None:
    directory = east.export("stale") / "part"
    directory.mkdir()
    driver.create("a", "east:/stale/part", V3)
    driver.create("b", "east:/stale", V3)
    files = driver.mount("a")
    with holding(files):
        directory.rmdir()
        directory.mkdir()
        with pytest.raises(OSError, match="Stale file handle"):
            os.listdir(files)
        with stopped(daemon("rpcbind", east)):
            driver.error(503, "Mount", Name="b", ID=ID)
            assert "so it has been since" in driver.error(503, "Mount", Name="a", ID="b" * 64)
            assert health(driver, "a") == "stale"


def test_a_driver_that_ends_waits_for_no_server(nas: Nas) -> None:
    nas.export("end")
    with (
        ThreadPoolExecutor(20) as pool,
        running_driver("ending", "--nfs-mount-timeout-s", "24") as driver,
        deaf_port() as port,
    ):
        driver.create("good", "nas:/end")
        driver.mount("good")
        for number in range(20):  # of which 16 have a turn
            driver.create(f"bad{number}", "nas:/end", f"port={port}")
        hanging = [pool.submit(driver.call, "Mount", Name=f"bad{number}", ID=ID) for number in range(20)]
        wait_until(lambda: len(driver.workers()) > 16, "as many hang as may")
        before = driver.workers()
        assert driver.process.terminate() == 0
        assert {future.result().json["Err"] for future in hanging} == {
            "cannot mount nas:/end: the driver is ending"
        }
        assert_gone(before)
    with running_driver("ending") as driver, leaving_nothing(driver):
        assert len(driver.mounts()) == 1


def test_more_exports_than_a_message_takes(driver: Driver, nas: Nas) -> None:
    """The last one here: none of the server's other exports is left afterwards."""
    names = [f"/many/{number:04}{'d' * 200}" for number in range(MANY_EXPORTS)]
    for name in names:
        (nas.directory / name.lstrip("/")).mkdir(parents=True)
    lines = [f"{name} *(rw,insecure,no_subtree_check,fsid={9000 + number})" for number, name in enumerate(names)]
    exports = Path("/etc/exports")
    exports.write_text("\n".join(lines) + "\n")
    try:
        subprocess.run(["exportfs", "-r"], check=True)
        driver.create("a", "nas:/nowhere")
        assert f" and {MANY_EXPORTS - 5} more" in driver.error(400, "Mount", Name="a", ID=ID)
        descriptors = driver.descriptors()
        for _ in range(10):
            driver.error(400, "Mount", Name="a", ID=ID)
        assert driver.descriptors() < descriptors + 10, "some for a watch of the network, and none for each call"
    finally:
        exports.unlink()
        subprocess.run(["exportfs", "-ua"], check=True)
