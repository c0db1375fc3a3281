"""Uploads: the bytes, their durability under the final name, and the record."""

from __future__ import annotations

import os
import stat

import pytest

from storage.brokers.broker import FileUpload
from storage.catalog import Catalog
from storage.exceptions import AlreadyExists, InvalidPath, MissingFile, StorageError
from storage.testing.backend import WORKSPACE, Backend
from storage.testing.claims import differs
from storage.testing.suite import Suite, make_special, path_of, refusal, workspace_directory

SIZES = (0, 1, 4095, 4097, (8 << 20) - 1, (8 << 20) + 1, 17 << 20)
REFUSED_LOCAL_PATHS = ("", "relative", "./relative", "/", "/tmp/", "/tmp/.", "/tmp/..", "/tmp/a\0b")  # noqa: S108


class Uploads(Suite):
    def test_upload_stores_the_bytes_and_saves_the_record(self, backend: Backend, records: Catalog) -> None:
        """An upload stores the bytes and saves the model, with id, uuid, size, name and times with zone."""
        file = backend.upload("a/b/c.txt", b"hello", media_type="text/plain")
        assert backend.read("a/b/c.txt") == b"hello"
        assert (file.file_size, file.file_name, file.media_type) == (5, "c.txt", "text/plain")
        saved = records.find_path(WORKSPACE, "a/b/c.txt")
        assert saved == file
        assert saved.id is not None
        assert records.find_uuid(WORKSPACE, file.uuid) == file
        assert (saved.is_deleted, saved.deleted) == (False, None)
        for time in (saved.created, saved.last_modified):
            assert time.tzinfo is not None

    def _stores_one_thing(self, backend: Backend) -> None:
        """There are no directories and no modes: an upload adds its file to the storage, and nothing else."""
        before = backend.stored()
        backend.upload("a/b/c.txt")
        assert set(backend.stored()) - set(before) == {"workspace/a/b/c.txt"}

    @differs(_stores_one_thing, has_modes=False)
    def test_upload_sets_modes(self, backend: Backend) -> None:
        """Files get mode 0644 and made directories 0755, whatever the umask; a set-group-ID is passed on."""
        workspace = workspace_directory(backend)
        umask = os.umask(0o077)
        try:
            backend.upload("a/b/c.txt")
        finally:
            os.umask(umask)
        assert [_mode(workspace / path) for path in ("a", "a/b", "a/b/c.txt")] == [0o755, 0o755, 0o644]
        os.chmod(workspace, 0o2755)  # noqa: S103
        backend.upload("new/f")
        assert _mode(workspace / "new") == 0o2755

    def _keeps_media_type(self, backend: Backend, records: Catalog) -> None:
        """The media type of an upload is kept in its record and by the storage, also when the file is moved."""
        file = backend.upload("a.tif", media_type="image/tiff")
        assert backend.media_type("a.tif") == "image/tiff"
        backend.move(file, "b.tif")
        assert backend.media_type("b.tif") == "image/tiff"
        assert [saved.media_type for saved in records.page(WORKSPACE)] == ["image/tiff"]

    @differs(_keeps_media_type, keeps_media_type=True)
    def test_media_type_is_kept(self, backend: Backend, records: Catalog) -> None:
        """The media type of an upload is kept in its record, also when the file is moved."""
        file = backend.upload("a.tif", media_type="image/tiff")
        backend.move(file, "b.tif")
        (saved,) = records.page(WORKSPACE)
        assert (saved.file_path, saved.media_type) == ("b.tif", "image/tiff")

    def test_upload_replaces_a_file_whole_and_keeps_its_record(self, backend: Backend, records: Catalog) -> None:
        """An upload onto a file replaces it whole; the path keeps its record, id and uuid included."""
        first = backend.upload("a", b"long content")
        second = backend.upload("a", b"new")
        assert backend.read("a") == b"new"
        assert (second.id, second.uuid) == (first.id, first.uuid)
        assert [file.file_size for file in records.page(WORKSPACE)] == [3]

    def test_upload_of_a_deleted_model_makes_it_live(self, backend: Backend, records: Catalog) -> None:
        """An upload of a model that was deleted makes its record live again."""
        file = backend.upload("a", b"1")
        backend.delete(file)
        backend.broker.upload_files(backend.volume_path, [FileUpload(file, backend.source(b"22"))])
        assert (file.is_deleted, file.deleted) == (False, None)
        assert records.find_path(WORKSPACE, "a") == file

    def test_upload_without_overwrite_leaves_what_is_there(self, backend: Backend, records: Catalog) -> None:
        """With `overwrite` false, an upload onto a file is AlreadyExists and changes nothing; else it works."""
        backend.put("a", b"old")
        backend.broker.overwrite = False
        before = backend.stored()
        with pytest.raises(AlreadyExists, match="'a'"):
            backend.upload("a", b"new")
        assert backend.stored() == before
        assert records.page(WORKSPACE) == []
        backend.upload("b", b"new")
        assert backend.read("b") == b"new"

    def _stores_beside(self, backend: Backend) -> None:
        """There are no directories: a file can be stored at `a` while `a/b` is, and the other way round."""
        backend.put("a/b", b"1")
        backend.upload("a", b"22")
        backend.upload("a/b/c", b"333")
        assert backend.listed() == {"a": 2, "a/b": 1, "a/b/c": 3}

    @differs(_stores_beside, has_directories=False)
    def test_upload_onto_or_below_what_is_no_place_is_refused(self, backend: Backend) -> None:
        """An upload onto a directory is AlreadyExists, one below a file is InvalidPath; nothing is changed."""
        backend.put("a/b")
        before = backend.stored()
        with pytest.raises(AlreadyExists):
            backend.upload("a")
        with pytest.raises(InvalidPath):
            backend.upload("a/b/c")
        with pytest.raises(InvalidPath):
            backend.upload("a/b/new/c")
        assert backend.stored() == before

    def test_upload_of_a_missing_local_file_changes_nothing(self, backend: Backend, records: Catalog) -> None:
        """An upload of a missing local file is MissingFile naming it; no directory, file or record is made."""
        before = backend.stored()
        with pytest.raises(MissingFile, match="nowhere"):
            backend.upload_from("new/dir/file", str(backend.local / "nowhere"))
        assert backend.stored() == before
        assert records.page(WORKSPACE) == []

    def test_upload_takes_only_regular_files(self, backend: Backend) -> None:
        """Directories, FIFOs, sockets, devices and the kernel's pseudo-files are InvalidPath, and never block."""
        special = [*make_special(backend.local), "/dev/zero", "/proc/self/environ"]
        before = backend.stored()
        refused = {path: refusal(backend.upload_from, "x", path) for path in special}
        assert refused == dict.fromkeys(special, InvalidPath)
        assert backend.stored() == before

    def test_local_path_of_an_upload_is_absolute(self, backend: Backend) -> None:
        """A local path that is relative, holds NUL or ends in no file name is InvalidPath."""
        before = backend.stored()
        refused = {path: refusal(backend.upload_from, "x", path) for path in REFUSED_LOCAL_PATHS}
        assert refused == dict.fromkeys(REFUSED_LOCAL_PATHS, InvalidPath)
        assert backend.stored() == before

    @pytest.mark.parametrize("size", SIZES)
    def test_any_size_arrives_as_it_is(self, backend: Backend, size: int) -> None:
        """Empty files, odd sizes and those around a part of a multipart upload arrive whole, there and back."""
        content = os.urandom(size)
        file = backend.upload("f", content)
        assert backend.read("f") == content
        assert file.file_size == size
        backend.download(file, str(backend.local / "out"))
        assert (backend.local / "out").read_bytes() == content

    def _large_file_arrives(self, backend: Backend) -> None:
        """The storage knows no holes: they arrive as zeros. Above 5 GiB only with BROKERVOL_TEST_LARGE=1."""
        _upload_sparse(backend)
        _upload_ending_in_a_hole(backend)

    @differs(_large_file_arrives, keeps_holes=False)
    def test_sparse_file_above_5_gib_stays_sparse(self, backend: Backend) -> None:
        """A sparse file above 5 GiB arrives whole, and its holes stay holes."""
        _upload_sparse(backend)
        stored = (workspace_directory(backend) / "sparse").stat()
        assert stored.st_blocks * 512 < 1 << 20
        _upload_ending_in_a_hole(backend)

    def test_longest_path_works_and_a_longer_one_is_refused(self, backend: Backend) -> None:
        """The longest path that can be stored, hundreds of directories deep, works; a longer is InvalidPath."""
        longest = backend.traits.largest_path_bytes
        before = backend.stored()
        with pytest.raises(InvalidPath, match="too long"):
            backend.upload(path_of(longest + 1, "deeper"))
        assert backend.stored() == before
        path = path_of(longest, "deeper")
        try:
            file = backend.upload(path, b"deep")
            assert backend.read(path) == b"deep"
            assert backend.listed() == {path: 4}
            backend.move(file, "shallow")
            backend.move(file, path)
            assert backend.read(path) == b"deep"
        finally:
            backend.remove(path)

    def test_failed_upload_and_move_remove_the_directories_that_they_made(self, backend: Backend) -> None:
        """An upload or a move that fails after a thousand directories were made for it leaves none of them."""
        deep = path_of(min(backend.traits.largest_path_bytes, 2000))
        before = backend.stored()
        with pytest.raises(StorageError):
            backend.upload_from(deep, str(backend.local / "nowhere"))
        with pytest.raises(MissingFile):
            backend.move(backend.file("gone"), deep)
        assert backend.stored() == before


def _mode(path: os.PathLike[str]) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def _upload_sparse(backend: Backend) -> None:
    size, source = backend.large_file_bytes, backend.local / "sparse"
    with source.open("wb") as file:
        file.write(b"start")
        file.seek(size - 3)
        file.write(b"end")
    try:
        backend.upload_from("sparse", str(source))
        assert backend.size("sparse") == size
        assert backend.tail("sparse", 4) == b"\0end"
        backend.download(backend.file("sparse"), str(backend.local / "out"))
        with (backend.local / "out").open("rb") as file:
            assert file.read(6) == b"start\0"
            file.seek(size - 4)
            assert file.read() == b"\0end"
    finally:  # several GiB where holes are not kept
        source.unlink()
        (backend.local / "out").unlink(missing_ok=True)
        if not backend.traits.keeps_holes:
            backend.remove("sparse")


def _upload_ending_in_a_hole(backend: Backend) -> None:
    for path, start in (("hole", b""), ("ends-in-hole", b"start")):
        source = backend.source(start, path)
        os.truncate(source, 1 << 20)
        backend.upload_from(path, source)
        assert backend.read(path) == start.ljust(1 << 20, b"\0"), path
