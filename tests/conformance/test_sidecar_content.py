"""The bytes of files over HTTP, on the real process and socket: in its own view, as callers do, and by curl."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lab.directories import temporary_directory
from lab.hostile import REFUSED_PATHS, WEIRD_NAMES
from lab.namespaces import Host
from lab.processes import Running, running, wait_until
from lab.s3 import Place, S3Server, new_place
from lab.sidecar import caller_sidecar, descriptors, self_sidecar, thread_identities
from lab.task import Identity, Task
from lab.unix_http import Answer, UnixConnection, connected, exchange, request
from lab.volume_driver import DIES_WITH_THE_TESTS, driver_on

MIB = 1 << 20
USER = Identity(uid=1000, gid=1000)

# What no two answers have in common.
UNIQUE = ("Date", "X-Request-Id")


def encoded(path: str) -> str:
    return quote(path.encode("utf-8", "surrogateescape" if "\udcff" in path else "surrogatepass"))


class Space:
    """A workspace behind the sidecar, and what is really stored for it."""

    def __init__(self, process: Running, name: str, directory: Path) -> None:
        self.process = process
        self.name = name
        self.audit_log = directory / "root/.state/audit.jsonl"

    def url(self, path: str, workspace: str = "") -> str:
        return f"/v1/workspaces/{workspace or self.name}/content/{path}"

    def ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        """One request; `_` in the names of headers stands for `-`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(self.process.socket_path, method, self.url(encoded(path)), body, **given)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def head(self, path: str, **headers: str) -> Answer:
        return self.ask("HEAD", path, None, headers)

    def put(self, path: str, body: bytes, **headers: str) -> Answer:
        return self.ask("PUT", path, body, headers)

    def records(self) -> list[dict[str, Any]]:
        found = request(self.process.socket_path, "GET", f"/v1/workspaces/{self.name}/catalog").json["files"]
        return [record for record in found if not record["is_deleted"]]

    def audited(self, operation: str) -> list[str]:
        """The outcomes of this operation here, as the audit log has them."""
        with open(self.audit_log, encoding="ascii") as lines:
            told = [json.loads(line) for line in lines]
        ours = [line for line in told if (line.get("workspace"), line["operation"]) == (self.name, operation)]
        return [line["outcome"] for line in ours]

    def store(self, path: str, content: bytes) -> None:
        raise NotImplementedError

    def stored(self) -> dict[str, bytes]:
        """All that is in the storage, unfinished things too."""
        raise NotImplementedError


class HostSpace(Space):
    def __init__(self, process: Running, name: str, directory: Path) -> None:
        super().__init__(process, name, directory)
        self.directory = directory / name

    def store(self, path: str, content: bytes) -> None:
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / path).write_bytes(content)

    def stored(self) -> dict[str, bytes]:
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        directories = [path for path in self.directory.rglob("*") if path.is_dir() and not any(path.iterdir())]
        found = {str(path.relative_to(self.directory)): path.read_bytes() for path in files}
        return found | {f"{path.relative_to(self.directory)}/": b"" for path in directories}


class BucketSpace(Space):
    def __init__(self, process: Running, name: str, directory: Path, server: S3Server, place: Place) -> None:
        super().__init__(process, name, directory)
        self._client = server.client()
        self._bucket = place.bucket

    def store(self, path: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=f"{self.name}/{path}", Body=content)

    def stored(self) -> dict[str, bytes]:
        above = f"{self.name}/"
        listed = self._client.list_objects_v2(Bucket=self._bucket, Prefix=above).get("Contents", [])
        keys = [found["Key"] for found in listed]
        objects = {key: self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read() for key in keys}
        uploads = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=above).get("Uploads", [])
        found = {key.removeprefix(above): content for key, content in objects.items()}
        return found | {f"upload of {upload['Key']}": b"" for upload in uploads}


_EACH = 60


