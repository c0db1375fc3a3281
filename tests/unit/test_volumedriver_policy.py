"""Which host paths are given out, and how the engine's directory is found."""

from __future__ import annotations

import pytest

from storage.mountinfo import Mount, parse_mounts
from volumedriver.errors import HostPathRefused
from volumedriver.policy import HostPathPolicy, host_views, owned_directories, parse_allowed

SYSTEM = ["etc", "proc", "sys", "dev", "boot", "run", "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"]


@pytest.mark.parametrize("name", SYSTEM)
def test_system_directories_are_refused_with_what_is_beneath(name: str) -> None:
    for path in (f"/{name}", f"/{name}/sub", f"/{name}/a/b"):
        with pytest.raises(HostPathRefused, match=f"/{name} belongs to the host's system"):
            HostPathPolicy().check(path)


@pytest.mark.parametrize(
    "path", ["/srv", "/etcetera", "/mnt/etc", "/data/usr", "/home/lib", "/var/lib/docker-data", "/runs", "/root/x"]
)
def test_other_directories_are_allowed(path: str) -> None:
    HostPathPolicy().check(path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/var",
        "/var/lib",
        "/var/lib/docker",
        "/var/lib/docker/volumes/x/_data",
        "/var/lib/containerd",
        "/data/d/x",
    ],
)
def test_engine_is_neither_given_out_nor_contained(path: str) -> None:
    with pytest.raises(HostPathRefused):
        HostPathPolicy(("/var/lib/docker", "/var/lib/containerd", "/data/d")).check(path)


def test_allowed_paths_are_whole_components_and_do_not_lift_refusals() -> None:
    policy = HostPathPolicy(allowed=("/srv/data", "/usr"))
    policy.check("/srv/data")
    policy.check("/srv/data/sub")
    for path in ("/srv", "/srv/data2", "/srv/dat", "/usr/share", "/home"):
        with pytest.raises(HostPathRefused):
            policy.check(path)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("", ()),
        ("/srv", ("/srv",)),
        ("/srv/:/mnt, /home", ("/srv", "/mnt", "/home")),
        ("/", ("/",)),
    ],
)
def test_allowed_list(text: str, paths: tuple[str, ...]) -> None:
    assert parse_allowed(text) == paths


@pytest.mark.parametrize("text", ["srv", "/srv:data", "/srv/../etc", "//srv", "/srv\n/data"])
def test_wrong_allowed_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not accepted"):
        parse_allowed(text)


@pytest.mark.parametrize("text", [" ", ":", " , :", "\n"])
def test_a_list_of_nothing_does_not_allow_everything(text: str) -> None:
    with pytest.raises(ValueError, match="it names no directory; empty allows all but the system's"):
        parse_allowed(text)


def test_everything_is_allowed_by_the_root() -> None:
    HostPathPolicy(allowed=("/",)).check("/srv")


def mounts(*lines: str) -> list[Mount]:
    return list(
        parse_mounts(f"{number} 0 {line} rw - ext4 /dev/x rw\n".encode() for number, line in enumerate(lines))
    )


ID = "5f" * 32


def test_engine_is_found_from_inside_a_managed_plugin() -> None:
    inside = mounts(
        "0:50 / / rw",
        f"8:1 /var/lib/docker/plugins/{ID}/propagated-mount /data/published rw",
        "8:1 / /hostfs rw",
        f"8:1 /var/lib/docker/plugins/{ID}/propagated-mount"
        f" /hostfs/var/lib/docker/plugins/{ID}/propagated-mount rw",
        "8:1 /srv/data /data/published/volumes/aa rw",
    )
    assert owned_directories(inside, "/hostfs", "/data/published") == (
        "/var/lib/docker",
        "/var/lib/containerd",
        f"/var/lib/docker/plugins/{ID}/propagated-mount",
    )


def test_engine_with_a_data_root_on_another_disk_is_found() -> None:
    inside = mounts(
        "0:50 / / rw",
        f"8:2 /engine/plugins/{ID}/propagated-mount /data/published rw",
        "8:1 / /hostfs rw",
        "8:2 / /hostfs/mnt/disk rw",
        f"8:2 /engine/plugins/{ID}/propagated-mount /hostfs/mnt/disk/engine/plugins/{ID}/propagated-mount rw",
    )
    owned = owned_directories(inside, "/hostfs", "/data/published")
    assert "/mnt/disk/engine" in owned
    policy = HostPathPolicy(owned)
    for path in ("/mnt/disk", "/mnt/disk/engine", "/mnt/disk/engine/x"):
        with pytest.raises(HostPathRefused):
            policy.check(path)
    policy.check("/mnt/disk/files")
    policy.check("/data")  # the path inside the plugin is not one of the host


def test_own_root_on_a_bare_host_is_refused_wherever_it_is_seen() -> None:
    bare = mounts("8:1 / / rw", "8:1 /var/lib /mnt/copy rw")
    owned = owned_directories(bare, "/", "/var/lib/brokervol")
    assert {"/var/lib/brokervol", "/mnt/copy/brokervol"} <= set(owned)


def test_root_that_the_host_does_not_show_has_no_views() -> None:
    assert host_views(mounts("8:1 / / rw", "0:9 / /root rw"), "/srv/hostfs", "/root") == []
    assert host_views([], "/hostfs", "/root") == []
