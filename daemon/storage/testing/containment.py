"""Containment: no path leads out of the workspace, whatever is planted inside it, and however it changes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.catalog import Catalog
from storage.exceptions import AlreadyExists, InvalidPath, MissingFile, StorageError
from storage.testing.backend import WORKSPACE, Backend
from storage.testing.claims import differs
from storage.testing.hostile import ESCAPING_LINKS, exchange
from storage.testing.names import OPERATIONS, attempt
from storage.testing.suite import Suite, make_special, refusal, workspace_directory

CHANGES = tuple(operation for operation in OPERATIONS if operation != "paths")


class Containment(Suite):
    def test_neighbours_of_the_workspace_are_not_seen(self, backend: Backend) -> None:
        """What lies beside the workspace, also where its name begins the same, is neither listed nor reached."""
        backend.put("a")
        assert _beside(backend), "a backend has something beside its workspace"
        assert backend.listed() == {"a": 7}
        for path in ("secret", "-2/secret", "workspace-2/secret"):
            with pytest.raises(MissingFile):
                attempt(backend, "download", path)

    def _content_is_no_link(self, backend: Backend, operation: str) -> None:
        """There are no links: what a file holds, even if it reads as a path, leads nowhere."""
        for link, target in ESCAPING_LINKS:
            backend.put(link, target.encode())
        backend.put("victim")
        beside = _beside(backend)
        for link, _ in ESCAPING_LINKS:
            backend.put("victim")
            expected = MissingFile if operation in ("download", "read", "move from") else None
            assert refusal(attempt, backend, operation, f"{link}/secret") is expected
        assert _beside(backend) == beside
        assert {link: backend.read(link) for link, _ in ESCAPING_LINKS} == {
            link: target.encode() for link, target in ESCAPING_LINKS
        }

    @pytest.mark.parametrize("operation", CHANGES)
    @differs(_content_is_no_link, has_links=False)
    def test_links_in_the_workspace_lead_nowhere(self, backend: Backend, operation: str) -> None:
        """A path through a symbolic link that leaves the workspace is InvalidPath, and changes nothing."""
        backend.put("victim")
        backend.source(b"evil", name="evil")
        for link, target in ESCAPING_LINKS:
            (workspace_directory(backend) / link).symlink_to(target.format(outside=backend.directory))
        before = backend.everything()
        ends = ("secret", "passwd", "new/file")
        paths = [f"{link}/{end}" for link, _ in ESCAPING_LINKS for end in ends]
        refused = {path: refusal(attempt, backend, operation, path) for path in paths}
        assert refused == dict.fromkeys(paths, InvalidPath)
        assert backend.everything() == before
        assert set(backend.listed()) == {"victim"}

    def _names_are_all(self, backend: Backend, records: Catalog) -> None:
        """There are no links or special files: a file is its name, and is replaced or deleted by that alone."""
        for path in ("a", "a/b", "ab"):
            backend.put(path, path.encode())
        backend.upload("a", b"new")
        backend.delete(backend.file("ab"))
        assert (backend.read("a"), backend.read("a/b"), backend.read("ab")) == (b"new", b"a/b", None)
        assert [file.file_path for file in records.page(WORKSPACE)] == ["a", "ab"]

    @differs(_names_are_all, has_links=False)
    def test_a_link_is_changed_itself_not_what_it_leads_to(self, backend: Backend, records: Catalog) -> None:
        """A link is deleted or replaced itself, never moved; one that stays inside may be read through."""
        workspace = workspace_directory(backend)
        backend.put("target", b"precious")
        for link in ("read", "moved", "deleted", "replaced"):
            (workspace / link).symlink_to("target")
        (workspace / "outside").symlink_to(backend.directory / "secret")
        backend.download(backend.file("read"), str(backend.local / "out"))
        assert (backend.local / "out").read_bytes() == b"precious"
        with pytest.raises(MissingFile):
            backend.move(backend.file("moved"), "elsewhere")
        for link in ("deleted", "outside"):
            backend.delete(backend.file(link))
        backend.upload("replaced", b"new")
        assert sorted(os.listdir(workspace)) == ["moved", "read", "replaced", "target"]
        assert not (workspace / "replaced").is_symlink()
        assert (backend.read("target"), backend.read("replaced")) == (b"precious", b"new")
        assert (backend.directory / "secret").read_bytes() == b"secret"
        assert "moved" not in [file.file_path for file in records.page(WORKSPACE)]

    @differs(_names_are_all, has_links=False)
    def test_special_files_are_no_files_and_never_block(self, backend: Backend, records: Catalog) -> None:
        """A FIFO or socket is not listed, MissingFile to who wants it, AlreadyExists to what would replace it."""
        for path in make_special(workspace_directory(backend))[1:]:
            name = os.path.basename(path)
            before = os.lstat(path)
            for operation in ("download", "read", "move from"):
                with pytest.raises(MissingFile, match="regular"):
                    attempt(backend, operation, name)
            backend.put("victim")
            for operation in ("upload", "write", "move to"):
                with pytest.raises(AlreadyExists, match=name):
                    attempt(backend, operation, name)
            assert backend.listed() == {"victim": 7}
            assert records.find_path(WORKSPACE, name) is None
            assert os.lstat(path) == before

    def _all_names_are_text(self, backend: Backend) -> None:
        """Every listed name is a path that the operations accept."""
        backend.put_unlisted()
        backend.put("named")
        for path in backend.listed():
            backend.download(backend.file(path), str(backend.local / "out"))

    @differs(_all_names_are_text, has_links=False)
    def test_name_that_is_not_utf_8_is_listed_only(self, backend: Backend) -> None:
        """A name that is not UTF-8 is listed, with lone surrogates, and is no workspace path: InvalidPath."""
        os.close(os.open(os.fsencode(workspace_directory(backend)) + b"/not-utf8-\xff", os.O_CREAT | os.O_WRONLY))
        assert backend.listed() == {"not-utf8-\udcff": 0}
        before = backend.stored()
        for operation in CHANGES:
            with pytest.raises(InvalidPath, match="UTF-8"):
                attempt(backend, operation, "not-utf8-\udcff")
        assert backend.stored() == before

    def _no_race_to_win(self, backend: Backend, operation: str) -> None:
        """There are no links to swap: whatever comes and goes around a file, nothing else is touched."""
        before = _beside(backend)
        for _ in range(5):
            for path in ("victim", "dir", "dir/file", "dir/file/below"):
                backend.put(path, b"../secret")
            attempt(backend, operation, "dir/file")
        assert _beside(backend) == before

    @pytest.mark.parametrize("operation", CHANGES)
    @differs(_no_race_to_win, has_links=False)
    def test_a_directory_swapped_for_a_link_during_operations_leads_nowhere(
        self, backend: Backend, operation: str
    ) -> None:
        """While a directory is swapped again and again for a link that leads outside, nothing there is touched."""
        outside = backend.directory / "elsewhere"
        outside.mkdir()
        (outside / "file").write_bytes(b"sentinel")
        workspace = workspace_directory(backend)
        (workspace / "dir").mkdir()
        (workspace / "link").symlink_to(outside)
        with _swapping(workspace / "dir", workspace / "link") as swaps:
            tries = 0
            while tries < 300 or swaps[0] <= 100:  # on a busy machine the other thread may be slow
                tries += 1
                with contextlib.suppress(StorageError):
                    backend.put("victim") if operation == "move to" else None
                    if operation in ("download", "read", "move from", "delete"):
                        backend.upload("dir/file", b"inside")
                    attempt(backend, operation, "dir/file")
        assert (outside / "file").read_bytes() == b"sentinel"
        assert os.listdir(outside) == ["file"]


def _beside(backend: Backend) -> dict[str, object]:
    return {path: found for path, found in backend.stored().items() if not path.startswith("workspace/")}


@contextlib.contextmanager
def _swapping(one: Path, other: Path) -> Iterator[list[int]]:
    """While open, a thread exchanges two names; the number of times is counted."""
    stop = threading.Event()
    swaps = [0]

    def swap() -> None:
        while not stop.is_set():
            exchange(one, other)
            swaps[0] += 1

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        yield swaps
    finally:
        stop.set()
        swapping.join()
