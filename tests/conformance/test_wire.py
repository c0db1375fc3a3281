"""The driver as the engine meets it: the real process, its real socket, real mounts.

What happened is read from the kernel's mountinfo and from the disk, not from the driver's answers. Each test
names the habit of the Docker engine that it stands for (ENGINE.md in the design notes).
"""

from __future__ import annotations

import array
import contextlib
import datetime
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.namespaces import Host
from lab.processes import processor_s, wait_until
from lab.unix_http import connected, exchange, request
from lab.volume_driver import VolumeDriver, command, driver_on
from storage.mountinfo import read_mounts

pytestmark = pytest.mark.root

A, B = "a" * 64, "b" * 64
NEEDING_A_BODY = ["Create", "Remove", "Mount", "Path", "Unmount", "Get"]
ALL = [*NEEDING_A_BODY, "List", "Capabilities"]
HOSTILE_NAMES = [
    *("../x", "/etc", "a/b", "a b", ".hidden", "-x", "_x", "..", ".", "", "a\0b", "a\nb", "a\x1b[31m", "ä"),
    *("a" * 256, "\u202etxt", "$(reboot)", ";reboot", "a\\b", "x" * (1 << 20), "../" * (1 << 18)),
]


@contextlib.contextmanager
def new_host(directory: Path) -> Iterator[Host]:
    """A host with some directories, of which nothing may be lost or left."""
    host = Host(directory)
    for name in ("srv/data", "srv/data2", "srv/empty", "etc", "secret"):
        (host.files / name).mkdir(parents=True)
    (host.files / "srv/data/file").write_text("content")
    (host.files / "secret/file").write_text("secret")
    yield host
    assert (host.files / "srv/data/file").read_text() == "content", "a file of the workspace is gone"
    host.close()
    # Only what could be ours: somebody else may mount on this machine meanwhile.
    ours = (str(directory), "/srv/data", "/root/volumes/")
    assert [
        mount for mount in read_mounts() if any(part in f"{mount.mountpoint} {mount.root}" for part in ours)
    ] == []


@contextlib.contextmanager
def new_driver(host: Host) -> Iterator[VolumeDriver]:
    with driver_on(host) as driver:
        yield driver
        assert "internal error" not in driver.process.log()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with new_host(tmp_path / "host") as host:
        yield host


@pytest.fixture
def driver(host: Host) -> Iterator[VolumeDriver]:
    with new_driver(host) as driver:
        yield driver


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VolumeDriver]:
    directory = tmp_path_factory.mktemp("settled")
    with new_host(directory / "host") as host, new_driver(host) as driver:
        driver.create("data", "/srv/data")
        driver.mount("data", A)
        yield driver


@pytest.fixture
def settled(shared: VolumeDriver) -> Iterator[VolumeDriver]:
    """A driver with the volume `data`, mounted once. The test must leave everything as it was."""
    before = shared.state()
    yield shared
    assert shared.state() == before


# The protocol


def test_socket_is_open_soon_after_start_and_only_for_root(driver: VolumeDriver) -> None:
    """A plugin that is slow to listen is marked disabled, and every container of its volumes fails at boot."""
    assert processor_s(driver.process.pid) < 1.5
    assert stat.S_IMODE(os.stat(driver.process.socket_path).st_mode) == 0o600


def test_activate_and_capabilities(driver: VolumeDriver) -> None:
    for body in (None, b"", b"{}"):
        activated = request(driver.process.socket_path, "POST", "/Plugin.Activate", body)
        assert (activated.status, activated.json) == (200, {"Implements": ["VolumeDriver"], "Err": ""})
        asked = request(driver.process.socket_path, "POST", "/VolumeDriver.Capabilities", body)
        assert asked.json == {"Capabilities": {"Scope": "local"}, "Err": ""}
        assert asked.headers["Content-Type"] == "application/vnd.docker.plugins.v1.2+json"
        listed = request(driver.process.socket_path, "POST", "/VolumeDriver.List", body)
        assert listed.json == {"Volumes": [], "Err": ""}


