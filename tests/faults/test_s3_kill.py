"""A process killed before and after each request that it sends to S3: recovery finishes or undoes what it did."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lab.fault_proxy import Exchange, Fault, FaultProxy
from lab.processes import wait_until
from lab.s3 import S3Server
from storage import catalog, journal
from storage.brokers import _s3_boto
from storage.brokers.broker import Broker, FileMove, FileUpload
from storage.brokers.factory import get_broker
from storage.catalog import Catalog
from storage.models import ScaleFile, use_catalog

OLD, NEW, LARGE = b"old content", b"new content, longer", os.urandom(9 * 1024 * 1024)

# What tells objects and records apart: contents by key, and (path, size) of the live records.
State = tuple[dict[str, bytes], list[tuple[str, int | None]]]


@dataclass(frozen=True)
class Operation:
    """An operation on objects.

    Attributes:
        before: contents by key, each of a file that has a record unless said otherwise.
        after: the same when it is done.
    """

    name: str
    run: Callable[[Broker, Catalog, Path], None]
    before: dict[str, bytes]
    after: dict[str, bytes]
    overwrite: bool = True
    is_recorded: bool = True


def file(records: Catalog, path: str) -> ScaleFile:
    return records.find_path("w", path) or ScaleFile(file_path=path, workspace="w")


def upload(*paths: str) -> Callable[[Broker, Catalog, Path], None]:
    return lambda broker, records, source: broker.upload_files(
        None, [FileUpload(file(records, path), str(source)) for path in paths]
    )


def write(broker: Broker, records: Catalog, source: Path) -> None:
    with source.open("rb") as content:
        broker.write_file(None, file(records, "f"), content)


def move(broker: Broker, records: Catalog, _: Path) -> None:
    broker.move_files(None, [FileMove(file(records, "f"), "g")])


def delete(broker: Broker, records: Catalog, _: Path) -> None:
    broker.delete_files(None, [file(records, "f")])


OPERATIONS = [
    Operation("upload", upload("f"), {}, {"f": NEW}),
    Operation("upload replacing", upload("f"), {"f": OLD}, {"f": NEW}),
    Operation("upload of the same size", upload("f"), {"f": OLD[::-1]}, {"f": OLD}),
    Operation("upload without overwrite", upload("f"), {}, {"f": NEW}, overwrite=False),
    Operation("upload in parts", upload("f"), {"f": OLD}, {"f": LARGE}),
    Operation("write", write, {"f": OLD}, {"f": NEW}),
    Operation("write in parts", write, {}, {"f": LARGE}),
    Operation("move", move, {"f": NEW}, {"g": NEW}),
    Operation("move replacing", move, {"f": NEW, "g": OLD}, {"g": NEW}),
    Operation("move without overwrite", move, {"f": NEW}, {"g": NEW}, overwrite=False),
    Operation("move of parts", move, {"f": LARGE}, {"g": LARGE}),
    Operation("move of what has no record", move, {"f": NEW}, {"g": NEW}, is_recorded=False),
    Operation("delete", delete, {"f": OLD}, {}),
]


class Stage:
    """A bucket, reached by a process that is killed through a proxy, and by this one directly."""

    def __init__(self, server: S3Server, proxy: FaultProxy, bucket: str, directory: Path) -> None:
        self.client, self.bucket, self.proxy = server.client(), bucket, proxy
        self.url = f"sqlite:///{directory}/catalog.sqlite"
        self.records = catalog.configure(self.url)
        self.source = directory / "source"
        self._server = server

    def broker(self, url: str) -> Broker:
        broker = get_broker("s3")
        broker.load_configuration(
            {
                "bucket_name": self.bucket,
                "endpoint_url": url,
                "region_name": self._server.region_name,
                "credentials": self._server.credentials(),
            }
        )
        return broker

    def prepare(self, operation: Operation) -> None:
        for found in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", []):
            self.client.delete_object(Bucket=self.bucket, Key=found["Key"])
        for record in self.records.page("w", is_deleted=False):
            record.set_deleted()
            record.save()
        for key, content in operation.before.items():
            self.put(key, content)
            if operation.is_recorded:
                ScaleFile(file_path=key, workspace="w", file_size=len(content)).save()
        self.source.write_bytes(next(iter(operation.after.values()), b""))

    def put(self, key: str, content: bytes) -> None:
        """As other programs do: without a stamp, and large ones in parts, so that no tag is a digest."""
        if len(content) < len(LARGE):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content)
            return
        begun = self.client.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"]
        upload: Any = {"Bucket": self.bucket, "Key": key, "UploadId": begun}
        middle = 5 * 1024 * 1024
        parts: Any = [
            {
                "PartNumber": number,
                "ETag": self.client.upload_part(**upload, PartNumber=number, Body=body)["ETag"],
            }
            for number, body in ((1, content[:middle]), (2, content[middle:]))
        ]
        self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})

    def state(self) -> State:
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        objects = {
            found["Key"]: self.client.get_object(Bucket=self.bucket, Key=found["Key"])["Body"].read()
            for found in listed
        }
        records = self.records.page("w", is_deleted=False)
        return objects, sorted((record.file_path, record.file_size) for record in records)

    def killed(self, operation: Operation, fault: Callable[[int], Fault] | None, at: int) -> None:
        """Carry it out in a process that is killed at a request."""
        self.records.close()  # SQLite's connections cannot be taken through a fork
        waits, begins = os.pipe()  # nothing may be asked before the proxy knows whom to kill
        child = os.fork()
        if child == 0:
            try:
                os.close(begins)
                os.read(waits, 1)
                self._run_as_child(operation)
                os._exit(0)
            finally:
                os._exit(1)
        self.proxy.clear()
        if fault is not None:
            self.proxy.fail(fault(child), after=at)
        os.close(begins)
        os.close(waits)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if fault else 0)
        wait_until(lambda: self.proxy.serving == 0, "the requests under way to end")

    def _run_as_child(self, operation: Operation) -> None:
        _s3_boto.connect.cache_clear()
        use_catalog(records := Catalog(self.url))
        journal.use_owner("lab")
        broker = self.broker(self.proxy.url)
        broker.overwrite = operation.overwrite
        operation.run(broker, records, self.source)
        records.close()


@pytest.fixture
def stage(
    seaweedfs: S3Server, new_bucket: Callable[[S3Server], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    monkeypatch.setenv("BROKERVOL_S3_BULK", "boto3")  # what a forked process works by
    journal.use_owner("lab")
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        stage = Stage(seaweedfs, proxy, new_bucket(seaweedfs), tmp_path)
        yield stage
    use_catalog(None)
    stage.records.close()


def kill_before(pid: int) -> Fault:
    """Kill the process before the server sees the request."""

    def fault(exchange: Exchange) -> None:
        os.kill(pid, signal.SIGKILL)
        exchange.keeps_open = False

    return fault


def kill_after(pid: int) -> Fault:
    """Kill the process when the server has done what was asked, before the answer comes."""

    def fault(exchange: Exchange) -> None:
        for _ in exchange.answer():
            pass
        os.kill(pid, signal.SIGKILL)
        exchange.keeps_open = False

    return fault


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_killed_at_any_request_it_is_finished_or_undone(stage: Stage, operation: Operation) -> None:
    stage.prepare(operation)
    before = stage.state()
    stage.killed(operation, None, 0)
    after = stage.state()
    assert (before[0], after[0]) == (operation.before, operation.after)
    seen = []
    for at, fault in (
        (at, fault) for at in range(len(stage.proxy.requests)) for fault in (kill_before, kill_after)
    ):
        stage.prepare(operation)
        stage.killed(operation, fault, at)
        broker = stage.broker(stage.client.meta.endpoint_url)
        assert journal.recover(stage.records, broker, None, "w") == 0
        seen.append(stage.state() == after)
        assert stage.state() in (before, after), f"request {at}, {fault.__name__}: half done"
        assert stage.records.journal.open_in("w", "lab", datetime.now(UTC)) == []
        assert "Uploads" not in stage.client.list_multipart_uploads(Bucket=stage.bucket)
    assert not seen[0]
    assert seen[-1]
    assert seen == sorted(seen), "once done it is not undone"
