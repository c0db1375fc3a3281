"""Contents: the bytes of files themselves, read in any part, and written as they arrive."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from storage.brokers.broker import Readable, Written
from storage.catalog import Catalog
from storage.exceptions import AlreadyExists, BackendUnavailable, FileChanged, InvalidPath, MissingFile
from storage.models import ScaleFile
from storage.testing.backend import WORKSPACE, Backend
from storage.testing.claims import differs
from storage.testing.suite import Suite, refusal, workspace_directory
from storage.testing.uploads import SIZES

MIB = 1 << 20


class Arriving:
    """A source of known bytes, as from a slow client.

    Args:
        meanwhile: called once, when some of the bytes have been read.
        error: raised instead of giving the last of them.
    """

    def __init__(
        self, content: bytes, meanwhile: Callable[[], object] = lambda: None, error: Exception | None = None
    ) -> None:
        self.position = 0
        self._content = content
        self._meanwhile: list[Callable[[], object]] = [meanwhile]
        self._error = error

    def read(self, size: int) -> bytes:
        if self.position * 2 >= len(self._content) and self._meanwhile:
            self._meanwhile.pop()()
        if self.position == len(self._content):
            if self._error is not None:
                raise self._error
            return b""
        block = self._content[self.position : self.position + min(size, 100_000)]
        self.position += len(block)
        return block


def write(
    backend: Backend, path: str, source: Readable | bytes, *, expected: str | None = None, **fields: str
) -> tuple[ScaleFile, Written]:
    file = backend.file(path, **fields)
    arriving = io.BytesIO(source) if isinstance(source, bytes) else source
    return file, backend.broker.write_file(backend.volume_path, file, arriving, expected=expected)


def read(backend: Backend, path: str) -> bytes:
    with backend.broker.open_file(backend.volume_path, backend.file(path)) as content:
        return b"".join(content.read(0, content.size))


def tag(backend: Backend, path: str) -> str:
    with backend.broker.open_file(backend.volume_path, backend.file(path)) as content:
        return content.etag


class Contents(Suite):
    def test_open_file_tells_size_tag_and_time(self, backend: Backend) -> None:
        """An open file tells its size, a printable entity tag without quotes, and its time (if any), with zone."""
        backend.put("a/b", b"hello")
        with backend.broker.open_file(backend.volume_path, backend.file("a/b")) as content:
            assert content.size == 5
            assert content.etag.isascii()
            assert content.etag.isprintable()
            assert '"' not in content.etag
            if content.last_modified is not None:
                assert abs(datetime.now(UTC) - content.last_modified) < timedelta(hours=1)
            assert b"".join(content.read(0, 5)) == b"hello"

    def test_any_part_of_a_file_is_read_in_blocks(self, backend: Backend) -> None:
        """Any part of a file is read, in any order and more than once, in blocks of at most 1 MiB."""
        whole = os.urandom(9 * MIB + 5)
        backend.put("f", whole)
        with backend.broker.open_file(backend.volume_path, backend.file("f")) as content:
            for start, length in (
                *((0, len(whole)), (0, 0), (0, 1), (len(whole) - 1, 1), (len(whole), 0)),
                *((4 * MIB - 1, 2), (4 * MIB, 4 * MIB), (3, 9 * MIB)),
            ):
                blocks = list(content.read(start, length))
                assert b"".join(blocks) == whole[start : start + length], (start, length)
                assert max(map(len, blocks), default=0) <= MIB

    def test_empty_file_has_no_bytes(self, backend: Backend) -> None:
        """An empty file is read and written as one."""
        _, written = write(backend, "f", b"")
        assert read(backend, "f") == b""
        assert written == (tag(backend, "f"), True)
        assert backend.listed() == {"f": 0}

    def test_file_that_is_not_there_is_not_opened(self, backend: Backend) -> None:
        """To open a file that is not there, or what is only the beginning of other paths, is MissingFile."""
        backend.put("dir/f")
        for path in ("gone", "dir", "dir/gone", "gone/f"):
            with pytest.raises(MissingFile, match=path):
                tag(backend, path)

    def test_another_version_has_another_tag(self, backend: Backend) -> None:
        """The entity tag is the same each time a version is opened; a version of other bytes has another."""
        backend.put("f", b"one")
        first = tag(backend, "f")
        assert tag(backend, "f") == first
        backend.upload("f", b"two")
        second = tag(backend, "f")
        assert second != first
        _, written = write(backend, "f", b"3")
        assert written == (tag(backend, "f"), False)
        assert written.etag not in (first, second)

    def test_open_file_stays_one_version(self, backend: Backend) -> None:
        """A file replaced while it is read comes whole as it was, or is BackendUnavailable; never a mixture."""
        old = os.urandom(20 * MIB)
        backend.put("f", old)
        got = b""
        with backend.broker.open_file(backend.volume_path, backend.file("f")) as content:
            blocks = content.read(0, content.size)
            got += next(blocks)
            backend.upload("f", os.urandom(20 * MIB))
            try:
                for block in blocks:
                    got += block
            except BackendUnavailable:
                assert old.startswith(got)
                assert len(got) < len(old)
            else:
                assert got == old

    def test_file_closed_early_leaves_nothing_open(self, backend: Backend) -> None:
        """A file that is closed early, or never read, leaves no descriptor open."""
        backend.put("f", bytes(9 * MIB))

        def open_and_close() -> int:
            for _ in range(3):
                with backend.broker.open_file(backend.volume_path, backend.file("f")) as content:
                    blocks = iter(content.read(0, content.size))
                    next(blocks)
                    del blocks
                backend.broker.open_file(backend.volume_path, backend.file("f")).close()
            gc.collect()
            return len(os.listdir("/proc/self/fd"))

        opened = open_and_close()
        assert open_and_close() <= opened

    def test_write_stores_the_bytes_and_saves_the_record(self, backend: Backend, records: Catalog) -> None:
        """A written file is stored whole, with its record as of an upload, and makes missing directories."""
        file, written = write(backend, "a/b/c.txt", b"hello", media_type="text/plain")
        assert backend.read("a/b/c.txt") == b"hello"
        assert written == (tag(backend, "a/b/c.txt"), True)
        assert records.find_path(WORKSPACE, "a/b/c.txt") == file
        assert (file.file_size, file.file_name, file.media_type) == (5, "c.txt", "text/plain")
        assert backend.media_type("a/b/c.txt") == ("text/plain" if backend.traits.keeps_media_type else None)
        again, written = write(backend, "a/b/c.txt", b"again")
        assert (again.uuid, again.id, written.is_new) == (file.uuid, file.id, False)
        assert backend.read("a/b/c.txt") == b"again"

    def _stores_one_thing(self, backend: Backend) -> None:
        """There are no directories and no modes: a written file is added to the storage, and nothing else."""
        before = backend.stored()
        write(backend, "a/b", b"x")
        assert set(backend.stored()) - set(before) == {"workspace/a/b"}

    @differs(_stores_one_thing, has_modes=False)
    def test_written_files_have_the_modes_of_uploads(self, backend: Backend) -> None:
        """Written files get mode 0644 and made directories 0755, whatever the umask."""
        umask = os.umask(0o077)
        try:
            write(backend, "a/b", b"x")
        finally:
            os.umask(umask)
        directory = workspace_directory(backend)
        assert [oct((directory / path).stat().st_mode & 0o7777) for path in ("a", "a/b")] == ["0o755", "0o644"]

    @pytest.mark.parametrize("size", SIZES)
    def test_sizes_around_the_parts_arrive_whole(self, backend: Backend, size: int) -> None:
        """Empty files, odd sizes and those around a part are written and read whole, and leave no parts."""
        content = os.urandom(size)
        before = set(backend.stored())
        write(backend, "f", Arriving(content))
        assert backend.read("f") == content
        assert read(backend, "f") == content
        assert set(backend.stored()) - before == {"workspace/f"}

    def test_nothing_shows_before_the_last_byte(self, backend: Backend, records: Catalog) -> None:
        """While a file arrives nothing is under its name, or the old version is; nor is anything recorded."""
        backend.put("old", b"old")
        seen: list[object] = []

        def look() -> None:
            found = [file.file_path for file in records.page(WORKSPACE)]
            seen.append((backend.read("old"), backend.listed(), found))

        write(backend, "new", Arriving(bytes(9 * MIB), look))
        write(backend, "old", Arriving(bytes(9 * MIB), look))
        assert seen == [(b"old", {"old": 3}, []), (b"old", {"old": 3, "new": 9 * MIB}, ["new"])]

    @pytest.mark.parametrize("size", [0, 1, 9 * MIB, 17 * MIB])
    def test_source_that_fails_leaves_nothing(self, backend: Backend, records: Catalog, size: int) -> None:
        """Where the source raises, however late, its error is raised and everything is as it was."""
        backend.put("old", b"old")
        before = backend.stored()
        for path in ("old", "new", "some/new/place"):
            with pytest.raises(KeyError, match="the client is gone"):
                write(backend, path, Arriving(bytes(size), error=KeyError("the client is gone")))
        assert backend.stored() == before
        assert records.page(WORKSPACE) == []

    def test_write_without_overwrite_reads_no_source(self, backend: Backend, records: Catalog) -> None:
        """With `overwrite` false, a write onto a file is AlreadyExists, unread; onto nothing it works."""
        backend.put("f", b"old")
        backend.broker.overwrite = False
        source = Arriving(b"new")
        with pytest.raises(AlreadyExists):
            write(backend, "f", source)
        assert (source.position, backend.read("f"), records.page(WORKSPACE)) == (0, b"old", [])
        write(backend, "g", source)
        assert backend.read("g") == b"new"

    def test_file_that_comes_meanwhile_is_not_replaced_without_overwrite(self, backend: Backend) -> None:
        """With `overwrite` false, a file that came while the source was read is not replaced either."""
        backend.broker.overwrite = False
        for path, size in (("small", 1000), ("large", 9 * MIB)):
            before = backend.stored()
            with pytest.raises(AlreadyExists):
                write(backend, path, Arriving(bytes(size), partial(backend.put, path, b"1st")))
            assert backend.read(path) == b"1st"
            assert set(backend.stored()) - set(before) == {f"workspace/{path}"}

    def test_expected_version_is_replaced_and_no_other(self, backend: Backend, records: Catalog) -> None:
        """With `expected`, that version is replaced; another one, or nothing there, is FileChanged, unread."""
        backend.put("f", b"old")
        old = tag(backend, "f")
        _, written = write(backend, "f", b"new", expected=old)
        saved = records.page(WORKSPACE)
        for path, expected in (("f", old), ("f", ""), ("gone", written.etag), ("dir/gone", old)):
            source = Arriving(b"lost update")
            with pytest.raises(FileChanged):
                write(backend, path, source, expected=expected)
            assert source.position == 0
        assert backend.listed() == {"f": 3}
        assert (backend.read("f"), records.page(WORKSPACE)) == (b"new", saved)

    def test_version_that_changes_meanwhile_is_not_replaced(self, backend: Backend) -> None:
        """With `expected`, a file that changes or goes while the source is read is FileChanged and stays so."""
        for size in (1000, 9 * MIB):
            for change in (lambda: backend.put("f", b"theirs"), lambda: backend.remove("f")):
                backend.put("f", b"old")
                before = set(backend.stored())
                with pytest.raises(FileChanged):
                    write(backend, "f", Arriving(bytes(size), change), expected=tag(backend, "f"))
                assert backend.read("f") in (b"theirs", None)
                assert set(backend.stored()) <= before

    def _is_only_a_path(self, backend: Backend) -> None:
        """There are no directories: a file can be written at `a` while `a/b` is, and the other way round."""
        backend.put("a/b", b"x")
        write(backend, "a", b"y")
        assert (read(backend, "a"), read(backend, "a/b")) == (b"y", b"x")

    @differs(_is_only_a_path, has_directories=False)
    def test_write_onto_a_directory_is_refused(self, backend: Backend) -> None:
        """A write onto a directory is AlreadyExists, one below a file InvalidPath, before the source is read."""
        backend.put("dir/f")
        before = backend.stored()
        source = Arriving(b"new")
        for path, kind in (("dir", AlreadyExists), ("dir/f/below", InvalidPath)):
            assert refusal(write, backend, path, source) is kind
        assert (source.position, backend.stored()) == (0, before)

    def _only_its_path_counts(self, backend: Backend) -> None:
        """There are no links: what is written replaces what its own path names."""
        backend.put("f", b"../secret")
        write(backend, "f", b"new")
        assert read(backend, "f") == b"new"

    @differs(_only_its_path_counts, has_links=False)
    def test_link_is_read_through_and_replaced_itself(self, backend: Backend) -> None:
        """A link that stays inside is read through; a write replaces the link itself, not what it leads to."""
        backend.put("target", b"precious")
        (workspace_directory(backend) / "link").symlink_to("target")
        assert read(backend, "link") == b"precious"
        assert tag(backend, "link") == tag(backend, "target")
        _, written = write(backend, "link", b"new", expected=tag(backend, "target"))
        assert not written.is_new
        assert (read(backend, "link"), read(backend, "target")) == (b"new", b"precious")