@pytest.mark.parametrize(
    "headers",
    [
        b"HTTP/1.1\r\nHost: %2Frun%2Fdocker%2Fplugins%2Fx.sock\r\nConnection: close\r\n",
        b"HTTP/1.1\r\nHost: \r\nConnection: close\r\n",
        b"HTTP/1.1\r\nHost: a b, [::]:x/?#\r\nConnection: close\r\n",
        b"HTTP/1.1\r\nHost: localhost:99999\r\nConnection: close\r\n",
        b"HTTP/1.0\r\n",
        b"HTTP/1.0\r\nContent-Type: text/plain\r\n",
        b"HTTP/1.0\r\nContent-Type: multipart/form-data; boundary=x\r\n",
        b"HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\n",
    ],
)
def test_odd_headers_do_not_matter(settled: VolumeDriver, headers: bytes) -> None:
    body = b'{"Name": "data"}'
    length = f"Content-Length: {len(body)}\r\n\r\n".encode()
    answer = exchange(settled.process.socket_path, b"POST /VolumeDriver.Get " + headers + length + body)
    head, _, received = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0]
    assert json.loads(received)["Volume"]["Name"] == "data"


def test_chunked_body_is_read(settled: VolumeDriver) -> None:
    body = b'{"Name": "nobody"}'
    sent = b"POST /VolumeDriver.Get HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent += f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    assert b"there is no volume 'nobody'" in exchange(settled.process.socket_path, sent)


def test_unknown_calls_and_methods_get_a_sentence(settled: VolumeDriver) -> None:
    path = settled.process.socket_path
    for unknown in ("/", "/VolumeDriver.Gett", "/VolumeDriver.Get/", "/%00"):
        answer = request(path, "POST", unknown, b"{}")
        assert answer.status == 404
        assert "volume driver" in answer.json["Err"]
    for method in ("GET", "PUT", "OPTIONS", "DELETE"):
        answer = request(path, method, "/VolumeDriver.Get")
        assert answer.status == 405
        assert "POST" in answer.json["Err"]


@pytest.mark.parametrize("verb", NEEDING_A_BODY)
def test_retry_with_an_empty_body_is_refused(settled: VolumeDriver, verb: str) -> None:
    """The engine repeats a request after a transport error with the body already spent."""
    answer = request(settled.process.socket_path, "POST", f"/VolumeDriver.{verb}", b"")
    assert answer.status == 400
    assert "no body" in answer.json["Err"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"[]", b"null", b'"x"', b"7", b"\xff\xfe", b"{}", b" ", b"[" * 100_000, b'{"a":' * 100_000),
        *(b'{"Name": 1}', b'{"Name": null}', b'{"Name": ["data"]}', b'{"Name": "data", "ID": 5, "Opts": []}'),
        b'{"Name": "\\ud800"',
    ],
)
def test_malformed_bodies_are_refused_and_change_nothing(settled: VolumeDriver, body: bytes) -> None:
    for verb in ("Create", "Mount", "Unmount"):
        answer = request(settled.process.socket_path, "POST", f"/VolumeDriver.{verb}", body)
        assert answer.status == 400
        assert any(word in answer.json["Err"] for word in ("JSON", "Name", "ID", "Opts"))


def test_wrong_types_are_named(settled: VolumeDriver) -> None:
    assert settled.error(400, "Create", Name=["x"]) == "Name must be a string, not an array"
    assert settled.error(400, "Mount", Name="x", ID=7) == "ID must be a string, not a number"
    assert "ID is missing" in settled.error(400, "Unmount", Name="x")
    sentence = settled.error(400, "Create", Name="x", Opts={"type": 1, "mode": None})
    assert "'type' is a number" in sentence
    assert "'mode' is null" in sentence
    assert "Opts must be an object" in settled.error(400, "Create", Name="x", Opts="type=host")
    assert "type is missing" in settled.error(400, "Create", Name="x", Opts=None)


# Names and options


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name[:12]))
def test_hostile_names_are_refused_everywhere(settled: VolumeDriver, name: str) -> None:
    """The engine does not validate names."""
    sentence = settled.error(400, "Create", Name=name, Opts={"host_path": "/srv/data"})
    assert "1 to 255 characters" in sentence
    assert len(sentence) < 400
    assert sentence.isprintable()
    for verb in ("Get", "Path", "Remove"):
        assert len(settled.error(404, verb, Name=name)) < 400
    settled.error(404, "Mount", Name=name, ID=A)
    settled.done("Unmount", Name=name, ID=A)


