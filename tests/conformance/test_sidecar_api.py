"""The sidecar's HTTP API (DESIGN 4.3) on the real process and socket, in the view of the process itself."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lab.directories import temporary_directory
from lab.hostile import REFUSED_PATHS
from lab.processes import Running, wait_until
from lab.sidecar import caller_sidecar, descriptors, self_sidecar
from lab.task import Answer, Identity, Task, ask
from lab.unix_http import UnixConnection, connected, exchange

LINES = {"Accept": "application/x-ndjson"}


class Api:
    """A running sidecar, and in it a workspace that no other test uses, in a rw and in a read-only form."""

    def __init__(self, process: Running, directory: Path, name: str) -> None:
        self.process = process
        self.name = name
        self.ws = f"/v1/workspaces/{name}"
        self.frozen = f"/v1/workspaces/{name}-frozen"
        self.disk = directory / name
        self.local = directory / f"{name}-local"

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return ask(self.process.socket_path, "GET", path, headers=headers)

    def post(self, path: str, body: object, headers: dict[str, str] | None = None) -> Answer:
        return ask(self.process.socket_path, "POST", path, body, headers)

    def batch(self, verb: str, *files: Mapping[str, object], **options: object) -> Answer:
        return self.post(f"{self.ws}/{verb}", {"files": list(files), **options})


_WORKSPACES = 150


def _configurations(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number in range(_WORKSPACES):
        broker = {"type": "host", "host_path": str(directory / f"data{number}")}
        found[f"data{number}"] = {"version": "1.0", "broker": broker}
        found[f"data{number}-frozen"] = {"version": "1.0", "broker": broker, "read_only": True}
    return found


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Running, Path, Iterator[int]]]:
    with temporary_directory() as directory, self_sidecar(directory, _configurations(directory)) as process:
        yield process, directory, iter(range(_WORKSPACES))
        assert "Traceback" not in process.log()


@pytest.fixture
def api(served: tuple[Running, Path, Iterator[int]]) -> Iterator[Api]:
    process, directory, numbers = served
    api = Api(process, directory, f"data{next(numbers)}")
    api.disk.mkdir()
    api.local.mkdir()
    api.get("/healthz")
    before = descriptors(process.pid)
    yield api
    wait_until(lambda: descriptors(process.pid) <= before + 1, "descriptors to be closed")


def assert_problem(answer: Answer, status: int, code: str) -> dict[str, Any]:
    assert (answer.status, answer.json["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert code in problem["type"]
    assert "Traceback" not in answer.text
    return problem


def test_healthz(api: Api) -> None:
    assert api.get("/healthz").json == {"status": "ok"}


def test_workspaces(api: Api) -> None:
    everything = {found["name"]: found for found in api.get("/v1/workspaces").json["workspaces"]}
    assert len(everything) == 2 * _WORKSPACES
    data, frozen = everything[api.name], everything[f"{api.name}-frozen"]
    assert data == {
        "name": api.name,
        "broker_type": "host",
        "volume_path": str(api.disk),
        "read_only": False,
        "volume": {"driver": None, "remote_path": str(api.disk)},
    }
    assert frozen == {**data, "name": f"{api.name}-frozen", "read_only": True}
    assert api.get(api.ws).json == {**data, "health": {"status": "healthy"}}


def test_a_workspace_that_is_not_there(api: Api) -> None:
    for path in ("", "/files", "/catalog"):
        assert_problem(api.get(f"/v1/workspaces/other{path}"), 404, "unknown-workspace")
    for verb in ("download", "upload", "move", "delete", "paths"):
        assert_problem(api.post(f"/v1/workspaces/other/{verb}", {"files": []}), 404, "unknown-workspace")


def test_a_workspace_whose_directory_vanished_is_unreachable(api: Api) -> None:
    os.rename(api.disk, f"{api.disk}-away")
    assert api.get(api.ws).json["health"]["status"] == "unreachable"
    assert api.get(f"{api.ws}/files").status == 400


def test_list_in_pages(api: Api) -> None:
    for number in range(5):
        (api.disk / f"f{number}").write_text("x" * number)
    (api.disk / "dir").mkdir()
    (api.disk / "dir" / "inner").write_text("")
    seen = []
    cursor = ""
    while True:
        page = api.get(f"{api.ws}/files?limit=2&cursor={cursor}").json
        seen += page["files"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [{"file": f"f{number}", "size": number} for number in range(5)]
    everything = api.get(f"{api.ws}/files?recursive=true").json["files"]
    assert [found["file"] for found in everything] == ["dir/inner", "f0", "f1", "f2", "f3", "f4"]
    below = api.get(f"{api.ws}/files?prefix=dir/").json
    assert below == {"files": [{"file": "dir/inner", "size": 0}], "next_cursor": None}


def test_list_as_lines(api: Api) -> None:
    for number in range(1200):
        (api.disk / f"f{number}").touch()
    answer = api.get(f"{api.ws}/files", LINES)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert sorted(found["file"] for found in answer.lines) == sorted(f"f{number}" for number in range(1200))
    assert len(api.get(f"{api.ws}/files?limit=7", LINES).lines) == 7


def test_list_shows_names_that_are_not_utf8(api: Api) -> None:
    os.close(os.open(os.fsencode(api.disk) + b"/\xff", os.O_CREAT))
    (found,) = api.get(f"{api.ws}/files").json["files"]
    assert os.fsencode(found["file"]) == b"\xff"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=many", "limit"),
        ("recursive=perhaps", "recursive"),
        ("cursor=nonsense", "cursor"),
        ("cursor=MQ==", "cursor"),
        ("recursiv=true", "recursiv"),
    ],
)
def test_a_bad_query_is_told_by_name(api: Api, query: str, names: str) -> None:
    assert names in assert_problem(api.get(f"{api.ws}/files?{query}"), 400, "invalid-request")["detail"]


@pytest.mark.parametrize("prefix", ["../", "/etc/", "a/../b/", "a//b", "%00/"])
def test_a_hostile_prefix_is_refused(api: Api, prefix: str) -> None:
    assert_problem(api.get(f"{api.ws}/files?prefix={prefix}"), 400, "invalid-path")


def test_upload_download_move_delete(api: Api) -> None:
    source = api.local / "in"
    source.write_text("hello")
    uploaded = api.batch("upload", {"local_path": str(source), "file_path": "a/b.txt", "media_type": "text/plain"})
    assert uploaded.status == 200
    assert {key: uploaded.json[key] for key in ("done", "failed", "skipped")} == {
        "done": 1,
        "failed": 0,
        "skipped": 0,
    }
    (result,) = uploaded.json["results"]
    record = result["file"]
    assert (result["file_path"], result["status"]) == ("a/b.txt", "done")
    assert (record["file_size"], record["media_type"], record["workspace"]) == (5, "text/plain", api.name)
    assert datetime.fromisoformat(record["created"]).tzinfo is not None
    assert (api.disk / "a/b.txt").read_text() == "hello"

    out = api.local / "out"
    assert api.batch("download", {"uuid": record["uuid"], "local_path": str(out)}).status == 200
    assert out.read_text() == "hello"
    assert out.is_symlink()

    moved = api.batch("move", {"id": record["id"], "new_path": "c.txt"}).json["results"][0]["file"]
    assert (moved["file_path"], moved["id"], moved["uuid"]) == ("c.txt", record["id"], record["uuid"])
    assert api.batch("paths", {"file_path": "c.txt"}).json == {"paths": [f"{api.disk}/c.txt"]}

    assert api.batch("delete", {"file_path": "c.txt"}).status == 200
    assert os.listdir(api.disk) == ["a"]
    (deleted,) = api.get(f"{api.ws}/catalog?is_deleted=true").json["files"]
    assert deleted["id"] == record["id"]
    assert deleted["deleted"] is not None
    assert api.get(f"{api.ws}/catalog?is_deleted=false").json["files"] == []


def test_delete_of_a_file_that_was_never_uploaded_leaves_a_record(api: Api) -> None:
    (api.disk / "f").write_text("abc")
    api.batch("delete", {"file_path": "f"})
    (record,) = api.get(f"{api.ws}/catalog?file_path=f").json["files"]
    assert (record["is_deleted"], record["file_size"]) == (True, 3)


def test_a_batch_stops_at_the_first_failure_and_says_what_was_done(api: Api) -> None:
    (api.disk / "one").touch()
    (api.disk / "three").touch()
    files = [{"file_path": name, "local_path": f"{api.local}/{name}"} for name in ("one", "two", "three")]
    problem = assert_problem(api.batch("download", *files), 404, "missing-file")
    assert [result["status"] for result in problem["results"]] == ["done", "failed", "skipped"]
    assert (problem["done"], problem["failed"], problem["skipped"]) == (1, 1, 1)
    assert "two" in problem["results"][1]["error"]["detail"]
    assert os.listdir(api.local) == ["one"]

    answer = api.batch("download", *files, on_error="continue")
    assert answer.status == 200
    assert [result["status"] for result in answer.json["results"]] == ["done", "failed", "done"]


def test_a_batch_as_lines_tells_each_result(api: Api) -> None:
    (api.disk / "one").touch()
    files = [{"file_path": "one"}, {"file_path": "a/../b"}, {"file_path": "one"}]
    answer = api.post(f"{api.ws}/delete", {"files": files, "on_error": "continue"}, LINES)
    assert answer.status == 200
    assert [line["status"] for line in answer.lines] == ["done", "failed", "done"]


def test_overwrite_false_is_already_exists(api: Api) -> None:
    source = api.local / "in"
    source.write_text("new")
    (api.disk / "f").write_text("old")
    item = {"local_path": str(source), "file_path": "f"}
    assert_problem(api.batch("upload", item, overwrite=False), 409, "already-exists")
    assert (api.disk / "f").read_text() == "old"


def test_a_read_only_workspace_changes_nothing_on_disk_or_in_the_catalog(api: Api) -> None:
    source = api.local / "in"
    source.touch()
    (api.disk / "f").touch()
    for verb, item in (
        ("upload", {"local_path": str(source), "file_path": "x"}),
        ("move", {"file_path": "f", "new_path": "g"}),
        ("delete", {"file_path": "f"}),
        ("delete", {"file_path": "never"}),
    ):
        assert_problem(api.post(f"{api.frozen}/{verb}", {"files": [item]}), 403, "read-only")
    assert os.listdir(api.disk) == ["f"]
    assert api.get(f"{api.frozen}/catalog").json["files"] == []
    assert api.post(f"{api.frozen}/paths", {"files": [{"file_path": "f"}]}).status == 200


def test_catalog_pages_and_lines(api: Api) -> None:
    source = api.local / "in"
    source.touch()
    api.batch("upload", *({"local_path": str(source), "file_path": f"f{number}"} for number in range(5)))
    first = api.get(f"{api.ws}/catalog?limit=3").json
    rest = api.get(f"{api.ws}/catalog?limit=3&cursor={first['next_cursor']}").json
    assert [found["file_path"] for found in first["files"] + rest["files"]] == [f"f{n}" for n in range(5)]
    assert rest["next_cursor"] is None
    assert len(api.get(f"{api.ws}/catalog?limit=2", LINES).lines) == 5


def test_a_file_is_named_in_exactly_one_way(api: Api) -> None:
    bad: list[dict[str, object]] = [{}, {"file_path": "a", "id": 1}, {"id": 1, "uuid": "x"}]
    unknown: list[dict[str, object]] = [{"id": 99}, {"uuid": "no-such"}]
    for item in bad:
        assert_problem(api.batch("delete", item), 400, "invalid-request")
    for item in unknown:
        assert_problem(api.batch("delete", item), 404, "missing-file")


def test_a_deleted_records_id_does_not_name_the_file_that_is_there_now(api: Api) -> None:
    source = api.local / "in"
    source.write_text("x")
    upload = {"local_path": str(source), "file_path": "f"}
    old = api.batch("upload", upload).json["results"][0]["file"]
    api.batch("delete", {"file_path": "f"})
    new = api.batch("upload", upload).json["results"][0]["file"]
    assert new["id"] != old["id"]
    for name in ("id", "uuid"):
        assert api.batch("delete", {name: old[name]}).status == 200, "already gone is no failure"
        assert_problem(api.batch("move", {name: old[name], "new_path": "g"}), 404, "missing-file")
        assert_problem(api.batch("download", {name: old[name], "local_path": "/tmp/x"}), 404, "missing-file")
    assert os.listdir(api.disk) == ["f"]
    (live,) = api.get(f"{api.ws}/catalog?is_deleted=false").json["files"]
    assert live["id"] == new["id"]


@pytest.mark.parametrize(
    "item",
    [
        {"media_type": "\ud800"},
        {"media_type": "x" * 256},
        {"media_type": "a\0b"},
        {"media_type": 1},
    ],
)
def test_a_bad_media_type_replaces_nothing(api: Api, item: dict[str, object]) -> None:
    source = api.local / "in"
    source.write_text("new")
    (api.disk / "f").write_text("old")
    assert_problem(
        api.batch("upload", {"local_path": str(source), "file_path": "f", **item}), 400, "invalid-request"
    )
    assert (api.disk / "f").read_text() == "old"


@pytest.mark.parametrize("name", [{"id": 2**63}, {"id": 0}, {"uuid": "\ud800"}, {"uuid": "x" * 65}, {"id": 1.5}])
def test_a_record_name_out_of_range_is_invalid(api: Api, name: dict[str, object]) -> None:
    assert_problem(api.batch("delete", name), 400, "invalid-request")


@pytest.mark.parametrize("value", ['"\\ud800"', "true", str(2**70), "-1", "[]", "null", "1.5"])
def test_a_forged_cursor_is_invalid(api: Api, value: str) -> None:
    cursor = base64.urlsafe_b64encode(value.encode()).decode()
    for path in ("files", "catalog"):
        assert_problem(api.get(f"{api.ws}/{path}?cursor={cursor}"), 400, "invalid-request")


def test_a_batch_ends_when_its_client_hangs_up(api: Api) -> None:
    source = api.local / "in"
    source.write_bytes(b"x" * 1_000_000)
    files = [{"local_path": str(source), "file_path": f"f{number}"} for number in range(2000)]
    body = json.dumps({"files": files}).encode()
    with connected(api.process.socket_path) as client:
        client.sendall(f"POST {api.ws}/upload HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: len(os.listdir(api.disk)) > 2, "the batch to begin")
    api.process.wait_for_log("the client is gone")
    assert len(os.listdir(api.disk)) < 2000


def test_records_of_another_workspace_cannot_be_named(api: Api) -> None:
    source = api.local / "in"
    source.touch()
    result = api.batch("upload", {"local_path": str(source), "file_path": "f"}).json["results"][0]
    for name in ("id", "uuid"):
        item = {name: result["file"][name], "local_path": f"{api.local}/out"}
        assert_problem(api.post(f"{api.frozen}/download", {"files": [item]}), 404, "missing-file")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("", "no body"),
        ("{", "not JSON"),
        ("[]", "object"),
        ("null", "object"),
        ('{"files": 1}', "files"),
        ("{}", "files"),
        ('{"files": [1]}', "files[0]"),
        ('{"files": [{}]}', "files[0]"),
        ('{"files": [{"local_path": 1, "file_path": "x"}]}', "files[0].local_path"),
        ('{"files": [{"local_path": "/x", "file_path": null}]}', "files[0].file_path"),
        ('{"files": [{"local_path": "/x", "file_path": "x", "extra": 1}]}', "extra"),
        ('{"files": [], "on_error": "ignore"}', "on_error"),
        ('{"files": [], "overwrite": "no"}', "overwrite"),
        ("[" * 100_000, "not JSON"),
        ('{"files": [' + '{"a":' * 20_000, "not JSON"),
        ('{"files": NaN}', "files"),
    ],
)
def test_a_bad_body_is_told_by_field_and_changes_nothing(api: Api, body: str, told: str) -> None:
    answer = api.post(f"{api.ws}/upload", body)
    assert told in assert_problem(answer, 400, "invalid-request")["detail"]
    assert os.listdir(api.disk) == []


@pytest.mark.parametrize("path", REFUSED_PATHS)
def test_hostile_paths_are_invalid(api: Api, path: str) -> None:
    (api.disk / "f").touch()
    (api.local / "in").touch()
    for verb, item in (
        ("download", {"file_path": path, "local_path": f"{api.local}/out"}),
        ("upload", {"file_path": path, "local_path": f"{api.local}/in"}),
        ("move", {"file_path": path, "new_path": "x"}),
        ("move", {"file_path": "f", "new_path": path}),
        ("delete", {"file_path": path}),
        ("paths", {"file_path": path}),
    ):
        answer = api.batch(verb, item)
        assert answer.status == 400, answer.text
        assert answer.json["code"] in ("invalid-path", "invalid-request")
    assert os.listdir(api.disk) == ["f"]
    assert os.listdir(api.local) == ["in"]


@pytest.mark.parametrize("path", ["", "relative", "/", "/tmp/", "/tmp/..", "/tmp/.", "/a\0b", "/lone-\ud800"])
def test_bad_local_paths_are_invalid(api: Api, path: str) -> None:
    (api.disk / "f").touch()
    for verb, item in (
        ("download", {"file_path": "f", "local_path": path}),
        ("upload", {"file_path": "x", "local_path": path}),
    ):
        assert_problem(api.batch(verb, item), 400, "invalid-path")
    assert os.listdir(api.disk) == ["f"]


def test_validate(api: Api) -> None:
    good = {"broker": {"type": "host", "host_path": "/srv"}}
    assert api.post("/v1/validate", good).json == {"warnings": []}
    doubtful = {"broker": {"type": "host", "host_path": "/srv", "extra": 1}}
    (warning,) = api.post("/v1/validate", doubtful).json["warnings"]
    assert "extra" in warning["description"]
    for broker, told in (({}, "type"), ({"type": "floppy"}, "host"), ({"type": "host"}, "host_path")):
        answer = api.post("/v1/validate", {"broker": broker})
        assert told in assert_problem(answer, 422, "invalid-broker-configuration")["detail"]


def test_what_is_not_there_and_what_cannot_be_done(api: Api) -> None:
    assert_problem(api.get("/"), 404, "not-found")
    assert_problem(api.get("/v2/workspaces"), 404, "not-found")
    assert_problem(api.post("/v1/workspaces", {}), 405, "method-not-allowed")
    assert_problem(api.get(f"{api.ws}/upload"), 405, "method-not-allowed")


def test_head_answers_as_get_without_the_body(api: Api) -> None:
    (api.disk / "f").touch()
    connection = UnixConnection(api.process.socket_path)
    for path in ("/healthz", "/v1/openapi.json", "/v1/workspaces", api.ws, f"{api.ws}/files", f"{api.ws}/catalog"):
        for query in ("", "?nonsense=1"):
            answers = []
            for method in ("GET", "HEAD"):
                connection.request(method, path + query)
                response = connection.getresponse()
                body = response.read()
                headers = {name: value for name, value in response.headers.items() if name not in CHANGING}
                answers.append((response.status, headers))
                assert bool(body) == (method == "GET")
            assert answers[0] == answers[1]
    connection.close()


CHANGING = ("Date", "X-Request-Id")


def test_a_method_that_is_not_possible_is_told_with_those_that_are(api: Api) -> None:
    for method, path, allowed in (
        ("OPTIONS", "/v1/workspaces", {"GET", "HEAD"}),
        ("PATCH", f"{api.ws}/files", {"GET", "HEAD"}),
        ("GET", f"{api.ws}/upload", {"POST"}),
        ("DELETE", f"{api.ws}/content/f", {"GET", "HEAD", "PUT"}),
    ):
        answer = ask(api.process.socket_path, method, path)
        assert_problem(answer, 405, "method-not-allowed")
        assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.root
def test_records_and_paths_are_for_whoever_can_enter_the_mount(short_dir: Path) -> None:
    """A process that has a view of other tasks' mounts sees theirs; the sight of one is no key."""
    data, root = short_dir / "data", short_dir / "task"
    (data / "sub").mkdir(parents=True)
    (root / "tmp").mkdir(parents=True)
    (root / "tmp/in").touch()
    binds = [(short_dir / "root/sidecar", "/run/brokervol", "ro"), (data, "/closed/data", "rw")]
    body = {"files": [{"file_path": "f"}]}
    with caller_sidecar(short_dir, {"data": data}):
        with Task(root, binds) as task:
            item = {"local_path": "/tmp/in", "file_path": "f"}
            assert task.post("/v1/workspaces/data/upload", {"files": [item]}).status == 200
            assert task.post("/v1/workspaces/data/paths", body).json == {"paths": ["/closed/data/f"]}
        (root / "closed").chmod(0o700)
        with Task(root, binds, Identity(uid=1000, gid=1000)) as task:
            answers = [task.get(f"/v1/workspaces/data/{path}") for path in ("files", "catalog", "content/f")]
            answers += [task.post(f"/v1/workspaces/data/{verb}", body) for verb in ("paths", "delete")]
            answers.append(task.get("/v1/workspaces/data/catalog", **LINES))
            for answer in answers:
                assert_problem(answer, 403, "permission-denied")
            health = task.get("/v1/workspaces/data").json["health"]
            assert (health["status"], health["code"]) == ("unreachable", "permission-denied")
    assert (data / "f").exists()


