"""Faults that are real: disks that are full, other mounts inside a workspace, sources that change while copied.

What else a full or read-only disk does to each operation is in `tests/conformance/test_broker_disks.py`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.directories import remove_tree
from lab.faults import Kernel
from lab.namespaces import in_private_namespace
from lab.power import Disk
from storage import catalog
from storage.brokers.broker import FileMove, FileUpload
from storage.brokers.factory import get_broker
from storage.catalog import Catalog
from storage.exceptions import InvalidPath, NoSpace
from storage.models import ScaleFile, use_catalog

KIB, MIB = 1024, 1024 * 1024


@contextmanager
def records_in(directory: Path) -> Iterator[Catalog]:
    opened = catalog.configure(f"sqlite:///{directory}/catalog.sqlite")
    try:
        yield opened
    finally:
        use_catalog(None)
        opened.close()


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[Path]:
    """A tmpfs at a directory of ours, in a private namespace."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "lab", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def upload(workspace: Path, *pairs: tuple[Path, str]) -> None:
    uploads = [FileUpload(ScaleFile(file_path=path), str(source)) for source, path in pairs]
    get_broker("host").upload_files(str(workspace), uploads)


@pytest.mark.root
@in_private_namespace
def test_a_batch_that_replaces_needs_space_for_one_file_more(tmp_path: Path) -> None:
    """As if one after another: before there is no space, the earlier of a group take their places."""
    source = tmp_path / "source"
    source.write_bytes(b"n" * 240 * KIB)
    with records_in(tmp_path), mounted(tmp_path / "workspace", "size=1m") as workspace:
        for name in "abc":
            (workspace / name).write_bytes(b"o" * 240 * KIB)
        upload(workspace, *((source, name) for name in "abc"))
        assert {name: (workspace / name).read_bytes()[:1] for name in os.listdir(workspace)} == {
            "a": b"n",
            "b": b"n",
            "c": b"n",
        }


@pytest.mark.root
@in_private_namespace
def test_a_disk_that_fills_keeps_and_records_what_fitted() -> None:
    """On ext4, which finds place for what was written only when it is brought to the disk."""
    directory = Path(tempfile.mkdtemp(prefix="bv-full-", dir="/dev/shm"))
    source = directory / "source"
    source.write_bytes(os.urandom(MIB))
    disk = Disk(directory)
    disk.plug_in()
    try:
        with records_in(directory) as records:
            upload(disk.mountpoint, (source, "f0"))
            room = os.statvfs(disk.mountpoint).f_bavail
            fitting = 1 + room * os.statvfs(disk.mountpoint).f_bsize // MIB
            with pytest.raises(NoSpace, match=f"f{fitting}"):
                upload(disk.mountpoint, *((source, f"f{number}") for number in range(20)))
            disk.cut_power()
            found = {path.name: path.read_bytes() for path in disk.mountpoint.glob("[!l]*")}
            assert found == dict.fromkeys((f"f{number}" for number in range(fitting)), source.read_bytes())
            assert [file.file_path for file in records.page("")] == [f"f{n}" for n in range(fitting)]
    finally:
        disk.pull_out()
        remove_tree(directory)


@pytest.mark.root
@in_private_namespace
def test_no_move_leaves_the_mount_of_its_workspace(tmp_path: Path) -> None:
    """So none is a copy and a removal: another mount inside is no part of it, not even one of its own files."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    with records_in(tmp_path) as records, mounted(workspace / "inside", "size=1m") as inside:
        (workspace / "bound").mkdir()
        subprocess.run(["mount", "--bind", str(workspace), str(workspace / "bound")], check=True)
        (workspace / "a").write_text("A")
        (inside / "b").write_text("B")
        for old, new in (("a", "inside/a"), ("inside/b", "b"), ("a", "bound/a2"), ("bound/a", "a2")):
            with pytest.raises(InvalidPath, match=f"move '{old}'.*EXDEV"):
                get_broker("host").move_files(str(workspace), [FileMove(ScaleFile(file_path=old), new)])
        with pytest.raises(InvalidPath, match="EXDEV"):
            upload(workspace, (workspace / "a", "inside/a"))
        subprocess.run(["umount", str(workspace / "bound")], check=True)
        assert sorted(os.listdir(workspace)) == ["a", "bound", "inside"]
        assert os.listdir(inside) == ["b"]
        assert records.page("") == []


@pytest.mark.parametrize("is_nfs", [False, True], ids=["copy_file_range", "read and write"])
@pytest.mark.parametrize("left", [0, 1, 4096, 5 * 4096 + 1])
@pytest.mark.parametrize("moment", ["lseek", "copy", "ftruncate"])
def test_a_source_cut_short_while_it_is_copied_is_refused(
    tmp_path: Path, is_nfs: bool, left: int, moment: str
) -> None:
    """Data, a hole, data and a hole at the end: what is cut off must not pass for a hole."""
    source, workspace = tmp_path / "source", tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "f").write_text("old")
    with source.open("wb") as file:
        for start in (0, 4):
            file.seek(start * 4096)
            file.write(b"d" * 4096)
        file.truncate(8 * 4096)

    def cut(step: str) -> None:
        if step == {"copy": "pread" if is_nfs else "copy_file_range"}.get(moment, moment):
            os.truncate(source, left)

    with records_in(tmp_path) as records:
        with Kernel(is_nfs=is_nfs, meanwhile=cut).in_place(), pytest.raises(InvalidPath, match="cut short"):
            upload(workspace, (source, "f"))
        assert os.listdir(workspace) == ["f"]
        assert (workspace / "f").read_text() == "old"
        assert records.page("") == []


@pytest.mark.parametrize("moment", ["lseek", "copy_file_range", "fchmod"])
def test_what_is_appended_to_a_source_meanwhile_is_not_copied(tmp_path: Path, moment: str) -> None:
    source, workspace = tmp_path / "source", tmp_path / "workspace"
    workspace.mkdir()
    with source.open("wb") as file:
        file.write(b"d" * 4096)
        file.truncate(3 * 4096)
    before = source.read_bytes()

    def append(step: str) -> None:
        if step == moment:
            with source.open("ab") as file:
                file.write(b"appended")

    with records_in(tmp_path) as records, Kernel(meanwhile=append).in_place():
        upload(workspace, (source, "f"))
        assert (workspace / "f").read_bytes() == before
        assert [file.file_size for file in records.page("")] == [len(before)]
    assert source.stat().st_size > len(before)