def test_every_wrong_option_is_told_at_once(settled: VolumeDriver) -> None:
    wrong = {"type": "host", "host_path": "srv", "mode": "9", "read_only": "yes", "color": "red"}
    sentence = settled.error(400, "Create", Name="other", Opts=wrong)
    for key in ("host_path", "mode", "read_only", "color"):
        assert f"option {key}=" in sentence or f"option {key!r}" in sentence


def test_same_create_again_succeeds_and_another_conflicts(driver: VolumeDriver) -> None:
    driver.create("data", "/srv/data")
    created = driver.done("Get", Name="data").json["Volume"]["CreatedAt"]
    driver.create("data", "/srv/data/", type="host", read_only="false")
    assert driver.done("Get", Name="data").json["Volume"]["CreatedAt"] == created
    sentence = driver.error(409, "Create", Name="data", Opts={"host_path": "/srv/data2", "read_only": "true"})
    assert "differs in host_path, read_only" in sentence


def test_get_shows_effective_options_and_a_date_with_zone(driver: VolumeDriver) -> None:
    driver.create("data", "/srv/data/", create="true", mode="750", uid="7")
    volume = driver.done("Get", Name="data").json["Volume"]
    assert volume["Mountpoint"] == ""
    assert datetime.datetime.fromisoformat(volume["CreatedAt"]).tzinfo is not None
    assert volume["Status"] == {
        "type": "host",
        "host_path": "/srv/data",
        "read_only": "false",
        "create": "true",
        "mode": "0750",
        "uid": "7",
        "gid": "0",
        "references": 0,
    }
    driver.mount("data", A)
    for answer in (driver.done("Get", Name="data").json["Volume"], driver.done("Path", Name="data").json):
        assert answer["Mountpoint"] == driver.mountpoint("data")
    assert driver.done("List").json["Volumes"][0]["Mountpoint"] == driver.mountpoint("data")


def test_get_fails_for_unknown_volumes_only(driver: VolumeDriver) -> None:
    """A Get that fails in any way makes the engine forget the volume: the source's absence must not."""
    driver.create("data2", "/srv/data2")
    (driver.host.files / "srv/data2").rmdir()
    driver.done("Get", Name="data2")
    assert "does not exist" in driver.error(400, "Mount", Name="data2", ID=A)
    driver.done("Get", Name="data2")
    driver.error(404, "Get", Name="data")
    assert driver.mounts() == []
    assert driver.references("data2") == 0


# Mounting


def test_mount_shows_the_directory_and_unmount_takes_it_away(driver: VolumeDriver) -> None:
    driver.create("data", "/srv/data")
    files = driver.mount("data", A)
    assert (files / "file").read_text() == "content"
    (files / "new").write_text("written")
    assert (driver.host.files / "srv/data/new").read_text() == "written"
    (mount,) = driver.mounts()
    assert (mount.root, mount.is_read_only) == ("/srv/data", False)
    driver.done("Unmount", Name="data", ID=A)
    assert driver.mounts() == []
    assert os.listdir(driver.host.files / "root/volumes") == []
    driver.done("Remove", Name="data")
    assert (driver.host.files / "srv/data/new").read_text() == "written"


def test_mount_is_not_tied_to_the_hosts_mounts(driver: VolumeDriver) -> None:
    """Were it a peer of its source, unmounting below a volume would unmount on the host."""
    driver.create("data", "/srv/data")
    files = driver.mount("data", A)
    inner = f"{driver.host.directory}/srv/data/inner"
    (files / "inner").mkdir()
    driver.host.run("mount", "-t", "tmpfs", "later", inner)
    assert [mount.source for mount in driver.host.mounts()].count("later") == 1
    driver.host.run("umount", inner)
    driver.host.run("mount", "-t", "tmpfs", "later", f"{driver.mountpoint('data')}/inner")
    assert not any(mount.mountpoint == inner for mount in driver.host.mounts())
    driver.done("Unmount", Name="data", ID=A)
    assert driver.host.mounts() == []


def test_same_id_twice_needs_two_unmounts(driver: VolumeDriver) -> None:
    """`docker cp` on a running container mounts and unmounts with the container's own ID."""
    driver.create("data", "/srv/data")
    driver.mount("data", A)
    driver.mount("data", A)
    assert len(driver.mounts()) == 1
    driver.done("Unmount", Name="data", ID=A)
    assert len(driver.mounts()) == 1
    driver.done("Unmount", Name="data", ID=A)
    assert driver.mounts() == []


