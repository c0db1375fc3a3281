"""Who holds a volume, told from the mountinfo of processes: a /proc made by hand."""

from __future__ import annotations

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
        found = namespaces.of(wanted)
        assert namespaces.held({"it": wanted, "else": OTHER}) == ({"it"} if found else set())
        return found


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
    assert Namespaces(str(proc.directory / "none")).held({}) == set()
