"""What is mounted of a server is what `nfs_path` names, whoever may write there: no link, no referral, no race."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.houses import House
from lab.nas import PREPARE, Nas, started_nas
from lab.nfs_driver import ID, TIMEOUT_S, Driver, exported, leaving_nothing, running_driver
from storage.mountinfo import read_mounts

RUNS_INSIDE = PREPARE

V3 = "vers=3,nolock"
VERSIONS = ["vers=4.2", "vers=4.0", V3]
LINKS = {"rel": "../secret", "abs": "/secret", "inner": "ok", "ok/up": "../../secret"}


@pytest.fixture(scope="module")
def nas() -> Iterator[Nas]:
    with started_nas() as server:
        yield server


@pytest.fixture(scope="module")
def data(nas: Nas) -> Path:
    """An export in which users have made links."""
    path = nas.export("data")
    (path / "ok/deep").mkdir(parents=True)
    (path / "file").touch()
    for name, target in LINKS.items():
        (path / name).symlink_to(target)
    return path


@pytest.fixture(scope="module")
def secret(nas: Nas) -> Path:
    path = nas.export("secret")
    (path / "passwd").touch()
    return path


@pytest.fixture(scope="module")
def free_driver() -> Iterator[Driver]:
    with running_driver("free", "--nfs-mount-timeout-s", "20") as driver:
        yield driver


@pytest.fixture(scope="module")
def held_driver() -> Iterator[Driver]:
    """One that may mount what is in /data only, of servers here."""
    with running_driver("held", "--allowed-nfs-servers", "nas:/data,127.0.0.0/8:/data") as driver:
        yield driver


@pytest.fixture
def free(free_driver: Driver) -> Iterator[Driver]:
    with leaving_nothing(free_driver) as driver:
        yield driver


@pytest.fixture
def held(held_driver: Driver) -> Iterator[Driver]:
    with leaving_nothing(held_driver) as driver:
        yield driver


@pytest.fixture(scope="module")
def east() -> House:
    return House("east")


@pytest.fixture(scope="module")
def west() -> House:
    return House("west")


def export(path: Path, fsid: int) -> None:
    options = f"rw,no_root_squash,insecure,no_subtree_check,fsid={fsid}"
    subprocess.run(["exportfs", "-o", options, f"*:{exported(path)}"], check=True)


def address(house: House) -> str:
    lines = Path("/etc/hosts").read_text().splitlines()
    return next(line.split()[0] for line in lines if line.split()[1:] == [house.name])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_link_is_no_way_out_of_what_is_allowed(held: Driver, data: Path, secret: Path, version: str) -> None:
    for name, target in LINKS.items():
        for server, path, create in (("nas", name, "false"), ("localhost", f"{name}/made", "true")):
            refused = held.refused(403, f"{server}:/data/{path}", version, create=create)
            assert f"it passes through the symbolic link /data/{name} -> {target} on {server} (" in refused
    assert os.listdir(secret) == ["passwd"]
    assert not (data / "ok/made").exists()
    assert (held.mounted(data / "ok", version) / "deep").is_dir()
    assert held.mounted(data / f"ok/new-{version}", version, create="true").is_dir()
    assert (held.mounted(data, version) / "ok").is_dir()


def test_without_a_directory_that_is_allowed_nfs3_leaves_links_to_the_server(
    free: Driver, data: Path, secret: Path
) -> None:
    assert "symbolic link /data/abs -> /secret" in free.refused(403, data / "abs")
    assert os.listdir(free.mounted(data / "abs", V3)) == ["passwd"]
    assert "symbolic link /data/abs" in free.refused(403, data / "abs/made", V3, create="true")
    assert os.listdir(secret) == ["passwd"]


def test_a_link_that_comes_and_goes_never_leads_elsewhere(held: Driver, data: Path, secret: Path) -> None:
    flips = data / "flips"
    flips.mkdir()
    (flips / "link").symlink_to("/secret")
    (flips / "directory").mkdir()
    ended = threading.Event()

    def flip() -> None:
        for name in itertools.takewhile(lambda _: not ended.is_set(), itertools.cycle(("link", "directory"))):
            os.rename(flips / name, flips / "it")
            time.sleep(0.001)
            os.rename(flips / "it", flips / name)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for number in range(12):
            held.create(f"f{number}", flips / "it", f"{VERSIONS[number % 3]},actimeo=0")
            answer = held.call("Mount", Name=f"f{number}", ID=ID)
            assert answer.status in {200, 400, 403}
            if answer.status == 200:
                assert os.listdir(answer.json["Mountpoint"]) == []
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def private(nas: Nas) -> Path:
    """A directory that the root of this host cannot see: it is 0700, and root is nobody there."""
    path = nas.export("private", options="rw,root_squash") / "of"
    (path / "x").mkdir(parents=True)
    os.chown(path, 1000, 1000)
    path.chmod(0o700)
    return path / "x"


def test_where_root_may_not_go_nfs3_still_mounts(free: Driver, private: Path) -> None:
    refused = free.refused(500, private, "vers=4.2")
    assert "lets root of this host go no further than /private/of: let others pass there" in refused
    free.mounted(private, V3)


def test_where_root_may_not_go_nothing_is_shown(private: Path) -> None:
    allowed = "nas:/private,nas6:/private/of/x"
    with running_driver("shown", "--allowed-nfs-servers", allowed) as driver, leaving_nothing(driver):
        refused = driver.refused(403, private, V3)
        assert "go no further than /private/of, so that NFSv3 does not show whether" in refused
        assert "stays in /private, which ALLOWED_NFS_SERVERS of this host allows: let others pass there" in refused
        driver.mounted(f"nas6:{exported(private)}", V3)


def test_nfs3_goes_from_the_deepest_export(nas: Nas, secret: Path) -> None:
    """What is allowed may be no export, but above some, which have file systems of their own."""
    top = nas.directory / "top"
    top.mkdir()
    for name in ("a", "b"):
        (top / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", name, top / name], check=True)
        (top / name / "sub").mkdir()
        (top / name / "link").symlink_to("/secret")
        export(top / name, int.from_bytes(name.encode()))
    with running_driver("top", "--allowed-nfs-servers", "nas:/top") as driver, leaving_nothing(driver):
        for version in ("vers=4.2", V3):
            (driver.mounted("nas:/top/a/sub", version) / version).touch()
            driver.refused(403, "nas:/top/b/link/x", version, create="true")
    assert len(os.listdir(top / "a/sub")) == 2
    assert os.listdir(secret) == ["passwd"]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_looked_at_has_the_attributes_that_were_asked_for(held: Driver, data: Path, version: str) -> None:
    files = held.mounted(data / "ok/deep", f"{version},noexec,noatime,wsize=8192,ro")
    (mount,) = held.mounts()
    assert mount.source == "nas:/data/ok/deep"
    assert not mount.is_shared
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(files) in line)
    assert {"ro", "nosuid", "nodev", "noexec", "noatime", "wsize=8192"} <= {*line.split()[3].split(",")}


def test_one_directory_by_two_names(free: Driver, nas: Nas) -> None:
    """The kernel knows it by the first: that is no link."""
    paths = [nas.export(name) for name in ("name1", "name2")]
    subprocess.run(["mount", "--bind", *paths], check=True)
    for path in paths:
        export(path, fsid=4711)
    (paths[0] / "sub").mkdir()
    try:
        for path in paths:
            for version in VERSIONS:
                assert free.mounted(path / "sub", version).is_dir()
    finally:
        free.remove_all()
        subprocess.run(["umount", "-l", paths[1]], check=True)


def test_nothing_is_left_of_what_was_refused(held: Driver, data: Path) -> None:
    before = read_mounts()
    held.refused(403, data / "abs", "vers=4.2,nosharecache")
    held.refused(500, data / "file")
    assert read_mounts() == before
    volumes = Path("/proc/net/nfsfs/volumes").read_text().splitlines()
    assert len(volumes) == 1, "only a heading"


@pytest.fixture(scope="module")
def referral(east: House, west: House) -> str:
    """A directory of the one server that refers to the other."""
    (west.export("data") / "of-west").touch()
    (east.exports / "ref").mkdir()
    options = f"rw,no_root_squash,insecure,no_subtree_check,fsid=777,refer=/data@{address(west)}"
    east._run("exportfs", "-o", options, "*:/ref")
    east.export("plain")
    return "east:/ref"


@pytest.mark.parametrize("version", ["", "vers=4.0"])
def test_a_referral_is_not_followed(free: Driver, referral: str, east: House, west: House, version: str) -> None:
    to = address(west)
    refused = free.refused(403, referral, version)
    assert refused == (
        f"cannot mount east:/ref: east ({address(east)}) refers it to another server (refer=), {to}:"
        f" give {to}:/data as nfs_path, which this host must allow, too"
    )
    free.refused(403, f"{referral}/made/too", version, create="true")
    assert os.listdir(free.mounted(f"{to}:/data", version)) == ["of-west"]


def test_who_refers_to_a_dead_server_is_not_dead(referral: str, west: House) -> None:
    with running_driver("ref", "--allowed-nfs-servers", "east") as driver, leaving_nothing(driver):
        driver.create("ref", referral, "vers=4.1")
        with closed(west):
            refused = driver.error(503, "Mount", Name="ref", ID=ID)
            assert "refers /ref to another server (refer=), which cannot be reached (" in refused
        with west.silent(is_deaf=True):
            refused = driver.error(503, "Mount", Name="ref", ID=ID)
            assert (
                f"the way to /ref on it did not end within {TIMEOUT_S} s: its disks hang, or it refers" in refused
            )
            assert driver.mounted("east:/plain", "vers=4.1").is_dir()
        assert driver.done("Get", Name="ref").json["Volume"]["Status"]["health"] == "healthy"


@contextlib.contextmanager
def closed(house: House) -> Iterator[None]:
    house.close()
    try:
        yield
    finally:
        house.open()


def test_directories_are_made_by_many_at_once(free: Driver, nas: Nas) -> None:
    path = nas.export("many", options="rw,root_squash")
    path.chmod(0o1777)
    for number in range(9):
        options = {"create": "true", "uid": "1000", "gid": "1000", "mode": "2750"}
        free.create(f"m{number}", path / "a/b/c", VERSIONS[number % 3], **options)
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(lambda number: free.mount(f"m{number}"), range(9)))
    modes = [(path / name).stat() for name in ("a", "a/b", "a/b/c")]
    assert [(stat.st_mode & 0o7777, stat.st_uid) for stat in modes] == [
        (0o755, 1000),
        (0o755, 1000),
        (0o2750, 1000),
    ]


def test_what_volumes_of_a_server_share(free: Driver, data: Path) -> None:
    """As docs/nfs.md says: the kernel's affair, and here to be noticed when it changes."""
    for options in ("timeo=300", "timeo=5,nconnect=4", "nosharecache,timeo=7"):
        free.mounted(data, options)
    lines = [line for line in Path("/proc/mounts").read_text().splitlines() if f"{free.root}/volumes/" in line]
    times = [option for line in lines for option in line.split()[3].split(",") if option.startswith("timeo=")]
    assert times == ["timeo=300", "timeo=300", "timeo=7"]
    assert not any("nconnect" in line for line in lines)