@pytest.fixture(scope="module")
def served(seaweedfs: S3Server) -> Iterator[tuple[Running, Path, Place, Iterator[int]]]:
    """A sidecar with as many workspaces, on disk and in a bucket, as there are tests; each also as read-only."""
    with temporary_directory() as directory, new_place(seaweedfs) as place:
        workspaces: dict[str, Any] = {}
        for number in range(_EACH):
            (directory / f"data{number}").mkdir()
            bucket = {"type": "s3", "bucket_name": place.bucket, "region_name": seaweedfs.region_name}
            bucket |= {"endpoint_url": seaweedfs.endpoint_url, "prefix": f"keys{number}"}
            for name, broker in (
                (f"data{number}", {"type": "host", "host_path": str(directory / f"data{number}")}),
                (f"keys{number}", {**bucket, "credentials": seaweedfs.credentials()}),
            ):
                workspaces[name] = {"broker": broker}
                workspaces[f"{name}-frozen"] = {"broker": broker, "read_only": True}
        with self_sidecar(directory, workspaces) as process:
            yield process, directory, place, iter(range(_EACH))
            assert "Traceback" not in process.log()


@pytest.fixture(params=["host", "s3"])
def space(
    request: pytest.FixtureRequest, served: tuple[Running, Path, Place, Iterator[int]], seaweedfs: S3Server
) -> Space:
    process, directory, place, numbers = served
    number = next(numbers)
    space: Space = HostSpace(process, f"data{number}", directory)
    if request.param == "s3":
        space = BucketSpace(process, f"keys{number}", directory, seaweedfs, place)
    return space


@pytest.fixture
def disk(served: tuple[Running, Path, Place, Iterator[int]]) -> Iterator[HostSpace]:
    process, directory, _, numbers = served
    space = HostSpace(process, f"data{next(numbers)}", directory)
    before = descriptors(process.pid)
    yield space
    wait_until(lambda: descriptors(process.pid) <= before + 1, "descriptors to be closed")


def assert_problem(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.json["code"], answer.json["status"]) == (status, code, status), answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"


# Reading


def test_get_gives_the_bytes_and_says_what_they_are(space: Space) -> None:
    space.store("2026/a.tif", b"pixels")
    answer = space.get("2026/a.tif")
    assert (answer.status, answer.body) == (200, b"pixels")
    headers = answer.headers
    assert (headers["Content-Length"], headers["Content-Type"]) == ("6", "image/tiff")
    assert (headers["Accept-Ranges"], headers["X-Content-Type-Options"]) == ("bytes", "nosniff")
    assert re.fullmatch(r'"[!#-~]+"', headers["ETag"])
    assert parsedate_to_datetime(headers["Last-Modified"]).tzinfo is not None
    assert space.get("2026/a.tif").headers["ETag"] == headers["ETag"]


def test_head_is_get_without_the_bytes(space: Space) -> None:
    space.store("f.txt", b"hello")
    for path, asked in (("f.txt", {}), ("f.txt", {"If_None_Match": "*"}), ("gone", {}), ("../x", {})):
        got, head = space.get(path, **asked), space.head(path, **asked)
        assert (head.status, head.body) == (got.status, b"")
        told = [{k: v for k, v in answer.headers.items() if k not in UNIQUE} for answer in (got, head)]
        assert told[0] == told[1]
    assert space.head("f.txt", Range="bytes=1-2").status == 200, "ranges are of GET only"


@pytest.mark.parametrize("size", [10, 9 * MIB + 7])
def test_one_range_is_answered_with_exactly_that(space: Space, size: int) -> None:
    content = os.urandom(size)
    space.store("f", content)
    middle, last = size // 2, size - 1
    for asked, start, end in (
        ("bytes=0-0", 0, 0),
        (f"bytes={middle}-{middle + 2}", middle, middle + 2),
        (f"bytes={middle}-", middle, last),
        (f"bytes={last}-{size * 9}", last, last),
        ("bytes=-3", size - 3, last),
        (f"bytes=-{size * 9}", 0, last),
        (f"bytes = 1-{last}", 1, last),
    ):
        answer = space.get("f", Range=asked)
        assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes {start}-{end}/{size}"), asked
        assert answer.headers["Content-Length"] == str(end - start + 1)
        assert answer.body == content[start : end + 1]
        assert answer.headers["ETag"] == space.head("f").headers["ETag"]


def test_what_is_no_single_range_is_the_whole(space: Space) -> None:
    space.store("f", b"0123456789")
    malformed = ("bytes=", "bytes=x-", "bytes=5-2", "bytes=-0", "1-2", "bytes=1", f"bytes=0-{'9' * 5000}")
    for asked in ("bytes=0-1,4-5", "lines=1-2", *malformed):
        answer = space.get("f", Range=asked)
        assert (answer.status, answer.body) == (200, b"0123456789"), asked


