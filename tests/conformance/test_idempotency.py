"""`Idempotency-Key`: a batch that is sent again changes nothing twice. And what a start heals, as tasks find it.

What happens when the sidecar is killed in between is in `tests/faults/test_sidecar_kill.py`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.directories import temporary_directory
from lab.packages import install_example
from lab.processes import Running
from lab.sidecar import caller_sidecar, self_sidecar
from lab.task import Identity, Task
from lab.unix_http import Answer, connected, request
from storage import journal
from storage.catalog import Catalog
from storage.journal import intent_of
from storage.models import ScaleFile


class Site:
    """A sidecar in its own view, with a workspace `w` on a disk, another `other`, and one of another's package."""

    def __init__(self, directory: Path, sidecar: Running) -> None:
        self.data, self.local = directory / "data", directory / "local"
        self.socket_path = sidecar.socket_path

    def send(
        self, verb: str, *items: Any, key: str | None = "k", ws: str = "w", lines: bool = False, **options: Any
    ) -> Answer:
        headers = {} if key is None else {"Idempotency-Key": key}
        if lines:
            headers["Content-Type"] = "application/x-ndjson"
            query = "&".join(f"{name}={value}" for name, value in options.items())
            body = "".join(f"{json.dumps(item)}\n" for item in items)
            path = f"/v1/workspaces/{ws}/{verb}?{query}"
        else:
            headers["Content-Type"] = "application/json"
            body, path = json.dumps({"files": items, **options}), f"/v1/workspaces/{ws}/{verb}"
        return request(self.socket_path, "POST", path, body.encode(), **headers)

    def source(self, name: str, content: str = "content") -> dict[str, str]:
        """A local file, as the item that uploads it to the same name."""
        (self.local / name).write_text(content)
        return self.item(name)

    def item(self, name: str) -> dict[str, str]:
        return {"local_path": str(self.local / name), "file_path": name}

    def inode(self, name: str) -> int:
        return (self.data / name).stat().st_ino


def statuses(answer: Answer) -> list[str]:
    return [result["status"] for result in results(answer)]


def results(answer: Answer) -> list[dict[str, Any]]:
    if answer.headers["Content-Type"].startswith("application/x-ndjson"):
        return [json.loads(line) for line in answer.body.splitlines()]
    found: list[dict[str, Any]] = answer.json["results"]
    return found


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Path, Running]]:
    with temporary_directory() as directory, pytest.MonkeyPatch.context() as patch:
        install_example(directory / "packages")
        patch.setenv("PYTHONPATH", str(directory / "packages"), prepend=os.pathsep)
        workspaces = {
            name: {"broker": {"type": "host", "host_path": str(directory / place)}}
            for name, place in (("w", "data"), ("other", "data2"))
        }
        workspaces["theirs"] = {"broker": {"type": "sqlite", "database": str(directory / "theirs.sqlite")}}
        for name in ("data", "data2", "local"):
            (directory / name).mkdir()
        with self_sidecar(directory, workspaces) as sidecar:
            yield directory, sidecar
            assert "Traceback" not in sidecar.log()


@pytest.fixture
def site(served: tuple[Path, Running], request: pytest.FixtureRequest) -> Site:
    return Site(*served)


def test_a_retry_does_what_is_left_and_nothing_twice(site: Site) -> None:
    items = [site.source("a1"), site.item("a2"), site.source("a3")]
    first = site.send("upload", *items, key="a")
    assert (first.status, statuses(first)) == (404, ["done", "failed", "skipped"])
    before = site.inode("a1")
    site.source("a1", "something else by now")
    site.source("a2")
    again = site.send("upload", *items, key="a")
    assert (again.status, statuses(again)) == (200, ["done", "done", "done"])
    assert results(again)[0] == results(first)[0]
    assert (site.inode("a1"), (site.data / "a1").read_text()) == (before, "content")
    assert results(site.send("upload", *items, key="a")) == results(again)
    assert statuses(site.send("upload", *items, key="another")) == ["done"] * 3
    assert site.inode("a1") != before