def test_repeated_unmount_of_one_id_does_not_unmount_another(driver: VolumeDriver) -> None:
    driver.create("data", "/srv/data")
    driver.mount("data", A)
    driver.mount("data", B)
    for _ in range(3):
        driver.done("Unmount", Name="data", ID=A)
        driver.done("Unmount", Name="data", ID="c" * 64)
    assert len(driver.mounts()) == 1
    driver.done("Unmount", Name="data", ID=B)
    assert driver.mounts() == []


def test_unmount_of_what_is_unknown_succeeds(driver: VolumeDriver) -> None:
    driver.done("Unmount", Name="nobody", ID=A)
    driver.create("data", "/srv/data")
    driver.done("Unmount", Name="data", ID=A)
    driver.done("Unmount", Name="data", ID="")


def test_mount_wants_an_id(driver: VolumeDriver) -> None:
    driver.create("data", "/srv/data")
    for mount_id in ("", " ", "a\nb", "x" * 256):
        assert "Mount ID" in driver.error(400, "Mount", Name="data", ID=mount_id)
    assert driver.mounts() == []


def test_parallel_mounts_of_one_volume_make_one_mount(driver: VolumeDriver) -> None:
    driver.create("data", "/srv/data")
    ids = [f"{number:064x}" for number in range(24)]
    with ThreadPoolExecutor(len(ids)) as pool:
        answers = list(pool.map(lambda mount_id: driver.call("Mount", Name="data", ID=mount_id), ids))
        assert {answer.json["Mountpoint"] for answer in answers} == {driver.mountpoint("data")}
        assert len(driver.mounts()) == 1
        assert driver.references("data") == len(ids)
        list(pool.map(lambda mount_id: driver.done("Unmount", Name="data", ID=mount_id), ids))
    assert driver.mounts() == []


def test_many_volumes_at_once(driver: VolumeDriver) -> None:
    def live(number: int) -> None:
        name = f"v{number}"
        driver.create(name, f"/srv/many/{number}", create="true")
        (driver.mount(name, A) / "own").write_text(name)
        driver.done("Unmount", Name=name, ID=A)
        driver.done("Remove", Name=name)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(live, range(50)))
    assert driver.done("List").json["Volumes"] == []
    assert driver.mounts() == []
    for number in range(50):
        assert (driver.host.files / f"srv/many/{number}/own").read_text() == f"v{number}"


def test_a_name_that_begins_another_is_a_volume_of_its_own(driver: VolumeDriver) -> None:
    driver.create("data2", "/srv/data2")
    driver.mount("data2", A)
    driver.create("data", "/srv/data")
    assert (driver.mount("data", A) / "file").read_text() == "content"
    driver.done("Unmount", Name="data2", ID=A)
    assert [mount.root for mount in driver.mounts()] == ["/srv/data"]


def test_read_only_is_kept_by_the_kernel(driver: VolumeDriver) -> None:
    driver.create("data", "/srv/data", read_only="true")
    files = driver.mount("data", A)
    with pytest.raises(OSError, match="Read-only file system"):
        (files / "new").write_text("no")
    assert driver.mounts()[0].is_read_only


def test_sidecar_volume_is_the_sidecars_directory_read_only(driver: VolumeDriver) -> None:
    driver.done("Create", Name="broker", Opts={"type": "sidecar"})
    files = driver.mount("broker", A)
    sidecar = driver.host.files / "root/sidecar"
    assert stat.S_IMODE(sidecar.stat().st_mode) == 0o755
    (sidecar / "broker.sock").write_text("")
    assert (files / "broker.sock").exists()
    with pytest.raises(OSError, match="Read-only file system"):
        (files / "broker.sock").unlink()


def test_create_makes_the_directory_again_at_mount(driver: VolumeDriver) -> None:
    driver.create("new", "/srv/a/b/new", create="true", mode="2770", uid="1000", gid="1001")
    made = driver.host.files / "srv/a/b/new"
    for _ in range(2):
        found = made.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o2770, 1000, 1001)
        assert stat.S_IMODE(made.parent.stat().st_mode) == 0o755
        made.rmdir()
        made.parent.rmdir()
        driver.mount("new", A)
    driver.done("Unmount", Name="new", ID=A)
    driver.done("Unmount", Name="new", ID=A)


# Where a volume may be


