"""The S3 servers as fixtures: started by the first test that asks, shared by the whole session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from lab.s3 import Place, S3Server, moto_server, new_place, real_server, seaweed_server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    with seaweed_server() as server:
        yield server


@pytest.fixture(scope="session")
def real() -> S3Server:
    server = real_server()
    if server is None:
        pytest.skip("BROKERVOL_TEST_S3_ENDPOINT and its companions name no real S3 server")
    return server


@pytest.fixture(scope="session", params=["moto", "seaweedfs", *(["real"] if real_server() else [])])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each server in turn; the real one only where there is one."""
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture(name="new_place")
def _new_place() -> Iterator[Callable[[S3Server], Place]]:
    """Makes places for this test, `new_place(server)`, and removes them with all that they hold."""
    with contextlib.ExitStack() as stack:
        yield lambda server: stack.enter_context(new_place(server))


@pytest.fixture(name="new_bucket")
def _new_bucket(new_place: Callable[[S3Server], Place]) -> Callable[[S3Server], str]:
    """Makes buckets for this test, `new_bucket(server)`, and removes them. The real server has only places."""

    def make(server: S3Server) -> str:
        place = new_place(server)
        assert not place.prefix, "the real server's bucket is not the test's alone: use new_place"
        return place.bucket

    return make
