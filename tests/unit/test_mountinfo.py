"""Reading the kernel's mount tables."""

from __future__ import annotations

from storage.mountinfo import mount_at, parse_mounts, read_mounts

TABLE = rb"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid - proc proc rw
40 22 254:1 /srv/with\040space /mnt/a ro,relatime shared:1 master:2 - ext4 /dev/vda1 rw
41 22 254:1 /srv/b /mnt/ab rw,relatime - ext4 /dev/vda1 rw
42 22 0:50 / /mnt/back\134slash\012line rw - nfs4 server:/export ro,vers=4.2
43 22 0:51 / /mnt/a rw - tmpfs  rw
44 22 0:52 /\377 /mnt/\377 rw - tmpfs tmpfs rw
"""


def test_fields_are_read_and_unescaped() -> None:
    mounts = list(parse_mounts(TABLE.splitlines(keepends=True)))
    space, nfs, sourceless, odd = mounts[2], mounts[4], mounts[5], mounts[6]
    assert (space.mount_id, space.parent_id, space.device) == (40, 22, "254:1")
    assert (space.root, space.mountpoint) == ("/srv/with space", "/mnt/a")
    assert nfs.mountpoint == "/mnt/back\\slash\nline"
    assert (nfs.fs_type, nfs.source) == ("nfs4", "server:/export")
    assert (sourceless.source, sourceless.is_read_only) == ("", False)
    assert (odd.root, odd.mountpoint) == ("/\udcff", "/mnt/\udcff")


def test_read_only_is_said_by_the_mount_or_by_the_file_system() -> None:
    mounts = list(parse_mounts(TABLE.splitlines()))
    assert [mount.is_read_only for mount in mounts[:5]] == [False, False, True, False, True]
    assert [mount.is_mounted_read_only for mount in mounts[:5]] == [False, False, True, False, False]


def test_a_mount_is_found_by_its_exact_path_and_the_covering_one_wins() -> None:
    mounts = list(parse_mounts(TABLE.splitlines()))
    covering = mount_at(mounts, "/mnt/a")
    assert covering is not None
    assert covering.mount_id == 43
    assert mount_at(mounts, "/mnt") is None
    assert mount_at(mounts, "/mnt/a/") is None


def test_the_same_directory_is_recognised_and_a_neighbour_is_not() -> None:
    _, _, space, other, *_ = parse_mounts(TABLE.splitlines())
    assert space.shows_same_as(space)
    assert not space.shows_same_as(other)


NFS = rb"""50 22 0:60 / /data/volumes/a rw shared:5 - nfs4 nas:/imagery rw,vers=4.2
51 22 0:60 / /container/sub rw - nfs4 nas:/imagery/sub rw,vers=4.2
52 22 0:60 / /container/whole ro - nfs4 nas:/imagery rw,vers=4.2
53 22 0:61 / /six rw - nfs [fd00::1]:/with\040space rw,vers=3
54 22 0:62 / /top rw - nfs4 nas:/ rw,vers=4.2
"""


def test_of_nfs_the_source_says_which_directory_is_mounted() -> None:
    """The kernel's nfs_show_path() is `/` for all of them: taken for the root, a part would be the whole."""
    volume, part, whole, six, top = parse_mounts(NFS.splitlines())
    assert [mount.root for mount in (volume, part, six, top)] == ["/imagery", "/imagery/sub", "/with space", "/"]
    assert volume.shows_same_as(whole)
    assert not volume.shows_same_as(part)


def test_the_real_table_has_a_root() -> None:
    assert mount_at(read_mounts(), "/") is not None
