"""What every Mounter does: the kernel's, and the fake that the driver's logic is tested with."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.memory_mounter import MemoryMounter
from lab.namespaces import in_private_namespace
from storage.mountinfo import mount_at, read_mounts
from volumedriver.errors import MountFailed
from volumedriver.mounter import KernelMounter, Mounter

KINDS = [MemoryMounter, pytest.param(KernelMounter, marks=pytest.mark.root)]
Make = Callable[[], Mounter]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    kind: Make = request.param
    return kind


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with one file."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("content")
    return tmp_path / "source"


def bind(mounter: Mounter, source: Path, mountpoint: Path | str, *, read_only: bool = False) -> None:
    """Mount by path: a descriptor from outside the test's mount namespace could not be mounted inside."""
    fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
    try:
        mounter.mount(fd, str(mountpoint), read_only=read_only)
    finally:
        os.close(fd)


@in_private_namespace
def test_mount_makes_the_mountpoint_and_mounts(make: Make, source: Path, tmp_path: Path) -> None:
    mounter, mountpoint = make(), str(tmp_path / "a")
    assert not mounter.is_mounted(mountpoint)
    bind(mounter, source, mountpoint)
    assert mounter.is_mounted(mountpoint)
    assert os.path.isdir(mountpoint)


@in_private_namespace
def test_unmount_removes_the_mountpoint(make: Make, source: Path, tmp_path: Path) -> None:
    mounter, mountpoint = make(), str(tmp_path / "a")
    bind(mounter, source, mountpoint)
    mounter.unmount(mountpoint)
    assert not mounter.is_mounted(mountpoint)
    assert not os.path.exists(mountpoint)
    assert (tmp_path / "source/file").read_text() == "content"


@in_private_namespace
def test_token_is_mounted_and_unmounted_like_a_directory(make: Make, source: Path, tmp_path: Path) -> None:
    mounter, mountpoint = make(), str(tmp_path / "a")
    mounter.mount(None, mountpoint, read_only=False)
    assert {*mounter.mountpoints(str(tmp_path))} == {mountpoint}
    assert os.listdir(mountpoint) == []
    with pytest.raises(MountFailed):
        mounter.mount(None, mountpoint, read_only=False)
    with pytest.raises(MountFailed):
        bind(mounter, source, mountpoint)
    mounter.unmount(mountpoint)
    assert not mounter.is_mounted(mountpoint)
    assert not os.path.exists(mountpoint)


@in_private_namespace
def test_unmount_of_what_is_not_mounted_succeeds(make: Make, source: Path, tmp_path: Path) -> None:
    mounter = make()
    mounter.unmount(str(tmp_path / "never"))
    bind(mounter, source, str(tmp_path / "a"))
    mounter.unmount(str(tmp_path / "a"))
    mounter.unmount(str(tmp_path / "a"))
    assert not mounter.is_mounted(str(tmp_path / "a"))


@in_private_namespace
def test_nothing_is_mounted_on_top(make: Make, source: Path, tmp_path: Path) -> None:
    mounter, mountpoint = make(), str(tmp_path / "a")
    bind(mounter, source, mountpoint, read_only=True)
    with pytest.raises(MountFailed):
        bind(mounter, source, mountpoint)
    mounter.unmount(mountpoint)
    assert not mounter.is_mounted(mountpoint), "there was a second mount below"


@in_private_namespace
def test_prefix_of_a_mountpoint_is_not_that_mountpoint(make: Make, source: Path, tmp_path: Path) -> None:
    mounter = make()
    bind(mounter, source, str(tmp_path / "data2"))
    assert not mounter.is_mounted(str(tmp_path / "data"))
    assert not mounter.is_mounted(str(tmp_path))
    bind(mounter, source, str(tmp_path / "data"))
    mounter.unmount(str(tmp_path / "data2"))
    assert mounter.is_mounted(str(tmp_path / "data"))


