"""Batches: several files in one call, and what holds when one of them fails."""

from __future__ import annotations

import os

import pytest

from storage.brokers.broker import FileDownload, FileMove, FileUpload
from storage.catalog import Catalog
from storage.exceptions import InvalidPath, MissingFile
from storage.testing.backend import WORKSPACE, Backend
from storage.testing.claims import differs
from storage.testing.suite import Suite

# More than a broker works on at a time, and a failure late among them.
MANY = 72
FAILING = 66
FAILURES = [
    *((verb, "missing") for verb in ("download", "upload", "move")),
    *((verb, "refused") for verb in ("download", "upload", "move", "delete")),
]


class Batches(Suite):
    def test_batch_does_all(self, backend: Backend, records: Catalog) -> None:
        """Many files in a call are uploaded, downloaded, moved and deleted, each with its content and record."""
        files = [backend.file(f"in/{number}") for number in range(MANY)]
        uploads = [
            FileUpload(file, backend.source(file.file_path.encode(), f"{n}")) for n, file in enumerate(files)
        ]
        backend.broker.upload_files(backend.volume_path, uploads)
        assert [backend.read(f"in/{number}") for number in range(MANY)] == [
            f"in/{number}".encode() for number in range(MANY)
        ]
        assert len(records.page(WORKSPACE, is_deleted=False)) == len({file.id for file in files}) == MANY
        outs = [backend.local / f"out-{number}" for number in range(MANY)]
        downloads = [FileDownload(file, str(out), False) for file, out in zip(files, outs, strict=True)]
        backend.broker.download_files(backend.volume_path, downloads)
        assert [out.read_bytes() for out in outs] == [file.file_path.encode() for file in files]
        moves = [FileMove(file, f"moved/{number}") for number, file in enumerate(files)]
        backend.broker.move_files(backend.volume_path, moves)
        assert set(backend.listed()) == {file.file_path for file in files}
        assert {file.file_path for file in records.page(WORKSPACE)} == {f"moved/{n}" for n in range(MANY)}
        backend.broker.delete_files(backend.volume_path, files)
        assert backend.listed() == {}
        assert all(file.is_deleted for file in records.page(WORKSPACE))

    def test_empty_batch_does_nothing(self, backend: Backend) -> None:
        """No files at all are no error."""
        before = backend.stored()
        backend.broker.upload_files(backend.volume_path, [])
        backend.broker.download_files(backend.volume_path, [])
        backend.broker.move_files(backend.volume_path, [])
        backend.broker.delete_files(backend.volume_path, [])
        assert backend.stored() == before

    def _done_or_not(self, backend: Backend, records: Catalog, verb: str, defect: str) -> None:
        """The first failure is raised; what was done, before it or after, is saved, and the rest is as it was."""
        done = _Batch(backend, records, verb).failed_by(defect)
        assert all(done[:FAILING])
        assert not done[FAILING]

    @pytest.mark.parametrize(("verb", "defect"), FAILURES)
    @differs(_done_or_not, is_sequential=False)
    def test_first_failure_stops_and_what_was_done_is_saved(
        self, backend: Backend, records: Catalog, verb: str, defect: str
    ) -> None:
        """The first failure is raised; items before it are done and saved, it and those after are as they were."""
        done = _Batch(backend, records, verb).failed_by(defect)
        assert done == [True] * FAILING + [False] * (MANY - FAILING)

    def test_later_upload_of_a_path_wins(self, backend: Backend, records: Catalog) -> None:
        """Of two uploads to one path in one batch the later one wins, and the path has one record."""
        contents = [f"{number}".encode() * (number + 1) for number in range(5)]
        uploads = [
            FileUpload(backend.file("same"), backend.source(content, f"s{number}"))
            for number, content in enumerate(contents)
        ]
        backend.broker.upload_files(backend.volume_path, uploads)
        assert backend.read("same") == contents[-1]
        (saved,) = records.page(WORKSPACE, is_deleted=False)
        assert saved.file_size == len(contents[-1])

    def test_moves_of_a_batch_build_on_each_other(self, backend: Backend, records: Catalog) -> None:
        """Moves that build on each other are done in order: two files change places by way of a third path."""
        one, other = backend.upload("a", b"one"), backend.upload("b", b"other")
        moves = [FileMove(one, "c"), FileMove(other, "a"), FileMove(one, "b")]
        backend.broker.move_files(backend.volume_path, moves)
        assert (backend.read("a"), backend.read("b"), backend.read("c")) == (b"other", b"one", None)
        live = {file.file_path: file.uuid for file in records.page(WORKSPACE, is_deleted=False)}
        assert live == {"a": other.uuid, "b": one.uuid}

    def test_two_files_moved_to_one_path_leave_the_later(self, backend: Backend, records: Catalog) -> None:
        """Of two files moved to one path in one batch the later one stays, and the path has one live record."""
        one, other = backend.upload("a", b"one"), backend.upload("b", b"other")
        backend.broker.move_files(backend.volume_path, [FileMove(one, "c"), FileMove(other, "c")])
        assert backend.read("c") == b"other"
        assert backend.listed() == {"c": 5}
        (live,) = records.page(WORKSPACE, is_deleted=False)
        assert (live.file_path, live.uuid) == ("c", other.uuid)

    def _need_no_directories(self, backend: Backend, records: Catalog) -> None:
        """There are no directories: a batch stores files at `a` and below it, and loses none."""
        paths = [f"{number}{below}" for number in range(10) for below in ("", "/b", "/c/d")]
        source = backend.source(b"1")
        uploads = [FileUpload(backend.file(path), source) for path in paths]
        backend.broker.upload_files(backend.volume_path, uploads)
        assert backend.listed() == dict.fromkeys(paths, 1)
        assert len(records.page(WORKSPACE)) == len(paths)

    @differs(_need_no_directories, has_directories=False)
    def test_file_of_a_batch_is_in_the_way_of_a_later_one_below_it(
        self, backend: Backend, records: Catalog
    ) -> None:
        """Of uploads or moves to `a` and then to `a/b` in one batch the first is done, the second InvalidPath."""
        source = backend.source(b"1")
        uploads = [FileUpload(backend.file(path), source) for path in ("a", "a/b")]
        with pytest.raises(InvalidPath, match="a/b"):
            backend.broker.upload_files(backend.volume_path, uploads)
        assert backend.listed() == {"a": 1}
        moves = [FileMove(backend.present("x"), "b"), FileMove(backend.present("y"), "b/c")]
        with pytest.raises(InvalidPath):
            backend.broker.move_files(backend.volume_path, moves)
        assert set(backend.listed()) == {"a", "b", "y"}
        assert [file.file_path for file in records.page(WORKSPACE)] == ["a", "b"]

    def _uploads_one_source_often(self, backend: Backend) -> None:
        """One local file may be uploaded to several paths in one batch."""
        source = backend.source(b"new")
        uploads = [FileUpload(backend.file(path), source) for path in ("a", "b", "c/d", "a")]
        backend.broker.upload_files(backend.volume_path, uploads)
        assert backend.listed() == {"a": 3, "b": 3, "c/d": 3}

    @differs(_uploads_one_source_often, has_volume=False)
    def test_upload_from_the_volume_finds_what_the_batch_has_stored(self, backend: Backend) -> None:
        """An upload whose local path is in the volume finds what an earlier upload of its batch put there."""
        backend.put("a", b"old")
        uploads = [
            FileUpload(backend.file("a"), backend.source(b"newer")),
            FileUpload(backend.file("b"), f"{backend.volume_path}/a"),
            FileUpload(backend.file("c"), f"{backend.volume_path}/b"),
        ]
        backend.broker.upload_files(backend.volume_path, uploads)
        assert backend.listed() == {"a": 5, "b": 5, "c": 5}

    def test_file_deleted_twice_in_a_batch_is_deleted(self, backend: Backend, records: Catalog) -> None:
        """A file that a batch deletes twice is deleted, and that is no error."""
        file = backend.upload("a")
        backend.broker.delete_files(backend.volume_path, [file, file, backend.file("a")])
        assert backend.read("a") is None
        assert [saved.is_deleted for saved in records.page(WORKSPACE)] == [True]


