"""The client on the wire: requests that it makes, and what it makes of answers, whole and broken."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brokervol.client import CHUNK_ITEMS, BrokerError, Client, FileDetails, FileFacts
from unit.scripted_sidecar import CHUNKED, Request, Script, answer, chunk, lines, scripted_sidecar

Write = Callable[[bytes], object]


def saying(*pieces: bytes) -> Script:
    def script(_: Request, write: Write) -> None:
        for piece in pieces:
            write(piece)

    return script


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "broker.sock")


FILE = {"file": "a.tif", "size": 1}
DONE = {"file_path": "a.tif", "status": "done"}
FAILED = {"file_path": "a.tif", "status": "failed", "error": {"code": "missing-file", "detail": "no a.tif"}}


def test_names_and_queries_are_percent_encoded_as_their_bytes(path: str) -> None:
    prefix = os.fsdecode(b"caf\xe9/a b?&")
    with scripted_sidecar(path, saying(answer(b""))) as requests:
        assert list(Client(path).files("da/ta", prefix=prefix, recursive=True)) == []
    assert requests[0].target == "/v1/workspaces/da%2Fta/files?prefix=caf%E9%2Fa%20b%3F%26&recursive=true"
    assert requests[0].headers["accept"] == "application/x-ndjson"


def test_names_in_bodies_are_lone_surrogates_both_ways(path: str) -> None:
    name = os.fsdecode(b"caf\xe9")
    with scripted_sidecar(path, saying(answer(lines({"file_path": name, "status": "done"})))) as requests:
        [result] = Client(path).delete("data", [{"file_path": name}])
    assert result["file_path"] == requests[0].body["files"][0]["file_path"] == name


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_are_read_however_they_are_cut(path: str, size: int) -> None:
    whole = lines(*({"file": f"f{number}", "size": number} for number in range(200)))
    pieces = [chunk(whole[start : start + size]) for start in range(0, len(whole), size)]
    with scripted_sidecar(path, saying(CHUNKED, *pieces, chunk(b""))):
        assert list(Client(path).files("data")) == [FileDetails(f"f{number}", number) for number in range(200)]


def test_files_come_before_the_listing_ends(path: str) -> None:
    goes_on = threading.Event()

    def script(_: Request, write: Write) -> None:
        write(CHUNKED + chunk(lines(FILE)))
        assert goes_on.wait(20)
        write(chunk(lines(FILE)) + chunk(b""))

    with scripted_sidecar(path, script):
        files = Client(path).files("data")
        assert next(files) == FileDetails("a.tif", 1)
        goes_on.set()
        assert list(files) == [FileDetails("a.tif", 1)]


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"HTTP/1.1 200 OK\r\nContent-Le",),
        (b"nonsense\r\n\r\n",),
        (answer(lines(FILE, FILE))[:-5],),
        (answer(lines(FILE))[:-1],),
        (CHUNKED + chunk(lines(FILE)),),
        (CHUNKED + chunk(lines(FILE))[:-6],),
        (CHUNKED + chunk(b'{"file": ') + chunk(b""),),
        (CHUNKED + b"zz\r\n",),
    ],
)
def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(path: str, pieces: tuple[bytes, ...]) -> None:
    with scripted_sidecar(path, saying(*pieces)), pytest.raises(BrokerError, match="broke off") as caught:
        list(Client(path).files("data"))
    assert (caught.value.code, caught.value.status) == ("unreachable", 0)


def test_an_error_line_ends_the_listing_with_that_error(path: str) -> None:
    error = {"error": {"code": "backend-unavailable", "detail": "the server went away"}}
    with scripted_sidecar(path, saying(answer(lines(FILE, error)))):
        files = Client(path).files("data")
        assert next(files).file == "a.tif"
        with pytest.raises(BrokerError, match="the server went away") as caught:
            next(files)
    assert caught.value.code == "backend-unavailable"


def test_a_problem_document_becomes_an_error(path: str) -> None:
    problem = {
        "type": "urn:x",
        "title": "Not Found",
        "status": 404,
        "code": "unknown-workspace",
        "detail": "there is no workspace data",
        "results": [FAILED],
    }
    said = saying(answer(problem, "404 Not Found", "application/problem+json"))
    with scripted_sidecar(path, said), pytest.raises(BrokerError) as caught:
        Client(path).workspace("data")
    error = caught.value
    assert (error.code, error.status, error.title, error.detail, error.results) == (
        "unknown-workspace",
        404,
        "Not Found",
        "there is no workspace data",
        [FAILED],
    )


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff"])
def test_an_error_without_a_document_still_has_its_status(path: str, body: bytes) -> None:
    with scripted_sidecar(path, saying(answer(body, "502 Bad Gateway"))), pytest.raises(BrokerError) as caught:
        Client(path).workspaces()
    assert (caught.value.code, caught.value.status) == ("internal-error", 502)
    assert str(caught.value) == "the sidecar answered 502 Bad Gateway"


def test_a_refusal_before_the_body_is_read_is_still_heard(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    refusal = answer({"code": "too-large", "detail": "the body is too large"}, "413 Too Large")

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(refusal)

    with listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(BrokerError) as caught:
            Client(path).paths("data", ["x" * 4000] * 1000)
        thread.join()
    # The kernel may drop the answer with the unread body; then the error says that it broke off.
    assert caught.value.code in ("too-large", "unreachable")


def test_batches_go_up_in_chunks_with_their_options(path: str) -> None:
    def script(request: Request, write: Write) -> None:
        results = ({"file_path": item["file_path"], "status": "done"} for item in request.body["files"])
        write(answer(lines(*results)))

    items = ({"local_path": "/a", "file_path": str(number)} for number in range(CHUNK_ITEMS * 2 + 1))
    with scripted_sidecar(path, script) as requests:
        results = list(Client(path).upload("data", items, on_error="continue", overwrite=False))
    assert [result["file_path"] for result in results] == [str(n) for n in range(CHUNK_ITEMS * 2 + 1)]
    assert [len(request.body["files"]) for request in requests] == [CHUNK_ITEMS, CHUNK_ITEMS, 1]
    assert {(request.body["on_error"], request.body["overwrite"]) for request in requests} == {("continue", False)}


@pytest.mark.parametrize(("on_error", "chunks"), [("stop", 1), ("continue", 2)])
def test_after_a_failure_the_next_chunk_goes_up_only_to_continue(path: str, on_error: str, chunks: int) -> None:
    items = [{"file_path": "a.tif"}] * (CHUNK_ITEMS + 1)
    with scripted_sidecar(path, saying(answer(lines(FAILED)))) as requests:
        list(Client(path).delete("data", items, on_error=on_error))
    assert len(requests) == chunks


def test_an_empty_batch_asks_nothing(path: str) -> None:
    assert list(Client(path).download("data", [])) == []


def test_each_operation_asks_its_own_address(path: str) -> None:
    client = Client(path)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("download", lambda: client.download("d", [{"file_path": "a", "local_path": "/a"}])),
        ("upload", lambda: client.upload("d", [{"file_path": "a", "local_path": "/a"}])),
        ("move", lambda: client.move("d", [{"file_path": "a", "new_path": "b"}])),
        ("delete", lambda: client.delete("d", [{"file_path": "a"}])),
    ]
    with scripted_sidecar(path, saying(answer(lines(DONE)))) as requests:
        for _, call in calls:
            assert list(call()) == [DONE]
    assert [request.target for request in requests] == [f"/v1/workspaces/d/{name}" for name, _ in calls]
    assert {request.method for request in requests} == {"POST"}


def test_the_catalog_is_read_page_by_page(path: str) -> None:
    def script(request: Request, write: Write) -> None:
        is_last = "cursor=c%3D" in request.target
        write(answer({"files": [{"id": 2 if is_last else 1}], "next_cursor": None if is_last else "c="}))

    with scripted_sidecar(path, script) as requests:
        records = list(Client(path).catalog("data", file_path="a.tif", is_deleted=False))
    assert [record["id"] for record in records] == [1, 2]
    assert all("file_path=a.tif" in r.target and "is_deleted=false" in r.target for r in requests)


def test_paths_of_a_broker_without_any_are_none(path: str) -> None:
    with scripted_sidecar(path, saying(answer({"paths": None}))):
        assert Client(path).paths("bucket", ["a"]) is None


def test_a_closed_iterator_closes_its_connection(path: str) -> None:
    is_closed = threading.Event()

    def script(_: Request, write: Write) -> None:
        try:
            while True:
                write(chunk(lines(FILE)))
        finally:
            is_closed.set()

    def start(request: Request, write: Write) -> None:
        write(CHUNKED)
        script(request, write)

    with scripted_sidecar(path, start):
        files = Client(path).files("data")
        next(files)
        files.close()
        assert is_closed.wait(20)


def test_a_connection_refused_during_a_restart_is_tried_again(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)  # bound and never listening: what a killed sidecar leaves
    refused = threading.Event()
    sleep = time.sleep

    def noticing(seconds: float) -> None:
        refused.set()
        sleep(seconds)

    monkeypatch.setattr("time.sleep", noticing)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(Client(path).workspaces()))
    thread.start()
    assert refused.wait(20)
    with scripted_sidecar(f"{path}.new", saying(answer({"workspaces": []}))):
        os.rename(f"{path}.new", path)  # as a sidecar does: there is a socket all the time
        thread.join()
    assert found == [[]]


def test_a_sidecar_that_stays_away_is_unreachable(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(BrokerError, match="connection refused") as caught:
        Client(path, patience_s=0).workspaces()
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda client: client.write("p", "q", b"x", media_type="\u20ac"), "invalid-request"),
        (lambda client: client.write("p", "q", b"x", etag="a\r\nb"), "invalid-request"),
        (lambda client: next(client.read("p", "q", etag="a\r\nb")), "invalid-request"),
        (lambda client: client.write("p", "\ud800", b"x"), "invalid-path"),
        (lambda client: client.facts("p", "\ud800"), "invalid-path"),
        (lambda client: next(client.files("p", "\ud800")), "invalid-path"),
    ],
)
def test_what_cannot_be_sent_is_no_fault_of_the_sidecar(
    path: str, call: Callable[[Client], object], code: str
) -> None:
    with scripted_sidecar(path, saying()) as requests, pytest.raises(BrokerError, match="not") as caught:
        call(Client(path))
    assert (caught.value.code, caught.value.status, requests) == (code, 0, [])


def test_a_silent_sidecar_is_left_after_the_timeout(path: str) -> None:
    asked_to_end = threading.Event()

    def script(*_: object) -> None:
        asked_to_end.wait(20)

    with scripted_sidecar(path, script):
        with pytest.raises(BrokerError, match="timed out"):
            Client(path, timeout_s=0.05).workspaces()
        asked_to_end.set()


# --- contents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "range_sent"),
    [
        ((0, None), None),
        ((5, None), "bytes=5-"),
        ((0, 10), "bytes=0-9"),
        ((5, 10), "bytes=5-14"),
        ((-3, None), "bytes=-3"),
    ],
)
def test_parts_of_a_file_are_asked_for_as_ranges(
    path: str, part: tuple[int, int | None], range_sent: str | None
) -> None:
    with scripted_sidecar(path, saying(answer(b"bytes"))) as requests:
        assert b"".join(Client(path).read("data", "a b/é", *part, etag="v1")) == b"bytes"
    assert requests[0].target == "/v1/workspaces/data/content/a%20b/%C3%A9"
    assert requests[0].headers.get("range") == range_sent
    assert requests[0].headers["if-match"] == '"v1"'


@pytest.mark.parametrize("part", [(0, 0), (-1, 5), (3, -1)])
def test_parts_that_cannot_be_are_refused(path: str, part: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="length must be"):
        next(Client(path).read("data", "a", *part))


def test_facts_that_are_refused_are_refused_with_the_reason(path: str) -> None:
    def script(request: Request, write: Write) -> None:
        told = {"code": "missing-file", "detail": "there is no a.tif"}
        write(answer(b"" if request.method == "HEAD" else told, "404 Not Found"))

    with scripted_sidecar(path, script), pytest.raises(BrokerError, match=r"no a\.tif") as caught:
        Client(path).facts("data", "a.tif")
    assert caught.value.code == "missing-file"


def test_a_storage_that_tells_no_time_has_none(path: str) -> None:
    with scripted_sidecar(path, saying(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nETag: "v"\r\n\r\n')):
        assert Client(path).facts("data", "a") == FileFacts(12, "v", None, "")


@pytest.mark.parametrize("name", ["", None])
def test_a_workspace_without_a_name_is_refused(path: str, name: Any) -> None:
    with pytest.raises(ValueError, match="a workspace is named by a string that is not empty, not by"):
        Client(path).workspace(name)