@in_private_namespace
def test_mountpoints_lists_one_level_only(make: Make, source: Path, tmp_path: Path) -> None:
    mounter = make()
    os.mkdir(tmp_path / "volumes")
    os.mkdir(tmp_path / "volumes-not")
    for name in ("volumes/a", "volumes/b", "volumes-not/c"):
        bind(mounter, source, str(tmp_path / name))
    expected = {path: mounter.shown(path) for path in (str(tmp_path / "volumes/a"), str(tmp_path / "volumes/b"))}
    assert mounter.mountpoints(str(tmp_path / "volumes")) == expected


@in_private_namespace
def test_what_is_shown_is_the_directory_and_each_token_is_another(
    make: Make, source: Path, tmp_path: Path
) -> None:
    mounter = make()
    (tmp_path / "source2").mkdir()
    for name, place in (("a", source), ("b", source), ("c", tmp_path / "source2")):
        bind(mounter, place, tmp_path / name)
    for name in ("t", "u"):
        mounter.mount(None, str(tmp_path / name), read_only=False)
    (a,), (b,), (c,), (t,), (u,) = (mounter.shown(str(tmp_path / name)) for name in "abctu")
    assert a == b
    assert len({a, c, t, u}) == 4
    assert a.is_now(c)
    assert not a.is_now(t)
    assert mounter.shown(str(source)) == []


@in_private_namespace
def test_files_in_a_mountpoint_are_never_removed(make: Make, tmp_path: Path) -> None:
    mountpoint = tmp_path / "a"
    mountpoint.mkdir()
    (mountpoint / "written-while-unmounted").write_text("keep")
    make().unmount(str(mountpoint))
    assert (mountpoint / "written-while-unmounted").read_text() == "keep"


@in_private_namespace
def test_mountpoint_that_is_a_link_or_file_is_refused(make: Make, source: Path, tmp_path: Path) -> None:
    mounter = make()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "plain").write_text("")
    for name in ("link", "plain"):
        with pytest.raises(MountFailed):
            bind(mounter, source, str(tmp_path / name))
    assert not mounter.is_mounted(str(tmp_path / "elsewhere"))
    assert os.path.lexists(tmp_path / "link")


@pytest.mark.root
@in_private_namespace
def test_directory_of_mountpoints_is_made_again_and_never_followed_elsewhere(source: Path, tmp_path: Path) -> None:
    """Somebody has removed it, or put a link in its place, while the driver was running."""
    mounter, directory, elsewhere = KernelMounter(), tmp_path / "volumes", tmp_path / "elsewhere"
    bind(mounter, source, directory / "a")
    assert (directory / "a/file").read_text() == "content"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    mounter.unmount(str(directory / "a"))
    directory.rmdir()
    elsewhere.mkdir()
    directory.symlink_to(elsewhere)
    with pytest.raises(MountFailed, match=r"volumes is not a directory"):
        bind(mounter, source, directory / "a")
    assert list(elsewhere.iterdir()) == []


