"""Disks that are full or read-only: real ones, mounted where no other thread of this machine sees them."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.backends import DIRECTORIES
from storage.brokers.broker import FileUpload
from storage.catalog import Catalog
from storage.exceptions import MissingFile, NoSpace, ReadOnly
from storage.testing import WORKSPACE, Backend, Suite

pytestmark = pytest.mark.root

MIB = 1024 * 1024

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC_PRIVATE = 1, 32, 4096, 0x4000 | 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def with_own_mounts(run: Callable[[], None]) -> None:
    """Run in a thread with mounts of its own. They are gone when it ends.

    Not in a child process as elsewhere: the SDKs' threads would not be in it.
    """
    failures: list[BaseException] = []

    def isolated() -> None:
        try:
            if _libc.unshare(_CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            _mount("none", "/", "", _MS_REC_PRIVATE)
            run()
        except BaseException as error:  # raised again by the test's own thread
            failures.append(error)

    thread = threading.Thread(target=isolated)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    if _libc.mount(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def mount_small(directory: Path, options: str = "size=1m") -> None:
    _mount("small", str(directory), "tmpfs", 0, options)


def mount_read_only(directory: Path) -> None:
    _mount(str(directory), str(directory), "", _MS_BIND)
    _mount("none", str(directory), "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def free(directory: Path) -> tuple[int, int]:
    found = os.statvfs(directory)
    return found.f_bfree, found.f_ffree


@pytest.mark.parametrize("backend", DIRECTORIES, indirect=True)
class TestWorkspaces(Suite):
    def test_full_workspace_is_no_space_and_nothing_is_left(self, backend: Backend, records: Catalog) -> None:
        assert backend.workspace is not None
        workspace = backend.workspace

        def run() -> None:
            mount_small(workspace)
            backend.upload("old", b"old")
            before, room = backend.stored(), free(workspace)
            for path in ("new", "old", "dir/dir/new"):
                with pytest.raises(NoSpace, match=path):
                    backend.upload(path, bytes(2 * MIB))
            assert backend.stored() == before
            assert free(workspace) == room
            assert [file.file_size for file in records.page(WORKSPACE)] == [3]
            backend.upload("fits", bytes(MIB // 2))

        with_own_mounts(run)

    def test_batch_that_fills_the_workspace_keeps_what_fitted(self, backend: Backend, records: Catalog) -> None:
        assert backend.workspace is not None
        workspace = backend.workspace

        def run() -> None:
            mount_small(workspace)
            source = backend.source(bytes(300_000))
            uploads = [FileUpload(backend.file(f"f{number}"), source) for number in range(6)]
            with pytest.raises(NoSpace, match="f3"):
                backend.broker.upload_files(backend.volume_path, uploads)
            assert sorted(os.listdir(workspace)) == ["f0", "f1", "f2"]
            assert [file.file_path for file in records.page(WORKSPACE)] == ["f0", "f1", "f2"]

        with_own_mounts(run)

    def test_full_workspace_still_moves_and_deletes(self, backend: Backend) -> None:
        assert backend.workspace is not None
        workspace = backend.workspace

        def run() -> None:
            mount_small(workspace)
            file = backend.upload("a", b"A")
            with open(workspace / "filler", "wb") as filler, pytest.raises(OSError, match="No space"):
                filler.write(bytes(2 * MIB))
            backend.move(file, "b")
            backend.delete(file)
            assert sorted(os.listdir(workspace)) == ["filler"]

        with_own_mounts(run)

    def test_workspace_without_inodes_is_no_space(self, backend: Backend, records: Catalog) -> None:
        assert backend.workspace is not None
        workspace = backend.workspace

        def run() -> None:
            mount_small(workspace, "nr_inodes=4")
            with pytest.raises(NoSpace):
                backend.upload("a/b/c/d/e")
            with pytest.raises((NoSpace, MissingFile)):
                backend.move(backend.file("gone"), "a/b/c/d/e")
            assert os.listdir(workspace) == []
            assert records.page(WORKSPACE) == []

        with_own_mounts(run)

    def test_read_only_workspace_is_read_and_nothing_else(self, backend: Backend, records: Catalog) -> None:
        assert backend.workspace is not None
        workspace = backend.workspace
        file = backend.upload("a", b"A")

        def run() -> None:
            mount_read_only(workspace)
            for change in (
                lambda: backend.upload("a", b"new"),
                lambda: backend.upload("dir/new"),
                lambda: backend.move(file, "b"),
                lambda: backend.move(file, "dir/b"),
                lambda: backend.delete(file),
            ):
                with pytest.raises(ReadOnly):
                    change()
            backend.download(file, str(backend.local / "out"))
            assert (backend.local / "out").read_bytes() == b"A"
            assert backend.listed() == {"a": 1}
            backend.delete(backend.file("never/was"))

        with_own_mounts(run)
        assert backend.listed() == {"a": 1}
        assert records.page(WORKSPACE) == [file]
        assert (file.file_path, file.is_deleted) == ("a", False)


class TestLocalDisks(Suite):
    def test_download_onto_a_full_disk_is_no_space_and_leaves_nothing(self, backend: Backend) -> None:
        """A link needs no more than a name, a copy needs the space: both leave nothing behind."""
        large, small = backend.present("large", bytes(2 * MIB)), backend.present("small", b"s")
        backend.download(small, str(backend.local / "before"))

        def run() -> None:
            options = "nr_inodes=1" if backend.traits.download_is_link else "size=1m"
            mount_small(backend.local, options)
            room = free(backend.local)
            with pytest.raises(NoSpace, match="large"):
                backend.download(large, str(backend.local / "out"))
            assert os.listdir(backend.local) == []
            assert free(backend.local) == room

        with_own_mounts(run)
        with warnings.catch_warnings():  # boto3 leaves a response that it gave up to the collector
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def test_download_onto_a_read_only_disk_is_read_only(self, backend: Backend) -> None:
        file = backend.present("a")

        def run() -> None:
            mount_read_only(backend.local)
            with pytest.raises(ReadOnly):
                backend.download(file, str(backend.local / "out"))
            assert os.listdir(backend.local) == []

        with_own_mounts(run)