def test_range_outside_of_the_file_says_how_large_it_is(space: Space) -> None:
    space.store("f", b"0123456789")
    space.store("empty", b"")
    for path, asked, size in (("f", "bytes=10-", 10), ("f", "bytes=99-100", 10), ("empty", "bytes=0-", 0)):
        answer = space.get(path, Range=asked)
        assert_problem(answer, 416, "range-not-satisfiable")
        assert answer.headers["Content-Range"] == f"bytes */{size}"


def test_empty_file(space: Space) -> None:
    assert space.put("empty", b"").status == 201
    answer = space.get("empty")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")


def test_conditions_tell_versions_apart(space: Space) -> None:
    space.store("f", b"0123456789")
    head = space.head("f").headers
    etag, modified = head["ETag"], head["Last-Modified"]
    past, future = "Mon, 01 Jan 2001 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
    for headers, status in (
        ({"If_None_Match": etag}, 304),
        ({"If_None_Match": f'"x", W/{etag}'}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": '"x"'}, 200),
        ({"If_None_Match": '"x"', "If_Modified_Since": modified}, 200),
        ({"If_Modified_Since": modified}, 304),
        ({"If_Modified_Since": past}, 200),
        ({"If_Modified_Since": "yesterday"}, 200),
        ({"If_Modified_Since": "Mon, 01 Jan 99999999999999 00:00:00 GMT"}, 200),
        ({"If_Unmodified_Since": "Mon, 01 Jan 99999999999999 00:00:00 GMT"}, 200),
        ({"If_Match": etag}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": '"x"'}, 412),
        ({"If_Match": f"W/{etag}"}, 412),
        ({"If_Match": '"x"', "If_None_Match": etag}, 412),
        ({"If_Unmodified_Since": past}, 412),
        ({"If_Unmodified_Since": modified}, 200),
        ({"If_Unmodified_Since": future, "If_None_Match": etag}, 304),
        ({"Range": "bytes=0-1", "If_Range": etag}, 206),
        ({"Range": "bytes=0-1", "If_Range": '"x"'}, 200),
        ({"Range": "bytes=0-1", "If_Range": f"W/{etag}"}, 200),
        ({"Range": "bytes=0-1", "If_Range": modified}, 200),
        ({"Range": "bytes=99-", "If_Range": '"x"'}, 200),
        ({"Range": "bytes=0-1", "If_None_Match": etag}, 304),
    ):
        answer = space.get("f", **headers)
        assert answer.status == status, headers
        if status == 412:
            assert_problem(answer, 412, "precondition-failed")
        else:
            assert answer.headers["ETag"] == etag
            assert len(answer.body) == {200: 10, 206: 2, 304: 0}[status]


def test_media_type_is_the_records_or_guessed_by_the_name(space: Space) -> None:
    for path, sent, told in (
        ("a.json", "", "application/json"),
        ("a.TIF", "", "image/tiff"),
        ("a.tar.gz", "", "application/octet-stream"),
        ("noname", "", "application/octet-stream"),
        ("data:text/html,x", "", "application/octet-stream"),
        ("b.json", "text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("b.html", "application/x-www-form-urlencoded", "text/html"),
    ):
        headers = {"Content_Type": sent} if sent else {}
        answer = space.put(path, b"x", **headers)
        assert answer.status == 201
        assert answer.json["file"]["media_type"] == ("" if "urlencoded" in sent else sent)
        assert space.get(path).headers["Content-Type"] == told, path
    assert space.put("b.json", b"y").json["file"]["media_type"] == "text/plain; charset=utf-8"
    assert_problem(space.put("c", b"x", Content_Type="text/plain\xe9"), 400, "invalid-request")


def test_missing_files_and_workspaces(space: Space) -> None:
    space.store("dir/f", b"x")
    for path in ("gone", "dir", "gone/f"):
        assert_problem(space.get(path), 404, "missing-file")
    other = request(space.process.socket_path, "GET", space.url("f", workspace="other"))
    assert_problem(other, 404, "unknown-workspace")
    assert_problem(space.ask("POST", "dir/f", b"x", {}), 405, "method-not-allowed")


# Names


def test_any_name_works_percent_encoded(space: Space) -> None:
    names = [name for name in (*WEIRD_NAMES, "a%2Fb", "100%", "what?.txt", "#1", "a;b=c", "+") if "\\" not in name]
    for name in names:
        answer = space.put(name, name.encode())
        assert answer.status == 201, (name, answer.body)
        assert answer.json["file"]["file_path"] == name
    assert {name: space.get(name).body for name in names} == {name: name.encode() for name in names}
    assert set(space.stored()) == set(names)


def test_encoded_slash_is_a_slash_and_is_told_from_a_name_that_reads_like_one(space: Space) -> None:
    socket_path = space.process.socket_path
    assert request(socket_path, "PUT", space.url("a%2Fb"), b"below").status == 201
    assert request(socket_path, "PUT", space.url("a%252Fb"), b"beside").status == 201
    assert space.stored() == {"a/b": b"below", "a%2Fb": b"beside"}
    assert request(socket_path, "GET", space.url("%61/%62")).body == b"below"


def test_hostile_paths_are_refused_and_change_nothing(space: Space) -> None:
    space.store("victim", b"precious")
    urls = [space.url(encoded(path)) for path in REFUSED_PATHS]
    urls += [
        space.url(path) for path in ("..", "../victim", "%2e%2e/victim", "/etc/passwd", "a//b", "a/", "a%00b")
    ]
    for url in urls:
        for method, body in (("GET", None), ("HEAD", None), ("PUT", b"evil")):
            answer = request(space.process.socket_path, method, url, body)
            assert answer.status == 400, (method, url, answer.body)
            if method != "HEAD":
                assert_problem(answer, 400, "invalid-path")
    assert space.stored() == {"victim": b"precious"}
    assert space.records() == []


def test_what_follows_a_question_mark_is_no_part_of_a_name(space: Space) -> None:
    space.store("what", b"another file")
    for method, body in (("GET", None), ("PUT", b"evil")):
        answer = request(space.process.socket_path, method, space.url("what?.txt"), body)
        assert_problem(answer, 400, "invalid-request")
    assert space.stored() == {"what": b"another file"}


# Writing


def test_put_stores_the_body_and_answers_with_the_record(space: Space) -> None:
    answer = space.put("2026/new.tif", b"one", Content_Type="image/tiff")
    assert answer.status == 201
    (record,) = space.records()
    assert answer.json == {"file": record}
    assert (record["file_size"], record["media_type"], record["file_path"]) == (3, "image/tiff", "2026/new.tif")
    assert answer.headers["ETag"] == space.head("2026/new.tif").headers["ETag"]
    again = space.put("2026/new.tif", b"three")
    assert (again.status, again.json["file"]["id"], again.json["file"]["file_size"]) == (200, record["id"], 5)
    assert space.stored() == {"2026/new.tif": b"three"}


def test_put_replaces_only_what_it_may(space: Space) -> None:
    first = space.put("f", b"one", If_None_Match="*").headers["ETag"]
    assert_problem(space.put("f", b"two", If_None_Match="*"), 409, "already-exists")
    for tags in ('"x"', '"x", "y"', f"W/{first}"):
        assert_problem(space.put("f", b"two", If_Match=tags), 412, "precondition-failed")
    assert_problem(space.put("gone", b"two", If_Match="*"), 412, "precondition-failed")
    assert space.stored() == {"f": b"one"}
    second = space.put("f", b"two", If_Match=f'"x", {first}').headers["ETag"]
    assert_problem(space.put("f", b"lost update", If_Match=first), 412, "precondition-failed")
    assert space.put("f", b"three", If_Match="*").status == 200
    assert second != first
    assert space.stored() == {"f": b"three"}


def test_repeated_put_with_a_key_changes_nothing_twice(space: Space) -> None:
    first = space.put("f", b"one", Idempotency_Key="k")
    assert first.status == 201
    space.store("f", b"theirs")
    again = space.put("f", b"one", Idempotency_Key="k")
    assert again.status == 200
    assert again.json["file"]["id"] == first.json["file"]["id"]
    assert_problem(space.put("g", b"one", Idempotency_Key="k"), 400, "invalid-request")
    assert space.stored() == {"f": b"theirs"}


def test_conditions_that_are_not_obeyed_are_refused(space: Space) -> None:
    for headers in (
        {"Content_Range": "bytes 0-1/10"},
        {"If_None_Match": '"x"'},
        {"If_Unmodified_Since": "Mon, 01 Jan 2001 00:00:00 GMT"},
    ):
        assert_problem(space.put("f", b"x", **headers), 400, "invalid-request")
    assert space.stored() == {}


def test_read_only_holders_are_refused_before_they_have_sent_anything(space: Space) -> None:
    space.store("f", b"kept")
    head = f"PUT {space.url('f', f'{space.name}-frozen')} HTTP/1.1\r\nHost: b\r\nContent-Length: {1 << 40}\r\n\r\n"
    answer = exchange(space.process.socket_path, head.encode())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b'"code": "read-only"' in answer
    frozen = request(space.process.socket_path, "GET", space.url("f", f"{space.name}-frozen"))
    assert (frozen.status, frozen.body) == (200, b"kept")
    assert space.stored() == {"f": b"kept"}


def blocks(count: int, size: int = MIB) -> Iterator[bytes]:
    """Blocks of bytes that differ."""
    block = bytearray(os.urandom(size))
    for number in range(count):
        block[:8] = number.to_bytes(8, "big")
        yield bytes(block)


@pytest.mark.parametrize("size", [1, 100_000, 20 * MIB])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_client_that_breaks_off_leaves_nothing(space: Space, size: int, is_chunked: bool) -> None:
    space.store("old", b"kept")
    for path in ("old", "new", "some/new/place"):
        with connected(space.process.socket_path) as client:
            coding = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {size + 1}"
            client.sendall(f"PUT {space.url(path)} HTTP/1.1\r\nHost: b\r\n{coding}\r\n\r\n".encode())
            if is_chunked:
                client.sendall(f"{size:x}\r\n".encode())
            client.sendall(bytes(size))
    wait_until(lambda: space.audited("putContent").count("invalid-request") == 3, "all three to have failed")
    assert space.stored() == {"old": b"kept"}
    assert space.records() == []


@contextlib.contextmanager
def bounded_memory(process: Running, most_mb: int) -> Iterator[None]:
    """The process's memory must not grow by more, at any moment of the block."""

    def memory(what: str) -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split(f"{what}:")[1].split()[0]) // 1024

    before = memory("VmRSS")
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # let the high-water mark be what it is now
    yield
    assert memory("VmHWM") - before < most_mb


def test_large_file_is_sent_in_constant_memory_and_any_part_of_it(disk: HostSpace) -> None:
    size = 1 << 30
    with open(disk.directory / "large", "wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
    assert disk.get("large", Range="bytes=0-9").status == 206
    buffer, received = bytearray(4 * MIB), 0
    with bounded_memory(disk.process, 20):
        connection = UnixConnection(disk.process.socket_path)
        connection.request("GET", disk.url("large"))
        response = connection.getresponse()
        while count := response.readinto(buffer):
            received += count
        connection.close()
        assert (received, bytes(buffer[:4096]).rstrip(b"\0")) == (size, b"")
        for start in (0, size // 2 - 1, size - 3):
            answer = disk.get("large", Range=f"bytes={start}-{start + 2}")
            assert answer.body == (b"end" if start == size - 3 else bytes(3))


def put_chunked(space: Space, path: str, body: Iterator[bytes]) -> tuple[int, str]:
    """Status, and the digest of what was sent."""
    digest = hashlib.sha256()

    def told() -> Iterator[bytes]:
        for block in body:
            digest.update(block)
            yield block

    connection = UnixConnection(space.process.socket_path)
    connection.request("PUT", space.url(path), told(), encode_chunked=True)
    status = connection.getresponse().status
    connection.close()
    return status, digest.hexdigest()


def digest_of(space: Space, path: str) -> str:
    digest = hashlib.sha256()
    connection = UnixConnection(space.process.socket_path)
    connection.request("GET", space.url(path))
    response = connection.getresponse()
    while block := response.read(MIB):
        digest.update(block)
    connection.close()
    return digest.hexdigest()


def test_body_of_unknown_length_is_stored_in_constant_memory(space: Space) -> None:
    """On S3 in parts, of which two are held."""
    assert put_chunked(space, "warm", blocks(20))[0] == 201
    assert digest_of(space, "warm")
    most_mb = 60 if isinstance(space, BucketSpace) else 20
    with bounded_memory(space.process, most_mb):
        status, sent = put_chunked(space, "large", blocks(256))
        assert status == 201
    with bounded_memory(space.process, most_mb):
        assert digest_of(space, "large") == sent
    assert [record["file_size"] for record in space.records()] == [20 * MIB, 256 * MIB]


def test_file_cut_short_while_it_is_sent_ends_the_connection(disk: HostSpace) -> None:
    with open(disk.directory / "f", "wb") as file:
        file.truncate(64 * MIB)
    connection = UnixConnection(disk.process.socket_path)
    connection.request("GET", disk.url("f"))
    response = connection.getresponse()
    received = len(response.read(MIB))
    os.truncate(disk.directory / "f", 2 * MIB)
    with pytest.raises(http.client.IncompleteRead) as caught:
        response.read()
    received += len(caught.value.partial)
    assert MIB <= received < 64 * MIB
    disk.process.wait_for_log("cut short while it was read")
    connection.close()
    wait_until(lambda: disk.audited("getContent") == ["backend-unavailable"], "the audit log to tell")


def test_client_that_hangs_up_leaves_nothing_open(space: Space) -> None:
    space.store("f", bytes(32 * MIB))
    space.get("f", Range="bytes=0-0")
    before = descriptors(space.process.pid)
    for _ in range(5):
        with connected(space.process.socket_path) as client:
            client.sendall(f"GET {space.url('f')} HTTP/1.1\r\nHost: b\r\n\r\n".encode())
            assert client.recv(100)
    wait_until(lambda: descriptors(space.process.pid) <= before + 1, "descriptors to be closed")


# By curl, as from a shell


def curl(space: Space, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = ["curl", "-sS", "--unix-socket", space.process.socket_path, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


def test_curl_reads_and_writes(space: Space, tmp_path: Path) -> None:
    content = os.urandom(3 * MIB)
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    source.write_bytes(content)
    url = f"http://b{space.url('dir/in.tif')}"
    told = ("-w", "%{http_code}", "-o", "/dev/null")
    assert curl(space, *told, "-T", str(source), url).stdout == b"201"  # with Expect: 100-continue
    assert curl(space, *told, "-T", "-", url, stdin=content).stdout == b"200"  # chunked
    assert curl(space, *told, "--data-binary", f"@{source}", "-X", "PUT", url).stdout == b"200"
    assert space.stored() == {"dir/in.tif": content}
    assert space.records()[0]["media_type"] == ""
    assert curl(space, url).stdout == content
    assert curl(space, "-r", "10-19", url).stdout == content[10:20]
    assert curl(space, "-r", "-5", url).stdout == content[-5:]
    head = curl(space, "-I", url).stdout.decode()
    assert head.startswith("HTTP/1.1 200 ")
    assert f"Content-Length: {len(content)}" in head
    target.write_bytes(content[:MIB])
    assert curl(space, "-C", "-", "-o", str(target), url).returncode == 0
    assert target.read_bytes() == content
    assert curl(space, "-C", "-", "-o", str(target), url).returncode == 0, "a whole file is resumed at its end"
    assert target.read_bytes() == content
    assert curl(space, "-f", f"http://b{space.url('gone')}").returncode == 22
    assert curl(space, *told, "-C", "10", "-T", str(source), url).stdout == b"400"
    assert space.stored() == {"dir/in.tif": content}


def test_curl_that_is_refused_does_not_send_its_file(space: Space, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(64 * MIB))
    url = f"http://b{space.url('f', f'{space.name}-frozen')}"
    done = curl(space, "-w", "\n%{http_code} %{size_upload}", "-T", str(tmp_path / "in"), url)
    problem, _, told = done.stdout.decode().rpartition("\n")
    assert '"read-only"' in problem
    assert told == "403 0"


# As callers


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Path, Running]]:
    with temporary_directory() as directory:
        (directory / "data").mkdir()
        (directory / "data").chmod(0o777)
        with caller_sidecar(directory, {"data": directory / "data"}) as sidecar:
            assert request(sidecar.socket_path, "GET", "/healthz").status == 200  # all is open by then
            yield directory, sidecar
            assert "Traceback" not in sidecar.log()


def task_in(directory: Path, name: str, mode: str, identity: Identity | None = None) -> Task:
    (directory / name).mkdir()
    binds = [(directory / "root" / "sidecar", "/run/brokervol", "ro"), (directory / "data", "/data", mode)]
    return Task(directory / name, binds, identity)


CONTENT = "/v1/workspaces/data/content"


@pytest.mark.root
def test_files_are_written_and_read_as_the_caller(world: tuple[Path, Running]) -> None:
    directory, sidecar = world
    data = directory / "data"
    (data / "private").write_text("root's")
    (data / "private").chmod(0o600)
    (data / "closed").mkdir(mode=0o755)
    with task_in(directory, "user", "rw", USER) as task:
        assert task.request("PUT", f"{CONTENT}/mine/f", "x").status == 201
        for path in ("mine", "mine/f"):
            assert ((data / path).stat().st_uid, (data / path).stat().st_gid) == (1000, 1000)
        assert task.get(f"{CONTENT}/mine/f").text == "x"
        for method, path in (("GET", "private"), ("PUT", "closed/f")):
            answer = task.request(method, f"{CONTENT}/{path}", "x" if method == "PUT" else None)
            assert (answer.status, answer.json["code"]) == (403, "permission-denied"), path
    with task_in(directory, "reader", "ro") as task:
        assert task.get(f"{CONTENT}/private").text == "root's"
        answer = task.request("PUT", f"{CONTENT}/private", "x")
        assert (answer.status, answer.json["code"]) == (403, "read-only")
    assert sorted(os.listdir(data / "closed")) == []
    assert (data / "private").read_text() == "root's"
    wait_until(lambda: len(thread_identities(sidecar.pid)) == 1, "every thread to be itself again")


@pytest.mark.root
def test_nobodys_identity_is_held_while_a_client_is_waited_for(world: tuple[Path, Running]) -> None:
    """Also a caller that is killed in the middle of its file leaves nothing, though it was made in its name."""
    directory, sidecar = world
    data = directory / "data"
    before = descriptors(sidecar.pid)
    with task_in(directory, "slow", "rw", USER) as task:
        (data / "large").write_bytes(bytes(8 * MIB))
        task.attack("stall", CONTENT)
        wait_until(lambda: descriptors(sidecar.pid) >= before + 6, "the transfers to be under way")
        wait_until(lambda: len(thread_identities(sidecar.pid)) == 1, "every thread to be itself while it waits")
    wait_until(lambda: descriptors(sidecar.pid) <= before, "what it left to be closed")
    assert not (data / "new").exists()
    assert [name for name in os.listdir(data) if name.startswith(".")] == []


@pytest.mark.root
def test_a_buckets_token_decides_who_may_read_and_write(
    short_dir: Path, seaweedfs: S3Server, new_bucket: Callable[[S3Server], str]
) -> None:
    profile = short_dir / "credentials"
    lines = ["[lab]", *(f"aws_{key} = {value}" for key, value in seaweedfs.credentials().items())]
    profile.write_text("\n".join(lines))
    bucket = new_bucket(seaweedfs)
    host = Host(short_dir / "host")
    environment = {**DIES_WITH_THE_TESTS, "BROKERVOL_CREDENTIALS": str(profile)}
    command = [*host.entering, sys.executable, "-m", "sidecar", "--root", f"{host.directory}/root"]
    socket_path = f"/proc/{host.pid}/root{host.directory}/root/sidecar/broker.sock"
    try:
        with driver_on(host) as driver, running(command, environment, socket_path) as sidecar:
            options = {"type": "s3", "bucket_name": bucket, "endpoint_url": seaweedfs.endpoint_url}
            driver.done("Create", Name="data", Opts={**options, "region_name": "us-east-1", "credentials": "lab"})
            driver.mount("data", "a" * 64)
            token = (Path(driver.mountpoint("data")), "/data")
            assert outcomes(host, [(*token, "rw")]) == {"put": 201, "get": 200, "head": 200}
            assert outcomes(host, [(*token, "ro")]) == {"put": 403, "get": 200, "head": 200}
            assert outcomes(host, []) == {"put": 404, "get": 404, "head": 404}
            assert seaweedfs.secret_access_key not in sidecar.log()
        found = seaweedfs.client().get_object(Bucket=bucket, Key="f")["Body"].read()
        assert found == b"x"
    finally:
        host.close()


def outcomes(host: Host, volumes: list[tuple[Path, str, str]]) -> Mapping[str, int]:
    root = host.directory / f"task{len(os.listdir(host.files))}"
    (host.files / root.name).mkdir()
    socket = (host.directory / "root/sidecar", "/run/brokervol", "ro")
    with Task(root, [socket, *volumes], USER, host) as task:
        asked = {"put": "x", "get": None, "head": None}
        return {verb: task.request(verb.upper(), f"{CONTENT}/f", body).status for verb, body in asked.items()}
