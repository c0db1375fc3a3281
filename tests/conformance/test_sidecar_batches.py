"""Batches through the real sidecar: items are done in groups, and everything comes out as if one after another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.processes import Running
from lab.sidecar import host_sidecar
from lab.unix_http import Answer, connected, request

WS = "/v1/workspaces/data"
MANY = 200


class Site:
    """A sidecar with the workspace `data`, and a directory in it for one test."""

    def __init__(self, directory: Path, sidecar: Running, name: str) -> None:
        self.name, self.socket_path = name, sidecar.socket_path
        self.disk = directory / "data" / name
        self.audit = directory / "root" / ".state" / "audit.jsonl"
        self.source = directory / "source"
        self.source.write_text("content")

    def batch(
        self, verb: str, items: list[dict[str, Any]], *, key: str | None = None, **options: object
    ) -> Answer:
        body = json.dumps({"files": items, **options}).encode()
        headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
        return request(self.socket_path, "POST", f"{WS}/{verb}", body, **headers)

    def upload(self, *names: str, **fields: str) -> list[dict[str, Any]]:
        return [{"local_path": str(self.source), "file_path": f"{self.name}/{name}", **fields} for name in names]

    def records(self) -> dict[str, dict[str, Any]]:
        """The live records below the directory, by what is below it."""
        answer = request(self.socket_path, "GET", f"{WS}/catalog?is_deleted=false&limit=10000")
        above = f"{self.name}/"
        return {
            found["file_path"].removeprefix(above): found
            for found in answer.json["files"]
            if found["file_path"].startswith(above)
        }


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Path, Running]]:
    with host_sidecar() as found:
        yield found
        assert "Traceback" not in found[1].log()


@pytest.fixture
def site(served: tuple[Path, Running], request: pytest.FixtureRequest) -> Site:
    return Site(*served, request.node.name.replace("[", "-").rstrip("]"))


def numbered(count: int = MANY) -> list[str]:
    return [f"{number:04}" for number in range(count)]


def statuses(answer: Answer) -> list[str]:
    return [result["status"] for result in answer.json["results"]]


@pytest.mark.parametrize(("on_error", "rest"), [("stop", "skipped"), ("continue", "done")])
def test_of_a_group_only_what_fails_fails(site: Site, on_error: str, rest: str) -> None:
    items = site.upload(*numbered())
    items[130]["local_path"] = "/missing"
    answer = site.batch("upload", items, on_error=on_error)
    assert statuses(answer) == ["done"] * 130 + ["failed"] + [rest] * (MANY - 131)
    assert answer.json["results"][130]["error"]["code"] == "missing-file"
    expected = {name for name, status in zip(numbered(), statuses(answer), strict=True) if status == "done"}
    assert set(os.listdir(site.disk)) == set(site.records()) == expected
    told = {result["file_path"]: result.get("file") for result in answer.json["results"]}
    assert all(told[record["file_path"]] == record for record in site.records().values())


def test_every_file_of_a_group_is_told_in_order(site: Site) -> None:
    before = len(site.audit.read_text().splitlines()) if site.audit.exists() else 0
    items = site.upload(*numbered(80))
    items[70]["local_path"] = "/missing"
    answer = site.batch("upload", items)
    lines = [json.loads(line) for line in site.audit.read_text().splitlines()[before:]]
    lines = [line for line in lines if line["request"] == answer.headers["X-Request-Id"]]  # not of a test before
    assert [line["path"] for line in lines] == [item["file_path"] for item in items[:71]]
    assert [line["outcome"] for line in lines] == ["done"] * 70 + ["missing-file"]
    assert all(line["ms"] > 0 and line.get("bytes", 7) == 7 for line in lines)


def test_an_item_finds_what_those_before_it_have_done(site: Site) -> None:
    first, second = site.upload("a", media_type="a/b") + site.upload("a")
    uploads = [*site.upload(*numbered(90)), first, second]
    assert statuses(site.batch("upload", uploads)) == ["done"] * 92
    assert site.records()["a"]["media_type"] == "a/b", "kept by the second, which says none"
    path = f"{site.name}/a"
    moves = [(path, f"{path}1"), (f"{path}1", f"{path}2"), (f"{site.name}/0000", path), (path, f"{path}3")]
    answer = site.batch("move", [{"file_path": old, "new_path": new} for old, new in moves])
    assert statuses(answer) == ["done"] * 4
    assert {"a2", "a3"} < set(site.records())
    assert {"a", "a1", "0000"}.isdisjoint(site.records())


def test_files_are_named_by_their_records_in_a_group(site: Site) -> None:
    site.batch("upload", site.upload(*numbered(100)))
    known = site.records()
    records = [known[name] for name in numbered(100)]
    names = [{"id": found["id"]} if at % 2 else {"uuid": found["uuid"]} for at, found in enumerate(records)]
    moves = [{**name, "new_path": f"{site.name}/moved/{at}"} for at, name in enumerate(names)]
    assert statuses(site.batch("move", moves)) == ["done"] * 100
    twice = site.batch("delete", [*names[:70], names[3], *names[70:], {"id": 2**62}], on_error="continue")
    assert statuses(twice) == ["done"] * 101 + ["failed"]
    assert os.listdir(site.disk / "moved") == []
    assert site.records() == {}


def test_a_group_with_a_key_is_done_once(site: Site) -> None:
    items = site.upload(*numbered(100))
    items[80]["local_path"] = str(site.source) + "-later"
    assert statuses(site.batch("upload", items, key=site.name)) == ["done"] * 80 + ["failed"] + ["skipped"] * 19
    before = {name: (site.disk / name).stat().st_ino for name in numbered(80)}
    Path(items[80]["local_path"]).write_text("content")
    again = site.batch("upload", items, key=site.name)
    assert statuses(again) == ["done"] * 100
    assert {name: (site.disk / name).stat().st_ino for name in numbered(80)} == before
    assert site.batch("upload", items, key=site.name).json == again.json


def test_a_path_that_another_request_changes_is_waited_for_and_the_rest_is_not(site: Site) -> None:
    names = numbered(20)
    with connected(site.socket_path) as put:
        head = f"PUT {WS}/content/{site.name}/{names[12]} HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\n\r\nab"
        put.sendall(head.encode())
        with connected(site.socket_path) as stream:
            body = "".join(f"{json.dumps(item)}\n" for item in site.upload(*names)).encode()
            head = f"POST {WS}/upload HTTP/1.1\r\nHost: b\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
            stream.sendall(f"{head}Content-Type: application/x-ndjson\r\n\r\n".encode() + body)
            received = b""
            while received.count(b'"done"') < 12:
                received += stream.recv(65536)
            assert received.count(b'"done"') == 12
            put.sendall(b"cd")
            assert put.recv(1000).startswith(b"HTTP/1.1 201")
            while part := stream.recv(65536):
                received += part
    assert received.count(b'"done"') == 20
    assert (site.disk / names[12]).read_text() == "content"
    assert {record["file_size"] for record in site.records().values()} == {7}
