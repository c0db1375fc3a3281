"""Names: which paths are files of a workspace, exactly as they are written, and which never are."""

from __future__ import annotations

import io

import pytest

from storage.brokers.broker import FileUpload
from storage.catalog import Catalog
from storage.exceptions import InvalidPath, StorageError
from storage.testing.backend import WORKSPACE, Backend
from storage.testing.hostile import ALIKE_NAMES, REFUSED_PATHS, WEIRD_NAMES
from storage.testing.suite import Suite, refusal

OPERATIONS = ("download", "upload", "read", "write", "move from", "move to", "delete", "paths")


def attempt(backend: Backend, operation: str, path: str) -> None:
    """One operation with a path that a stranger chose, on a workspace that holds `victim`."""
    file = backend.file(path)
    match operation:
        case "download":
            backend.download(file, str(backend.local / "out"))
        case "upload":
            backend.broker.upload_files(
                backend.volume_path, [FileUpload(file, backend.source(b"evil", name="evil"))]
            )
        case "read":
            backend.broker.open_file(backend.volume_path, file).close()
        case "write":
            backend.broker.write_file(backend.volume_path, file, io.BytesIO(b"evil"))
        case "move from":
            backend.move(file, "moved")
        case "move to":
            backend.move(backend.file("victim"), path)
        case "delete":
            backend.delete(file)
        case "paths":
            backend.broker.get_file_system_paths(backend.volume_path, [file])


class Names(Suite):
    @pytest.mark.parametrize("name", WEIRD_NAMES)
    def test_weird_names_work_exactly(self, backend: Backend, records: Catalog, name: str) -> None:
        """Spaces, quotes, control characters, shell and URL syntax, 255 bytes and any script work as they are."""
        if name in backend.traits.unstorable_names:
            _is_kept_or_refused(backend, name)
            return
        file = backend.upload(name, b"x")
        backend.download(file, str(backend.local / "out"))
        assert (backend.local / "out").read_bytes() == b"x"
        assert backend.read(name) == b"x"
        assert backend.listed() == {name: 1}
        backend.move(file, "plain")
        backend.move(file, name)
        assert records.find_path(WORKSPACE, name) == file
        assert backend.read(name) == b"x"
        backend.delete(file)
        assert backend.listed() == {}

    def test_names_that_look_alike_are_different_files(self, backend: Backend) -> None:
        """Composed and decomposed letters, cases, `+`, `%20` and spaces, final dots: each is a name of its own."""
        for name in ALIKE_NAMES:
            backend.upload(name, name.encode())
        assert {name: backend.read(name) for name in ALIKE_NAMES} == {name: name.encode() for name in ALIKE_NAMES}
        assert sorted(backend.listed()) == sorted(ALIKE_NAMES)

    def test_refused_paths_change_nothing(self, backend: Backend, records: Catalog) -> None:
        """Paths that are empty, absolute, not canonical, not UTF-8, too long or hold NUL are InvalidPath."""
        backend.put("victim")
        backend.source(b"evil", name="evil")
        before = backend.everything()
        for operation in OPERATIONS:
            if operation != "paths" or backend.traits.has_file_system_paths:
                refused = {path: refusal(attempt, backend, operation, path) for path in REFUSED_PATHS}
                assert refused == dict.fromkeys(REFUSED_PATHS, InvalidPath), operation
        assert backend.everything() == before
        assert records.page(WORKSPACE) == []

    def test_errors_are_one_printable_line(self, backend: Backend) -> None:
        """The text of an error is one line without control characters, and not endless, whatever the path."""
        for path in ("gone\n\x1b[31m", "\ud800", "x" * 300, "a" * 4000):
            with pytest.raises(StorageError) as caught:
                attempt(backend, "download", path)
            assert str(caught.value).isprintable(), ascii(str(caught.value))
            assert len(str(caught.value)) < 1000


def _is_kept_or_refused(backend: Backend, name: str) -> None:
    """What a broker can do where the server cannot keep a name: say so, or find what was stored by it again."""
    before = backend.stored()
    if refusal(backend.upload, name, b"x") is None:
        backend.download(backend.file(name), str(backend.local / "out"))
        assert (backend.local / "out").read_bytes() == b"x"
    else:
        assert backend.stored() == before
