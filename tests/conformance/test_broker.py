"""The broker contract, over every registered type. The suite ships in the package as `storage.testing`.

Which backends take part is said in `lab.backends`; `python -m storage.testing` prints what is asserted of each.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from lab.backends import DIRECTORIES, KINDS
from storage.brokers.broker import FileUpload
from storage.brokers.factory import get_broker, get_broker_types
from storage.catalog import Catalog
from storage.exceptions import BackendUnavailable
from storage.testing import TRAITS, Backend, BrokerSuite, Suite


class TestBroker(BrokerSuite):
    """Every ability, of every backend that the fixture gives."""


class TestCopies(Suite):
    """How brokers with a mounted volume copy, which only they do."""

    @pytest.mark.parametrize("backend", DIRECTORIES, indirect=True)
    @pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
    def test_copying_without_copy_file_range_gives_the_same_bytes(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def refuse(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "copy_file_range", refuse)
        content = os.urandom(2_500_001)
        backend.upload("f", content)
        assert backend.read("f") == content


def test_every_registered_type_is_tested() -> None:
    assert sorted({kind.partition("-")[0] for kind in KINDS}) == sorted(TRAITS) == get_broker_types()


@pytest.mark.parametrize(
    "path", ["s:/", "s:/e/f/", "nas-1.example.org:/e", "10.0.0.1:/e", "[fe80::1%eth0]:/e", "[::1]:/"]
)
def test_nfs_paths_that_are_accepted(path: str) -> None:
    broker = get_broker("nfs")
    broker.load_configuration({"nfs_path": path})
    assert broker.volume is not None
    assert (broker.volume.driver, broker.volume.remote_path, broker.volume.host) == ("nfs", path, False)


class TestRecords(Suite):
    """What holds where records cannot be saved."""

    @pytest.mark.parametrize(
        "fault",
        [
            {"media_type": "a\0b"},
            {"tags": {"a": 1}},
            {"tags": ["a"]},
            {"checksum": None},
            {"created": "yesterday"},
        ],
        ids=str,
    )
    def test_a_model_that_cannot_be_saved_stops_before_its_file_is_touched(
        self, backend: Backend, records: Catalog, fault: dict[str, Any]
    ) -> None:
        files = [backend.file(f"f{number}") for number in range(4)]
        for name, value in fault.items():
            setattr(files[2], name, value)
        uploads = [FileUpload(file, backend.source(b"x")) for file in files]
        with pytest.raises(ValueError, match="f2"):
            backend.broker.upload_files(backend.volume_path, uploads)
        assert {"f0", "f1"} <= set(backend.listed())
        assert "f2" not in backend.listed()
        assert {file.file_path for file in records.page("w")} == set(backend.listed())

    def test_a_catalog_that_fails_after_the_change_is_said(
        self, backend: Backend, records: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = backend.upload("kept")

        def fail(*_: object, **__: object) -> None:
            raise BackendUnavailable("the database is locked")

        monkeypatch.setattr(records, "finish", fail)
        with pytest.raises(BackendUnavailable, match=r"'new': the file is changed, but not its record"):
            backend.upload("new")
        with pytest.raises(BackendUnavailable, match=r"'moved': the file is changed"):
            backend.move(file, "moved")
        assert set(backend.listed()) == {"moved", "new"}
