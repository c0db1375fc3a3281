"""What is asserted of contents beside the broker contract: whose identity, how much memory, how many parts."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.backends import DIRECTORIES
from storage.brokers import _s3_content
from storage.brokers.broker import Broker
from storage.brokers.host_broker import HostBroker
from storage.exceptions import BackendUnavailable, TooLarge, Unsupported
from storage.files import Directory, SelfView
from storage.models import ScaleFile
from storage.testing import Backend, Suite

MIB = 1 << 20
ON_S3 = ["s3-moto-obstore", "s3-seaweedfs-boto3"]


class Witness(SelfView):
    """The process's own view, which knows whether it acts."""

    def __init__(self) -> None:
        self.is_acting = False

    @contextmanager
    def acting(self) -> Iterator[None]:
        assert not self.is_acting
        self.is_acting = True
        try:
            yield
        finally:
            self.is_acting = False

    def open_workspace(self, volume_path: str) -> Directory:
        assert self.is_acting
        return super().open_workspace(volume_path)


class Watched:
    """A source that sees whether anybody's identity is held while it is waited for."""

    def __init__(self, view: Witness, content: bytes, error: Exception | None = None) -> None:
        self._view, self._content, self._error = view, io.BytesIO(content), error
        self.seen: set[bool] = set()

    def read(self, size: int) -> bytes:
        self.seen.add(self._view.is_acting)
        block = self._content.read(size)
        if not block and self._error is not None:
            raise self._error
        return block


class TestContents(Suite):
    @pytest.mark.parametrize("backend", DIRECTORIES, indirect=True)
    def test_nobodys_identity_is_held_while_the_source_is_waited_for(self, backend: Backend) -> None:
        backend.broker.view = view = Witness()
        for error in (None, KeyError("the client is gone")):
            source = Watched(view, bytes(3 * MIB), error)
            try:
                backend.broker.write_file(backend.volume_path, backend.file("d/f"), source)
            except KeyError:
                assert error is not None
            assert source.seen == {False}
        with backend.broker.open_file(backend.volume_path, backend.file("d/f")) as content:
            assert not view.is_acting
            assert sum(len(block) for block in content.read(0, content.size)) == 3 * MIB

    @pytest.mark.parametrize("backend", DIRECTORIES, indirect=True)
    def test_file_cut_short_while_it_is_read_is_an_error_and_not_filled_up(self, backend: Backend) -> None:
        backend.put("f", b"x" * MIB)
        with backend.broker.open_file(backend.volume_path, backend.file("f")) as content:
            blocks = content.read(0, MIB)
            first = next(blocks)
            assert backend.workspace is not None
            os.truncate(backend.workspace / "f", len(first) + 1)
            assert next(blocks) == b"x"
            with pytest.raises(BackendUnavailable, match="read 'f': the file was cut short"):
                next(blocks)

    @pytest.mark.parametrize("backend", ON_S3, indirect=True)
    def test_parts_grow_where_there_are_many(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_s3_content, "_SMALL_PARTS", 2)
        whole = os.urandom(2 * 8 * MIB + 20 * MIB + 5)
        file = backend.file("f")
        written = backend.broker.write_file(None, file, io.BytesIO(whole))
        assert written.etag.endswith("-4")
        assert (backend.read("f"), file.file_size) == (whole, len(whole))

    @pytest.mark.parametrize("backend", ON_S3, indirect=True)
    def test_source_without_end_is_too_large(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_s3_content, "_MOST_PARTS", 2)
        before = backend.stored()
        with pytest.raises(TooLarge, match="write 'f': "), open("/dev/zero", "rb") as endless:
            backend.broker.write_file(None, backend.file("f"), endless)
        assert backend.stored() == before


def test_brokers_that_cannot_say_so() -> None:
    class Plain(HostBroker):
        open_file = Broker.open_file
        write_file = Broker.write_file

    file = ScaleFile(file_path="f")
    with pytest.raises(Unsupported, match="the host broker cannot open files"):
        Plain().open_file("/data", file)
    with pytest.raises(Unsupported, match="the host broker cannot write files"):
        Plain().write_file("/data", file, io.BytesIO())
