"""Downloads: what is at the local path afterwards, and what never is."""

from __future__ import annotations

import os
import stat

import pytest

from storage.catalog import Catalog
from storage.exceptions import AlreadyExists, InvalidPath, MissingFile, StorageError
from storage.testing.backend import WORKSPACE, Backend
from storage.testing.claims import differs
from storage.testing.suite import Suite, make_special, refusal
from storage.testing.uploads import REFUSED_LOCAL_PATHS


class Downloads(Suite):
    def _is_a_copy(self, backend: Backend, partial: bool) -> None:
        """A download is a copy of its own with mode 0644, whatever the umask."""
        file = backend.present("a/b.txt", b"hello")
        local = backend.local / "out"
        umask = os.umask(0o077)
        try:
            backend.download(file, str(local), partial=partial)
        finally:
            os.umask(umask)
        assert local.read_bytes() == b"hello"
        status = local.lstat()
        assert (stat.S_ISREG(status.st_mode), stat.S_IMODE(status.st_mode)) == (True, 0o644)
        local.write_bytes(b"changed")
        assert backend.read("a/b.txt") == b"hello"

    @pytest.mark.parametrize("partial", [False, True])
    @differs(_is_a_copy, download_is_link=False)
    def test_download_is_a_link_into_the_volume(self, backend: Backend, partial: bool) -> None:
        """A download is a symbolic link to the file in the mounted volume: nothing is copied."""
        file = backend.present("a/b.txt", b"hello")
        local = backend.local / "out"
        backend.download(file, str(local), partial=partial)
        assert os.readlink(local) == f"{backend.volume_path}/a/b.txt"
        assert local.read_bytes() == b"hello"

    def test_download_changes_nothing_but_the_local_path(self, backend: Backend, records: Catalog) -> None:
        """A download leaves the storage and the record as they are, and nothing local but the file itself."""
        file = backend.upload("a", b"hello")
        saved = records.find_path(WORKSPACE, "a")
        before = backend.stored()
        os.unlink(backend.local / "source")
        backend.download(file, str(backend.local / "out"))
        assert backend.stored() == before
        assert os.listdir(backend.local) == ["out"]
        assert records.find_path(WORKSPACE, "a") == saved

    def test_download_of_a_missing_file_leaves_nothing(self, backend: Backend) -> None:
        """A download of a missing file is MissingFile naming it; nothing is made, and what was there stays."""
        with pytest.raises(MissingFile, match="dir/gone"):
            backend.download(backend.file("dir/gone"), str(backend.local / "out"))
        assert os.listdir(backend.local) == []
        old = backend.source(b"old")
        with pytest.raises(MissingFile):
            backend.download(backend.file("gone"), old)
        assert (backend.local / "source").read_bytes() == b"old"
        assert os.listdir(backend.local) == ["source"]

    def test_download_of_a_directory_is_missing_file(self, backend: Backend) -> None:
        """A download of what is only the beginning of other paths is MissingFile."""
        backend.put("dir/a")
        with pytest.raises(MissingFile):
            backend.download(backend.file("dir"), str(backend.local / "out"))
        assert os.listdir(backend.local) == []

    def test_download_into_a_missing_directory_is_refused(self, backend: Backend) -> None:
        """The local directory must exist: none is made."""
        file = backend.present("a")
        with pytest.raises(StorageError):
            backend.download(file, str(backend.local / "no/such/dir/out"))
        assert os.listdir(backend.local) == []

    def test_local_path_of_a_download_is_absolute(self, backend: Backend) -> None:
        """A local path that is relative, holds NUL or ends in no file name is InvalidPath."""
        file = backend.present("a")
        refused = {path: refusal(backend.download, file, path) for path in REFUSED_LOCAL_PATHS}
        assert refused == dict.fromkeys(REFUSED_LOCAL_PATHS, InvalidPath)

    def test_download_replaces_a_file_but_never_what_is_none(self, backend: Backend) -> None:
        """A download replaces a local file; a local directory, FIFO or socket is AlreadyExists and stays."""
        file = backend.present("a", b"new")
        old = backend.source(b"old", "out")
        backend.download(file, old)
        assert (backend.local / "out").read_bytes() == b"new"
        special = make_special(backend.local)
        before = {path: os.lstat(path) for path in special}
        assert {path: refusal(backend.download, file, path) for path in special} == dict.fromkeys(
            special, AlreadyExists
        )
        assert {path: os.lstat(path) for path in special} == before
        assert len(os.listdir(backend.local)) == len(special) + 1

    def test_download_without_overwrite_leaves_what_is_there(self, backend: Backend) -> None:
        """With `overwrite` false, a download onto a file or a link is AlreadyExists; onto nothing it works."""
        file = backend.present("a", b"new")
        old = backend.source(b"old", "out")
        (backend.local / "link").symlink_to("nothing")
        backend.broker.overwrite = False
        for path in (old, str(backend.local / "link")):
            with pytest.raises(AlreadyExists):
                backend.download(file, path)
        assert (backend.local / "out").read_bytes() == b"old"
        assert os.readlink(backend.local / "link") == "nothing"
        backend.download(file, str(backend.local / "new"))
        assert sorted(os.listdir(backend.local)) == ["link", "new", "out"]

    def test_download_replaces_a_link_not_what_it_leads_to(self, backend: Backend) -> None:
        """A download onto a local symbolic link replaces the link; the file that it led to stays."""
        file = backend.present("a", b"new")
        target = backend.source(b"precious", "target")
        (backend.local / "out").symlink_to(target)
        backend.download(file, str(backend.local / "out"))
        assert (backend.local / "out").read_bytes() == b"new"
        assert (backend.local / "target").read_bytes() == b"precious"

    def _twice_is_the_same(self, backend: Backend) -> None:
        """A download onto an earlier download of the same file is the file again."""
        file = backend.present("a", b"precious")
        for _ in range(2):
            backend.download(file, str(backend.local / "out"))
        assert (backend.local / "out").read_bytes() == b"precious"
        assert backend.read("a") == b"precious"

    @differs(_twice_is_the_same, download_is_link=False)
    def test_download_onto_the_file_itself_does_not_lose_it(self, backend: Backend) -> None:
        """A download onto the very file in the volume is AlreadyExists: a link there would replace the data."""
        file = backend.present("a", b"precious")
        with pytest.raises(AlreadyExists):
            backend.download(file, f"{backend.volume_path}/a")
        assert backend.read("a") == b"precious"

    def _has_no_paths(self, backend: Backend) -> None:
        """`get_file_system_paths` is None: the files have no local paths."""
        assert backend.broker.get_file_system_paths(backend.volume_path, [backend.present("a")]) is None

    @differs(_has_no_paths, has_file_system_paths=False)
    def test_file_system_paths_are_below_the_volume_path(self, backend: Backend) -> None:
        """`get_file_system_paths` gives each file's path below `volume_path`, whether it is there or not."""
        files = [backend.file("a/b"), backend.file("c")]
        assert backend.broker.get_file_system_paths("/data", files) == ["/data/a/b", "/data/c"]
        assert backend.broker.get_file_system_paths("/data", []) == []