def test_what_was_deleted_or_moved_is_not_so_again(site: Site) -> None:
    for name in ("b1", "b2"):
        assert site.send("upload", site.source(name), key=None).status == 200
    deleted = site.send("delete", {"file_path": "b1"}, key="b1")
    moved = site.send("move", {"file_path": "b2", "new_path": "b3"}, key="b2")
    for name in ("b1", "b2"):
        assert site.send("upload", site.source(name, "new"), key=None).status == 200
    assert results(site.send("delete", {"file_path": "b1"}, key="b1")) == results(deleted)
    assert results(site.send("move", {"file_path": "b2", "new_path": "b3"}, key="b2")) == results(moved)
    assert [(site.data / name).read_text() for name in ("b1", "b2", "b3")] == ["new", "new", "content"]


def test_what_was_deleted_without_its_record_is_not_so_again(site: Site) -> None:
    (site.data / "b4").write_text("1")
    assert statuses(site.send("delete", {"file_path": "b4"}, key="b4", update_model=False)) == ["done"]
    (site.data / "b4").write_text("2")
    assert statuses(site.send("delete", {"file_path": "b4"}, key="b4", update_model=False)) == ["done"]
    assert (site.data / "b4").read_text() == "2"


def test_a_key_is_of_one_request(site: Site) -> None:
    items = [site.source("c1"), site.source("c2")]
    assert site.send("upload", items[0], key="c").status == 200
    for answer in (
        site.send("upload", items[1], key="c"),
        site.send("upload", items[0], key="c", on_error="continue"),
        site.send("delete", {"file_path": "c1"}, key="c"),
    ):
        assert (answer.status, answer.json["code"]) == (400, "invalid-request")
        assert "Idempotency-Key" in answer.json["detail"]
    assert not (site.data / "c2").exists()
    assert (site.data / "c1").exists()
    assert site.send("upload", items[1], key="c", ws="other").status == 200, "each workspace has keys of its own"


@pytest.mark.parametrize("key", ["", " ", "k" * 256, "k\té", "schlüssel"])
def test_what_can_be_no_key_is_refused(site: Site, key: str) -> None:
    sent = key.encode().decode("latin-1")
    answer = site.send("upload", site.source("d1"), key=sent)
    assert (answer.status, answer.json["code"]) == (400, "invalid-request")
    assert not (site.data / "d1").exists()


def test_a_download_may_have_a_key_and_is_repeated(site: Site) -> None:
    assert site.send("upload", site.source("e1"), key=None).status == 200
    for _ in range(2):
        item = {"file_path": "e1", "local_path": str(site.local / "out")}
        assert statuses(site.send("download", item, key="e")) == ["done"]
        (site.local / "out").unlink()


def test_a_long_stream_is_retried_item_by_item(site: Site) -> None:
    site.source("f")
    items = [{**site.item("f"), "file_path": f"f{number}"} for number in range(520)]
    first = site.send("upload", *items[:505], {**items[505], "local_path": "/missing"}, key="f", lines=True)
    assert statuses(first) == ["done"] * 505 + ["failed"]
    inodes = [site.inode(f"f{number}") for number in range(505)]
    again = site.send("upload", *items, key="f", lines=True)
    assert statuses(again) == ["done"] * 520
    assert [site.inode(f"f{number}") for number in range(505)] == inodes
    other = site.send("upload", {**items[0], "file_path": "f-other"}, *items[1:], key="f", lines=True)
    assert statuses(other)[:2] == ["failed", "skipped"]
    assert results(other)[0]["error"]["code"] == "invalid-request"


def test_while_a_request_is_worked_on_its_key_is_in_use(site: Site) -> None:
    item = site.source("g")
    with begun_stream(site, item) as stream:
        answer = site.send("upload", item, key="g", lines=True)
        assert (answer.status, answer.json["code"]) == (409, "in-progress")
        assert int(answer.headers["Retry-After"]) > 0
        inode = site.inode("g")
        stream.sendall(b"0\r\n\r\n")
        while stream.recv(65536):
            pass
    assert statuses(site.send("upload", item, key="g", lines=True)) == ["done"]
    assert site.inode("g") == inode


