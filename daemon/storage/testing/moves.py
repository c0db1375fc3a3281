"""Moves: the file at its new path, and only there, with its record."""

from __future__ import annotations

import os
import stat

import pytest

from storage.catalog import Catalog
from storage.exceptions import AlreadyExists, InvalidPath, MissingFile
from storage.testing.backend import WORKSPACE, Backend
from storage.testing.claims import differs
from storage.testing.suite import Suite, workspace_directory


class Moves(Suite):
    def test_move_takes_file_and_record_to_the_new_path(self, backend: Backend, records: Catalog) -> None:
        """A move takes the bytes to the new path, and the model's path, name and record with them."""
        file = backend.upload("a.txt", b"hello")
        uuid = file.uuid
        backend.move(file, "new/place/b.txt")
        assert backend.read("new/place/b.txt") == b"hello"
        assert backend.read("a.txt") is None
        assert backend.listed() == {"new/place/b.txt": 5}
        assert (file.file_path, file.file_name, file.file_size) == ("new/place/b.txt", "b.txt", 5)
        assert records.find_path(WORKSPACE, "a.txt") is None
        assert records.find_path(WORKSPACE, "new/place/b.txt") == file
        assert file.uuid == uuid

    def _moves_nothing_else(self, backend: Backend) -> None:
        """There are no directories: a move changes the two names of the file, and nothing else."""
        file = backend.present("old/a", b"hello")
        before = set(backend.stored())
        backend.move(file, "new/a")
        assert set(backend.stored()) ^ before == {"workspace/old/a", "workspace/new/a"}

    @differs(_moves_nothing_else, has_modes=False)
    def test_move_sets_modes_and_leaves_the_old_directory(self, backend: Backend) -> None:
        """What is moved gets mode 0644 and made directories 0755; the directory that it left stays."""
        file = backend.present("old/a", b"hello")
        workspace = workspace_directory(backend)
        os.chmod(workspace / "old/a", 0o600)
        backend.move(file, "new/a")
        modes = [stat.S_IMODE((workspace / path).stat().st_mode) for path in ("new", "new/a")]
        assert modes == [0o755, 0o644]
        assert os.listdir(workspace / "old") == []

    def test_move_of_an_unsaved_model_saves_it(self, backend: Backend, records: Catalog) -> None:
        """A move of a file that the catalog does not know makes its record, at the new path, with its size."""
        file = backend.present("a", b"hello")
        backend.move(file, "b")
        (saved,) = records.page(WORKSPACE)
        assert saved == file
        assert (saved.file_path, saved.file_size) == ("b", 5)

    def test_move_onto_a_file_replaces_it_and_its_record(self, backend: Backend, records: Catalog) -> None:
        """A move onto a file replaces it, and marks the record of what was there as deleted."""
        moved, displaced = backend.upload("a", b"A"), backend.upload("b", b"B")
        backend.move(moved, "b")
        assert backend.read("b") == b"A"
        assert backend.listed() == {"b": 1}
        found = [(file.id, file.is_deleted) for file in records.page(WORKSPACE)]
        assert found == [(moved.id, False), (displaced.id, True)]

    def test_move_without_overwrite_leaves_both(self, backend: Backend, records: Catalog) -> None:
        """With `overwrite` false, a move onto a file is AlreadyExists; both files and records stay."""
        file, _ = backend.upload("a", b"A"), backend.upload("b", b"B")
        backend.broker.overwrite = False
        before = backend.stored()
        with pytest.raises(AlreadyExists, match=r"'[ab]'"):
            backend.move(file, "b")
        assert backend.stored() == before
        assert file.file_path == "a"
        assert [saved.file_path for saved in records.page(WORKSPACE)] == ["a", "b"]
        backend.move(file, "c")
        assert backend.listed() == {"b": 1, "c": 1}

    def test_move_of_a_missing_file_changes_nothing(self, backend: Backend, records: Catalog) -> None:
        """A move of a missing file is MissingFile naming it; no directory is made, and no record."""
        before = backend.stored()
        file = backend.file("gone")
        with pytest.raises(MissingFile, match="gone"):
            backend.move(file, "new/dir/file")
        assert backend.stored() == before
        assert file.file_path == "gone"
        assert records.page(WORKSPACE) == []

    def test_move_of_a_missing_file_onto_another_keeps_that(self, backend: Backend) -> None:
        """A move of a missing file does not touch the file at its destination."""
        backend.put("b", b"B")
        with pytest.raises(MissingFile):
            backend.move(backend.file("gone"), "b")
        assert backend.read("b") == b"B"

    def test_move_of_a_directory_is_missing_file(self, backend: Backend) -> None:
        """A move of what is only the beginning of other paths is MissingFile."""
        backend.put("dir/a")
        with pytest.raises(MissingFile):
            backend.move(backend.file("dir"), "elsewhere")
        assert backend.listed() == {"dir/a": 7}

    @pytest.mark.parametrize("overwrite", [True, False])
    def test_move_onto_itself_changes_nothing(self, backend: Backend, records: Catalog, overwrite: bool) -> None:
        """A move of a file onto its own path leaves it as it is; of a missing one it is MissingFile."""
        file = backend.upload("a", b"A")
        backend.broker.overwrite = overwrite
        before = backend.stored()
        backend.move(file, "a")
        assert backend.stored() == before
        assert records.find_path(WORKSPACE, "a") == file
        with pytest.raises(MissingFile):
            backend.move(backend.file("gone"), "gone")

    def _moves_below_a_file(self, backend: Backend) -> None:
        """There are no directories: a move to below a file, itself included, and to `a` while `a/b` is, work."""
        file = backend.present("a", b"A")
        backend.move(file, "a/b")
        assert backend.listed() == {"a/b": 1}
        backend.put("c/d")
        backend.move(file, "c")
        assert backend.listed() == {"c": 1, "c/d": 7}

    @differs(_moves_below_a_file, has_directories=False)
    def test_move_to_what_is_no_place_is_refused(self, backend: Backend) -> None:
        """A move onto a directory is AlreadyExists, to below a file, itself included, InvalidPath."""
        file = backend.present("a", b"A")
        backend.put("dir/b")
        before = backend.stored()
        with pytest.raises(AlreadyExists):
            backend.move(file, "dir")
        for new_path in ("a/b", "dir/b/c", "dir/b/new/c"):
            with pytest.raises(InvalidPath):
                backend.move(file, new_path)
        assert backend.stored() == before
        assert file.file_path == "a"
