"""The library through the sidecar: the suite of brokers, run on the client's broker and a real sidecar process.

The sidecar is started once. Its workspace and its catalog are emptied for each test.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from sqlalchemy import create_engine, text

from brokervol.client import CHUNK_ITEMS
from brokervol.sidecar_broker import SidecarBroker
from lab.sidecar import self_sidecar
from storage.brokers import factory
from storage.brokers.broker import FileDownload, FileMove, FileUpload
from storage.catalog import Catalog
from storage.exceptions import BackendUnavailable, InvalidPath, MissingFile, ReadOnly, Unsupported
from storage.testing import TRAITS, WORKSPACE, Backend, BrokerSuite, DirectoryBackend, Traits


class Sidecar(NamedTuple):
    """A running sidecar whose workspace is the directory `workspace` below a directory of this test module."""

    directory: Path
    socket: str


class SidecarBackend(DirectoryBackend):
    """A host workspace, of which the broker only knows the name and the socket."""

    wrong_values: ClassVar = {
        "workspace": [None, 1, "", "a/b", "../w", "-w", "w\0"],
        "socket_path": [1, "", "relative", "/a\0"],
    }
    unreachable: ClassVar = {"socket_path": "/no/such.sock"}
    many_files = 1_000
    large_file_bytes = (1 << 30) + 3

    def __init__(self, directory: Path, socket: str) -> None:
        configuration = {"type": "sidecar", "workspace": WORKSPACE, "socket_path": socket}
        super().__init__(directory, configuration, Traits(has_volume=False, lists_from_prefix=True))

    def cut_off(self) -> tuple[SidecarBroker, str | None]:
        broker = self.configured(**self.unreachable)
        assert isinstance(broker, SidecarBroker)
        return broker, None


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    directory = tmp_path_factory.mktemp("s")
    workspaces = {
        name: {"broker": {"type": "host", "host_path": f"{directory}/b/workspace"}, "read_only": name == "frozen"}
        for name in (WORKSPACE, "frozen")
    }
    factory.add_broker_type(SidecarBroker)
    with self_sidecar(directory, workspaces) as running:
        yield Sidecar(directory, running.socket_path)
    factory._BROKERS.pop("sidecar")
    assert sorted(TRAITS) == factory.get_broker_types()


class TestSidecarBroker(BrokerSuite):
    """Every ability, through the sidecar. The catalog is the sidecar's: none is in use in this process."""

    @pytest.fixture(autouse=True)
    def records(self, sidecar: Sidecar) -> Iterator[Catalog]:
        url = f"sqlite:///{sidecar.directory}/root/.state/catalog.sqlite"
        opened = Catalog(url)
        yield opened
        opened.close()
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM scale_file"))
        engine.dispose()

    @pytest.fixture
    def backend(self, sidecar: Sidecar) -> Iterator[Backend]:
        directory = sidecar.directory / "b"
        directory.mkdir()
        yield SidecarBackend(directory, sidecar.socket)
        shutil.rmtree(directory)

    # The races are the sidecar's to win, in `test_escape.py`: of them one is enough here.
    @pytest.mark.parametrize("operation", ["upload"])
    def test_a_directory_swapped_for_a_link_during_operations_leads_nowhere(
        self, backend: Backend, operation: str
    ) -> None:
        super().test_a_directory_swapped_for_a_link_during_operations_leads_nowhere(
            backend=backend, operation=operation
        )

    # What is special to it

    @pytest.mark.parametrize(
        ("field", "value"), [("tags", {"mission": "a"}), ("checksum", "sha256:00"), ("media_type", "é" * 3)]
    )
    def test_what_the_sidecar_would_not_keep_is_refused(self, backend: Backend, field: str, value: object) -> None:
        files = [backend.file(f"f{number}") for number in range(3)]
        setattr(files[1], field, value)
        with pytest.raises(Unsupported, match="f1"):
            backend.broker.upload_files(None, [FileUpload(file, backend.source()) for file in files])
        with pytest.raises(Unsupported, match="f1"):
            backend.broker.write_file(None, files[1], io.BytesIO(b"x"))
        assert backend.listed() == {"f0": 7}

    def test_failure_in_a_later_request_of_a_long_batch_is_raised(
        self, backend: Backend, records: Catalog
    ) -> None:
        count = CHUNK_ITEMS + 2
        source = backend.source()
        uploads = [FileUpload(backend.file(f"f{number:04}"), source) for number in range(count)]
        uploads[count - 2] = FileUpload(uploads[count - 2].file, f"{source}-gone")
        with pytest.raises(MissingFile, match="source-gone"):
            backend.broker.upload_files(None, uploads)
        assert sorted(backend.listed()) == [upload.file.file_path for upload in uploads[:-2]]
        assert [upload.file.id is None for upload in uploads[-3:]] == [False, True, True]
        assert len(records.page(WORKSPACE, limit=1000)) == count - 2

    def test_paths_are_where_this_process_has_the_volume(self, backend: Backend) -> None:
        files = [backend.present("a/b"), backend.file("c")]
        paths = backend.broker.get_file_system_paths(None, files)
        assert paths == [f"{backend.workspace}/a/b", f"{backend.workspace}/c"]

    def test_paths_of_more_files_than_a_request_takes(self, backend: Backend) -> None:
        paths = backend.broker.get_file_system_paths(None, [backend.file("a")] * 10_001)
        assert paths == [f"{backend.workspace}/a"] * 10_001

    def test_local_path_that_is_too_long_fails_in_its_turn(self, backend: Backend) -> None:
        uploads = [
            FileUpload(backend.file("a"), backend.source()),
            FileUpload(backend.file("b"), "/" + "q" * 4096),
            FileUpload(backend.file("c"), backend.source()),
        ]
        with pytest.raises(InvalidPath, match=r"local_path .* is too long"):
            backend.broker.upload_files(None, uploads)
        assert sorted(backend.listed()) == ["a"]

    def test_read_only_workspace_can_be_read(self, backend: Backend) -> None:
        file = backend.present("a")
        broker = backend.configured(workspace="frozen")
        broker.download_files(None, [FileDownload(file, str(backend.local / "out"), False)])
        assert (backend.local / "out").read_bytes() == b"content"
        for change in (
            partial(broker.upload_files, None, [FileUpload(file, backend.source())]),
            partial(broker.move_files, None, [FileMove(file, "b")]),
            partial(broker.delete_files, None, [file]),
            partial(broker.write_file, None, file, io.BytesIO(b"new")),
        ):
            with pytest.raises(ReadOnly):
                change()
        assert backend.stored() == backend.stored() | {"workspace/a": b"content"}

    def test_workspace_that_is_not_held_is_unavailable(self, backend: Backend) -> None:
        broker = backend.configured(workspace="theirs")
        with pytest.raises(BackendUnavailable, match="'theirs'"):
            list(broker.list_files(None, True))
        with pytest.raises(BackendUnavailable, match="'theirs'"):
            broker.delete_files(None, [backend.file("a")])
