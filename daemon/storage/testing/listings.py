"""Listings: every regular file of the workspace, once, with its size."""

from __future__ import annotations

import pytest

from storage.brokers.broker import FileDetails
from storage.exceptions import InvalidPath
from storage.testing.backend import Backend
from storage.testing.claims import differs
from storage.testing.hostile import REFUSED_PREFIXES
from storage.testing.suite import Suite, path_of, refusal


class Listings(Suite):
    def test_empty_workspace_lists_nothing(self, backend: Backend) -> None:
        """An empty workspace lists nothing, and that is no error."""
        assert backend.listed() == {}
        assert backend.listed(recursive=False) == {}
        assert backend.broker.list_page(backend.volume_path, True, limit=10) == []

    def test_listing_shows_regular_files_only(self, backend: Backend) -> None:
        """Only files are listed: no directory, link, special or unfinished file, nor a name that is no path."""
        backend.put("top", b"1")
        backend.put("dir/inner", b"22")
        backend.put_unlisted()
        assert backend.listed() == {"top": 1, "dir/inner": 2}
        page = backend.broker.list_page(backend.volume_path, True, limit=10)
        assert dict(page) == {"dir/inner": 2, "top": 1}
        assert backend.listed(recursive=False) == {"top": 1}

    def test_listing_is_of_paths_and_sizes(self, backend: Backend) -> None:
        """A listing yields named tuples of path, relative to the workspace, and size in bytes."""
        backend.put("a/b", b"333")
        (details,) = backend.broker.list_files(backend.volume_path, True)
        assert details == FileDetails(file="a/b", size=3)

    def test_listing_with_a_prefix_is_as_in_s3(self, backend: Backend) -> None:
        """A prefix selects the paths that begin with it; not recursive is the one level below its last slash."""
        for path in ("ab", "a/1", "a/b/2", "a/b2", "ac/3"):
            backend.put(path, b"")

        def listed(prefix: str, recursive: bool) -> list[str]:
            unordered = backend.broker.list_under(backend.volume_path, recursive, prefix)
            page = backend.broker.list_page(backend.volume_path, recursive, prefix=prefix, limit=100)
            assert sorted(unordered) == sorted(page)
            return sorted(details.file for details in page)

        assert listed("", False) == ["ab"]
        assert listed("a", False) == ["ab"]
        assert listed("a/", False) == ["a/1", "a/b2"]
        assert listed("a/b", False) == ["a/b2"]
        assert listed("a/b", True) == ["a/b/2", "a/b2"]
        assert listed("a", True) == ["a/1", "a/b/2", "a/b2", "ab", "ac/3"]
        assert listed("none/", True) == []

    def test_prefix_that_leads_elsewhere_is_refused(self, backend: Backend) -> None:
        """A prefix that is absolute, or holds NUL or empty, `.` or `..` components, is InvalidPath."""

        def page(prefix: str) -> object:
            return backend.broker.list_page(backend.volume_path, True, prefix=prefix, limit=1)

        def whole(prefix: str) -> object:
            return list(backend.broker.list_under(backend.volume_path, True, prefix))

        for listing in (page, whole):
            refused = {prefix: refusal(listing, prefix) for prefix in REFUSED_PREFIXES}
            assert refused == dict.fromkeys(REFUSED_PREFIXES, InvalidPath)

    def _lists_from_prefix(self, backend: Backend) -> None:
        """A relative `volume_path` is a prefix: the files below it are listed, relative to the workspace."""
        for path in ("2026/a", "2026/b/c", "2025/a"):
            backend.put(path)

        def listed(volume_path: str, recursive: bool) -> list[str]:
            return sorted(details.file for details in backend.broker.list_files(volume_path, recursive))

        assert listed("2026/", True) == ["2026/a", "2026/b/c"]
        assert listed("2026/", False) == ["2026/a"]
        assert listed("2026/a", True) == ["2026/a"]
        with pytest.raises(InvalidPath):
            listed("../", True)

    def _needs_no_volume(self, backend: Backend) -> None:
        """Nothing is mounted: `volume_path` is not looked at, and may be None."""
        backend.put("file")
        for volume_path in (None, "/nothing"):
            assert [details.file for details in backend.broker.list_files(volume_path, True)] == ["file"]

    @differs(_lists_from_prefix, lists_from_prefix=True)
    @differs(_needs_no_volume, has_volume=False)
    def test_volume_path_must_be_a_mounted_volume(self, backend: Backend) -> None:
        """A `volume_path` that is missing, None or no directory is InvalidPath."""
        backend.put("file")
        for volume_path in (None, f"{backend.directory}/nothing", f"{backend.volume_path}/file"):
            with pytest.raises(InvalidPath):
                list(backend.broker.list_files(volume_path, True))

    def _pages_give_every_file_once(self, backend: Backend, limit: int) -> None:
        """Pages of any size give every file once, in an order of the storage's own, while files come and go."""
        seen = _paged(backend, limit)
        assert sorted(seen) == sorted(PAGED)

    @pytest.mark.parametrize("limit", [1, 2, 7])
    @differs(_pages_give_every_file_once, orders_by_bytes=False)
    def test_pages_give_every_file_once_in_byte_order(self, backend: Backend, limit: int) -> None:
        """Pages of any size give every file once, sorted by the bytes of its path, while files come and go."""
        assert _paged(backend, limit) == sorted(PAGED, key=lambda path: path.encode())

    def test_page_begins_after_a_name_that_need_not_be_there(self, backend: Backend) -> None:
        """A page goes on after a name, whether it is there or not; after the last one it is empty."""
        for path in ("a", "c", "d/e"):
            backend.put(path)
        page = backend.broker.list_page(backend.volume_path, True, after="b", limit=5)
        assert [details.file for details in page] == ["c", "d/e"]
        assert backend.broker.list_page(backend.volume_path, True, after="z", limit=5) == []

    def test_thousands_of_files_and_a_deep_one_are_listed(self, backend: Backend) -> None:
        """Ten thousand files (fewer on a slow server) and a deep tree are listed, whole and from any name."""
        deep = path_of(min(backend.traits.largest_path_bytes, 1800))
        expected = {f"flat/{number}" for number in range(backend.many_files)}
        backend.put_many(expected)
        backend.put(deep, b"1")
        try:
            listed = backend.listed()
        finally:
            backend.remove(deep)
        assert listed.pop(deep) == 1
        assert set(listed) == expected
        assert set(listed.values()) == {1}
        page = backend.broker.list_page(backend.volume_path, True, after="flat", limit=3)
        assert {details.file for details in page} <= expected
        assert len(page) == 3

    def test_files_that_go_while_they_are_listed_are_no_error(self, backend: Backend) -> None:
        """A listing goes on while what it lists is removed."""
        paths = [f"d{number}/f" for number in range(20)]
        backend.put_many(paths)
        listing = backend.broker.list_files(backend.volume_path, True)
        seen = [next(listing).file]
        for path in paths:
            backend.remove(path)
        seen += [details.file for details in listing]
        assert set(seen) <= set(paths)


PAGED = ["a-b", "a/b", "a0", "z", "m/n/o", "m/n-o", "é", "e", *(f"many/{number:03}" for number in range(30))]


def _paged(backend: Backend, limit: int) -> list[str]:
    """The listed paths, in pages; what was shown goes away, and something earlier comes."""
    backend.put_many(PAGED)
    seen: list[str] = []
    while page := backend.broker.list_page(backend.volume_path, True, after=seen[-1] if seen else "", limit=limit):
        assert len(page) <= limit
        seen += [details.file for details in page]
        backend.remove(seen[-1])
        backend.put("!earlier")
    return seen