@pytest.mark.parametrize(
    ("path", "said"),
    [
        *(("/", "whole host"), ("/etc", "system"), ("/etc/", "system"), ("/etc/ssl/x", "system")),
        *(("/lib64", "system"), ("/usr/share", "system"), ("/var/lib/docker/volumes", "engine")),
        *(("/var/lib", "contains /var/lib/docker"), ("/var", "contains"), ("/root/volumes", "brokervol")),
    ],
)
def test_refused_host_paths(settled: VolumeDriver, path: str, said: str) -> None:
    options = {"host_path": path, "create": "true"}
    assert said in settled.error(403, "Create", Name="x", Opts=options)
    assert not (settled.host.files / "var").exists()
    assert not (settled.host.files / "etc/ssl").exists()


def test_allowed_host_paths_are_whole_components(host: Host) -> None:
    with driver_on(host, "--allowed-host-paths", "/srv/data:/mnt,") as driver:
        driver.create("data", "/srv/data")
        sentence = driver.error(403, "Create", Name="data2", Opts={"host_path": "/srv/data2"})
        assert "ALLOWED_HOST_PATHS" in sentence
        driver.error(403, "Create", Name="srv", Opts={"host_path": "/srv"})


def test_host_path_that_is_not_a_directory_is_explained(driver: VolumeDriver) -> None:
    (driver.host.files / "srv/link").symlink_to("/secret")
    (driver.host.files / "srv/plain").write_text("")
    for path, status, said in [
        ("/srv/none", 400, "host_path /srv/none does not exist on this host; make it ("),
        ("/srv/plain", 400, "host_path /srv/plain is not a directory: /srv/plain is a file"),
        ("/srv/plain/x", 400, "host_path /srv/plain/x is not a directory: /srv/plain is a file"),
        ("/srv/link", 403, "passes through the symbolic link /srv/link -> /secret; give the real path"),
        ("/srv/link/sub", 403, "passes through the symbolic link /srv/link -> /secret; give the real path"),
    ]:
        assert said in driver.error(status, "Create", Name="x", Opts={"host_path": path})
    for path in ("/srv/link/sub", "/srv/link", "/srv/plain/x"):
        answer = driver.call("Create", Name="x", Opts={"host_path": path, "create": "true"})
        assert answer.status in {400, 403}
    assert os.listdir(driver.host.files / "secret") == ["file"]


def test_link_put_in_place_after_create_is_refused_at_mount(driver: VolumeDriver) -> None:
    driver.create("data2", "/srv/data2")
    (driver.host.files / "srv/data2").rmdir()
    (driver.host.files / "srv/data2").symlink_to("/secret")
    assert "symbolic link" in driver.error(403, "Mount", Name="data2", ID=A)
    assert driver.mounts() == []
    assert driver.references("data2") == 0


def test_link_swapped_in_while_mounting_never_leads_elsewhere(driver: VolumeDriver) -> None:
    srv = driver.host.files / "srv"
    (srv / "link").symlink_to("/secret")
    driver.create("data2", "/srv/data2")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for old, new in (("data2", "aside"), ("link", "data2"), ("data2", "link"), ("aside", "data2")):
                os.rename(srv / old, srv / new)

    swapping = threading.Thread(target=swap)
    swapping.start()
    mounted = 0
    try:
        for _ in range(300):
            if driver.call("Mount", Name="data2", ID=A).status == 200:
                mounted += 1
                (mount,) = driver.mounts()
                assert mount.root in {"/srv/data2", "/srv/aside"}, "followed the link"
                driver.done("Unmount", Name="data2", ID=A)
    finally:
        stop.set()
        swapping.join()
    assert 0 < mounted < 300, "the race did not happen"


# Crashes


def test_killed_driver_comes_back_with_mounts_definitions_and_counts(host: Host) -> None:
    with driver_on(host) as driver:
        driver.create("data", "/srv/data", read_only="true")
        driver.create("data2", "/srv/data2")
        for mount_id in (A, A, B):
            driver.mount("data", mount_id)
        before = driver.done("List").json
        driver.process.kill()
    assert len(host.mounts()) == 1
    with driver_on(host) as driver:
        assert driver.done("List").json == before
        assert len(driver.mounts()) == 1
        for mount_id, remaining in ((A, 1), (B, 1), (A, 0)):
            driver.done("Unmount", Name="data", ID=mount_id)
            assert len(driver.mounts()) == remaining
        driver.create("data", "/srv/data", read_only="true")


