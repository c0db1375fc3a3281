"""Who holds a volume, told from the mountinfo of processes: a /proc made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.mountinfo import mount_at, read_mounts
from volumedriver.holders import Namespaces, Wanted
from volumedriver.volume import Shown

HASH = "0123456789" * 4
OURS = f"/data/published/volumes/{HASH}"
ON_HOST = f"/var/lib/docker/plugins/x/propagated-mount/volumes/{HASH}"


OTHER = Wanted(Shown("8:77", "/x", "/dev/x"), None)


class Proc:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "cpuinfo").write_text("")
        self.add("self", "plugin", f"8:1 /srv/data {OURS}", "8:1 / /hostfs", f"8:1 /srv/data /hostfs{ON_HOST}")
        self.add("50", "plugin", f"8:1 /srv/data {OURS}")
        self.add("1", "host", "8:1 / /", f"8:1 /srv/data {ON_HOST}", "8:9 / /mnt/disk")

    def add(self, pid: str, namespace: str, *mounts: str) -> None:
        process = self.directory / pid
        (process / "ns").mkdir(parents=True)
        (process / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        lines = [f"{number} 0 {mount} rw - ext4 /dev/x rw\n" for number, mount in enumerate(mounts)]
        (process / "mountinfo").write_text("".join(lines))

    def holders(self, host_path: str | None = "/srv/data") -> list[int]:
        ours = mount_at(read_mounts(str(self.directory / "self/mountinfo")), OURS)
        assert ours is not None
        wanted = Wanted(Shown(ours.device, ours.root, ours.source), host_path)
        namespaces = Namespaces(str(self.directory))
        found = namespaces.held({"it": wanted, "else": OTHER})
        assert found.keys() <= {"it"}
        return sorted({hold.pid for hold in found.get("it", ())})


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_plugin_and_host_hold_nothing(proc: Proc) -> None:
    assert proc.holders() == []


def test_container_is_a_holder_once_a_namespace(proc: Proc) -> None:
    for pid in ("100", "101"):
        proc.add(pid, "container", "0:50 / /", "8:1 /srv/data /data")
    proc.add("102", "other", "0:51 / /", "8:1 /srv/data2 /data")
    (found,) = proc.holders()
    assert found in {100, 101}


def test_container_that_mounts_it_where_the_host_has_it_is_a_holder(proc: Proc) -> None:
    proc.add("100", "container", "0:50 / /", "8:1 /srv/data /srv/data")
    assert proc.holders() == [100]


def test_copies_of_the_hosts_mounts_hold_nothing(proc: Proc) -> None:
    proc.add("100", "service", "8:1 / /", f"8:1 /srv/data {ON_HOST}")
    proc.add("101", "agent", "0:52 / /", "8:1 / /rootfs", f"8:1 /srv/data /rootfs{ON_HOST}")
    assert proc.holders() == []


def test_volume_over_a_whole_disk_is_not_held_by_the_disk(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    own = tmp_path / "self/mountinfo"
    own.write_text(own.read_text().replace(f"8:1 /srv/data {OURS}", f"8:9 / {OURS}"))
    proc.add("100", "service", "8:1 / /", "8:9 / /mnt/disk")
    proc.add("101", "agent", "0:52 / /", "8:1 / /rootfs", "8:9 / /rootfs/mnt/disk")
    assert proc.holders("/mnt/disk") == []
    proc.add("102", "container", "0:53 / /", "8:9 / /mnt/disk")
    assert proc.holders("/mnt/disk") == [102]


def test_disk_that_only_another_namespace_has_at_the_host_path_holds_nothing(proc: Proc) -> None:
    proc.add("100", "engine", "8:1 / /", "8:1 /srv/data /srv/data")
    assert proc.holders("/srv/data") == []
    assert proc.holders(None) == [100]


def test_process_that_ends_meanwhile_or_hides_its_namespace(proc: Proc) -> None:
    proc.add("100", "gone")
    (proc.directory / "100/mountinfo").unlink()
    proc.add("101", "hidden", "0:50 / /", "8:1 /srv/data /data")
    (proc.directory / "101/ns/mnt").unlink()
    assert proc.holders() == [101]


def test_sub_path_of_the_volume_holds_it(proc: Proc) -> None:
    proc.add("100", "container", "0:50 / /", "8:1 /srv/data/a/b /data")
    proc.add("101", "other", "0:51 / /", "8:1 /srv/database /data", "8:1 /srv /srv")
    assert proc.holders() == [100]


def test_directory_that_was_removed_is_held_and_so_is_the_one_made_anew(proc: Proc) -> None:
    proc.add("100", "container", "0:50 / /", "8:1 /srv/data//deleted /data")
    proc.add("101", "other", "0:51 / /", "8:1 /srv/data /data")
    # A file in it that was replaced: of the directory that says nothing.
    proc.add("102", "third", "0:52 / /", "8:1 /srv/data/settings//deleted /etc/settings")
    wanted = {"it": Wanted(Shown("8:1", "/srv/data", "/dev/x"), "/srv/data")}
    found = Namespaces(str(proc.directory)).held(wanted)["it"]
    assert sorted((hold.pid, hold.is_removed) for hold in found) == [(100, True), (101, False), (102, False)]


def test_files_that_the_engine_gives_to_every_container_hold_nothing(proc: Proc) -> None:
    proc.add(
        "100", "container", "0:50 / /", "8:1 /srv/data/containers/1/hosts /etc/hosts", "0:9 mnt:[4026] /run/x"
    )
    assert proc.holders() == []


def test_token_of_another_volume_with_the_same_number_holds_nothing(proc: Proc) -> None:
    container = proc.directory / "100"
    proc.add("100", "container", "8:1 /srv/data /data")
    assert proc.holders() == [100]
    told = (container / "mountinfo").read_text()
    (container / "mountinfo").write_text(told.replace("/dev/x", "brokervol:other"))
    assert proc.holders() == []


def test_earlier_token_of_the_volume_holds_it(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    own = tmp_path / "self/mountinfo"
    token = f"brokervol:{HASH}"
    own.write_text(own.read_text().replace("8:1 /srv/data", "0:99 /").replace("/dev/x", token))
    proc.add("100", "container", "0:50 / /", "0:98 / /token")
    assert proc.holders() == []
    theirs = tmp_path / "100/mountinfo"
    theirs.write_text(theirs.read_text().replace("/dev/x", token))
    assert proc.holders() == [100]


def test_nobody_is_asked_for_nothing(proc: Proc) -> None:
    assert Namespaces(str(proc.directory / "none")).held({}) == {}


# As user-mode Linux 6.1 said of two directories of one export, for version 4.2 and 3: the root is always `/`.
NFS = {
    "4.2": "nfs4 nas:{} rw,vers=4.2,rsize=262144,hard,proto=tcp,clientaddr=127.0.0.1,addr=127.0.0.1",
    "3": "nfs nas:{} rw,vers=3,rsize=262144,hard,nolock,proto=tcp,mountaddr=127.0.0.1,mountvers=3,addr=127.0.0.1",
}


@pytest.fixture(params=NFS)
def exports(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., set[str]]:
    """Tells which of the volumes `left` and `left-2` a container holds that has this path of an export."""

    def held(path: str, device: str = "0:32", mountpoint: str = "/data", server: str = "nas") -> set[str]:
        proc = Proc(tmp_path)
        proc.add("100", "container", "0:50 / /")
        told = NFS[request.param].format(path).replace(" nas:", f" {server}:")
        with open(proc.directory / "100/mountinfo", "a", encoding="utf-8") as file:
            file.write(f"36 33 {device} / {mountpoint} rw,relatime - {told}\n")
        names = ("left", "left-2")
        wanted = {name: Wanted(Shown("0:32", f"/export/{name}", f"nas:/export/{name}"), None) for name in names}
        return {*Namespaces(str(proc.directory)).held(wanted)}

    return held


def test_directories_of_one_export_are_told_apart(exports: Callable[..., set[str]]) -> None:
    assert exports("/export/left") == {"left"}


def test_part_of_a_directory_of_an_export_holds_it(exports: Callable[..., set[str]]) -> None:
    assert exports("/export/left-2/part/of/it") == {"left-2"}


def test_what_lies_above_a_directory_of_an_export_holds_nothing(exports: Callable[..., set[str]]) -> None:
    assert exports("/export") == set()


def test_export_that_was_mounted_anew_as_another_device_is_held(exports: Callable[..., set[str]]) -> None:
    """By `nosharecache`, or since the server has other file systems."""
    assert exports("/export/left/part", device="0:77") == {"left"}


def test_same_path_of_another_server_holds_nothing(exports: Callable[..., set[str]]) -> None:
    assert exports("/export/left", server="nas2") == set()


def test_our_own_mount_of_an_export_holds_nothing(exports: Callable[..., set[str]]) -> None:
    assert exports("/export/left", mountpoint=ON_HOST) == set()


def test_file_system_that_names_itself_like_an_export_is_known_by_its_device(proc: Proc) -> None:
    """Of CephFS and sshfs the kernel tells the root: a part of the volume has another."""
    for pid, device in (("100", "0:60"), ("101", "0:61")):
        proc.add(pid, f"container-{pid}", "0:50 / /")
        with open(proc.directory / pid / "mountinfo", "a", encoding="utf-8") as file:
            file.write(f"36 33 {device} /part /data rw - ceph mon:/ rw\n")
    found = Namespaces(str(proc.directory)).held({"it": Wanted(Shown("0:60", "/", "mon:/"), "/mnt/ceph")})
    assert [hold.pid for hold in found["it"]] == [100]


def test_export_under_another_name_is_the_same_volume() -> None:
    """The kernel tells the name by which the server was reached last, and what the directory is called by now."""
    shown = Shown("0:32", "/export/left", "nas:/export/left")
    for now in (Shown("0:32", "/export/left", "127.0.0.1:/export/left"), Shown("0:32", "/e/new", "nas:/e/new")):
        assert shown.is_now(now)
    for now in (Shown("0:33", "/export/left", "nas:/export/left"), Shown("0:32", "/", "brokervol:x")):
        assert not shown.is_now(now)