class _Batch:
    """Many files for one call, of which one has a defect."""

    def __init__(self, backend: Backend, records: Catalog, verb: str) -> None:
        self.backend, self.records, self.verb = backend, records, verb
        self.paths = [f"f{number:02}" for number in range(MANY)]
        self.files = [backend.file(path) for path in self.paths]
        self.locals = [backend.local / path for path in self.paths]
        self.new_paths = [f"new/{path}" for path in self.paths]
        if verb == "upload":
            for local in self.locals:
                local.write_bytes(b"1")
        else:
            backend.put_many(self.paths)

    def failed_by(self, defect: str) -> list[bool]:
        """Run it with the defect, and tell of each item whether it is done; half done is an error."""
        if defect == "refused" and self.verb == "move":
            self.new_paths[FAILING] = "../secret"
        elif defect == "refused":
            self.files[FAILING].file_path = "../secret"
        elif self.verb == "upload":
            self.locals[FAILING].unlink()
        else:
            self.backend.remove(self.paths[FAILING])
        with pytest.raises(InvalidPath if defect == "refused" else MissingFile):
            self._run()
        assert not [file for file in self.records.page(WORKSPACE) if file.file_path == "../secret"]
        return [self._is_done(number) for number in range(MANY)]

    def _run(self) -> None:
        broker, volume_path = self.backend.broker, self.backend.volume_path
        match self.verb:
            case "download":
                pairs = zip(self.files, self.locals, strict=True)
                broker.download_files(volume_path, [FileDownload(file, str(to), False) for file, to in pairs])
            case "upload":
                pairs = zip(self.files, self.locals, strict=True)
                broker.upload_files(volume_path, [FileUpload(file, str(source)) for file, source in pairs])
            case "move":
                moves = zip(self.files, self.new_paths, strict=True)
                broker.move_files(volume_path, [FileMove(file, to) for file, to in moves])
            case "delete":
                broker.delete_files(volume_path, self.files)

    def _is_done(self, number: int) -> bool:
        """Whether an item is done, and is so in storage, model and catalog alike."""
        path, file = self.paths[number], self.files[number]
        if self.verb == "download":
            return os.path.lexists(self.locals[number])
        is_saved = file.id is not None
        if number == FAILING:
            return is_saved
        place = self.new_paths[number] if self.verb == "move" else path
        is_there = self.backend.read(place) is not None
        is_done = is_there != (self.verb == "delete")
        assert is_saved == is_done, path
        assert file.is_deleted == (is_done and self.verb == "delete")
        if self.verb == "move":
            assert file.file_path == (place if is_done else path)
            assert (self.backend.read(path) is None) == is_done
        return is_done