def test_terminated_driver_leaves_mounts_alone(host: Host) -> None:
    with driver_on(host) as driver:
        driver.create("data", "/srv/data")
        driver.mount("data", A)
        assert driver.process.terminate() == 0
    assert len(host.mounts()) == 1
    with driver_on(host) as driver:
        assert driver.references("data") == 1


def test_forced_disable_drops_references_but_not_volumes(host: Host) -> None:
    """`disable -f` detaches everything below the propagated mount; the old IDs' Unmounts come later."""
    with driver_on(host) as driver:
        driver.create("data", "/srv/data")
        driver.mount("data", A)
        mountpoint = driver.mountpoint("data")
    host.run("umount", "-l", mountpoint)
    with driver_on(host) as driver:
        assert driver.references("data") == 0
        driver.done("Unmount", Name="data", ID=A)
        assert (driver.mount("data", B) / "file").exists()
        driver.done("Unmount", Name="data", ID=A)
        assert len(driver.mounts()) == 1


def test_mounts_that_nobody_asked_for_are_cleared_without_touching_files(host: Host) -> None:
    with driver_on(host) as driver:
        driver.create("data", "/srv/data")
        known, unknown = driver.mountpoint("data"), driver.mountpoint("no such volume")
    for mountpoint in (known, unknown):
        host.run("mkdir", mountpoint)
        host.run("mount", "--bind", f"{host.directory}/srv/data", mountpoint)
    (host.files / "root/volumes" / ("0" * 40)).mkdir()
    with driver_on(host) as driver:
        driver.done("List")  # the socket is open before recovery, an answer comes after
        assert driver.mounts() == []
        assert os.listdir(host.files / "root/volumes") == []
        assert "nobody holds a reference" in driver.process.log()


def test_mount_that_the_kernel_lost_is_mounted_again(driver: VolumeDriver) -> None:
    driver.create("data", "/srv/data")
    driver.mount("data", A)
    driver.host.run("umount", driver.mountpoint("data"))
    wait_until(lambda: driver.mounts() == [], "the unmount to reach the driver")
    assert (driver.mount("data", B) / "file").exists()
    assert len(driver.mounts()) == 1


def test_client_gone_during_mount_is_rolled_back(driver: VolumeDriver) -> None:
    """The engine drops a Mount that it gave up waiting for, and never unmounts it."""
    driver.create("data", "/srv/data")
    driver.mount("data", A)
    driver.done("Unmount", Name="data", ID=A)
    body = json.dumps({"Name": "data", "ID": B}).encode()
    head = f"POST /VolumeDriver.Mount HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with _held_up(driver), connected(driver.process.socket_path) as client:
        client.sendall(head + body)
        client.shutdown(socket.SHUT_WR)
    driver.process.wait_for_log("client gone during mount")
    wait_until(lambda: driver.mounts() == [], "the roll-back")
    assert driver.references("data") == 0


@contextlib.contextmanager
def _held_up(driver: VolumeDriver) -> Iterator[None]:
    """While open, no reference can be recorded: every Mount waits (SQLite: 5 s at most)."""
    script = """import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()"""
    database = f"{driver.root}/.state/mounts.sqlite"
    with subprocess.Popen(
        [*driver.host.entering, sys.executable, "-c", script, database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.stdin.close()
    assert holder.returncode == 0


def test_calls_in_flight_are_finished_when_the_driver_is_told_to_end(driver: VolumeDriver) -> None:
    driver.create("data", "/srv/data")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(driver.process.socket_path)) for _ in range(3)]
        with _held_up(driver):
            for client, mount_id in zip(clients, (A, B, "c" * 64), strict=True):
                body = json.dumps({"Name": "data", "ID": mount_id}).encode()
                head = f"POST /VolumeDriver.Mount HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                client.sendall(head + body)
                _wait_until_read(client)
            os.kill(driver.process.pid, signal.SIGTERM)
            wait_until(lambda: not _accepts(driver.process.socket_path), "the driver to stop listening")
        for client in clients:
            assert b" 200 " in client.recv(65536)
    assert driver.process.wait() == 0
    assert len(driver.host.mounts()) == 1


def _wait_until_read(client: socket.socket) -> None:
    """Wait until the driver has taken all that was sent."""
    unread = array.array("i", [1])

    def is_read() -> bool:
        fcntl.ioctl(client, termios.TIOCOUTQ, unread)
        return unread[0] == 0

    wait_until(is_read, "the driver to take the call")