def begun_stream(site: Site, item: Any) -> socket.socket:
    """A request whose first item is done, and whose body does not end yet."""
    stream = connected(site.socket_path)
    line = json.dumps(item).encode() + b"\n"
    stream.sendall(
        b"POST /v1/workspaces/w/upload HTTP/1.1\r\nHost: h\r\nConnection: close\r\nIdempotency-Key: g\r\n"
        b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        + f"{len(line):x}\r\n".encode()
        + line
        + b"\r\n"
    )
    answer = b""
    while b'"done"' not in answer:
        answer += stream.recv(65536)
    return stream


def test_a_broker_without_a_journal_repeats_nothing_either(site: Site) -> None:
    item = site.source("h")
    first = site.send("upload", item, key="h", ws="theirs")
    assert statuses(first) == ["done"]
    assert site.send("delete", {"file_path": "h"}, key=None, ws="theirs").status == 200
    again = site.send("upload", item, key="h", ws="theirs")
    assert statuses(again) == ["done"]
    assert results(again)[0]["file"]["id"] == results(first)[0]["file"]["id"]
    listed = request(site.socket_path, "GET", "/v1/workspaces/theirs/files").json["files"]
    assert [found["file"] for found in listed] == []


# As callers


@pytest.mark.root
def test_in_the_callers_view_keys_are_of_users_and_a_start_heals_for_all() -> None:
    """What was left by a caller that is gone is settled by the sidecar itself, at its own mount of the volume."""
    with temporary_directory() as directory:
        data = directory / "data"
        data.mkdir()
        data.chmod(0o777)
        with caller_sidecar(directory, {"data": data}):
            pass
        leave_an_upload(directory / "root/.state", data)
        with caller_sidecar(directory, {"data": data}) as sidecar:
            check_healed(directory, data)
            check_keys(directory, data)
            assert "Traceback" not in sidecar.log()


def leave_an_upload(state: Path, data: Path) -> None:
    """As a sidecar leaves it that was killed before it recorded the upload, to a directory that is not for all."""
    (data / "sub").mkdir(mode=0o711)
    (data / "sub" / "left").write_text("12345")
    before = journal.process()[0]
    journal.use_owner(f"sidecar {(state / 'journal-owner').read_text()}")
    intent = intent_of("upload", ScaleFile(file_path="sub/left", workspace="data"))
    journal.use_owner(before)
    intent.size, intent.run = 5, "dead"
    records = Catalog(f"sqlite:///{state}/catalog.sqlite")
    records.begin([intent])
    records.close()


def task(directory: Path, name: str, bind: tuple[Path, str, str], identity: Identity) -> Task:
    root = directory / name
    for inside in ("tmp", "proc"):
        (root / inside).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "tmp" / "in").write_text(name)
    (root / "tmp" / "in").chmod(0o644)
    return Task(root, [(directory / "root/sidecar", "/run/brokervol", "ro"), bind], identity)


def check_healed(directory: Path, data: Path) -> None:
    with task(directory, "reader", (data, "/data", "ro"), Identity(uid=1000, gid=1000)) as reader:
        (record,) = reader.get("/v1/workspaces/data/catalog").json["files"]
        assert (record["file_path"], record["file_size"]) == ("sub/left", 5)


def check_keys(directory: Path, data: Path) -> None:
    body = {"files": [{"local_path": "/tmp/in", "file_path": "f"}]}
    key = {"Idempotency-Key": "k"}
    inodes = []
    for name, uid in (("one", 0), ("two", 0), ("three", 1000)):
        with task(directory, name, (data, "/data", "rw"), Identity(uid=uid, gid=uid)) as caller:
            answer = caller.request("POST", "/v1/workspaces/data/upload", body, **key)
            assert (answer.status, answer.json["done"]) == (200, 1)
            inodes.append((data / "f").stat().st_ino)
    assert inodes[0] == inodes[1]
    assert inodes[1] != inodes[2]
    assert (data / "f").read_text() == "three"
