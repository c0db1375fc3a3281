"""Requests on the same paths at once: whichever is first, in the end the catalog says what is on the disk."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.processes import Running
from lab.sidecar import host_sidecar
from lab.unix_http import request

WS = "/v1/workspaces/data"
ROUNDS = 15

Call = tuple[str, str, Any]


def put(path: str, size: int) -> Call:
    return "PUT", f"content/{path}", b"x" * size


def move(path: str, new_path: str) -> Call:
    return "POST", "move", {"files": [{"file_path": path, "new_path": new_path}]}


def delete(path: str) -> Call:
    return "POST", "delete", {"files": [{"file_path": path}]}


class Served:
    def __init__(self, directory: Path, sidecar: Running) -> None:
        self.data = directory / "data"
        self.socket = sidecar.socket_path

    def call(self, call: Call, **headers: str) -> int:
        method, path, body = call
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return request(self.socket, method, f"{WS}/{path}", sent, **headers).status

    def at_once(self, *calls: Call, **headers: str) -> list[int]:
        barrier = threading.Barrier(len(calls))

        def run(call: Call) -> int:
            barrier.wait(10)
            return self.call(call, **headers)

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(run, calls))

    def recorded(self) -> dict[str, int]:
        answer = request(self.socket, "GET", f"{WS}/catalog?is_deleted=false")
        return {record["file_path"]: record["file_size"] for record in answer.json["files"]}

    def stored(self) -> dict[str, int]:
        return {name: os.stat(self.data / name).st_size for name in os.listdir(self.data)}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with host_sidecar() as found:
        yield Served(*found)


@pytest.mark.parametrize(
    "calls",
    [
        (put("a", 10), put("a", 20)),
        (put("a", 10), delete("a")),
        (move("a", "b"), move("b", "a")),
        (move("a", "b"), put("a", 10)),
        (move("a", "b"), put("b", 10)),
        (move("a", "b"), delete("a")),
        (move("a", "b"), delete("b")),
        (move("a", "b"), move("b", "c")),
        (move("a", "c"), move("b", "c")),
    ],
    ids=lambda calls: " and ".join(f"{verb} {path}" for verb, path, _ in calls),
)
def test_two_requests_at_once_leave_the_catalog_as_the_disk(served: Served, calls: tuple[Call, Call]) -> None:
    for _ in range(ROUNDS):
        served.call(delete("c"))
        assert served.call(put("a", 1)) in (200, 201)
        assert served.call(put("b", 2)) in (200, 201)
        served.at_once(*calls)
        assert served.recorded() == served.stored()


def test_of_writers_that_expect_the_same_version_one_succeeds(served: Served) -> None:
    for _ in range(ROUNDS):
        served.call(put("a", 1))
        tag = request(served.socket, "HEAD", f"{WS}/content/a").headers["ETag"]
        writers = [put("a", size) for size in (10, 20, 30, 40)]
        assert sorted(served.at_once(*writers, **{"If-Match": tag})) == [200, 412, 412, 412]
