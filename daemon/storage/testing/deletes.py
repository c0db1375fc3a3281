"""Deletes: the file, only the file, and its record."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from storage.catalog import Catalog
from storage.exceptions import InvalidPath
from storage.testing.backend import WORKSPACE, Backend
from storage.testing.claims import differs
from storage.testing.suite import Suite, workspace_directory


class Deletes(Suite):
    def test_delete_removes_the_file_and_marks_its_record(self, backend: Backend, records: Catalog) -> None:
        """A delete removes the file; its record stays, with `is_deleted`, and `deleted` now with zone."""
        file = backend.upload("dir/a")
        backend.delete(file)
        assert backend.read("dir/a") is None
        (saved,) = records.page(WORKSPACE)
        assert saved == file
        assert saved.is_deleted
        assert saved.deleted is not None
        assert saved.deleted.tzinfo is not None
        assert abs((datetime.now(UTC) - saved.deleted).total_seconds()) < 60
        assert records.find_path(WORKSPACE, "dir/a") is None

    def test_delete_of_an_unsaved_model_records_what_was_deleted(self, backend: Backend, records: Catalog) -> None:
        """A delete of a file that the catalog does not know records that it was, with its size."""
        file = backend.present("a", b"hello")
        backend.delete(file)
        (saved,) = records.page(WORKSPACE)
        assert (saved.file_path, saved.file_size, saved.is_deleted) == ("a", 5, True)

    def _leaves_neighbours(self, backend: Backend) -> None:
        """There are no directories: only the very path is deleted, none that begins with it."""
        for path in ("dir/a", "dir/a/b", "dir/ab", "dir"):
            backend.put(path)
        backend.delete(backend.file("dir/a"))
        assert sorted(backend.listed()) == ["dir", "dir/a/b", "dir/ab"]

    @differs(_leaves_neighbours, has_directories=False)
    def test_delete_leaves_the_directory(self, backend: Backend) -> None:
        """A delete leaves the directory of the file, empty or not."""
        backend.delete(backend.present("dir/a"))
        assert os.listdir(workspace_directory(backend)) == ["dir"]
        assert os.listdir(workspace_directory(backend) / "dir") == []

    def _deletes_nothing(self, backend: Backend, records: Catalog) -> None:
        """There are no directories: a delete of one is that of a file already gone, and deletes nothing."""
        backend.put("dir/a")
        before = backend.stored()
        backend.delete(backend.file("dir"))
        assert backend.stored() == before
        assert records.page(WORKSPACE) == []

    @differs(_deletes_nothing, has_directories=False)
    def test_delete_of_a_directory_is_refused(self, backend: Backend, records: Catalog) -> None:
        """A delete of a directory, empty or not, is InvalidPath and deletes nothing."""
        backend.put("dir/a")
        (workspace_directory(backend) / "empty").mkdir()
        before = backend.stored()
        for path in ("dir", "empty"):
            with pytest.raises(InvalidPath, match="directory"):
                backend.delete(backend.file(path))
        assert backend.stored() == before
        assert records.page(WORKSPACE) == []

    def test_delete_of_a_file_already_gone_is_no_error(self, backend: Backend, records: Catalog) -> None:
        """A delete of a file already gone marks its record; an unsaved model of a file never there is left."""
        file = backend.upload("a")
        backend.remove("a")
        backend.delete(file)
        assert file.is_deleted
        for path in ("never", "never/was", "a/b"):
            backend.delete(backend.file(path))
        assert [(saved.file_path, saved.is_deleted) for saved in records.page(WORKSPACE)] == [("a", True)]

    def test_delete_without_update_model_leaves_the_record(self, backend: Backend, records: Catalog) -> None:
        """With `update_model` false, a delete removes the file and leaves model and record as they are."""
        file = backend.upload("a")
        backend.delete(file, update_model=False)
        assert backend.read("a") is None
        assert (file.is_deleted, file.deleted) == (False, None)
        assert [saved.is_deleted for saved in records.page(WORKSPACE)] == [False]
