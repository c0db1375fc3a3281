"""The real sidecar killed at every named step of every operation: the retry afterwards changes nothing twice."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.fault_proxy import Exchange, Fault, FaultProxy
from lab.fragile_sidecar import Nursery, Sidecar
from lab.processes import wait_until
from lab.s3 import S3Server
from lab.unix_http import Answer, request
from storage.catalog import Catalog
from storage.definitions import definitions_path
from storage.files import TEMPORARY_PREFIX

OLD, NEW, THEIRS = b"old content", b"new content, longer", b"somebody else's, and longer still"

# The steps after which something else is to be found than before; for all others see `test_kill.py`.
NAMED = frozenset(("begin", "begun", "mkdir", "link", "rename", "renameat2", "unlink", "finish", "finished"))


@dataclass(frozen=True)
class Operation:
    """An operation on one file of a directory of its own.

    Attributes:
        source, target: names in that directory; what is at the target is there before, or is what has been moved.
        is_replacing: whether something is at the target before.
    """

    verb: str
    source: str
    target: str
    is_replacing: bool = False


OPERATIONS = [
    Operation("upload", "", "new/file"),
    Operation("upload", "", "file", is_replacing=True),
    Operation("write", "", "file", is_replacing=True),
    Operation("move", "file", "new/file"),
    Operation("move", "file", "other", is_replacing=True),
    Operation("delete", "file", ""),
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


class Site:
    """A directory with a sidecar's state, a workspace, and local files. Its sidecar is started again and again."""

    def __init__(self, nursery: Nursery, directory: Path, broker: dict[str, Any]) -> None:
        self._nursery = nursery
        self.root, self.local = directory / "root", directory / "local"
        self.local.mkdir()
        (self.local / "source").write_bytes(NEW)
        self._workspaces = directory / "workspaces.json"
        self._workspaces.write_text(json.dumps({"w": {"broker": broker}}))
        self._steps = directory / "steps.json"
        self._socket = str(self.root / "broker.sock")

    def sidecar(self, name: str = "-", step: int = 0) -> contextlib.AbstractContextManager[Sidecar]:
        options = ["--view", "self", "--workspaces", str(self._workspaces), "--root", str(self.root)]
        return self._nursery.sidecar(self._socket, self._steps, options, name=name, step=step)

    def steps(self) -> list[str]:
        """Those of the last item that was done."""
        found: list[str] = json.loads(self._steps.read_text())
        return found

    def ask(self, operation: Operation, name: str, **headers: str) -> Answer:
        """Ask for an operation in the directory `name`, with a key of its own."""
        headers = {"Idempotency-Key": f"key of {name}", **headers}
        source, target = f"{name}/{operation.source}", f"{name}/{operation.target}"
        if operation.verb == "write":
            return request(self._socket, "PUT", f"/v1/workspaces/w/content/{target}", NEW, **headers)
        item = {
            "upload": {"local_path": str(self.local / "source"), "file_path": target},
            "move": {"file_path": source, "new_path": target},
            "delete": {"file_path": source},
        }[operation.verb]
        body = json.dumps({"files": [item]}).encode()
        headers["Content-Type"] = "application/json"
        return request(self._socket, "POST", f"/v1/workspaces/w/{operation.verb}", body, **headers)

    def records(self, name: str) -> list[dict[str, Any]]:
        """The live records in the directory `name`."""
        answer = request(self._socket, "GET", "/v1/workspaces/w/catalog?is_deleted=false&limit=10000")
        found: list[dict[str, Any]] = answer.json["files"]
        return [record for record in found if record["file_path"].startswith(f"{name}/")]

    def open_intents(self) -> int:
        state = os.path.dirname(definitions_path(str(self.root)))
        opened = Catalog(f"sqlite:///{state}/catalog.sqlite")
        with opened._engine.connect() as connection:
            count = connection.exec_driver_sql("SELECT count(*) FROM file_intent").scalar()
        opened.close()
        return int(count or 0)