def _accepts(socket_path: str) -> bool:
    try:
        connected(socket_path).close()
    except ConnectionRefusedError:
        return False
    return True


def test_supervised_driver_ends_with_its_supervisor(host: Host) -> None:
    """Else a new supervisor's driver would wait in vain for the lock of the old one."""
    script = (
        "import os, subprocess, sys; os.environ['BROKERVOL_SUPERVISED'] = str(os.getpid());"
        "print(subprocess.Popen(sys.argv[1:]).pid, flush=True); sys.stdin.read()"
    )
    socket_path = str(host.directory.parent / "driver.sock")
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *command(host, socket_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: os.path.exists(socket_path) and _accepts(socket_path), "the driver to listen")
        request(socket_path, "POST", "/VolumeDriver.List")
        parent.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}/exe"), "the driver to end")


def test_root_may_be_behind_a_link(host: Host) -> None:
    (host.files / "link").symlink_to("root")
    with driver_on(host, "--root", f"{host.directory}/link") as driver:
        driver.create("data", "/srv/data")
        driver.mount("data", A)
        driver.mount("data", B)
        assert len(driver.mounts()) == 1
        driver.done("Remove", Name="data")
        assert driver.mounts() == []


# Removing


def test_removal_of_what_a_container_holds_is_refused(driver: VolumeDriver) -> None:
    driver.create("imagery", "/srv/data")
    driver.mount("imagery", A)
    driver.mount("imagery", B)
    with driver.host.container(driver.mountpoint("imagery")):
        sentence = driver.error(409, "Remove", Name="imagery")
        assert sentence == f"remove imagery: volume is in use - [{A[:12]}, {B[:12]}]"
        assert len(driver.mounts()) == 1
    driver.done("Remove", Name="imagery")
    assert driver.mounts() == []


def test_references_of_a_killed_engine_do_not_hold_a_volume_for_ever(driver: VolumeDriver) -> None:
    """After kill -9 of the engine no Unmount ever comes."""
    driver.create("imagery", "/srv/data")
    driver.mount("imagery", A)
    driver.done("Remove", Name="imagery")
    assert driver.mounts() == []
    driver.error(404, "Get", Name="imagery")
    driver.error(404, "Remove", Name="imagery")
    driver.create("imagery", "/srv/data2")
    assert driver.references("imagery") == 0


# Two drivers, and how it is started


def test_second_driver_on_one_root_is_refused_and_the_first_goes_on(driver: VolumeDriver) -> None:
    second = subprocess.run(
        command(driver.host, driver.process.socket_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 1
    assert "another brokervol driver works with" in second.stdout
    assert "Traceback" not in second.stdout + second.stderr
    driver.create("data", "/srv/data")


def test_second_driver_on_one_socket_is_refused_and_the_first_goes_on(driver: VolumeDriver) -> None:
    argv = command(driver.host, driver.process.socket_path)
    argv[argv.index("--root") + 1] = f"{driver.host.directory}/another"
    second = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert "two brokervol drivers need two sockets" in second.stdout
    assert "Traceback" not in second.stdout + second.stderr
    driver.create("data", "/srv/data")


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [
        (["--allowed-host-paths", "srv"], 2, "'srv' is not accepted: it is an absolute path"),
        (["--log-level", "loud"], 2, "is 'loud'; accepted is debug, info, warning or error"),
        (["--hostfs", "/none"], 2, "(--hostfs) is '/none'; there is no such directory"),
        (["--socket", "/x" * 60], 2, "Linux takes 107 bytes of a socket's path"),
        (["--help"], 0, "BROKERVOL_SOCKET"),
    ],
)
def test_wrong_start_is_explained(host: Host, options: list[str], exit_code: int, said: str) -> None:
    argv = command(host, str(host.directory.parent / "driver.sock"), *options)
    run = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == exit_code
    assert said in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr


def test_log_is_json_lines_on_stdout(driver: VolumeDriver) -> None:
    """The engine takes what a plugin writes to stderr for errors."""
    driver.create("data", "/srv/data")
    driver.mount("data", A)
    events = [json.loads(line)["event"] for line in driver.process.log().splitlines()]
    assert events[0] == "listening"
    assert {"serving", "volume created", "volume mounted"} <= set(events)