def test_a_body_too_large_is_refused(api: Api) -> None:
    head = b"POST /v1/workspaces/data/delete HTTP/1.1\r\nHost: b\r\nContent-Length: 99999999999\r\n\r\n"
    answer = exchange(api.process.socket_path, head)
    assert re.match(rb"HTTP/1.1 413 ", answer)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too-large"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        b"POST /v1/validate HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: b\r\n\r\n",
        b"POST /v1/validate HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_is_answered_with_a_problem(api: Api, sent: bytes) -> None:
    head, _, body = exchange(api.process.socket_path, sent).partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1.1 [45]\d\d ", head), head
    assert b" 500 " not in head.splitlines()[0]
    assert b"application/problem+json" in head
    assert json.loads(body)["detail"]
    assert api.get("/healthz").status == 200


def test_many_requests_on_one_connection_and_at_once(api: Api) -> None:
    lines = b"GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n" * 50
    assert exchange(api.process.socket_path, lines).count(b"HTTP/1.1 200") == 50


def test_silent_connections_hold_no_thread(api: Api) -> None:
    import socket

    silent = []
    for _ in range(100):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(api.process.socket_path)
        silent.append(connection)
    assert api.get("/healthz").status == 200
    for connection in silent:
        connection.close()


def test_state_survives_a_kill(short_dir: Path) -> None:
    data = short_dir / "data"
    data.mkdir()
    source = short_dir / "in"
    source.write_text("x")
    configuration = {"data": {"broker": {"type": "host", "host_path": str(data)}}}
    with self_sidecar(short_dir, configuration) as process:
        Api(process, short_dir, "data").batch("upload", {"local_path": str(source), "file_path": "f"})
        process.kill()
    with self_sidecar(short_dir, configuration) as process:
        (record,) = Api(process, short_dir, "data").get("/v1/workspaces/data/catalog").json["files"]
    assert record["file_path"] == "f"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ('{"a": 1}', "'a'"),
        ('{"a": {"broker": {"type": "tape"}}}', "tape"),
        ('{"a": {"version": "9", "broker": {"type": "host", "host_path": "/x"}}}', "version"),
        ('{"a": {"broker": {"type": "host"}}}', "host_path"),
    ],
)
def test_a_bad_workspaces_file_is_refused_at_start_with_a_sentence(
    short_dir: Path, content: str, told: str
) -> None:
    import subprocess
    import sys

    file = short_dir / "w.json"
    file.write_text(content)
    command = [
        sys.executable,
        "-m",
        "sidecar",
        "--view",
        "self",
        "--workspaces",
        str(file),
        "--root",
        str(short_dir),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"brokervol sidecar: BROKERVOL_WORKSPACES (--workspaces) is {str(file)!r}; ")
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_json_is_ascii_so_that_any_name_survives(api: Api) -> None:
    name = 'q"\u202e\n漢'
    (api.disk / name).touch()
    answer = api.get(f"{api.ws}/files")
    assert answer.text.isascii()
    assert json.loads(answer.text)["files"][0]["file"] == name