class Storage:
    """What is behind a site, to be looked at and changed by somebody else."""

    def put(self, path: str, content: bytes) -> None: ...

    def versions(self, name: str) -> dict[str, tuple[bytes, str]]:
        """Content of each file in a directory by path, and what tells it from another with the same content."""
        raise NotImplementedError


class Disk(Storage):
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, path: str, content: bytes) -> None:
        place = self.directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def versions(self, name: str) -> dict[str, tuple[bytes, str]]:
        found = {}
        for path in (self.directory / name).rglob("*"):
            if path.is_file():
                status = path.stat()
                version = f"{status.st_ino} {status.st_mtime_ns}"
                found[str(path.relative_to(self.directory))] = (path.read_bytes(), version)
        return found


class Bucket(Storage):
    def __init__(self, server: S3Server, bucket: str) -> None:
        self._client, self._bucket = server.client(), bucket

    def put(self, path: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=path, Body=content)

    def versions(self, name: str) -> dict[str, tuple[bytes, str]]:
        found = {}
        for listed in self._client.list_objects_v2(Bucket=self._bucket, Prefix=f"{name}/").get("Contents", []):
            answer = self._client.get_object(Bucket=self._bucket, Key=listed["Key"])
            version = f"{answer['LastModified']} {answer['Metadata']}"
            found[listed["Key"]] = (answer["Body"].read(), version)
        return found


def prepare(site: Site, storage: Storage, operation: Operation, name: str) -> None:
    """Put there what the operation needs, with its records."""
    for path in {operation.source, operation.target if operation.is_replacing else ""} - {""}:
        content = OLD if path == operation.target else NEW
        (site.local / "source").write_bytes(content)
        assert site.ask(Operation("upload", "", path), name, **{"Idempotency-Key": f"{name} {path}"}).status == 200
    (site.local / "source").write_bytes(NEW)


def is_done(storage: Storage, operation: Operation, name: str) -> bool:
    """Whether the storage shows it, as far as anybody can tell who looks now."""
    found = storage.versions(name)
    if operation.verb == "delete":
        return f"{name}/{operation.source}" not in found
    return found.get(f"{name}/{operation.target}", (b"", ""))[0] == NEW


def check_retry(site: Site, storage: Storage, operation: Operation, name: str) -> bool:
    """Retry after a crash and a new start. What was done is not done again; storage and catalog agree.

    Returns:
        Whether it was done already.
    """
    was_done, before = is_done(storage, operation, name), storage.versions(name)
    is_repeated = was_done and operation.verb == "delete"
    if is_repeated:  # to delete that would be to delete it twice
        storage.put(f"{name}/{operation.source}", THEIRS)
    answers = [site.ask(operation, name), site.ask(operation, name)]
    assert [answer.status for answer in answers] == [200, 200], [answer.body for answer in answers]
    found = storage.versions(name)
    expected = {} if operation.verb == "delete" else {f"{name}/{operation.target}": NEW}
    assert not any(TEMPORARY_PREFIX in path for path in found)
    assert {path: content for path, (content, _) in found.items() if content != THEIRS} == expected
    assert (THEIRS in [content for content, _ in found.values()]) == is_repeated
    if was_done:
        assert all(found[path] == before[path] for path in expected), "changed twice"
    records = site.records(name)
    assert {record["file_path"]: record["file_size"] for record in records} == {
        path: len(NEW) for path in expected
    }
    first, second = (told(answer) for answer in answers)
    assert first == second
    assert expected == {} or first == records[0]
    return was_done


def told(answer: Answer) -> Any:
    """The record that an answer tells of."""
    return answer.json["file"] if "file" in answer.json else answer.json["results"][0]["file"]


