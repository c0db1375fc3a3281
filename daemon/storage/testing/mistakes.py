"""The mistakes of this library's ancestor that any broker could repeat, by their numbers in the list of nine."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import threading
import traceback

import pytest

from storage.brokers.broker import Broker
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.brokers.factory import get_broker
from storage.catalog import Catalog
from storage.exceptions import InvalidPath, StorageError
from storage.testing.backend import WORKSPACE, Backend
from storage.testing.claims import differs
from storage.testing.names import OPERATIONS, attempt
from storage.testing.suite import Suite

OBLIGATIONS = {
    *("delete_files", "download_files", "list_files", "load_configuration", "move_files", "upload_files"),
    "validate_configuration",
}


class Mistakes(Suite):
    def test_mistake_1_what_fails_raises_and_a_failed_move_keeps_its_source(
        self, backend: Backend, records: Catalog
    ) -> None:
        """Where the storage is not there every operation raises, nothing is recorded, a move's source stays."""
        file = backend.upload("source", b"precious")
        broker, volume_path = backend.cut_off()
        before = backend.stored()
        whole, backend.broker, backend.volume_path = (backend.broker, backend.volume_path), broker, volume_path
        for operation in ("download", "upload", "read", "write", "move from", "delete"):
            with pytest.raises(StorageError):
                attempt(backend, operation, "source")
        with pytest.raises(StorageError):
            backend.move(file, "elsewhere")
        with pytest.raises(StorageError):
            backend.listed()
        backend.broker, backend.volume_path = whole
        assert backend.stored() == before
        assert backend.read("source") == b"precious"
        assert not (backend.local / "out").exists()
        assert records.page(WORKSPACE) == [file]
        assert (file.file_path, file.is_deleted) == ("source", False)

    def test_mistake_2_every_operation_is_there_and_lists(self, backend: Backend) -> None:
        """The contract's operations are abstract, this broker has them all, and it lists."""
        assert Broker.__abstractmethods__ == OBLIGATIONS
        assert not inspect.isabstract(type(backend.broker))
        backend.put("a/b", b"22")
        assert backend.listed() == {"a/b": 2}

    def test_mistake_3_paths_that_leave_the_workspace_are_refused(self, backend: Backend) -> None:
        """`../../etc/passwd` and its like are InvalidPath to every operation, and change nothing."""
        backend.put("victim")
        before = backend.stored()
        for path in ("../../etc/passwd", "../secret", "a/../../secret", "/etc/passwd"):
            for operation in OPERATIONS:
                if operation != "paths" or backend.traits.has_file_system_paths:
                    with pytest.raises(InvalidPath):
                        attempt(backend, operation, path)
        assert backend.stored() == before

    def test_mistake_6_listing_stands_alone_and_holds_nothing_when_closed(self, backend: Backend) -> None:
        """A listing goes on when its broker is gone; closed early or never begun it leaves no descriptor open."""
        backend.put_many(f"d{number % 3}/{number}" for number in range(30))
        listing = backend.configured().list_files(backend.volume_path, True)
        gc.collect()
        assert len(list(listing)) == 30
        _close_early(backend)
        opened = _open_descriptors()
        for _ in range(5):
            _close_early(backend)
        assert _open_descriptors() <= opened, "descriptors are left open"

    def test_mistake_8_readers_never_see_half_a_file(self, backend: Backend) -> None:
        """While a file is replaced again and again, a reader finds the whole of the old one or of the new."""
        contents = [bytes([number]) * (300_000 + number) for number in range(12)]
        backend.put("f", contents[0])
        seen: list[bytes | None] = []
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                seen.append(backend.read("f"))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for content in contents:
                backend.upload("f", content)
        finally:
            stop.set()
            reader.join()
        assert seen
        assert [len(found or b"") for found in seen if found not in contents] == []

    def _takes_no_secrets(self, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
        """The type has no credentials: given some, it warns of an unknown key without showing its value."""
        given = {**backend.configuration, "credentials": {"secret_access_key": "s3cr3t"}}
        (warning,) = backend.broker.validate_configuration(given)
        assert warning.name == "unknown_key"
        assert "s3cr3t" not in str(warning) + caplog.text

    @differs(_takes_no_secrets, has_credentials=False)
    def test_mistake_9_secrets_are_nowhere(self, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
        """Secrets of the configuration are in no record, database, log, representation, warning or error."""
        assert backend.secrets
        shown: list[str] = []
        with caplog.at_level(logging.DEBUG):
            broker = backend.broker = backend.configured()
            backend.download(backend.upload("a"), str(backend.local / "out"))
            shown += [repr(broker), str(vars(broker)), repr(broker.volume)]
            shown += [str(backend.listed()), *_errors(backend)]
        shown.append(caplog.text)
        for file in backend.directory.parent.glob("**/catalog.sqlite*"):
            shown.append(file.read_bytes().decode("latin-1"))
        for secret in backend.secrets:
            assert not [text for text in shown if secret in text]


def _close_early(backend: Backend) -> None:
    listing = backend.broker.list_files(backend.volume_path, True)
    next(listing)
    listing.close()
    assert list(listing) == []
    backend.broker.list_files(backend.volume_path, True).close()


def _open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def _errors(backend: Backend) -> list[str]:
    """The errors of operations and configurations that cannot work, as a traceback shows them."""
    found = []
    broker, _ = backend.cut_off()
    for check in (
        lambda: list(broker.list_files(backend.volume_path, True)),
        lambda: broker.download_files(backend.volume_path, []),
        lambda: attempt(backend, "download", "gone"),
    ):
        try:
            check()
        except StorageError as error:
            found.append("".join(traceback.format_exception(error)))
    for key, values in backend.wrong_values.items():
        for value in values:
            try:
                get_broker(broker.broker_type).load_configuration({**backend.configuration, key: value})
            except InvalidBrokerConfiguration as error:
                found.append("".join(traceback.format_exception(error)))
    return found
