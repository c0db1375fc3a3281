"""Fixtures of the conformance suites: here our broker types are plugged in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.backends import DIRECTORIES, KINDS, S3Backend
from lab.directories import temporary_directory
from lab.processes import Running
from lab.s3 import Place, S3Server, new_place
from lab.world import World, served_workspace, world_of
from storage.testing import Backend


@pytest.fixture
def short_dir() -> Iterator[Path]:
    with temporary_directory() as directory:
        yield directory


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    directory = tmp_path / "b"
    directory.mkdir()
    broker_type, _, variant = str(request.param).partition("-")
    if broker_type in DIRECTORIES:
        yield DIRECTORIES[broker_type](directory)
        return
    server_name, _, bulk = variant.partition("-")
    monkeypatch.setenv("BROKERVOL_S3_BULK", bulk)
    opened = S3Backend(directory, *request.getfixturevalue(f"{server_name}_place"))
    yield opened
    opened.close()


# A bucket for the session: to make one for each test would take longer than the test.


@pytest.fixture(scope="session")
def moto_place(moto: S3Server) -> Iterator[tuple[S3Server, Place]]:
    with new_place(moto) as place:
        yield moto, place


@pytest.fixture(scope="session")
def seaweedfs_place(seaweedfs: S3Server) -> Iterator[tuple[S3Server, Place]]:
    with new_place(seaweedfs) as place:
        yield seaweedfs, place


@pytest.fixture(scope="session")
def real_place(real: S3Server) -> Iterator[tuple[S3Server, Place]]:
    with new_place(real) as place:
        yield real, place


# The sidecar that acts as its callers, where these are processes of ours.


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Path, Running]]:
    with served_workspace() as found:
        yield found


@pytest.fixture
def world(served: tuple[Path, Running]) -> Iterator[World]:
    with world_of(*served) as world:
        yield world