@in_private_namespace
def test_failed_mount_leaves_no_mountpoint(make: Make, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(MountFailed):
        make().mount(writing, str(tmp_path / "a"), read_only=False)
    assert not os.path.exists(tmp_path / "a")


@in_private_namespace
def test_mountpoint_with_a_difficult_name(make: Make, source: Path, tmp_path: Path) -> None:
    mounter = make()
    for name in ("a b", "tab\t", "line\n", "back\\slash", "#", "\\040", "ü", "a:b,c"):
        mountpoint = str(tmp_path / name)
        bind(mounter, source, mountpoint)
        assert mounter.is_mounted(mountpoint)
        assert mounter.mountpoints(str(tmp_path)) == {mountpoint: mounter.shown(mountpoint)}
        mounter.unmount(mountpoint)
        assert not mounter.is_mounted(mountpoint)


@pytest.mark.root
@in_private_namespace
def test_kernel_shows_the_source_and_keeps_read_only(source: Path, tmp_path: Path) -> None:
    mounter = KernelMounter()
    bind(mounter, source, str(tmp_path / "rw"))
    bind(mounter, source, str(tmp_path / "ro"), read_only=True)
    (tmp_path / "rw/new").write_text("through the mount")
    assert (tmp_path / "source/new").read_text() == "through the mount"
    with pytest.raises(OSError, match="Read-only") as refused:
        (tmp_path / "ro/new").write_text("no")
    assert refused.value.errno == errno.EROFS


@pytest.mark.root
@in_private_namespace
def test_kernel_unmounts_what_is_in_use(source: Path, tmp_path: Path) -> None:
    mounter = KernelMounter()
    bind(mounter, source, str(tmp_path / "a"))
    with open(tmp_path / "a/file", encoding="ascii") as file:
        mounter.unmount(str(tmp_path / "a"))
        assert file.read() == "content"
    assert mount_at(read_mounts(), str(tmp_path / "a")) is None


@pytest.mark.root
@in_private_namespace
def test_kernel_takes_off_every_layer(source: Path, tmp_path: Path) -> None:
    """Somebody else mounted on top: afterwards nothing may be left for a removal to go through."""
    mounter, mountpoint = KernelMounter(), tmp_path / "a"
    bind(mounter, source, str(mountpoint))
    os.mkdir(tmp_path / "other")
    bind(mounter, source, str(tmp_path / "other"))
    subprocess.run(["mount", "--bind", str(tmp_path / "other"), str(mountpoint)], check=True)
    mounter.unmount(str(mountpoint))
    assert not mountpoint.exists()
    assert (tmp_path / "source/file").exists()


def write_attempts(directory: str) -> Iterator[Callable[[], object]]:
    """What could leave something in, or change, a directory. Each must fail with EROFS."""
    inside = f"{directory}/x"
    yield lambda: os.open(inside, os.O_CREAT | os.O_WRONLY, 0o600)
    yield lambda: os.mkdir(inside)
    yield lambda: os.mkfifo(inside)
    yield lambda: os.symlink("/etc", inside)
    yield lambda: os.open(directory, os.O_TMPFILE | os.O_WRONLY)
    yield lambda: os.chmod(directory, 0o700)
    yield lambda: os.chown(directory, 1000, 1000)
    yield lambda: os.utime(directory)
    yield lambda: os.setxattr(directory, "trusted.x", b"x")


@pytest.mark.root
@in_private_namespace
def test_nobody_writes_to_a_token_and_its_mounts_still_differ(tmp_path: Path) -> None:
    mounter = KernelMounter()
    for name, read_only in (("rw", False), ("ro", True)):
        mountpoint = str(tmp_path / name)
        mounter.mount(None, mountpoint, read_only=read_only)
        for attempt in write_attempts(mountpoint):
            with pytest.raises(OSError, match="Read-only") as refused:
                attempt()
            assert refused.value.errno == errno.EROFS
        mount = mount_at(read_mounts(), mountpoint)
        assert mount is not None
        assert (mount.is_read_only, mount.is_mounted_read_only) == (True, read_only)
        assert not mount.is_shared
        options = os.statvfs(mountpoint).f_flag
        assert options & os.ST_NOSUID
        assert options & os.ST_NODEV
        assert options & os.ST_NOEXEC
        # Making the mount writable, as a privileged container can, does not make its file system so.
        subprocess.run(["mount", "-o", "remount,bind,rw", mountpoint], check=True)
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir(f"{mountpoint}/x")


@pytest.mark.root
@in_private_namespace
def test_each_token_is_a_file_system_of_its_own(tmp_path: Path) -> None:
    """Device numbers come again once a file system is gone; the source of the mount is the mountpoint's own."""
    mounter = KernelMounter()
    seen = []
    for name in ("a", "b", "c"):
        mounter.mount(None, str(tmp_path / name), read_only=False)
        mount = mount_at(read_mounts(), str(tmp_path / name))
        assert mount is not None
        seen.append(mount)
    assert len({mount.identity for mount in seen}) == 3
    assert [mount.source for mount in seen] == ["brokervol:a", "brokervol:b", "brokervol:c"]