def test_killed_at_every_named_step_on_a_disk(nursery: Nursery, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    site, disk = Site(nursery, tmp_path, {"type": "host", "host_path": str(data)}), Disk(data)
    kills: list[tuple[Operation, int, str]] = []
    with site.sidecar():
        for number, operation in enumerate(OPERATIONS):
            prepare(site, disk, operation, f"plain{number}")
            assert site.ask(operation, f"plain{number}").status in (200, 201)
            kills += [(operation, at, step) for at, step in enumerate(site.steps(), 1) if step in NAMED]
        for number, (operation, _, _) in enumerate(kills):
            prepare(site, disk, operation, f"k{number}")
    done: dict[Operation, list[bool]] = {operation: [] for operation in OPERATIONS}

    def retry(number: int) -> None:
        operation, _, step = kills[number]
        with noted(f"{operation}, killed before {step}"):
            done[operation].append(check_retry(site, disk, operation, f"k{number}"))

    for number, (operation, at, _) in enumerate(kills):
        with site.sidecar(f"k{number}/", at) as sidecar:
            if number:
                retry(number - 1)
            with pytest.raises((ConnectionError, http.client.HTTPException)):
                site.ask(operation, f"k{number}")
            wait_until(sidecar.has_ended, "the sidecar to be killed")
    with site.sidecar():
        retry(len(kills) - 1)
        assert site.open_intents() == 0
    for found in done.values():
        assert not found[0]
        assert found[-1]
        assert found == sorted(found)


@contextlib.contextmanager
def noted(note: str) -> Iterator[None]:
    """Say of a failed assertion what it is about."""
    try:
        yield
    except AssertionError as error:
        error.add_note(note)
        raise


def kill_before(sidecar: Sidecar) -> Fault:
    """Kill the sidecar before the server sees the request."""

    def fault(exchange: Exchange) -> None:
        sidecar.kill()
        exchange.keeps_open = False

    return fault


def kill_after(sidecar: Sidecar) -> Fault:
    """Kill the sidecar when the server has done what was asked, before the answer comes."""

    def fault(exchange: Exchange) -> None:
        for _ in exchange.answer():
            pass
        sidecar.kill()
        exchange.keeps_open = False

    return fault


def test_killed_at_every_request_on_s3(
    nursery: Nursery, seaweedfs: S3Server, new_bucket: Callable[[S3Server], str], tmp_path: Path
) -> None:
    bucket = new_bucket(seaweedfs)
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        place = {"bucket_name": bucket, "endpoint_url": proxy.url, "region_name": seaweedfs.region_name}
        site = Site(nursery, tmp_path, {"type": "s3", **place, "credentials": seaweedfs.credentials()})
        kill_at_every_request(site, Bucket(seaweedfs, bucket), proxy)


def kill_at_every_request(site: Site, storage: Storage, proxy: FaultProxy) -> None:
    kills: list[tuple[Operation, int, Callable[[Sidecar], Fault]]] = []
    with site.sidecar():
        for number, operation in enumerate(OPERATIONS):
            prepare(site, storage, operation, f"plain{number}")
            proxy.clear()
            assert site.ask(operation, f"plain{number}").status in (200, 201)
            steps = range(len(proxy.requests))
            kills += [(operation, 0, kill_before), *((operation, at, kill_after) for at in steps)]
        for number, (operation, _, _) in enumerate(kills):
            prepare(site, storage, operation, f"k{number}")
    done: dict[Operation, list[bool]] = {operation: [] for operation in OPERATIONS}

    def retry(number: int) -> None:
        operation, at, fault = kills[number]
        with noted(f"{operation}, {fault.__name__} request {at}"):
            done[operation].append(check_retry(site, storage, operation, f"k{number}"))

    for number, (operation, at, fault) in enumerate(kills):
        with site.sidecar() as sidecar:
            if number:
                retry(number - 1)
            proxy.clear()
            proxy.fail(fault(sidecar), after=at)
            with pytest.raises((ConnectionError, http.client.HTTPException)):
                site.ask(operation, f"k{number}")
            wait_until(lambda: proxy.serving == 0, "the requests under way to end")
    with site.sidecar():
        retry(len(kills) - 1)
        assert site.open_intents() == 0
    for found in done.values():
        assert not found[0]
        assert found[-1]
