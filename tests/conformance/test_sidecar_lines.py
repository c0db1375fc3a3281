"""Streams of one JSON document a line, into the real sidecar and out of it: as they come, of any length."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.directories import temporary_directory
from lab.processes import Running, wait_until
from lab.sidecar import descriptors, self_sidecar
from lab.task import Answer, ask
from lab.unix_http import UnixConnection, connected
from storage import catalog
from storage.models import ScaleFile

LINES = {"Content-Type": "application/x-ndjson"}
_WORKSPACES = 30


class Site:
    """A running sidecar, and in it a workspace that no other test uses."""

    def __init__(self, process: Running, directory: Path, name: str) -> None:
        self.process = process
        self.name = name
        self.ws = f"/v1/workspaces/{name}"
        self.catalog_url = f"sqlite:///{directory}/root/.state/catalog.sqlite"
        self.disk = directory / name
        self.local = directory / f"{name}-local"

    def get(self, path: str, **headers: str) -> Answer:
        return ask(self.process.socket_path, "GET", f"{self.ws}/{path}", headers=headers)

    def post(self, path: str, lines: Iterable[object], **headers: str) -> Answer:
        """Send documents, each on a line; texts as they are."""
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        body = "".join(f"{text}\n" for text in texts)
        return ask(self.process.socket_path, "POST", f"{self.ws}/{path}", body, {**LINES, **headers})

    def source(self) -> dict[str, str]:
        return {"local_path": f"{self.local}/in"}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Running, Path, Iterator[int]]]:
    with temporary_directory() as directory:
        hosts = {f"data{number}": str(directory / f"data{number}") for number in range(_WORKSPACES)}
        workspaces = {name: {"broker": {"type": "host", "host_path": path}} for name, path in hosts.items()}
        with self_sidecar(directory, workspaces) as process:
            yield process, directory, iter(range(_WORKSPACES))
            assert "Traceback" not in process.log()


@pytest.fixture
def site(served: tuple[Running, Path, Iterator[int]]) -> Iterator[Site]:
    process, directory, numbers = served
    site = Site(process, directory, f"data{next(numbers)}")
    site.disk.mkdir()
    site.local.mkdir()
    (site.local / "in").write_text("hello")
    site.get("catalog")
    before = descriptors(process.pid)
    yield site
    wait_until(lambda: descriptors(process.pid) <= before + 1, "descriptors to be closed")


class Talk:
    """A request whose body is sent, and whose answer is read, bit by bit."""

    def __init__(self, site: Site, path: str) -> None:
        self._connection = connected(site.process.socket_path)
        head = f"POST {site.ws}/{path} HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n"
        self._connection.sendall(f"{head}Content-Type: application/x-ndjson\r\n\r\n".encode())
        self._file = self._connection.makefile("rb")

    def send(self, text: str) -> None:
        self.send_raw(f"{len(text.encode()):x}\r\n{text}\r\n")

    def send_raw(self, text: str) -> None:
        self._connection.sendall(text.encode())

    def say(self, item: object) -> None:
        self.send(f"{json.dumps(item)}\n")

    def read_head(self) -> bytes:
        return b"".join(iter(self._file.readline, b"\r\n"))

    def read_chunk(self) -> Any:
        """The next line of the answer, which is sent as a chunk of its own; None at the end."""
        size = int(self._file.readline(), 16)
        chunk = self._file.read(size + 2)
        return json.loads(chunk) if size else None

    def end(self) -> None:
        self._connection.sendall(b"0\r\n\r\n")

    def end_sending(self) -> None:
        self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._file.close()
        self._connection.close()


@pytest.fixture
def talk(site: Site) -> Iterator[Talk]:
    talk = Talk(site, "upload?on_error=continue")
    yield talk
    talk.close()


def test_items_are_done_and_told_as_they_arrive(site: Site, talk: Talk) -> None:
    for number in range(3):
        talk.say({**site.source(), "file_path": f"f{number}"})
        if number == 0:
            head = talk.read_head()
            assert head.startswith(b"HTTP/1.1 200")
            assert b"application/x-ndjson" in head
        assert talk.read_chunk()["file"]["file_path"] == f"f{number}"
        assert sorted(os.listdir(site.disk)) == [f"f{done}" for done in range(number + 1)]
    talk.end()
    assert talk.read_chunk() is None


def test_lines_are_found_however_they_are_cut(site: Site, talk: Talk) -> None:
    line = json.dumps({**site.source(), "file_path": "\u00fc"}, ensure_ascii=False) + "\n"
    for letter in line:
        talk.send(letter)
    talk.send(line * 2 + line.rstrip())
    talk.end()
    talk.read_head()
    results = list(iter(talk.read_chunk, None))
    assert [result["status"] for result in results] == ["done"] * 4
    assert os.listdir(site.disk) == ["\u00fc"]


def test_all_batches_take_lines(site: Site) -> None:
    upload = [{**site.source(), "file_path": name, "media_type": "a/b"} for name in ("a", "b")]
    uploaded = site.post("upload", upload)
    assert uploaded.headers["content-type"] == "application/x-ndjson"
    assert [line["file"]["media_type"] for line in uploaded.lines] == ["a/b", "a/b"]
    first, second = (line["file"] for line in uploaded.lines)
    names = [{"uuid": first["uuid"]}, {"id": second["id"]}]
    assert [line["path"] for line in site.post("paths", names).lines] == [f"{site.disk}/a", f"{site.disk}/b"]
    downloads = [{**name, "local_path": f"{site.local}/{number}"} for number, name in enumerate(names)]
    assert [line["status"] for line in site.post("download", downloads).lines] == ["done", "done"]
    assert (site.local / "1").read_text() == "hello"
    moves = [{**name, "new_path": f"moved/{number}"} for number, name in enumerate(names)]
    assert [line["status"] for line in site.post("move", moves).lines] == ["done", "done"]
    assert [line["status"] for line in site.post("delete", names).lines] == ["done", "done"]
    assert os.listdir(site.disk / "moved") == []


def test_no_lines_are_no_work(site: Site) -> None:
    for verb in ("download", "upload", "move", "delete", "paths"):
        answer = site.post(verb, [])
        assert (answer.status, answer.lines) == (200, [])


BAD_LINES = [
    ("{", "not JSON"),
    ('{"file_path": "a"} {"file_path": "b"}', "not JSON"),
    ("[]", "object"),
    ('"a"', "object"),
    ("{}", "exactly one"),
    ('{"file_path": 1}', "file_path"),
    ('{"file_path": "a", "id": 1}', "exactly one"),
    ('{"file_path": "a", "extra": 1}', "extra"),
    ("\udcff\udcfe", "not JSON"),
    ("[" * 60_000, "not JSON"),
    ('{"file_path": "' + "x" * 70_000 + '"}', "longer than 65536 bytes"),
    ("x" * 3_000_000, "longer than 65536 bytes"),
]


def test_a_bad_line_is_told_by_its_number_and_the_rest_is_done_or_skipped(site: Site) -> None:
    for bad, told in BAD_LINES:
        lines = ["", '{"file_path": "a"}', bad, "  ", '{"file_path": "b"}']
        body = "\n".join(lines).encode("utf-8", "surrogateescape")
        for on_error, after in (("continue", "done"), ("stop", "skipped")):
            answer = send(site, f"delete?on_error={on_error}", body)
            first, second, third = answer
            assert (first["status"], second["status"], third["status"]) == ("done", "failed", after)
            assert second["file_path"] == "line 3"
            assert second["error"]["code"] == "invalid-request"
            assert told in second["error"]["detail"], second
            assert "line 3" in second["error"]["detail"]


def send(site: Site, path: str, body: bytes) -> list[Any]:
    connection = UnixConnection(site.process.socket_path)
    connection.request("POST", f"{site.ws}/{path}", body, LINES)
    text = connection.getresponse().read()
    connection.close()
    return [json.loads(line) for line in text.splitlines()]


def test_paths_as_lines_stop_at_nothing(site: Site) -> None:
    answer = site.post("paths", [{"file_path": "../x"}, "{", {"file_path": "a"}])
    assert [line["status"] for line in answer.lines] == ["failed", "failed", "done"]
    assert [line["error"]["code"] for line in answer.lines[:2]] == ["invalid-path", "invalid-request"]
    assert answer.lines[2] == {"file_path": "a", "status": "done", "path": f"{site.disk}/a"}


def test_what_holds_for_a_whole_batch_is_in_the_query(site: Site) -> None:
    item = {**site.source(), "file_path": "f"}
    (site.disk / "f").write_text("old")
    (result,) = site.post("upload?overwrite=false", [item]).lines
    assert result["error"]["code"] == "already-exists"
    assert (site.disk / "f").read_text() == "old"
    for query, code in (
        ("overwrite=perhaps", "overwrite"),
        ("on_error=ask", "on_error"),
        ("update_model=true", "up"),
    ):
        answer = site.post(f"upload?{query}", [item])
        assert (answer.status, answer.json["code"]) == (400, "invalid-request")
        assert code in answer.json["detail"]
    assert (site.disk / "f").read_text() == "old"
    (result,) = site.post("delete?update_model=false", [{"file_path": "f"}]).lines
    assert result["status"] == "done"
    assert ask(site.process.socket_path, "GET", f"{site.ws}/catalog").json["files"] == []


def test_the_query_holds_for_a_body_that_does_not_say_otherwise(site: Site) -> None:
    def upload(query: str, **options: object) -> int:
        body = {"files": [{**site.source(), "file_path": "f"}], **options}
        return ask(site.process.socket_path, "POST", f"{site.ws}/upload{query}", body).status

    assert upload("") == 200
    assert upload("?overwrite=false") == 409
    assert upload("?overwrite=false", overwrite=True) == 200


def test_a_batch_with_a_key_is_done_once_as_lines_too(site: Site) -> None:
    moves = [{"file_path": "a", "new_path": "b"}, {"file_path": "c", "new_path": "d"}]
    for name in ("a", "c"):
        (site.disk / name).touch()
    for _ in range(2):
        answer = site.post("move", moves, **{"Idempotency-Key": "k"})
        assert [line["status"] for line in answer.lines] == ["done", "done"]
    assert sorted(os.listdir(site.disk)) == ["b", "d"]
    other = site.post("move", [moves[1]], **{"Idempotency-Key": "k"})
    assert other.lines[0]["error"]["code"] == "invalid-request"
    for key in ("", "\t", "x" * 256):
        assert site.post("move", moves, **{"Idempotency-Key": key}).status == 400


MANY = 5000


def test_a_long_stream_needs_no_memory(site: Site) -> None:
    """Some 60 MB come and some 30 MB go, of items, results, and lines that are too long."""
    site.post("paths", [{"file_path": "a"}] * 100)
    before = memory(site, "VmRSS")
    with open(f"/proc/{site.process.pid}/clear_refs", "w", encoding="ascii") as peak:
        peak.write("5")
    connection = connected(site.process.socket_path)
    head = f"POST {site.ws}/paths HTTP/1.1\r\nHost: b\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    connection.sendall(f"{head}Content-Type: application/x-ndjson\r\n\r\n".encode())
    sender = threading.Thread(target=send_many, args=(connection,))
    sender.start()
    with connection, connection.makefile("rb") as answer:
        done = sum(b'"done"' in line for line in answer)
    sender.join()
    assert done == MANY
    assert memory(site, "VmHWM") - before < 8 * 1024


def send_many(connection: socket.socket) -> None:
    path = "/".join(["d" * 250] * 12)
    block = b"".join(b'{"file_path": "%b/%d"}\n' % (path.encode(), number) for number in range(MANY // 50))
    for _ in range(50):
        connection.sendall(b"%x\r\n%b\r\n" % (len(block), block))
        connection.sendall(b"%x\r\n%b\r\n" % (900_001, b"x" * 900_000 + b"\n"))
    connection.sendall(b"0\r\n\r\n")


def memory(site: Site, name: str) -> int:
    """In KiB."""
    with open(f"/proc/{site.process.pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("ending", [None, "no size\r\n"])
def test_a_body_that_breaks_off_is_done_as_far_as_it_is_whole(site: Site, talk: Talk, ending: str | None) -> None:
    talk.say({**site.source(), "file_path": "whole"})
    talk.read_head()
    assert talk.read_chunk()["status"] == "done"
    talk.send(json.dumps({**site.source(), "file_path": "half"})[:-1])
    if ending is None:
        talk.end_sending()
    else:
        talk.send_raw(ending)
    assert talk.read_chunk()["error"]["code"] == "invalid-request"
    assert talk.read_chunk() is None
    assert os.listdir(site.disk) == ["whole"]


def test_a_batch_ends_when_its_client_hangs_up(site: Site, talk: Talk) -> None:
    (site.local / "in").write_bytes(b"x" * 2_000_000)
    talk.send("".join(f"{json.dumps({**site.source(), 'file_path': f'f{number}'})}\n" for number in range(2000)))
    talk.read_head()
    talk.close()  # long before all of these 4 GB are copied, also if we are late
    site.process.wait_for_log(f"{site.ws}/upload")
    assert "the client is gone" in site.process.log()
    assert len(os.listdir(site.disk)) < 2000


def test_a_listing_stops_when_its_client_hangs_up(site: Site) -> None:
    for number in range(MANY):
        (site.disk / f"{number:0250}").touch()
    hang_up(site, "files")


def test_a_stream_of_records_stops_when_its_client_hangs_up(site: Site) -> None:
    records = catalog.Catalog(site.catalog_url)
    files = [ScaleFile(file_path=f"{number:0250}", workspace=site.name) for number in range(MANY)]
    records.save_all(files)
    records.close()
    hang_up(site, "catalog")


def hang_up(site: Site, path: str) -> None:
    """Read the beginning of a stream of more than a socket holds, and go."""
    with connected(site.process.socket_path) as client:
        client.sendall(
            f"GET {site.ws}/{path} HTTP/1.1\r\nHost: b\r\nAccept: application/x-ndjson\r\n\r\n".encode()
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    site.process.wait_for_log(f"{site.ws}/{path}")
    assert "the client is gone" in site.process.log()


def test_head_of_a_stream_is_its_head(site: Site) -> None:
    connection = UnixConnection(site.process.socket_path)
    for _ in range(2):  # and the connection is good for more
        connection.request("HEAD", f"{site.ws}/files", headers={"Accept": "application/x-ndjson"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        assert answer.headers["Content-Length"] is None
    connection.close()
    assert site.ws not in site.process.log()
